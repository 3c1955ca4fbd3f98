"""Division of a sweep's jobs among workers, by cost. Main entry: `divide()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HALVINGS = 50  # of the interval in which the cost of the dearest piece is searched


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

    The jobs are put in a line, group after group, and the line is cut so that the dearest piece costs least. Each piece
    counts what it loads, and loads few groups. Which worker runs a job does not change its result.

    Args:
        costs: Cost of each job.
        workers: Number of workers, at least 1.

    Returns:
        The places of the jobs in `costs` for each worker that has any, at most `workers` lists.
    """
    if not any(cost.seconds for cost in costs):
        costs = [Cost(cost.group) for cost in costs]  # all finished: divided by number
    groups: dict[str, list[int]] = {}
    for place, cost in enumerate(costs):
        groups.setdefault(cost.group, []).append(place)
    line = [place for members in groups.values() for place in members]
    low, high = 0.0, sum(cost.seconds + cost.load_seconds for cost in costs)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_pieces(line, costs, middle)) <= workers else (middle, high)
    return _pieces(line, costs, high, workers)


def _pieces(line: Sequence[int], costs: Sequence[Cost], most: float, at_least: int = 1) -> list[list[int]]:
    """Cut a line of jobs into pieces that cost at most `most` seconds each, as long as the jobs allow.

    Args:
        line: Places of the jobs.
        costs: Cost of each job.
        most: Most seconds of a piece.
        at_least: Number of pieces, if there are as many jobs.
    """
    pieces: list[list[int]] = []
    spent = 0.0
    loaded: str | None = None  # the group that the piece has loaded last
    for number, place in enumerate(line):
        cost = costs[place]
        loads = cost.load_seconds if cost.seconds else 0.0  # a finished job loads nothing
        own = cost.seconds + (0.0 if cost.group == loaded else loads)
        if not pieces or spent + own > most or len(line) - number <= at_least - len(pieces):
            pieces.append([])
            spent, own, loaded = 0.0, cost.seconds + loads, None
        pieces[-1].append(place)
        spent += own
        loaded = cost.group if cost.seconds else loaded
    return pieces
