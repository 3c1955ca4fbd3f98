"""The task latent: train an encoder of latents for a frozen LM, and stop early by held-out passages.

Main entry: `latent()`.
"""

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
from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.cost import COLLAPSED
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_identity, encoder_lm_config
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.memory import choose_batch_tokens, within_memory
from latentwire.harness.optimization import (
    OptimizerSpec,
    add_up_gradients,
    clip_gradients,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    require_finite_loss,
)
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json
from latentwire.harness.run import Run, RunSpec, Stateful
from latentwire.harness.typed_config import typed
from latentwire.latent_training import passages
from latentwire.latent_training.objective import LatentObjective, LossWeights, halves
from latentwire.latent_training.passages import LatentData, Passage, load_latent_data, skipped_lines
from latentwire.latent_training.step_plan import TrainingSpec, TrainingStep, epochs_before_answers, plan_steps
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.batching import pack_padded
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary


@dataclass
class LatentRunSpec(RunSpec):
    """Root settings of a run that are not in `TrainingSpec`."""

    stop_epoch: int | None
    extra: str
    adapter_hidden: int


def latent(cfg: DictConfig) -> dict[str, Any]:
    """Train an encoder, or continue a run that was interrupted.

    Returns:
        The content of result.json.

    Raises:
        UserError: The data or the model cannot be loaded, or a setting is out of range. The folder holds a run of
            another configuration, a loss or gradient is not finite, or the disk is full.
    """
    settings = LatentRunSpec.of(cfg)
    accelerator = make_accelerator(cfg.device, cfg.dtype)
    state = accelerator_state(cfg.device)
    values = {field.name: cfg[field.name] for field in fields(TrainingSpec)}
    values["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    spec = typed(TrainingSpec, values)
    loss_weights = typed(LossWeights, cfg.weights, "weights.")
    optimizer = typed(OptimizerSpec, cfg.optimizer, "optimizer.")
    model, data = typed(ModelSpec, cfg.model, "model."), typed(DataSpec, cfg.data, "data.")
    stop_epoch = spec.epochs if settings.stop_epoch is None else settings.stop_epoch
    if not 1 <= stop_epoch <= spec.epochs:
        raise UserError(f"stop_epoch={stop_epoch}: must be an epoch of the run, from 1 to epochs={spec.epochs}")
    extra = Path(settings.extra).expanduser()
    identity = {
        "task": "latent",
        "model": model.identity(),
        "data": data.identity(),
        "passages": passages.FORMAT,
        "extra_sha256": file_sha256(extra) if settings.extra and extra.is_file() else None,
        "dtype": str(choose_dtype(cfg.dtype, state.device)),
        "seed": cfg.seed,
        "encoder": encoder_identity(cfg.encoder.name, _plain(cfg.encoder.dials)),
        "adapter_hidden": settings.adapter_hidden,
        "transform": {"name": cfg.embed_transform.name, **_plain(cfg.embed_transform.dials)},
        "weights": dict(vars(loss_weights)),
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
        return _Training(run, settings, spec, loss_weights, optimizer, accelerator, stop_epoch).train()


class _Training:
    """One run: its data and models, its plan, and its steps."""

    def __init__(
        self,
        run: Run,
        settings: LatentRunSpec,
        spec: TrainingSpec,
        loss_weights: LossWeights,
        optimizer: OptimizerSpec,
        accelerator: Accelerator,
        stop_epoch: int,
    ) -> None:
        self.run, self.spec, self.loss_weights, self.stop_epoch = run, spec, loss_weights, stop_epoch
        self.accelerator = accelerator
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
            self.lm, self.vocabulary, self.latents, loss_weights, self.data.shots, spec.answer_tokens, spec.distance
        )
        self.parameters = dict(self.latents.named_parameters())
        self.optimizer = make_optimizer(self.parameters, optimizer)
        self.max_norm = optimizer.max_grad_norm
        self._leave_out_short_parts()
        texts = [self.objective.writer.ids(f" {passage.text}") for passage in self.data.train]
        self.lengths = [len(ids) for ids in texts]
        self.latents.encoder.learn(texts, self.lm.tokenizer)
        self._require_readable()
        self.plan = plan_steps(self.data.train, self.lengths, spec, loss_weights, cfg.seed)
        self.before_answers = epochs_before_answers(self.plan)
        self.scheduler = make_scheduler(self.optimizer, optimizer, len(self.plan))
        self.learner: dict[str, Stateful] = {
            "latents": self.latents, "optimizer": self.optimizer, "scheduler": self.scheduler
        }  # fmt: skip
        self.judge_by = spec.judge_by or ("f1" if loss_weights.needs_lm() else "cosine")
        self.held_out = HeldOut(
            self.objective, self.data.held_out, self.data.shots, spec.max_new_tokens, spec.batch_tokens, cfg.seed
        )
        # The weights with the best held-out score so far, and the scores of all evaluations.
        self.best: dict[str, Any] = {"epoch": 0, "score": -math.inf, "weights": {}}
        self.history: list[dict[str, Any]] = []

    def _build(self, model: ModelSpec, adapter_hidden: int) -> Latents:
        spec = LatentSpec(
            encoder=self.cfg.encoder.name, encoder_dials=_plain(self.cfg.encoder.dials),
            adapter_hidden=adapter_hidden, transform=self.cfg.embed_transform.name,
            transform_dials=_plain(self.cfg.embed_transform.dials), lm=model.identity(), lm_name=model.name,
            lm_config=encoder_lm_config(self.cfg.encoder.name, self.lm.model),
        )  # fmt: skip
        # The first weights do not depend on the transform, so that a screening compares transforms alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.cfg.seed, "encoder").initial_seed())
            latents = Latents(spec, self.vocabulary)
        latents.encoder.start_from(self.lm.model)
        return latents.to(self.lm.device)

    def _tokens_read(self, passage: Passage) -> int:
        """Return the number of tokens to encode of a passage: its first half if `continuation` is trained."""
        text = halves(passage.text)[0] if self.loss_weights.continuation else passage.text
        return len(self.objective.writer.ids(f" {text}"))

    def _leave_out_short_parts(self) -> None:
        """Skip parts of split passages that are too short for the ratio, since users cannot fix them."""
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
        """Check, before any work, that every passage has at least one latent and fits into the LM's context."""
        for passage in [*self.data.train, *self.data.held_out]:
            self.latents.encoder.positions(self._tokens_read(passage))
            self.objective.require_room(passage)

    def train(self) -> dict[str, Any]:
        """Do the remaining steps, and save the best encoder."""
        self._log_data()
        done, saved = self.run.begin(self.learner, len(self.plan))
        if saved:
            self.best, self.history = saved["best"], saved["history"]
        self._steps(done)
        result = self._finish()
        return self.run.end(result, {k: v for k, v in result["held_out"].items() if isinstance(v, int | float)})

    def _log_data(self) -> None:
        questions = sum(len(passage.questions) for passage in self.data.train)
        log(
            f"{self.cfg.name}: {len(self.data.train)} passages with {questions} questions to train on "
            f"(samples={self.spec.samples}), {len(self.data.held_out)} held out; {len(self.plan)} steps in "
            f"{self.spec.epochs} epochs; {sum(p.numel() for p in self.parameters.values()):,} weights"
        )
        for line in skipped_lines(self.data.counts):
            log(f"note: {line}")

    @property
    def _stopped(self) -> bool:
        """Whether the last `patience` evaluations after the first phase brought no better score."""
        since = max(self.best["epoch"], self.before_answers)
        later = [entry for entry in self.history if entry["epoch"] > since]
        return len(later) >= self.spec.patience

    def _steps(self, done: int) -> None:
        last = max((n for n, step in enumerate(self.plan, 1) if step.epoch <= self.stop_epoch), default=0)
        total = sum(len(step.passages) for step in self.plan[done:last])
        with Progress(f"latent {self.cfg.name}", max(1, total)) as progress:
            for number in range(done + 1, last + 1):
                if self._stopped:
                    log(f"stopped: no better than epoch {self.best['epoch']} for {self.spec.patience} evaluations")
                    break
                step = self.plan[number - 1]
                metrics, timings = self._step(number, step)
                is_evaluated = step.last_of_epoch and (
                    step.epoch % self.spec.evaluate_every == 0 or step.epoch in (self.stop_epoch, self.spec.epochs)
                )
                if is_evaluated:
                    metrics |= {f"held_out_{key}": value for key, value in self._evaluate(step.epoch).items()}
                self.run.log(number, metrics, timings)
                self.run.save(number, self.learner, due=is_evaluated, best=self.best, history=self.history)
                status = f"{step.kind} {metrics['loss']:.3f}"
                if self.history:
                    status += "  held-out " + "  ".join(f"{k} {v:.3f}" for k, v in self._last_scores().items())
                progress.advance(len(step.passages), status)

    def _last_scores(self) -> dict[str, float]:
        return {key: self.history[-1][key] for key in ("f1", "cosine") if key in self.history[-1]}

    def _step(self, number: int, step: TrainingStep) -> tuple[dict[str, Any], dict[str, float]]:
        """Do one optimizer step on this process's passages, in batches of bounded size; return metrics and timings."""
        started, doing = time.perf_counter(), f"step {number} of {self.cfg.name}"
        self.latents.train()
        self.optimizer.zero_grad(set_to_none=True)
        own = step.passages[self.state.process_index :: self.state.num_processes]
        sums: dict[str, float] = {}
        for batch in self._batches(step.kind, own):
            generator = generator_for(self.cfg.seed, "noise", number, batch[0])
            losses = self.objective.losses(step.kind, [self.data.train[index] for index in batch], generator)
            accumulate_gradients(losses, self.loss_weights, len(step.passages), sums, doing)
        if step.kind == "reconstruction" and self.loss_weights.vocabulary and self.state.is_main_process:
            losses = {"vocabulary": self.objective.vocabulary_loss(self.cfg.seed, number)}
            accumulate_gradients(losses, self.loss_weights, 1, sums, doing)
        add_up_gradients(self.accelerator, self.parameters.values())
        norm = clip_gradients(self.parameters.values(), self.max_norm, doing)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        sums = self._over_processes(sums)
        loss = sum(getattr(self.loss_weights, name) * value for name, value in sums.items())
        seconds = time.perf_counter() - started
        tokens = sum(self.lengths[index] for index in step.passages)
        metrics = {"epoch": step.epoch, "kind": step.kind, "loss": loss, **sums, "grad_norm": norm,
                   "learning_rate": rate, "tokens": tokens}  # fmt: skip
        return metrics, {"seconds": seconds, "tokens_per_second": tokens / seconds}

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        """Return the losses summed over all processes; a process without passages counts as 0."""
        if self.state.num_processes == 1:
            return sums
        names = sorted({name for names in gather_from_all(self.state, [sorted(sums)]) for name in names})
        values = torch.tensor([sums.get(name, 0.0) for name in names], device=self.state.device)
        return dict(zip(names, reduce(values, reduction="sum").tolist(), strict=True))

    def _batches(self, kind: str, indices: tuple[int, ...]) -> list[list[int]]:
        """Split the passages of a step into batches of at most `batch_tokens` positions, padding included."""
        costs = [self.objective.cost(kind, self.data.train[index]) for index in indices]
        batches = pack_padded(costs, self.spec.batch_tokens, order=range(len(costs)))
        return [[indices[i] for i in batch] for batch in batches]

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Return the scores on the held-out passages, and keep the weights if they are the best so far."""
        self.latents.eval()
        scores = self.held_out.scores(self.judge_by == "f1", self.state)
        score = scores[self.judge_by]
        self.history.append({"epoch": epoch, **scores})
        if score > self.best["score"]:
            best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self.latents.state_dict().items()}
            self.best = {"epoch": epoch, "score": score, "weights": best_weights}
        return scores

    def _finish(self) -> dict[str, Any]:
        """Save the best weights, and return the content of result.json."""
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
            for line in _score_lines(held_out):
                log(line)
            log(f"encoder: {folder / 'encoder'}")
            log(f"next: python run.py task=latent_report checkpoint={folder}")
        return result


def _score_lines(held_out: dict[str, Any]) -> Iterator[str]:
    """Yield the held-out scores as a line of text, and a warning if the encoder has collapsed."""
    yield f"held-out passages, epoch {held_out['epoch']}: cosine with the tokens {held_out['cosine']:.3f}" + (
        f", F1 {held_out['f1']:.3f} [{held_out['f1_low']:.3f}, {held_out['f1_high']:.3f}]" if "f1" in held_out else ""
    )
    if held_out["mean_pairwise_cosine"] > COLLAPSED:
        yield (
            f"warning: latents of different passages have a mean cosine of {held_out['likeness']:.2f} at equal "
            "positions, so the encoder has (nearly) collapsed; lower the learning rate, or raise weights.embedding"
        )


def accumulate_gradients(
    losses: dict[str, Tensor], loss_weights: LossWeights, count: int, sums: dict[str, float], doing: str
) -> None:
    """Add the gradients of a batch's weighted losses to the parameters, and add the losses to `sums`.

    Args:
        losses: Losses summed over the passages of the batch, by name.
        loss_weights: Weight of each loss.
        count: Number of passages in the whole step; gradients and losses are divided by it.
        sums: Losses of the step so far, by name; grows.
        doing: What the run is doing, for the message about a loss that is not finite.

    Raises:
        NonFiniteError: A loss is NaN or infinite.
    """
    total = None
    for name, value in losses.items():
        require_finite_loss(f"the loss {name}", value, doing)
        sums[name] = sums.get(name, 0.0) + float(value.detach()) / count
        share = getattr(loss_weights, name) * value / count
        total = share if total is None else total + share
    if total is not None:
        total.backward()


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)
