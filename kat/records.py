"""Types of the records that the tasks of kat write and pass on. Main entries: `GrpoResult`, `RewardResult`.

A record is a dict of plain values, as its JSON file has it; an interval is a list of its two ends. The number `format`
is `latentwire.records.FORMAT`.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from latentwire.harness.results import JsonObject

Ends = list[float]  # low and high end of a 95% interval


class MadeBy(TypedDict):
    """The code that made a file."""

    versions: dict[str, str]
    git_commit: str | None


class MadeOn(MadeBy):
    """The code and the machine that made a file."""

    device: str
    processes: int


class TrainedRun(MadeOn):
    """Fields of every result of a training run."""

    identity: JsonObject  # settings and inputs that determine the result
    name: str
    config: JsonObject


# Numbers of one step by name, a row of metrics.jsonl without its step; the names of reward functions are among them.
StepMetrics = dict[str, float]
StepTimings = dict[str, float]  # a row of timings.jsonl without its step


class AnsweredCompletion(TypedDict):
    """A completion of a held-out prompt."""

    text: str
    tokens: int  # with the end token
    ended: bool  # whether it ended within the token limit
    reward: float
    kl: NotRequired[float]  # divergence from the reference policy in nats, summed over the tokens


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
    kl: NotRequired[float]  # mean divergence from the reference policy, in nats a token
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
    steps_without_update: int
    train_prompts: int
    never_drawn: int
    held_out_prompts: int
    too_long: int


class GrpoResult(TrainedRun):
    """result.json of task=grpo."""

    format: int
    steps: int
    held_out: HeldOutEvaluation | None  # after the last step; None without held-out prompts
    held_out_before: HeldOutEvaluation | None
    held_out_curve: list[HeldOutEvaluation]
    last_step: StepMetrics
    counts: GrpoCounts
    too_long: list[str]  # ids of prompts that leave no room for a completion
    trained_weights: int
    frozen_blocks_shared: int
    time_sec: float


# A class could not have a field called "from".
CalibrationBin = TypedDict(
    "CalibrationBin",
    {"from": float, "to": float, "pairs": int, "confidence": float | None, "accuracy": float | None},
)


class Calibration(TypedDict):
    """Expected calibration error of a reward model, with its bins."""

    error: float
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


class RewardResult(TrainedRun):
    """result.json of task=reward."""

    format: int
    held_out: RewardReport
    rewards: RewardSpread
    counts: RewardCounts
    trained_weights: int
