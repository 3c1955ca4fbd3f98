"""Evaluation of one configuration: examples, source, transform, generation, metrics. Main entry: `evaluate()`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import PartialState

from latentwire.analysis.controls import CLEAN_SOURCE
from latentwire.analysis.finished import NEAR
from latentwire.data.fingerprints import fingerprint
from latentwire.encoders.checkpoint import about_latents
from latentwire.encoders.cost import COMPARED, LatentCost, account
from latentwire.evaluation import detectors
from latentwire.evaluation.inputs import RepairedInputs, RepairedSpan
from latentwire.evaluation.likelihood import first_answer
from latentwire.evaluation.metrics import ALWAYS, ANSWER_METRICS
from latentwire.evaluation.setup import Component, EvaluationSetup, block_ends
from latentwire.evaluation.span_checks import SpanChecks
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all, in_every_process
from latentwire.harness.progress import Progress, log
from latentwire.lm.decoding import Generated
from latentwire.records import ExampleRow, Finding, Fit, LatentAccount, Measured, Timing
from latentwire.sources.registry import SOURCES
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import mean_interval


def evaluate(
    setup: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    num_examples: int | None = None,
    known: Sequence[ExampleRow] = (),
) -> tuple[Measured, list[ExampleRow]]:
    """Evaluate the examples with one source and one transform.

    With n processes, each takes every n-th batch, and all return the same values.

    Args:
        setup: Model, prompts, settings and answer metrics.
        source: Source that replaces the embeddings of the passage.
        transform: Transform that repairs them.
        state: Device and processes.
        title: Title of the progress bar.
        num_examples: Number of examples to evaluate, which must be the end of a block; None: all.
        known: Finished rows of the first examples, up to the end of a block; they are not evaluated again.

    Returns:
        The scores with intervals, findings and timings of this run, and one row for each example.

    Raises:
        UserError: A dial is out of range, a value is not finite, or a prompt lacks its source span. Also: a transform
            cannot be fitted on the embeddings, or a metric gives no score. Every process raises the error of any
            process.
    """
    started = time.perf_counter()
    end = len(setup.prompts) if num_examples is None else min(num_examples, len(setup.prompts))
    if end not in block_ends(len(setup.prompts), setup.block_size):
        raise UserError(
            f"num_examples={num_examples}: must be the end of a block of examples "
            f"({setup.block_size} times 1, 2, 4, ...)"
        )
    setup = setup.with_shots_of(source)
    before = setup.decoder.seconds, setup.decoder.positions
    share = _Share()
    wanted = range(len(known), end)
    in_every_process(state, lambda: _evaluate_share(setup, source, transform, state, title, wanted, share))
    answers = sorted(gather_from_all(state, share.answers), key=lambda answer: answer.index)
    timing = _timing(setup, state, answers, before)
    rows = [*known, *(answer.row for answer in answers)]
    findings = [*setup.warnings, *gather_from_all(state, share.findings)]
    findings += detectors.changes_nothing(transform.name, [row["change"] for row in rows])
    findings += detectors.odd_predictions(
        [row["prediction"] for row in rows], [row["references"] for row in rows], _is_far(source, rows)
    )
    seconds = round(time.perf_counter() - started, 3)
    measured = _summarize(setup, rows) | {
        "warnings": _distinct(findings),
        "fit": share.fit,
        "latents": _account_for_latents(setup, source, rows),
        "time_sec": seconds,
        "timing": timing,
    }
    if sketch := gather_from_all(state, share.sketch):  # the main process has it
        measured["sketch"] = sketch
    return measured, rows


def _is_far(source: Component, rows: Sequence[ExampleRow]) -> bool:
    """Return whether the inputs are far from real embeddings, as `analysis.finished` decides it."""
    distances = [row["distance"] for row in rows if "distance" in row]
    return sum(distances) >= NEAR * len(distances) if distances else source.name != CLEAN_SOURCE


@dataclass(frozen=True)
class _Answer:
    """The answer to one example."""

    index: int  # among the prompts
    row: ExampleRow
    reused: bool  # whether the decoder took it from its cache


@dataclass
class _Share:
    """Results of one process."""

    answers: list[_Answer] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    fit: Fit | None = None
    sketch: list[float] = field(default_factory=list)


def _timing(setup: EvaluationSetup, state: PartialState, answers: list[_Answer], before: tuple[float, int]) -> Timing:
    """Return the cost of the answers in all processes, from the decoder's seconds and positions before them."""
    decoder = setup.decoder
    costs = gather_from_all(state, [(decoder.seconds - before[0], decoder.positions - before[1])])
    return {
        "decoded": sum(not answer.reused for answer in answers),
        "reused": sum(answer.reused for answer in answers),
        "decode_sec": round(sum(seconds for seconds, _ in costs), 6),
        "positions": sum(positions for _, positions in costs),
        "shots_sec": round(setup.shots_sec, 6),
        "shots_positions": decoder.prefix.length,
    }


def _distinct(findings: list[Finding]) -> list[Finding]:
    return [finding for index, finding in enumerate(findings) if finding not in findings[:index]]


def _evaluate_share(
    setup: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    wanted: range,
    share: _Share,
) -> None:
    """Evaluate the examples of this process, batch by batch."""
    inputs = RepairedInputs(setup, source, transform)
    checks = SpanChecks(inputs)
    share.fit = inputs.fit
    batches = [batch for batch in setup.batches if all(index in wanted for index in batch)]
    batches = batches[state.process_index :: state.num_processes]
    shown = ANSWER_METRICS[setup.scoring.primary]
    with Progress(title, sum(len(batch) for batch in batches)) as progress:
        for batch in batches:
            embeds, spans = zip(*(inputs.embed(setup.prompts[index]) for index in batch), strict=True)
            outputs, reused = setup.decoder.decode(list(embeds))
            logps: Sequence[Sequence[float] | None] = [None] * len(batch)
            if setup.scoring.needs_model:
                answers = [first_answer(setup, setup.prompts[index].example) for index in batch]
                logps = setup.decoder.answer_logps(list(embeds), answers)
            for index, output, span, logp in zip(batch, outputs, spans, logps, strict=True):
                share.answers.append(_Answer(index, _row(setup, index, output, span, logp), reused))
                checks.observe(index, span)
            mean = sum(answer.row["scores"][shown.name] for answer in share.answers) / len(share.answers)
            progress.advance(len(batch), f"{shown.label} {mean:.3f}")
    setup.vocabulary.require_unchanged(f"{source.label}, {transform.label}")
    share.findings = inputs.findings()
    if wanted.start == 0 and state.process_index == 0:  # an extended result keeps what its first examples showed
        checks.complete()
        share.findings += checks.findings()
        share.sketch = checks.sketch()


@torch.no_grad()
def _account_for_latents(setup: EvaluationSetup, source: Component, rows: list[ExampleRow]) -> LatentAccount | None:
    """Return what latents cost, how much they differ, and how many passages the encoder was trained on.

    Returns:
        The accounting, or None for a source that also replaces the question.
    """
    if not SOURCES[source.name].passage_only:
        return None
    distort = setup.build_source(source)
    prompts = setup.prompts[: len(rows)]
    contexts = [prompt.example.context for prompt in prompts]
    tokens = [int(prompt.passage_mask.sum()) for prompt in prompts]
    costs = [
        LatentCost(text, count, distort.positions(count), distort.size(count))
        for text, count in zip(contexts, tokens, strict=True)
    ]
    latents = [
        distort(
            setup.lm.embed(prompt.token_ids[prompt.passage_mask]).float(),
            setup.settings.generator(source.name, prompt.example.id),
            text,
        )[distort.token_positions(int(prompt.passage_mask.sum()))]
        for text, prompt in list(dict(zip(contexts, prompts, strict=True)).items())[:COMPARED]
    ]
    found = account(costs, latents, [row["prediction"] for row in rows], [row["references"][0] for row in rows])
    if (folder := distort.encoder_folder(source.dials)) is not None:
        known = set(about_latents(folder)["trained_on"])
        found["seen_in_training"] = sum(fingerprint(text) in known for text in contexts)
        if found["seen_in_training"]:
            found["warnings"].append(
                f"{found['seen_in_training']} of {len(rows)} examples ask about passages that trained or stopped the "
                "encoder: their scores are not evidence"
            )
    for warning in found["warnings"]:
        log(f"warning: {warning}")
    return found


def _row(
    setup: EvaluationSetup, index: int, output: Generated, span: RepairedSpan, logps: Sequence[float] | None
) -> ExampleRow:
    """Return the scored answer to an example.

    Args:
        setup: Prompts and answer metrics.
        index: Index of the example among the prompts.
        output: The answer.
        span: The example's span before and after source and transform.
        logps: Log-probabilities of the tokens of the first right answer, if a metric needs them.
    """
    example = setup.prompts[index].example
    scores = {
        metric.name: metric.score(output.text, example.answers, example.id, logps) for metric in setup.scoring.metrics
    }
    row: ExampleRow = {
        "id": example.id,
        "question": example.question,
        "references": list(example.answers),
        "prediction": output.text,
        "f1": scores["f1"],
        "em": scores["em"],
        "scores": scores,
        "cut_off": output.cut_off,
        "change": span.change,
        "passage": fingerprint(example.context),
        "tokens": len(output.token_ids),
    }
    if (distance := span.distance) is not None:
        row["distance"] = distance
    return row


def _summarize(setup: EvaluationSetup, rows: list[ExampleRow]) -> Measured:
    """Return the means over the examples with 95% intervals, and counts."""
    count = len(rows)
    passages = [row["passage"] for row in rows]
    scores = {
        metric.name: metric.summarize([row["scores"][metric.name] for row in rows], passages)
        for metric in setup.scoring.metrics
    }
    f1, em = (scores[name] for name in ALWAYS)
    empty = [float(not row["prediction"]) for row in rows]
    return {
        "f1": f1["mean"],
        "f1_interval": f1["interval"],
        "em": em["mean"],
        "em_interval": em["interval"],
        "scores": scores,
        "empty_rate": sum(empty) / count,
        "empty_rate_interval": mean_interval(empty, SampledClusters(passages)),
        "num_samples": count,
        "available": setup.available,
        "too_long": len(setup.too_long),
        "too_long_ids": setup.too_long,
        "left_out": setup.left_out,
        "cut_off": int(sum(row["cut_off"] for row in rows)),
        "relative_change": float(sum(row["change"] for row in rows)) / count,
        "identity": all(row["change"] == 0 for row in rows),
    }
