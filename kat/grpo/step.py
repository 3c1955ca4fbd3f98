"""One step of GRPO: completions of the drawn prompts, their rewards, and the inner epochs on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from kat.grpo.data import TokenPrompt
from kat.grpo.objective import GRPOObjective, advantages, degenerate_groups, grpo_loss, loss_weights
from kat.grpo.policy import Policy, PolicyRow, micro_batches
from kat.grpo.rewards import Rewards, check_names
from kat.grpo.rollout import Sampling, sample
from kat.grpo.validation import described
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.progress import log
from latentwire.harness.training import add_up_gradients, clip_gradients, require_finite_loss

SUMMED = ("loss", "kl", "entropy", "clipped", "sampling_gap")  # over the tokens that count
COUNTED = ("completions", "truncated", "empty", "groups", "degenerate_groups", "steps_without_update")


@dataclass
class GrpoSpec(GRPOObjective):
    """The settings under `grpo`, those of the objective among them; conf/task/grpo.yaml says what they mean."""

    prompts_per_step: int
    num_generations: int
    max_completion_length: int
    temperature: float
    top_p: float
    num_iterations: int
    mask_truncated_completions: bool
    reward_funcs: list[str]
    reward_weights: list[float]
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
        """Return the part that is the sampling."""
        return Sampling(num_generations, self.max_completion_length, self.temperature, self.top_p, batch_tokens)


@dataclass
class _Rollout:
    """What this process sampled in a step: its share of the prompts, G completions of each."""

    rows: list[PolicyRow]  # prompt by prompt
    rewards: Tensor  # (P, G)
    by_name: dict[str, Tensor]  # each kind of reward, (P * G,)
    counted: list[int]  # rows that take part in the loss
    empty: int  # completions without text


@dataclass
class StepOutcome:
    """What a step came to, over all processes."""

    metrics: dict[str, float]  # the same in every run of a config
    timings: dict[str, float]
    counts: dict[str, int]
    rewards: list[float]  # of every completion


@dataclass(frozen=True)
class GRPOStep:
    """What a step needs, and how it is done."""

    policy: Policy
    tokenizer: Any
    ends: frozenset[int]
    rewards: Rewards
    spec: GrpoSpec
    optimizer: AdamW
    scheduler: LambdaLR
    max_norm: float
    accelerator: Accelerator
    state: PartialState
    batch_tokens: int
    seed: int

    def step(self, number: int, drawn: Sequence[TokenPrompt], doing: str) -> StepOutcome:
        """Sample, reward, and do one optimizer step in each inner epoch.

        Args:
            number: Of the step; names its random numbers.
            drawn: The prompts of all processes, in the order in which they were drawn.
            doing: The step in words, for messages.

        Raises:
            UserError: Rewards that are none.
            NonFiniteError: A reward, the loss or the gradient is NaN or infinite.
        """
        started = time.perf_counter()
        rollout = self._roll_out(number, drawn, doing)
        sampled = time.perf_counter()
        rows = [rollout.rows[i] for i in rollout.counted]
        a = advantages(rollout.rewards, self.spec.scale_rewards).flatten()[rollout.counted].to(self.state.device)
        lengths = [len(row.completion.ids) for row in rows]
        tokens, sequences, pulling = map(int, self._add_up([sum(lengths), len(rows), int(a.any())]))
        if not pulling:  # weight decay and AdamW's momentum would move the weights all the same
            why = "all rewards of a group are equal" if sequences else "every completion was cut off and left out"
            log(f"warning: {doing}: {why}, so there is nothing to learn from and no optimizer step")
        update = self._update(rows, a, tokens, sequences, doing, learns=pulling > 0)
        metrics, counts = self._summary(rollout, update, tokens)
        seconds = time.perf_counter() - started
        timings = {
            "seconds": seconds,
            "seconds_sampling": sampled - started,  # rewards included
            "tokens_per_second": metrics["length"] * counts["completions"] / seconds,
        }
        rewards = gather_from_all(self.state, rollout.rewards.flatten().tolist())
        return StepOutcome(metrics, timings, counts, rewards)

    def _roll_out(self, number: int, drawn: Sequence[TokenPrompt], doing: str) -> _Rollout:
        places = range(len(drawn))[self.state.process_index :: self.state.num_processes]
        prompts = [drawn[place] for place in places]
        with self.accelerator.autocast():
            groups = sample(
                self.policy.model,
                [prompt.ids for prompt in prompts],
                [("rollout", number, place) for place in places],
                self.spec.sampling(self.spec.num_generations, self.batch_tokens),
                seed=self.seed,
                ends=self.ends,
                tap=self.policy.tap,
            )
            flat = [(prompt, c) for prompt, group in zip(prompts, groups, strict=True) for c in group]
            sampled = [described(self.tokenizer, prompt, completion) for prompt, completion in flat]
            total, by_name = self.rewards(sampled, doing)
        counted = [i for i, (_, c) in enumerate(flat) if c.ended or not self.spec.mask_truncated_completions]
        rows = [PolicyRow(prompt.ids, completion) for prompt, completion in flat]
        empty = sum(not row.completion.strip() for row in sampled)
        return _Rollout(rows, total.view(len(prompts), -1), by_name, counted, empty)

    def _update(
        self, rows: list[PolicyRow], a: Tensor, tokens: int, sequences: int, doing: str, *, learns: bool
    ) -> dict[str, float]:
        """Do one optimizer step for each inner epoch, gradients added up over micro-batches and processes.

        Where no process `learns` anything the weights stay, and only the numbers are taken.

        Returns:
            Sums over this process's tokens, and what all processes share: grad_norm, learning_rate.
        """
        device = self.state.device
        sums = dict.fromkeys(SUMMED, 0.0)
        batches = micro_batches(rows, self.batch_tokens)
        old: dict[int, Tensor] = {}  # of the policy that sampled, by micro-batch
        ref: dict[int, Tensor] = {}
        norms = 0.0
        for epoch in range(1, self.spec.num_iterations + 1):
            self.optimizer.zero_grad(set_to_none=True)
            for number, batch in enumerate(batches):
                part = [rows[i] for i in batch]
                lengths = torch.tensor([len(row.completion.ids) for row in part], device=device)
                mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, C)
                with self.accelerator.autocast():
                    logps = self.policy.logps(part)
                    if epoch == 1 and self.policy.reference is not None:
                        ref[number] = self.policy.reference_logps(part)
                if epoch == 1:
                    old[number] = logps.detach()
                    sampled = pad_sequence([row.completion.logps for row in part], batch_first=True)
                    sums["sampling_gap"] += float((sampled - old[number])[mask].abs().sum())
                    sums["entropy"] += sum(float(row.completion.entropy.sum()) for row in part)
                weights = loss_weights(mask, self.spec.loss_type, tokens, sequences)
                terms = grpo_loss(logps, old[number], ref.get(number), a[batch], weights, self.spec)
                where = f"{doing}, inner epoch {epoch}, micro-batch {number + 1} of {len(batches)}"
                require_finite_loss("the loss", terms.loss, where)
                terms.loss.backward()
                sums["loss"] += float(terms.loss.detach()) / self.spec.num_iterations
                sums["clipped"] += float(terms.clipped.sum()) / self.spec.num_iterations
                if epoch == 1:
                    sums["kl"] += float(terms.kl.sum())
            add_up_gradients(self.accelerator, self.policy.parameters.values())
            where = f"{doing}, inner epoch {epoch}"
            rate = float(self.scheduler.get_last_lr()[0])
            if learns:
                norms += clip_gradients(self.policy.parameters.values(), self.max_norm, where)
                self.optimizer.step()
                self.scheduler.step()
        idle = float(self.state.is_main_process and not learns)
        return {**sums, "steps_without_update": idle, "grad_norm": norms / self.spec.num_iterations,
                "learning_rate": rate}  # fmt: skip

    def _summary(
        self, rollout: _Rollout, update: dict[str, float], tokens: int
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return metrics and counts of the step over all processes."""
        rewards, completions = rollout.rewards, [row.completion for row in rollout.rows]
        mine = {
            "reward": float(rewards.sum()),
            **{f"rewards/{name}": float(values.sum()) for name, values in rollout.by_name.items()},
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
        sums = dict(zip(mine, self._add_up(list(mine.values())), strict=True))
        counts = {name: int(sums[name]) for name in COUNTED}
        del sums["groups"], sums["completions"], sums["steps_without_update"]
        divisors = {
            "loss": 1,
            **dict.fromkeys(("kl", "entropy", "clipped", "sampling_gap"), max(tokens, 1)),
            **dict.fromkeys(("reward_std", "degenerate_groups"), counts["groups"]),
        }
        metrics = {name: total / divisors.get(name, counts["completions"]) for name, total in sums.items()}
        if self.policy.reference is None:
            del metrics["kl"]
        return {**metrics, **{name: update[name] for name in ("grad_norm", "learning_rate")}}, counts

    def _add_up(self, numbers: list[float]) -> list[float]:
        """Return the sums of numbers over the processes, in every process."""
        return [sum(column) for column in zip(*gather_from_all(self.state, [numbers]), strict=True)]
