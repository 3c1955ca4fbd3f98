"""Types of the records that jobs write, and reading them back. Main entries: `EvaluationResult`, `read_record()`.

A record is a dict of plain values, as its JSON file has it. `FORMAT` is the version of all of them. A file of an
earlier format is upgraded when it is read, or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard, TypeVar, cast, get_origin, get_type_hints

from latentwire.harness.results import FORMAT as FORMAT
from latentwire.harness.results import DamagedResultError, JsonObject, read_json, read_jsonl
from latentwire.harness.results import MadeBy as MadeBy
from latentwire.harness.results import MadeOn as MadeOn
from latentwire.harness.row_memory import share_values
from latentwire.upgrades import upgraded_result, upgraded_summary

R = TypeVar("R")

RESTORE = "restore the file, or delete it to run that configuration again"
AGAIN = "restore the file, or run the sweep again"


class Finding(TypedDict):
    """A finding about one configuration."""

    kind: str
    level: str  # "note": possibly right; "warning": probably wrong
    message: str


class MetricScore(TypedDict):
    """Mean of an answer metric over the examples, in [0, 1]."""

    mean: float
    interval: tuple[float, float]  # 95%


class ShownMetric(TypedDict):
    """The primary metric of a sweep, in whose order and words the analysis is written."""

    name: str
    label: str  # of the shown score, for which higher is better: "F1", or "1 - WER" for an error rate
    higher_is_better: bool  # of the metric itself; if not, the shown score is 1 - the metric


class Timing(TypedDict):
    """Times of one configuration."""

    examples_per_sec: NotRequired[float]
    decoded: int  # examples that the model decoded
    reused: int  # examples with the inputs, and so the answer, of another one
    decode_sec: float
    positions: int  # decoded positions; 0.1.0 did not count them, which gives 0
    shots_sec: float  # seconds in which the model encoded the shots
    shots_positions: int


class Fit(TypedDict):
    """How a transform was fitted to the source."""

    embeddings: int  # number of embeddings
    sees: str  # what the fit needs: `transforms.base.EMBEDDINGS` or `PAIRS`
    supervised: bool
    diagnosis: JsonObject  # findings of the transform, which decides their names


class ExampleRow(TypedDict):
    """A line of NAME.predictions.jsonl: the answer to one example."""

    id: str
    question: str
    references: list[str]
    prediction: str
    f1: float
    em: float
    scores: dict[str, float]  # every answer metric by name, f1 and em among them
    cut_off: NotRequired[bool]  # whether the answer reached max_new_tokens; 0.1.0 did not store it
    change: NotRequired[float]  # |repaired - source| / |source| over the span; 0.1.0 did not store it
    passage: NotRequired[str]  # fingerprint of the passage, the unit that is resampled; 0.3.0 did not store it
    # |repaired - real| / |real| over the span; absent if the source changes its length, and in 0.3.0
    distance: NotRequired[float]
    tokens: NotRequired[int]  # generated tokens of the answer, without the end token; 0.3.0 did not store it


class ResultHead(TypedDict):
    """What a configuration is, known before it runs."""

    format: int
    name: str
    experiment: str
    family: str  # name of the transform
    dials: JsonObject
    source: str
    source_dials: JsonObject
    group: str
    variant: str
    # "baseline", "clean", "empty", "random" or "scrambled"; None for a configuration of the sweep
    control: str | None
    config_hash: str
    model: str
    model_id: str
    data: str


class LatentAccount(TypedDict):
    """What latents cost, and signs of collapse. Sizes are means over the examples."""

    positions: float
    text_positions: float
    bytes: float
    text_bytes: float
    text_zlib_bytes: float
    mean_pairwise_cosine: float  # between latents of different passages at equal positions
    distinct_answers: int
    distinct_references: int
    seen_in_training: NotRequired[int]  # examples about passages that trained or stopped the encoder
    warnings: list[str]


class Measured(TypedDict, total=False):
    """What the evaluation of a configuration found; nothing if it failed."""

    f1: float
    f1_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    scores: dict[str, MetricScore]  # every answer metric by name, f1 and em among them
    empty_rate: float
    empty_rate_interval: tuple[float, float]
    num_samples: int
    available: int  # examples that `samples` could reach: besides the shots' passages; 0.3.0 did not store it
    too_long: int
    too_long_ids: list[str]  # only in the result's own file
    left_out: dict[str, int]  # unusable questions of the data, by reason
    cut_off: int
    relative_change: float
    identity: bool  # whether the transform changed nothing
    warnings: list[Finding]
    fit: Fit | None
    latents: LatentAccount | None
    time_sec: float
    timing: Timing
    sketch: list[float]  # random projections of the first repaired embeddings; 0.3.0 did not store it


# Fields that a successful result must have
MEASURED = frozenset(Measured.__optional_keys__) - {"sketch", "available"}


class SummaryResult(ResultHead, Measured):
    """The result of one configuration in summary.json."""

    status: Literal["ok", "failed"]
    error: NotRequired[str]  # of a failed configuration, with the remedy
    job_sec: NotRequired[float]  # with loading, saving and tracking; 0.1.0 did not measure it
    num_examples: int | None  # examples that a budget allowed; None: all
    seed: int
    draw: NotRequired[int]  # number of the draw of shots, sources and transforms; 0.3.0 had only draw 0
    dtype: str
    device: str
    processes: int
    git_commit: str | None


class EvaluationResult(SummaryResult):
    """NAME.json: the result of one configuration."""

    traceback: NotRequired[str]  # of a configuration that failed by a bug
    versions: dict[str, str]
    config: JsonObject


class ScoredResult(ResultHead):
    """What the analysis reads of a successful result: `succeeded` narrows a result to it."""

    status: Literal["ok"]
    f1: float
    em: float
    empty_rate: float
    scores: dict[str, MetricScore]
    num_samples: int
    available: NotRequired[int]  # examples that `samples` could reach; 0.3.0 did not store it
    too_long: int
    left_out: dict[str, int]
    cut_off: int
    relative_change: float
    identity: bool
    warnings: list[Finding]
    fit: Fit | None
    time_sec: float
    job_sec: NotRequired[float]  # with loading, saving and tracking; 0.1.0 did not measure it
    timing: Timing
    sketch: NotRequired[list[float]]  # random projections of the first repaired embeddings; 0.3.0 did not store it
    num_examples: int | None  # examples that a budget allowed; None: all
    seed: int
    draw: NotRequired[int]  # number of the draw of shots, sources and transforms; 0.3.0 had only draw 0
    dtype: str
    device: str
    processes: int
    git_commit: str | None


class Estimate(TypedDict):
    """The first measurement of the cost of an example."""

    names: list[str]
    samples: int
    seconds_per_example: float


class HalvingGroup(TypedDict):
    """What a halving keeps of one source."""

    group: str
    names: list[str]
    kept: list[str]
    left_out: list[str]


class Halving(TypedDict):
    """A decision of a budgeted sweep about the next round."""

    round: int
    samples: int
    decided_on: int  # first examples whose scores left a transform out; 0 if none was
    why: str
    groups: list[HalvingGroup]


class Budget(TypedDict):
    """plan.json: the decisions of a budgeted sweep."""

    key: str
    minutes: float
    configurations: int
    wanted: int
    estimate: Estimate | None
    first: int | None
    samples: int | None
    seconds_per_example: float | None
    seconds_spent: float
    time_model: str
    halvings: list[Halving]
    stopped: str | None
    note: str


F1: ShownMetric = {"name": "f1", "label": "F1", "higher_is_better": True}


class SweepSample(TypedDict):
    """Settings that decide which examples and shots a sweep drew; None if they differ among its results."""

    part: str | None
    samples: int | None
    seed: int | None
    shots_seed: int | None


class StoredSummary(SweepSample):
    """The content of summary.json, apart from the analysis."""

    format: int
    sweep: str
    command: str | None
    primary_metric: ShownMetric
    results: list[SummaryResult]
    controls: list[SummaryResult]
    budget: Budget | None


class TrainedRun(MadeOn):
    """Fields of the result of every training run."""

    format: int
    identity: JsonObject  # settings and inputs that decide the result
    name: str
    config: JsonObject
    time_sec: float  # of the last command


def succeeded(result: SummaryResult) -> TypeGuard[ScoredResult]:
    """Return whether a configuration was evaluated, so that its result has scores."""
    return result["status"] == "ok"


def required_fields(kind: type) -> set[str]:
    """Return the fields that a record must have.

    `__required_keys__` alone also names fields that are NotRequired: with annotations as text it cannot know them.
    """
    hints = get_type_hints(kind, include_extras=True)
    required: frozenset[str] = getattr(kind, "__required_keys__")  # noqa: B009 (not a field of type)
    return {name for name in required if get_origin(hints[name]) is not NotRequired}


def checked(kind: type[R], content: object, path: Path, remedy: str) -> R:
    """Return the content of a file as a record.

    Args:
        kind: TypedDict of the record.
        content: Content of the file.
        path: Path of the file, for the message.
        remedy: End of the message: how to repair the file.

    Raises:
        DamagedResultError: The content is not an object, lacks a field, or has a later format.
    """
    if not isinstance(content, dict):
        raise DamagedResultError(f"{path} is not a JSON object: {remedy}")
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise DamagedResultError(
            f"{path} has format {content['format']}, and this version reads up to {FORMAT}: update this project"
        )
    if lacking := required_fields(kind) - content.keys():
        raise DamagedResultError(f"{path} lacks {', '.join(sorted(lacking))}: {remedy}")
    return cast(R, content)


def read_record(kind: type[R], path: Path, remedy: str) -> R:
    """Return the record in a JSON file; arguments and errors as in `checked`."""
    return checked(kind, read_json(path), path, remedy)


ReadRows = Callable[[Path], Sequence[ExampleRow]]  # returns the rows of a file, from it or from memory


def read_example_rows(path: Path) -> list[ExampleRow]:
    """Return the rows of a NAME.predictions.jsonl. They share texts and scores with rows of other files; change none.

    Raises:
        DamagedResultError: A line cannot be read or lacks a field.
    """
    rows = read_jsonl(path)
    needed = required_fields(ExampleRow)
    for row in rows:
        if "scores" not in row and {"f1", "em"} <= row.keys():  # format 1
            row["scores"] = {"f1": row["f1"], "em": row["em"]}
        if lacking := needed - row.keys():
            raise DamagedResultError(f"{path} lacks {', '.join(sorted(lacking))}: {RESTORE}")
        share_values(row)
    return cast(list[ExampleRow], rows)


def read_result(path: Path) -> EvaluationResult:
    """Return the result in a NAME.json. A result of format 1 is upgraded.

    Raises:
        DamagedResultError: The file cannot be read, lacks a field, or has a later format.
    """
    return result_of(read_json(path), path)


def result_of(content: object, path: Path) -> EvaluationResult:
    """Return the content of a NAME.json as a result; errors as in `read_result`."""
    return checked(EvaluationResult, _complete(content, path, RESTORE, MEASURED), path, RESTORE)


def read_summary(path: Path) -> StoredSummary:
    """Return the facts of a sweep from its summary.json, without the analysis. A summary of format 1 is upgraded.

    Raises:
        DamagedResultError: The file is not a summary, a result in it lacks a field, or it has a later format.
    """
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise DamagedResultError(f"{path}: not a summary of a sweep; give the summary.json of an output folder")
    if summary.get("format", 1) == 1:
        summary |= {"format": FORMAT, "controls": summary.get("controls", []), "budget": summary.get("budget")}
        summary |= {"command": summary.get("command"), "primary_metric": dict(F1)}
    found = checked(StoredSummary, upgraded_summary(summary), path, AGAIN)
    needed = MEASURED - {"too_long_ids"}
    for part in (found["results"], found["controls"]):
        part[:] = [checked(SummaryResult, _complete(result, path, AGAIN, needed), path, AGAIN) for result in part]
    return found


def sweep_sample(configs: Sequence[Mapping[str, object]]) -> SweepSample:
    """Return the settings of a sweep's draw from the configs of its results."""

    def common(name: str) -> Any:
        values = {config.get(name) for config in configs}
        return values.pop() if len(values) == 1 else None

    names = ("part", "samples", "seed", "shots_seed")
    return cast(SweepSample, {name: common(name) for name in names})


def _complete(result: object, path: Path, remedy: str, needed: frozenset[str]) -> object:
    """Return a result, upgraded from format 1, after checking that a successful one has the `needed` fields."""
    if not isinstance(result, dict):
        return result  # `checked` raises the error
    if result.get("format", 1) == 1:
        result = upgraded_result(result)
    if result.get("status") == "ok" and (lacking := needed - result.keys()):
        raise DamagedResultError(f"{path} lacks {', '.join(sorted(lacking))}: {remedy}")
    return result
