"""The typed records of the files of task=questions. Main entries: `QuestionRow`, `QuestionsResult`."""

from __future__ import annotations

from typing import TypedDict

from latentwire.harness.results import JsonObject, MadeOn


class QuestionRow(TypedDict):
    """A line of questions.jsonl, which data=file and `extra` read."""

    id: str
    context: str
    question: str
    answers: list[str]
    confidence: float  # mean probability of a token of the answer, given the passage


class PartRecord(TypedDict):
    """A file of parts/: the questions about some passages."""

    format: int
    passages: int
    written: int
    dropped: dict[str, int]  # by reason
    seconds: float
    rows: list[QuestionRow]


class QuestionCounts(TypedDict):
    """What became of the passages and of the written questions."""

    passages: int  # passages that questions were written about
    skipped: dict[str, int]  # passages of the file, by reason
    written: int
    kept: int
    kept_share: float  # of the written questions
    dropped: dict[str, int]  # written questions, by reason
    passages_with_questions: int


class QuestionsResult(QuestionCounts, MadeOn):
    """result.json."""

    format: int
    identity: JsonObject
    questions_sha256: str
    seconds: float  # of all parts, in the processes that wrote them
    seconds_per_passage: float
    dtype: str
    config: JsonObject
