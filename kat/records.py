"""Types of the records that the tasks of kat write and pass on. Main entries: `GrpoResult`, `read_kat_record()`.

A record is a dict of plain values, as its JSON file has it; an interval is a list of its two ends. The number `format`
is `latentwire.records.FORMAT`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

from latentwire.harness.results import JsonObject, read_json
from latentwire.records import MadeBy, MadeOn, TrainedRun, checked

Ends = list[float]  # low and high end of a 95% interval


# Numbers of one step by name, a row of metrics.jsonl without its step; the names of reward functions are among them.
StepMetrics = dict[str, float]
StepTimings = dict[str, float]  # a row of timings.jsonl without its step


class AnsweredCompletion(TypedDict):
    """A completion of a held-out prompt."""

    text: str
    tokens: int  # with the end token
    ended: bool  # whether it ended within the token limit
    reward: float
    rewards: NotRequired[dict[str, float | None]]  # each of several rewards by its name; None: it does not score this
    kl: NotRequired[float]  # divergence from the policy before training in nats, summed over the tokens


class AnsweredPrompt(TypedDict):
    """A held-out prompt with its completions; with a step, a row of completions.jsonl."""

    id: str
    prompt: str
    completions: list[AnsweredCompletion]


class PolicyEvaluation(TypedDict):
    """Scores of a policy on the held-out prompts."""

    reward: float
    reward_interval: Ends
    gain: float  # mean reward minus the mean reward before training, paired by prompt
    gain_interval: Ends
    rewards: NotRequired[dict[str, float | None]]  # mean of each of several rewards by its name
    kl: NotRequired[float]  # mean divergence from the policy before training, in nats a token
    length: float  # mean number of tokens of a completion
    truncated: float  # share of the completions
    prompts: int
    completions: int


class HeldOutEvaluation(PolicyEvaluation):
    """Scores of a policy after a step; a row of held_out.jsonl."""

    step: int


class GrpoCounts(TypedDict):
    """Counts over all steps, and numbers of prompts."""

    completions: int
    truncated: int
    empty: int
    groups: int
    degenerate_groups: int  # groups with equal rewards
    dropped_groups: NotRequired[int]  # groups with equal rewards that dynamic sampling threw away; not in `groups`
    steps_without_update: int
    train_prompts: int
    never_drawn: int
    held_out_prompts: int
    too_long: int


class GrpoOutcome(TypedDict):
    """What a run of task=grpo trained."""

    steps: int
    held_out: HeldOutEvaluation | None  # after the last step; None without held-out prompts
    held_out_before: HeldOutEvaluation | None
    held_out_curve: list[HeldOutEvaluation]
    last_step: StepMetrics
    counts: GrpoCounts
    too_long: list[str]  # ids of prompts that leave no room for a completion
    trained_weights: int
    frozen_blocks_shared: int


class GrpoResult(GrpoOutcome, TrainedRun):
    """result.json of task=grpo."""


# A class could not have a field called "from".
CalibrationBin = TypedDict(
    "CalibrationBin",
    {"from": float, "to": float, "pairs": int, "confidence": float | None, "accuracy": float | None},
)


class Calibration(TypedDict):
    """Expected calibration error of a reward model, with its bins."""

    error: float
    error_if_calibrated: float  # mean error of a perfectly calibrated model with these confidences
    bins: list[CalibrationBin]


class LengthRule(TypedDict):
    """Accuracy of a rule that sees only the lengths, on the same pairs."""

    rule: str  # "longer" or "shorter"
    ties: int
    accuracy: float
    accuracy_interval: Ends
    difference: float  # accuracy of the model minus the accuracy of the rule
    difference_interval: Ends


class PairsReport(TypedDict):
    """Scores of a reward model on pairs."""

    pairs: int
    prompts: int
    ties: int
    accuracy: float
    accuracy_interval: Ends
    log_loss: float
    log_loss_interval: Ends
    calibration: Calibration
    length_only: NotRequired[LengthRule]


class RewardReport(PairsReport):
    """Scores of a reward model on all pairs and on parts of them."""

    by_source: dict[str, PairsReport]
    by_density_decile: dict[str, PairsReport]  # "1" (rarest) to "10"


class RewardSpread(TypedDict):
    """Mean and standard deviation of the rewards of the held-out completions."""

    mean: float
    std: float


class RewardCounts(TypedDict):
    """Numbers of pairs and prompts."""

    pairs: int
    too_long: int  # dropped pairs
    trimmed: int  # prompts that lost tokens
    tokens_trimmed: int
    train_prompts: int
    train_pairs: int
    held_out_prompts: int
    held_out_pairs: int


class RewardOutcome(TypedDict):
    """What a run of task=reward trained."""

    held_out: RewardReport
    rewards: RewardSpread
    counts: RewardCounts
    trained_weights: int


class RewardResult(RewardOutcome, TrainedRun):
    """result.json of task=reward."""


class ScoreCounts(TypedDict):
    """Numbers of pairs of a scored file."""

    pairs: int
    too_long: int
    trimmed: int
    tokens_trimmed: int
    dropped: dict[str, int]  # rows by reason


class ScoreResult(RewardReport):
    """The report of task=score."""

    format: int
    reward: str  # the model, as the user wrote it
    path: str
    sha256: str
    counts: ScoreCounts


class PairRewards(TypedDict):
    """Rewards of a pair, a row of the .pairs.jsonl of task=score."""

    prompt_id: str
    source: str
    chosen: float
    rejected: float


class PairSetRecord(TypedDict):
    """How a split of a data set was read."""

    format: str  # format of its rows
    rows: int
    pairs: int
    dropped: dict[str, int]  # rows by reason
    columns: NotRequired[list[str]]  # columns that stay with the pairs; since format 2
    columns_left_out: NotRequired[dict[str, int]]  # number of rows whose value JSON cannot hold
    origin: dict[str, str]  # what identifies the rows


class PairsRecord(MadeBy):
    """pairs.json of task=pairs."""

    format: int
    sets: dict[str, PairSetRecord]  # by data set and split: "hh_rlhf/train"


class PromptsRecord(MadeBy):
    """prompts.json of task=prompts."""

    format: int
    pairs_sha256: str
    prompts_sha256: str
    split: str | None
    prompts: int
    columns: NotRequired[list[str]]  # columns of the pairs that stay with the prompts; since format 2
    column_conflicts: NotRequired[dict[str, int]]  # number of prompts whose rows differ in a column


class DrawnRecord(MadeBy):
    """The .json next to prompts_out of task=subsample: how its prompts were drawn."""

    format: int
    sampler: str
    sampler_settings: JsonObject
    seed: int
    budget: int
    prompts: int  # in the file: the drawn and the held-out ones
    held_out: float
    eval_prompts: int
    force_weights: bool
    weights_sha256: str
    prompts_sha256: str  # of the file


# A class could not have a field called "from".
TakenFrom = TypedDict("TakenFrom", {"from": NotRequired[str]})


class EmbeddingsRecord(MadeOn, TakenFrom):
    """embeddings.json of task=embed. With embedder=file it has `from`, the file that the rows were taken from."""

    format: int
    key: str  # hash of the embedder and the prompts
    embedder: JsonObject  # identity of the embedder
    model: str | None  # name of the language model, if the embedder uses it
    n: int
    dim: int
    too_long: list[str]  # ids of prompts that the embedder cannot read
    tokens: NotRequired[int]
    max_tokens: NotRequired[int]
    prompts_file: str
    time_sec: float
    texts: str  # joined digests of the texts


class RetrievedPrompt(TypedDict):
    """A prompt near a query."""

    id: str
    score: float  # cosine
    text: str
    source: str


R = TypeVar("R")


def read_kat_record(kind: type[R], path: Path, remedy: str) -> R:
    """Return the record in a JSON file. A file of 0.2.0 and earlier gets the number of its format, 1.

    Args:
        kind: TypedDict of the record.
        path: Path of the file.
        remedy: End of the message: how to repair the file.

    Raises:
        DamagedResultError: The file is not JSON, lacks a field, or has a later format.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content.setdefault("format", 1)
    return checked(kind, content, path, remedy)
