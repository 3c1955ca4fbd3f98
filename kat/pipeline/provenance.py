"""Checks of the recorded origin of existing files against a run's settings. Main entry: `require_same_origin()`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from kat.data.formats import FORMATS
from kat.density.records import DensityOrigin
from kat.pipeline.artifacts import locate, sidecar_path
from kat.pipeline.density import density_spec
from kat.pipeline.embed import plan
from kat.pipeline.embed_shards import sharded_record, sharded_work
from kat.pipeline.origin import check_origin
from kat.pipeline.prepare import requested_sets
from kat.records import EmbeddingsRecord, PairsRecord, PromptsRecord, read_kat_record
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject, config_hash

SIDECAR = {"pairs": "pairs.json", "prompts": "prompts.json", "density": "density.json"}  # record of each task's file


def require_same_origin(task: str, path: Path, task_cfg: DictConfig, cfg: DictConfig) -> None:
    """Check that a file is the one that a task would make for a run. A file without a record is used unchecked.

    The file is never replaced here: it may have taken hours, and other runs may need it.

    Args:
        task: The task that makes such files: pairs, prompts, embed or density.
        path: The file.
        task_cfg: The config with which the task would run.
        cfg: The config of the run.

    Raises:
        UserError: The file was made from other data, another embedder or other files.
    """
    if task == "embed" and path.is_dir():
        _check_shards(path, task_cfg)
        return
    record = path.with_suffix(".json") if task == "embed" else sidecar_path(path, SIDECAR[task])
    if not record.is_file():
        log(f"note: {record} does not exist, so the origin of {path} is unknown; it is used unchecked")
        return
    check = {"pairs": _check_pairs, "prompts": _check_prompts, "embed": _check_embeddings, "density": _check_weights}
    check[task](path, record, task_cfg, cfg)


def _remedy(task: str) -> str:
    return f"make it again with run.py task={task}, or use other files with folder=FOLDER"


def _reject(path: Path, task: str, recorded: str, needed: str, remedy: str = "") -> None:
    raise UserError(f"{path}: was made from {recorded}, but this run needs {needed}; {remedy}{_remedy(task)}")


def _check_pairs(path: Path, record: Path, task_cfg: DictConfig, _: DictConfig) -> None:
    sets = read_kat_record(PairsRecord, record, _remedy("pairs"))["sets"]
    recorded = {name: entry["origin"] for name, entry in sets.items()}
    needed = requested_sets(task_cfg)
    remedy = "give the same pairs=NAME (and path=FILE) here, "
    if recorded.keys() != needed.keys():
        _reject(path, "pairs", _joined(recorded), _joined(needed), remedy)
    for name, origin in needed.items():
        # The content of a file decides, not its path.
        is_file = "path" in origin and "sha256" in origin and "sha256" in recorded[name]
        keys = ["sha256"] if is_file else sorted(origin)
        if differing := [key for key in keys if recorded[name].get(key) != origin.get(key)]:
            key = differing[0]
            _reject(path, "pairs", f"{name} with {key} {recorded[name].get(key)}", f"{key} {origin.get(key)}", remedy)
        form, source = sets[name]["format"], recorded[name].get("format_source")
        if form in FORMATS and FORMATS.source_digest(form) != source:
            _reject(path, "pairs", f"{name} by another version of the format {form}", "the module as it is now")


def _check_prompts(path: Path, record: Path, task_cfg: DictConfig, cfg: DictConfig) -> None:
    found, pairs = read_kat_record(PromptsRecord, record, _remedy("prompts")), locate(task_cfg, "pairs_file")
    if found["prompts_sha256"] != file_sha256(path):
        raise UserError(f"{path}: is not the file that {record} describes; make it again with run.py task=prompts")
    if pairs.is_file() and found["pairs_sha256"] != file_sha256(pairs):
        _reject(path, "prompts", "other pairs", f"the pairs in {pairs}")
    if "split" in cfg and found["split"] != cfg.split:
        recorded, needed = (split or "null" for split in (found["split"], cfg.split))
        _reject(path, "prompts", f"split={recorded}", f"split={needed}", f"add split={recorded}, ")


def _check_embeddings(path: Path, record: Path, task_cfg: DictConfig, _: DictConfig) -> None:
    work = plan(task_cfg, accelerator_state(task_cfg.device))
    found = read_kat_record(EmbeddingsRecord, record, _remedy("embed"))
    _check_embedder(path, found["embedder"], work.about)
    if found["key"] != config_hash([found["embedder"], [[prompt.id, prompt.text] for prompt in work.prompts]]):
        _reject(path, "embed", "other prompts", f"the prompts in {locate(task_cfg, 'prompts_file')}")


def _check_shards(path: Path, task_cfg: DictConfig) -> None:
    """Check a folder of embeddings. Its shards are checked where they are read."""
    found = sharded_record(path)
    if found is None:
        raise UserError(f"{path}: its shards are not complete; run run.py task=embed again, which makes only those")
    work = sharded_work(task_cfg, accelerator_state(task_cfg.device))
    _check_embedder(path, found["embedder"], work.about)
    if found["prompts"] != work.prompts:
        _reject(path, "embed", "other prompts", f"the prompts in {work.prompts_file}")


def _check_embedder(path: Path, recorded: JsonObject, needed: JsonObject) -> None:
    differing = [key for key in sorted({*recorded, *needed}) if recorded.get(key) != needed.get(key)]
    if differing == ["dtype"]:
        log(f"note: {path} was computed in {recorded.get('dtype')}, and this run would compute it in {needed['dtype']}")
    elif differing:
        key = differing[0]
        remedy = "give the same embedder=NAME and model=NAME here, "
        _reject(path, "embed", f"{key} {recorded.get(key)}", f"{key} {needed.get(key)}", remedy)


def _check_weights(path: Path, record: Path, task_cfg: DictConfig, _: DictConfig) -> None:
    check_origin(path, locate(task_cfg, "embeddings_file"))
    defaults = vars(density_spec(task_cfg))
    recorded = read_kat_record(DensityOrigin, record, _remedy("density"))["settings"]
    differing = [name for name in defaults if name in recorded and recorded[name] != defaults[name]]
    if differing:
        settings = ", ".join(f"sampler.{name}={recorded[name]}" for name in differing)
        log(f"note: {path} was made with {settings}, which is not the default of task=density")


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
