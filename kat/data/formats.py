"""Drafts of preference pairs from the rows of known data set formats. Main entries: `detect()` and `drafts()`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from latentwire.lm.prefixes import common_beginning

Row = dict[str, Any]
Message = dict[str, str]  # role, content


class UnusableRowError(ValueError):
    """A row gives no pair. The message is the reason, the same for all rows with this fault."""


@dataclass(frozen=True)
class Draft:
    """A pair as a row gives it, not checked yet. `subset` is the part of the data set that the row names."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    subset: str = ""


def user(text: Any) -> list[Message]:
    """Return a prompt as messages: a text becomes one message, a list of messages is kept."""
    return _messages(text, "user")


def assistant(text: Any) -> list[Message]:
    """Return an answer as messages: a text becomes one message, a list of messages is kept."""
    return _messages(text, "assistant")


def _messages(value: Any, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UnusableRowError("a turn is neither a text nor a list of messages")
    for message in value:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UnusableRowError("a message has no role or no text as its content")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def explicit(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row with an explicit prompt: texts, messages, or a row of RewardBench."""
    subset = row.get("subset")
    yield Draft(user(row["prompt"]), assistant(row["chosen"]), assistant(row["rejected"]),
                subset if isinstance(subset, str) else "")  # fmt: skip


def implicit_messages(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row of messages without a prompt column: the common beginning is the prompt."""
    chosen, rejected = assistant(row["chosen"]), assistant(row["rejected"])
    shared = common_beginning((chosen, rejected))
    yield Draft(chosen[:shared], chosen[shared:], rejected[shared:])


def implicit_texts(row: Row) -> Iterator[Draft]:
    """Yield the pair of a TRL row of texts without a prompt column.

    The prompt is the common beginning of both texts without its final space, as in TRL.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if MARKERS.search(chosen) or MARKERS.search(rejected):
        raise UnusableRowError("is a dialogue of Human: and Assistant:; read the file with pairs.file.format=hh")
    shared = common_beginning((chosen, rejected))
    shared -= chosen[:shared].endswith(" ")
    yield Draft(user(chosen[:shared]), assistant(chosen[shared:]), assistant(rejected[shared:]))


MARKERS = re.compile(r"(?:\A|\n\n)(Human|Assistant):")  # some exports lack the line breaks before the first marker
ROLES = {"Human": "user", "Assistant": "assistant"}


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


def hh(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of Anthropic's HH-RLHF: two whole dialogues that differ only in the last answer."""
    chosen, rejected = split_dialogue(row["chosen"]), split_dialogue(row["rejected"])
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UnusableRowError("does not end with an answer")
    if chosen[:-1] != rejected[:-1]:
        raise UnusableRowError("chosen and rejected differ before the last turn")
    yield Draft(chosen[:-1], chosen[-1:], rejected[-1:])


def ultrafeedback(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of binarized UltraFeedback: a prompt, and two lists of messages that repeat it."""
    scores = row.get("score_chosen"), row.get("score_rejected")
    if None not in scores and scores[0] == scores[1]:
        raise UnusableRowError("chosen and rejected have the same score")
    chosen, rejected = assistant(row["chosen"]), assistant(row["rejected"])
    if not chosen or chosen[:-1] != rejected[:-1]:
        raise UnusableRowError("chosen and rejected differ before the last turn")
    yield Draft(chosen[:-1], chosen[-1:], rejected[-1:])


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


def shp(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of Stanford Human Preferences: labels is 1 if answer A is preferred, 0 if B is."""
    a, b = row["human_ref_A"], row["human_ref_B"]
    if row["labels"] not in (0, 1):
        raise UnusableRowError("labels is neither 0 nor 1")
    scores = [row[name] for name in ("score_A", "score_B") if isinstance(row.get(name), int | float)]
    if len(scores) == 2 and (scores[0] > scores[1]) != row["labels"]:
        raise UnusableRowError("labels and scores contradict each other")
    chosen, rejected = (a, b) if row["labels"] else (b, a)
    yield Draft(user(row["history"]), assistant(chosen), assistant(rejected))


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


def _unescape(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r'\\+"', '"', text)


def alpaca_eval(row: Row) -> Iterator[Draft]:
    """Yield the pair of a row of AlpacaEval's annotations: two outputs, and the preferred one as 1 or 2."""
    if row["preference"] not in (1, 2):
        raise UnusableRowError("no preference between the two outputs")
    first, second = assistant(row["output_1"]), assistant(row["output_2"])
    chosen, rejected = (first, second) if row["preference"] == 1 else (second, first)
    subset = row.get("dataset")
    yield Draft(user(row["instruction"]), chosen, rejected, subset if isinstance(subset, str) else "")


@dataclass(frozen=True)
class Format:
    """A row format: its required columns, its reader, and a test of the types of the values."""

    columns: tuple[str, ...]
    read: Callable[[Row], Iterator[Draft]]
    fits: Callable[[Row], bool] = lambda row: True


def _kinds(row: Row) -> tuple[type, ...]:
    return tuple(type(row.get(name)) for name in ("prompt", "chosen", "rejected"))


def _are_dialogues(row: Row) -> bool:
    """Return whether a row has HH dialogues. One of the two texts is enough, because the other may be empty."""
    texts = row["chosen"], row["rejected"]
    return all(isinstance(text, str) for text in texts) and any(map(MARKERS.match, texts))


PREFERENCE = ("prompt", "chosen", "rejected")
ANSWERS = ("chosen", "rejected")

# `detect` takes the first format that fits, so more specific formats come first.
FORMATS: dict[str, Format] = {
    "alpaca_eval": Format(("instruction", "output_1", "output_2", "preference"), alpaca_eval),
    "nq_open": Format(("question", "answer_and_def_correct_predictions", "def_incorrect_predictions"), nq_open),
    "stack_exchange": Format(("question", "answers"), stack_exchange),
    "shp": Format(("history", "human_ref_A", "human_ref_B", "labels"), shp),
    "ultrafeedback": Format(PREFERENCE, ultrafeedback, lambda row: _kinds(row) == (str, list, list)),
    "reward_bench": Format((*PREFERENCE, "subset"), explicit, lambda row: _kinds(row) == (str, str, str)),
    "trl_conversational": Format(PREFERENCE, explicit, lambda row: _kinds(row)[0] is list),
    "trl_standard": Format(PREFERENCE, explicit, lambda row: _kinds(row) == (str, str, str)),
    "hh": Format(ANSWERS, hh, lambda row: "prompt" not in row and _are_dialogues(row)),
    "trl_conversational_implicit": Format(
        ANSWERS, implicit_messages, lambda row: _kinds(row)[0] is type(None) and _kinds(row)[1:] == (list, list)
    ),
    "trl_standard_implicit": Format(
        ANSWERS, implicit_texts, lambda row: _kinds(row)[0] is type(None) and _kinds(row)[1:] == (str, str)
    ),
}


def detect(row: Row) -> str | None:
    """Return the name of the first format that fits a row's columns and value types; None if no format fits."""
    for name, form in FORMATS.items():
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
    needs_texts = form.read in (hh, implicit_texts)
    if needs_texts and not (isinstance(row["chosen"], str) and isinstance(row["rejected"], str)):
        raise UnusableRowError("chosen or rejected is not a text")
    return list(form.read(row))


def fault(draft: Draft) -> str | None:
    """Return the reason why a pair is unusable, or None."""
    for name, messages in (("prompt", draft.prompt), ("chosen", draft.chosen), ("rejected", draft.rejected)):
        texts = [message["content"] for message in messages]
        if not any(text.strip() for text in texts):
            return f"{name} is empty"
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            return f"{name} contains characters that are not valid Unicode"
    if draft.chosen == draft.rejected:
        return "chosen and rejected are the same"
    return None
