"""One configuration: examples -> source -> transform -> generation -> metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.analysis.findings import Finding
from latentwire.data.fingerprints import fingerprint
from latentwire.data.prompts import FewShotPrompt
from latentwire.encoders.checkpoint import about_latents
from latentwire.encoders.cost import COMPARED as PASSAGES_COMPARED
from latentwire.encoders.cost import LatentCost, account
from latentwire.evaluation import detectors
from latentwire.evaluation.metrics import exact_match, f1_score
from latentwire.evaluation.setup import Component, EvaluationSetup, block_ends
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all, in_every_process
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.lm.decoding import Generated
from latentwire.sources.base import Source
from latentwire.sources.registry import SOURCES, build_source
from latentwire.stats.intervals import bootstrap_interval, wilson_interval
from latentwire.transforms.base import PAIRS, Transform
from latentwire.transforms.registry import build_transform

PUBLIC = ("id", "question", "references", "prediction", "f1", "em", "cut_off", "change")  # of an example, kept
BEGINNING, COMPARED = 4, 32  # positions of so many spans are held side by side, before and after the repair


def evaluate(
    bench: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    num_examples: int | None = None,
    known: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask every example through one source and one transform.

    With several processes each takes every n-th batch; all of them return the same.

    Args:
        bench: Model, prompts and settings.
        source: What distorts.
        transform: What repairs.
        state: The device and the processes.
        title: For the progress shown.
        num_examples: Ask only this many of the examples, the end of a block.
        known: Rows of the first examples from before, up to the end of a block; they are not num_examples again.

    Returns:
        Scores with their intervals and what else is to be known of the run, and one row for each example:
        id, question, references, prediction, f1, em, cut_off, change. Times are those of this run alone.

    Raises:
        UserError: A dial out of range, values that are not finite, a source span that is not in the prompt, or
            embeddings that a transform cannot be fitted on; in every process, whichever met it.
    """
    started = time.perf_counter()
    end = len(bench.prompts) if num_examples is None else min(num_examples, len(bench.prompts))
    if end not in block_ends(len(bench.prompts), bench.first):
        raise UserError(
            f"num_examples={num_examples}: must be the end of a block of examples ({bench.first} times 1, 2, 4, ...)"
        )
    before = bench.decoder.seconds, bench.decoder.positions
    share = _Share()
    wanted = range(len(known), end)
    in_every_process(state, lambda: _ask_share(bench, source, transform, state, title, wanted, share))
    rows = sorted(gather_from_all(state, share.rows), key=lambda row: row["index"])
    decoder = bench.decoder
    costs = gather_from_all(state, [(decoder.seconds - before[0], decoder.positions - before[1])])
    timing = {
        "decoded": sum(not row["reused"] for row in rows),
        "reused": sum(row["reused"] for row in rows),
        "decode_sec": round(sum(seconds for seconds, _ in costs), 6),
        "positions": sum(positions for _, positions in costs),
        "shots_sec": round(bench.shots_sec, 6),
        "shots_positions": decoder.prefix.length,
    }
    public = [*known, *(_public(row) for row in rows)]
    findings = [*bench.warnings, *gather_from_all(state, share.findings)]
    findings += detectors.changes_nothing(transform.name, [row["change"] for row in public])
    findings += detectors.odd_predictions([row["prediction"] for row in public], [row["references"] for row in public])
    seconds = round(time.perf_counter() - started, 3)
    scores = {
        **_summarize(bench, public, bench.settings.seed),
        "warnings": _distinct(findings),
        "fit": share.fit,
        "latents": _account(bench, source, public),
        "time_sec": seconds,
        "timing": timing,
    }
    return scores, public


@dataclass
class _Share:
    """What one process found out."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    fit: dict[str, Any] | None = None  # what the transform was fitted on and what it found
    beginnings: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of spans before and after the repair


def _distinct(findings: list[Finding]) -> list[Finding]:
    return [finding for place, finding in enumerate(findings) if finding not in findings[:place]]


def _ask_share(
    bench: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    wanted: range,
    share: _Share,
) -> None:
    """Ask the examples of this process, batch by batch."""
    seed = bench.settings.seed
    distort = build_source(source.name, source.dials, bench.vocabulary, generator_for(seed, source.name))
    repair = build_transform(transform.name, transform.dials, bench.vocabulary)
    repair.to(bench.lm.device)
    share.fit = _fit(bench, distort, repair, source, transform)
    batches = [batch for batch in bench.batches if all(index in wanted for index in batch)]
    batches = batches[state.process_index :: state.num_processes]
    with Progress(title, sum(len(batch) for batch in batches)) as progress:
        for batch in batches:
            inputs, changes = [], []
            for index in batch:
                _check_span(bench, bench.prompts[index])
                embeds, change = _embed(bench, bench.prompts[index], distort, repair, source, transform, share)
                inputs.append(embeds)
                changes.append(change)
            outputs, reused = bench.decoder.decode(inputs)
            for index, output, change in zip(batch, outputs, changes, strict=True):
                share.rows.append(_row(index, bench.prompts[index], output, change, reused))
            progress.advance(len(batch), f"F1 {sum(row['f1'] for row in share.rows) / len(share.rows):.3f}")
    if len(share.beginnings) > 1:
        befores, afters = zip(*share.beginnings, strict=True)
        share.findings += detectors.same_output(befores, afters)


@torch.no_grad()
def _fit(
    bench: EvaluationSetup, distort: Source, repair: Transform, source: Component, transform: Component
) -> dict[str, Any] | None:
    """Fit a transform that wants it, on the source's embeddings of passages that are not num_examples about.

    Returns:
        What it was fitted on and what it found; None for a transform that is not fitted.
    """
    if not repair.fits:
        return None
    if not bench.fitting:
        raise UserError(
            f"embed_transform={transform.name}: is fitted on passages that are not num_examples about, and the data have "
            "none; lower samples, or give another file for the shots (shots_path=FILE)"
        )
    seed = bench.settings.seed
    ids = bench.fitting_passages if distort.passage_only else bench.fitting
    texts = [str(bench.lm.tokenizer.decode(span.tolist())).strip() for span in ids]
    spans = [bench.lm.embed(span.to(bench.lm.device)).float() for span in ids]
    seen = [
        distort(span, generator_for(seed, source.name, "fitting", index), text)
        for index, (span, text) in enumerate(zip(spans, texts, strict=True))
    ]
    if not sum(map(len, seen)):
        raise UserError(f"embed_transform={transform.name}: the source {source.name} gives nothing to fit it on")
    truth = torch.cat(spans) if repair.fits == PAIRS else None
    x = torch.cat(seen)
    if truth is not None and len(truth) != len(x):
        raise UserError(
            f"embed_transform={transform.name}: is fitted to pairs of embedding and token, and the source "
            f"{source.name} has another number of positions than the text has tokens; choose one that sees no pairs"
        )
    repair.fit(x, truth, generator_for(seed, transform.name, "fitting"))
    return {
        "embeddings": len(x),
        "sees": repair.fits,
        "supervised": repair.fits == PAIRS,
        "diagnosis": repair.diagnosis,
    }


def _check_span(bench: EvaluationSetup, prompt: FewShotPrompt) -> None:
    texts = [prompt.example.question]
    if prompt.passage:
        texts.append(prompt.example.context)
    decoded = str(bench.lm.tokenizer.decode(prompt.token_ids[prompt.source_mask].tolist()))
    detectors.require_span(int(prompt.source_mask.sum()), decoded, texts, prompt.example.id)


@torch.no_grad()
def _embed(
    bench: EvaluationSetup,
    prompt: FewShotPrompt,
    distort: Source,
    repair: Transform,
    source: Component,
    transform: Component,
    share: _Share,
) -> tuple[Tensor, float]:
    """Return the embeddings of a prompt with its span distorted and repaired, (T, D), and the relative change.

    The change is that of the repair alone: |repaired - source| / |source| over the span, 0 if bit-identical.
    """
    identifier, seed = prompt.example.id, bench.settings.seed
    embeds = bench.lm.embed(prompt.token_ids).clone()
    span = (prompt.passage_mask if distort.passage_only else prompt.source_mask).to(embeds.device)
    real = embeds[span].float()  # an encoder's outputs and their repair are float32; the LM rounds them once
    seen = distort(real, generator_for(seed, source.name, identifier), prompt.example.context)
    repaired = repair(seen, generator_for(seed, transform.name, identifier)) if len(seen) else seen
    for what, before, after in (
        (f"the source {source.name} {source.dials or ''}".rstrip(), real, seen),
        (f"the transform {transform.name} {transform.dials or ''}".rstrip(), seen, repaired),
    ):
        detectors.require_finite_values(after, what, identifier)
        share.findings += [
            f for f in detectors.dtype_changed(what, before.dtype, after.dtype) if f not in share.findings
        ]
    if len(seen) >= BEGINNING and len(share.beginnings) < COMPARED:
        share.beginnings.append((seen[:BEGINNING].cpu(), repaired[:BEGINNING].cpu()))
    embeds = put_passage(embeds, span, repaired.to(embeds.dtype))
    room = bench.lm.context_length - bench.decoder.prefix.length - bench.decoder.max_new_tokens
    if len(embeds) > room:
        raise UserError(
            f"the source {source.name} {source.dials or ''} makes {len(repaired)} positions of the passage of example "
            f"{identifier}, more than the model's context has room for; lower shots, or use fewer positions"
        )
    change = (repaired - seen).norm() / seen.norm().clamp_min(1e-30)
    return embeds, float(change)


def put_passage(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
    """Put (L, D) in the place of a span of (T, D); with another number of positions the span must be in one piece."""
    places = span.nonzero().flatten()
    if len(places) == len(replacement):
        embeds[span] = replacement
        return embeds
    start, end = int(places[0]), int(places[-1]) + 1
    assert end - start == len(places), "a span in several pieces cannot change its length"
    return torch.cat([embeds[:start], replacement, embeds[end:]])


@torch.no_grad()
def _account(bench: EvaluationSetup, source: Component, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Say what latents cost, whether they differ, and how many of the passages the encoder was trained on.

    None for a source that stands for more than the passage.
    """
    if not SOURCES[source.name].passage_only:
        return None
    seed = bench.settings.seed
    distort = build_source(source.name, source.dials, bench.vocabulary, generator_for(seed, source.name))
    prompts = bench.prompts[: len(rows)]
    contexts = [prompt.example.context for prompt in prompts]
    tokens = [int(prompt.passage_mask.sum()) for prompt in prompts]
    costs = [
        LatentCost(text, count, distort.positions(count), distort.size(count))
        for text, count in zip(contexts, tokens, strict=True)
    ]
    latents = [
        distort(
            bench.lm.embed(prompt.token_ids[prompt.passage_mask]).float(),
            generator_for(seed, source.name, prompt.example.id),
            text,
        )
        for text, prompt in list(dict(zip(contexts, prompts, strict=True)).items())[:PASSAGES_COMPARED]
    ]
    found = account(costs, latents, [row["prediction"] for row in rows], [row["references"][0] for row in rows])
    if "checkpoint" in source.dials:
        known = set(about_latents(source.dials["checkpoint"])["trained_on"])
        found["seen_in_training"] = sum(fingerprint(text) in known for text in contexts)
        if found["seen_in_training"]:
            found["warnings"].append(
                f"{found['seen_in_training']} of {len(rows)} examples ask about passages that the encoder was trained "
                "or stopped by: their scores are no evidence"
            )
    for warning in found["warnings"]:
        log(f"warning: {warning}")
    return found


def _row(index: int, prompt: FewShotPrompt, output: Generated, change: float, reused: bool) -> dict[str, Any]:
    example = prompt.example
    return {
        "index": index,
        "id": example.id,
        "question": example.question,
        "references": list(example.answers),
        "prediction": output.text,
        "f1": f1_score(output.text, example.answers),
        "em": exact_match(output.text, example.answers),
        "cut_off": output.cut_off,
        "change": change,
        "reused": reused,
    }


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in PUBLIC}


def _summarize(bench: EvaluationSetup, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the means over examples, each with its 95% interval."""
    count = len(rows)

    def total(score: Callable[[dict[str, Any]], float]) -> float:
        return float(sum(score(row) for row in rows))

    exact, empty = total(lambda row: row["em"]), total(lambda row: not row["prediction"])
    return {
        "f1": total(lambda row: row["f1"]) / count,
        "f1_interval": bootstrap_interval([row["f1"] for row in rows], seed),
        "em": exact / count,
        "em_interval": wilson_interval(exact, count),
        "empty_rate": empty / count,
        "empty_rate_interval": wilson_interval(empty, count),
        "num_samples": count,
        "too_long": len(bench.too_long),
        "too_long_ids": bench.too_long,
        "left_out": bench.left_out,
        "cut_off": int(total(lambda row: row["cut_off"])),
        "relative_change": total(lambda row: row["change"]) / count,
        "identity": all(row["change"] == 0 for row in rows),
    }
