"""The model, prompts and shots that the configurations of a sweep share. Main entry: `prepare()`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.data.examples import PARTS, Dataset, DataSpec, draw_examples, first_examples, load_data
from latentwire.data.prompts import FewShotPrompt, PromptWriter, ShotPiece
from latentwire.evaluation import detectors
from latentwire.evaluation.decoding_check import check_decoding
from latentwire.evaluation.metrics import Scoring
from latentwire.harness.errors import UserError
from latentwire.harness.precision import choose_dtype
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder, encode_prefix, encode_prefix_embeds
from latentwire.lm.digest import digest
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.shots import shots_embeds
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary
from latentwire.records import Finding
from latentwire.sources.base import Source
from latentwire.sources.registry import SOURCES, build_source

FITTED_ON = 16384  # transforms are fitted on at most this many embeddings; part of the hash
WARM_UP = 8  # the model encodes this many tokens of the shots before the timing starts
FIRST_BLOCK = 16  # examples in the first block of a budgeted result; fewer decide nothing


@dataclass
class Settings:
    """How a configuration is evaluated: settings at the root of the config."""

    samples: int
    seed: int
    shots: int
    questions_per_shot: int
    max_new_tokens: int
    batch_tokens: int
    dtype: str
    part: str = "all"  # one of `data.examples.PARTS`
    shots_seed: int | None = None  # seed of the shots; None: seed
    draw: int = 0  # number of the draw of shots, sources and transforms

    def check(self) -> None:
        """Raise UserError if a value is out of range."""
        for name, seed in (("seed", self.seed), ("shots_seed", self.shots_seed)):
            if seed is not None and not 0 <= seed < 2**31:
                raise UserError(f"{name}={seed}: must be between 0 and {2**31 - 1}")
        if self.part not in PARTS:
            raise UserError(f"part={self.part}: use one of {', '.join(PARTS)}")
        if self.draw < 0:
            raise UserError(f"draw={self.draw}: must be at least 0")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")

    def identity(self) -> JsonObject:
        """Return the settings for a config hash, without those at a default that changes no result of before."""
        unchanged: JsonObject = {"part": "all", "shots_seed": self.seed, "draw": 0}
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value for name, value in given.items() if name not in unchanged or value != unchanged[name]}

    def generator(self, *names: object) -> torch.Generator:
        """Return the CPU generator of a source or a transform, which depends on the seed, the draw and the names."""
        return generator_for(self.seed, *self._of_draw(), *names)

    def seed_of_shots(self) -> int:
        """Return the seed with which this draw chooses the shots."""
        seed = self.seed if self.shots_seed is None else self.shots_seed
        return generator_for(seed, *self._of_draw(), "shots").initial_seed() if self.draw else seed

    def seed_of_codes(self) -> int:
        """Return the seed with which this draw fits the codes of the vocabulary."""
        return self.generator("codes").initial_seed() % 2**31 if self.draw else self.seed

    def _of_draw(self) -> tuple[object, ...]:
        return ("draw", self.draw) if self.draw else ()


@dataclass
class Component:
    """Name and dials of a source or a transform."""

    name: str
    dials: JsonObject = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name with the dials, for messages."""
        return f"{self.name} {self.dials or ''}".rstrip()


@dataclass
class EvaluationSetup:
    """Model, prompts and shots that all configurations of a sweep share; each process builds them once."""

    lm: LanguageModel
    vocabulary: Vocabulary
    prompts: list[FewShotPrompt]
    batches: list[list[int]]  # indices into prompts
    decoder: Decoder
    fitting: list[Tensor]  # token ids of passages and questions outside the evaluation, each (T,)
    fitting_passages: list[Tensor]  # token ids of passages alone, outside the evaluation, each (T,)
    left_out: dict[str, int]  # number of unusable questions of the data, by reason
    available: int  # examples of the data that could be drawn: those whose passages are not of a shot
    too_long: list[str]  # ids of drawn examples that do not fit into the model's context
    warnings: list[Finding]  # findings about the shots and the examples
    settings: Settings
    block_size: int  # examples in the first block; 0: no blocks
    shots_sec: float  # seconds in which the model encoded the shots
    scoring: Scoring = field(default_factory=Scoring)  # answer metrics to compute
    shots: list[ShotPiece] = field(default_factory=list)  # the tokens of the shots
    after_latents: dict[bytes, tuple[Decoder, float]] = field(default_factory=dict)  # last decoder of `with_shots_of`

    def build_source(self, source: Component) -> Source:
        """Return a source with the random generator that its name, the seed and the draw determine."""
        built = build_source(source.name, source.dials, self.vocabulary, self.settings.generator(source.name))
        built.learn(self.fitting_passages, self.lm.tokenizer)
        return built

    @torch.no_grad()
    def with_shots_of(self, source: Component) -> EvaluationSetup:
        """Return the set-up for a source: if it replaces the shots' passages, with a decoder of its own.

        The last such decoder is kept with the embeddings of its shots as the key. So two sources share a decoder and
        its answers only if their shots are the same bit for bit.

        Raises:
            UserError: A dial is out of range, a value is not finite, or the shots are longer than the LM's context.
        """
        if not SOURCES[source.name].replaces_shots(source.dials):
            return self
        built, lm = self.build_source(source), self.lm
        passages = []
        for number, piece in enumerate(piece for piece in self.shots if piece.passage is not None):
            generator = self.settings.generator(source.name, "shots", number)
            passages.append(built(lm.embed(piece.token_ids).float(), generator, piece.passage or ""))
            detectors.require_finite_values(passages[-1], f"the source {source.label}", f"(shot {number + 1})")
        embeds = shots_embeds(lm, self.shots, passages)
        if len(embeds) + self.settings.max_new_tokens >= lm.context_length:
            raise UserError(
                f"shots={self.settings.shots}: take {len(embeds)} positions with the source {source.label}, and the "
                f"model has {lm.context_length}; lower shots, or use fewer positions"
            )
        key = digest([embeds])
        if key not in self.after_latents:
            self.after_latents.clear()
            started = time.perf_counter()
            prefix = encode_prefix_embeds(lm, embeds)
            seconds = time.perf_counter() - started
            self.after_latents[key] = Decoder(lm, prefix, self.settings.max_new_tokens), seconds
        decoder, seconds = self.after_latents[key]
        return replace(self, decoder=decoder, shots_sec=seconds)


def prepare(
    model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState, block_size: int = 0
) -> EvaluationSetup:
    """Load data and model, write the prompts, and encode the shots once.

    Args:
        model: Model that answers.
        data: Questions with passages.
        settings: Settings of the evaluation.
        state: Device and processes.
        block_size: Examples in the first block; 0: no blocks. Examples of different blocks never share a batch, so
            extending a result gives the same numbers as evaluating all its examples at once.

    Raises:
        UserError: Model, data or settings are invalid.
    """
    settings.check()
    dataset = load_data(data)  # before the model, whose loading takes longer
    with state.local_main_process_first():
        lm = load_model(model, state.device, choose_dtype(settings.dtype, state.device))
    return prepare_with(lm, dataset, settings, block_size)


def prepare_with(lm: LanguageModel, dataset: Dataset, settings: Settings, block_size: int = 0) -> EvaluationSetup:
    """Write the prompts for a loaded model, and encode the shots once; arguments and errors as in `prepare`."""
    shots, candidates = draw_examples(
        dataset, settings.shots, settings.questions_per_shot, settings.seed, settings.seed_of_shots(), settings.part
    )
    examples = first_examples(candidates, settings.samples, settings.part)
    writer = PromptWriter(lm.tokenizer)
    pieces = writer.shot_pieces(shots)
    shot_ids = torch.cat([piece.token_ids for piece in pieces])
    room = lm.context_length - len(shot_ids) - settings.max_new_tokens
    prompts = [writer.prompt(example) for example in examples]
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
    if not fitting:
        raise UserError(
            f"shots={settings.shots}: after {len(shot_ids)} tokens of shots, none of the {len(prompts)} examples fits "
            f"into the model's {lm.context_length} positions; lower shots, or choose a model with a longer context"
        )
    evaluated = {example.context for example in examples}
    encode_prefix(lm, shot_ids[:WARM_UP])  # the first pass includes one-off set-up
    started = time.perf_counter()
    prefix = encode_prefix(lm, shot_ids)
    shots_sec = time.perf_counter() - started  # too low on an accelerator, which works asynchronously
    decoder = Decoder(lm, prefix, settings.max_new_tokens)
    others = [example for example in dataset.train if example.context not in evaluated]
    setup = EvaluationSetup(
        lm=lm,
        vocabulary=Vocabulary(lm.token_embeddings(), seed=settings.seed_of_codes()),
        prompts=fitting,
        batches=[],
        decoder=decoder,
        fitting=writer.spans(others, FITTED_ON),
        fitting_passages=writer.spans(others, FITTED_ON, questions=False),
        left_out=dict(dataset.left_out),
        available=len(candidates),
        too_long=[prompt.example.id for prompt in prompts if len(prompt.token_ids) > room],
        warnings=[
            *detectors.shots_leak(shots, examples),
            *check_decoding(decoder, shot_ids, fitting),
        ],
        settings=settings,
        block_size=block_size,
        shots_sec=shots_sec,
        shots=pieces,
    )
    return replace(setup, batches=_plan(setup))


def without_passages(setup: EvaluationSetup) -> EvaluationSetup:
    """Return the set-up with the same questions but without their passages."""
    writer = PromptWriter(setup.lm.tokenizer)
    emptied = replace(setup, prompts=[writer.prompt(prompt.example, passage=False) for prompt in setup.prompts])
    return replace(emptied, batches=_plan(emptied))


def scrambled(setup: EvaluationSetup) -> EvaluationSetup:
    """Return the set-up whose source and transform get another passage for every example; the question stays.

    The other passage is the next one in the order of the examples. It is cut, or continued by the passages after it, to
    the length of the example's own. Everything else is as without scrambling: the LM embeds the example's own prompt,
    and the draws are the example's. So answers above those without a passage show that the true tokens leak.

    Raises:
        UserError: All examples are about one passage.
    """
    passages: dict[str, list[int]] = {}
    for prompt in setup.prompts:
        passages.setdefault(prompt.example.context, prompt.token_ids[prompt.passage_mask].tolist())
    if len(passages) < 2:
        raise UserError(
            f"samples={setup.settings.samples}: all examples are about one passage, and the scrambled control needs "
            "another one; raise samples"
        )
    texts = list(passages)
    prompts = []
    for prompt in setup.prompts:
        place = texts.index(prompt.example.context)
        others = texts[place + 1 :] + texts[:place]
        prompts.append(given_others(prompt, prompt.passage_mask, [passages[text] for text in others]))
    return replace(setup, prompts=prompts)


def given_others(prompt: FewShotPrompt, span: Tensor, others: Sequence[list[int]]) -> FewShotPrompt:
    """Return a prompt for which source and transform get other tokens on a span.

    Args:
        prompt: The prompt.
        span: Mask of the positions to replace, (T,).
        others: Token ids of other texts. They are joined, repeated if too few, and cut to the length of the span.
    """
    tokens = itertools.islice(itertools.cycle(itertools.chain.from_iterable(others)), int(span.sum()))
    given = prompt.token_ids.clone()
    given[span] = torch.tensor(list(tokens), dtype=given.dtype)
    return replace(prompt, given=given)


def _plan(setup: EvaluationSetup) -> list[list[int]]:
    """Return the batches as indices into the prompts; no batch crosses the end of a block."""
    bounds = [0, *block_ends(len(setup.prompts), setup.block_size)]
    batches = []
    for start, end in itertools.pairwise(bounds):
        block = setup.prompts[start:end]
        planned = plan_batches(
            [len(prompt.token_ids) for prompt in block],
            [prompt.example.context for prompt in block],
            setup.decoder.added,
            setup.settings.batch_tokens,
        )
        batches += [[start + index for index in batch] for batch in planned]
    return batches


def block_ends(count: int, block_size: int) -> list[int]:
    """Return where blocks of examples end: at block_size times 1, 2, 4, ..., and at count.

    Args:
        count: Number of examples.
        block_size: Examples in the first block; 0: one block of all examples.
    """
    ends = []
    end = block_size
    while 0 < end < count:
        ends.append(end)
        end *= 2
    return [*ends, count]
