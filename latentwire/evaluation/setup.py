"""What all the configurations of a sweep share: model, data, prompts and shots; and what identifies a result."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.analysis.findings import Finding
from latentwire.data import prompts as prompt_format
from latentwire.data.examples import DataSpec, choose_examples, load_data
from latentwire.data.prompts import FewShotPrompt, PromptWriter
from latentwire.encoders.checkpoint import about_latents
from latentwire.evaluation import detectors
from latentwire.harness.device import choose_dtype
from latentwire.harness.errors import UserError
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder, encode_prefix
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.registry import TRANSFORMS

FITTED_ON = 16384  # embeddings at most that a transform is fitted on; its number goes into the hash
FITTED = {name for name, kind in TRANSFORMS.items() if kind.fits} | {"chain"}  # a chain's steps may be
WARM_UP = 8  # tokens of the shots that are read before the time of reading is taken
FIRST = 4  # examples in the first block of a budgeted result


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
class Component:
    """A source or a transform by name, with its dials."""

    name: str
    dials: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationSetup:
    """What all the configurations of a sweep share: built once per process, asked by each."""

    lm: LanguageModel
    vocabulary: Vocabulary
    prompts: list[FewShotPrompt]
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
    source: Component,
    transform: Component,
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


def prepare(
    model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState, first: int = 0
) -> EvaluationSetup:
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
    bench = EvaluationSetup(
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


def without_passages(bench: EvaluationSetup) -> EvaluationSetup:
    """Return the bench with the same questions asked without their passages."""
    writer = PromptWriter(bench.lm.tokenizer)
    emptied = replace(bench, prompts=[writer.prompt(prompt.example, passage=False) for prompt in bench.prompts])
    return replace(emptied, batches=_plan(emptied))


def _plan(bench: EvaluationSetup) -> list[list[int]]:
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
