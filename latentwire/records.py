"""Types of the records that jobs write, and reading them back. Main entries: `EvaluationResult`, `read_record()`.

A record is a dict of plain values, as its JSON file has it. `FORMAT` is the version of all of them. A file of an
earlier format is upgraded when it is read, or refused with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard, TypeVar, cast

from latentwire.harness.results import FORMAT as FORMAT
from latentwire.harness.results import DamagedResultError, JsonObject, read_json, read_jsonl

R = TypeVar("R")


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
    positions: int  # decoded positions
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
    control: str | None  # "clean", "empty" or "random"; None for a configuration of the sweep
    config_hash: str
    model: str
    model_id: str
    data: str


class Latents(TypedDict):
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
    too_long: int
    too_long_ids: list[str]  # only in the result's own file
    left_out: dict[str, int]  # unusable questions of the data, by reason
    cut_off: int
    relative_change: float
    identity: bool  # whether the transform changed nothing
    warnings: list[Finding]
    fit: Fit | None
    latents: Latents | None
    time_sec: float
    timing: Timing


class SummaryResult(ResultHead, Measured):
    """The result of one configuration in summary.json."""

    status: Literal["ok", "failed"]
    error: NotRequired[str]  # of a failed configuration, with the remedy
    job_sec: NotRequired[float]  # with loading, saving and tracking; 0.1.0 did not measure it
    num_examples: int | None  # examples that a budget allowed; None: all
    seed: int
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
    too_long: int
    left_out: dict[str, int]
    cut_off: int
    relative_change: float
    identity: bool
    warnings: list[Finding]
    fit: Fit | None
    time_sec: float
    job_sec: float
    timing: Timing
    seed: int
    dtype: str
    device: str
    processes: int
    git_commit: str | None


def succeeded(result: SummaryResult) -> TypeGuard[ScoredResult]:
    """Return whether a configuration was evaluated, so that its result has scores."""
    return result["status"] == "ok"


def checked(kind: type[R], content: Any, path: Path, remedy: str) -> R:
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
    needed: frozenset[str] = getattr(kind, "__required_keys__")  # noqa: B009 (not a field of type[R])
    if lacking := needed - content.keys():
        raise DamagedResultError(f"{path} lacks {', '.join(sorted(lacking))}: {remedy}")
    return cast(R, content)


def read_record(kind: type[R], path: Path, remedy: str) -> R:
    """Return the record in a JSON file; arguments and errors as in `checked`."""
    return checked(kind, read_json(path), path, remedy)


def read_example_rows(path: Path) -> list[ExampleRow]:
    """Return the rows of a NAME.predictions.jsonl. Rows of format 1 get their `scores`.

    Raises:
        DamagedResultError: A line cannot be read or lacks a field.
    """
    remedy = "restore the file, or delete it to run that configuration again"
    rows = read_jsonl(path)
    for row in rows:
        if "scores" not in row and {"f1", "em"} <= row.keys():
            row["scores"] = {"f1": row["f1"], "em": row["em"]}
    return [checked(ExampleRow, row, path, remedy) for row in rows]
