"""The task latent: trains an encoder whose latents a frozen LM reads, and stops by passages that it never saw."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from latentwire.data.examples import DataSpec
from latentwire.data.fingerprints import fingerprint
from latentwire.encoders import grouping
from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.cost import COLLAPSED
from latentwire.encoders.lm_layers import LMLayers
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.memory import choose_batch_tokens, within_memory
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json
from latentwire.harness.run import Run, RunSpec, Stateful
from latentwire.harness.training import (
    OptimizerSpec,
    add_up_gradients,
    clip_gradients,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    require_finite_loss,
)
from latentwire.harness.typed_config import typed
from latentwire.latent_training import passages
from latentwire.latent_training.objective import LatentObjective, Weights, halves
from latentwire.latent_training.passages import LatentData, Passage, load_latent_data
from latentwire.latent_training.step_plan import TrainingSpec, TrainingStep, epochs_before_answers, plan_steps
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary


@dataclass
class LatentRunSpec(RunSpec):
    """Settings of a run that stand at the root beside those of `TrainingSpec`."""

    stop_epoch: int | None
    extra: str
    adapter_hidden: int


def latent(cfg: DictConfig) -> dict[str, Any]:
    """Train an encoder, or go on where a killed run stopped.

    Returns:
        What result.json holds.

    Raises:
        UserError: Data or a model that cannot be had, settings out of their range, a run of another configuration in
            the folder, a loss or gradient that is not finite, a full disk.
    """
    settings = LatentRunSpec.of(cfg)
    accelerator = make_accelerator(cfg.device, cfg.dtype)
    state = accelerator_state(cfg.device)
    asked = {field.name: cfg[field.name] for field in fields(TrainingSpec)}
    asked["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    spec = typed(TrainingSpec, asked)
    weights = typed(Weights, cfg.weights, "weights.")
    optimizer = typed(OptimizerSpec, cfg.optimizer, "optimizer.")
    model, data = typed(ModelSpec, cfg.model, "model."), typed(DataSpec, cfg.data, "data.")
    stop_epoch = spec.epochs if settings.stop_epoch is None else settings.stop_epoch
    if not 1 <= stop_epoch <= spec.epochs:
        raise UserError(f"stop_epoch={stop_epoch}: is an epoch of the run, between 1 and epochs={spec.epochs}")
    extra = Path(settings.extra).expanduser()
    identity = {
        "task": "latent",
        "model": model.identity(),
        "data": data.identity(),
        "passages": passages.FORMAT,
        "extra_sha256": file_sha256(extra) if settings.extra and extra.is_file() else None,  # else: said below
        "dtype": str(choose_dtype(cfg.dtype, state.device)),
        "seed": cfg.seed,
        "encoder": {"name": cfg.encoder.name, **_plain(cfg.encoder.dials), "adapter_hidden": settings.adapter_hidden,
                    **({"words": grouping.FORMAT} if cfg.encoder.dials.get("groups") == "words" else {})},
        "transform": {"name": cfg.embed_transform.name, **_plain(cfg.embed_transform.dials)},
        "weights": dict(vars(weights)),
        "optimizer": dict(vars(optimizer)),
        **vars(spec),
    }  # fmt: skip
    run = Run(cfg, settings, identity, state)
    finished = run.finished()
    if finished is not None and (finished["until"] >= stop_epoch or finished["stopped"]):
        log(f"encoder: {run.folder / 'encoder'}  (finished before; force=true trains it anew)")
        return finished
    sizes = {"batch_tokens": spec.batch_tokens, "passages_per_step": spec.passages_per_step}
    with within_memory(state.device, sizes):
        return _Training(run, settings, spec, weights, optimizer, accelerator, stop_epoch).train()


class _Training:
    """One run: what it has loaded, its plan, and its steps."""

    def __init__(
        self,
        run: Run,
        settings: LatentRunSpec,
        spec: TrainingSpec,
        weights: Weights,
        optimizer: OptimizerSpec,
        accelerator: Accelerator,
        stop_epoch: int,
    ) -> None:
        self.run, self.spec, self.weights, self.accelerator, self.stop_epoch = (
            run,
            spec,
            weights,
            accelerator,
            stop_epoch,
        )
        self.cfg = cfg = run.cfg
        self.state = run.state
        self.data: LatentData = load_latent_data(
            typed(DataSpec, cfg.data, "data."), settings.extra, spec.extra_words, spec.samples, spec.held_out,
            spec.shots, spec.questions_per_shot, cfg.seed,
        )  # fmt: skip
        model = typed(ModelSpec, cfg.model, "model.")
        with self.state.local_main_process_first():
            self.lm: LanguageModel = load_model(model, self.state.device, choose_dtype(cfg.dtype, self.state.device))
        self.vocabulary = Vocabulary(self.lm.token_embeddings(), seed=cfg.seed)
        self.latents = self._build(model, settings.adapter_hidden)
        self.objective = LatentObjective(
            self.lm, self.vocabulary, self.latents, weights, self.data.shots, spec.answer_tokens, spec.distance
        )
        self.parameters = dict(self.latents.named_parameters())
        self.optimizer = make_optimizer(self.parameters, optimizer)
        self.max_norm = optimizer.max_grad_norm
        self._leave_out_short_parts()
        texts = [self.objective.writer.ids(f" {passage.text}") for passage in self.data.train]
        self.lengths = [len(ids) for ids in texts]
        if isinstance(self.latents.encoder, LMLayers):
            self.latents.encoder.learn_words(texts, self.lm.tokenizer)
        self._require_readable()
        self.plan = plan_steps(self.data.train, self.lengths, spec, weights, cfg.seed)
        self.before_answers = epochs_before_answers(self.plan)
        self.scheduler = make_scheduler(self.optimizer, optimizer, len(self.plan))
        self.learner: dict[str, Stateful] = {
            "latents": self.latents, "optimizer": self.optimizer, "scheduler": self.scheduler
        }  # fmt: skip
        self.judge_by = spec.judge_by or ("f1" if weights.needs_lm() else "cosine")
        self.held_out = HeldOut(
            self.objective, self.data.held_out, self.data.shots, spec.max_new_tokens, spec.batch_tokens, cfg.seed
        )
        # the best weights so far by the held-out passages, their epoch and score, and the scores of all epochs judged
        self.best: dict[str, Any] = {"epoch": 0, "score": -math.inf, "weights": {}}
        self.history: list[dict[str, Any]] = []

    def _build(self, model: ModelSpec, adapter_hidden: int) -> Latents:
        spec = LatentSpec(
            encoder=self.cfg.encoder.name, encoder_dials=_plain(self.cfg.encoder.dials),
            adapter_hidden=adapter_hidden, transform=self.cfg.embed_transform.name,
            transform_dials=_plain(self.cfg.embed_transform.dials), lm=model.identity(), lm_name=model.name,
            lm_config=encoder_lm_config(self.lm) if self.cfg.encoder.name == "lm_layers" else {},
        )  # fmt: skip
        # The same first weights whatever the transform: a screening compares transforms alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.cfg.seed, "encoder").initial_seed())
            latents = Latents(spec, self.vocabulary)
        if isinstance(latents.encoder, LMLayers):
            latents.encoder.copy_from(self.lm.model)
        return latents.to(self.lm.device)

    def _tokens_read(self, passage: Passage) -> int:
        """Return how many tokens the encoder gets of a passage, or of its first half where that is read alone."""
        text = halves(passage.text)[0] if self.weights.continuation else passage.text
        return len(self.objective.writer.ids(f" {text}"))

    def _leave_out_short_parts(self) -> None:
        """Leave out what splitting passages made too short for the ratio: nobody wrote these, nobody can mend them."""
        least, wholes = self.latents.encoder.shortest, self.data.wholes
        marks = [fingerprint(passage.text) for passage in self.data.train]
        kept = [
            passage
            for passage, mark in zip(self.data.train, marks, strict=True)
            if wholes.get(mark, mark) == mark or self._tokens_read(passage) >= least
        ]
        if kept and len(kept) < len(marks):
            self.data.counts[f"parts of split passages, too short for ratio={least}"] += len(marks) - len(kept)
            self.data.train = kept

    def _require_readable(self) -> None:
        """Refuse a ratio that leaves nothing of a passage, or of its first half, and one too long, before any work."""
        for passage in [*self.data.train, *self.data.held_out]:
            self.latents.encoder.positions(self._tokens_read(passage))
            self.objective.require_room(passage)

    def train(self) -> dict[str, Any]:
        """Do the steps that are left, and save the best encoder."""
        self._tell()
        done, saved = self.run.begin(self.learner, len(self.plan))
        if saved:
            self.best, self.history = saved["best"], saved["history"]
        self._steps(done)
        result = self._finish()
        return self.run.end(result, {k: v for k, v in result["held_out"].items() if isinstance(v, int | float)})

    def _tell(self) -> None:
        questions = sum(len(passage.questions) for passage in self.data.train)
        log(
            f"{self.cfg.name}: {len(self.data.train)} passages with {questions} questions to train on "
            f"(samples={self.spec.samples}), {len(self.data.held_out)} held out; {len(self.plan)} steps in "
            f"{self.spec.epochs} epochs; {sum(p.numel() for p in self.parameters.values()):,} weights"
        )
        for reason, count in self.data.counts.items():
            log(f"note: {count} {reason} left out")

    @property
    def _stopped(self) -> bool:
        """Tell whether the last `patience` judgements brought nothing better, those before the first answers apart."""
        since = max(self.best["epoch"], self.before_answers)
        later = [entry for entry in self.history if entry["epoch"] > since]
        return len(later) >= self.spec.patience

    def _steps(self, done: int) -> None:
        last = max((n for n, step in enumerate(self.plan, 1) if step.epoch <= self.stop_epoch), default=0)
        total = sum(len(step.passages) for step in self.plan[done:last])
        with Progress(f"latent {self.cfg.name}", max(1, total)) as progress:
            for number in range(done + 1, last + 1):
                if self._stopped:
                    log(f"stopped: no better than epoch {self.best['epoch']} for {self.spec.patience} judgements")
                    break
                step = self.plan[number - 1]
                metrics, timings = self._step(number, step)
                judged = step.last_of_epoch and (
                    step.epoch % self.spec.evaluate_every == 0 or step.epoch in (self.stop_epoch, self.spec.epochs)
                )
                if judged:
                    metrics |= {f"held_out_{key}": value for key, value in self._judge(step.epoch).items()}
                self.run.log(number, metrics, timings)
                self.run.save(number, self.learner, due=judged, best=self.best, history=self.history)
                shown = f"{step.kind} {metrics['loss']:.3f}"
                if self.history:
                    shown += "  held-out " + "  ".join(f"{k} {v:.3f}" for k, v in self._scores().items())
                progress.advance(len(step.passages), shown)

    def _scores(self) -> dict[str, float]:
        return {key: self.history[-1][key] for key in ("f1", "cosine") if key in self.history[-1]}

    def _step(self, number: int, step: TrainingStep) -> tuple[dict[str, Any], dict[str, float]]:
        """Do one optimizer step; the passages of this process in batches of a bounded size."""
        started, doing = time.perf_counter(), f"step {number} of {self.cfg.name}"
        self.latents.train()
        self.optimizer.zero_grad(set_to_none=True)
        own = step.passages[self.state.process_index :: self.state.num_processes]
        sums: dict[str, float] = {}
        for batch in self._batches(step.kind, own):
            generator = generator_for(self.cfg.seed, "noise", number, batch[0])
            losses = self.objective.losses(step.kind, [self.data.train[index] for index in batch], generator)
            accumulate_gradients(losses, self.weights, len(step.passages), sums, doing)
        if step.kind == "reconstruction" and self.weights.vocabulary and self.state.is_main_process:
            losses = {"vocabulary": self.objective.vocabulary_loss(self.cfg.seed, number)}
            accumulate_gradients(losses, self.weights, 1, sums, doing)
        add_up_gradients(self.accelerator, self.parameters.values())
        norm = clip_gradients(self.parameters.values(), self.max_norm, doing)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        sums = self._over_processes(step.kind, sums)
        loss = sum(getattr(self.weights, name) * value for name, value in sums.items())
        seconds = time.perf_counter() - started
        tokens = sum(self.lengths[index] for index in step.passages)
        metrics = {"epoch": step.epoch, "kind": step.kind, "loss": loss, **sums, "grad_norm": norm,
                   "learning_rate": rate, "tokens": tokens}  # fmt: skip
        return metrics, {"seconds": seconds, "tokens_per_second": tokens / seconds}

    def _over_processes(self, kind: str, sums: dict[str, float]) -> dict[str, float]:
        """Add up the losses of all processes; one without passages has none of the names."""
        if self.state.num_processes == 1:
            return sums
        names = sorted({name for names in gather_from_all(self.state, [sorted(sums)]) for name in names})
        values = torch.tensor([sums.get(name, 0.0) for name in names], device=self.state.device)
        return dict(zip(names, reduce(values, reduction="sum").tolist(), strict=True))

    def _batches(self, kind: str, indices: tuple[int, ...]) -> Iterator[list[int]]:
        """Split the passages of a step so that no batch takes more than `batch_tokens` positions."""
        batch: list[int] = []
        widest = 0
        for index in indices:
            cost = self.objective.cost(kind, self.data.train[index])
            if batch and (len(batch) + 1) * max(widest, cost) > self.spec.batch_tokens:
                yield batch
                batch, widest = [], 0
            batch.append(index)
            widest = max(widest, cost)
        if batch:
            yield batch

    def _judge(self, epoch: int) -> dict[str, float]:
        """Score the held-out passages, remember the best weights; return the scores."""
        self.latents.eval()
        scores = self.held_out.scores(self.judge_by == "f1", self.state)
        score = scores[self.judge_by]
        self.history.append({"epoch": epoch, **scores})
        if score > self.best["score"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.latents.state_dict().items()}
            self.best = {"epoch": epoch, "score": score, "weights": weights}
        return scores

    def _finish(self) -> dict[str, Any]:
        """Save the best weights; return the result."""
        folder = self.run.folder
        held_out = next(entry for entry in self.history if entry["epoch"] == self.best["epoch"])
        result = {
            "encoder": str(folder / "encoder"),
            "held_out": held_out,
            "score": self.best["score"],
            "scored_by": self.judge_by,
            "history": self.history,
            "until": self.stop_epoch,
            "stopped": self._stopped,
            "counts": {
                **self.data.counts,
                "train_passages": len(self.data.train),
                "train_questions": sum(len(passage.questions) for passage in self.data.train),
                "held_out_passages": len(self.data.held_out),
            },
            "trained_weights": sum(parameter.numel() for parameter in self.parameters.values()),
            **self.run.about(),
        }
        if self.state.is_main_process:
            self.latents.load_state_dict(self.best["weights"])
            about = {"trained_on": self.data.marks(), "name": str(self.cfg.name), "identity": self.run.identity}
            save_latents(self.latents, folder / "encoder", about)
            write_json(folder / "result.json", result)
            for line in _told(held_out):
                log(line)
            log(f"encoder: {folder / 'encoder'}")
            log(f"ask it: python run.py task=latent_report checkpoint={folder}")
        return result


def _told(held_out: dict[str, Any]) -> Iterator[str]:
    yield f"held-out passages, epoch {held_out['epoch']}: cosine with the tokens {held_out['cosine']:.3f}" + (
        f", F1 {held_out['f1']:.3f} [{held_out['f1_low']:.3f}, {held_out['f1_high']:.3f}]" if "f1" in held_out else ""
    )
    if held_out["likeness"] > COLLAPSED:
        yield (
            f"warning: latents of different passages have a mean cosine of {held_out['likeness']:.2f} at equal "
            "positions: the encoder has collapsed, or nearly; lower the learning rate, or raise weights.embedding"
        )


def accumulate_gradients(
    losses: dict[str, Tensor], weights: Weights, count: int, sums: dict[str, float], doing: str
) -> None:
    """Add the gradients of a batch's weighted losses, and add the losses themselves to `sums`.

    Args:
        losses: Sums over the passages of the batch, by name.
        weights: How much each loss counts.
        count: Number of passages in the whole step; both kinds of sums are divided by it.
        sums: Losses of the step so far, by name; grows.
        doing: What the run is doing, for the message about a loss that is not finite.
    """
    total = None
    for name, value in losses.items():
        require_finite_loss(f"the loss {name}", value, doing)
        sums[name] = sums.get(name, 0.0) + float(value.detach()) / count
        share = getattr(weights, name) * value / count
        total = share if total is None else total + share
    if total is not None:
        total.backward()


def encoder_lm_config(lm: LanguageModel) -> dict[str, Any]:
    """Return the settings of the LM's text model, as an encoder made of its layers stores them."""
    config = lm.model.config.get_text_config().to_dict()
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "dtype"}


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)
