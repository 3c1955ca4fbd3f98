"""Types of what the page and the figures draw. Main entry: `PageData`."""

from __future__ import annotations

from typing import Literal, TypedDict

from latentwire.analysis.records import (
    AutoGoal,
    DialValue,
    GroupControls,
    GroupVerdict,
    JoinedFinding,
    Power,
    RankingObservation,
    RankingRow,
    ToleranceRow,
)
from latentwire.records import Budget, ShownMetric


class ReferenceLine(TypedDict):
    """A score that bars are compared with."""

    kind: Literal["baseline", "clean", "empty"]
    label: str
    score: float


class Tick(TypedDict):
    """A value of a dial on the axis."""

    at: float  # position, in [0, 1]
    value: DialValue
    lower: bool  # whether the label stands on a second line


class Point(TypedDict):
    """A configuration on a line."""

    at: float  # position, in [0, 1]
    name: str


class Line(TypedDict):
    """Configurations that differ in one dial."""

    label: str
    points: list[Point]


class LinesPanel(TypedDict):
    """The dials of a family as lines."""

    kind: Literal["lines"]
    family: str
    dial: str
    axis: Literal["linear", "log", "names"]
    ticks: list[Tick]
    lines: list[Line]


class GridPanel(TypedDict):
    """Two dials of a family as a grid."""

    kind: Literal["grid"]
    family: str
    dial: str
    values: list[DialValue]
    row_dial: str
    row_values: list[DialValue]
    cells: list[list[str | None]]  # rows x columns of names


Panel = LinesPanel | GridPanel


class SourceMatrix(TypedDict):
    """Transforms by sources."""

    sources: list[str]
    transforms: list[str]
    cells: list[list[str | None]]  # transforms x sources of names


class PageRow(RankingRow):
    """A row of a ranking with what the page shows of its result."""

    group: str
    time_sec: float


class PageGroup(GroupVerdict):
    """What the page shows of a source."""

    group: str
    num_samples: int
    passages: int
    design_effect: float | None
    answerable: bool | None
    controls: GroupControls | None
    power: Power | None
    observations: list[RankingObservation]
    ranking: list[PageRow]
    panels: list[Panel]
    lines: list[ReferenceLine]
    confirmation: list[str]  # lines
    confirm_command: str | None  # while the winner is not confirmed
    how_to_confirm: str | None  # what the command does
    first_shown: list[str]  # names of the results whose answers are shown at first


class PageTolerance(ToleranceRow):
    """A tolerance with its text."""

    text: str


class PageLadder(TypedDict):
    """What the page shows of a ladder."""

    ladder: str
    variant: str
    dial: str
    unit: str
    levels: list[float]
    threshold: float
    reason: str | None
    transforms: list[PageTolerance]
    left_out: str  # sentence, or an empty text


class PageAuto(AutoGoal):
    """The check of the automatic repair with its verdict in sentences."""

    text: list[str]
    words: list[str]  # whether the goal is met on each source


class ShownExample(TypedDict):
    """An example in the page."""

    id: str
    question: str
    references: list[str]


class ShownExamples(TypedDict):
    """The examples and answers in the page."""

    total: int  # examples of the sweep
    cut: int  # texts that are cut
    items: list[ShownExample]
    answers: dict[str, list[tuple[str, float] | None]]  # name of a result -> answer and score for each item


class Failure(TypedDict):
    """A failed configuration."""

    name: str
    error: str


class Counts(TypedDict):
    """Numbers of configurations."""

    total_experiments: int
    successful: int
    failed: int


class PageData(TypedDict):
    """Everything that report.html shows."""

    sweep: str
    question: str
    metric: ShownMetric
    counts: Counts
    failures: list[Failure]
    warnings: list[JoinedFinding]
    budget: Budget | None
    groups: list[PageGroup]
    top: float  # score at which axes and colour scales end
    heat_text_turns: float
    colour_of: dict[str, str]
    line_colours: int
    matrix: SourceMatrix | None
    tolerance: list[PageLadder]
    most: int  # largest number of examples
    few_examples: int
    incomplete: str | None
    draws: list[str]  # lines on the spread between draws
    across: str | None  # sentence about all sources
    auto: PageAuto | None
    examples: ShownExamples
    run: list[tuple[str, str]]
    config: str  # JSON of the settings that all configurations share
