"""Types of the analysis and the summary of a sweep. Main entries: `Analysis` and `Summary`.

A record is a dict of plain values, as summary.json has it. A score is a mean of the primary metric, oriented so that
higher is better. An interval is a 95% interval.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from latentwire.harness.results import JsonObject
from latentwire.records import Finding, ShownMetric, StoredSummary
from latentwire.stats.intervals import Interval

Verdict = Literal["baseline", "identity", "not compared", "better", "worse", "within noise"]
Table = tuple[list[str], list[list[object]]]  # names of the columns, and rows of plain values
Decision = Literal["met", "not met", "undecided"]  # whether an interval is above a limit, below it, or contains it
DialValue = str | float | None  # value of a dial in a config


class Configuration(TypedDict):
    """What names a configuration for the reader."""

    experiment: str
    supervised: bool  # whether it was fitted to the true tokens, which makes it a control


class Selected(TypedDict):
    """Cross-fit scores of the best of several configurations: chosen on half of the passages, scored on the others."""

    score: float
    score_interval: Interval
    difference: float | None  # from the baseline
    difference_interval: Interval | None
    recovered: float | None  # (score - empty) / (clean - empty); None without both controls
    among: int  # configurations in the choice
    chosen: float  # share of the halves that choose this configuration


class RankingRow(TypedDict):
    """A configuration in the ranking of its source, compared with the baseline."""

    name: str
    experiment: str
    family: str
    dials: JsonObject
    score: float
    score_interval: Interval
    f1: float
    em: float
    empty_rate: float
    identity: bool
    num_samples: int
    warnings: list[Finding]
    supervised: bool
    verdict: Verdict
    difference: float | None  # from the baseline; None if the row is not compared
    difference_interval: Interval | None
    p_value: float | None
    p_holm: float | None
    recovered: float | None  # (score - empty) / (clean - empty); None without both controls
    recovered_interval: Interval | None
    detectable: float | None  # smallest detectable difference from the baseline
    detectable_corrected: float | None
    cross_fit: Selected | None  # of the best contender; None for the others


class ControlScore(TypedDict):
    """The score of a control."""

    name: str
    score: float
    score_interval: Interval
    num_samples: int


class LowerControl(ControlScore):
    """A lower control, compared with the clean control."""

    control: str  # "empty" or the family of the random tokens
    difference: float  # clean - control
    difference_interval: Interval
    p_value: float
    clearly_below: bool


class GroupControls(TypedDict):
    """The controls of a source."""

    clean: ControlScore
    lower: list[LowerControl]
    scrambled: ControlScore | None  # the best contender on passages of other examples


class Power(TypedDict):
    """Which differences the examples of a source can show."""

    num_samples: int
    available: int | None  # examples that the data have; None if the results do not say it
    comparisons: int  # in the whole sweep that a test can decide
    power: float
    alpha: float
    alpha_corrected: float
    std: float  # median over the contenders of the standard deviation of the paired differences
    change: float  # median over the contenders of the mean size of the differences that are not 0
    detectable: float | None  # None if these examples detect no difference of scores
    detectable_corrected: float | None
    target_difference: float
    samples_needed: int
    samples_needed_corrected: int
    formula: str


class DialMean(TypedDict):
    """Mean score of the configurations with one value of a dial."""

    value: DialValue
    score: float
    configurations: int


class DialMeans(TypedDict):
    """Mean scores by the values of a varied dial of a family."""

    family: str
    dial: str
    means: list[DialMean]


class RankingObservation(TypedDict):
    """A rule that reads the ranking as a whole."""

    observation: str
    meaning: str  # of a yes
    action: str
    holds: str  # begins with yes, no, nearly, undecided or unknown


class GroupVerdict(TypedDict):
    """The winner of a source, if the comparisons show one, and the next step."""

    winner: str | None
    verdict: str
    next: str


class Confirmation(TypedDict):
    """A winner on passages that took no part in the choice, compared with its baseline."""

    experiment: str
    num_samples: int
    passages: int
    score: float
    score_interval: Interval
    difference: float  # from the baseline
    difference_interval: Interval
    p_value: float  # corrected by Holm for all winners of the sweep
    confirmed: bool


class GroupAnalysis(GroupVerdict):
    """The analysis of one source."""

    group: str
    source: str
    num_samples: int
    passages: int  # passages of these examples
    design_effect: float | None  # median over the contenders: by what factor the passages raise the variance
    baseline_score: float | None
    answerable: bool | None  # None without controls
    reason: str | None  # why the source cannot rank repairs
    controls: GroupControls | None
    power: Power | None
    ranking: list[RankingRow]
    best_of_family: list[RankingRow]  # with the cross-fit score of the choice within the family
    dial_means: list[DialMeans]
    reached_80_percent: int | None  # configurations with 80% of the baseline's score
    more_than_half_empty: int
    observations: list[RankingObservation]
    confirm_command: str | None  # confirms the winner on other passages; None without a winner
    confirmation: Confirmation | None  # its result, once it has run


class Across(TypedDict):
    """How many sources have a repair that is better than the baseline."""

    sources: int
    helped: int  # at least this number, at level alpha
    alpha: float


class DrawnRow(TypedDict):
    """A configuration in several draws of the shots and of the seeded sources, on the same examples."""

    group: str  # of the first draw
    experiment: str
    family: str
    supervised: bool
    draws: int
    scores: list[float]  # of each draw
    mean: float
    spread: float  # standard deviation between the draws
    difference: float | None  # mean difference from the baseline of the same draw
    difference_spread: float | None
    better: int  # draws in which it is better than the baseline
    wins: int  # draws in which it is the winner


class JoinedFinding(Finding):
    """A finding with all results that have it."""

    names: list[str]
    count: int


class Coverage(TypedDict):
    """Numbers of examples, which a budget makes unequal."""

    configurations: int
    most: int
    fewest: int
    fewer: int  # configurations with fewer examples than `most`


class AtlasSource(TypedDict):
    """A row of the matrix."""

    group: str
    source: str
    source_dials: JsonObject
    variant: str


class AtlasTransform(TypedDict):
    """A column of the matrix."""

    experiment: str
    family: str
    dials: JsonObject
    supervised: bool


class Cell(TypedDict):
    """A transform on a source."""

    name: str
    score: float
    score_interval: Interval
    num_samples: int
    recovered: float | None
    recovered_interval: Interval | None
    verdict: Verdict


class LadderEnd(TypedDict):
    """Where a score falls to the threshold: at a level, beyond the measured levels, or before them."""

    status: Literal["crosses", "beyond", "before"]
    level: float | None


class ToleranceRow(TypedDict):
    """How much of a distortion a transform tolerates."""

    experiment: str
    family: str
    supervised: bool
    num_samples: int
    scores: list[float]  # at each level
    anchored: bool  # whether the transform's score on clean text is the first position
    status: Literal["crosses", "beyond", "before", "unknown"]  # unknown if the ladder's threshold is not usable
    level: float | None
    interval: list[LadderEnd] | None  # mild end, severe end


class LadderTolerance(TypedDict):
    """The tolerances on one ladder: levels of a source from mild to severe."""

    ladder: str
    source: str
    variant: str
    dial: str
    unit: str
    axis: str
    levels: list[float]
    threshold: float  # half of the clean control's score
    reason: str | None  # why the threshold is not usable
    transforms: list[ToleranceRow]
    left_out: list[str]  # transforms that lack a level or common examples


class Atlas(TypedDict):
    """Several sources as one matrix, in the order run."""

    sources: list[AtlasSource]
    transforms: list[AtlasTransform]
    matrix: list[list[Cell | None]]  # sources x transforms
    columns: list[str]  # the best configuration of each family
    column_scores: list[list[float | None]]  # their cross-fit scores, sources x columns; None where nothing was chosen
    tolerance: list[LadderTolerance]


class Share(TypedDict):
    """A share of the clean score."""

    score: float
    share: float
    above: Interval  # 95% interval of score - share wanted * clean score
    reached: Decision


class AutoSource(TypedDict):
    """The automatic repair and the best single transform on one source."""

    group: str
    num_samples: int | None
    clean_score: float | None
    best: str | None  # the best single transform
    best_share: Share | None  # cross-fit
    auto: str
    auto_share: Share | None
    met: Decision | None  # None if no single transform reaches the share, or the source decides nothing
    reason: str | None  # why the source decides nothing


class Harm(TypedDict):
    """Difference of the automatic repair from the baseline on clean text."""

    group: str
    num_samples: int
    difference: float
    difference_interval: Interval
    met: Decision


class AutoGoal(TypedDict):
    """The check of the automatic repair."""

    share_wanted: float
    harm_allowed: float
    definition: str
    sources: list[AutoSource]
    recovered: list[str]  # sources on which a single transform reaches the share
    reached: list[str]  # of these, the sources on which auto reaches it too
    failed: list[str]  # of these, the sources on which auto does not reach it
    auto_alone: list[str]  # sources on which auto reaches the share and no single transform does
    harm: list[Harm]
    met: Decision


class Analysis(TypedDict):
    """The analysis of a sweep."""

    metric: ShownMetric
    min_clean_score: float
    target_difference: float
    warnings: list[JoinedFinding]
    groups: list[GroupAnalysis]
    coverage: Coverage
    across: Across | None  # None for one source
    draws: list[DrawnRow]  # of a sweep with repeats
    atlas: Atlas | None
    auto: AutoGoal | None


class SortedByF1(TypedDict):
    """An entry of the successful configurations sorted by F1."""

    name: str
    experiment: str
    source: str
    group: str
    f1: float
    f1_interval: Interval
    em: float
    empty_rate: float


class SortedByScore(TypedDict):
    """An entry of the successful configurations sorted by the primary metric."""

    name: str
    experiment: str
    source: str
    group: str
    score: float
    score_interval: Interval


class Summary(StoredSummary):
    """summary.json: the results of a sweep and their analysis."""

    total_experiments: int
    successful: int
    failed: int
    sorted_by_f1: list[SortedByF1]
    sorted_by_score: list[SortedByScore]
    analysis: Analysis
