"""The files that a training run needs: missing files are made, existing files are checked. Main entry: `ensure()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kat.pipeline.artifacts import locate, sidecar_path
from kat.pipeline.density import density
from kat.pipeline.embed import embed
from kat.pipeline.prepare import pairs, prompts
from kat.pipeline.provenance import require_same_origin
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.ownership import owned
from latentwire.harness.paths import CONF
from latentwire.harness.progress import log

JOBS: dict[str, tuple[Callable[[DictConfig], object], str]] = {  # each task, and the setting with its file
    "pairs": (pairs, "pairs_file"),
    "prompts": (prompts, "prompts_file"),
    "embed": (embed, "embeddings_file"),
    "density": (density, "weights_file"),
}
RUN_SETTINGS = ("model", "pairs", "path", "embedder", "split", "seed", "dtype", "device", "folder")
SHARED_SETTINGS = (*RUN_SETTINGS, *(setting for _, setting in JOBS.values()))


def ensure(cfg: DictConfig, names: Sequence[str]) -> None:
    """Run the tasks whose files are missing, and check the files that exist. Call this in every process.

    Args:
        cfg: A config with the settings of conf/kat/files.yaml. Its `SHARED_SETTINGS` are used for the tasks; all other
            settings of a task come from its YAML.
        names: The tasks in order, keys of `JOBS`: pairs, prompts, embed, density.

    Raises:
        UserError: A task fails, an existing file has another origin (see `kat.pipeline.provenance`), or a file that
            the user named does not exist.
    """
    state = accelerator_state(cfg.device)
    for name in names:
        path, setting = _located(cfg, name), JOBS[name][1]
        if not broadcast_from_main(state, path.exists() or _has_default_name(cfg, setting, path)):
            raise UserError(_missing(cfg, name, setting, path))
    for name in names:
        path, task_cfg = _located(cfg, name), config_of(cfg, "run", name)
        if not broadcast_from_main(state, path.exists()):
            with owned(path.parent, f"task={name} for {path.name}", state):  # other runs may need it at this moment
                if not broadcast_from_main(state, path.exists()):
                    log(f"{path}: not there yet, so task={name} comes first")
                    JOBS[name][0](task_cfg)
                    state.wait_for_everyone()
                    continue
        require_same_origin(name, path, task_cfg, cfg)


def _located(cfg: DictConfig, name: str) -> Path:
    """Return the file or folder of a task's result; pairs are always a file."""
    return locate(cfg, JOBS[name][1], folder=name != "pairs")


def _has_default_name(cfg: DictConfig, setting: str, path: Path) -> bool:
    """Return whether a path is the one that the setting has by default in the folder of the run."""
    return path.resolve() == (Path(cfg.folder).expanduser() / _default_name(setting)).resolve()


def _default_name(setting: str) -> str:
    return str(OmegaConf.select(OmegaConf.load(CONF / "kat" / "files.yaml"), setting))


def _missing(cfg: DictConfig, task: str, setting: str, path: Path) -> str:
    """Return the message about a file that the user named and that does not exist."""
    given = f"{setting}={cfg[setting]}"
    in_both = setting == "prompts_file" and len(Path(str(cfg[setting])).parts) == 1
    also = ", and the working folder has none of this name" if in_both else ""
    return (
        f"{given}: {path} does not exist{also}; correct the name, or make the file with run.py task={task} {given}. "
        f"A training run makes only {_default_name(setting)}"
    )


def prompt_tasks(cfg: DictConfig) -> list[str]:
    """Return the tasks that make a run's prompts: none but prompts for a prompts file of the user's own.

    Such a file has no prompts.json, and no pairs are needed for it. Call this in every process.
    """
    path = locate(cfg, "prompts_file")
    is_own = path.exists() and not sidecar_path(path, "prompts.json").is_file()
    return ["prompts"] if broadcast_from_main(accelerator_state(cfg.device), is_own) else ["pairs", "prompts"]


def config_of(cfg: DictConfig, entry: str, task: str, *choices: str, **changes: object) -> DictConfig:
    """Return the config of another task, with the shared settings of this run.

    Args:
        cfg: The config of this run. Its values of `SHARED_SETTINGS` are used in the other config.
        entry: The root of the config tree, `run` or `train`.
        task: The other task, of that entry.
        *choices: Files of config groups that the other config uses: 'sampler=density'.
        **changes: Further root settings or groups to replace. They must exist in the other config.
    """
    overrides = [f"task={task}", *choices]
    if GlobalHydra.instance().is_initialized():
        task_cfg = compose(entry, overrides=overrides)
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            task_cfg = compose(entry, overrides=overrides)
    with open_dict(task_cfg):  # nodes of other data sets or embedders have other keys
        for name in SHARED_SETTINGS:
            if name in cfg and (name in task_cfg or name == "path"):
                task_cfg[name] = _plain(cfg[name])
    for name, value in changes.items():
        task_cfg[name] = _plain(value)
    return task_cfg


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
