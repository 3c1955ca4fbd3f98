"""What task=latent trains: its passages, its encoder, its steps and its evaluations. Main entry: `LatentLearning`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.cost import COLLAPSED
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.checkpoint import State
from latentwire.harness.config_files import repeated_choices
from latentwire.harness.optimization import Updater
from latentwire.harness.progress import log
from latentwire.harness.random import generator_for
from latentwire.harness.run import Metrics, Run
from latentwire.harness.training import Learning, StepReport
from latentwire.latent_training.compressed_shots import CompressedShotsObjective
from latentwire.latent_training.duration import steps_within
from latentwire.latent_training.gradients import LossSums
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import LatentData, load_latent_data, skipped_lines
from latentwire.latent_training.readable import leave_out_short_parts, require_readable
from latentwire.latent_training.records import HeldOutScores, LatentEvaluation, LatentOutcome
from latentwire.latent_training.settings import LatentSettings
from latentwire.latent_training.step_plan import TrainingStep, epochs_before_answers, plan_steps
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.batching import pack_padded
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.vocabulary import Vocabulary


@dataclass
class _Best:
    """The weights with the best held-out score so far."""

    epoch: int = 0
    score: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)


class LatentLearning(Learning[LatentOutcome]):
    """One run of task=latent.

    Args:
        run: Folder of the run.
        settings: All settings.
        accelerator: Device, processes and precision.

    Raises:
        UserError: The data, the model or the encoder cannot be used.
    """

    def __init__(self, run: Run, settings: LatentSettings, accelerator: Accelerator) -> None:
        super().__init__(run)
        self.settings, self.spec, self.loss_weights = settings, settings.spec, settings.loss_weights
        self.seed, self.stop_epoch, spec = settings.run.seed, settings.stop_epoch, settings.spec
        self.data = load_latent_data(settings.data, settings.run.extra, spec.passages(), self.seed, settings.generated)
        with self.state.local_main_process_first():
            self.lm = load_model(settings.model, self.state.device, settings.dtype)
        vocabulary = Vocabulary(self.lm.token_embeddings(), seed=self.seed)
        self.latents = _first_latents(settings, self.lm, vocabulary)
        objective = CompressedShotsObjective if spec.compressed_shots else LatentObjective
        self.objective = objective(
            self.lm, vocabulary, self.latents, self.loss_weights, self.data.shots, spec.answer_tokens, spec.distance
        )
        parameters = {name: own for name, own in self.latents.named_parameters() if own.requires_grad}
        leave_out_short_parts(self.data, self.objective, spec.ratios)
        texts = [self.objective.writer.ids(f" {passage.text}") for passage in self.data.train]
        self.lengths = [len(ids) for ids in texts]
        self.latents.encoder.learn(texts, self.lm.tokenizer)
        require_readable(self.data, self.objective, spec.ratios)
        self.held_out = HeldOut(
            self.objective, self.data.held_out, self.data.shots, spec.max_new_tokens, spec.batch_tokens
        )
        self.judge_by = spec.judge_by or ("f1" if self.loss_weights.needs_lm() else "cosine")
        self.plan = self._plan()
        self.steps = len(self.plan)
        copied = {f"encoder.{name}" for name in self.latents.encoder.copied()}
        rates = {name: spec.copied_rate for name in parameters if name in copied}
        self.updater = Updater(parameters, settings.optimizer, self.steps, accelerator, rates)
        self.learner = {
            "latents": self.latents, "optimizer": self.updater.optimizer, "scheduler": self.updater.scheduler
        }  # fmt: skip
        self.best = _Best()
        self.history: list[LatentEvaluation] = []

    def _plan(self) -> list[TrainingStep]:
        """Return the steps of the run, as many as `max_steps` or `minutes` allow."""
        spec, most = self.spec, self.spec.max_steps
        if spec.minutes is not None:
            everything = plan_steps(self.data.train, self.lengths, spec, self.loss_weights, self.seed)
            most = steps_within(
                spec.minutes, everything, self._try_step, self._evaluate, self.run.folder / "plan.json", self.state
            )
        return plan_steps(self.data.train, self.lengths, spec, self.loss_weights, self.seed, most)

    def _try_step(self, step: TrainingStep) -> None:
        """Do a step without an update, to measure its time."""
        self.latents.train()
        self._losses_of(step, 0, "the measurement of the time of a step")
        self.latents.zero_grad(set_to_none=True)

    def _evaluate(self) -> HeldOutScores:
        """Return the scores on the held-out passages."""
        self.latents.eval()
        return self.held_out.scores(self.judge_by == "f1", self.state)

    def saved_values(self) -> State:
        """Return the best weights and the scores so far."""
        return {"best": dict(vars(self.best)), "history": self.history}

    def restore_values(self, saved: State) -> None:
        """Take over the best weights and the scores of a checkpoint."""
        self.best, self.history = _Best(**saved["best"]), saved["history"]

    @property
    def last_step(self) -> int:
        """The last step of epoch `stop_epoch`."""
        return max((n for n, step in enumerate(self.plan, 1) if step.epoch <= self.stop_epoch), default=0)

    @property
    def stop_reason(self) -> str | None:
        """Why the run stops: the last `patience` evaluations after the first phase brought no better score."""
        reason = f"no better than epoch {self.best.epoch} for {self.spec.patience} evaluations"
        return reason if self._stopped else None

    @property
    def _stopped(self) -> bool:
        since = max(self.best.epoch, epochs_before_answers(self.plan))
        return len([entry for entry in self.history if entry["epoch"] > since]) >= self.spec.patience

    def units(self, first: int, last: int) -> int:
        """Return the number of passages."""
        return sum(len(step.passages) for step in self.plan[first - 1 : last])

    def begin(self, done: int) -> None:
        """Log the data and what was skipped."""
        _log_data(self.settings, self.data, self.steps, self.updater, str(self.run.cfg.name))

    def step(self, number: int) -> StepReport:
        """Do one optimizer step on this process's passages."""
        step = self.plan[number - 1]
        started, doing = time.perf_counter(), f"step {number} of {self.run.cfg.name}"
        self.latents.train()
        self.updater.zero_grad()
        sums = self._losses_of(step, number, doing)
        if step.kind == "reconstruction" and self.loss_weights.vocabulary and self.state.is_main_process:
            sums.accumulate({"vocabulary": self.objective.vocabulary_loss(self.seed, number)}, 1)
        update = self.updater.update(doing)
        found = sums.over_processes(self.state)
        loss = sum(getattr(self.loss_weights, name) * value for name, value in found.items())
        seconds = time.perf_counter() - started
        tokens = sum(self.lengths[index] for index in step.passages)
        metrics: Metrics = {"epoch": step.epoch, "kind": step.kind, "loss": loss, **found,
                            "grad_norm": update.grad_norm, "learning_rate": update.learning_rate,
                            "tokens": tokens}  # fmt: skip
        timings = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        return StepReport(metrics, timings, f"{step.kind} {loss:.3f}{_last_scores(self.history)}", len(step.passages))

    def _losses_of(self, step: TrainingStep, number: int, doing: str) -> LossSums:
        """Return the losses of this process's passages, in batches of bounded size; their gradients are added up."""
        sums = LossSums(self.loss_weights, doing)
        if step.kind == "answers":
            self.objective.encode_shots(step.ratio)
        for batch in self._batches(step):
            generator = generator_for(self.seed, "noise", number, batch[0])
            passages = [self.data.train[index] for index in batch]
            losses = self.objective.losses(step.kind, passages, generator, step.ratio)
            sums.accumulate(losses, len(step.passages))
        return sums

    def _batches(self, step: TrainingStep) -> list[list[int]]:
        """Split this process's passages into batches of at most `batch_tokens` positions, padding included."""
        own = step.passages[self.state.process_index :: self.state.num_processes]
        costs = [self.objective.cost(step.kind, self.data.train[index]) for index in own]
        batches = pack_padded(costs, self.spec.batch_tokens, order=range(len(costs)))
        return [[own[i] for i in batch] for batch in batches]

    def validate(self, number: int) -> Metrics | None:
        """Return the scores on the held-out passages at the end of an epoch; keep the weights if they are the best."""
        step = self.plan[number - 1]
        last = (self.stop_epoch, self.plan[-1].epoch)
        if not (step.last_of_epoch and (step.epoch % self.spec.evaluate_every == 0 or step.epoch in last)):
            return None
        scores = self._evaluate()
        score = scores["f1"] if self.judge_by == "f1" else scores["cosine"]
        self.history.append({"epoch": step.epoch, **scores})
        if score > self.best.score:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.latents.state_dict().items()}
            self.best = _Best(step.epoch, score, weights)
        return {f"held_out_{key}": value for key, value in scores.items() if isinstance(value, int | float)}

    def finish(self) -> LatentOutcome:
        """Save the best weights."""
        folder = self.run.folder / "encoder"
        held_out = next(entry for entry in self.history if entry["epoch"] == self.best.epoch)
        if self.state.is_main_process:
            self.latents.load_state_dict(self.best.weights)
            about = {"trained_on": self.data.marks(), "name": str(self.run.cfg.name), "identity": self.run.identity}
            how = {"compressed_shots": True} if self.spec.compressed_shots else {}
            save_latents(self.latents, folder, {**about, **how})
        outcome: LatentOutcome = {
            "encoder": str(folder),
            "held_out": held_out,
            "chosen_from": len(self.history),
            "score": self.best.score,
            "scored_by": self.judge_by,
            "history": self.history,
            "stop_epoch": self.stop_epoch,
            "stopped": self._stopped,
            "counts": {
                **self.data.counts,
                "train_passages": len(self.data.train),
                "train_questions": sum(len(passage.questions) for passage in self.data.train),
                **({"generated_passages": self.data.generated} if self.settings.generated.count else {}),
                "held_out_passages": len(self.data.held_out),
            },
            "trained_weights": sum(parameter.numel() for parameter in self.updater.parameters.values()),
        }
        if self.spec.minutes is not None:
            outcome["steps"] = self.steps
        return outcome

    def report(self, result: LatentOutcome) -> Mapping[str, float]:
        """Log the scores of the best weights, and return them."""
        for line in _score_lines(result["held_out"], len(result["history"])):
            log(line)
        log(f"encoder: {result['encoder']}")
        choices = repeated_choices(self.run.cfg)
        log(f"next: python run.py task=latent_report checkpoint={self.run.folder}{choices}")
        return {key: value for key, value in result["held_out"].items() if isinstance(value, int | float)}


def _first_latents(settings: LatentSettings, lm: LanguageModel, vocabulary: Vocabulary) -> Latents:
    """Return the encoder before training. Its weights depend on the seed, but not on the transform."""
    spec = LatentSpec(
        encoder=settings.encoder.name, encoder_dials=settings.encoder.dials,
        adapter_hidden=settings.run.adapter_hidden, transform=settings.transform.name,
        transform_dials=settings.transform.dials, lm=settings.model.identity(), lm_name=settings.model.name,
        lm_config=encoder_lm_config(settings.encoder.name, lm.model), adapter_scale=settings.run.adapter_scale,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(settings.run.seed, "encoder").initial_seed())
        latents = Latents(spec, vocabulary)
    latents.encoder.start_from(lm.model)
    latents.training_dtype = settings.dtype
    return latents.to(lm.device)


def _log_data(settings: LatentSettings, data: LatentData, steps: int, updater: Updater, name: str) -> None:
    questions = sum(len(passage.questions) for passage in data.train)
    log(
        f"{name}: {len(data.train)} passages with {questions} questions to train on "
        f"(samples={settings.spec.samples}), {len(data.held_out)} held out; {steps} steps in "
        f"{settings.spec.epochs} epochs; {sum(p.numel() for p in updater.parameters.values()):,} weights"
    )
    for line in skipped_lines(data.counts):
        log(f"note: {line}")


def _last_scores(history: list[LatentEvaluation]) -> str:
    """Return the last held-out scores for the progress bar."""
    if not history:
        return ""
    f1 = f"f1 {history[-1]['f1']:.3f}  " if "f1" in history[-1] else ""
    return f"  held-out {f1}cosine {history[-1]['cosine']:.3f}"


def _score_lines(held_out: LatentEvaluation, evaluations: int) -> Iterator[str]:
    """Yield the held-out scores, which are the best of several evaluations, and a warning if the encoder collapsed."""
    chosen = f", best of {evaluations} evaluations" if evaluations > 1 else ""
    yield f"held-out passages, epoch {held_out['epoch']}{chosen}: cosine with the tokens {held_out['cosine']:.3f}" + (
        f", F1 {held_out['f1']:.3f} [{held_out['f1_low']:.3f}, {held_out['f1_high']:.3f}]" if "f1" in held_out else ""
    )
    if held_out["mean_pairwise_cosine"] > COLLAPSED:
        yield (
            f"warning: latents of different passages have a mean cosine of {held_out['mean_pairwise_cosine']:.2f} at "
            "equal positions, so the encoder has (nearly) collapsed; lower the learning rate, or raise "
            "weights.embedding"
        )
