"""What a model was trained on, through all its ancestors; refuses models that saw held-out prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kat.data.heldout import LEDGER
from kat.data.tables import read_rows
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import read_json
from latentwire.lm.spec import ModelSpec


def require_unseen(setting: str, folder: Path, kept: Collection[str]) -> None:
    """Refuse a model that was trained on prompts held out here: its rewards or answers there would prove nothing.

    What a run drew is in its ledger; the model that it began with, as its config.json names it, counts too, and so on
    back to the first. Prompts are told apart by their ids, which are hashes of their content.

    Args:
        setting: That names the model, with its value.
        folder: Of the model.
        kept: Ids of the prompts that are held out.

    Raises:
        UserError: Says how many of them it has seen, and in which run.
    """
    for run in _lineage(setting, folder):
        rows = read_rows(run / LEDGER, {"drawn": int}, "grpo (or task=reward) in train.py")
        if seen := [row["id"] for row in rows if row["drawn"] and row["id"] in kept]:
            where = "" if run == _run_of(folder) else f" in {run}, from which it went on"
            raise UserError(
                f"{setting}: was trained on {len(seen)} of the {len(kept)} prompts that are held out here, {seen[0]} "
                f"for instance{where}, so it would be judged on what it knows; use held_out and data as in that run, "
                "or train it anew with those of this one"
            )


def require_unseen_start(model: ModelSpec, kept: Collection[str]) -> None:
    """Refuse model=path with a policy that `require_unseen` refuses; any other model is taken for one from elsewhere.

    Raises:
        UserError: As `require_unseen` says.
    """
    folder = Path(model.path).expanduser()
    if model.origin == "path" and model.path and _has_ledger(folder):
        require_unseen(f"model.path={model.path}", folder, kept)


def _has_ledger(folder: Path) -> bool:
    return (_run_of(folder) / LEDGER).is_file()


def _lineage(setting: str, folder: Path) -> Iterator[Path]:
    """Yield the runs that made a model, the last first, as far as they can be told."""
    visited: set[Path] = set()
    model: Path | None = folder
    while model is not None and model.resolve() not in visited:
        visited.add(model.resolve())
        if _has_ledger(model):
            yield _run_of(model)
            model = began_as(model)
            continue
        if model == folder:
            log(f"note: {setting}: there is no {LEDGER} with it, so nothing tells which prompts it was trained on")
        elif not model.exists():
            log(f"note: {setting}: went on from {model}, which is not there, so nothing tells which prompts that was "
                "trained on")  # fmt: skip
        return


def _run_of(model: Path) -> Path:
    return model.parent if model.name == "model" else model


def began_as(model: Path) -> Path | None:
    """Return the folder of the model that a run began with; None for one that came from elsewhere."""
    path = _run_of(model) / "config.json"
    found = read_json(path) if model.name == "model" and path.is_file() else {}
    config: dict[str, Any] = found if isinstance(found, dict) else {}
    base = config.get("model") or {}
    before = config.get("policy") or (base.get("path") if base.get("origin") == "path" else None)
    if not before:
        return None
    folder = Path(str(before)).expanduser()
    return folder / "model" if (folder / "model").is_dir() else folder
