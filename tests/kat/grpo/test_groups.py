"""Groups of a step: dynamic sampling draws other prompts, keeps the order, and lets the arm observe every draw."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kat.grpo.data import TokenPrompt
from kat.grpo.groups import ArmPrompts, collect_groups
from kat.grpo.policy import PolicyRow
from kat.grpo.reward_calls import Sampled
from kat.grpo.rollout import Completion, Sampling

PROMPTS = [TokenPrompt(str(i), str(i), (i,)) for i in range(9)]


class Arm:
    """An arm that draws the prompts in order."""

    def __init__(self):
        self.at, self.observed = 0, []

    def next(self, n):
        self.at += n
        return list(range(self.at - n, self.at))

    def observe(self, results):
        self.observed += [(one.row, one.rewards) for one in results]


class Actor:
    """An actor whose completions have two tokens, with equal rewards for the given prompts."""

    def __init__(self, equal):
        self.state, self.batch_tokens = SimpleNamespace(process_index=0, num_processes=1), 100
        self.equal, self.keys = equal, []

    def complete(self, prompts, keys, sampling):
        self.keys += keys
        done = Completion((1, 2), True, torch.zeros(2), torch.zeros(2), None)
        return [PolicyRow(prompt.ids, done) for prompt in prompts for _ in range(sampling.num_generations)]

    def sampled(self, prompts, rows):
        return [Sampled("", row.prompt, "" if row.prompt == (1,) else "x", row.completion.ids) for row in rows]

    def reward(self, sampled, doing):
        values = [
            row.prompt_ids[0] + (0 if row.prompt_ids[0] in self.equal else n % 3) for n, row in enumerate(sampled)
        ]
        return torch.tensor(values, dtype=torch.float32), {"one": torch.tensor(values) * 2}


def collected(equal, rounds, *, dynamic=True):
    actor, arm = Actor(equal), Arm()
    spec = SimpleNamespace(prompts_per_step=3, num_generations=3, dynamic_sampling=dynamic,
                           dynamic_sampling_rounds=rounds,
                           sampling=lambda count, limit: Sampling(count, 2, 1.0, 1.0, limit))  # fmt: skip
    return collect_groups(actor, spec, ArmPrompts(arm, PROMPTS), 7, "a test"), actor, arm


@pytest.mark.parametrize(
    ("equal", "rounds", "kept", "dropped"),
    [
        ({0, 2, 3}, 10, [1, 4, 5], 3),  # 0 and 2 are replaced by 3 and 4, and 3 by 5
        ({0, 2, 3}, 1, [1, 3, 4], 2),  # the last round is kept
        ({0, 1, 2, 3, 4, 5, 6, 7, 8}, 2, [6, 7, 8], 6),
        (set(), 10, [0, 1, 2], 0),
    ],
)
def test_equal_groups_are_drawn_again(equal, rounds, kept, dropped):
    found, actor, arm = collected(equal, rounds)
    assert [group.rows[0].prompt[0] for group in found.groups] == kept
    assert found.positions == [0, 1, 2] and found.dropped == dropped
    assert found.dropped_tokens == dropped * 3 * 2
    assert found.rewards.tolist() == [[k + (0 if k in equal else n) for n in range(3)] for k in kept]
    assert [group.by_name["one"].tolist() for group in found.groups] == (2 * found.rewards).tolist()
    assert [group.empty for group in found.groups] == [3 * (k == 1) for k in kept]
    draws = max(3, dropped + 3)
    assert [row for row, _ in arm.observed] == list(range(draws))  # thrown-away groups, too
    assert actor.keys == [("rollout", 7, i) for i in range(draws)]  # every draw has its own random numbers


def test_equal_groups_stay_without_dynamic_sampling():
    found, _, arm = collected({0, 2}, 10, dynamic=False)
    assert [group.rows[0].prompt[0] for group in found.groups] == [0, 1, 2] and found.dropped == 0
    assert arm.observed[0] == (0, (0.0, 0.0, 0.0)) and arm.observed[1] == (1, (1.0, 2.0, 3.0))
