"""The folder of a training run: begin, resume, log and save. Main entry: `Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.harness.checkpoint import Checkpoints, State, finished_run, start_anew_once
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.origin import made_on
from latentwire.harness.progress import log
from latentwire.harness.results import FORMAT, JsonObject, json_line, truncate_jsonl, write_json, writing
from latentwire.harness.tracking import TrainingRun, start_run
from latentwire.harness.typed_config import plain_values, typed

Metrics = Mapping[str, float | int | str | None]  # reproducible numbers of a step
Timings = Mapping[str, float]  # seconds and rates of a step
JOURNAL = ("metrics.jsonl", "timings.jsonl")  # one row per step: reproducible numbers, and times


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
            UserError: A setting has the wrong type or is out of range.
        """
        return typed(cls, {field.name: cfg[field.name] for field in fields(cls)})


class Stateful(Protocol):
    """A part of a run that changes during training: a module, an optimizer, a scheduler or a sampler."""

    def state_dict(self) -> State:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state_dict: State, /) -> object:
        """Restore a state."""


class Run:
    """The folder of a run: its checkpoints, its journal (metrics.jsonl, timings.jsonl) and its tracker.

    Attributes:
        steps: Number of optimizer steps of the whole run.
        tracker: Tracker of the run.

    Args:
        cfg: Config of the run.
        spec: Settings of the run.
        identity: Settings and inputs that determine the result, as plain values. A run resumes only with the same
            identity.
        state: State of the processes. Only the main process writes.
    """

    steps: int
    tracker: TrainingRun

    def __init__(self, cfg: DictConfig, spec: RunSpec, identity: JsonObject, state: PartialState) -> None:
        self.cfg, self.spec, self.identity, self.state = cfg, spec, identity, state
        self.config = plain_values(cfg)
        self.folder = Path(cfg.out).expanduser()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", identity, spec.keep_checkpoints)

    def finished(self) -> JsonObject | None:
        """Return the result if this run is finished, else None. With force=true, start anew first.

        Raises:
            UserError: The folder has a finished run of another configuration.
        """
        if self.spec.force and self.state.is_main_process:
            start_anew_once(self.folder, self.checkpoints)
        self.state.wait_for_everyone()
        found = broadcast_from_main(
            self.state, finished_run(self.folder, self.identity) if self.state.is_main_process else None
        )
        return None if found is None else dict(found)

    def begin(self, learner: Mapping[str, Stateful], steps: int, *files: str) -> tuple[int, State]:
        """Open the journal and the tracker, and resume from the newest checkpoint if there is one.

        Args:
            learner: Parts whose states are restored, by name.
            steps: Number of steps of the whole run.
            *files: More JSONL files of the folder. They lose the rows of later steps, as the journal does.

        Returns:
            Number of finished steps and the content of the checkpoint; 0 and {} for a new run.

        Raises:
            UserError: The checkpoints belong to another configuration or another version of the program. No file has
                been changed.
        """
        self.steps = steps
        found = self.checkpoints.latest()
        self.state.wait_for_everyone()
        step, saved = found or (0, {})
        if saved:
            for name, part in learner.items():
                self.restore(name, partial(_load, part, saved, name))
            log(f"going on after step {step} of {steps}")
        if self.state.is_main_process:
            write_json(self.folder / "config.json", self.config)
        task = str(self.cfg.task)
        self.tracker = start_run(plain_values(self.cfg.tracker), self.folder, task, str(self.cfg.name), self.config)
        if self.state.is_main_process:
            for name in (*JOURNAL, *files):
                truncate_jsonl(self.folder / name, step if saved else -1)
        return step, saved

    def restore(self, what: str, load: Callable[[], object]) -> None:
        """Load a part of a checkpoint.

        Args:
            what: Name of the part, for the message.
            load: Loads it.

        Raises:
            UserError: The checkpoint is from another version of the program.
        """
        try:
            load()
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.checkpoints.folder}: the state of {what} is from another version of the program ({reason}); "
                "train anew with force=true, or give another out=FOLDER"
            ) from error

    def log(self, step: int, metrics: Metrics, timings: Timings) -> None:
        """Write the metrics and timings of a step to the journal and the tracker, in the main process."""
        if self.state.is_main_process:
            for name, numbers in zip(JOURNAL, (metrics, timings), strict=True):
                self.append(name, [{"step": step, **numbers}])
            self.tracker.log(step, {**metrics, **timings})

    def append(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows to a JSONL file of the folder, in the main process."""
        path = self.folder / name
        if self.state.is_main_process:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.writelines(json_line(row) for row in rows)

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due: every `checkpoint_every` steps and after the last step."""
        return step % self.spec.checkpoint_every == 0 or step == self.steps

    def save(self, step: int, learner: Mapping[str, Stateful], values: State) -> None:
        """Write a checkpoint, in the main process.

        Args:
            step: Number of finished steps.
            learner: Parts whose states are saved, by name.
            values: Further plain values and tensors, under names of their own.
        """
        if self.state.is_main_process:
            self.checkpoints.save(step, {name: part.state_dict() for name, part in learner.items()} | values)
        self.state.wait_for_everyone()

    def end(self, result: JsonObject, summary: Mapping[str, float]) -> JsonObject:
        """Close the tracker with a summary, and return the main process's result in every process."""
        self.tracker.close(summary)
        self.state.wait_for_everyone()
        return dict(broadcast_from_main(self.state, result))

    def about(self) -> JsonObject:
        """Return the fields that every result has: format, identity, name, origin and config."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "name": str(self.cfg.name),
            **made_on(self.state),
            "config": self.config,
        }


def _load(part: Stateful, saved: State, name: str) -> None:
    part.load_state_dict(saved[name])
