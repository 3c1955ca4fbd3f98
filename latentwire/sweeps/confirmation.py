"""The command that confirms the winners of a sweep, and its results. Main entry: `with_confirmation()`.

A sweep with part=select evaluates half of the passages. Its winners are confirmed on the other half, part=confirm,
whose results are in the folder `confirm` of the sweep's folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from latentwire.analysis.confirmation import confirmations
from latentwire.analysis.records import Summary
from latentwire.harness.progress import log
from latentwire.harness.results import ResultStore
from latentwire.records import ScoredResult, StoredSummary, read_example_rows, read_summary, succeeded

Summarize = Callable[[StoredSummary, Path], Summary]
REPLACED = ("part=", "force=", "repeats=", "only=", "out=")  # settings of the old command that the new one sets anew


def with_confirmation(summary: Summary, folder: Path, summarize: Summarize) -> Summary:
    """Return a summary whose sources have the command that confirms their winner, and its results if it has run.

    Args:
        summary: Summary of a sweep.
        folder: Folder of the sweep.
        summarize: Returns the summary of another sweep, from its facts and folder.
    """
    groups = summary["analysis"]["groups"]
    command = confirm_command(summary, folder)
    for group in groups:
        group["confirm_command"] = command if group["winner"] is not None else None
    path = folder / "confirm" / "summary.json"
    if summary["part"] != "select" or not path.is_file():
        return summary
    other = read_summary(path)
    other["primary_metric"] = summary["primary_metric"]
    if (reason := _not_a_confirmation(summary, folder, other, path.parent)) is not None:
        log(f"note: {path} does not confirm this sweep: {reason}")
        return summary
    found = confirmations(groups, summarize(other, path.parent)["analysis"]["groups"])
    for group in groups:
        group["confirmation"] = found.get(group["group"])
    return summary


def confirm_command(summary: Summary, folder: Path) -> str | None:
    """Return the command that confirms the winners of a sweep; for a sweep over all passages, the one to begin with.

    Args:
        summary: Summary of the sweep.
        folder: Folder of the sweep.

    Returns:
        The sweep's own command with another part; None without a winner, or if the command is not known.
    """
    winners = [group["winner"] for group in summary["analysis"]["groups"] if group["winner"] is not None]
    if not winners or summary["command"] is None or summary["part"] == "confirm":
        return None
    arguments = [one for one in shlex.split(summary["command"]) if not one.startswith(REPLACED)]
    if summary["part"] != "select":
        return shlex.join([*arguments, *_only(summary), "part=select", f"out={folder / 'select'}"])
    kept = [one for one in arguments if not one.startswith("budget_minutes=")]
    return shlex.join([*kept, "part=confirm", f"only={'|'.join(winners)}", f"out={folder / 'confirm'}"])


def _only(summary: Summary) -> list[str]:
    """Return the patterns of the sweep's command, which keep their place in the command of its first half."""
    return [one for one in shlex.split(summary["command"] or "") if one.startswith("only=")]


def _not_a_confirmation(summary: StoredSummary, folder: Path, other: StoredSummary, confirm: Path) -> str | None:
    """Return why the results in the folder `confirm` do not confirm a sweep, or None."""
    if other["part"] != "confirm":
        return "it was not made with part=confirm"
    for setting in ("model_id", "data", "dtype"):
        if not _values(other, setting) <= _values(summary, setting):
            return f"its {setting} differs"
    if summary["shots_seed"] != other["shots_seed"]:
        return "its shots_seed differs, so the shots differ"
    shared = _passages(summary, folder) & _passages(other, confirm)
    return f"both have the same passages ({len(shared)})" if shared else None


def _values(summary: StoredSummary, setting: str) -> set[object]:
    return {result.get(setting) for result in _successful(summary)}


def _successful(summary: StoredSummary) -> list[ScoredResult]:
    return [result for result in [*summary["results"], *summary["controls"]] if succeeded(result)]


def _passages(summary: StoredSummary, folder: Path) -> set[str]:
    """Return the passages of a sweep's answers."""
    store = ResultStore(folder)
    rows = [row for result in _successful(summary) for row in read_example_rows(store.predictions_path(result["name"]))]
    return {row.get("passage", row["id"]) for row in rows}
