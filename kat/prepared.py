"""What a training run stands on: the files of the earlier tasks, made first where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from kat.embed_job import embed
from kat.files import beside, locate
from kat.measure import density
from kat.prepare import pairs, prompts
from latentwire.harness.app import CONF
from latentwire.harness.device import from_first, place
from latentwire.harness.errors import UserError
from latentwire.harness.progress import say
from latentwire.harness.results import read_json

JOBS: dict[str, tuple[Callable[[DictConfig], Any], str]] = {  # a task, and the setting that names its file
    "pairs": (pairs, "pairs_file"),
    "prompts": (prompts, "prompts_file"),
    "embed": (embed, "embeddings_file"),
    "density": (density, "weights_file"),
}
OF_A_RUN = ("model", "pairs", "path", "embedder", "seed", "dtype", "device", "folder")
HANDED_ON = (*OF_A_RUN, *(setting for _, setting in JOBS.values()))


def ensure(cfg: DictConfig, names: Sequence[str]) -> None:
    """Run the tasks among `names` whose files are not there, in the order given, and say so; in every process.

    Args:
        cfg: A config with the settings of conf/kat/files.yaml. Of the others in `HANDED_ON` those that it has are
            handed on; the rest of a task's settings is as its YAML says.
        names: Keys of `JOBS`: pairs, prompts, embed, density.

    Raises:
        UserError: What the tasks raise; or other data sets were asked for than those of the pairs file that is there.
    """
    state = place(cfg.device)
    for name in names:
        job, setting = JOBS[name]
        path = locate(cfg, setting)
        if from_first(state, path.is_file()):
            if name == "pairs":
                _check_sets(cfg, path)
            continue
        say(f"{path}: not there yet, so task={name} comes first")
        job(config_of(cfg, "run", name))
        state.wait_for_everyone()


def config_of(cfg: DictConfig, entry: str, task: str, **changes: Any) -> DictConfig:
    """Return the config of another task as its YAML has it, with what `cfg` says about the same things.

    Args:
        cfg: The config at hand; the settings of `HANDED_ON` that it has are handed on.
        entry: Root of the config tree, `run` or `train`.
        task: Of that entry.
        **changes: Root settings or groups with values of their own, which must exist in that config.
    """
    if GlobalHydra.instance().is_initialized():
        made = compose(entry, overrides=[f"task={task}"])
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = compose(entry, overrides=[f"task={task}"])
    with open_dict(made):  # the nodes of other data sets or embedders have other keys
        for name in HANDED_ON:
            if name in cfg and (name in made or name == "path"):
                made[name] = _plain(cfg[name])
    for name, value in changes.items():
        made[name] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check_sets(cfg: DictConfig, path: Path) -> None:
    """Refuse a pairs file of other data sets than those that were asked for on the command line."""
    record = beside(path, "pairs.json")
    asked = HydraConfig.initialized() and [word for word in HydraConfig.get().overrides.task if word[:6] == "pairs="]
    if not asked or not record.is_file():
        return
    names = {str(node.name) for node in cfg.pairs.values() if node.origin != "file"}
    there = {name.rpartition("/")[0] for name in read_json(record)["sets"]}
    if missing := sorted(names - there):
        raise UserError(
            f"{asked[0]}: {path} was made from {', '.join(sorted(there))}, not from {', '.join(missing)}; make it anew "
            f"with run.py task=pairs {asked[0]}, or keep other files with folder=FOLDER"
        )
