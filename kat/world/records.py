"""Types of what the tasks world and truth write. Main entries: `Truth`, `WorldResult`."""

from __future__ import annotations

from typing import TypedDict

from latentwire.records import MadeOn, TrainedRun


class PromptTruth(TypedDict):
    """What is true of the answers of a policy to one prompt; a row of truth.jsonl."""

    id: str
    topic: int
    topic_size: int  # number of prompts of the topic
    is_rare: bool  # whether the topic has fewer prompts than the median topic
    answers: int  # number of valid answers
    validity: float  # share, or probability, of valid answers
    entropy: float | None  # in nats, among the valid answers; None if it cannot be estimated
    distinct: float  # number of different valid answers in DRAWS answers


class TruthMeans(TypedDict):
    """Means over topics of means over a topic's prompts, so that every topic counts the same."""

    prompts: int
    topics: int
    topics_covered: int  # topics with a mean validity of at least COVERED
    validity: float
    entropy: float | None
    entropy_share: float | None  # entropy over its largest value, the logarithm of the number of valid answers
    distinct: float
    without_entropy: int  # prompts with too few valid answers to estimate an entropy


class TopicTruth(TypedDict):
    """Means over the prompts of a topic."""

    topic: int
    topic_size: int
    prompts: int
    validity: float
    entropy: float | None
    entropy_share: float | None
    distinct: float


class Truth(TypedDict):
    """What is true of the answers of a policy. Rare topics have fewer prompts than the median topic."""

    all: TruthMeans
    rare: TruthMeans | None  # None without such prompts
    common: TruthMeans | None
    by_topic: list[TopicTruth]


class WorldOutcome(TypedDict):
    """What task=world made."""

    steps: int
    topics: int
    prompts: int
    valid_answers: list[int]  # smallest and largest number of valid answers of a prompt
    vocabulary: int
    weights: int
    truth: Truth  # of the base model, from its probabilities
    ended: float  # share of sampled answers that end within ANSWER_TOKENS tokens
    length: float  # their mean number of tokens, with the end token


class WorldResult(WorldOutcome, TrainedRun):
    """result.json of task=world."""


class TruthReport(MadeOn):
    """truth.json of task=truth."""

    format: int
    policy: str
    policy_files: dict[str, str]  # digest of each file of the model
    prompts_file: str
    prompts_sha256: str
    truth: Truth
