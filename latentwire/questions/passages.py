"""The passages that questions are written about. Main entry: `read_question_passages()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentwire.data.fingerprints import fingerprint, holder
from latentwire.data.passages import Passage, read_passages, split_passage
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.questions.selection import MIN_WORDS, askable_sentences
from latentwire.questions.settings import QuestionSettings


@dataclass(frozen=True)
class QuestionPassages:
    """Passages in the order of their file, and the number of skipped ones by reason."""

    passages: list[str]
    skipped: Counter[str]


def read_question_passages(path: str, settings: QuestionSettings, shown: Sequence[str]) -> QuestionPassages:
    """Read the passages of a file, split them, and skip those that no question can be written about.

    Args:
        path: Path of a .txt (passages between empty lines) or of a file for data=file, whose questions are not used.
        settings: Settings of the task.
        shown: Texts that the model is shown; passages that contain one are skipped.

    Raises:
        UserError: The file cannot be read, or no passage is left.
    """
    skipped: Counter[str] = Counter()
    contains_shown = holder(shown)
    found: dict[str, str] = {}  # by fingerprint
    for whole in read_passages(path, "path"):
        plain = Passage(" ".join(whole.text.split()), ())
        parts = split_passage(plain, settings.part_words, Counter()) if settings.part_words else [plain]
        for part in parts:
            mark = fingerprint(part.text)
            if mark in found:
                skipped["twice in the file"] += 1
            elif contains_shown(part.text):
                skipped["contains a text that the model is shown"] += 1
            elif not askable_sentences(part.text):
                skipped[f"no sentence of {MIN_WORDS} words"] += 1
            else:
                found[mark] = part.text
    passages = list(found.values())
    if not passages:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UserError(f"path={path}: no passage is left ({reasons}); give another text")
    if settings.samples is not None and settings.samples < len(passages):
        order = torch.randperm(len(passages), generator=generator_for(settings.seed, "questions", "samples"))
        skipped["beyond samples"] += len(passages) - settings.samples
        passages = [passages[index] for index in sorted(order[: settings.samples].tolist())]
    return QuestionPassages(passages, skipped)
