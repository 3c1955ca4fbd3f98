"""One configuration: examples -> source -> transform -> generation -> metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire import prompts as prompt_format
from latentwire.data import DataSpec, choose_examples, load_data
from latentwire.generation import Decoder, Generated, encode_prefix, plan_batches
from latentwire.harness.device import choose_dtype, gather_from_all, generator_for
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress
from latentwire.metrics import bootstrap_interval, exact_match, f1_score, wilson_interval
from latentwire.models import LanguageModel, ModelSpec, load_model
from latentwire.prompts import Prompt, PromptWriter
from latentwire.sources import Text, build_source
from latentwire.transform import PAIRS, Transform
from latentwire.transforms import TRANSFORMS, build_transform
from latentwire.vocabulary import Vocabulary

FITTED_ON = 16384  # embeddings at most that a transform is fitted on; its number goes into the hash
FITTED = {name for name, kind in TRANSFORMS.items() if kind.fits} | {"chain"}  # a chain's steps may be


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
    left_out: dict[str, int]  # questions of the data that were not asked, by reason
    too_long: list[str]  # ids of drawn examples that do not fit into the model's context


def identity(
    model: ModelSpec,
    data: DataSpec,
    settings: Settings,
    dtype: torch.dtype,
    source: Choice,
    transform: Choice,
) -> dict[str, Any]:
    """Return everything that decides a result, for its hash."""
    fitted = {"fitted_on": FITTED_ON} if transform.name in FITTED else {}
    return {
        **fitted,
        "model": model.identity(),
        "data": data.identity(),
        "settings": {**vars(settings), "dtype": str(dtype)},
        "prompt_format": prompt_format.FORMAT,
        "source": vars(source),
        "transform": vars(transform),
    }


def prepare(model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState) -> Bench:
    """Load the data and the model, write the prompts and run the shots through the model once.

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
    decoder = Decoder(lm, encode_prefix(lm, shot_ids), settings.max_new_tokens)
    return Bench(
        lm=lm,
        vocabulary=Vocabulary(lm.token_embeddings(), seed=settings.seed),
        prompts=fitting,
        batches=plan_batches(
            [len(prompt.token_ids) for prompt in fitting],
            [prompt.example.context for prompt in fitting],
            decoder.added,
            settings.batch_tokens,
        ),
        decoder=decoder,
        fitting=writer.spans([example for example in dataset.train if example.context not in asked], FITTED_ON),
        left_out=dict(dataset.left_out),
        too_long=[prompt.example.id for prompt in prompts if len(prompt.token_ids) > room],
    )


def evaluate(
    bench: Bench, source: Choice, transform: Choice, seed: int, state: PartialState, title: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask every example through one source and one transform.

    With several processes each takes every n-th batch; all of them return the same.

    Returns:
        Scores with their intervals and what else is to be known of the run, and one row for each example:
        id, question, references, prediction, f1, em.

    Raises:
        UserError: A dial out of range, values that are not finite, or embeddings that a transform cannot be fitted
            on; in every process, whichever met it.
    """
    started = time.perf_counter()
    fitted: dict[str, Any] | None = None
    try:
        distort = build_source(source.name, source.dials, bench.vocabulary, generator_for(seed, source.name))
        repair = build_transform(transform.name, transform.dials, bench.vocabulary)
        repair.to(bench.lm.device)
        fitted = _fit(bench, distort, repair, source, transform, seed)
        rows, error = _ask_share(bench, distort, repair, source, transform, seed, state, title), None
    except Exception as caught:  # told to the other processes, which would wait for this one for ever
        if state.num_processes == 1:
            raise
        rows, error = [], caught
    failures = [failure for failure in gather_from_all(state, [error]) if failure is not None]
    if failures:
        raise error or failures[0]
    rows = sorted(gather_from_all(state, rows), key=lambda row: row["index"])
    scores = _summarize(bench, rows, seed, time.perf_counter() - started)
    return {**scores, "fit": fitted}, [_public(row) for row in rows]


@torch.no_grad()
def _fit(
    bench: Bench, distort: Text, repair: Transform, source: Choice, transform: Choice, seed: int
) -> dict[str, Any] | None:
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
    spans = [bench.lm.embed(ids.to(bench.lm.device)) for ids in bench.fitting]
    seen = [
        distort(span, generator_for(seed, source.name, "fitting", index)).float() for index, span in enumerate(spans)
    ]
    truth = torch.cat(spans).float() if repair.fits == PAIRS else None
    x = torch.cat(seen)
    repair.fit(x, truth, generator_for(seed, transform.name, "fitting"))
    return {
        "embeddings": len(x),
        "sees": repair.fits,
        "supervised": repair.fits == PAIRS,
        "diagnosis": repair.diagnosis,
    }


def _ask_share(
    bench: Bench,
    distort: Text,
    repair: Transform,
    source: Choice,
    transform: Choice,
    seed: int,
    state: PartialState,
    title: str,
) -> list[dict[str, Any]]:
    """Ask the examples of this process, batch by batch."""
    share = bench.batches[state.process_index :: state.num_processes]
    rows: list[dict[str, Any]] = []
    with Progress(title, sum(len(batch) for batch in share)) as progress:
        for batch in share:
            inputs, changes = [], []
            for index in batch:
                embeds, change = _embed(bench, bench.prompts[index], distort, repair, source, transform, seed)
                inputs.append(embeds)
                changes.append(change)
            outputs, reused = bench.decoder.decode(inputs)
            for index, output, change in zip(batch, outputs, changes, strict=True):
                rows.append(_row(index, bench.prompts[index], output, change, reused))
            progress.advance(len(batch), f"F1 {sum(row['f1'] for row in rows) / len(rows):.3f}")
    return rows


@torch.no_grad()
def _embed(
    bench: Bench,
    prompt: Prompt,
    distort: Text,
    repair: Transform,
    source: Choice,
    transform: Choice,
    seed: int,
) -> tuple[Tensor, float]:
    """Return the embeddings of a prompt with its span distorted and repaired, (T, D), and the relative change.

    The change is that of the repair alone: |repaired - source| / |source| over the span, 0 if bit-identical.
    """
    identifier = prompt.example.id
    embeds = bench.lm.embed(prompt.token_ids).clone()
    span = prompt.source_mask.to(embeds.device)
    seen = distort(embeds[span], generator_for(seed, source.name, identifier))
    repaired = repair(seen, generator_for(seed, transform.name, identifier))
    for what, name, tensor in (("source", source.name, seen), ("transform", transform.name, repaired)):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"the {what} {name} {transform.dials or ''} gave NaN or infinite values for example {identifier}; "
                "nothing can be read from them: use less extreme dials, or dtype=float32"
            )
    embeds[span] = repaired
    change = (repaired.float() - seen.float()).norm() / seen.float().norm().clamp_min(1e-30)
    return embeds, float(change)


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
    return {key: row[key] for key in ("id", "question", "references", "prediction", "f1", "em")}


def _summarize(bench: Bench, rows: list[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
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
        "time_sec": round(seconds, 3),
        "timing": {
            "examples_per_sec": round(count / seconds, 3),
            "decoded": int(total(lambda row: not row["reused"])),
            "reused": int(total(lambda row: row["reused"])),
        },
    }
