"""What is wrong with a configuration although it ran: faults that stop it, findings that stand beside its score.

A finding is a plain dict: kind, level (note: may be as it should; warning: look at it) and a message. A fault, which
makes a score meaningless, is raised as UserError instead.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentwire.analysis.findings import Finding, finding
from latentwire.data.examples import Example
from latentwire.evaluation.metrics import normalize_answer
from latentwire.harness.errors import UserError

SAME = 0.01  # spread of outputs over inputs, relative to their length, below which they are the same
DIFFERENT = 0.05  # spread of inputs above which they are not
ODD = 0.95  # share of the answers that are all alike or all empty: a handful of others does not hide the fault
SPAN_WORDS = 0.5  # share of the words that must be found again in the tokens of the source span
LEAKED_ANSWERS = 0.05  # share of the examples with an answer of the shots that is still chance
WORDS = re.compile(r"\w+")


# --- while a configuration runs ---------------------------------------------------------------------------------


def require_finite_values(values: Tensor, what: str, identifier: str) -> None:
    """Stop where embeddings or logits hold NaN or infinity.

    Raises:
        UserError: They do; greedy decoding would answer something all the same.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"{what} gave NaN or infinite values for example {identifier}; "
            "nothing can be read from them: use less extreme dials, or dtype=float32"
        )


def require_span(positions: int, decoded: str, texts: Sequence[str], identifier: str) -> None:
    """Stop where the tokens of the source span are not the passage and the question.

    Args:
        positions: Number of positions in the source span.
        decoded: Their tokens as text.
        texts: What they stand for.
        identifier: Of the example.

    Raises:
        UserError: No position is marked, or fewer than SPAN_WORDS of the words are among the tokens.
    """
    if positions == 0:
        raise UserError(
            f"the source span is missing from the prompt of example {identifier}: no position is marked, so neither "
            "source nor transform could act; check that the tokenizer gives tokens for its text"
        )
    expected, found = Counter(_words(" ".join(texts))), Counter(_words(decoded))
    share = (expected & found).total() / max(1, expected.total())
    if share < SPAN_WORDS:
        raise UserError(
            f"the source span of example {identifier} does not hold its text: only {share:.0%} of the words are among "
            "its tokens; choose a model whose tokenizer knows the language of the data"
        )


def dtype_changed(what: str, before: torch.dtype, after: torch.dtype) -> list[Finding]:
    """Say that a source or a transform does not return the dtype that it was given."""
    if before == after:
        return []
    names = [str(dtype).removeprefix("torch.") for dtype in (after, before)]
    return [finding("dtype_changed", "warning", f"{what} returned {names[0]} where {names[1]} went in; it was cast")]


def same_output(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Finding]:
    """Say that a transform gives the same output whatever the input: what differed is lost.

    Compared are the examples position by position, so that a constant sequence is seen as well as a constant vector.

    Args:
        inputs: Beginnings of equal length, (P, D) each.
        outputs: What the transform made of them, (P, D) each.
    """
    if len(inputs) < 2 or _spread(inputs) < DIFFERENT or _spread(outputs) >= SAME:
        return []
    text = f"the transform gives the same output for every input: outputs differ by {_spread(outputs):.2%} of their "
    return [finding("same_output", "warning", text + f"length where inputs differ by {_spread(inputs):.0%}")]


def _spread(tensors: Sequence[Tensor]) -> float:
    """Return the RMS distance from the mean over examples, relative to the RMS length."""
    stacked = torch.stack([tensor.double() for tensor in tensors])  # (M, P, D)
    length = stacked.square().mean().sqrt()
    return float((stacked - stacked.mean(dim=0)).square().mean().sqrt() / length) if length > 0 else 0.0


# --- of a finished configuration --------------------------------------------------------------------------------


def changes_nothing(family: str, changes: Iterable[float]) -> list[Finding]:
    """Say that a transform returned every input bit for bit."""
    if family == "baseline" or any(change != 0 for change in changes):
        return []
    return [finding("changes_nothing", "note", "the transform changes nothing on this source")]


def odd_predictions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Finding]:
    """Say that ODD of the answers are empty, or the same although the right ones differ; as they are scored."""
    if len(predictions) < 2:
        return []
    answer, share = _most_common([normalize_answer(text) for text in predictions])
    if share < ODD:
        return []
    # Not the share itself: equal findings are joined.
    what = "all answers" if share == 1 else f"{ODD:.0%} of the answers or more"
    if not answer:
        return [finding("all_empty", "warning", f"{what} are empty")]
    if _most_common([tuple(sorted(map(normalize_answer, answers))) for answers in references])[1] >= ODD:
        return []
    return [finding("all_alike", "warning", f"{what} are the same: {answer!r}")]


def _most_common(values: Sequence[Any]) -> tuple[Any, float]:
    """Return the most common of some values and its share of them."""
    value, count = Counter(values).most_common(1)[0]
    return value, count / len(values)


def shots_leak(shots: Sequence[Sequence[Example]], examples: Sequence[Example]) -> list[Finding]:
    """Say which examples the shots give away: their passage, their question, or an answer of theirs.

    Passages and questions are compared as words; a passage counts as shown if it is a shot's, lies in it or holds it.
    Answers may be equal by chance: up to LEAKED_ANSWERS of the examples are a note.
    """
    shown = {" ".join(_words(shot[0].context)) for shot in shots}
    asked = {" ".join(_words(example.question)) for shot in shots for example in shot}
    given = {" ".join(_words(example.answers[0])) for shot in shots for example in shot}
    passages, questions, answers = [], [], []
    for example in examples:
        passage = f" {' '.join(_words(example.context))} "
        if any(f" {other} " in passage or passage in f" {other} " for other in shown):
            passages.append(example.id)
        if " ".join(_words(example.question)) in asked:
            questions.append(example.id)
        if any(" ".join(_words(answer)) in given for answer in example.answers):
            answers.append(example.id)
    found = []
    for what, ids, chance in (
        ("passage", passages, 0.0),
        ("question", questions, 0.0),
        ("answer", answers, LEAKED_ANSWERS),
    ):
        if ids:
            level = "warning" if len(ids) > chance * len(examples) else "note"
            listed = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            text = f"the shots show the {what} of {len(ids)} of {len(examples)} examples ({listed})"
            found.append(finding("shots_leak", level, text))
    return found


# --- of the configurations of a sweep, side by side -------------------------------------------------------------


def _words(text: str) -> list[str]:
    return WORDS.findall(text.casefold())
