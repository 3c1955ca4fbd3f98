"""What is true of a policy's answers in a planted world. Main entries: `truth_of_completions()`, `truth_of()`.

An answer is valid if it is in the column `valid` of its prompt. The measures of a prompt are the validity, the entropy
among its valid answers, and the number of different valid answers in DRAWS answers. They come from sampled completions
here, or from a model's probabilities (`kat.world.exact`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from kat.data.prompts import Prompt, read_prompts
from kat.world.records import PromptTruth, TopicTruth, Truth, TruthMeans
from latentwire.harness.errors import UserError

DRAWS = 16  # answers of a prompt among which different valid ones are counted
COLUMNS = ("topic", "topic_size", "valid")  # of a prompts file, needed by the measures
COVERED = 0.75  # mean validity from which a topic is covered


@dataclass(frozen=True)
class Question:
    """A prompt with what is known about it.

    Attributes:
        id: Its id.
        text: Its text.
        topic: Its topic.
        topic_size: Number of prompts of the topic.
        is_rare: Whether the topic has fewer prompts than the median topic.
        valid: Its valid answers.
    """

    id: str
    text: str
    topic: int
    topic_size: int
    is_rare: bool
    valid: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Return the prompts of a world with what is known about them.

    Args:
        path: The prompts file of task=world, or another one with its columns.

    Raises:
        UserError: The file cannot be read, or a row lacks one of the columns topic, topic_size and valid.
    """
    prompts, place = read_prompts(path), f"prompts_file={path}"
    rows: list[tuple[Prompt, int, int, list[str]]] = []
    for prompt in prompts:
        topic, size, valid = (prompt.columns.get(name) for name in COLUMNS)
        if not isinstance(topic, int) or not isinstance(size, int) or not _are_answers(valid):
            raise UserError(
                f"{place}: the prompt {prompt.id} has no readable {', '.join(COLUMNS)}; give the prompts file of "
                "task=world"
            )
        rows.append((prompt, topic, size, [str(answer) for answer in valid]))
    median = float(np.median(list({topic: size for _, topic, size, _ in rows}.values())))
    return [
        Question(prompt.id, prompt.text, topic, size, size < median, tuple(valid))
        for prompt, topic, size, valid in rows
    ]


def _are_answers(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(answer, str) for answer in value)


def is_valid(completion: str, valid: Sequence[str]) -> bool:
    """Return whether a completion is a valid answer, apart from white space."""
    return " ".join(completion.split()) in valid


def favoured(valid: Sequence[str]) -> frozenset[str]:
    """Return the third of valid answers, rounded up, that a biased reward favours: those with the smallest SHA-256."""
    ranked = sorted(valid, key=lambda answer: hashlib.sha256(answer.encode()).digest())
    return frozenset(ranked[: math.ceil(len(ranked) / 3)])


def answer_rewards(completions: Sequence[str], valid: Sequence[Sequence[str]], bias: float = 0.0) -> list[float]:
    """Return 1 for a valid answer, 1 + bias for a favoured valid one, and 0 for any other completion.

    Args:
        completions: B texts.
        valid: Valid answers to the prompt of each completion.
        bias: Bonus of the answers of `favoured`. It imitates the taste of a reward model.
    """
    return [
        (1.0 + bias * (" ".join(text.split()) in favoured(answers)) if bias else 1.0)
        if is_valid(text, answers)
        else 0.0
        for text, answers in zip(completions, valid, strict=True)
    ]


def entropy_estimate(counts: Sequence[int]) -> float | None:
    """Return the entropy of a distribution in nats, estimated from counts of draws; None for fewer than two draws.

    The estimator of Chao, Wang and Jost 2013 (Methods in Ecology and Evolution 4, 1091): the exact contribution of the
    answers that were seen, and an estimate for the others from the numbers of answers seen once and twice. The plain
    entropy of the shares is too low by about (answers - 1) / (2 draws). This error would differ between a policy that
    answers validly half of the time and one that always does.

    Args:
        counts: Number of draws of each answer that was seen.
    """
    n = sum(counts)
    if n < 2:
        return None
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n))])  # sum of 1 / k for k up to each index
    seen = sum(count / n * (harmonic[n - 1] - harmonic[count - 1]) for count in counts if count < n)
    once, twice = (sum(count == times for count in counts) for times in (1, 2))
    if not once:
        return float(seen)
    rest = 2 * twice / ((n - 1) * once + 2 * twice) if twice else 2 / ((n - 1) * (once - 1) + 2)
    if rest == 1:  # one answer was seen once and none twice
        return float(seen)
    missing = -math.log(rest) - sum((1 - rest) ** r / r for r in range(1, n))
    return float(seen + once / n * (1 - rest) ** (1 - n) * missing)


def expected_distinct(counts: Sequence[int], total: int, draws: int) -> float:
    """Return the mean number of different valid answers in `draws` of `total` completions without replacement.

    Args:
        counts: Number of completions of each valid answer.
        total: Number of all completions.
        draws: Number of completions in a draw, at most `total`.
    """
    ways = math.comb(total, draws)
    return sum(1 - math.comb(total - count, draws) / ways for count in counts)


def truth_of_completions(
    questions: Sequence[Question], completions: Mapping[str, Sequence[str]]
) -> tuple[list[PromptTruth], Truth]:
    """Return what is true of sampled completions, prompt by prompt and in all.

    Args:
        questions: All prompts of the world. Those without completions are left out.
        completions: Completions of each prompt, by its id.

    Raises:
        UserError: A prompt is not of this world, or has no completion.
    """
    if unknown := completions.keys() - {question.id for question in questions}:
        raise UserError(
            f"completions of {min(unknown)}: the prompts file has no such prompt; give the prompts file of these runs"
        )
    rows = []
    for question in questions:
        if question.id not in completions:
            continue
        texts = [" ".join(text.split()) for text in completions[question.id]]
        if not texts:
            raise UserError(f"the prompt {question.id} has no completion; sample at least one")
        counts = list(Counter(text for text in texts if text in question.valid).values())
        distinct = expected_distinct(counts, len(texts), min(DRAWS, len(texts)))
        rows.append(_row(question, sum(counts) / len(texts), entropy_estimate(counts), distinct))
    return rows, truth_of(rows)


def truth_of_probabilities(question: Question, probabilities: Sequence[float]) -> PromptTruth:
    """Return what is true of a policy whose probability of each valid answer is known.

    Args:
        question: The prompt.
        probabilities: Probability of each of its valid answers, with the end token.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    total = float(p.sum())
    shares = p[p > 0] / total
    distinct = float((1 - (1 - p) ** DRAWS).sum())
    return _row(question, total, float(-(shares * np.log(shares)).sum()), distinct)


def _row(question: Question, validity: float, entropy: float | None, distinct: float) -> PromptTruth:
    return {
        "id": question.id,
        "topic": question.topic,
        "topic_size": question.topic_size,
        "is_rare": question.is_rare,
        "answers": len(question.valid),
        "validity": validity,
        "entropy": entropy,
        "distinct": distinct,
    }


def truth_of(rows: Sequence[PromptTruth]) -> Truth:
    """Return the means of prompts, for all topics, for rare and for common ones.

    Raises:
        UserError: `rows` is empty.
    """
    if not rows:
        raise UserError("no prompt of the world was answered; give completions of its prompts")
    rare = [row for row in rows if row["is_rare"]]
    common = [row for row in rows if not row["is_rare"]]
    return {
        "all": _means(rows),
        "rare": _means(rare) if rare else None,
        "common": _means(common) if common else None,
        "by_topic": _by_topic(rows),
    }


def _by_topic(rows: Sequence[PromptTruth]) -> list[TopicTruth]:
    """Return the means of each topic, in the order of their numbers."""
    by_topic: dict[int, list[PromptTruth]] = {}
    for row in rows:
        by_topic.setdefault(row["topic"], []).append(row)
    return [_topic(by_topic[number]) for number in sorted(by_topic)]


def _topic(rows: Sequence[PromptTruth]) -> TopicTruth:
    """Return the means over the prompts of a topic."""
    shares = [None if row["entropy"] is None else row["entropy"] / math.log(row["answers"]) for row in rows]
    return {
        "topic": rows[0]["topic"],
        "topic_size": rows[0]["topic_size"],
        "prompts": len(rows),
        "validity": float(np.mean([row["validity"] for row in rows])),
        "entropy": _mean([row["entropy"] for row in rows]),
        "entropy_share": _mean(shares),
        "distinct": float(np.mean([row["distinct"] for row in rows])),
    }


def _means(rows: Sequence[PromptTruth]) -> TruthMeans:
    topics = _by_topic(rows)
    return {
        "prompts": len(rows),
        "topics": len(topics),
        "topics_covered": sum(topic["validity"] >= COVERED for topic in topics),
        "validity": float(np.mean([topic["validity"] for topic in topics])),
        "entropy": _mean([topic["entropy"] for topic in topics]),
        "entropy_share": _mean([topic["entropy_share"] for topic in topics]),
        "distinct": float(np.mean([topic["distinct"] for topic in topics])),
        "without_entropy": sum(row["entropy"] is None for row in rows),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
