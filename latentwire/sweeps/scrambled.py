"""Scrambled controls: the best transform of each source on passages of other examples. Main entry: `scrambled_jobs()`.

The score of a transform should come from the passage that the source gives it. With the passage of another example
the model cannot answer, so a score above the empty context shows a leak. Only the best contender of a source is
tested, because it is the one that a reader would quote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from latentwire.analysis.controls import BASELINE, RANDOM, is_supervised, score_of
from latentwire.harness.grids import Job
from latentwire.harness.results import ResultStore
from latentwire.records import EvaluationResult, ScoredResult, ShownMetric, read_example_rows, succeeded


def scrambled_jobs(
    jobs: Sequence[Job],
    results: Sequence[EvaluationResult],
    controls: Sequence[Job],
    compose: Callable[[Sequence[str]], Job],
    metric: ShownMetric,
    store: ResultStore,
) -> list[Job]:
    """Return a scrambled control for the best contender of each source, in the order of the sources.

    A contender is a repair that may win: not a control, not supervised, and it changes its input. A budgeted control
    gets the examples of its contender. The choice depends on the results alone, so a resumed sweep makes it again.

    Args:
        jobs: Configurations of the sweep.
        results: Their results, in the same order.
        controls: Other controls of the sweep. A source without an empty context gets no scrambled control, because
            nothing could be compared with it.
        compose: Returns a job from command-line overrides.
        metric: The primary metric.
        store: Answers of the results. A source gets no scrambled control if all its examples are about one passage.
    """
    compared = {job.config.variant for job in controls if job.config.control == "empty"}
    best: dict[str, tuple[Job, ScoredResult]] = {}
    for job, result in zip(jobs, results, strict=True):
        if succeeded(result) and result["variant"] in compared and _is_contender(result):
            group = result["group"]
            if group not in best or _rank(result, metric) > _rank(best[group][1], metric):
                best[group] = job, result
    found = []
    for job, chosen in best.values():
        rows = read_example_rows(store.predictions_path(chosen["name"]))
        if len({row.get("passage", row["id"]) for row in rows}) < 2:
            continue
        overrides = [override for override in job.overrides if not override.startswith("control=")]
        if chosen["num_examples"] is not None:
            overrides.append(f"num_examples={chosen['num_examples']}")
        found.append(compose([*overrides, "control=scrambled"]))
    return found


def _is_contender(result: ScoredResult) -> bool:
    """Return whether a result is of a repair that may win."""
    is_control = result["control"] is not None or result["family"] in (BASELINE, RANDOM) or is_supervised(result)
    return not is_control and not result["identity"]


def _rank(result: ScoredResult, metric: ShownMetric) -> tuple[int, float]:
    """Return what orders contenders: more examples first, then the score, rounded so that sums in any order tie."""
    return result["num_samples"], round(score_of(result, metric)[0], 9)
