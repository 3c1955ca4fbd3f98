"""Comparison of two arms prompt by prompt, with paired intervals. Main entry: `compare_arms()`.

Every metric is written as one value for each prompt, with the metric as their mean. Prompts are then the units of all
intervals. The levels are:

- "within": the diversity of the K completions of a prompt.
- "across": the diversity of a set with one completion of each prompt, averaged over K sets. Such a set does not divide
  into prompts, and drawing a prompt twice would add copies, which looks like collapse. The value of a prompt is
  therefore its leave-one-out pseudo-value (Tukey's jackknife), shifted so that their mean is the metric of the set.
- "each": means and rates over single completions. A rate is a ratio of totals, also with pseudo-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kat.diversity.bleu import Tokens
from kat.diversity.kernel import Array, cosines
from kat.diversity.metrics import (
    PromptCompletions,
    Ratio,
    TextSet,
    completion_metrics,
    measure,
    measure_without,
    require_numbers,
)
from kat.diversity.records import ArmRow, DensityThresholds
from latentwire.harness.errors import UserError
from latentwire.stats.comparison import compare_paired
from latentwire.stats.seeds import mean_over_seeds

MIN_GROUP = 10  # smallest number of prompts in a group; an interval over fewer is unreliable
LEVELS = {
    "within": "K completions of one prompt",
    "across": "one completion of each prompt",
    "each": "each completion",
}
Key = tuple[str, str]  # level and metric


@dataclass(frozen=True)
class Samples:
    """K completions of each of M prompts by one arm.

    `ids` are token ids without end tokens, and `strings` are their texts. `emb` are unit rows, (M, K, D), and `empty`
    marks completions without text, (M, K). `entropy` has one number for each drawn token, including end tokens.
    `ended` marks completions that ended within the token limit.
    """

    ids: list[list[Tokens]]
    strings: list[list[str]]
    emb: Array
    empty: NDArray[np.bool_]
    entropy: list[list[Sequence[float]]]
    ended: list[list[bool]]

    def prompt(self, row: int) -> PromptCompletions:
        """Return the completions of one prompt."""
        return PromptCompletions(self.ids[row], self.strings[row], self.entropy[row], self.ended[row])

    def one_each(self, group: Sequence[int], number: int, vocabulary: int) -> TextSet:
        """Return completion `number` of each prompt of a group as a set."""
        rows = list(group)
        return TextSet(
            [self.ids[row][number] for row in rows],
            [self.strings[row][number] for row in rows],
            cosines(self.emb[rows, number], self.empty[rows, number]),
            vocabulary,
        )


def common_lengths(arms: Sequence[Sequence[Sequence[Tokens]]]) -> list[list[int]]:
    """Return the shortest length over all arms for each prompt and completion number, M lists of K lengths.

    Completions cut to these lengths have the same lengths in every arm, within a prompt and in a set across prompts.

    Args:
        arms: The token ids of each arm, by prompt and completion number.
    """
    return [
        [min(map(len, completions)) for completions in zip(*prompt, strict=True)] for prompt in zip(*arms, strict=True)
    ]


def cut(ids: Sequence[Sequence[Tokens]], lengths: Sequence[Sequence[int]]) -> list[list[Tokens]]:
    """Return the completions cut to their lengths."""
    return [
        [row[:length] for row, length in zip(rows, row_lengths, strict=True)]
        for rows, row_lengths in zip(ids, lengths, strict=True)
    ]


def groups_by_density(
    prompt_ids: Sequence[str], ids: Sequence[str], density: Tensor, rare_share: float, common_share: float
) -> tuple[dict[str, list[int]], DensityThresholds]:
    """Return the rare and the common prompts, and the thresholds.

    A rare prompt has a density up to the quantile `rare_share` of all N densities. A common prompt has a density from
    the quantile 1 - `common_share`. A prompt without a density, because it was too long for the embedder, is neither.

    Args:
        prompt_ids: The ids of the sampled prompts.
        ids: The ids of the N prompts with a density.
        density: Their densities, (N,).
        rare_share: The share of rare prompts, between 0 and 1.
        common_share: The share of common prompts, between 0 and 1. Both shares add up to at most 1.

    Returns:
        The groups rare and common as indices into `prompt_ids`, and the thresholds.

    Raises:
        UserError: A share is out of range.
    """
    if not (0 < rare_share < 1 and 0 < common_share < 1 and rare_share + common_share <= 1 + 1e-9):
        raise UserError(
            f"rare_share={rare_share}, common_share={common_share}: must be between 0 and 1, with a sum of at most 1"
        )
    values = density.numpy()
    low, high = float(np.quantile(values, rare_share)), float(np.quantile(values, 1 - common_share))
    known = dict(zip(ids, values.tolist(), strict=True))
    sampled = [known.get(name) for name in prompt_ids]
    groups = {
        "rare": [row for row, value in enumerate(sampled) if value is not None and value <= low],
        "common": [row for row, value in enumerate(sampled) if value is not None and value >= high],
    }
    return groups, {"rare_at_most": low, "common_at_least": high, "without_density": sampled.count(None)}


def within(samples: Samples, vocabulary: int) -> dict[Key, Array]:
    """Return the diversity of the completions of each prompt, (M,) for each metric."""
    kernels = cosines(samples.emb, samples.empty)  # (M, K, K)
    rows = [
        measure(TextSet(ids, strings, kernel, vocabulary))
        for ids, strings, kernel in zip(samples.ids, samples.strings, kernels, strict=True)
    ]
    return {("within", name): np.array([row[name] for row in rows]) for name in rows[0]}


def across(samples: Samples, group: Sequence[int], vocabulary: int) -> dict[Key, Array]:
    """Return the value of each prompt for the diversity across the prompts of a group.

    Args:
        samples: The completions.
        group: The indices of the n prompts.
        vocabulary: The number of tokens in the vocabulary.

    Returns:
        The values for each metric, (n,). Their mean is the metric, averaged over the K sets.
    """
    found: dict[str, list[Array]] = {}
    for number in range(len(samples.ids[0])):
        texts = samples.one_each(group, number, vocabulary)
        left_out = measure_without(texts)
        for name, whole in measure(texts).items():
            found.setdefault(name, []).append(pseudo_values(whole, left_out[name]))
    return {("across", name): np.mean(values, axis=0) for name, values in found.items()}


def each(samples: Samples, group: Sequence[int], matched: bool) -> dict[Key, Array]:
    """Return the value of each prompt for the means and rates over single completions.

    Args:
        samples: The completions.
        group: The indices of the n prompts.
        matched: Whether lengths are matched. Metrics that are not compared with matched lengths are then left out.

    Returns:
        The values for each metric, (n,). Their mean is the metric.
    """
    prompts = [samples.prompt(row) for row in group]
    found: dict[Key, Array] = {}
    for name, metric in completion_metrics().items():
        if matched and not metric.matched:
            continue
        values = [metric.value(prompt) for prompt in prompts]
        ratios = [value for value in values if isinstance(value, Ratio)]
        if ratios:
            values = list(rate([ratio.count for ratio in ratios], [ratio.size for ratio in ratios]))
        found["each", name] = require_numbers(name, metric, values, (len(prompts),))
    return found


def pseudo_values(whole: float, left_out: Array) -> Array:
    """Return one value for each of n members of a set, with the metric of the whole set as their mean.

    Source: Tukey 1958. The usual pseudo-value is n times the metric minus n - 1 times the metric without the member.
    Their mean corrects the bias of order 1/n. Here the values are shifted, so that their mean is the metric itself.

    Args:
        whole: The metric of the set.
        left_out: The metric of the set without each member, (n,).
    """
    values: Array = whole + (len(left_out) - 1) * (left_out.mean() - left_out)
    return values


def rate(counts: Sequence[float], sizes: Sequence[float]) -> Array:
    """Return one value for each prompt; their mean is the sum of the counts over the sum of the sizes, 0 for 0/0."""
    numerator, denominator = np.asarray(counts, dtype=np.float64), np.asarray(sizes, dtype=np.float64)

    def ratio(a: Array, b: Array) -> Array:
        result: Array = np.divide(a, b, out=np.zeros_like(a), where=b > 1e-9)
        return result

    return pseudo_values(
        float(ratio(numerator.sum(keepdims=True), denominator.sum(keepdims=True))[0]),
        ratio(numerator.sum() - numerator, denominator.sum() - denominator),
    )


def compare_arms(first: Mapping[Key, Array], second: Mapping[Key, Array], seed: int) -> list[ArmRow]:
    """Return the metrics of two arms over the same n prompts, and second minus first, all with intervals.

    A difference has the 95% interval and the p-value of random flips of signs over prompts. Holm's correction covers
    the given metrics. The value of an arm has Student's interval with half of the observed skewness corrected.

    Args:
        first: The value of each prompt for each metric, (n,).
        second: The same for the other arm.
        seed: The seed of the flips.
    """
    keys = list(first)
    a, b = np.stack([first[key] for key in keys]), np.stack([second[key] for key in keys])  # (S, n)
    rows = zip(mean_over_seeds(a), mean_over_seeds(b), compare_paired(b - a, np.zeros(a.shape[1]), seed), strict=True)
    return [
        {
            "level": level,
            "metric": name,
            "first": {"value": one.difference, "interval": list(one.interval)},
            "second": {"value": two.difference, "interval": list(two.interval)},
            "difference": both.difference,
            "interval": list(both.interval),
            "p_value": both.p_value,
            "p_holm": both.p_holm,
        }
        for (level, name), (one, two, both) in zip(keys, rows, strict=True)
    ]
