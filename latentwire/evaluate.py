"""One configuration: examples -> source -> transform -> generation -> metrics."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire import detectors
from latentwire import prompts as prompt_format
from latentwire.accounting import COMPARED as PASSAGES_COMPARED
from latentwire.accounting import Cost, account
from latentwire.data import DataSpec, choose_examples, load_data
from latentwire.detectors import Finding
from latentwire.generation import Decoder, Generated, encode_prefix, plan_batches
from latentwire.harness.device import choose_dtype, gather_from_all, generator_for
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress, say
from latentwire.latent_data import fingerprint
from latentwire.latents import about_latents
from latentwire.metrics import bootstrap_interval, exact_match, f1_score, wilson_interval
from latentwire.models import LanguageModel, ModelSpec, load_model
from latentwire.prompts import Prompt, PromptWriter
from latentwire.sources import SOURCES, Text, build_source
from latentwire.transform import PAIRS, Transform
from latentwire.transforms import TRANSFORMS, build_transform
from latentwire.vocabulary import Vocabulary

PUBLIC = ("id", "question", "references", "prediction", "f1", "em", "cut_off", "change")  # of an example, kept
FITTED_ON = 16384  # embeddings at most that a transform is fitted on; its number goes into the hash
FITTED = {name for name, kind in TRANSFORMS.items() if kind.fits} | {"chain"}  # a chain's steps may be
WARM_UP = 8  # tokens of the shots that are read before the time of reading is taken
FIRST = 4  # examples in the first block of a budgeted result
BEGINNING, COMPARED = 4, 32  # positions of so many spans are held side by side, before and after the repair


@dataclass
class Settings:
    """How a configuration is asked; plain settings at the root of the config."""

    samples: int
    seed: int
    shots: int
    questions_per_shot: int
    max_new_tokens: int
    batch_tokens: int
    dtype: str

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed={self.seed}: must be between 0 and {2**31 - 1}")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")


@dataclass
class Choice:
    """A source or a transform by name, with its dials."""

    name: str
    dials: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """What all the configurations of a sweep share: built once per process, asked by each."""

    lm: LanguageModel
    vocabulary: Vocabulary
    prompts: list[Prompt]
    batches: list[list[int]]  # indices into prompts
    decoder: Decoder
    fitting: list[Tensor]  # token ids of passages and questions that are not asked about, each (T,)
    fitting_passages: list[Tensor]  # those of passages alone
    left_out: dict[str, int]  # questions of the data that were not asked, by reason
    too_long: list[str]  # ids of drawn examples that do not fit into the model's context
    warnings: list[Finding]  # what is odd about the shots and the examples
    settings: Settings
    first: int  # 0, or the size of the first block of examples
    shots_sec: float  # in which the model read the shots


def identity(
    model: ModelSpec,
    data: DataSpec,
    settings: Settings,
    dtype: torch.dtype,
    source: Choice,
    transform: Choice,
    passage: bool,
    first: int,
) -> dict[str, Any]:
    """Return everything that decides a result, for its hash; of a trained encoder its content, not its folder.

    A budgeted result, asked in blocks, is the same one however many of its examples are asked yet.

    Raises:
        UserError: A trained encoder that is not there, or not for this model.
    """
    stands_for = vars(source)
    if "checkpoint" in source.dials:
        about = about_latents(source.dials["checkpoint"], model.identity())
        stands_for = {"name": source.name, "dials": {**source.dials, "checkpoint": about["sha256"]}}
    return {
        "model": model.identity(),
        "data": data.identity(),
        "settings": {**vars(settings), "dtype": str(dtype)},
        "prompt_format": prompt_format.FORMAT,
        "source": stands_for,
        "transform": vars(transform),
        **({"fitted_on": FITTED_ON} if transform.name in FITTED else {}),
        **({} if passage else {"passage": False}),
        **({"first": first} if first else {}),
    }


def prepare(model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState, first: int = 0) -> Bench:
    """Load the data and the model, write the prompts and run the shots through the model once.

    Args:
        model: Whom to ask.
        data: What.
        settings: How.
        state: The device and the processes.
        first: 0, or the size of the first block of examples: those asked later never share a batch with those asked
            before, so that a result can be extended and is the same as if it had been asked at once.

    Raises:
        UserError: Whatever is wrong with the model, the data or the settings.
    """
    settings.check()
    dataset = load_data(data)
    shots, examples = choose_examples(
        dataset, settings.samples, settings.shots, settings.questions_per_shot, settings.seed
    )
    with state.local_main_process_first():
        lm = load_model(model, state.device, choose_dtype(settings.dtype, state.device))
    writer = PromptWriter(lm.tokenizer)
    shot_ids = writer.shots(shots)
    room = lm.context_length - len(shot_ids) - settings.max_new_tokens
    prompts = [writer.prompt(example) for example in examples]
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
    if not fitting:
        raise UserError(
            f"shots={settings.shots}: with {len(shot_ids)} tokens of shots none of the {len(prompts)} examples fits "
            f"into the model's {lm.context_length} positions; lower shots, or choose a model with a longer context"
        )
    asked = {example.context for example in examples}
    encode_prefix(lm, shot_ids[:WARM_UP])  # what is set up at the first pass is no part of reading
    started = time.perf_counter()
    prefix = encode_prefix(lm, shot_ids)
    shots_sec = time.perf_counter() - started  # on an accelerator that lags behind, less than it takes
    decoder = Decoder(lm, prefix, settings.max_new_tokens)
    others = [example for example in dataset.train if example.context not in asked]
    bench = Bench(
        lm=lm,
        vocabulary=Vocabulary(lm.token_embeddings(), seed=settings.seed),
        prompts=fitting,
        batches=[],
        decoder=decoder,
        fitting=writer.spans(others, FITTED_ON),
        fitting_passages=writer.spans(others, FITTED_ON, questions=False),
        left_out=dict(dataset.left_out),
        too_long=[prompt.example.id for prompt in prompts if len(prompt.token_ids) > room],
        warnings=detectors.shots_leak(shots, examples),
        settings=settings,
        first=first,
        shots_sec=shots_sec,
    )
    return replace(bench, batches=_plan(bench))


def without_passages(bench: Bench) -> Bench:
    """Return the bench with the same questions asked without their passages."""
    writer = PromptWriter(bench.lm.tokenizer)
    emptied = replace(bench, prompts=[writer.prompt(prompt.example, passage=False) for prompt in bench.prompts])
    return replace(emptied, batches=_plan(emptied))


def _plan(bench: Bench) -> list[list[int]]:
    """Plan the batches, block by block where there are blocks."""
    bounds = [0, *block_ends(len(bench.prompts), bench.first)]
    batches = []
    for start, end in itertools.pairwise(bounds):
        block = bench.prompts[start:end]
        planned = plan_batches(
            [len(prompt.token_ids) for prompt in block],
            [prompt.example.context for prompt in block],
            bench.decoder.added,
            bench.settings.batch_tokens,
        )
        batches += [[start + index for index in batch] for batch in planned]
    return batches


def block_ends(count: int, first: int) -> list[int]:
    """Return where blocks of examples end: first, twice, four times as many, ..., count; 0 makes one block of all."""
    ends = []
    end = first
    while 0 < end < count:
        ends.append(end)
        end *= 2
    return [*ends, count]


def evaluate(
    bench: Bench,
    source: Choice,
    transform: Choice,
    state: PartialState,
    title: str,
    asked: int | None = None,
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
        asked: Ask only this many of the examples, the end of a block.
        known: Rows of the first examples from before, up to the end of a block; they are not asked again.

    Returns:
        Scores with their intervals and what else is to be known of the run, and one row for each example:
        id, question, references, prediction, f1, em, cut_off, change. Times are those of this run alone.

    Raises:
        UserError: A dial out of range, values that are not finite, a source span that is not in the prompt, or
            embeddings that a transform cannot be fitted on; in every process, whichever met it.
    """
    started = time.perf_counter()
    end = len(bench.prompts) if asked is None else min(asked, len(bench.prompts))
    if end not in block_ends(len(bench.prompts), bench.first):
        raise UserError(f"asked={asked}: must be the end of a block of examples ({bench.first} times 1, 2, 4, ...)")
    before = bench.decoder.seconds, bench.decoder.positions
    share = _Share()
    try:
        _ask_share(bench, source, transform, state, title, range(len(known), end), share)
        error = None
    except Exception as caught:  # told to the other processes, which would wait for this one for ever
        if state.num_processes == 1:
            raise
        error = caught
    failures = [failure for failure in gather_from_all(state, [error]) if failure is not None]
    if failures:
        raise error or failures[0]
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
    bench: Bench, source: Choice, transform: Choice, state: PartialState, title: str, wanted: range, share: _Share
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
def _fit(bench: Bench, distort: Text, repair: Transform, source: Choice, transform: Choice) -> dict[str, Any] | None:
    """Fit a transform that wants it, on the source's embeddings of passages that are not asked about.

    Returns:
        What it was fitted on and what it found; None for a transform that is not fitted.
    """
    if not repair.fits:
        return None
    if not bench.fitting:
        raise UserError(
            f"embed_transform={transform.name}: is fitted on passages that are not asked about, and the data have "
            "none; lower samples, or give another file for the shots (shots_path=FILE)"
        )
    seed = bench.settings.seed
    ids = bench.fitting_passages if distort.passage_only else bench.fitting
    texts = [str(bench.lm.tokenizer.decode(span.tolist())).strip() for span in ids]
    spans = [bench.lm.embed(span.to(bench.lm.device)) for span in ids]
    seen = [
        distort(span, generator_for(seed, source.name, "fitting", index), text).float()
        for index, (span, text) in enumerate(zip(spans, texts, strict=True))
    ]
    if not sum(map(len, seen)):
        raise UserError(f"embed_transform={transform.name}: the source {source.name} gives nothing to fit it on")
    truth = torch.cat(spans).float() if repair.fits == PAIRS else None
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


def _check_span(bench: Bench, prompt: Prompt) -> None:
    texts = [prompt.example.question]
    if prompt.passage:
        texts.append(prompt.example.context)
    decoded = str(bench.lm.tokenizer.decode(prompt.token_ids[prompt.source_mask].tolist()))
    detectors.require_span(int(prompt.source_mask.sum()), decoded, texts, prompt.example.id)


@torch.no_grad()
def _embed(
    bench: Bench,
    prompt: Prompt,
    distort: Text,
    repair: Transform,
    source: Choice,
    transform: Choice,
    share: _Share,
) -> tuple[Tensor, float]:
    """Return the embeddings of a prompt with its span distorted and repaired, (T, D), and the relative change.

    The change is that of the repair alone: |repaired - source| / |source| over the span, 0 if bit-identical.
    """
    identifier, seed = prompt.example.id, bench.settings.seed
    embeds = bench.lm.embed(prompt.token_ids).clone()
    span = (prompt.passage_mask if distort.passage_only else prompt.source_mask).to(embeds.device)
    real = embeds[span]
    seen = distort(real, generator_for(seed, source.name, identifier), prompt.example.context)
    repaired = repair(seen, generator_for(seed, transform.name, identifier)) if len(seen) else seen
    for what, before, after in (
        (f"the source {source.name} {source.dials or ''}".rstrip(), real, seen),
        (f"the transform {transform.name} {transform.dials or ''}".rstrip(), seen, repaired),
    ):
        detectors.require_finite(after, what, identifier)
        share.findings += [
            f for f in detectors.dtype_changed(what, before.dtype, after.dtype) if f not in share.findings
        ]
    if len(seen) >= BEGINNING and len(share.beginnings) < COMPARED:
        share.beginnings.append((seen[:BEGINNING].cpu(), repaired[:BEGINNING].cpu()))
    embeds = _put(embeds, span, repaired.to(embeds.dtype))
    room = bench.lm.context_length - bench.decoder.prefix.length - bench.decoder.max_new_tokens
    if len(embeds) > room:
        raise UserError(
            f"the source {source.name} {source.dials or ''} makes {len(repaired)} positions of the passage of example "
            f"{identifier}, more than the model's context has room for; lower shots, or use fewer positions"
        )
    change = (repaired.float() - seen.float()).norm() / seen.float().norm().clamp_min(1e-30)
    return embeds, float(change)


def _put(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
    """Put (L, D) in the place of a span of (T, D); with another number of positions the span must be in one piece."""
    places = span.nonzero().flatten()
    if len(places) == len(replacement):
        embeds[span] = replacement
        return embeds
    start, end = int(places[0]), int(places[-1]) + 1
    assert end - start == len(places), "a span in several pieces cannot change its length"
    return torch.cat([embeds[:start], replacement, embeds[end:]])


@torch.no_grad()
def _account(bench: Bench, source: Choice, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
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
        Cost(text, count, distort.positions(count), distort.size(count))
        for text, count in zip(contexts, tokens, strict=True)
    ]
    latents = [
        distort(
            bench.lm.embed(prompt.token_ids[prompt.passage_mask]),
            generator_for(seed, source.name, prompt.example.id),
            text,
        ).float()
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
        say(f"warning: {warning}")
    return found


def _row(index: int, prompt: Prompt, output: Generated, change: float, reused: bool) -> dict[str, Any]:
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


def _summarize(bench: Bench, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
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
