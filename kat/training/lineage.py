"""Checks that a model and its ancestors were not trained on held-out prompts. Main entry: `require_unseen()`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from kat.data.heldout import LEDGER
from kat.data.tables import read_numbers
from kat.training.model_folder import run_folder, weights_folder
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject, read_json
from latentwire.lm.spec import ModelSpec


def require_unseen(setting: str, folder: Path, held_out_ids: Collection[str]) -> None:
    """Check that neither a model nor any of its ancestors was trained on a held-out prompt.

    The ledger of a run lists the prompts that it drew; its config.json names the model that it started from. A prompt's
    id is a hash of its content.

    Args:
        setting: Setting that names the model, with its value.
        folder: Folder of the model.
        held_out_ids: Ids of the held-out prompts.

    Raises:
        UserError: A held-out prompt was trained on; the message gives the number of such prompts and the run.
    """
    for run in _lineage(setting, folder):
        draws = read_numbers(run / LEDGER, {"drawn": int}, "grpo (or task=reward) in train.py")
        if seen := [name for name, (drawn,) in draws.items() if drawn and name in held_out_ids]:
            where = "" if run == run_folder(folder) else f" in {run}, which it started from"
            raise UserError(
                f"{setting}: was trained on {len(seen)} of the {len(held_out_ids)} prompts that are held out here, "
                f"{seen[0]} for instance{where}, so its scores on them would be too good; use the held_out and data of "
                "that run, or train the model again with the held_out and data of this run"
            )


def require_unseen_start(model: ModelSpec, held_out_ids: Collection[str]) -> None:
    """Apply `require_unseen` to the model of a run with model=path; a model without a ledger passes.

    Raises:
        UserError: A held-out prompt was trained on.
    """
    folder = Path(model.path).expanduser()
    if model.origin == "path" and model.path and _has_ledger(folder):
        require_unseen(f"model.path={model.path}", folder, held_out_ids)


def _has_ledger(folder: Path) -> bool:
    return (run_folder(folder) / LEDGER).is_file()


def _lineage(setting: str, folder: Path) -> Iterator[Path]:
    """Yield the folders of the runs that trained a model, the latest first, as far back as they are known."""
    visited: set[Path] = set()
    model: Path | None = folder
    while model is not None and model.resolve() not in visited:
        visited.add(model.resolve())
        if _has_ledger(model):
            yield run_folder(model)
            model = _start_of(model)
            continue
        if model == folder:
            log(f"note: {setting}: it has no {LEDGER}, so the prompts that it was trained on are unknown")
        elif not model.exists():
            log(f"note: {setting}: started from {model}, which does not exist, so the prompts that it was trained on "
                "are unknown")  # fmt: skip
        return


def _start_of(model: Path) -> Path | None:
    """Return the folder of the model that a run started from; None if it was not a folder."""
    path = run_folder(model) / "config.json"
    found = read_json(path) if model.name == "model" and path.is_file() else {}
    config: JsonObject = found if isinstance(found, dict) else {}
    base = config.get("model")
    from_path = base.get("path") if isinstance(base, dict) and base.get("origin") == "path" else None
    start = config.get("policy") or from_path
    return weights_folder(str(start)) if start else None
