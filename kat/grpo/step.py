"""One step of GRPO: sample completions, reward them, and do the inner epochs. Main entry: `GRPOStep.step()`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kat.grpo.actor import Actor
from kat.grpo.groups import ArmPrompts, StepGroups, collect_groups
from kat.grpo.objective import (
    BatchSize,
    GRPOLoss,
    advantages,
    degenerate_groups,
    entropy_bonus,
    entropy_threshold,
    grpo_loss,
    loss_weights,
)
from kat.grpo.policy import PolicyRow, micro_batches
from kat.grpo.spec import GrpoSpec
from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import Updater, require_finite_loss
from latentwire.harness.progress import log

PER_TOKEN = ("kl", "entropy", "clipped", "clipped_low", "clipped_high", "sampling_gap")  # means over counted tokens
SUMMED = ("loss", *PER_TOKEN)  # metrics summed over the tokens that count
COUNTED = ("completions", "truncated", "empty", "groups", "degenerate_groups", "dropped_groups",
           "steps_without_update")  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """What this process trains on in a step."""

    rows: list[PolicyRow]  # that count
    advantages: Tensor  # (B,)
    size: BatchSize
    threshold: float | None  # entropy from which on the surrogate acts on a token; None: on all tokens
    acting: int  # number of tokens that it acts on, over all processes
    has_signal: bool  # whether there is something to learn from, in any process


class _MicroBatch:
    """Rows whose losses are computed together, with what stays the same in all inner epochs.

    Args:
        batch: What this process trains on.
        indices: The rows.
        loss_type: One of LOSS_TYPES.
        device: Device of the policy.
    """

    def __init__(self, batch: _Batch, indices: Sequence[int], loss_type: str, device: torch.device) -> None:
        self.rows, self.advantages = [batch.rows[i] for i in indices], batch.advantages[indices]
        lengths = torch.tensor([len(row.completion.ids) for row in self.rows], device=device)
        self.mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, C)
        self.token_weights = loss_weights(self.mask, loss_type, batch.size)
        self.selected: Tensor | None = None  # (B, C), the tokens that the surrogate acts on; None: all
        if batch.threshold is not None:
            entropy = pad_sequence([row.completion.entropy for row in self.rows], batch_first=True)
            self.selected = self.mask & (entropy >= batch.threshold)
        self.old_logps: Tensor | None = None  # (B, C), under the policy that sampled
        self.ref_logps: Tensor | None = None  # (B, C), under the reference policy


@dataclass
class StepOutcome:
    """Results of a step over all processes."""

    metrics: dict[str, float]  # reproducible
    timings: dict[str, float]  # seconds and tokens per second
    counts: dict[str, int]
    rewards: list[list[float]]  # of the completions of each group, (P, G)


@dataclass(frozen=True)
class GRPOStep:
    """Does the steps of GRPO on a policy."""

    actor: Actor
    spec: GrpoSpec
    updater: Updater

    def step(self, number: int, prompts: ArmPrompts, doing: str) -> StepOutcome:
        """Sample, reward, and do one optimizer step in each inner epoch. Then update the reference if it is due.

        Args:
            number: Number of the step, which is part of the key of its random numbers.
            prompts: Source of the prompts.
            doing: What the run is doing, for messages, such as 'step 12'.

        Raises:
            UserError: A reward function does not return one number for each completion.
            NonFiniteError: A reward, the loss or the gradient is NaN or infinite.
        """
        started = time.perf_counter()
        found = collect_groups(self.actor, self.spec, prompts, number, doing)
        sampled = time.perf_counter()
        batch = self._batch(found, doing)
        update = self._update(batch, doing)
        if self.spec.sync_ref_model and number % self.spec.ref_model_sync_steps == 0:
            self.actor.policy.sync_ref_model(self.spec.ref_model_mixup_alpha)
        sums = self._sums(found, update)
        metrics = self._means(sums, batch.size.tokens)
        metrics |= {name: update[name] for name in ("grad_norm", "learning_rate")}
        seconds = time.perf_counter() - started
        timings = {
            "seconds": seconds,
            "seconds_sampling": sampled - started,  # including rewards
            "tokens_per_second": (sums["length"] + sums["dropped_tokens"]) / seconds,
        }
        counts = {name: int(sums[name]) for name in COUNTED}
        return StepOutcome(metrics, timings, counts, found.rewards.tolist())

    def _batch(self, found: StepGroups, doing: str) -> _Batch:
        """Return what the step trains on. Log a warning if there is nothing to learn from."""
        spec, state = self.spec, self.actor.state
        rows = [row for group in found.groups for row in group.rows]
        masked = spec.mask_truncated_completions
        counted = [i for i, row in enumerate(rows) if row.completion.ended or not masked]
        a = self._advantages(found).flatten()[counted].to(state.device)
        rows = [rows[i] for i in counted]
        own = sum(len(row.completion.ids) for row in rows)
        tokens, sequences, with_advantage = map(int, self._add_up([own, len(rows), int(a.any())]))
        threshold, acting = None, tokens
        if spec.top_entropy_quantile < 1:
            entropies = [value for row in rows for value in row.completion.entropy.tolist()]
            everywhere = torch.tensor(gather_from_all(state, entropies))
            threshold = entropy_threshold(everywhere, spec.top_entropy_quantile)
            acting = int((everywhere >= threshold).sum())
        has_signal = with_advantage > 0 or (spec.entropy_coef > 0 and tokens > 0)
        if not has_signal:  # weight decay and AdamW's momentum would still change the weights
            reason = "all rewards of a group are equal" if sequences else "every completion was cut off and left out"
            log(f"warning: {doing}: {reason}, so there is nothing to learn from and no optimizer step")
        completions = spec.prompts_per_step * spec.num_generations
        size = BatchSize(tokens, sequences, completions, own, state.num_processes, spec.max_completion_length)
        return _Batch(rows, a, size, threshold, acting, has_signal)

    def _advantages(self, found: StepGroups) -> Tensor:
        """Return the advantages of this process's groups, (own P, G)."""
        return advantages(found.rewards, self.spec.scale_rewards)[found.positions]

    def _update(self, batch: _Batch, doing: str) -> dict[str, float]:
        """Do one optimizer step for each inner epoch, with gradients summed over micro-batches and processes.

        Without `has_signal`, all advantages are 0: the metrics are computed, but the weights do not change.

        Returns:
            Sums over this process's tokens, and grad_norm and learning_rate, which all processes share.
        """
        sums = dict.fromkeys(SUMMED, 0.0)
        device, epochs = self.actor.state.device, self.spec.num_iterations
        packed = micro_batches(batch.rows, self.actor.batch_tokens)
        parts = [_MicroBatch(batch, indices, self.spec.loss_type, device) for indices in packed]
        norms = rate = 0.0
        for epoch in range(1, epochs + 1):
            self.updater.zero_grad()
            for number, part in enumerate(parts, start=1):
                where = f"{doing}, inner epoch {epoch}, micro-batch {number} of {len(parts)}"
                loss, terms = self._loss(part, batch.acting)
                require_finite_loss("the loss", loss, where)
                torch.autograd.backward(loss)
                sums["loss"] += float(loss.detach()) / epochs
                for name in ("clipped", "clipped_low", "clipped_high"):
                    sums[name] += float(getattr(terms, name).sum()) / epochs
                if epoch == 1:
                    self._add_sampling_metrics(sums, part, terms)
            update = self.updater.update(f"{doing}, inner epoch {epoch}", skip=not batch.has_signal)
            norms, rate = norms + update.grad_norm, update.learning_rate
        skipped = float(self.actor.state.is_main_process and not batch.has_signal)
        return {**sums, "steps_without_update": skipped, "grad_norm": norms / epochs, "learning_rate": rate}

    def _loss(self, part: _MicroBatch, acting: int) -> tuple[Tensor, GRPOLoss]:
        """Return the loss of a micro-batch, (), with its terms; `acting` as in `_Batch`."""
        policy, coef = self.actor.policy, self.spec.entropy_coef
        entropy = None
        with self.actor.accelerator.autocast():
            if coef:
                logps, entropy = policy.logps_and_entropy(part.rows)
            else:
                logps = policy.logps(part.rows)
            if part.ref_logps is None and policy.ref_parameters is not None:
                part.ref_logps = policy.ref_logps(part.rows)
        if part.old_logps is None:
            part.old_logps = logps.detach()
        terms = grpo_loss(logps, part.old_logps, part.ref_logps, part.advantages, part.token_weights, self.spec,
                          part.selected)  # fmt: skip
        if entropy is None:
            return terms.loss, terms
        bonus = entropy_bonus(entropy, part.mask if part.selected is None else part.selected, acting)
        return terms.loss - coef * bonus, terms

    def _add_sampling_metrics(self, sums: dict[str, float], part: _MicroBatch, terms: GRPOLoss) -> None:
        """Add what describes the policy that sampled to the sums; `terms` are of the first inner epoch."""
        assert part.old_logps is not None
        sampled = pad_sequence([row.completion.logps for row in part.rows], batch_first=True)
        sums["sampling_gap"] += float((sampled - part.old_logps)[part.mask].abs().sum())
        sums["entropy"] += sum(float(row.completion.entropy.sum()) for row in part.rows)
        sums["kl"] += float(terms.kl.sum())

    def _sums(self, found: StepGroups, update: dict[str, float]) -> dict[str, float]:
        """Return sums over the completions of all processes."""
        groups, rewards = found.groups, found.rewards[found.positions]  # (own P, G)
        completions = [row.completion for group in groups for row in group.rows]
        by_name = {
            name: torch.cat([torch.empty(0), *(group.by_name[name] for group in groups)])
            for name in self.actor.rewards.names
        }
        own = {
            "reward": float(rewards.sum()),
            **{f"rewards/{name}": float(values[~values.isnan()].sum()) for name, values in by_name.items()},
            **{f"unscored/{name}": int(values.isnan().sum()) for name, values in by_name.items()},
            "length": sum(len(c.ids) for c in completions),
            "truncated": sum(not c.ended for c in completions),
            "empty": sum(group.empty for group in groups),
            "reward_std": float(rewards.std(dim=1).sum()),
            "degenerate_groups": degenerate_groups(rewards),
            "dropped_groups": found.dropped * self.actor.state.is_main_process,
            "dropped_tokens": found.dropped_tokens,
            "groups": len(groups),
            "completions": len(completions),
            "steps_without_update": update["steps_without_update"],
            **{name: update[name] for name in SUMMED},
        }
        return dict(zip(own, self._add_up(list(own.values())), strict=True))

    def _means(self, sums: dict[str, float], tokens: int) -> dict[str, float]:
        """Return the metrics of a step from its sums; `tokens` is the number of tokens that count."""
        completions, without = int(sums["completions"]), {"groups", "completions", "steps_without_update"}
        divisors = {
            **dict.fromkeys(("loss", "dropped_groups"), 1),
            **dict.fromkeys(PER_TOKEN, max(tokens, 1)),
            **dict.fromkeys(("reward_std", "degenerate_groups"), int(sums["groups"])),
        }
        for name in self.actor.rewards.names:  # a mean over the completions that this reward scores
            divisors[f"rewards/{name}"] = scored = completions - int(sums[f"unscored/{name}"])
            if scored in (0, completions):
                without.add(f"unscored/{name}" if scored else f"rewards/{name}")
        without |= {"dropped_tokens"} if self.spec.dynamic_sampling else {"dropped_tokens", "dropped_groups"}
        if self.actor.policy.ref_parameters is None:
            without.add("kl")
        return {name: total / divisors.get(name, completions) for name, total in sums.items() if name not in without}

    def _add_up(self, numbers: list[float]) -> list[float]:
        """Return the sums of numbers over the processes, in every process."""
        return [sum(column) for column in zip(*gather_from_all(self.actor.state, [numbers]), strict=True)]
