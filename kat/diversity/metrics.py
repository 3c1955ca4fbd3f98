"""Metrics of diversity, and the registry to which your own module adds more.

Main entries: `register_diversity_metric()`, `register_completion_metric()`, `measure()` and `measure_without()`.

A metric of sets measures n texts: the K completions of one prompt, or one completion of each of n prompts. Empty texts
count as copies of one another, so a model that has collapsed to silence scores like one that repeats itself. A metric
of completions measures the single completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from kat.diversity.bleu import Tokens, self_bleu, self_bleu_without
from kat.diversity.kernel import Array, mean_distance, mean_distance_without, vendi
from kat.diversity.phrases import em_dashes, not_just_but, words
from kat.diversity.records import MetricRecord
from kat.diversity.repetition import compression_ratio, ead, ead_without, token_entropy, token_entropy_without
from kat.diversity.user_errors import explaining, place_of
from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry

Define = TypeVar("Define", bound=Callable[..., Any])


@dataclass(frozen=True)
class TextSet:
    """A set of n texts, n at least 2.

    `ids` are the token ids without end tokens, and `strings` the same texts as strings. `kernel` are their cosines,
    (n, n), from `kat.diversity.kernel.cosines`. `vocabulary` is the number of tokens in the vocabulary.
    """

    ids: Sequence[Tokens]
    strings: Sequence[str]
    kernel: Array
    vocabulary: int

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, i: int) -> TextSet:
        """Return the set without text i."""
        return TextSet(
            [*self.ids[:i], *self.ids[i + 1 :]],
            [*self.strings[:i], *self.strings[i + 1 :]],
            np.delete(np.delete(self.kernel, i, 0), i, 1),
            self.vocabulary,
        )


@dataclass(frozen=True)
class PromptCompletions:
    """The K completions of one prompt.

    `ids` are the token ids without end tokens, and `strings` their texts. `entropy` has the entropy of the distribution
    of each drawn token in nats, including end tokens. `ended` marks completions that ended within the token limit.
    """

    ids: Sequence[Tokens]
    strings: Sequence[str]
    entropy: Sequence[Sequence[float]]
    ended: Sequence[bool]


@dataclass(frozen=True)
class Ratio:
    """A count and its size; a metric of ratios is the sum of the counts over the sum of the sizes, 0 for 0/0."""

    count: float
    size: float


@dataclass(frozen=True)
class Metric:
    """What a metric is called and what it shows; `define` is the class or function that computes it."""

    label: str
    higher_is_more_diverse: bool | None
    definition: str
    define: Callable[..., object]


@dataclass(frozen=True)
class SetMetric(Metric):
    """A metric of a set of texts: its value, and its values without each text in turn, (n,)."""

    value: Callable[[TextSet], float]
    without: Callable[[TextSet], Sequence[float] | Array]


@dataclass(frozen=True)
class CompletionMetric(Metric):
    """A metric of single completions: the value of each prompt, whose mean is the metric, or a ratio.

    `matched` tells whether it is compared with lengths matched too, and `counts` whether it is a ratio whose total
    count is shown for each checkpoint.
    """

    value: Callable[[PromptCompletions], float | Ratio]
    matched: bool
    counts: bool


METRICS: Registry[SetMetric | CompletionMetric] = Registry("diversity metric", "metric")


def register_diversity_metric(
    name: str, *, label: str, higher_is_more_diverse: bool | None, definition: str
) -> Callable[[Define], Define]:
    """Return a decorator that registers a metric of sets of texts.

    It takes a function from a `TextSet` to a finite number. A class with the method `value` for that may also have a
    method `without`, which returns the values without each text in turn, (n,), faster than n calls of `value`.

    Args:
        name: Name of the metric in the results.
        label: Name of the metric for readers.
        higher_is_more_diverse: Whether a higher value is more diverse; None if neither direction is.
        definition: Definition for readers: the formula, its source and its range.

    Raises:
        UserError: The name is taken, or a class has no method `value`.
    """

    def register(define: Define) -> Define:
        owner = define() if isinstance(define, type) else None
        if isinstance(define, type) and not hasattr(owner, "value"):
            raise UserError(f"diversity metric {name}: {define.__qualname__} has no method value; write "
                            "def value(self, texts), which returns a number")  # fmt: skip
        value = getattr(owner, "value", define)
        value = explaining(name, define, value)
        own = getattr(owner, "without", None)
        without = partial(_without_each, value) if own is None else explaining(name, define, own)
        METRICS.add(name, SetMetric(label, higher_is_more_diverse, definition, define, value, without))
        return define

    return register


def register_completion_metric(
    name: str,
    *,
    label: str,
    higher_is_more_diverse: bool | None,
    definition: str,
    matched: bool = True,
    counts: bool = False,
) -> Callable[[Define], Define]:
    """Return a decorator that registers a metric of single completions.

    It takes a function from the `PromptCompletions` of one prompt to a number, or to a `Ratio`.

    Args:
        name: Name of the metric in the results.
        label: Name of the metric for readers.
        higher_is_more_diverse: Whether a higher value is more diverse; None if neither direction is.
        definition: Definition for readers: the formula, its source and its range.
        matched: Whether it is compared with lengths matched too.
        counts: Whether it is a ratio whose total count is shown for each checkpoint.

    Raises:
        UserError: The name is taken.
    """

    def register(define: Define) -> Define:
        value = explaining(name, define, define)
        metric = CompletionMetric(label, higher_is_more_diverse, definition, define, value, matched, counts)
        METRICS.add(name, metric)
        return define

    return register


def set_metrics() -> dict[str, SetMetric]:
    """Return the metrics of sets by name."""
    return {name: metric for name, metric in METRICS.items() if isinstance(metric, SetMetric)}


def completion_metrics() -> dict[str, CompletionMetric]:
    """Return the metrics of single completions by name."""
    return {name: metric for name, metric in METRICS.items() if isinstance(metric, CompletionMetric)}


def metric_records() -> dict[str, MetricRecord]:
    """Return the descriptions of all metrics by name, for a result.

    Raises:
        UserError: The source of a plugin's metric cannot be read.
    """
    return {
        name: {
            "label": metric.label,
            "higher_is_more_diverse": metric.higher_is_more_diverse,
            "definition": metric.definition,
            "source": METRICS.source_digest(name),
        }
        for name, metric in METRICS.items()
    }


def measure(texts: TextSet) -> dict[str, float]:
    """Return all metrics of a set.

    Raises:
        UserError: A metric is not a finite number.
    """
    return {
        name: float(require_numbers(name, metric, metric.value(texts), ())) for name, metric in set_metrics().items()
    }


def measure_without(texts: TextSet) -> dict[str, Array]:
    """Return all metrics of a set without each text in turn, (n,) for each metric; n at least 3.

    Raises:
        UserError: A metric does not return n finite numbers.
    """
    return {
        name: require_numbers(name, metric, metric.without(texts), (len(texts),))
        for name, metric in set_metrics().items()
    }


def require_numbers(name: str, metric: Metric, values: object, shape: tuple[int, ...]) -> Array:
    """Return what a metric returned as float64, after a check of its shape.

    Raises:
        UserError: The values are not finite numbers of this shape.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.asarray(math.nan)
    if found.shape != shape or not np.isfinite(found).all():
        needed = "one finite number" if shape == () else f"{shape[0]} finite numbers"
        raise UserError(f"diversity metric {name}: returned {str(values)[:80]} instead of {needed}; fix "
                        f"{place_of(metric.define)}")  # fmt: skip
    return found


def _without_each(value: Callable[[TextSet], float], texts: TextSet) -> list[float]:
    return [value(texts.without(i)) for i in range(len(texts))]


@register_diversity_metric(
    "ead",
    label="expectation-adjusted distinct-n",
    higher_is_more_diverse=True,
    definition="distinct n-grams divided by the expected number for uniform draws from all possible n-grams, mean over "
    "n = 1 to 5 (Liu et al. 2022, averaged as in Kirk et al. 2023). Empty texts have 0, and texts without repetition "
    "about 1. Values slightly above 1 occur, because uniform draws also repeat",
)
class _DistinctNGrams:
    def value(self, texts: TextSet) -> float:
        return ead(texts.ids, texts.vocabulary)

    def without(self, texts: TextSet) -> list[float]:
        return ead_without(texts.ids, texts.vocabulary)


@register_diversity_metric(
    "self_bleu",
    label="self-BLEU",
    higher_is_more_diverse=False,
    definition="mean BLEU-4 of each text with the others as references (Zhu et al. 2018), 0 to 1; copies have 1",
)
class _SelfBleu:
    def value(self, texts: TextSet) -> float:
        return self_bleu(texts.ids)

    def without(self, texts: TextSet) -> list[float]:
        return self_bleu_without(texts.ids)


@register_diversity_metric(
    "embedding_distance",
    label="embedding distance",
    higher_is_more_diverse=True,
    definition="mean of 1 - cosine over all pairs of texts, 0 to 2; copies have 0",
)
class _EmbeddingDistance:
    def value(self, texts: TextSet) -> float:
        return mean_distance(texts.kernel)

    def without(self, texts: TextSet) -> Array:
        return mean_distance_without(texts.kernel)


@register_diversity_metric(
    "vendi",
    label="Vendi score",
    higher_is_more_diverse=True,
    definition="effective number of texts, from 1 for copies to n: the exponential of the entropy of the eigenvalues "
    "of the cosine matrix over n (Friedman and Dieng 2023)",
)
def _vendi(texts: TextSet) -> float:
    return vendi(texts.kernel)


@register_diversity_metric(
    "compression_ratio",
    label="compression ratio",
    higher_is_more_diverse=False,
    definition="bytes of the texts, one a line, divided by their bytes after zlib at level 9 (Shaib et al. 2024). "
    "Repetition raises it. Values below 1 are possible, because very short texts do not compress",
)
def _compression(texts: TextSet) -> float:
    return compression_ratio(texts.strings)


@register_diversity_metric(
    "token_entropy",
    label="token entropy",
    higher_is_more_diverse=True,
    definition="entropy of the distribution of tokens in the texts, in nats; 0 for a single token",
)
class _TokenEntropy:
    def value(self, texts: TextSet) -> float:
        return token_entropy(texts.ids)

    def without(self, texts: TextSet) -> list[float]:
        return token_entropy_without(texts.ids)


@register_completion_metric(
    "length",
    label="length",
    higher_is_more_diverse=None,
    definition="tokens of a completion, without the end token",
    matched=False,
)
def _length(prompt: PromptCompletions) -> float:
    return float(np.mean([len(ids) for ids in prompt.ids]))


@register_completion_metric(
    "ended",
    label="ended",
    higher_is_more_diverse=None,
    definition="share of the completions that ended within the token limit",
    matched=False,
)
def _ended(prompt: PromptCompletions) -> float:
    return float(np.mean(prompt.ended))


@register_completion_metric(
    "policy_entropy",
    label="policy entropy",
    higher_is_more_diverse=True,
    definition="mean entropy of the distribution of each drawn token, including end tokens, in nats, with temperature "
    "and before top_p",
)
def _policy_entropy(prompt: PromptCompletions) -> Ratio:
    entropies = [float(value) for values in prompt.entropy for value in values]
    return Ratio(sum(entropies), len(entropies))


@register_completion_metric(
    "em_dashes",
    label="em-dashes",
    higher_is_more_diverse=None,
    definition="em-dashes (not en-dashes) per 1,000 words of the completions",
    counts=True,
)
def _em_dashes(prompt: PromptCompletions) -> Ratio:
    return Ratio(sum(map(em_dashes, prompt.strings)), 1e-3 * sum(map(words, prompt.strings)))


@register_completion_metric(
    "not_just_but",
    label="not just X but Y",
    higher_is_more_diverse=None,
    definition='phrases "not just (n\'t just) ... but" within a sentence, per 1,000 words',
    counts=True,
)
def _not_just_but(prompt: PromptCompletions) -> Ratio:
    return Ratio(sum(map(not_just_but, prompt.strings)), 1e-3 * sum(map(words, prompt.strings)))
