"""Inputs of the LM: prompts whose span a source replaces and a transform repairs. Main entry: `RepairedInputs`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.prompts import FewShotPrompt
from latentwire.evaluation import detectors
from latentwire.evaluation.setup import Component, EvaluationSetup
from latentwire.harness.errors import UserError
from latentwire.records import Finding, Fit
from latentwire.transforms.base import PAIRS
from latentwire.transforms.registry import build_transform

BEGINNING = 4  # first positions of a span that `detectors.same_output` compares
COMPARED = 32  # spans that it compares


@dataclass(frozen=True)
class RepairedSpan:
    """The embeddings of a prompt and of its span, before and after source and transform."""

    own: Tensor  # embeddings of the prompt's tokens, (T, D), in the LM's dtype
    mask: Tensor  # the span, (T,)
    real: Tensor  # embeddings of the tokens that the source gets, (S, D) float32
    seen: Tensor  # what the source returns, (L, D)
    repaired: Tensor  # what the transform returns, (L, D)

    @property
    def change(self) -> float:
        """|repaired - seen| / |seen|, which is 0 if both are bit-identical."""
        return float((self.repaired - self.seen).norm() / self.seen.norm().clamp_min(1e-30))

    @property
    def distance(self) -> float | None:
        """|repaired - real| / |real|; None if the source changes the number of positions."""
        if len(self.repaired) != len(self.real):
            return None
        return float((self.repaired - self.real).norm() / self.real.norm().clamp_min(1e-30))


class RepairedInputs:
    """Applies a source and a transform to prompts. A transform with a fit is fitted when this object is built.

    Attributes:
        fit: How the transform was fitted; None for a transform that is not fitted.

    Args:
        setup: Model, prompts and settings.
        source: Source that replaces the embeddings of the passage.
        transform: Transform that repairs them.

    Raises:
        UserError: A dial is out of range, or the transform cannot be fitted on the embeddings.
    """

    def __init__(self, setup: EvaluationSetup, source: Component, transform: Component) -> None:
        self.setup, self.source, self.transform = setup, source, transform
        self.distort = setup.build_source(source)
        self.repair = build_transform(transform.name, transform.dials, setup.vocabulary)
        self.repair.to(setup.lm.device)
        self.fit = self._fit()
        self._changed_dtypes: list[Finding] = []
        self._beginnings: list[tuple[Tensor, ...]] = []  # beginnings of spans: real, after source, after transform

    @torch.no_grad()
    def _fit(self) -> Fit | None:
        """Fit the transform to the source's embeddings of passages outside the evaluation."""
        setup, source, transform, repair = self.setup, self.source, self.transform, self.repair
        if not repair.fits:
            return None
        if not setup.fitting:
            raise UserError(
                f"embed_transform={transform.name}: is fitted on passages outside the evaluation, and the data have "
                "none; lower samples, or give another file for the shots (shots_path=FILE)"
            )
        settings = setup.settings
        ids = setup.fitting_passages if self.distort.passage_only else setup.fitting
        texts = [str(setup.lm.tokenizer.decode(span.tolist())).strip() for span in ids]
        spans = [setup.lm.embed(span.to(setup.lm.device)).float() for span in ids]
        seen = [
            self.distort(span, settings.generator(source.name, "fitting", index), text)
            for index, (span, text) in enumerate(zip(spans, texts, strict=True))
        ]
        if not sum(map(len, seen)):
            raise UserError(
                f"embed_transform={transform.name}: the source {source.name} gives no embeddings to fit it on; choose "
                "another source"
            )
        truth = torch.cat(spans) if repair.fits == PAIRS else None
        x = torch.cat(seen)
        if truth is not None and len(truth) != len(x):
            raise UserError(
                f"embed_transform={transform.name}: is fitted to pairs of embedding and token, but the source "
                f"{source.name} has {len(x)} positions for {len(truth)} tokens; choose a transform that needs no pairs"
            )
        repair.fit(x, truth, settings.generator(transform.name, "fitting"))
        return {
            "embeddings": len(x),
            "sees": repair.fits,
            "supervised": repair.fits == PAIRS,
            "diagnosis": repair.diagnosis,
        }

    def rebuilt(self) -> RepairedInputs:
        """Return the same source and transform, built again; a fitted transform stays as it is."""
        again = copy.copy(self)
        again.distort = self.setup.build_source(self.source)
        if not self.repair.fits:
            again.repair = build_transform(self.transform.name, self.transform.dials, self.setup.vocabulary)
            again.repair.to(self.setup.lm.device)
        return again

    @torch.no_grad()
    def repair_span(self, prompt: FewShotPrompt) -> RepairedSpan:
        """Return the embeddings of a prompt's source span before and after source and transform.

        The LM embeds the prompt, and its example decides the draws, also if source and transform get other tokens
        (`FewShotPrompt.given`). So a transform that has the prompt's own tokens from elsewhere shows them.
        """
        setup, identifier, settings = self.setup, prompt.example.id, self.setup.settings
        own = setup.lm.embed(prompt.token_ids).clone()
        span = (prompt.passage_mask if self.distort.passage_only else prompt.source_mask).to(own.device)
        if prompt.given is None:
            real, text = own[span], prompt.example.context
        else:
            real = setup.vocabulary.embeddings[prompt.given.to(own.device)[span]]
            text = str(setup.lm.tokenizer.decode(prompt.given[prompt.passage_mask].tolist())).strip()
        real = real.float()  # source and transform compute in float32; the result is rounded once, for the LM
        seen = self.distort(real, settings.generator(self.source.name, identifier), text)
        repaired = self.repair(seen, settings.generator(self.transform.name, identifier)) if len(seen) else seen
        return RepairedSpan(own, span, real, seen, repaired)

    @torch.no_grad()
    def embed(self, prompt: FewShotPrompt) -> tuple[Tensor, RepairedSpan]:
        """Return the embeddings of a prompt with its span replaced and repaired, (T, D), and the span.

        Raises:
            UserError: A value is not finite, the prompt lacks its source span, or it is too long for the model.
        """
        self._check_span(prompt)
        setup, identifier = self.setup, prompt.example.id
        found = self.repair_span(prompt)
        for what, before, after in (
            (f"the source {self.source.label}", found.real, found.seen),
            (f"the transform {self.transform.label}", found.seen, found.repaired),
        ):
            detectors.require_finite_values(after, what, identifier)
            changed = detectors.dtype_changed(what, before.dtype, after.dtype)
            self._changed_dtypes += [finding for finding in changed if finding not in self._changed_dtypes]
        if len(found.seen) >= BEGINNING <= len(found.real) and len(self._beginnings) < COMPARED:
            beginnings = (found.real, found.seen, found.repaired)
            self._beginnings.append(tuple(part[:BEGINNING].cpu() for part in beginnings))
        repaired = found.repaired.to(found.own.dtype)
        embeds = put_passage(found.own.clone(), found.mask, repaired)
        detectors.require_placed(embeds, found.own, found.mask, repaired, identifier)
        room = setup.lm.context_length - setup.decoder.prefix.length - setup.decoder.max_new_tokens
        if len(embeds) > room:
            raise UserError(
                f"the source {self.source.label} makes {len(repaired)} positions from the passage of example "
                f"{identifier}, more than the model's context has room for; lower shots, or use fewer positions"
            )
        return embeds, found

    def _check_span(self, prompt: FewShotPrompt) -> None:
        """Refuse a prompt whose masks do not mark its passage and its question."""
        tokenizer = self.setup.lm.tokenizer

        def decode(ids: list[int]) -> str:
            return str(tokenizer.decode(ids))

        identifier, question = prompt.example.id, prompt.source_mask & ~prompt.passage_mask
        texts = [(prompt.example.question, question)]
        if prompt.passage:
            texts.append((prompt.example.context, prompt.passage_mask))
        decoded = decode(prompt.token_ids[prompt.source_mask].tolist())
        detectors.require_span(int(prompt.source_mask.sum()), decoded, [text for text, _ in texts], identifier)
        for text, mask in texts:
            expected = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
            detectors.require_marked_text(prompt.token_ids, mask, expected, decode, identifier)

    def findings(self) -> list[Finding]:
        """Return what the detectors found in the prompts so far."""
        if len(self._beginnings) < 2:
            return self._changed_dtypes
        real, seen, repaired = zip(*self._beginnings, strict=True)
        constant = [*detectors.same_output("source", real, seen), *detectors.same_output("transform", seen, repaired)]
        return [*self._changed_dtypes, *constant]


def put_passage(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
    """Return the embeddings of a prompt with a span replaced.

    Args:
        embeds: Embeddings of the prompt, (T, D); changed in place if the span keeps its length.
        span: Mask of the span, (T,); it must be contiguous if its length changes.
        replacement: New embeddings of the span, (L, D).
    """
    places = span.nonzero().flatten()
    if len(places) == len(replacement):
        embeds[span] = replacement
        return embeds
    start, end = int(places[0]), int(places[-1]) + 1
    assert end - start == len(places), "a span in several pieces cannot change its length"
    return torch.cat([embeds[:start], replacement, embeds[end:]])
