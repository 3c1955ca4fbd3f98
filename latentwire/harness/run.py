"""The folder of a training run: how a run begins, goes on where it was killed, and is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.checkpoint import Checkpoints, finished_run, start_anew_once
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.origin import made_on
from latentwire.harness.progress import log
from latentwire.harness.results import json_line, truncate_jsonl, write_json, writing
from latentwire.harness.tracking import TrainingRun, start_run
from latentwire.harness.typed_config import typed

JOURNAL = ("metrics.jsonl", "timings.jsonl")  # a row a step: what is the same in every run of a config, and what is not


@dataclass
class RunSpec:
    """Settings that every training run has at the root of its config."""

    seed: int
    checkpoint_every: int
    keep_checkpoints: int
    force: bool

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: One of the wrong kind or out of its range.
        """
        return typed(cls, {field.name: cfg[field.name] for field in fields(cls)})


class Stateful(Protocol):
    """What changes while a run trains: a module, an optimizer, a scheduler, a sampler."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Become what a state says."""


class Run:
    """The folder of a run: its checkpoints, its journal (metrics.jsonl, timings.jsonl) and its tracker.

    Args:
        cfg: The run's config.
        spec: Its settings.
        identity: What decides its result, as plain values; nothing of another identity is gone on with.
        state: Of the processes; the first writes.
    """

    steps: int
    tracker: TrainingRun

    def __init__(self, cfg: DictConfig, spec: RunSpec, identity: dict[str, Any], state: PartialState) -> None:
        self.cfg, self.spec, self.identity, self.state = cfg, spec, identity, state
        self.config: dict[str, Any] = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        self.folder = Path(cfg.out).expanduser()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", identity, spec.keep_checkpoints)

    def finished(self) -> dict[str, Any] | None:
        """Return the result where the same run is finished, after what force=true asks for.

        Raises:
            UserError: A finished run of another configuration is in the folder.
        """
        if self.spec.force and self.state.is_main_process:
            start_anew_once(self.folder, self.checkpoints)
        self.state.wait_for_everyone()
        found = broadcast_from_main(
            self.state, finished_run(self.folder, self.identity) if self.state.is_main_process else None
        )
        return None if found is None else dict(found)

    def begin(self, learner: Mapping[str, Stateful], steps: int, *files: str) -> tuple[int, dict[str, Any]]:
        """Open journal and tracker, and go on from the newest checkpoint, if there is one.

        Args:
            learner: Its parts become what they were then.
            steps: Of the whole run.
            *files: JSONL files of the folder, that lose the rows of later steps, as the journal does.

        Returns:
            How many steps are done, and what was saved after them; 0 and nothing for a new run.

        Raises:
            UserError: The checkpoints are of another configuration or another version of the program; nothing has been
                written by then.
        """
        self.steps = steps
        found = self.checkpoints.latest()
        self.state.wait_for_everyone()
        step, saved = found or (0, {})
        if saved:
            for name, part in learner.items():
                try:
                    part.load_state_dict(saved[name])
                except (KeyError, RuntimeError, ValueError) as error:
                    reason = " ".join(str(error).split())
                    raise UserError(
                        f"{self.checkpoints.folder}: the {name} in it are of another version of the program "
                        f"({reason}); force=true trains anew, another out= leaves them"
                    ) from error
            log(f"going on after step {step} of {steps}")
        if self.state.is_main_process:
            write_json(self.folder / "config.json", self.config)
        task = str(self.cfg.task)
        self.tracker = start_run(self.config["tracker"], self.folder, task, str(self.cfg.name), self.config)
        if self.state.is_main_process:
            for name in (*JOURNAL, *files):
                truncate_jsonl(self.folder / name, step if saved else -1)
        return step, saved

    def log(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None:
        """Write down the numbers of a step, in the first process; the tracker gets both."""
        if self.state.is_main_process:
            for name, numbers in zip(JOURNAL, (metrics, timings), strict=True):
                self.append(name, [{"step": step, **numbers}])
            self.tracker.log(step, {**metrics, **timings})

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a JSONL file of the folder, in the first process."""
        path = self.folder / name
        if self.state.is_main_process:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.writelines(json_line(row) for row in rows)

    def is_due(self, step: int) -> bool:
        """Tell whether a checkpoint is due after a step: every so many, and after the last."""
        return step % self.spec.checkpoint_every == 0 or step == self.steps

    def save(self, step: int, learner: Mapping[str, Stateful], *, due: bool = False, **more: Any) -> None:
        """Write a checkpoint where one is due: every so many steps, after the last, and where `due` says so."""
        if not (due or self.is_due(step)):
            return
        if self.state.is_main_process:
            self.checkpoints.save(step, {name: part.state_dict() for name, part in learner.items()} | more)
        self.state.wait_for_everyone()

    def end(self, result: dict[str, Any], summary: Mapping[str, float]) -> dict[str, Any]:
        """Close the tracker with a summary, and return the first process's result in every process."""
        self.tracker.close(summary)
        self.state.wait_for_everyone()
        return dict(broadcast_from_main(self.state, result))

    def about(self) -> dict[str, Any]:
        """Return what every result says of its run."""
        return {
            "identity": self.identity,
            "name": str(self.cfg.name),
            **made_on(self.state),
            "config": self.config,
        }
