"""Passages with their questions to train a latent encoder on; those of the evaluation are never among them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from latentwire.data.examples import Dataset, DataSpec, Example, choose_examples, load_data
from latentwire.data.fingerprints import fingerprint, holder
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for

FORMAT = 1  # of what is trained on; goes into what a training run is of: raise it whenever other passages are taken
WINDOW = 8  # steps whose passages are sorted by length before they are shared out


@dataclass(frozen=True)
class Passage:
    """A passage and the questions that are asked about it."""

    text: str
    questions: tuple[Example, ...]  # empty for text without questions


@dataclass
class LatentData:
    """What there is to train on and to stop by."""

    shots: list[list[Example]]  # shown before every question, the same as in an evaluation with this seed
    train: list[Passage]
    held_out: list[Passage]  # never trained on; the run stops by them
    counts: Counter[str] = field(default_factory=Counter)  # passages left out, by reason
    wholes: dict[str, str] = field(default_factory=dict)  # of a part, the passage it is of; both as fingerprints

    def marks(self) -> list[str]:
        """Return the fingerprints of what is trained on or stopped by; with a part's also that of its passage."""
        own = {fingerprint(passage.text) for passage in [*self.train, *self.held_out]}
        return sorted(own | {self.wholes[mark] for mark in own & self.wholes.keys()})


def load_latent_data(
    spec: DataSpec,
    extra: str,
    extra_words: int | None,
    samples: int,
    held_out: float,
    shots: int,
    questions_per_shot: int,
    seed: int,
) -> LatentData:
    """Read, take out what must not be trained on, and split.

    Where the data have two parts, the second is the evaluation's: none of its passages is trained on, wherever else it
    turns up, within a longer passage neither. Where they are one file, its held-out passages are the evaluation's.

    Args:
        spec: The data; its first part is trained on.
        extra: A file with more, "" for none: texts (.txt, passages between empty lines), or whatever data=file reads.
        extra_words: Its passages are split at the ends of sentences into parts of at most so many words; None: whole.
        samples: Questions to train on, at most, of passages drawn at random; those of the data before the file's.
        held_out: Share of the data's passages to stop by, chosen by content: the same ones whatever else there is.
        shots: Passages shown before each question; they are not trained on.
        questions_per_shot: How many of their questions.
        seed: Of the shots and of what is drawn.

    Raises:
        UserError: Data that cannot be read, or nothing left to train on or to stop by.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out={held_out}: is a share of the passages, above 0 and below 1")
    if samples < 1:
        raise UserError(f"samples={samples}: at least 1 question is needed")
    if extra_words is not None and extra_words < 1:
        raise UserError(f"extra_words={extra_words}: must be at least 1; null leaves the passages whole")
    dataset = load_data(spec)
    shown, _ = choose_examples(dataset, 1, shots, questions_per_shot, seed)
    known = Counter(dataset.left_out)
    passages, more = _grouped(dataset.train), _extra_passages(extra) if extra else []
    known_as = {fingerprint(examples[0].context): "shown as shots" for examples in shown}
    if not _is_one(dataset):
        known_as |= {fingerprint(example.context): "of the evaluation" for example in dataset.validation}
    counts: Counter[str] = Counter({f"questions {reason}": number for reason, number in known.items()})

    def new(passage: Passage) -> bool:
        mark = fingerprint(passage.text)
        if mark in known_as:
            counts[f"passages {known_as[mark]}"] += 1
            return False
        known_as[mark] = "twice there"
        return True

    train: list[Passage] = []
    stop: list[Passage] = []
    for passage in filter(new, passages):
        held = int(fingerprint(passage.text)[:8], 16) / 2**32 < held_out and passage.questions
        (stop if held else train).append(passage)
    parts: list[Passage] = []
    wholes: dict[str, str] = {}
    kept = {examples[0].context for examples in shown}
    if not _is_one(dataset):
        kept |= {example.context for example in dataset.validation}

    def apart(passage: Passage, holds: Callable[[str], bool]) -> bool:
        if found := holds(passage.text):
            counts["passages that hold one of the evaluation, of the shots or of the held out"] += 1
        return not found

    asks = holder(kept)
    stop = [passage for passage in stop if apart(passage, asks)]
    holds = holder(kept | {passage.text for passage in stop})
    train = [passage for passage in train if apart(passage, holds)]
    for passage in filter(new, more):
        if not apart(passage, holds):
            continue
        whole = fingerprint(passage.text)
        split = split_passage(passage, extra_words, counts) if extra_words else [passage]
        own = [part for part in split if fingerprint(part.text) == whole or new(part)]
        wholes |= {fingerprint(part.text): whole for part in own}
        parts += own
    if (left := len(train) + len(parts)) == 0 or not stop:
        raise UserError(
            f"held_out={held_out}: of {len(passages) + len(more)} passages {left} are left to train on and "
            f"{len(stop)} to stop by; both are needed: give more data, or another held_out"
        )
    return LatentData(shown, _at_most([train, parts], samples, seed, counts), stop, counts, wholes)


def _is_one(dataset: Dataset) -> bool:
    """Tell whether the data are one file, read twice."""
    return dataset.train == dataset.validation  # by content: rows without ids are numbered, in every file alike


def _grouped(examples: Iterable[Example]) -> list[Passage]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.context, []).append(example)
    return [Passage(text, tuple(questions)) for text, questions in groups.items()]


def _extra_passages(path: str) -> list[Passage]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"extra={path}: no such file; give a .txt, or a file as data=file reads it")
    if path.endswith(".txt"):
        try:
            texts = [" ".join(part.split()) for part in file.read_text(encoding="utf-8").split("\n\n")]
        except UnicodeDecodeError as error:
            raise UserError(f"extra={path}: no UTF-8 text ({error.reason}); convert it") from error
        passages = [Passage(text, ()) for text in texts if text]
        if not passages:
            raise UserError(f"extra={path}: the file holds no text; give one with passages between empty lines")
        return passages
    return _grouped(load_data(DataSpec("extra", "file", path=path)).train)


def split_passage(passage: Passage, words: int, counts: Counter[str]) -> list[Passage]:
    """Split a passage at the ends of sentences; each question goes with the one part that holds its first answer.

    Args:
        passage: To split; one without questions stays without, any other loses the parts that nobody asks about.
        words: Of a part, at most; a longer sentence is a part by itself.
        counts: Counts the questions whose answer stands in no part or in several.
    """
    parts: list[list[str]] = []
    for sentence in re.split(r"(?<=[.!?])\s+", passage.text):
        fits = parts and sum(len(said.split()) for said in [*parts[-1], sentence]) <= words
        if fits:
            parts[-1].append(sentence)
        else:
            parts.append([sentence])
    texts = [" ".join(part) for part in parts]
    if not passage.questions:
        return [Passage(text, ()) for text in texts]
    asked: dict[str, list[Example]] = {text: [] for text in texts}
    for example in passage.questions:
        holding = [text for text in texts if example.answers[0] in text]
        if len(holding) == 1:
            asked[holding[0]].append(replace(example, context=holding[0]))
        else:
            counts["questions of no one part of a split passage"] += 1
    return [Passage(text, tuple(examples)) for text, examples in asked.items() if examples]


def _at_most(groups: list[list[Passage]], samples: int, seed: int, counts: Counter[str]) -> list[Passage]:
    """Draw passages until their questions are `samples`, a group before the next; text without questions stays.

    Drawn, not the first ones: a file is in the order of its topics. What is drawn stays in that order, and a smaller
    `samples` draws some of what a larger one does.
    """
    left, kept = samples, []
    for number, passages in enumerate(groups):
        chosen: dict[int, Passage] = {}
        for place in torch.randperm(len(passages), generator=generator_for(seed, "samples", number)).tolist():
            passage = passages[place]
            if passage.questions and left <= 0:
                counts["passages beyond samples"] += 1
                continue
            chosen[place] = Passage(passage.text, passage.questions[:left]) if passage.questions else passage
            left -= len(passage.questions)
        kept += [chosen[place] for place in sorted(chosen)]
    return kept


def order_of(lengths: list[int], passages_per_step: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the passages of each step of an epoch, all of them once, those of like length together.

    The order hangs on the seed and the epoch alone; within a window of 8 steps passages are sorted by length, and the
    steps of the window drawn in random order, so that no length comes first.

    Args:
        lengths: Of each passage, any unit.
        passages_per_step: In a step; the last may have fewer.
        seed: Of the run.
        epoch: From 0.
    """
    generator = generator_for(seed, "order", epoch)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    size = WINDOW * passages_per_step
    for start in range(0, len(drawn), size):
        window = sorted(drawn[start : start + size], key=lambda index: (lengths[index], index))
        steps = [window[i : i + passages_per_step] for i in range(0, len(window), passages_per_step)]
        for place in torch.randperm(len(steps), generator=generator).tolist():
            yield steps[place]
