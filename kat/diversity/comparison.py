"""Arms compared prompt by prompt: what each prompt adds to every metric, paired differences, matched lengths.

Every metric becomes one value for each prompt whose mean is the metric, so that one paired bootstrap over prompts
serves all of them:

- "within": the diversity of a prompt's own K completions.
- "across": the diversity of sets of one completion of each prompt, the mean of the K sets there are. A set does not
  break up into prompts, and drawing prompts twice would put copies into it, which looks like collapse. A prompt's
  value is its leave-one-out pseudo-value (Tukey's jackknife), moved so that their mean is the metric of the set.
- "each": means and rates over the completions, one by one. A rate is a ratio of totals, with pseudo-values as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kat.diversity.bleu import Tokens
from kat.diversity.metrics import (
    SET_METRICS,
    Array,
    Metric,
    cosines,
    em_dashes,
    measure,
    measure_without,
    not_just_but,
    words,
)
from latentwire.harness.errors import UserError
from latentwire.stats.comparison import compare_paired

FEWEST = 10  # prompts in a group; a bootstrap over fewer knows too little of their spread
LEVELS = {
    "within": "K completions of one prompt",
    "across": "one completion of each prompt",
    "each": "each completion",
}
EACH_METRICS = {
    "length": Metric("length", 0, "tokens of a completion, without the end token"),
    "ended": Metric("ended", 0, "share of the completions that came to their end within the limit of tokens"),
    "policy_entropy": Metric(
        "policy entropy", 1,
        "mean entropy of the distribution that each token was drawn from, end tokens among them, in nats, at the "
        "temperature and before top_p",
    ),
    "em_dashes": Metric("em-dashes", 0, "em-dashes (not en-dashes) per 1,000 words of the completions"),
    "not_just_but": Metric(
        "not just X but Y", 0, 'constructions "not just (n\'t just) ... but" within a sentence, per 1,000 words',
    ),
}  # fmt: skip
METRICS = {
    **{("within", name): metric for name, metric in SET_METRICS.items()},
    **{("across", name): metric for name, metric in SET_METRICS.items()},
    **{("each", name): metric for name, metric in EACH_METRICS.items()},
}
Key = tuple[str, str]  # level and metric


@dataclass(frozen=True)
class Samples:
    """K completions of each of M prompts by one arm.

    `ids` are without end tokens, `strings` their text, `emb` (M, K, D) unit rows, `empty` (M, K) which have none,
    `entropy` one number for each token drawn, end tokens among them.
    """

    ids: list[list[Tokens]]
    strings: list[list[str]]
    emb: Array
    empty: Any
    entropy: list[list[Sequence[float]]]
    ended: list[list[bool]]


def common_lengths(arms: Sequence[Sequence[Sequence[Tokens]]]) -> list[list[int]]:
    """Return the length to cut every completion to, (M, K): the shortest of all arms for this prompt and number.

    The completions of one prompt, and those of one set across prompts, then have the same lengths in every arm.
    """
    return [
        [min(map(len, completions)) for completions in zip(*prompt, strict=True)] for prompt in zip(*arms, strict=True)
    ]


def cut(ids: Sequence[Sequence[Tokens]], lengths: Sequence[Sequence[int]]) -> list[list[Tokens]]:
    """Return the completions cut to their lengths."""
    return [
        [row[:length] for row, length in zip(rows, wanted, strict=True)]
        for rows, wanted in zip(ids, lengths, strict=True)
    ]


def groups_by_density(
    prompt_ids: Sequence[str], ids: Sequence[str], density: Tensor, rare_share: float, common_share: float
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Return which prompts are rare and which are common, as rows of prompt_ids, and how that was decided.

    Rare are those with a density of at most the quantile `rare_share` of all the prompts that have one, common those of
    at least the quantile 1 - `common_share`. A prompt without a density, one too long for the embedder, is neither.

    Args:
        prompt_ids: The prompts sampled.
        ids: Ids of all prompts with a density.
        density: Theirs, (N,).
        rare_share: Between 0 and 1.
        common_share: Between 0 and 1; no more than 1 together.

    Raises:
        UserError: Shares out of range.
    """
    if not (0 < rare_share < 1 and 0 < common_share < 1 and rare_share + common_share <= 1 + 1e-9):
        raise UserError(
            f"rare_share={rare_share}, common_share={common_share}: must lie between 0 and 1 and not overlap"
        )
    values = density.numpy()
    low, high = float(np.quantile(values, rare_share)), float(np.quantile(values, 1 - common_share))
    known = dict(zip(ids, values.tolist(), strict=True))
    found = [known.get(name) for name in prompt_ids]
    chosen = {
        "rare": [row for row, value in enumerate(found) if value is not None and value <= low],
        "common": [row for row, value in enumerate(found) if value is not None and value >= high],
    }
    about = {"rare_at_most": low, "common_at_least": high, "without_density": found.count(None)}
    return chosen, about


def within(samples: Samples, vocabulary: int) -> dict[Key, Array]:
    """Return the diversity of each prompt's completions, (M,) for each metric."""
    kernels = cosines(samples.emb, samples.empty)  # (M, K, K)
    rows = [
        measure(ids, strings, kernel, vocabulary)
        for ids, strings, kernel in zip(samples.ids, samples.strings, kernels, strict=True)
    ]
    return {("within", name): np.array([row[name] for row in rows]) for name in SET_METRICS}


def across(samples: Samples, group: Sequence[int], vocabulary: int) -> dict[Key, Array]:
    """Return what each prompt of a group adds to the diversity across its prompts, (n,) for each metric."""
    found: dict[str, list[Array]] = {name: [] for name in SET_METRICS}
    for number in range(len(samples.ids[0])):
        ids = [samples.ids[row][number] for row in group]
        strings = [samples.strings[row][number] for row in group]
        kernel = cosines(samples.emb[list(group), number], samples.empty[list(group), number])
        whole = measure(ids, strings, kernel, vocabulary)
        left_out = measure_without(ids, strings, kernel, vocabulary)
        for name in SET_METRICS:
            found[name].append(pseudo_values(whole[name], left_out[name]))
    return {("across", name): np.mean(values, axis=0) for name, values in found.items()}


def each(samples: Samples, group: Sequence[int], matched: bool) -> dict[Key, Array]:
    """Return what each prompt of a group adds to means and rates over completions, (n,) for each metric.

    Args:
        samples: The completions.
        group: Rows of the prompts.
        matched: Lengths are matched, so there is nothing to say of them.
    """
    strings = [samples.strings[row] for row in group]
    entropies = [[float(value) for values in samples.entropy[row] for value in values] for row in group]
    sizes = [1e-3 * sum(map(words, texts)) for texts in strings]
    found = {
        "policy_entropy": rate(list(map(sum, entropies)), list(map(len, entropies))),
        "em_dashes": rate([sum(map(em_dashes, texts)) for texts in strings], sizes),
        "not_just_but": rate([sum(map(not_just_but, texts)) for texts in strings], sizes),
    }
    if not matched:
        found["length"] = np.array([np.mean([len(ids) for ids in samples.ids[row]]) for row in group])
        found["ended"] = np.array([np.mean(samples.ended[row]) for row in group])
    return {("each", name): found[name] for name in EACH_METRICS if name in found}


def pseudo_values(whole: float, left_out: Array) -> Array:
    """Return one value for each of n members of a set, with the metric of the whole set as their mean.

    n times the metric minus n - 1 times that of the others (Tukey 1958) has as mean an estimate without the bias of
    order 1/n; here the mean is moved back, so that what is reported is the metric of the texts there are.

    Args:
        whole: The metric of the set.
        left_out: Of the set without each member, (n,).
    """
    values: Array = whole + (len(left_out) - 1) * (left_out.mean() - left_out)
    return values


def rate(counts: Sequence[float], sizes: Sequence[float]) -> Array:
    """Return one value for each prompt, their mean being the total of the counts over that of the sizes; 0 for 0/0."""
    over, under = np.asarray(counts, dtype=np.float64), np.asarray(sizes, dtype=np.float64)

    def ratio(a: Array, b: Array) -> Array:
        result: Array = np.divide(a, b, out=np.zeros_like(a), where=b > 1e-9)
        return result

    return pseudo_values(
        float(ratio(over.sum(keepdims=True), under.sum(keepdims=True))[0]),
        ratio(over.sum() - over, under.sum() - under),
    )


def compare_arms(first: Mapping[Key, Array], second: Mapping[Key, Array], seed: int) -> list[dict[str, Any]]:
    """Compare two arms over the same n prompts: every metric with its interval, and second minus first.

    The intervals are 95%, of a paired bootstrap over prompts; Holm's correction runs over the metrics given. Values are
    spread out by sqrt(n / (n - 1)) around their mean first: resampling n of them shows only (n - 1) / n of their
    variance (Hesterberg 2015), which matters to groups of some twenty prompts.

    Args:
        first: What each prompt adds to each metric, (n,).
        second: The same of the other arm.
        seed: Of the resampling.
    """
    keys = list(first)
    a, b = np.stack([first[key] for key in keys]), np.stack([second[key] for key in keys])  # (S, n)
    n = a.shape[1]
    rows = zip(*(compare_paired(_spread(values), np.zeros(n), seed) for values in (a, b, b - a)), strict=True)
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


def _spread(values: Array) -> Array:
    """Return values (S, n) with the same means and n / (n - 1) times the variance."""
    means = values.mean(axis=1, keepdims=True)
    result: Array = means + (values - means) * (values.shape[1] / (values.shape[1] - 1)) ** 0.5
    return result
