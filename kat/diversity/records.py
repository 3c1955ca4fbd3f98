"""Types of what the tasks diversity and verdict write. Main entries: `DiversityResult`, `VerdictResult`.

`read_diversity()` in `kat.diversity.files` reads a diversity.json, also one of an earlier format.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from kat.records import Ends
from latentwire.harness.results import JsonObject, MadeOn


class MetricRecord(TypedDict):
    """Description of a diversity metric."""

    label: str
    higher_is_more_diverse: bool | None  # None: neither direction is more diverse
    definition: str
    source: str | None  # digest of the plugin that defines it; None for a metric of this project


class DifferenceRow(TypedDict):
    """Difference of two arms in a metric."""

    level: str  # "within", "across" or "each": see `kat.diversity.comparison.LEVELS`
    metric: str
    difference: float  # second minus first
    interval: Ends
    p_value: float
    p_holm: float


class ArmValue(TypedDict):
    """Value of a metric for one arm."""

    value: float
    interval: Ends


class ArmRow(DifferenceRow):
    """A metric of two checkpoints."""

    first: ArmValue
    second: ArmValue


class PooledRow(DifferenceRow):
    """A metric of two arms, averaged over pairs of runs."""

    first: float
    second: float
    runs: list[float]  # difference of each pair of runs


class ArmPair(TypedDict):
    """Which arms and prompts are compared."""

    first: str
    second: str
    group: str  # "all", "rare" or "common"
    form: str  # "matched" or "raw"
    prompts: int


class ArmComparison(ArmPair):
    """Comparison of two checkpoints."""

    rows: list[ArmRow]


class PooledComparison(ArmPair):
    """Comparison of two arms over pairs of runs."""

    rows: list[PooledRow]


class CheckpointRecord(TypedDict):
    """A compared checkpoint, and counts of its completions."""

    label: str
    path: str
    weights: str  # digest
    completions: int
    empty: int
    ended: int
    tokens: int
    cut: int  # completions that were cut to match lengths
    tokens_cut: int
    totals: dict[str, float]  # total count of each metric that counts


class DensityThresholds(TypedDict):
    """Densities that make a prompt rare or common."""

    rare_at_most: float
    common_at_least: float
    without_density: int  # sampled prompts without a density


class DiversityPrompts(TypedDict):
    """Numbers of prompts, and with densities the thresholds and sizes of the groups."""

    all: int
    share: float  # held-out share
    held_out: int
    sampled: int
    rare_at_most: NotRequired[float]
    common_at_least: NotRequired[float]
    without_density: NotRequired[int]
    rare: NotRequired[int]
    common: NotRequired[int]


class DiversityResult(MadeOn):
    """diversity.json of task=diversity."""

    format: int
    key: str  # hash of everything that the comparison depends on
    checkpoints: list[CheckpointRecord]
    settings: JsonObject
    seed: int
    prompts: DiversityPrompts
    embedder: str
    warnings: list[str]
    reading: list[str]
    metrics: dict[str, MetricRecord]
    comparisons: list[ArmComparison]
    dtype: str
    seconds: float


class VerdictResult(TypedDict):
    """verdict.json of task=verdict."""

    format: int
    arms: list[str]
    reports: list[str]
    warnings: list[str]
    reading: list[str]
    metrics: dict[str, MetricRecord]
    comparisons: list[PooledComparison]
