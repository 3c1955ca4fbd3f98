"""The groups of completions of a step; groups of equal rewards may be drawn again. Main entry: `collect_groups()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kat.grpo.actor import Actor
from kat.grpo.data import TokenPrompt
from kat.grpo.objective import equal_rewards
from kat.grpo.policy import PolicyRow
from kat.grpo.spec import GrpoSpec
from kat.sampling.arms import Arm, Observation
from latentwire.harness.gather import gather_from_all


class ArmPrompts:
    """The prompts that an arm draws. The arm observes the rewards of each draw.

    Args:
        arm: The arm.
        prompts: The N training prompts, in the order of the arm's rows.
    """

    def __init__(self, arm: Arm, prompts: Sequence[TokenPrompt]) -> None:
        self.arm, self.prompts = arm, prompts
        self.rows: list[int] = []  # of the last draws

    def next(self, n: int) -> list[TokenPrompt]:
        """Return the prompts of the next `n` draws."""
        self.rows = self.arm.next(n)
        return [self.prompts[row] for row in self.rows]

    def observe(self, rewards: Sequence[tuple[float, ...]]) -> None:
        """Let the arm observe the rewards of the last draws, one tuple a draw."""
        self.arm.observe([Observation(row, group) for row, group in zip(self.rows, rewards, strict=True)])


@dataclass(frozen=True)
class Group:
    """The G completions of a prompt, with their rewards."""

    rows: list[PolicyRow]
    rewards: Tensor  # (G,)
    by_name: dict[str, Tensor]  # each kind of reward, (G,)
    empty: int  # number of completions without text


@dataclass(frozen=True)
class StepGroups:
    """The groups that a step trains on, each in the process that sampled it."""

    groups: list[Group]  # of this process
    positions: list[int]  # position of each of them among the groups of all processes
    rewards: Tensor  # of all processes, (P, G) float32 on the CPU, in the order of the draws
    dropped: int  # number of groups that were thrown away, over all processes
    dropped_tokens: int  # tokens of these groups in this process


def collect_groups(actor: Actor, spec: GrpoSpec, prompts: ArmPrompts, number: int, doing: str) -> StepGroups:
    """Draw prompts, and sample and reward their completions; the processes share the prompts.

    With `dynamic_sampling`, groups of equal rewards are thrown away, and other prompts are drawn in their place, up to
    `dynamic_sampling_rounds` times (Yu et al. 2025, arXiv 2503.14476). The groups of the last round are kept, so a step
    always has prompts_per_step groups. The arm observes the groups that are thrown away, too.

    Args:
        actor: The policy and the rewards.
        spec: Settings.
        prompts: Source of the prompts.
        number: Number of the step, which is part of the key of its random numbers.
        doing: What the run is doing, for messages, such as 'step 12'.

    Raises:
        UserError: A reward function does not return one number for each completion.
        NonFiniteError: A reward is NaN or infinite.
    """
    rounds = spec.dynamic_sampling_rounds if spec.dynamic_sampling else 0
    kept: dict[int, tuple[float, ...]] = {}  # rewards by the number of the draw, of all processes
    own: dict[int, Group] = {}  # by the number of the draw
    drawn = dropped = dropped_tokens = 0
    for left in range(rounds, -1, -1):
        count = spec.prompts_per_step - len(kept)
        groups = _roll_out(actor, spec, prompts.next(count), (number, drawn), doing)
        rewards = dict(
            sorted(gather_from_all(actor.state, [(i, tuple(g.rewards.tolist())) for i, g in groups.items()]))
        )
        prompts.observe(list(rewards.values()))
        equal = equal_rewards(torch.tensor(list(rewards.values()))).tolist()
        thrown = {i for i, same in zip(rewards, equal, strict=True) if same} if left else set()
        kept |= {i: group for i, group in rewards.items() if i not in thrown}
        own |= {i: group for i, group in groups.items() if i not in thrown}
        drawn, dropped = drawn + count, dropped + len(thrown)
        dropped_tokens += sum(len(row.completion.ids) for i in thrown & groups.keys() for row in groups[i].rows)
        if not thrown:
            break
    order = {draw: position for position, draw in enumerate(kept)}
    return StepGroups(
        groups=list(own.values()),
        positions=[order[draw] for draw in own],
        rewards=torch.tensor(list(kept.values())),
        dropped=dropped,
        dropped_tokens=dropped_tokens,
    )


def _roll_out(
    actor: Actor, spec: GrpoSpec, drawn: Sequence[TokenPrompt], key: tuple[int, int], doing: str
) -> dict[int, Group]:
    """Return the groups of this process's share of the drawn prompts, by the number of the draw in the step.

    Args:
        actor: The policy and the rewards.
        spec: Settings.
        drawn: The prompts of all processes.
        key: Number of the step, and number of the first of the draws in it.
        doing: What the run is doing, for messages.
    """
    (step, first), g, state = key, spec.num_generations, actor.state
    indices = range(len(drawn))[state.process_index :: state.num_processes]
    if not indices:
        return {}
    prompts = [drawn[index] for index in indices]
    keys = [("rollout", step, first + index) for index in indices]
    rows = actor.complete(prompts, keys, spec.sampling(g, actor.batch_tokens))
    sampled = actor.sampled(prompts, rows)
    total, by_name = actor.reward(sampled, doing)
    found = {}
    for place, index in enumerate(indices):
        part = slice(place * g, (place + 1) * g)
        empty = sum(not one.completion.strip() for one in sampled[part])
        values = {name: each[part] for name, each in by_name.items()}
        found[first + index] = Group(rows[part], total[part], values, empty)
    return found
