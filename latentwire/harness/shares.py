"""Division of a sweep's jobs among workers, by cost. Main entry: `divide()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What is known of a job before it runs.

    Attributes:
        group: What a worker must load for the job: model, data and shots. Jobs of one group share it.
        seconds: Estimated seconds without loading; 0 if the job is finished already.
        load_seconds: Estimated seconds to load the group.
    """

    group: str = ""
    seconds: float = 1.0
    load_seconds: float = 0.0


def divide(costs: Sequence[Cost], workers: int) -> list[list[int]]:
    """Divide jobs into shares of about equal cost, in which the jobs of a group stay together where they can.

    The jobs are put in a line, group after group, and the line is cut into pieces of equal cost. So each piece loads
    few groups. Which worker runs a job does not change its result.

    Args:
        costs: Cost of each job.
        workers: Number of workers, at least 1.

    Returns:
        The places of the jobs in `costs` for each worker that has any, at most `workers` lists.
    """
    groups: dict[str, list[int]] = {}
    for place, cost in enumerate(costs):
        groups.setdefault(cost.group, []).append(place)
    line = [place for members in groups.values() for place in members]
    loading = [costs[members[0]].load_seconds if any(costs[m].seconds for m in members) else 0.0
               for members in groups.values()]  # fmt: skip
    total = sum(cost.seconds for cost in costs) + sum(loading)
    shares: list[list[int]] = [[] for _ in range(workers)]
    spent, loads = 0.0, dict(zip(groups, loading, strict=True))
    for number, place in enumerate(line):
        own = costs[place].seconds + loads.pop(costs[place].group, 0.0)
        # The share in which the middle of the job falls; jobs that cost nothing are divided by their number.
        middle = (spent + own / 2) / total if total else number / len(line)
        shares[min(workers - 1, int(middle * workers))].append(place)
        spent += own
    return [share for share in shares if share]
