"""How a training run begins, goes on where it was killed, and is saved: what task=grpo and task=reward share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import latentwire
from kat.draws import ARMS
from kat.files import locate, record_of
from kat.heldout import require_share
from kat.sampler import DensityAwareSampler
from kat.tables import read_weights
from latentwire.harness import app
from latentwire.harness.checkpoint import Checkpoints, finished_run, start_anew_once
from latentwire.harness.device import describe_machine, from_first
from latentwire.harness.errors import UserError
from latentwire.harness.progress import say
from latentwire.harness.results import git_commit, json_line, write_json, write_jsonl, writing
from latentwire.harness.tracking import TrainingRun, start_run
from latentwire.harness.training import Journal, truncate_jsonl


@dataclass
class LoopSpec:
    """Settings that every training loop has at the root of its config."""

    seed: int
    steps: int
    held_out: float
    checkpoint_every: int
    keep: int
    force: bool

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        require_share(self.held_out)

    @classmethod
    def of(cls, cfg: DictConfig) -> LoopSpec:
        """Return the settings of a config.

        Raises:
            UserError: One of the wrong kind or out of its range, or an unknown sampler.
        """
        if cfg.sampler.name not in ARMS:
            raise UserError(f"sampler={cfg.sampler.name}: unknown; use one of {', '.join(ARMS)}")
        return app.typed(cls, {field.name: cfg[field.name] for field in fields(cls)})

    def identity(self) -> dict[str, Any]:
        """Return those that decide what is learnt."""
        return {"seed": self.seed, "steps": self.steps, "held_out": self.held_out}


@dataclass(frozen=True)
class Learner:
    """What changes while a run trains, saved and restored as one."""

    parameters: dict[str, nn.Parameter]
    optimizer: AdamW
    scheduler: LambdaLR
    sampler: DensityAwareSampler

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        return {
            "parameters": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Any]) -> None:
        """Become what a snapshot says."""
        for name, parameter in self.parameters.items():
            parameter.copy_(saved["parameters"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.sampler.load_state_dict(saved["sampler"])


def measured_weights(cfg: DictConfig) -> tuple[dict[str, float], list[str]]:
    """Return the weights of task=density by prompt id, and the ids of prompts that the embedder could not read.

    Nothing of either for the uniform arm, which looks at no weights.

    Raises:
        UserError: Weights that are missing or damaged.
    """
    if cfg.sampler.name == "uniform":
        return {}, []
    ids, _, weights = read_weights(locate(cfg, "weights_file"))
    unread = record_of(locate(cfg, "embeddings_file")).get("too_long") or []
    return dict(zip(ids, weights.tolist(), strict=True)), unread


class Run:
    """The folder of a run: its checkpoints, journal and tracker.

    Args:
        cfg: The run's config.
        loop: Its settings.
        identity: What decides its result, as plain values; nothing of another identity is gone on with.
        state: Of the processes; the first writes.
    """

    journal: Journal
    tracker: TrainingRun

    def __init__(self, cfg: DictConfig, loop: LoopSpec, identity: dict[str, Any], state: PartialState) -> None:
        self.cfg, self.loop, self.identity, self.state = cfg, loop, identity, state
        self.config: dict[str, Any] = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        self.folder = Path(cfg.out).expanduser()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", identity, loop.keep)

    def finished(self) -> dict[str, Any] | None:
        """Return the result where the same run is finished, after what force=true asks for.

        Raises:
            UserError: A finished run of another configuration is in the folder.
        """
        if self.loop.force and self.state.is_main_process:
            start_anew_once(self.folder, self.checkpoints)
        self.state.wait_for_everyone()
        found = from_first(self.state, finished_run(self.folder, self.identity) if self.state.is_main_process else None)
        return None if found is None else dict(found)

    def begin(self, learner: Learner, *files: str) -> tuple[int, dict[str, Any]]:
        """Open journal and tracker, and go on from the newest checkpoint, if there is one.

        Args:
            learner: Becomes what it was then.
            *files: JSONL files of the folder, besides the journal's, that lose the rows of later steps.

        Returns:
            How many steps are done, and what was saved after them; 0 and nothing for a new run.

        Raises:
            UserError: The checkpoints are of another configuration; nothing has been written by then.
        """
        found = self.checkpoints.latest()
        self.state.wait_for_everyone()
        step, saved = found or (0, {})
        if saved:
            learner.restore(saved)
            say(f"going on after step {step} of {self.loop.steps}")
        if self.state.is_main_process:
            write_json(self.folder / "config.json", self.config)
        task = str(self.cfg.task)
        self.tracker = start_run(self.config["tracker"], self.folder, task, str(self.cfg.name), self.config)
        self.journal = Journal(self.folder, self.tracker)
        if self.state.is_main_process:
            self.journal.rewind(step)
            for name in files:
                truncate_jsonl(self.folder / name, step if saved else -1)
        return step, saved

    def log(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None:
        """Write down the numbers of a step, in the first process."""
        if self.state.is_main_process:
            self.journal.log(step, metrics, timings)

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a JSONL file of the folder, in the first process."""
        path = self.folder / name
        if self.state.is_main_process:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.writelines(json_line(row) for row in rows)

    def save(self, step: int, learner: Learner, **more: Any) -> None:
        """Write a checkpoint where one is due: every so many steps, and after the last."""
        if step % self.loop.checkpoint_every and step != self.loop.steps:
            return
        if self.state.is_main_process:
            self.checkpoints.save(step, {**learner.snapshot(), **more})
        self.state.wait_for_everyone()

    def save_ledger(self, sampler: DensityAwareSampler, ids: Sequence[str]) -> None:
        """Write how often each training prompt was meant to be drawn, and was."""
        meant, drawn = (numbers.tolist() for numbers in sampler.ledger())
        rows = zip(ids, meant, drawn, strict=True)
        write_jsonl(self.folder / "ledger.jsonl", ({"id": n, "intended": m, "drawn": d} for n, m, d in rows))

    def about(self) -> dict[str, Any]:
        """Return what every result says of its run."""
        return {
            "identity": self.identity,
            "name": str(self.cfg.name),
            "device": describe_machine(self.state.device),
            "processes": self.state.num_processes,
            "versions": {"latentwire": latentwire.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__},
            "git_commit": git_commit(app.ROOT),
            "config": self.config,
        }  # fmt: skip
