"""Repair embeddings, evaluate a model and compare scores in a notebook. Main entry: `repair()`.

All names are public names of the package: `from latentwire import repair, Vocabulary`. None of these functions writes a
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.data.examples import DataSpec, load_data
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.metrics import Scoring
from latentwire.evaluation.setup import Component, Settings, prepare_with
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject
from latentwire.lm.models import LanguageModel
from latentwire.lm.vocabulary import Vocabulary
from latentwire.records import ExampleRow, Measured
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import Comparison, compare_paired
from latentwire.transforms.base import PAIRS
from latentwire.transforms.registry import build_transform, read_label


@torch.no_grad()
def repair(
    x: Tensor, vocabulary: Vocabulary, transform: str = "auto", truth: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Return embeddings after a transform. A transform that needs a fit is fitted to `x` itself.

    Args:
        x: Embeddings that the model cannot read, (T, D) or (B, T, D), any float dtype.
        vocabulary: The token embeddings of the model.
        transform: Name of a configuration with its dials, as a sweep prints it: "anchor_eps0.05". Chains join names
            by +.
        truth: Embeddings of the true tokens, of the shape of x, for a transform that is fitted to pairs.
        seed: Seed of the transform's draws.

    Returns:
        Embeddings of the same shape, dtype and device.

    Raises:
        UserError: No configuration has this name, or its fit needs `truth`.

    Source:
        docs/transforms-and-sources.md describes each transform.

    >>> from latentwire import Vocabulary, load_model_by_name, repair
    >>> lm = load_model_by_name("tiny_random")
    >>> vocabulary = Vocabulary(lm.token_embeddings())
    >>> tokens = vocabulary.embeddings[:8]
    >>> repaired = repair(117 * tokens, vocabulary, "rms_scale1.0+anchor_eps0.0")
    >>> bool(torch.allclose(repaired, tokens))
    True
    """
    name, dials = _named(transform)
    built = build_transform(name, dials, vocabulary)
    if built.fits:
        if built.fits == PAIRS and truth is None:
            raise UserError(
                f"transform={transform}: is fitted to pairs; give truth=, the embeddings of the true tokens"
            )
        rows = x.reshape(-1, x.shape[-1]).float()
        pairs = truth.reshape(-1, x.shape[-1]).float() if truth is not None and built.fits == PAIRS else None
        built.fit(rows, pairs, generator_for(seed, name, "fitting"))
    repaired: Tensor = built(x, generator_for(seed, name))
    return repaired


def _named(transform: str) -> tuple[str, JsonObject]:
    """Return the name and the dials of a configuration, which may be a chain of others."""
    return ("chain", {"steps": transform}) if "+" in transform else read_label(transform)


@dataclass(frozen=True)
class Evaluation:
    """Answers of a model to questions about passages.

    Attributes:
        measured: Mean scores with 95% intervals, findings and times, as in a result file.
        rows: One row for each example, as in a predictions file.
    """

    measured: Measured
    rows: list[ExampleRow]

    def scores(self, metric: str = "f1") -> list[float]:
        """Return the score of each example."""
        return [row["scores"][metric] for row in self.rows]

    def __repr__(self) -> str:
        """Return the F1 with its interval."""
        low, high = self.measured["f1_interval"]
        return f"Evaluation(f1={self.measured['f1']:.3f} [{low:.3f}, {high:.3f}], n={len(self.rows)})"


@dataclass(frozen=True)
class EvaluationOptions:
    """How a notebook evaluates a model, with the defaults of conf/run.yaml.

    >>> EvaluationOptions(samples=20, metrics=("likelihood",)).shots
    5
    """

    samples: int = 100
    seed: int = 0
    shots: int = 5
    questions_per_shot: int = 3
    max_new_tokens: int = 12
    metrics: tuple[str, ...] = ()  # further answer metrics, besides f1 and em


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "text",
    transform: str = "baseline",
    *,
    source_dials: dict[str, float] | None = None,
    options: EvaluationOptions | None = None,
    data: str = "short_qa",
) -> Evaluation:
    """Let a frozen model answer questions from embeddings of a source after a transform.

    Args:
        model: A causal LM of transformers that reads `inputs_embeds`, in evaluation mode.
        tokenizer: Its tokenizer.
        source: Name of the source that replaces the embeddings of passage and question: "text", "scaled", ...
        transform: Name of a configuration with its dials: "anchor_eps0.05".
        source_dials: Dials of the source: {"factor": 117.0}.
        options: Examples, shots and metrics.
        data: "short_qa", or a file that `data=file` reads.

    Raises:
        UserError: A name is unknown, a dial is out of range, or the data cannot be read.

    >>> from latentwire import EvaluationOptions, evaluate_model, load_model_by_name
    >>> lm = load_model_by_name("tiny_random")
    >>> options, dials = EvaluationOptions(samples=4, shots=1), {"factor": 117.0}
    >>> evaluate_model(lm.model, lm.tokenizer, "scaled", "rms_scale1.0", source_dials=dials, options=options)
    Evaluation(f1=0.000 [0.000, 0.717], n=4)
    """
    options = options or EvaluationOptions()
    state = accelerator_state(model.device.type)
    batch_tokens = choose_batch_tokens("auto", model.device)
    settings = Settings(
        samples=options.samples, seed=options.seed, shots=options.shots, questions_per_shot=options.questions_per_shot,
        max_new_tokens=options.max_new_tokens, batch_tokens=batch_tokens, dtype="auto",
    )  # fmt: skip
    settings.check()
    spec = DataSpec("short_qa", "short_qa") if data == "short_qa" else DataSpec("file", "file", path=data)
    setup = prepare_with(LanguageModel(model, tokenizer), load_data(spec), settings)
    setup = replace(setup, scoring=Scoring.of(options.metrics, "f1"))
    chosen = Component(source, dict(source_dials or {})), Component(*_named(transform))
    measured, rows = evaluate(setup, *chosen, state, f"{transform} on {source}")
    return Evaluation(measured, rows)


def compare_scores(
    systems: Sequence[Sequence[float]],
    baseline: Sequence[float],
    seed: int = 0,
    passages: Sequence[str] | None = None,
) -> list[Comparison]:
    """Compare systems with a baseline on the same examples, by random flips of signs with Holm's correction.

    Args:
        systems: Scores in [0, 1] of S systems on N examples.
        baseline: Scores of the baseline on the same N examples.
        seed: Seed of the flips.
        passages: Passage of each of N examples, as in `Evaluation.rows`, whose signs flip together. None: each example
            has its own.

    Returns:
        For each system the mean difference, its 95% interval, its p-value, and the p-value corrected over all systems.

    Raises:
        UserError: A score is outside [0, 1], or the numbers of examples differ.

    >>> from latentwire import compare_scores
    >>> better, = compare_scores([[1.0] * 40], [0.0, 1.0] * 20)
    >>> better.difference, better.p_holm < 0.05
    (0.5, True)
    """
    own, reference = np.asarray(systems, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    counts = {len(reference), *map(len, systems), len(reference if passages is None else passages)}
    if len(counts) > 1:
        raise UserError(f"{sorted(counts)} examples: the systems, the baseline and the passages must have as many each")
    if len(outside := [value for value in np.append(own, reference) if not 0 <= value <= 1]):
        raise UserError(f"a score of {outside[0]:g}: must be in [0, 1]; divide all scores by their largest value")
    return compare_paired(own, reference, seed, None if passages is None else SampledClusters(passages), 1.0)
