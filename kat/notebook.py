"""Weigh prompts and compare completions in a notebook. Main entries: `weigh_prompts()`, `compare_completions()`.

All names are public names of the package: `from kat import weigh_prompts`. None of these functions writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kat.density.estimate import DensitySpec
from kat.diversity.comparison import across, compare_arms, within
from kat.diversity.forms import forms_of
from kat.diversity.records import ArmRow
from kat.diversity.samples import SampledText
from kat.embedding.pooling import HiddenEmbedder
from kat.sampling.from_model import PromptText
from kat.sampling.sampler import DensityAwareSampler, ModelSettings
from latentwire.harness.errors import UserError

BATCH_TOKENS = 8192  # positions embedded at a time


def weigh_prompts(
    prompts: Sequence[PromptText],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    k: int = DensitySpec.k,
    **settings: Unpack[ModelSettings],
) -> Tensor:
    """Return sampling weights of prompts: a rare prompt weighs more, a crowded one less.

    Args:
        prompts: Texts, or lists of messages, N of them.
        model: A causal LM of transformers, whose hidden states embed the prompts.
        tokenizer: Its tokenizer.
        k: The number of neighbours that sets the scale of the density.
        **settings: Further arguments of `DensityAwareSampler.from_model`, such as gamma=1.0.

    Returns:
        The weights, (N,) float64 of sum 1.

    Raises:
        UserError: A prompt has no text, there are too few prompts, or a setting is out of range.

    >>> from kat import weigh_prompts
    >>> from latentwire import load_model_by_name
    >>> lm = load_model_by_name("tiny_random")
    >>> crowd = [f"What is {n} plus {n}?" for n in range(20)]
    >>> weights = weigh_prompts([*crowd, "Name a river."], lm.model, lm.tokenizer, k=3)
    >>> weights.shape, round(float(weights.sum()), 6), bool(weights[-1] > 1 / 21)
    (torch.Size([21]), 1.0, True)
    """
    weights = DensityAwareSampler.from_model(prompts, model, tokenizer, k, **settings).weights
    return weights / weights.sum()


def compare_completions(
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    matched: bool = True,
    seed: int = 0,
) -> list[ArmRow]:
    """Compare the diversity of two models' completions of the same prompts.

    Args:
        first: K completions of each of M prompts by the first model, K at least 2.
        second: The same by the second model.
        model: A causal LM of transformers, whose hidden states embed the completions.
        tokenizer: The tokenizer that counts their tokens.
        matched: Whether to cut each completion to the shorter one of both models, so that lengths do not decide.
        seed: Seed of the random flips of signs over prompts.

    Returns:
        A row for each metric: within (K completions of one prompt) and across (one completion of each prompt), with
        both values, their difference, its 95% interval, its p-value, and the p-value after Holm's correction.

    Raises:
        UserError: The models have other numbers of prompts or completions, or there are too few.

    >>> from kat import compare_completions
    >>> from latentwire import load_model_by_name
    >>> lm = load_model_by_name("tiny_random")
    >>> diverse = [[f"{a} {b} {n}" for a, b in (("one", "two"), ("red", "sea"), ("old", "man"))] for n in range(12)]
    >>> collapsed = [[f"one two {n}"] * 3 for n in range(12)]
    >>> rows = compare_completions(diverse, collapsed, lm.model, lm.tokenizer)
    >>> vendi = next(row for row in rows if (row["level"], row["metric"]) == ("within", "vendi"))
    >>> vendi["difference"] < 0 and vendi["p_holm"] < 0.05
    True
    """
    shapes = [sorted({len(prompt) for prompt in arm}) for arm in (first, second)]
    if len(first) != len(second) or shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0][0] < 2:
        raise UserError(
            f"completions: {len(first)} and {len(second)} prompts with {shapes[0]} and {shapes[1]} completions each; "
            "give both models' completions of the same prompts, the same number of at least 2 for each"
        )
    rows = [[[_row(text, tokenizer) for text in prompt] for prompt in arm] for arm in (first, second)]
    forms = forms_of(rows, tokenizer, HiddenEmbedder(model, tokenizer), BATCH_TOKENS)
    every, vocabulary = range(len(first)), len(tokenizer)
    values = [
        {**within(samples, vocabulary), **across(samples, every, vocabulary)}
        for samples in forms["matched" if matched else "raw"]
    ]
    return compare_arms(values[0], values[1], seed)


def _row(text: str, tokenizer: PreTrainedTokenizerBase) -> SampledText:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {"ids": ids, "ended": True, "entropy": [0.0] * len(ids), "text": text}
