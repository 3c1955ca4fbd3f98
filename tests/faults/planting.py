"""What a planted fault is, and running it. Main entries: `Fault`, `flags()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.data.examples import Dataset
from latentwire.data.prompts import FewShotPrompt
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare_with
from latentwire.harness.errors import UserError
from latentwire.lm.models import LanguageModel
from latentwire.records import Finding
from latentwire.sources.distortions import Noisy
from latentwire.transforms.scaling import RMSMatching


@dataclass(frozen=True)
class Bench:
    """A model, data and settings on which faults are planted, and a sound set-up of them."""

    lm: LanguageModel
    dataset: Dataset
    settings: Settings
    setup: EvaluationSetup
    state: PartialState

    def configuration(
        self, source: Component, transform: Component, setup: EvaluationSetup | None = None
    ) -> list[Finding]:
        """Return the findings of a configuration on the sound set-up, or on another one."""
        measured, _ = evaluate(setup or self.setup, source, transform, self.state, "")
        return measured["warnings"]

    def prepared(self) -> list[Finding]:
        """Return the findings of a new set-up."""
        return prepare_with(self.lm, self.dataset, self.settings).warnings


@dataclass(frozen=True)
class Fault:
    """A fault, and what names its cause.

    `find` plants the fault, runs what would show it, and returns the findings. A fault that stops the run raises
    UserError, which counts as a finding of kind "error".
    """

    name: str
    kinds: tuple[str, ...]  # kinds of finding that name the cause; one is enough
    find: Callable[[Bench], list[Finding]]
    words: str = ""  # what the message must contain


def bench(lm: LanguageModel, dataset: Dataset, samples: int = 8) -> Bench:
    """Return a bench with a sound set-up of a model and data."""
    settings = Settings(
        samples=samples, seed=0, shots=2, questions_per_shot=2, max_new_tokens=4, batch_tokens=4000, dtype="float32"
    )
    return Bench(lm, dataset, settings, prepare_with(lm, dataset, settings), PartialState())


def flags(fault: Fault, on: Bench) -> tuple[list[Finding], bool]:
    """Return the warnings and errors that a fault gives, and whether one of them names its cause."""
    try:
        found = [one for one in fault.find(on) if one["level"] == "warning"]
    except UserError as error:
        found = [{"kind": "error", "level": "warning", "message": str(error)}]
    return found, any(one["kind"] in fault.kinds and fault.words in one["message"] for one in found)


Patch = AbstractContextManager[object]


@contextmanager
def planted(*patches: Patch) -> Iterator[None]:
    """Apply patches together."""
    if not patches:
        yield
        return
    with patches[0], planted(*patches[1:]):
        yield


def replaced(owner: object, name: str, value: object) -> Patch:
    """Return a patch that replaces an attribute while its context lasts."""
    return patch.object(owner, name, value)


NOISY, VERY_NOISY = Component("noisy", {"snr_db": 0.0}), Component("noisy", {"snr_db": -15.0})
RMS = Component("rms_matching", {"target_scale": 1.0})
BASELINE = Component("baseline")
Repair = Callable[[RMSMatching, Tensor, torch.Generator], Tensor]
Distort = Callable[[Noisy, Tensor, torch.Generator], Tensor]


def in_transform(repair: Repair, source: Component = NOISY) -> Callable[[Bench], list[Finding]]:
    """Plant a function in place of the repair of a transform."""

    def find(bench: Bench) -> list[Finding]:
        with replaced(RMSMatching, "repair", repair):
            return bench.configuration(source, RMS)

    return find


def in_source(distort: Distort, source: Component = NOISY) -> Callable[[Bench], list[Finding]]:
    """Plant a function in place of the distortion of a source."""

    def find(bench: Bench) -> list[Finding]:
        with replaced(Noisy, "distort", distort):
            return bench.configuration(source, RMS)

    return find


def in_prompts(change: Callable[[FewShotPrompt], FewShotPrompt]) -> Callable[[Bench], list[Finding]]:
    """Plant a change in every prompt."""

    def find(bench: Bench) -> list[Finding]:
        changed = replace(bench.setup, prompts=[change(prompt) for prompt in bench.setup.prompts])
        return bench.configuration(NOISY, RMS, changed)

    return find
