"""What is measured of a prompt's completions and of groups of prompts. Main entries: `MEASURES`, `PromptAnswers`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kat.collapse.answers import K, distinct, plain, utility
from kat.diversity.kernel import Array, cosines
from kat.diversity.metrics import TextSet, measure, metric_records, set_metrics
from kat.diversity.report import direction
from kat.records import AnsweredCompletion
from kat.world.truth import COVERED, entropy_estimate
from latentwire.stats.answers import classes_of, f1_score

QUALITY, KL, ENTROPY = "quality", "kl", "entropy_valid"
DISTINCT_GOOD, DISTINCT_VALID = "distinct_k_good", "distinct_valid"
TOPICS, ANSWERS, SIMILARITY = "topics_covered", "answers_covered", "seed_similarity"
EVERY_GROUP, ALL_PROMPTS = ("all", "rare", "common"), ("all",)
CONTEXT = ("reward", KL, "length", "ended")  # shown without tests: what the arms do besides their diversity
ONE_EACH = 4  # sets with one completion of each prompt, over which a metric across prompts is averaged


@dataclass(frozen=True)
class MeasureOf:
    """A measure.

    Attributes:
        label: Name for readers.
        direction: 1 if a higher value is more diverse, -1 if a lower value is, 0 if neither is.
        definition: Definition for readers.
        groups: Groups of prompts for which it is compared.
    """

    label: str
    direction: int
    definition: str
    groups: tuple[str, ...] = ALL_PROMPTS


MEASURES = {
    QUALITY: MeasureOf("quality", 0, "share of valid completions; without known valid answers the best word F1 with a "
                       "reference, and without references the recorded reward", EVERY_GROUP),
    ENTROPY: MeasureOf("entropy over valid answers", 1, "entropy of the distribution of the valid answers of a prompt, "
                       "in nats; prompts with fewer than two valid completions have no "
 "estimate", EVERY_GROUP),
    DISTINCT_VALID: MeasureOf("distinct valid answers", 1, "different valid answers among all completions of a "
                                "prompt", EVERY_GROUP),
    ANSWERS: MeasureOf("valid answers covered", 1, "share of the valid answers of a topic that some completion of its "
                       "prompts gives, mean over the topics", EVERY_GROUP),
    TOPICS: MeasureOf("topics covered", 1, f"share of the topics with a mean validity of {COVERED} or more",
                      EVERY_GROUP),
    "distinct_k": MeasureOf("distinct-k", 1, f"classes among the first {K} completions of a prompt (NoveltyBench)"),
    "utility_k": MeasureOf("utility-k", 1, f"quality of the first {K} completions that are new to their reader, with "
                           "weights .8^i (NoveltyBench); quality and diversity together"),
    DISTINCT_GOOD: MeasureOf("distinct-k, good ones", 1, f"classes among the good ones of the first {K} completions"),
    "reward": MeasureOf("recorded reward", 0, "reward of the run itself; arms with other reward functions have other "
                        "units"),
    KL: MeasureOf("KL from the base model", 0, "estimate in nats a completion"),
    "length": MeasureOf("length", 0, "tokens of a completion with its end"),
    "ended": MeasureOf("ended", 0, "share of the completions that ended within the token limit"),
    SIMILARITY: MeasureOf("similarity between seeds", -1, "probability that two completions of a prompt by the runs of "
                          "two seeds are equal"),
}  # fmt: skip


def text_measures() -> dict[str, MeasureOf]:
    """Return the metrics of task=diversity, within a prompt's completions and across prompts."""
    found = {}
    for level, words in (("within", "the completions of a prompt"), ("across", "one completion of each prompt")):
        for name, record in metric_records().items():
            if name in set_metrics():
                label = f"{record['label']}, {level} prompts"
                found[f"{level}/{name}"] = MeasureOf(label, direction(record), f"{record['definition']}; of {words}")
    return found


@dataclass(frozen=True)
class PromptFacts:
    """What the prompts file has about a prompt.

    Attributes:
        id: Its id.
        text: Its text.
        topic: Number of its topic; None without topics.
        topic_size: Number of prompts of the topic.
        valid: All valid answers; None if they are unknown.
        references: Reference answers; None without any.
    """

    id: str
    text: str
    topic: int | None
    topic_size: int
    valid: frozenset[str] | None
    references: tuple[str, ...] | None


@dataclass(frozen=True)
class AnswerRules:
    """What makes a completion good, and two completions the same."""

    good_from: float
    same_from: float


@dataclass(frozen=True)
class PromptAnswers:
    """The completions of a prompt with the facts about it."""

    completions: Sequence[AnsweredCompletion]
    facts: PromptFacts
    rules: AnswerRules

    @cached_property
    def texts(self) -> list[str]:
        """Return the completions with single spaces."""
        return [plain(one["text"]) for one in self.completions]

    @cached_property
    def quality(self) -> list[float]:
        """Return the quality of each completion, in the units of `MEASURES`."""
        if self.facts.valid is not None:
            return [float(text in self.facts.valid) for text in self.texts]
        if self.facts.references is not None:
            return [f1_score(text, self.facts.references) for text in self.texts]
        return [float(one["reward"]) for one in self.completions]

    @cached_property
    def good(self) -> list[bool]:
        """Return whether each completion is good."""
        return [value >= self.rules.good_from for value in self.quality]

    @cached_property
    def classes(self) -> Sequence[str] | Sequence[int]:
        """Return the class of each completion: its text where valid answers are known, else see `classes_of`."""
        return self.texts if self.facts.valid is not None else classes_of(self.texts, self.rules.same_from)

    @cached_property
    def valid(self) -> list[str]:
        """Return the valid completions, also repeated ones."""
        return [text for text in self.texts if text in (self.facts.valid or ())]

    def measured(self) -> dict[str, float]:
        """Return the measures of this prompt by name."""
        completions, n = self.completions, len(self.completions)
        found = {
            QUALITY: sum(self.quality) / n,
            "reward": sum(one["reward"] for one in completions) / n,
            "distinct_k": distinct(self.classes[:K]),
            DISTINCT_GOOD: distinct(self.classes[:K], self.good[:K]),
            "utility_k": utility(self.classes[:K], self.quality[:K]),
            "length": sum(one["tokens"] for one in completions) / n,
            "ended": sum(one["ended"] for one in completions) / n,
        }
        if self.facts.valid is not None:
            estimate = entropy_estimate(list(Counter(self.valid).values()))
            found |= {ENTROPY: math.nan if estimate is None else estimate, DISTINCT_VALID: distinct(self.valid)}
        if all("kl" in one for one in completions):
            found[KL] = sum(one["kl"] for one in completions) / n
        return found


def covered_topics(prompts: Sequence[PromptAnswers]) -> dict[str, float]:
    """Return the share of topics that are covered, and the share of each topic's valid answers that are given.

    Args:
        prompts: Prompts with topics and known valid answers.
    """
    given: dict[int, set[str]] = {}
    possible: dict[int, set[str]] = {}
    quality: dict[int, list[float]] = {}
    for prompt in prompts:
        topic, valid = prompt.facts.topic, prompt.facts.valid
        assert topic is not None and valid is not None
        given.setdefault(topic, set()).update(prompt.valid)
        possible.setdefault(topic, set()).update(valid)
        quality.setdefault(topic, []).extend(prompt.quality)
    return {
        TOPICS: float(np.mean([np.mean(values) >= COVERED for values in quality.values()])),
        ANSWERS: float(np.mean([len(given[topic]) / len(possible[topic]) for topic in possible])),
    }


def prompt_groups(facts: Sequence[PromptFacts]) -> dict[str, list[int]]:
    """Return the prompts of each group: all, and with topics rare and common.

    A topic with fewer prompts than the median topic is rare.

    Args:
        facts: The evaluated prompts.

    Returns:
        Indices into `facts`, without empty groups.
    """
    found = {"all": list(range(len(facts)))}
    sizes = {one.topic: one.topic_size for one in facts if one.topic is not None}
    if sizes:
        median = float(np.median(list(sizes.values())))
        for name, wanted in (("rare", True), ("common", False)):
            members = [
                i for i, one in enumerate(facts) if one.topic is not None and (one.topic_size < median) == wanted
            ]
            if members:
                found[name] = members
    return found


def word_sets(texts: Sequence[Sequence[str]]) -> tuple[list[TextSet], list[TextSet]]:
    """Return the completions of each prompt as sets, and sets with one completion of each prompt.

    The tokens are words, and the cosines are cosines of word counts: they need no model.

    Args:
        texts: The completions of M prompts, K of each.

    Returns:
        M sets of K texts, and at most ONE_EACH sets of M texts.
    """
    vocabulary: dict[str, int] = {}
    for text in (text for prompt in texts for text in prompt):
        for word in text.split():
            vocabulary.setdefault(word, len(vocabulary))
    across = list(zip(*texts, strict=True))[:ONE_EACH]
    return [_set(prompt, vocabulary) for prompt in texts], [_set(each, vocabulary) for each in across]


def _set(texts: Sequence[str], vocabulary: Mapping[str, int]) -> TextSet:
    ids = [[vocabulary[word] for word in text.split()] for text in texts]
    own = {word: column for column, word in enumerate(sorted({word for row in ids for word in row}))}
    counts = np.zeros((len(texts), max(1, len(own))))
    for row, words in zip(counts, ids, strict=True):
        for word in words:
            row[own[word]] += 1
    norms = np.linalg.norm(counts, axis=1, keepdims=True)
    return TextSet(ids, list(texts), cosines(counts / np.maximum(norms, 1e-12), norms[:, 0] == 0), len(vocabulary))


def text_values(texts: Sequence[Sequence[str]]) -> tuple[dict[str, Array], dict[str, float]]:
    """Return the metrics of task=diversity within each prompt, (M,) for each metric, and across all prompts.

    Args:
        texts: The completions of M prompts, K >= 2 of each.
    """
    within, across = word_sets(texts)
    rows, sets = [measure(one) for one in within], [measure(one) for one in across]
    return (
        {f"within/{name}": np.array([row[name] for row in rows]) for name in rows[0]},
        {f"across/{name}": float(np.mean([one[name] for one in sets])) for name in sets[0]},
    )
