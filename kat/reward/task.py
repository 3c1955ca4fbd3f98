"""The task reward: train a reward model on preference pairs; a sampler draws the prompts. Main entry: `reward()`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from omegaconf import DictConfig
from torch import Tensor

from kat.data.pairs import read_pairs
from kat.data.tables import read_weights
from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import ensure
from kat.reward.data import RewardData, RewardPair, describe_counts, encode_all, split_pairs
from kat.reward.frozen import SplitScorer
from kat.reward.model import bradley_terry_loss, reward_model_of
from kat.reward.report import ScoredPair, deciles, evaluate_by_part, longer_wins, render_reward_report
from kat.reward.scoring import max_sequence_length, score, tree_scores
from kat.reward.trees import Tree, batches_of, merged
from kat.sampling.arms import prompt_weights
from kat.sampling.sampler import DensityAwareSampler
from kat.training.lineage import require_unseen_start
from kat.training.state import LoopSpec, learner_of, measured_weights, save_ledger, warn_never_drawn
from kat.training.tuning import TuningSpec, make_trainable, whole_model
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.memory import within_memory
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json
from latentwire.harness.run import Run
from latentwire.harness.session import Session
from latentwire.harness.optimization import (
    OptimizerSpec,
    add_up_gradients,
    clip_gradients,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    require_finite_loss,
)
from latentwire.harness.typed_config import typed
from latentwire.lm.model_folder import save_model
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

AT_A_TIME = 32  # held-out prompts between two updates of the progress bar

Scorer = Callable[[Sequence[Tree]], Tensor]  # trees -> scores of their completions, (S,)


@dataclass
class MemorySpec:
    """Memory for cached states; does not affect what is learnt."""

    states_gib: float

    def __post_init__(self) -> None:
        if not 0 <= self.states_gib < math.inf:
            raise UserError(f"states_gib={self.states_gib}: must be 0 (keep none) or more")


@dataclass
class RewardSpec:
    """Settings of task=reward that decide the result, besides model, sampler, tuning and optimizer."""

    split: str | None  # split of the pairs; None for all
    max_length: int
    prompts_per_step: int
    pairs_per_prompt: int
    batch_tokens: int

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "pairs_per_prompt", "batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_length < 2:
            raise UserError(f"max_length={self.max_length}: a prompt and an answer need at least 2 tokens")


def reward(cfg: DictConfig, session: Session | None = None) -> dict[str, Any]:
    """Train a reward model, or continue a run that was interrupted; evaluate it on the held-out pairs.

    Returns:
        The content of result.json.

    Raises:
        UserError: The data or the model cannot be loaded, or a setting is out of range. The folder holds a run of
            another configuration, a loss or gradient is not finite, or the disk is full.
    """
    loop = LoopSpec.of(cfg)
    spec = typed(RewardSpec, {field.name: cfg[field.name] for field in fields(RewardSpec)})
    memory = typed(MemorySpec, {"states_gib": cfg.states_gib})
    tuning = typed(TuningSpec, cfg.tuning, "tuning.")
    optimizer = typed(OptimizerSpec, cfg.optimizer, "optimizer.")
    model = typed(ModelSpec, cfg.model, "model.")
    accelerator = make_accelerator(cfg.device, cfg.dtype)
    state = accelerator_state(cfg.device)
    if spec.prompts_per_step < state.num_processes:
        raise UserError(f"prompts_per_step={spec.prompts_per_step}: must be at least {state.num_processes}, the "
                        "number of processes; use fewer processes or more prompts")  # fmt: skip
    ensure(cfg, ["pairs", "prompts", "embed", "density"])  # also for sampler=uniform: the report needs densities
    uniform = cfg.sampler.name == "uniform"
    identity = {
        "task": "reward",
        "model": model.identity(),
        "precision": accelerator.mixed_precision,
        "pairs_sha256": file_sha256(locate(cfg, "pairs_file")),
        "weights_sha256": None if uniform else file_sha256(locate(cfg, "weights_file")),
        "sampler": cfg.sampler.name,
        **loop.identity(),
        **vars(spec),
        "tuning": dict(vars(tuning)),
        "optimizer": dict(vars(optimizer)),
    }
    run = Run(cfg, loop, identity, state)
    if (finished := run.finished()) is not None:
        log(f"reward model: {run.folder / 'model'}  (finished before; force=true trains it anew)")
        return finished
    with within_memory(state.device, {"batch_tokens": spec.batch_tokens, "states_gib": memory.states_gib}):
        return _Training(run, loop, spec, memory, model, tuning, optimizer, accelerator).train()


class _Training:
    """One run of task=reward: its data and models, and its steps."""

    def __init__(
        self,
        run: Run,
        loop: LoopSpec,
        spec: RewardSpec,
        memory: MemorySpec,
        model: ModelSpec,
        tuning: TuningSpec,
        optimizer: OptimizerSpec,
        accelerator: Accelerator,
    ) -> None:
        self.run, self.spec, self.accelerator = run, spec, accelerator
        self.cfg, self.loop, self.state = run.cfg, loop, run.state
        with self.state.local_main_process_first():
            lm = load_model(model, self.state.device, torch.float32)
        self.tokenizer = lm.tokenizer
        self.data = self._data(min(spec.max_length, max_sequence_length(lm.model) or spec.max_length))
        require_unseen_start(model, {pair.prompt_id for pair in self.data.held_out})
        self.sampler = self._sampler()
        self.model: Any = reward_model_of(lm, generator_for(self.loop.seed, "reward head"))
        self.trained, self.parameters = make_trainable(self.model, tuning, self.loop.seed, ["score"])
        self.optimizer = make_optimizer(self.parameters, optimizer)
        self.scheduler = make_scheduler(self.optimizer, optimizer, self.loop.steps)
        self.learner = learner_of(self.parameters, self.optimizer, self.scheduler, self.sampler)
        self.max_norm = optimizer.max_grad_norm
        self.scorer = self._scorer(tuning, memory)

    def _data(self, max_length: int) -> RewardData:
        source = locate(self.cfg, "pairs_file")
        selected = (pair for pair in read_pairs(source) if self.spec.split in (None, pair.split))
        pairs, counts = encode_all(self.tokenizer, selected, max_length)
        log(f"{source}: {describe_counts(counts, max_length)}")
        if not pairs:
            raise UserError(
                f"split={self.spec.split}: no pair of {source} is in this split and fits into max_length={max_length} "
                "tokens; choose another split, split=null, or a larger max_length"
            )
        data = split_pairs(pairs, self.loop.held_out)
        data.counts.update(counts)
        if self.spec.prompts_per_step > len(data.train):
            raise UserError(f"prompts_per_step={self.spec.prompts_per_step}: there are {len(data.train)} prompts to "
                            "train on; use fewer a step, or more data")  # fmt: skip
        return data

    def _sampler(self) -> DensityAwareSampler:
        sampling_weights, never_drawn = prompt_weights(
            list(self.data.train), self.cfg.sampler.name, *measured_weights(self.cfg), self.loop.seed
        )
        warn_never_drawn(never_drawn)
        return DensityAwareSampler(sampling_weights, seed=self.loop.seed)

    def _scorer(self, tuning: TuningSpec, memory: MemorySpec) -> Scorer:
        if tuning.method != "last_blocks":
            return lambda trees: tree_scores(self.model, trees)
        max_bytes = int(memory.states_gib * 2**30)
        trees = (pair.tree for pair in self.data.train_pairs)
        with self.accelerator.autocast():
            return SplitScorer(self.model, tuning.blocks, trees, max_bytes, self.spec.batch_tokens).scores

    def train(self) -> dict[str, Any]:
        """Do the remaining steps, save the model and evaluate it."""
        done, _ = self.run.begin(self.learner, self.loop.steps)
        self._steps(done)
        result = self._finish()
        if self.state.is_main_process:
            write_json(self.run.folder / "result.json", result)
            print(render_reward_report(result["held_out"], "held-out pairs"))
            log(f"reward model: {self.run.folder / 'model'}; {self.run.folder / 'result.json'}")
        return self.run.end(result, {"held_out_accuracy": result["held_out"]["accuracy"]})

    def _steps(self, done: int) -> None:
        draws = self._draws(done * self.spec.prompts_per_step)
        last = self.loop.steps
        with Progress(f"reward {self.cfg.name}", (last - done) * self.spec.prompts_per_step) as progress:
            for step in range(done + 1, last + 1):
                drawn = [next(draws) for _ in range(self.spec.prompts_per_step)]
                metrics, timings = self._step(step, drawn)
                self.run.log(step, metrics, timings)
                if self.state.is_main_process and self.run.is_due(step):
                    save_ledger(self.run.folder, self.sampler, list(self.data.train))
                self.run.save(step, self.learner)
                progress.advance(
                    len(drawn),
                    f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.2f}  "
                    f"{timings['tokens_per_second']:.0f} tokens/s",
                )

    def _draws(self, number: int) -> Iterator[list[RewardPair]]:
        """Yield the pairs of each draw from `number` on: the sampler draws a prompt, a generator some of its pairs."""
        prompts = list(self.data.train.values())
        while True:
            for row in self.sampler:
                pairs = prompts[row]
                order = torch.randperm(len(pairs), generator=generator_for(self.loop.seed, "pairs of draw", number))
                number += 1
                yield [pairs[i] for i in order[: self.spec.pairs_per_prompt].tolist()]

    def _step(self, step: int, drawn: list[list[RewardPair]]) -> tuple[dict[str, float], dict[str, float]]:
        """Do one optimizer step; return metrics and timings.

        The loss is the mean over the prompts of all processes of the mean loss of a prompt's pairs.
        """
        started, doing = time.perf_counter(), f"step {step} of {self.cfg.name}"
        own = drawn[self.state.process_index :: self.state.num_processes]
        weighted = [(pair.tree, 1 / (len(pairs) * len(drawn))) for pairs in own for pair in pairs]
        trees = merged([tree for tree, _ in weighted])
        sums = torch.zeros(4, dtype=torch.float64)  # loss, correct order, margin, tokens
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches_of(trees, self.spec.batch_tokens):
            part = [trees[i] for i in batch]
            score_index = {key: index for index, key in enumerate((t.prompt, c) for t in part for c in t.completions)}
            batch_pairs = [(t, weight) for t, weight in weighted if (t.prompt, t.completions[0]) in score_index]
            columns = [[score_index[t.prompt, c] for c in t.completions] for t, _ in batch_pairs]  # (P, 2)
            with self.accelerator.autocast():
                scores = self.scorer(part)  # (S,)
            chosen, rejected = scores[torch.tensor(columns, device=scores.device)].unbind(1)  # (P,), (P,)
            share = torch.tensor([weight for _, weight in batch_pairs], device=scores.device)
            losses = bradley_terry_loss(chosen, rejected) * share
            require_finite_loss("the loss", losses, doing)
            losses.sum().backward()
            margins = (chosen - rejected).detach()
            each = torch.stack([losses.detach(), (margins.sign() + 1) / 2 * share, margins * share]).double().sum(dim=1)
            sums += torch.cat([each.cpu(), torch.tensor([sum(t.size for t in part)])])
        add_up_gradients(self.accelerator, self.parameters.values())
        norm = clip_gradients(self.parameters.values(), self.max_norm, doing)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        if self.state.num_processes > 1:
            sums = reduce(sums.float().to(self.state.device), reduction="sum").double().cpu()
        loss, accuracy, margin, tokens = sums.tolist()
        seconds = time.perf_counter() - started
        metrics = {"loss": loss, "accuracy": accuracy, "margin": margin, "grad_norm": norm, "learning_rate": rate}
        return metrics, {"seconds": seconds, "tokens_per_second": tokens / seconds}

    def _finish(self) -> dict[str, Any]:
        """Save the model, score the held-out pairs, and return the content of result.json."""
        del self.scorer  # frees the cached states
        model = whole_model(self.trained).eval()
        if self.state.is_main_process:
            save_model(model, self.tokenizer, self.run.folder / "model")
        margins, rewards = self._score_held_out(model)
        known = self._deciles()
        scored_pairs = [
            ScoredPair(pair.prompt_id, pair.source, margin, *pair.lengths, known.get(pair.prompt_id))
            for pair, margin in zip(self.data.held_out, margins, strict=True)
        ]
        longer = longer_wins([pair.lengths for pair in self.data.train_pairs])
        return {
            "held_out": evaluate_by_part(scored_pairs, longer, self.loop.seed),
            "rewards": {"mean": float(rewards.mean()), "std": float(rewards.std(correction=0))},
            "counts": {
                **self.data.counts,
                "train_prompts": len(self.data.train),
                "train_pairs": len(self.data.train_pairs),
                "held_out_prompts": len({pair.prompt_id for pair in self.data.held_out}),
                "held_out_pairs": len(self.data.held_out),
            },
            "trained_weights": sum(parameter.numel() for parameter in self.parameters.values()),
            **self.run.about(),
        }

    def _score_held_out(self, model: Any) -> tuple[list[float], Tensor]:
        """Return the margin of each held-out pair, and the rewards of all their completions, (2 * pairs,)."""
        pairs = self.data.held_out
        by_prompt: dict[str, list[int]] = {}
        for index, pair in enumerate(pairs):
            by_prompt.setdefault(pair.prompt_id, []).append(index)
        prompts = list(by_prompt.values())[self.state.process_index :: self.state.num_processes]
        found: list[tuple[int, list[float]]] = []
        with Progress("held-out pairs", sum(map(len, prompts))) as progress:
            for start in range(0, len(prompts), AT_A_TIME):
                part = [index for indices in prompts[start : start + AT_A_TIME] for index in indices]
                trees = [pairs[index].tree for index in part]
                with self.accelerator.autocast():
                    values = score(model, [(t.prompt, c) for t in trees for c in t.completions], self.spec.batch_tokens)
                found += zip(part, values.view(-1, 2).tolist(), strict=True)
                progress.advance(len(part), "")
        scores = dict(gather_from_all(self.state, found))
        rewards = torch.tensor([scores[index] for index in range(len(pairs))], dtype=torch.float64)  # (pairs, 2)
        require_finite_loss("a reward", rewards, "the held-out pairs")
        return (rewards[:, 0] - rewards[:, 1]).tolist(), rewards.flatten()

    def _deciles(self) -> dict[str, int]:
        """Return the decile of density by prompt id; prompts that are too long for the embedder have none."""
        ids, density, _ = read_weights(locate(self.cfg, "weights_file"))
        return dict(zip(ids, deciles(density.tolist()), strict=True))
