"""Checks of a configuration that ran: faults stop it, findings appear with its score.

A fault makes the score meaningless and is raised as UserError, for example by `require_finite_values()`. A finding is
a dict of kind, level ("note": possibly right; "warning": probably wrong) and message, for example from `same_output()`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from latentwire.analysis.findings import finding
from latentwire.data.examples import Example
from latentwire.evaluation.metrics import normalize_answer
from latentwire.harness.errors import UserError
from latentwire.records import Finding

T = TypeVar("T")
Decode = Callable[[list[int]], str]

SAME = 0.01  # outputs count as equal below this relative standard deviation over examples
DIFFERENT = 0.05  # inputs count as different above this relative standard deviation
ODD = 0.95  # answers count as all equal or all empty from this share on
SPAN_WORDS = 0.5  # share of the words that the tokens of the source span must contain
LEAKED_ANSWERS = 0.05  # share of examples that may have an answer of the shots by chance
WORDS = re.compile(r"\w+")


# --- while a configuration runs ---------------------------------------------------------------------------------


def require_finite_values(values: Tensor, what: str, identifier: str) -> None:
    """Refuse embeddings or logits that contain NaN or infinity; greedy decoding would still give an answer.

    Args:
        values: The tensor to check, of any shape.
        what: What computed it, for the message.
        identifier: Id of the example.

    Raises:
        UserError: A value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"{what} gave NaN or infinite values for example {identifier}; "
            "the model cannot use them: choose less extreme dials, or dtype=float32"
        )


def require_span(positions: int, decoded: str, texts: Sequence[str], identifier: str) -> None:
    """Refuse a prompt whose source span does not contain the passage and the question.

    Args:
        positions: Number of positions in the source span.
        decoded: Tokens of the span, decoded.
        texts: Passage and question that the span should contain.
        identifier: Id of the example.

    Raises:
        UserError: No position is marked, or the tokens contain less than SPAN_WORDS of the words.
    """
    if positions == 0:
        raise UserError(
            f"the source span is missing from the prompt of example {identifier}: no position is marked, so source "
            "and transform have no effect; check that the tokenizer gives tokens for its text"
        )
    expected, found = Counter(_words(" ".join(texts))), Counter(_words(decoded))
    share = (expected & found).total() / max(1, expected.total())
    if share < SPAN_WORDS:
        raise UserError(
            f"the source span of example {identifier} does not contain its text: only {share:.0%} of the words are "
            "among its tokens; choose a model whose tokenizer knows the language of the data"
        )


def require_marked_text(ids: Tensor, mask: Tensor, expected: Sequence[int], decode: Decode, identifier: str) -> None:
    """Refuse a prompt in which a mask marks other tokens than a text's.

    Decoded texts are compared, without white space and case, because a tokenizer may drop or fold characters.

    Args:
        ids: Token ids of the prompt, (T,).
        mask: The positions that should hold the text, (T,).
        expected: Token ids that the tokenizer gives for the text alone.
        decode: Turns token ids into text.
        identifier: Id of the example.

    Raises:
        UserError: The tokens are others.
    """
    marked = ids[mask].tolist()
    if marked == list(expected) or _folded(decode(marked)) == _folded(decode(list(expected))):
        return
    size, start = len(expected), int(mask.int().argmax())
    places = [at for at in range(len(ids) - size + 1) if ids[at : at + size].tolist() == list(expected)]
    cause = f"{len(marked) - size:+d} positions"
    if places and len(marked) == size:
        cause = f"it is shifted by {start - min(places, key=lambda at: abs(at - start)):+d} positions"
    elif size:
        missing = (Counter(expected) - Counter(marked)).total()
        cause = f"{missing / size:.0%} of the tokens are missing, with {len(marked)} marked for {size}"
    raise UserError(
        f"the source span of example {identifier} is not its text: {cause}, so source and transform change other "
        "tokens; correct the masks of the prompt"
    )


def require_placed(embeds: Tensor, own: Tensor, mask: Tensor, repaired: Tensor, identifier: str) -> None:
    """Refuse an input of the LM in which the repaired embeddings are not exactly on the span.

    Args:
        embeds: Input of the LM, (T - S + L, D).
        own: Embeddings of the prompt's tokens, (T, D).
        mask: The span, (T,), with S positions.
        repaired: Repaired embeddings of the span, (L, D).
        identifier: Id of the example.

    Raises:
        UserError: A row on the span is not the repaired one, or a row outside has changed.
    """
    places = mask.nonzero().flatten().tolist()
    if len(places) == len(repaired):
        expected = own.clone()
        expected[places] = repaired
    else:
        expected = torch.cat([own[: places[0]], repaired, own[places[-1] + 1 :]])
    if torch.equal(embeds, expected):
        return
    cause = f"it has {len(embeds)} positions, expected {len(expected)}"
    if len(embeds) == len(expected):
        wrong = (embeds != expected).any(dim=-1).nonzero().flatten().tolist()
        cause = f"{len(wrong)} of its {len(expected)} positions hold other embeddings, from position {wrong[0]} on"
        shifts = [by for by in (-3, -2, -1, 1, 2, 3) if _is_shifted(embeds, places, repaired, by)]
        cause += f": the span is shifted by {shifts[0]:+d}" if shifts else ""
    raise UserError(
        f"the source span of example {identifier} is not where its tokens are in the input of the LM: {cause}; correct "
        "the place of the repaired embeddings"
    )


def _is_shifted(embeds: Tensor, places: list[int], repaired: Tensor, by: int) -> bool:
    shifted = [place + by for place in places]
    inside = len(places) == len(repaired) and min(shifted) >= 0 and max(shifted) < len(embeds)
    return inside and torch.equal(embeds[shifted], repaired)


def _folded(text: str) -> str:
    """Return a text without white space and case."""
    return "".join(text.casefold().split())


def dtype_changed(what: str, before: torch.dtype, after: torch.dtype) -> list[Finding]:
    """Return a warning if a source or transform returned another dtype than its input's."""
    if before == after:
        return []
    names = [str(dtype).removeprefix("torch.") for dtype in (after, before)]
    return [finding("dtype_changed", "warning", f"{what} returned {names[0]} for {names[1]} input; it was cast")]


def same_output(what: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Finding]:
    """Return a warning if a source or transform gives the same output for different inputs.

    Examples are compared position by position, which finds constant sequences as well as constant vectors.

    Args:
        what: "source" or "transform".
        inputs: First positions of each example's input, (P, D) each.
        outputs: The output for them, (P, D) each.
    """
    if len(inputs) < 2 or _relative_std(inputs) < DIFFERENT or _relative_std(outputs) >= SAME:
        return []
    message = (
        f"the {what} gives the same output for every input: outputs differ by "
        f"{_relative_std(outputs):.2%} of their length, inputs by {_relative_std(inputs):.0%}"
    )
    return [finding("same_output", "warning", message)]


def _relative_std(tensors: Sequence[Tensor]) -> float:
    """Return the RMS distance from the mean over examples, divided by the RMS length."""
    stacked = torch.stack([tensor.double() for tensor in tensors])  # (M, P, D)
    length = stacked.square().mean().sqrt()
    return float((stacked - stacked.mean(dim=0)).square().mean().sqrt() / length) if length > 0 else 0.0


# --- when a configuration is finished ---------------------------------------------------------------------------


def changes_nothing(family: str, changes: Iterable[float]) -> list[Finding]:
    """Return a note if a transform returned every input bit for bit.

    Args:
        family: Name of the transform; the baseline changes nothing by definition.
        changes: Relative change of the embeddings in each example.
    """
    if family == "baseline" or any(change != 0 for change in changes):
        return []
    return [finding("changes_nothing", "note", "the transform changes nothing on this source")]


def odd_predictions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], far: bool = False
) -> list[Finding]:
    """Return a finding if a share of ODD of the answers is empty, or equal although the right answers differ.

    Args:
        predictions: Answers, compared after the normalization of the scores, (N,).
        references: Right answers of each example, (N,).
        far: Whether the inputs are far from real embeddings. A model that cannot read them answers like that, so the
            finding is a note; else it is a warning.
    """
    if len(predictions) < 2:
        return []
    answer, share = _most_common([normalize_answer(text) for text in predictions])
    if share < ODD:
        return []
    # The exact share would keep equal findings of different configurations from being joined.
    what = "all answers" if share == 1 else f"{ODD:.0%} of the answers or more"
    level = "note" if far else "warning"
    if not answer:
        return [finding("all_empty", level, f"{what} are empty")]
    if _most_common([tuple(sorted(map(normalize_answer, answers))) for answers in references])[1] >= ODD:
        return []
    return [finding("all_alike", level, f"{what} are the same: {answer!r}")]


def _most_common(values: Sequence[T]) -> tuple[T, float]:
    """Return the most common value and its share."""
    value, count = Counter(values).most_common(1)[0]
    return value, count / len(values)


def shots_leak(shots: Sequence[Sequence[Example]], examples: Sequence[Example]) -> list[Finding]:
    """Return findings for examples whose passage, question or answer appears in the shots.

    Texts are compared word by word. A passage also counts if a shot's passage contains it or is contained in it.
    Answers may be equal by chance: up to a share of LEAKED_ANSWERS of the examples gives a note, more a warning.

    Args:
        shots: Solved examples of each shown passage.
        examples: Examples that the model is evaluated on.
    """
    shown_passages = {" ".join(_words(shot[0].context)) for shot in shots}
    shown_questions = {" ".join(_words(example.question)) for shot in shots for example in shot}
    shown_answers = {" ".join(_words(example.answers[0])) for shot in shots for example in shot}
    passages, questions, answers = [], [], []
    for example in examples:
        passage = f" {' '.join(_words(example.context))} "
        if any(f" {shown} " in passage or passage in f" {shown} " for shown in shown_passages):
            passages.append(example.id)
        if " ".join(_words(example.question)) in shown_questions:
            questions.append(example.id)
        if any(" ".join(_words(answer)) in shown_answers for answer in example.answers):
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
            message = f"the shots show the {what} of {len(ids)} of {len(examples)} examples ({listed})"
            found.append(finding("shots_leak", level, message))
    return found


def _words(text: str) -> list[str]:
    return WORDS.findall(text.casefold())
