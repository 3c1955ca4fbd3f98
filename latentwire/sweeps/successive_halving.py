"""Successive halving of a sweep within a time limit. Main entries: `first_round()` and `next_round()`.

The method is from Jamieson and Talwalkar (2016) and runs for each source. All transforms answer the first examples,
then the better half answers twice as many. This repeats until the time or the examples are used up. Each round is
planned from measured costs, because the cost of an example is unknown before.

Three rules keep chance and the order of the sweep out of it. Equal transforms continue together. The best transform of
each family continues. No decision is made unless a block of examples that did not decide it comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentwire.harness.errors import UserError
from latentwire.harness.results import config_hash

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
class Contender:
    """A transform that a decision may leave out."""

    name: str
    family: str
    score: float  # mean over the examples so far; higher is better


@dataclass(frozen=True)
class RoundEnd:
    """What a sweep has done and what is left at the end of a round."""

    num_examples: int  # evaluated so far
    most: int  # largest number of examples
    block_size: int  # smallest number of examples that decide, and that come after a decision
    always: int  # configurations that always continue: baselines, automatic repairs and controls
    seconds_left: float

    @property
    def samples(self) -> int:
        """Number of examples of the next round."""
        return min(2 * self.num_examples, self.most)

    @property
    def may_decide(self) -> bool:
        """Whether a block of examples is left to score what a decision keeps."""
        return self.most - self.num_examples >= self.block_size


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


def tie_order(names: Iterable[str], key: str) -> list[str]:
    """Return names in a random order, which depends only on the names and the key of the sweep."""
    return sorted(names, key=lambda name: config_hash([key, name]))


def next_round(standings: Mapping[str, Sequence[Contender]], end: RoundEnd, cost: JobCost, label: str) -> Round:
    """Decide which configurations continue with twice as many examples.

    Args:
        standings: Contenders of each source. Their order decides between equal scores where the time allows only some.
        end: What is evaluated, and what is left.
        cost: Costs measured in the last round.
        label: Label of the score.
    """
    if end.num_examples >= end.most:
        return Round(end.num_examples, {}, f"all {end.most} examples are evaluated")
    each_costs = max(cost.of(1, end.samples - end.num_examples), 1e-9)
    affordable = int(end.seconds_left / each_costs) - end.always
    ranked = {group: sorted(members, key=lambda one: -one.score) for group, members in standings.items()}
    kept = {group: _better_half(members) for group, members in ranked.items()} if end.may_decide else ranked
    what = f"the better half of the transforms of each source by {label} on {end.num_examples} examples, all equal "
    what += f"ones and the best of each family continue to {end.samples}"
    if not end.may_decide:
        what = f"all transforms continue to {end.samples}, because a decision would leave fewer than {end.block_size} "
        what += "examples to score them on"
    if sum(map(len, kept.values())) > affordable:
        each = affordable // max(1, len(standings))
        if each < 1 or not end.may_decide:
            needed = len(standings) if end.may_decide else sum(map(len, kept.values()))
            one = "one transform for each source" if end.may_decide else "each transform"
            return Round(
                end.num_examples, {},
                f"the budget is used up: {end.samples} examples of {one} need about "
                f"{(end.always + needed) * each_costs:.0f} s more, {max(0.0, end.seconds_left):.0f} s are left",
            )  # fmt: skip
        kept = {group: _first_of_each_family(members, each) for group, members in kept.items()}
        what = f"the time allows {each} transforms of each source: the best by {label} on {end.num_examples} examples "
        what += f"continue to {end.samples}, {_families_without(ranked, kept)}"
    names = {group: [one.name for one in members] for group, members in kept.items()}
    return Round(end.samples, names, f"{what} ({end.seconds_left:.0f} s left, {cost.per_example:.3f} s an example)")


def _better_half(ranked: Sequence[Contender]) -> list[Contender]:
    """Return the better half, all that equal its last one, and the best of each family; best first."""
    if not ranked:
        return []
    lowest = ranked[(len(ranked) + 1) // 2 - 1].score
    leaders = _leaders(ranked)
    return [one for one in ranked if one.score >= lowest or one in leaders]


def _leaders(ranked: Sequence[Contender]) -> list[Contender]:
    """Return the best of each family; best first."""
    best: dict[str, Contender] = {}
    for one in ranked:
        best.setdefault(one.family, one)
    return list(best.values())


def _first_of_each_family(ranked: Sequence[Contender], count: int) -> list[Contender]:
    """Return `count` contenders, best first: the best of each family and then the others; the best if too few."""
    leaders = _leaders(ranked)
    others = [one for one in ranked if one not in leaders]
    chosen = [*leaders, *others][:count]
    return [one for one in ranked if one in chosen]


def _families_without(ranked: Mapping[str, Sequence[Contender]], kept: Mapping[str, Sequence[Contender]]) -> str:
    """Return a phrase with the number of families that no longer have a transform."""
    lost = sum(len(_leaders(ranked[group])) - len(_leaders(members)) for group, members in kept.items())
    if lost == 0:
        return "one of each family among them"
    return f"without {lost} families that the time does not allow, and in random order where they are equal"
