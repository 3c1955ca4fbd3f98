"""Passages with questions to train a latent encoder on, none of them from the evaluation.

Main entry: `load_latent_data()`; `order_of()` gives their order in an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from latentwire.data.examples import PARTS, Dataset, DataSpec, Example, choose_examples, half_of, load_data
from latentwire.data.fingerprints import fingerprint, holder
from latentwire.data.generator import GeneratedSpec
from latentwire.data.passages import Passage as Passage
from latentwire.data.passages import group_by_context, read_passages, split_passage
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for

FORMAT = 1  # version of the passage selection, part of the run hash; bump it when the selection changes
WINDOW = 8  # number of steps whose passages are sorted by length together

# Text of some reasons in `LatentData.counts`. The reasons themselves are keys of result.json and do not change.
REASONS = {
    "passages twice there": "duplicate passages",
    "passages of the evaluation": "passages that the evaluation uses",
    "passages that hold one of the evaluation, of the shots or of the held out": (
        "passages that contain a passage of the evaluation, of the shots or of the held-out set"
    ),
    "questions of no one part of a split passage": "questions whose answer is in none or several parts of a passage",
}


@dataclass
class LatentData:
    """The training passages and the held-out passages of a run."""

    shots: list[list[Example]]  # shown before every question; an evaluation with the same seed shows the same shots
    train: list[Passage]
    held_out: list[Passage]  # never trained on; their score decides when the run stops
    counts: Counter[str] = field(default_factory=Counter)  # skipped passages and questions, by reason
    wholes: dict[str, str] = field(default_factory=dict)  # fingerprint of a part -> fingerprint of its whole passage
    generated: int = 0  # number of generated passages in `train`; they are its last

    def marks(self) -> list[str]:
        """Return the sorted fingerprints of all passages, and of the whole passages that parts were split from."""
        own = {fingerprint(passage.text) for passage in [*self.train, *self.held_out]}
        return sorted(own | {self.wholes[mark] for mark in own & self.wholes.keys()})


@dataclass(frozen=True)
class PassageSpec:
    """Which passages are trained on and which are held out.

    Attributes:
        samples: Maximum number of questions to train on. Passages are drawn at random, from the extra file last.
            Generated passages do not count.
        extra_words: Maximum number of words of the parts into which extra passages are split; None keeps them whole.
        held_out: Share of the data's passages to hold out, chosen by a hash of their content.
        shots: Number of passages shown before each question; they are not trained on.
        questions_per_shot: Number of questions of each shown passage.
        extra_part: Part of the extra file to train on, one of `examples.PARTS`; run.py part=confirm scores the other.
    """

    samples: int
    extra_words: int | None
    held_out: float
    shots: int
    questions_per_shot: int
    extra_part: str = "all"

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must be a share of the passages, above 0 and below 1")
        if self.samples < 1:
            raise UserError(f"samples={self.samples}: at least 1 question is needed")
        if self.extra_words is not None and self.extra_words < 1:
            raise UserError(f"extra_words={self.extra_words}: must be at least 1; null leaves the passages whole")
        if self.extra_part not in PARTS:
            raise UserError(f"extra_part={self.extra_part}: unknown; use one of {', '.join(PARTS)}")


def load_latent_data(
    data: DataSpec, extra: str, spec: PassageSpec, seed: int, generated: GeneratedSpec | None = None
) -> LatentData:
    """Read the data, remove the evaluation's passages, and split the rest into training and held-out passages.

    If the data have two parts, the second is the evaluation's. Passages that equal or contain one of its passages are
    not trained on. If the data are a single file, the held-out passages serve as the evaluation's.

    Args:
        data: The data; their first part is trained on.
        extra: Path of a file with more passages, or "": a .txt (passages between empty lines) or a file for data=file.
        spec: Which passages are trained on.
        seed: Seed for the choice of shots and samples, and of the generated passages.
        generated: Generated passages to train on as well. All are kept but duplicates and those that contain a passage
            of the evaluation, of the shots or of the held-out set. None: no such passages.

    Returns:
        The passages, the shots and the counts of what was skipped.

    Raises:
        UserError: A file cannot be read, or no training or held-out passages are left.
    """
    dataset = load_data(data)
    shown, _ = choose_examples(dataset, 1, spec.shots, spec.questions_per_shot, seed)
    passages, extra_passages = group_by_context(dataset.train), read_passages(extra, "extra") if extra else []
    extra_passages = [own for own in extra_passages if spec.extra_part in ("all", half_of(own.text))]
    selection = _Selection(dataset, shown)
    train: list[Passage] = []
    kept_out: list[Passage] = []
    for passage in filter(selection.is_new, passages):
        is_held_out = int(fingerprint(passage.text)[:8], 16) / 2**32 < spec.held_out and passage.questions
        (kept_out if is_held_out else train).append(passage)
    kept_out = selection.free_of_reserved(kept_out)
    selection.reserve(passage.text for passage in kept_out)
    train = selection.free_of_reserved(train)
    parts, wholes = selection.parts(extra_passages, spec.extra_words)
    made = [Passage(group[0].context, tuple(group)) for group in generated.examples(seed)] if generated else []
    new = selection.free_of_reserved(filter(selection.is_new, made))
    if (left := len(train) + len(parts) + len(new)) == 0 or not kept_out:
        found = len(passages) + len(extra_passages) + len(made)
        raise UserError(
            f"held_out={spec.held_out}: of {found} passages {left} are left to train on and {len(kept_out)} are held "
            "out; both are needed: give more data, or another held_out"
        )
    drawn = _draw_samples([train, parts], spec.samples, seed, selection.counts)
    return LatentData(shown, [*drawn, *new], kept_out, selection.counts, wholes, len(new))


class _Selection:
    """Leaves out duplicate passages, and passages of the shots, the evaluation and the held-out set.

    Args:
        dataset: The data.
        shown: The shots.
    """

    def __init__(self, dataset: Dataset, shown: list[list[Example]]) -> None:
        self.known_as = {fingerprint(examples[0].context): "shown as shots" for examples in shown}
        self.reserved = {examples[0].context for examples in shown}  # texts that no training passage may contain
        if not _is_one_file(dataset):
            self.known_as |= {fingerprint(example.context): "of the evaluation" for example in dataset.validation}
            self.reserved |= {example.context for example in dataset.validation}
        self.counts = Counter({f"questions {reason}": n for reason, n in Counter(dataset.left_out).items()})
        self.contains_reserved = holder(self.reserved)

    def is_new(self, passage: Passage) -> bool:
        """Return whether a passage is seen for the first time; otherwise count it."""
        mark = fingerprint(passage.text)
        if mark in self.known_as:
            self.counts[f"passages {self.known_as[mark]}"] += 1
            return False
        self.known_as[mark] = "twice there"
        return True

    def reserve(self, texts: Iterable[str]) -> None:
        """Add texts that no further passage may contain."""
        self.reserved |= set(texts)
        self.contains_reserved = holder(self.reserved)

    def free_of_reserved(self, passages: Iterable[Passage]) -> list[Passage]:
        """Return the passages that contain none of the reserved texts; count the others."""
        return [passage for passage in passages if self._is_free(passage)]

    def _is_free(self, passage: Passage) -> bool:
        if found := self.contains_reserved(passage.text):
            self.counts["passages that hold one of the evaluation, of the shots or of the held out"] += 1
        return not found

    def parts(self, extra: Iterable[Passage], words: int | None) -> tuple[list[Passage], dict[str, str]]:
        """Return the parts of new extra passages, and the fingerprint of the whole passage of each part.

        Args:
            extra: Extra passages.
            words: Maximum number of words of a part; None keeps passages whole.
        """
        parts: list[Passage] = []
        wholes: dict[str, str] = {}
        for passage in filter(self.is_new, extra):
            if not self._is_free(passage):
                continue
            whole = fingerprint(passage.text)
            split = split_passage(passage, words, self.counts) if words else [passage]
            own = [part for part in split if fingerprint(part.text) == whole or self.is_new(part)]
            wholes |= {fingerprint(part.text): whole for part in own}
            parts += own
        return parts, wholes


def _is_one_file(dataset: Dataset) -> bool:
    """Return whether both parts of the data are the same file."""
    return dataset.train == dataset.validation  # by content: the ids of rows without ids are the same in every file


def _draw_samples(groups: list[list[Passage]], samples: int, seed: int, counts: Counter[str]) -> list[Passage]:
    """Draw passages at random, group by group, until they have `samples` questions; passages without any stay.

    The result keeps the order of the file. A smaller `samples` draws a subset of the passages of a larger one.
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


def skipped_lines(counts: Counter[str]) -> Iterator[str]:
    """Yield a line for each reason in `LatentData.counts`, such as 'skipped 3 duplicate passages'."""
    for reason, count in counts.items():
        yield f"skipped {count} {REASONS.get(reason, reason)}"


def order_of(lengths: list[int], passages_per_step: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the passages of each step of an epoch: each passage once, similar lengths together.

    Seed and epoch alone decide the order. Within a window of 8 steps passages are sorted by length. The steps of a
    window come in random order, so no length comes first.

    Args:
        lengths: Length of each passage, in any unit.
        passages_per_step: Number of passages in a step; the last step may have fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Yields:
        Indices into `lengths`, one list a step.
    """
    generator = generator_for(seed, "order", epoch)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    size = WINDOW * passages_per_step
    for start in range(0, len(drawn), size):
        window = sorted(drawn[start : start + size], key=lambda index: (lengths[index], index))
        steps = [window[i : i + passages_per_step] for i in range(0, len(window), passages_per_step)]
        for place in torch.randperm(len(steps), generator=generator).tolist():
            yield steps[place]
