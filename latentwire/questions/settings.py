"""Settings of the task questions. Main entry: `QuestionSettings`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.precision import choose_dtype
from latentwire.harness.results import JsonObject
from latentwire.harness.typed_config import typed
from latentwire.questions.selection import SelectionRules


@dataclass
class QuestionSettings:
    """Settings at the root of the config of task=questions.

    Attributes:
        seed: Seed for the shots, the examples and the sample of the passages.
        samples: Most passages to write about; None: all.
        part_words: Most words of the parts into which passages are split; None keeps them whole.
        passages_per_part: Number of passages whose questions are written together and saved.
        beginnings: First words of the questions; each sentence gets one question with each of them.
        examples_per_beginning: Most sentences with a question and its answer that are shown for each beginning.
        max_question_tokens: Longest question, in tokens without its beginning.
        questions_per_passage: Most questions to keep about one passage.
        min_overlap: Smallest share of a question's content words that its passage must have.
        min_f1: Smallest F1 of the answer with the passage.
        min_confidence: Smallest mean probability of a token of the written answer, given the passage.
        max_f1_without: F1 of the answer without the passage, from which a question is dropped.
        shots: Number of passages shown before each answer.
        questions_per_shot: Number of solved questions of each shown passage.
        max_new_tokens: Longest answer, in tokens.
        batch_tokens: Number of positions decoded at a time.
        dtype: Dtype of the model.
    """

    seed: int
    samples: int | None
    part_words: int | None
    passages_per_part: int
    beginnings: list[str]
    examples_per_beginning: int
    max_question_tokens: int
    questions_per_passage: int
    min_overlap: float
    min_f1: float
    min_confidence: float
    max_f1_without: float
    shots: int
    questions_per_shot: int
    max_new_tokens: int
    batch_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed={self.seed}: must be between 0 and {2**31 - 1}")
        at_least_one = ("passages_per_part", "examples_per_beginning", "max_question_tokens", "questions_per_passage")
        for name in (*at_least_one, "max_new_tokens", "samples", "part_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        for name in ("min_overlap", "min_f1", "min_confidence", "max_f1_without"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        if not self.beginnings or not all(beginning.strip() for beginning in self.beginnings):
            raise UserError(f"beginnings={self.beginnings}: give at least one first word, and no empty ones")

    @classmethod
    def of(cls, cfg: DictConfig, state: PartialState) -> Self:
        """Return the settings of a config, with batch size and dtype chosen for the device.

        Raises:
            UserError: A setting has the wrong type or is out of range.
        """
        values = {field.name: cfg[field.name] for field in fields(cls)}
        values["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
        values["dtype"] = str(choose_dtype(str(cfg.dtype), state.device)).removeprefix("torch.")
        return typed(cls, values)

    def identity(self) -> JsonObject:
        """Return the settings that decide the questions: all of them."""
        return dict(vars(self))

    def rules(self) -> SelectionRules:
        """Return the rules that decide which questions are kept."""
        return SelectionRules(
            beginnings=tuple(self.beginnings),
            min_overlap=self.min_overlap,
            min_f1=self.min_f1,
            min_confidence=self.min_confidence,
            max_f1_without=self.max_f1_without,
            questions_per_passage=self.questions_per_passage,
        )
