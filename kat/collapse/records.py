"""Types of what the experiment on mode collapse reads and writes. Main entry: `CollapseResult`.

verdict.md and verdict.html show the same blocks, which `CollapseResult` contains.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from kat.records import AnsweredPrompt, Ends

Answer = Literal["reduces", "increases", "equivalent", "not_shown", "no_verdict"]
RunStatus = Literal["finished", "unfinished", "failed", "damaged", "missing"]


class EvaluatedPrompt(AnsweredPrompt):
    """A row of completions.jsonl: the completions of a held-out prompt after a step."""

    step: int


class LedgerRow(TypedDict):
    """A row of ledger.jsonl: the draws of a training prompt."""

    id: str
    intended: float
    drawn: int


class TruthRow(TypedDict):
    """A row of held_out_truth.jsonl: exact values of the policy for a prompt after a step, in place of estimates."""

    step: int
    id: str
    validity: float  # probability of a valid answer
    entropy: float | None  # among the valid answers, in nats
    distinct: float  # expected number of different valid answers among the completions


class RunState(TypedDict):
    """A run of the experiment, or the absence of one."""

    arm: str
    seed: int
    status: RunStatus
    folder: str | None  # None for a missing run
    reason: str  # why it does not count; empty for a finished run


class SeedMean(TypedDict):
    """Mean of one value a seed."""

    mean: float
    interval: Ends | None  # None for a single seed
    seeds: int


class SeedEquivalence(TypedDict):
    """Two one-sided tests of a difference."""

    margin: float
    interval: Ends  # 90%
    p_value: float
    p_holm: float


class SeedDifference(TypedDict):
    """Paired difference of an arm from the baseline over seeds."""

    arm: str
    difference: float
    interval: Ends
    seeds: list[int]
    values: list[float]  # difference of each seed
    left_out: int  # pairs of runs without a value
    p_value: float
    p_holm: float | None  # None for a positive control, which is not a hypothesis
    equivalence: SeedEquivalence | None  # None without a margin


class MeasureRow(TypedDict):
    """A measure on a group of prompts after training."""

    measure: str
    group: str
    label: str
    direction: int  # 1: higher is more diverse, -1: lower is, 0: neither
    base: SeedMean | None
    arms: dict[str, SeedMean]
    differences: list[SeedDifference]
    sees_controls: bool | None  # whether it shows both positive controls as more diverse; None without a direction


class Margin(TypedDict):
    """The largest difference that does not matter, and where it comes from."""

    measure: str
    group: str
    lost: float  # from the base model to the end of training, mean over the control runs
    margin: float


class GateCheck(TypedDict):
    """A condition of the verdict."""

    name: str
    passed: bool | None  # None: not measured, and not required
    text: str


class FalsePositives(TypedDict):
    """Tables of uniform against uniform with a corrected p-value below .05."""

    share: float
    interval: Ends  # Wilson
    tables: int
    pairs: int  # pairs of runs in a table
    measures: int
    same_seed: bool  # whether a pair has the same seed, and other random numbers of sampling


class SeedPower(TypedDict):
    """What an experiment of this size detects in the deciding measure."""

    arm: str
    seeds: int
    sd: float  # of the paired differences
    tests: int  # comparisons that alpha is divided by
    detectable: float  # in one comparison
    detectable_corrected: float
    target: float
    seeds_needed: int | None  # None: more than `most_seeds`
    seeds_needed_corrected: int | None
    most_seeds: int
    prompt_share: float | None  # of the variance between seeds that the choice of prompts explains; None: unknown


class Slope(TypedDict):
    """Change of a topic's diversity for twice the draws of the baseline."""

    arm: str
    slope: float
    interval: Ends
    seeds: int


class TopicRow(TypedDict):
    """A topic: draws, and the deciding measure, by arm."""

    topic: int
    size: int
    rare: bool
    exposure: dict[str, float]  # share of all draws, mean over seeds
    diversity: dict[str, float]  # mean over seeds; the base model is among the arms


class ShownAnswer(TypedDict):
    """Equal completions of a prompt."""

    text: str
    count: int
    good: bool


class ShownPrompt(TypedDict):
    """A prompt with the completions of each arm."""

    id: str
    prompt: str
    group: str
    seed: int
    answers: dict[str, list[ShownAnswer]]


class SeriesPoint(TypedDict):
    """A point of a chart."""

    x: float
    y: float
    interval: Ends | None  # of y
    label: NotRequired[str]


class Series(TypedDict):
    """A line or a set of points."""

    name: str
    points: list[SeriesPoint]


class ChartBlock(TypedDict):
    """A chart of lines or points."""

    kind: Literal["chart"]
    name: str  # of the PNG file
    title: str
    x: str
    y: str
    shape: Literal["line", "points"]
    doubling: NotRequired[bool]  # whether equal distances on the x axis are equal factors; all x are above 0 then
    series: list[Series]


class ForestEntry(TypedDict):
    """A line of a forest plot."""

    name: str
    difference: float
    interval: Ends


class ForestBlock(TypedDict):
    """Differences with intervals, a line at 0 and the margins."""

    kind: Literal["forest"]
    name: str
    title: str
    x: str
    margin: float | None
    entries: list[ForestEntry]


class TextBlock(TypedDict):
    """A paragraph."""

    kind: Literal["text"]
    text: str
    strong: NotRequired[bool]


class ListBlock(TypedDict):
    """A list of sentences."""

    kind: Literal["list"]
    entries: list[str]


class TableBlock(TypedDict):
    """A table; the first column names the rows."""

    kind: Literal["table"]
    title: str
    columns: list[str]
    rows: list[list[str]]


class AnswersBlock(TypedDict):
    """Completions of prompts, the arms next to each other."""

    kind: Literal["answers"]
    arms: list[str]
    prompts: list[ShownPrompt]


Block = TextBlock | ListBlock | TableBlock | ChartBlock | ForestBlock | AnswersBlock


class Section(TypedDict):
    """A part of the page."""

    id: str
    title: str
    blocks: list[Block]


class EqualComparison(TypedDict):
    """A comparison at equal reward or equal KL."""

    at: str  # "quality" or "kl"
    level: float
    differences: list[SeedDifference]


class CollapseResult(TypedDict):
    """verdict.json of task=verdict folder=FOLDER."""

    format: int
    folder: str
    arm: str
    answer: Answer
    sentence: str
    measure: str
    group: str
    label: str
    steps: list[int]
    arms: list[str]
    seeds: list[int]
    control_seeds: list[int]
    margin_share: float
    runs: list[RunState]
    gate: list[GateCheck]
    primary: MeasureRow
    measures: list[MeasureRow]
    context: list[MeasureRow]
    equal: list[EqualComparison]
    margins: list[Margin]
    false_positives: FalsePositives | None
    power: list[SeedPower]
    topics: list[TopicRow]
    slopes: list[Slope]
    warnings: list[str]
    limits: list[str]
    sections: list[Section]
