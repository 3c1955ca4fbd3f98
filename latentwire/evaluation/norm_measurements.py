"""What is measured of trained encoders for sweep=latent_norm, and stored. Main entry: `NormMeasurements`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.data.fingerprints import fingerprint
from latentwire.data.prompts import FewShotPrompt, PromptWriter
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.nearest_tokens import Nearness, nearness, random_cosine, token_groups
from latentwire.evaluation.request import Request
from latentwire.evaluation.residual_stream import ResidualProfile, passage_states, residual_profile
from latentwire.evaluation.setup import Component, EvaluationSetup, prepare
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import within_memory
from latentwire.harness.results import JsonObject, ResultStore, config_hash, read_jsonl
from latentwire.records import FORMAT, RESTORE, checked, read_example_rows
from latentwire.sources.latent import Latent
from latentwire.stats.intervals import Scores

MEASUREMENT = 1  # version of the measurements of states and tokens; raise it when one of them changes
Rows = Sequence[Mapping[str, object]]
R = TypeVar("R")


class PassageResiduals(ResidualProfile):
    """The residual stream of a passage."""

    passage: str  # fingerprint


class PassageNearness(Nearness):
    """How near the latents of a passage are to tokens."""

    passage: str  # fingerprint
    latents: int  # number of latents
    random_cosine: float  # of random directions with their nearest tokens


@dataclass(frozen=True)
class AnswerScores:
    """F1 of each question, and the passage that it is about, N each."""

    f1: Scores
    passages: list[str]


@dataclass
class NormMeasurements:
    """Evaluates sources, and measures states and nearest tokens of passages. Stored results are reused.

    Attributes:
        request: Model, data and settings; its source is not used.
        store: Where results go.
        state: Device and processes.
        force: Whether to measure again what is stored.
    """

    request: Request
    store: ResultStore
    state: PartialState
    force: bool

    @cached_property
    def setup(self) -> EvaluationSetup:
        """Model, shots and questions, loaded when the first result is missing."""
        return prepare(self.request.model, self.request.data, self.request.settings, self.state)

    @cached_property
    def _by_passage(self) -> list[FewShotPrompt]:
        """The first prompt of each passage."""
        return list({prompt.example.context: prompt for prompt in reversed(self.setup.prompts)}.values())[::-1]

    def answers(self, name: str, source: Component) -> AnswerScores:
        """Return the F1 of each question with a source.

        Args:
            name: Name of the result.
            source: The source.
        """

        def compute() -> tuple[Mapping[str, object], Rows]:
            return evaluate(self.setup, source, self.request.transform, self.state, name)

        self._stored(name, source, {}, compute)
        rows = read_example_rows(self.store.predictions_path(name))
        return AnswerScores(np.array([row["f1"] for row in rows]), [row.get("passage", row["id"]) for row in rows])

    def residuals(self, name: str, source: Component) -> list[PassageResiduals]:
        """Return the residual stream of each passage with a source; arguments as in `answers`."""

        def compute() -> tuple[Mapping[str, object], Rows]:
            setup = self.setup.with_shots_of(source)
            before = setup.lm.embed(torch.tensor(PromptWriter(setup.lm.tokenizer).ids("Context:")))
            found: list[PassageResiduals] = []
            for prompt, embeds in self._replaced(source):
                states = passage_states(setup.lm, setup.decoder.prefix, before, embeds.to(before.dtype))
                found.append({"passage": fingerprint(prompt.example.context), **residual_profile(states)})
            return {"num_samples": len(found)}, found

        return self._measured(PassageResiduals, f"{name}_states", source, compute)

    def nearness(self, name: str, source: Component) -> list[PassageNearness]:
        """Return how near the latents of each passage are to tokens; arguments as in `answers`."""

        def compute() -> tuple[Mapping[str, object], Rows]:
            setup = self.setup
            built = setup.build_source(source)
            assert isinstance(built, Latent), "only latents have groups of tokens"
            by_chance = random_cosine(setup.vocabulary, setup.settings.generator("random_directions"))
            texts = [prompt.example.context for prompt in self._by_passage]
            ids = [prompt.token_ids[prompt.passage_mask].tolist() for prompt in self._by_passage]
            groups = [token_groups(built.latents.encoder, *each) for each in zip(texts, ids, strict=True)]
            found: list[PassageNearness] = []
            for number, (prompt, latents) in enumerate(self._replaced(source)):
                other = groups[(number + 1) % len(groups)][1]
                near = nearness(latents, setup.vocabulary, *groups[number], ids[number], other)
                found.append({
                    "passage": fingerprint(prompt.example.context), "latents": sum(map(bool, groups[number][0])),
                    "random_cosine": by_chance, **near,
                })  # fmt: skip
            return {"num_samples": len(found)}, found

        return self._measured(PassageNearness, f"{name}_nearest", source, compute)

    @torch.no_grad()
    def _replaced(self, source: Component) -> list[tuple[FewShotPrompt, Tensor]]:
        """Return the first prompt of each passage, and what replaces the passage, (L, D) float32."""
        setup = self.setup
        built = setup.build_source(source)
        return [
            (
                prompt,
                built(
                    setup.lm.embed(prompt.token_ids[prompt.passage_mask]).float(),
                    setup.settings.generator(source.name, prompt.example.id),
                    prompt.example.context,
                ),
            )
            for prompt in self._by_passage
        ]

    def _measured(
        self, kind: type[R], name: str, source: Component, compute: Callable[[], tuple[Mapping[str, object], Rows]]
    ) -> list[R]:
        """Return the rows of a measurement, one for each passage."""
        self._stored(name, source, {"measurement": MEASUREMENT}, compute)
        path = self.store.predictions_path(name)
        rows = read_jsonl(path)
        return [checked(kind, row, path, RESTORE) for row in rows]

    def _stored(
        self,
        name: str,
        source: Component,
        version: JsonObject,
        compute: Callable[[], tuple[Mapping[str, object], Rows]],
    ) -> None:
        """Compute and save a result with its rows unless it is finished."""
        key = config_hash({"answers": replace(self.request, source=source).key, "format": FORMAT, **version})
        missing = self.force or self.store.finished(name, key) is None if self.state.is_main_process else False
        if not broadcast_from_main(self.state, missing):
            return
        with within_memory(self.state.device, {"batch_tokens": self.request.settings.batch_tokens}):
            found, rows = compute()
        head: JsonObject = {
            "format": FORMAT, "name": name, "config_hash": key, "status": "ok", "source": source.name,
            "source_dials": source.dials,
        }  # fmt: skip
        if self.state.is_main_process:
            self.store.save(name, {**head, **found}, rows)
        self.state.wait_for_everyone()
