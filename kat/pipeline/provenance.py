"""Whether the files that lie there are those that a run asks for: what was written beside them says what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kat.pipeline.artifacts import locate, sidecar_path
from kat.pipeline.density import density_spec
from kat.pipeline.embed import plan
from kat.pipeline.origin import check_origin
from kat.pipeline.prepare import asked_sets
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import config_hash, read_json


def require_asked(task: str, path: Path, made: DictConfig, cfg: DictConfig) -> None:
    """Refuse a file that is not what a task would make for a run; a file of the user's, with nothing beside it, serves.

    Nothing is made anew in its place: it may have taken hours, and another run may stand on it.

    Args:
        task: That makes such files: pairs, prompts, embed or density.
        path: The file.
        made: The config that this task would run with.
        cfg: The run's config.

    Raises:
        UserError: It is of other data, another embedder or other files; says which, and what to do.
    """
    records = {"pairs": "pairs.json", "prompts": "prompts.json", "density": "density.json"}
    record = path.with_suffix(".json") if task == "embed" else sidecar_path(path, records[task])
    found = read_json(record) if record.is_file() else None
    if not isinstance(found, dict):
        log(f"note: {record} is not there, so it cannot be told what {path} was made from; it is used as it is")
        return
    {"pairs": _pairs, "prompts": _prompts, "embed": _embeddings, "density": _weights}[task](path, found, made, cfg)


def _refuse(path: Path, task: str, theirs: str, ours: str, remedy: str = "") -> None:
    raise UserError(
        f"{path}: was made from {theirs}, and this run asks for {ours}; {remedy}make it anew with run.py task={task}, "
        "or keep other files with folder=FOLDER"
    )


def _pairs(path: Path, found: dict[str, Any], made: DictConfig, _: DictConfig) -> None:
    theirs = {name: entry.get("origin") or {} for name, entry in (found.get("sets") or {}).items()}
    ours = asked_sets(made)
    same = "give the same pairs=NAME (and path=FILE) here, "
    if theirs.keys() != ours.keys():
        _refuse(path, "pairs", _and(theirs), _and(ours), same)
    for name, origin in ours.items():
        a_file = "path" in origin and "sha256" in origin and "sha256" in theirs[name]  # wherever it lies
        shared = ["sha256"] if a_file else sorted(origin)
        if differing := [key for key in shared if theirs[name].get(key) != origin.get(key)]:
            key = differing[0]
            _refuse(path, "pairs", f"{name} with {key} {theirs[name].get(key)}", f"{key} {origin.get(key)}", same)


def _prompts(path: Path, found: dict[str, Any], made: DictConfig, cfg: DictConfig) -> None:
    pairs = locate(made, "pairs_file")
    if found.get("prompts_sha256") != file_sha256(path):
        raise UserError(f"{path}: is not the file that {sidecar_path(path, 'prompts.json')} speaks of; make it anew with "
                        "run.py task=prompts")  # fmt: skip
    if pairs.is_file() and found.get("pairs_sha256") != file_sha256(pairs):
        _refuse(path, "prompts", "other pairs", f"those of {pairs}")
    if "split" in cfg and found.get("split") != cfg.split:
        theirs, ours = (split or "null" for split in (found.get("split"), cfg.split))
        _refuse(path, "prompts", f"split={theirs}", f"split={ours}", f"add split={theirs}, ")


def _embeddings(path: Path, found: dict[str, Any], made: DictConfig, _: DictConfig) -> None:
    wanted = plan(made, accelerator_state(made.device))
    theirs, ours = found.get("embedder") or {}, dict(wanted.about)
    differing = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    if differing == ["dtype"]:
        log(f"note: {path} was computed in {theirs.get('dtype')}, and this run would compute it in {ours['dtype']}")
    elif differing:
        key = differing[0]
        _refuse(path, "embed", f"{key} {theirs.get(key)}", f"{key} {ours.get(key)}",
                "give the same embedder=NAME and model=NAME here, ")  # fmt: skip
    if found.get("key") != config_hash([theirs, [[prompt.id, prompt.text] for prompt in wanted.prompts]]):
        _refuse(path, "embed", "other prompts", f"those of {locate(made, 'prompts_file')}")


def _weights(path: Path, found: dict[str, Any], made: DictConfig, _: DictConfig) -> None:
    check_origin(path, locate(made, "embeddings_file"))
    usual = vars(density_spec(made))
    theirs = found.get("settings") or {}
    if told := [f"sampler.{name}={theirs[name]}" for name in usual if name in theirs and theirs[name] != usual[name]]:
        log(f"note: {path} was made with {', '.join(told)}, which is not the default of task=density")


def _and(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
