"""A sweep within a time limit: how many examples to begin with, and who goes on to twice as many.

Successive halving (Jamieson and Talwalkar 2016), source by source: all transforms answer the first examples, the
better half of each source twice as many, and so on until the time or the examples are used up. We halve by what is
asked next rather than to a fixed total, because the cost of an example is known only after it has been paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.harness.errors import UserError

MARGIN = 0.8  # of the budget is planned for at the start: searches and codebooks are not yet measured then
HALVINGS = 2.0  # the first round is to leave time for as much again: two halvings


@dataclass(frozen=True)
class JobCost:
    """Seconds, as measured in this sweep: of each job whatever it asks, and of each example."""

    per_job: float
    per_example: float

    def of(self, jobs: int, examples: int) -> float:
        """Return what it costs to ask each of so many jobs so many examples."""
        return jobs * (self.per_job + examples * self.per_example)


@dataclass(frozen=True)
class Round:
    """What is asked next, or why nothing is."""

    samples: int
    kept: dict[str, list[str]]  # contenders by source, best first; empty where the sweep ends
    why: str


def first_round(configurations: int, cost: JobCost, seconds: float, first: int, most: int) -> int:
    """Return how many examples all configurations are asked at first: `first` times 1, 2, 4, ..., or `most`.

    Args:
        configurations: How many there are, controls included.
        cost: As measured.
        seconds: The whole budget.
        first: The fewest.
        most: As many as there are.

    Raises:
        UserError: The budget is too small even for the fewest.
    """
    planned = MARGIN * seconds
    first = min(first, most)
    if cost.of(configurations, first) > planned:
        raise UserError(
            f"budget_minutes={seconds / 60:g}: {configurations} configurations on {first} examples each need about "
            f"{cost.of(configurations, first) / MARGIN / 60:.1f} minutes here; raise it, or choose fewer of them with "
            "only='PATTERN'"
        )
    if cost.of(configurations, most) <= planned:
        return most
    count = first
    while 2 * count < most and HALVINGS * cost.of(configurations, 2 * count) <= planned:
        count *= 2
    return count


def next_round(
    standings: Mapping[str, Sequence[tuple[str, float]]],
    always: int,
    asked: int,
    most: int,
    cost: JobCost,
    seconds_left: float,
) -> Round:
    """Decide who is asked twice as many examples.

    Args:
        standings: The contenders of each source with their mean F1 on the examples asked so far, in the order of
            the sweep; of equals the earlier one goes on.
        always: Configurations that go on whatever they score: baselines, automatic repairs, controls.
        asked: Examples asked so far.
        most: As many as there are.
        cost: As measured in the last round.
        seconds_left: Of the budget.
    """
    if asked >= most:
        return Round(asked, {}, f"all {most} examples are asked")
    samples = min(2 * asked, most)
    each_costs = max(cost.of(1, samples - asked), 1e-9)
    affordable = int(seconds_left / each_costs) - always
    sizes = {group: (len(members) + 1) // 2 for group, members in standings.items()}
    wanted = sum(sizes.values())
    what = "the better half"
    if wanted > affordable:
        each = affordable // max(1, len(standings))
        if each < 1:
            return Round(
                asked, {},
                f"the budget is used up: {samples} examples of one transform for each source need about "
                f"{(always + len(standings)) * each_costs:.0f} s more, {max(0.0, seconds_left):.0f} s are left",
            )  # fmt: skip
        sizes = {group: min(size, each) for group, size in sizes.items()}
        what = f"the best {each}"
    kept = {
        group: [name for name, _ in sorted(members, key=lambda member: -member[1])[: sizes[group]]]
        for group, members in standings.items()
    }
    why = f"{what} of the transforms of each source by F1 on {asked} examples go on to {samples}"
    return Round(samples, kept, f"{why} ({seconds_left:.0f} s left, {cost.per_example:.3f} s an example)")
