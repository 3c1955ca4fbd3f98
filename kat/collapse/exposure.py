"""Draws of each topic against the diversity of its answers. Main entries: `topic_rows()`, `slopes_of()`."""

from __future__ import annotations

import math

import numpy as np

from kat.collapse.records import Slope, TopicRow
from kat.collapse.runs import BASELINE
from kat.collapse.table import BASE, ExperimentRuns, RowKey
from kat.collapse.values import RunValues
from latentwire.stats.seeds import mean_over_seeds

FEWEST_TOPICS = 3  # for a slope


def topic_rows(runs: ExperimentRuns, key: RowKey) -> list[TopicRow]:
    """Return the draws and the deciding measure of each topic by arm, means over seeds; empty without topics.

    Args:
        runs: The runs.
        key: The deciding measure, which must be one of single prompts.
    """
    facts = [one for run in runs.by_arm[BASELINE].values() for one in run.facts if one.topic is not None]
    sizes = {one.topic: one.topic_size for one in facts if one.topic is not None}
    if not sizes or key[0] not in runs.any_run().by_prompt:
        return []
    median = float(np.median(list(sizes.values())))
    arms = {arm: list(by_seed.values()) for arm, by_seed in runs.by_arm.items()}
    return [
        {
            "topic": topic,
            "size": size,
            "rare": size < median,
            "exposure": {arm: float(np.mean([run.exposure.get(topic, 0.0) for run in arms[arm]])) for arm in runs.arms},
            "diversity": {
                name: value
                for name, value in [
                    (BASE, _mean_of_topic(arms[BASELINE], key[0], topic, 0)),
                    *((arm, _mean_of_topic(arms[arm], key[0], topic, -1)) for arm in runs.arms),
                ]
                if not math.isnan(value)
            },
        }
        for topic, size in sorted(sizes.items())
    ]


def _mean_of_topic(runs: list[RunValues], measure: str, topic: int, evaluation: int) -> float:
    values = [run.by_topic(measure, evaluation).get(topic, math.nan) for run in runs]
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def slopes_of(runs: ExperimentRuns, key: RowKey) -> list[Slope]:
    """Return how a topic's diversity changes for twice the draws of the baseline, for each arm with other draws.

    The slope of a seed is fitted by least squares over its topics: difference in diversity from the baseline, on log2
    of the ratio of draws. A topic that one of the two runs never drew is left out.

    Args:
        runs: The runs.
        key: The deciding measure.
    """
    if key[0] not in runs.any_run().by_prompt:
        return []
    found: list[Slope] = []
    for arm in runs.tested:
        seeds = [seed for seed in runs.by_arm[arm] if seed in runs.by_arm[BASELINE]]
        slopes = [_slope(runs.by_arm[arm][seed], runs.by_arm[BASELINE][seed], key[0]) for seed in seeds]
        known = np.array([slope for slope in slopes if slope is not None])
        if len(known) > 1:
            mean = mean_over_seeds(known[None])[0]
            found.append({"arm": arm, "slope": mean.difference, "interval": list(mean.interval), "seeds": len(known)})
    return found


def _slope(run: RunValues, baseline: RunValues, measure: str) -> float | None:
    """Return the slope of one seed; None with too few topics, or with the same draws of every topic."""
    own, base = run.by_topic(measure, -1), baseline.by_topic(measure, -1)
    points = [
        (math.log2(run.exposure[topic] / baseline.exposure[topic]), own[topic] - base[topic])
        for topic in own
        if topic in base and run.exposure.get(topic) and baseline.exposure.get(topic)
    ]
    x, y = np.array([point for point in points if not math.isnan(point[1])]).reshape(-1, 2).T
    if len(x) < FEWEST_TOPICS or np.ptp(x) == 0:
        return None
    return float(np.polyfit(x, y, 1)[0])
