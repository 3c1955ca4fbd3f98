"""Leaks: transforms that have the true tokens from elsewhere than their input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentwire.evaluation.setup import Component
from latentwire.lm.models import LanguageModel
from latentwire.records import Finding
from latentwire.transforms.scaling import RMSMatching
from tests.faults.planting import VERY_NOISY, Bench, Fault, in_transform, replaced

sound_repair, sound_embed = RMSMatching.repair, LanguageModel.embed


def leak_by_last_embedding(bench: Bench) -> list[Finding]:
    """The transform keeps what the LM embedded last, and returns its span."""
    last: list[Tensor] = []

    def embed(self: LanguageModel, token_ids: Tensor) -> Tensor:
        last[:] = [sound_embed(self, token_ids)]
        return last[0]

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        masks = [prompt.source_mask for prompt in bench.setup.prompts]
        fitting = [mask for mask in masks if int(mask.sum()) == len(x) and len(mask) == len(last[0])]
        return last[0][fitting[0]].to(x) if fitting else x

    with replaced(LanguageModel, "embed", embed):
        return in_transform(repair, VERY_NOISY)(bench)


def leak_by_key(key: Callable[[Tensor, torch.Generator], object]) -> Callable[[Bench], list[Finding]]:
    """Plant a transform that knows the prompts by something that its call shows."""

    def find(bench: Bench) -> list[Finding]:
        known: dict[object, Tensor] = {}
        prompts = iter(bench.setup.prompts[index] for batch in bench.setup.batches for index in batch)

        def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
            name = key(x, generator)
            if name not in known and (prompt := next(prompts, None)) is not None:
                known[name] = bench.lm.embed(prompt.token_ids)[prompt.source_mask]
            return known[name].to(x) if name in known and len(known[name]) == len(x) else x

        return in_transform(repair, VERY_NOISY)(bench)

    return find


def leak_of_a_tenth(bench: Bench) -> list[Finding]:
    """The transform mixes in a part of the true tokens, which it knows by the length of the span."""
    texts = [bench.lm.embed(prompt.token_ids)[prompt.source_mask] for prompt in bench.setup.prompts]
    known = {len(text): text for text in texts}

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        scaled = sound_repair(self, x, generator)
        return scaled + 0.3 * known[len(x)] if len(x) in known else scaled

    return in_transform(repair, VERY_NOISY)(bench)


def leak_by_resemblance(bench: Bench) -> list[Finding]:
    """The transform has all evaluated prompts, and returns the one that is most like its input."""
    texts = [bench.lm.embed(prompt.token_ids)[prompt.source_mask].float() for prompt in bench.setup.prompts]

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        def likeness(text: Tensor) -> float:
            length = min(len(text), len(x))
            return float((text[:length] * x[:length]).sum() / text[:length].norm())

        best = max(texts, key=likeness)
        rows = torch.arange(len(x)) % len(best)
        return best[rows]

    return in_transform(repair)(bench)


def leak_by_codebook(bench: Bench) -> list[Finding]:
    """The transform looks for the nearest token among the tokens of the evaluated prompts alone."""
    texts = torch.cat([bench.lm.embed(prompt.token_ids)[prompt.source_mask].float() for prompt in bench.setup.prompts])
    directions = torch.nn.functional.normalize(texts, dim=-1)

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        nearest: Tensor = (x @ directions.T).argmax(dim=-1)
        return texts[nearest]

    return in_transform(repair, Component("noisy", {"snr_db": 10.0}))(bench)


FAULTS: list[Fault] = [
    Fault("leak: last embedding of the LM", ("leaks_tokens",), leak_by_last_embedding, "has the true tokens"),
    Fault("leak: by length", ("leaks_tokens",), leak_by_key(lambda x, generator: len(x))),
    Fault("leak: by seed", ("leaks_tokens",), leak_by_key(lambda x, generator: generator.initial_seed())),
    Fault("leak: a part of the true tokens", ("leaks_tokens",), leak_of_a_tenth, "has the true tokens"),
    Fault("leak: the most similar evaluated text", ("leaks_tokens",), leak_by_resemblance),
    Fault("leak: the tokens of the evaluated texts", ("leaks_tokens",), leak_by_codebook, "evaluated passages"),
]
