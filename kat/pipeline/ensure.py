"""What a training run stands on: the files of the earlier tasks, made first where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kat.pipeline.artifacts import locate
from kat.pipeline.density import density
from kat.pipeline.embed import embed
from kat.pipeline.prepare import pairs, prompts
from kat.pipeline.provenance import require_asked
from latentwire.harness.device import accelerator_state
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.paths import CONF
from latentwire.harness.progress import log

JOBS: dict[str, tuple[Callable[[DictConfig], Any], str]] = {  # a task, and the setting that names its file
    "pairs": (pairs, "pairs_file"),
    "prompts": (prompts, "prompts_file"),
    "embed": (embed, "embeddings_file"),
    "density": (density, "weights_file"),
}
OF_A_RUN = ("model", "pairs", "path", "embedder", "split", "seed", "dtype", "device", "folder")
HANDED_ON = (*OF_A_RUN, *(setting for _, setting in JOBS.values()))


def ensure(cfg: DictConfig, names: Sequence[str]) -> None:
    """Run the tasks among `names` whose files are not there, in the order given, and say so; in every process.

    Args:
        cfg: A config with the settings of conf/kat/files.yaml. Of the others in `HANDED_ON` those that it has are
            handed on; the rest of a task's settings is as its YAML says.
        names: Keys of `JOBS`: pairs, prompts, embed, density.

    Raises:
        UserError: What the tasks raise; or a file that is there is of other data, another embedder or other files than
            this run asks for (`kat.pipeline.provenance`).
    """
    state = accelerator_state(cfg.device)
    for name in names:
        job, setting = JOBS[name]
        path, made = locate(cfg, setting), config_of(cfg, "run", name)
        if broadcast_from_main(state, path.is_file()):
            require_asked(name, path, made, cfg)
            continue
        log(f"{path}: not there yet, so task={name} comes first")
        job(made)
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
