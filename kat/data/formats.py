"""Drafts of preference pairs from the rows of data set formats. Main entries: `register_format()`, `drafts()`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kat.data.columns import is_unicode
from latentwire.harness.registry import OWN_PACKAGES, Registry
from latentwire.harness.results import JsonObject
from latentwire.lm.prefixes import common_beginning

Row = JsonObject  # a row of any data set
Message = dict[str, str]  # role, content
Reader = Callable[[Row], Iterator["Draft"]]
F = TypeVar("F", bound=Reader)


class UnusableRowError(ValueError):
    """A row gives no pair. The message is the reason, the same for all rows with this fault."""


@dataclass(frozen=True)
class Draft:
    """A pair as a row gives it, not checked yet. `subset` is the part of the data set that the row names."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    subset: str = ""


@dataclass(frozen=True)
class Format:
    """How rows of a format become pairs.

    Attributes:
        define: Reader of a row. It yields the row's pairs, or raises an `UnusableRowError`.
        columns: Columns that a row must have. They are used up, and the other columns are kept with the pairs.
        fits: Returns whether the values of a row with these columns have the right types.
        texts: Columns among them that must be texts.
        repeats: Further columns that say the same as the pairs. They are not kept.
    """

    define: Reader
    columns: tuple[str, ...]
    fits: Callable[[Row], bool]
    texts: tuple[str, ...]
    repeats: tuple[str, ...]

    @property
    def is_own(self) -> bool:
        """Whether the format belongs to this project, not to a plugin."""
        return self.define.__module__.split(".")[0] in OWN_PACKAGES

    def used_up(self) -> frozenset[str]:
        """Return the columns whose content is in the pairs."""
        return frozenset((*self.columns, *self.repeats))


FORMATS: Registry[Format] = Registry("format", "pairs.file.format")


def register_format(
    name: str,
    *,
    columns: Sequence[str],
    fits: Callable[[Row], bool] = lambda row: True,
    texts: Sequence[str] = (),
    repeats: Sequence[str] = (),
) -> Callable[[F], F]:
    """Return a decorator that registers a reader, `reader(row)`, which yields the drafts of a row's pairs.

    `detect` takes the first format that fits: formats of plugins come first, then formats in the order of their
    registration. A more specific format is therefore registered before a general one.

    Args:
        name: Name in the setting `format`.
        columns: Columns that identify the format.
        fits: Returns whether the values of a row have the right types.
        texts: Columns that must be texts; another value makes a row unusable.
        repeats: Further columns that say the same as the pairs, such as a whole conversation. They are not kept.
    """

    def register(reader: F) -> F:
        FORMATS.add(name, Format(reader, tuple(columns), fits, tuple(texts), tuple(repeats)))
        return reader

    return register


def _kinds(row: Row) -> tuple[type, ...]:
    return tuple(type(row.get(name)) for name in PREFERENCE)


def _are_dialogues(row: Row) -> bool:
    """Return whether a row has HH dialogues. One of the two texts is enough, because the other may be empty."""
    texts = [text for text in (row["chosen"], row["rejected"]) if isinstance(text, str)]
    return len(texts) == len(ANSWERS) and any(MARKERS.match(text) for text in texts)


def _texts(row: Row) -> tuple[str, str]:
    """Return the chosen and the rejected text of a row whose format names both in `texts`."""
    chosen, rejected = row["chosen"], row["rejected"]
    assert isinstance(chosen, str) and isinstance(rejected, str), "`drafts` has checked the columns in `texts`"
    return chosen, rejected


PREFERENCE = ("prompt", "chosen", "rejected")
ANSWERS = ("chosen", "rejected")
MARKERS = re.compile(r"(?:\A|\n\n)(Human|Assistant):")  # some exports lack the line breaks before the first marker
ROLES = {"Human": "user", "Assistant": "assistant"}


def user(text: object) -> list[Message]:
    """Return a prompt as messages: a text becomes one message, a list of messages is kept."""
    return _messages(text, "user")


def assistant(text: object) -> list[Message]:
    """Return an answer as messages: a text becomes one message, a list of messages is kept."""
    return _messages(text, "assistant")


def _messages(value: object, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UnusableRowError("a turn is neither a text nor a list of messages")
    for message in value:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UnusableRowError("a message has no role or no text as its content")
    return [{"role": message["role"], "content": message["content"]} for message in value]


@register_format("alpaca_eval", columns=("instruction", "output_1", "output_2", "preference"))
def alpaca_eval(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of AlpacaEval's annotations: two outputs, and the preferred one as 1 or 2."""
    if row["preference"] not in (1, 2):
        raise UnusableRowError("no preference between the two outputs")
    first, second = assistant(row["output_1"]), assistant(row["output_2"])
    chosen, rejected = (first, second) if row["preference"] == 1 else (second, first)
    subset = row.get("dataset")
    yield Draft(user(row["instruction"]), chosen, rejected, subset if isinstance(subset, str) else "")


@register_format("nq_open", columns=("question", "answer_and_def_correct_predictions", "def_incorrect_predictions"))
def nq_open(row: Row) -> Iterator[Draft]:
    """Yield the pairs of a row of NQ-open with judged model answers: each right answer against each wrong one.

    Reference answers are right. Answers judged only possibly right are left out. Some model answers contain JSON
    escapes as text. They are decoded, because they would reveal which answers are wrong.
    """
    right, wrong = row["answer_and_def_correct_predictions"], row["def_incorrect_predictions"]
    if not isinstance(right, list) or not isinstance(wrong, list):
        raise UnusableRowError("the answers are not a list")
    if not right or not wrong:
        raise UnusableRowError("no wrong answer" if right else "no right answer")
    for chosen in right:
        for rejected in wrong:
            yield Draft(user(row["question"]), assistant(_unescape(chosen)), assistant(_unescape(rejected)))


def _unescape(text: object) -> object:
    if not isinstance(text, str):
        return text
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r'\\+"', '"', text)


@register_format("stack_exchange", columns=("question", "answers"))
def stack_exchange(row: Row) -> Iterator[Draft]:
    """Yield the pairs of a row of H4's Stack Exchange: the first answer with the top pm_score against each lower one.

    pm_score is log2(1 + votes), rounded, +1 if accepted, -1 if the votes are negative. The texts stay HTML.
    """
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise UnusableRowError("the answers are not a list of objects")
    if not all(isinstance(answer.get("pm_score"), int | float) for answer in answers):
        raise UnusableRowError("an answer has no pm_score")
    best = max(answers, key=lambda answer: answer["pm_score"], default=None)
    worse = [answer for answer in answers if answer["pm_score"] < best["pm_score"]] if best else []
    if best is None or not worse:
        raise UnusableRowError("no two answers have different scores")
    for answer in worse:
        yield Draft(user(row["question"]), assistant(best.get("text")), assistant(answer.get("text")))


@register_format("shp", columns=("history", "human_ref_A", "human_ref_B", "labels"))
def shp(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of Stanford Human Preferences: labels is 1 if answer A is preferred, 0 if B is."""
    a, b = row["human_ref_A"], row["human_ref_B"]
    if row["labels"] not in (0, 1):
        raise UnusableRowError("labels is neither 0 nor 1")
    found = row.get("score_A"), row.get("score_B")
    scores = [score for score in found if isinstance(score, int | float)]
    if len(scores) == 2 and (scores[0] > scores[1]) != row["labels"]:
        raise UnusableRowError("labels and scores contradict each other")
    chosen, rejected = (a, b) if row["labels"] else (b, a)
    yield Draft(user(row["history"]), assistant(chosen), assistant(rejected))


@register_format(
    "ultrafeedback", columns=PREFERENCE, fits=lambda row: _kinds(row) == (str, list, list), repeats=("messages",)
)
def ultrafeedback(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of binarized UltraFeedback: a prompt, and two lists of messages that repeat it."""
    scores = row.get("score_chosen"), row.get("score_rejected")
    if None not in scores and scores[0] == scores[1]:
        raise UnusableRowError("chosen and rejected have the same score")
    chosen, rejected = assistant(row["chosen"]), assistant(row["rejected"])
    if not chosen or chosen[:-1] != rejected[:-1]:
        raise UnusableRowError("chosen and rejected differ before the last turn")
    yield Draft(chosen[:-1], chosen[-1:], rejected[-1:])


# Decorators run from the last line up, so the most specific format, reward_bench, is registered first.
@register_format("trl_standard", columns=PREFERENCE, fits=lambda row: _kinds(row) == (str, str, str))
@register_format("trl_conversational", columns=PREFERENCE, fits=lambda row: _kinds(row)[0] is list)
@register_format("reward_bench", columns=(*PREFERENCE, "subset"), fits=lambda row: _kinds(row) == (str, str, str))
def explicit(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row with an explicit prompt: texts, messages, or a row of RewardBench."""
    subset = row.get("subset")
    yield Draft(user(row["prompt"]), assistant(row["chosen"]), assistant(row["rejected"]),
                subset if isinstance(subset, str) else "")  # fmt: skip


def split_dialogue(text: str) -> list[Message]:
    r"""Split an HH dialogue into messages at "\n\nHuman:" and "\n\nAssistant:".

    One space after a marker is part of the marker. The first marker may lack its line breaks.

    Raises:
        UnusableRowError: The text has no marker, or begins with other text.
    """
    before, *parts = MARKERS.split(text)
    if before.strip() or not parts:
        raise UnusableRowError("does not begin with a Human: or Assistant: marker")
    return [
        {"role": ROLES[marker], "content": content.removeprefix(" ")}
        for marker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


@register_format("hh", columns=ANSWERS, fits=lambda row: "prompt" not in row and _are_dialogues(row), texts=ANSWERS)
def hh(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of Anthropic's HH-RLHF: two whole dialogues that differ only in the last answer."""
    chosen, rejected = map(split_dialogue, _texts(row))
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UnusableRowError("does not end with an answer")
    if chosen[:-1] != rejected[:-1]:
        raise UnusableRowError("chosen and rejected differ before the last turn")
    yield Draft(chosen[:-1], chosen[-1:], rejected[-1:])


@register_format(
    "trl_conversational_implicit", columns=ANSWERS, fits=lambda row: _kinds(row) == (type(None), list, list)
)
def implicit_messages(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row of messages without a prompt column: the common beginning is the prompt."""
    chosen, rejected = assistant(row["chosen"]), assistant(row["rejected"])
    shared = common_beginning((chosen, rejected))
    yield Draft(chosen[:shared], chosen[shared:], rejected[shared:])


@register_format(
    "trl_standard_implicit", columns=ANSWERS, fits=lambda row: _kinds(row) == (type(None), str, str), texts=ANSWERS
)
def implicit_texts(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row of texts without a prompt column.

    The prompt is the common beginning of both texts without its final space, as in TRL.
    """
    chosen, rejected = _texts(row)
    if MARKERS.search(chosen) or MARKERS.search(rejected):
        raise UnusableRowError("is a dialogue of Human: and Assistant:; read the file with pairs.file.format=hh")
    shared = common_beginning((chosen, rejected))
    shared -= chosen[:shared].endswith(" ")
    yield Draft(user(chosen[:shared]), assistant(chosen[shared:]), assistant(rejected[shared:]))


def detect(row: Row) -> str | None:
    """Return the name of the first format that fits a row's columns and value types; None if no format fits."""
    known = FORMATS.items()
    for name, form in [item for item in known if not item[1].is_own] + [item for item in known if item[1].is_own]:
        if all(column in row for column in form.columns) and form.fits(row):
            return name
    return None


def drafts(row: Row, name: str) -> list[Draft]:
    """Return the drafts of the pairs in a row.

    Args:
        row: A row of a data set.
        name: The name of its format, a key of `FORMATS`.

    Raises:
        UnusableRowError: A column is missing, or the row gives no pair.
    """
    form = FORMATS[name]
    for column in form.columns:
        if row.get(column) is None:
            raise UnusableRowError(f"column {column} is missing or empty")
    if not all(isinstance(row[column], str) for column in form.texts):
        raise UnusableRowError(f"{' or '.join(form.texts)} is not a text")
    return list(form.define(row))


def fault(draft: Draft) -> str | None:
    """Return the reason why a pair is unusable, or None."""
    for name, messages in (("prompt", draft.prompt), ("chosen", draft.chosen), ("rejected", draft.rejected)):
        texts = [message["content"] for message in messages]
        if not any(text.strip() for text in texts):
            return f"{name} is empty"
        if not all(map(is_unicode, texts)):
            return f"{name} contains characters that are not valid Unicode"
    if draft.chosen == draft.rejected:
        return "chosen and rejected are the same"
    return None
