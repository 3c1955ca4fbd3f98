"""Successive halving of a sweep within a time limit. Main entries: `first_round()` and `next_round()`.

The method is from Jamieson and Talwalkar (2016) and runs for each source. All transforms answer the first examples,
then the better half answers twice as many. This repeats until the time or the examples are used up. Each round is
planned from measured costs, because the cost of an example is unknown before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.harness.errors import UserError

MARGIN = 0.8  # share of the budget planned at the start, when searches and codebooks are not yet measured
HALVINGS = 2.0  # the first round may use 1 / HALVINGS of it, which leaves time for two halvings


@dataclass(frozen=True)
class JobCost:
    """Costs measured in this sweep, in seconds."""

    per_job: float  # fixed cost of a job, without its examples
    per_example: float

    def of(self, jobs: int, examples: int) -> float:
        """Return the seconds to evaluate `examples` examples in each of `jobs` jobs."""
        return jobs * (self.per_job + examples * self.per_example)


@dataclass(frozen=True)
class Round:
    """Decision about the next round."""

    samples: int  # examples of each configuration
    kept: dict[str, list[str]]  # contenders by source, best first; empty if the sweep ends
    why: str


def first_round(configurations: int, cost: JobCost, seconds: float, block_size: int, most: int) -> int:
    """Return the number of examples of the first round: `block_size` times 1, 2, 4, ..., or `most`.

    Args:
        configurations: Number of configurations, including controls.
        cost: Measured costs.
        seconds: Whole budget in seconds.
        block_size: Smallest number of examples.
        most: Largest number of examples.

    Raises:
        UserError: The budget is too small for the smallest number of examples.
    """
    planned = MARGIN * seconds
    block_size = min(block_size, most)
    if cost.of(configurations, block_size) > planned:
        raise UserError(
            f"budget_minutes={seconds / 60:g}: {configurations} configurations on {block_size} examples each need "
            f"about {cost.of(configurations, block_size) / MARGIN / 60:.1f} minutes here; raise the budget, or choose "
            "fewer configurations with only='PATTERN'"
        )
    if cost.of(configurations, most) <= planned:
        return most
    count = block_size
    while 2 * count < most and HALVINGS * cost.of(configurations, 2 * count) <= planned:
        count *= 2
    return count


def next_round(
    standings: Mapping[str, Sequence[tuple[str, float]]],
    always: int,
    num_examples: int,
    most: int,
    cost: JobCost,
    seconds_left: float,
    label: str,
) -> Round:
    """Decide which configurations continue with twice as many examples.

    Args:
        standings: Contenders of each source with their mean score, in the order of the sweep, which decides ties.
            A higher score is better.
        always: Number of configurations that always continue: baselines, automatic repairs and controls.
        num_examples: Examples evaluated so far.
        most: Largest number of examples.
        cost: Costs measured in the last round.
        seconds_left: Seconds left of the budget.
        label: Label of the score.
    """
    if num_examples >= most:
        return Round(num_examples, {}, f"all {most} examples are evaluated")
    samples = min(2 * num_examples, most)
    each_costs = max(cost.of(1, samples - num_examples), 1e-9)
    affordable = int(seconds_left / each_costs) - always
    sizes = {group: (len(members) + 1) // 2 for group, members in standings.items()}
    wanted = sum(sizes.values())
    what = "the better half"
    if wanted > affordable:
        each = affordable // max(1, len(standings))
        if each < 1:
            return Round(
                num_examples, {},
                f"the budget is used up: {samples} examples of one transform for each source need about "
                f"{(always + len(standings)) * each_costs:.0f} s more, {max(0.0, seconds_left):.0f} s are left",
            )  # fmt: skip
        sizes = {group: min(size, each) for group, size in sizes.items()}
        what = f"the best {each}"
    kept = {
        group: [name for name, _ in sorted(members, key=lambda member: -member[1])[: sizes[group]]]
        for group, members in standings.items()
    }
    why = f"{what} of the transforms of each source by {label} on {num_examples} examples continue to {samples}"
    return Round(samples, kept, f"{why} ({seconds_left:.0f} s left, {cost.per_example:.3f} s an example)")
