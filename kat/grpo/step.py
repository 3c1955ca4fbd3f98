"""One step of GRPO: sample completions, reward them, and do the inner epochs. Main entry: `GRPOStep.step()`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kat.grpo.actor import Actor
from kat.grpo.data import TokenPrompt
from kat.grpo.objective import GRPOObjective, advantages, degenerate_groups, grpo_loss, loss_weights
from kat.grpo.policy import PolicyRow, micro_batches
from kat.grpo.reward_sum import check_names
from kat.grpo.rollout import Sampling
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import Updater, require_finite_loss
from latentwire.harness.progress import log

SUMMED = ("loss", "kl", "entropy", "clipped", "sampling_gap")  # metrics summed over the tokens that count
COUNTED = ("completions", "truncated", "empty", "groups", "degenerate_groups", "steps_without_update")


@dataclass
class GrpoSpec(GRPOObjective):
    """The settings under `grpo`, including the objective's; conf/task/grpo.yaml explains them."""

    prompts_per_step: int
    num_generations: int
    max_completion_length: int
    temperature: float
    top_p: float
    num_iterations: int
    mask_truncated_completions: bool
    reward_funcs: list[str]
    reward_weights: list[float]
    reward_settings: dict[str, dict[str, Any]] | None  # Any, because OmegaConf refuses lists for object
    eval_every: int
    eval_prompts: int
    eval_generations: int

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise UserError(
                f"grpo.num_generations={self.num_generations}: advantages compare the completions of a prompt with one "
                "another; use at least 2"
            )
        for name in ("prompts_per_step", "num_iterations", "eval_every", "eval_generations"):
            if getattr(self, name) < 1:
                raise UserError(f"grpo.{name}={getattr(self, name)}: must be at least 1")
        if self.eval_prompts < 0:
            raise UserError(f"grpo.eval_prompts={self.eval_prompts}: must be 0 (no evaluation) or more")
        check_names(self.reward_funcs, self.reward_weights)
        self.check()
        self.sampling(self.num_generations, batch_tokens=1).check()

    def sampling(self, num_generations: int, batch_tokens: int) -> Sampling:
        """Return the settings of the sampling.

        Args:
            num_generations: Number of completions of a prompt.
            batch_tokens: Maximum number of positions in a batch.
        """
        return Sampling(num_generations, self.max_completion_length, self.temperature, self.top_p, batch_tokens)


@dataclass
class _Rollout:
    """Completions that this process sampled in a step, G for each of its prompts."""

    rows: list[PolicyRow]  # prompt by prompt
    rewards: Tensor  # (P, G)
    by_name: dict[str, Tensor]  # each kind of reward, (P * G,)
    counted: list[int]  # indices of the rows in the loss
    empty: int  # number of completions without text


@dataclass
class StepOutcome:
    """Results of a step over all processes."""

    metrics: dict[str, float]  # reproducible
    timings: dict[str, float]  # seconds and tokens per second
    counts: dict[str, int]
    rewards: list[tuple[float, ...]]  # of the completions of each drawn prompt


@dataclass(frozen=True)
class GRPOStep:
    """Does the steps of GRPO on a policy."""

    actor: Actor
    spec: GrpoSpec
    updater: Updater

    def step(self, number: int, drawn: Sequence[TokenPrompt], doing: str) -> StepOutcome:
        """Sample, reward, and do one optimizer step in each inner epoch.

        Args:
            number: Number of the step, which is part of the key of its random numbers.
            drawn: The prompts of all processes, in the order in which they were drawn.
            doing: What the run is doing, for messages, such as 'step 12'.

        Raises:
            UserError: A reward function does not return one number for each completion.
            NonFiniteError: A reward, the loss or the gradient is NaN or infinite.
        """
        started = time.perf_counter()
        rollout = self._roll_out(number, drawn, doing)
        sampled = time.perf_counter()
        rows = [rollout.rows[i] for i in rollout.counted]
        a = advantages(rollout.rewards, self.spec.scale_rewards).flatten()[rollout.counted].to(self.actor.state.device)
        lengths = [len(row.completion.ids) for row in rows]
        tokens, sequences, with_advantage = map(int, self._add_up([sum(lengths), len(rows), int(a.any())]))
        if not with_advantage:  # weight decay and AdamW's momentum would still change the weights
            reason = "all rewards of a group are equal" if sequences else "every completion was cut off and left out"
            log(f"warning: {doing}: {reason}, so there is nothing to learn from and no optimizer step")
        update = self._update(rows, a, tokens, sequences, doing, has_signal=with_advantage > 0)
        metrics, counts = self._summary(rollout, update, tokens)
        seconds = time.perf_counter() - started
        timings = {
            "seconds": seconds,
            "seconds_sampling": sampled - started,  # including rewards
            "tokens_per_second": metrics["length"] * counts["completions"] / seconds,
        }
        return StepOutcome(metrics, timings, counts, self._gathered(rollout.rewards))

    def _own(self, count: int) -> range:
        """Return this process's share of `count` drawn prompts."""
        return range(count)[self.actor.state.process_index :: self.actor.state.num_processes]

    def _gathered(self, rewards: Tensor) -> list[tuple[float, ...]]:
        """Return the rewards of all processes, in the order of the drawn prompts: (P, G) here -> one tuple a prompt."""
        state = self.actor.state
        own = zip(self._own(len(rewards) * state.num_processes), rewards.tolist(), strict=True)
        return [tuple(group) for _, group in sorted(gather_from_all(state, list(own)))]

    def _roll_out(self, number: int, drawn: Sequence[TokenPrompt], doing: str) -> _Rollout:
        """Sample and reward completions of this process's share of the prompts."""
        indices = self._own(len(drawn))
        prompts = [drawn[index] for index in indices]
        sampling = self.spec.sampling(self.spec.num_generations, self.actor.batch_tokens)
        rows = self.actor.complete(prompts, [("rollout", number, index) for index in indices], sampling)
        sampled = self.actor.sampled(prompts, rows)
        total, by_name = self.actor.reward(sampled, doing)
        masked = self.spec.mask_truncated_completions
        counted = [i for i, row in enumerate(rows) if row.completion.ended or not masked]
        empty = sum(not one.completion.strip() for one in sampled)
        return _Rollout(rows, total.view(len(prompts), -1), by_name, counted, empty)

    def _update(
        self, rows: list[PolicyRow], a: Tensor, tokens: int, sequences: int, doing: str, *, has_signal: bool
    ) -> dict[str, float]:
        """Do one optimizer step for each inner epoch, with gradients summed over micro-batches and processes.

        Without `has_signal`, all advantages are 0: the metrics are computed, but the weights do not change.

        Returns:
            Sums over this process's tokens, and grad_norm and learning_rate, which all processes share.
        """
        policy, device = self.actor.policy, self.actor.state.device
        sums = dict.fromkeys(SUMMED, 0.0)
        batches = micro_batches(rows, self.actor.batch_tokens)
        old_logps: dict[int, Tensor] = {}  # under the policy that sampled, by micro-batch
        ref_logps: dict[int, Tensor] = {}  # under the reference policy, by micro-batch
        norms = rate = 0.0
        for epoch in range(1, self.spec.num_iterations + 1):
            self.updater.zero_grad()
            for number, batch in enumerate(batches):
                part = [rows[i] for i in batch]
                lengths = torch.tensor([len(row.completion.ids) for row in part], device=device)
                mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, C)
                with self.actor.accelerator.autocast():
                    logps = policy.logps(part)
                    if epoch == 1 and policy.ref_parameters is not None:
                        ref_logps[number] = policy.ref_logps(part)
                if epoch == 1:
                    old_logps[number] = logps.detach()
                    sampled = pad_sequence([row.completion.logps for row in part], batch_first=True)
                    sums["sampling_gap"] += float((sampled - old_logps[number])[mask].abs().sum())
                    sums["entropy"] += sum(float(row.completion.entropy.sum()) for row in part)
                token_weights = loss_weights(mask, self.spec.loss_type, tokens, sequences)
                terms = grpo_loss(logps, old_logps[number], ref_logps.get(number), a[batch], token_weights, self.spec)
                where = f"{doing}, inner epoch {epoch}, micro-batch {number + 1} of {len(batches)}"
                require_finite_loss("the loss", terms.loss, where)
                torch.autograd.backward(terms.loss)
                sums["loss"] += float(terms.loss.detach()) / self.spec.num_iterations
                sums["clipped"] += float(terms.clipped.sum()) / self.spec.num_iterations
                if epoch == 1:
                    sums["kl"] += float(terms.kl.sum())
            update = self.updater.update(f"{doing}, inner epoch {epoch}", skip=not has_signal)
            norms, rate = norms + update.grad_norm, update.learning_rate
        skipped = float(self.actor.state.is_main_process and not has_signal)
        return {**sums, "steps_without_update": skipped, "grad_norm": norms / self.spec.num_iterations,
                "learning_rate": rate}  # fmt: skip

    def _summary(
        self, rollout: _Rollout, update: dict[str, float], tokens: int
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return metrics and counts of the step over all processes."""
        rewards, completions = rollout.rewards, [row.completion for row in rollout.rows]
        own = {
            "reward": float(rewards.sum()),
            **{f"rewards/{name}": float(values[~values.isnan()].sum()) for name, values in rollout.by_name.items()},
            **{f"unscored/{name}": int(values.isnan().sum()) for name, values in rollout.by_name.items()},
            "length": sum(len(c.ids) for c in completions),
            "truncated": sum(not c.ended for c in completions),
            "empty": rollout.empty,
            "reward_std": float(rewards.std(dim=1).sum()),
            "degenerate_groups": degenerate_groups(rewards),
            "groups": len(rewards),
            "completions": len(completions),
            "steps_without_update": update["steps_without_update"],
            **{name: update[name] for name in SUMMED},
        }
        sums = dict(zip(own, self._add_up(list(own.values())), strict=True))
        counts = {name: int(sums[name]) for name in COUNTED}
        del sums["groups"], sums["completions"], sums["steps_without_update"]
        divisors = {
            "loss": 1,
            **dict.fromkeys(("kl", "entropy", "clipped", "sampling_gap"), max(tokens, 1)),
            **dict.fromkeys(("reward_std", "degenerate_groups"), counts["groups"]),
        }
        for name in rollout.by_name:  # a mean over the completions that this reward scores
            divisors[f"rewards/{name}"] = counts["completions"] - int(sums[f"unscored/{name}"])
            if divisors[f"rewards/{name}"] == counts["completions"]:
                del sums[f"unscored/{name}"]
            elif divisors[f"rewards/{name}"] == 0:
                del sums[f"rewards/{name}"]
        metrics = {name: total / divisors.get(name, counts["completions"]) for name, total in sums.items()}
        if self.actor.policy.ref_parameters is None:
            del metrics["kl"]
        return {**metrics, **{name: update[name] for name in ("grad_norm", "learning_rate")}}, counts

    def _add_up(self, numbers: list[float]) -> list[float]:
        """Return the sums of numbers over the processes, in every process."""
        return [sum(column) for column in zip(*gather_from_all(self.actor.state, [numbers]), strict=True)]
