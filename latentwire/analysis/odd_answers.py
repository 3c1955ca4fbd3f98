"""Detectors of answers that do not fit their examples. Main entries: `half_odd()`, `answers_of_others()`,
`wrong_references()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from latentwire.analysis.controls import is_clean
from latentwire.analysis.findings import finding
from latentwire.analysis.finished import Answered, FinishedSweep
from latentwire.records import Finding
from latentwire.stats.answers import f1_score
from latentwire.stats.intervals import Scores

HALF = 0.5  # share of the answers from which they are odd; the clean control had at most 1% (short_qa, n = 200)
NEARLY_ALL = 0.95  # from here on, `evaluation.detectors` finds empty and equal answers while a configuration runs
ONE_TOKEN = 0.9  # share of one-token answers where all right answers have more words; 12% on clean text
FEW = 5  # fewer examples are not judged
SHIFTS = 8  # largest shift of the examples that is tried
# Another order counts if its examples match better at this one-sided level of a sign test, divided by the number of
# orders: 15 examples of 15 reach it. The gain keeps out chance matches of partial words, which score under .05.
ORDER_LEVEL = 1e-3
GAIN = 0.2  # mean F1 by which another order must be better than the own one
POOL = 0.5  # share of the answers that are right answers of other examples
UNMATCHED = 0.1  # mean F1 below which answers do not match their references
AGREE = 0.8  # share of equal answers of two configurations that both read their inputs


def half_odd(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return findings for results with at least half of their answers empty, alike or cut off.

    A model that cannot read its inputs answers like that, so it is a note where the inputs are far from real
    embeddings. Where they are near it is a warning, because there the model reads them. If the clean control shows the
    same, it alone has the warning: the cause is not the source or the transform.
    """
    shown = {one.name: odd_halves(one) for one in sweep.answered if len(one.rows) >= 2}
    found = {}
    for one in sweep.answered:
        clean = sweep.clean(one)
        of_clean = {} if clean is None or clean is one else shown.get(clean.name, {})
        unread = one.result["control"] in ("empty", "random", "scrambled") or not one.is_near()
        findings = []
        for kind, message in shown.get(one.name, {}).items():
            if unread or kind in of_clean:
                findings.append(finding(kind, "note", message))
            else:
                message += ", although the inputs are near real embeddings"
                findings.append(finding(kind, "warning", message))
        if findings:
            found[one.name] = findings
    return found


def odd_halves(one: Answered) -> dict[str, str]:
    """Return what at least half of a result's answers have in common: messages by the kind of the finding."""
    found = {}
    count, answers = len(one.rows), list(one.answers.values())
    empty = sum(not answer for answer in answers) / count
    if HALF <= empty < NEARLY_ALL:
        found["half_empty"] = "half of the answers or more are empty"
    answer, number = Counter(answers).most_common(1)[0]
    right = Counter(one.references).most_common(1)[0][1]
    if answer and HALF <= number / count < NEARLY_ALL and number >= 2 * right:
        found["half_alike"] = f"half of the answers or more are the same: {answer!r}"
    if sum(row.get("cut_off", False) for row in one.rows) >= HALF * count:
        found["cut_off"] = "half of the answers or more reach max_new_tokens and are cut off"
    else:
        longer = [row for row, texts in zip(one.rows, one.references, strict=True) if min(map(_words, texts)) > 1]
        short = [row for row in longer if row["prediction"] and row.get("tokens", 2) <= 1]
        if len(longer) >= FEW and len(short) >= ONE_TOKEN * len(longer):
            found["cut_off"] = "answers end after one token where all right answers have several words"
    return found


def _words(text: str) -> int:
    return len(text.split())


def answers_of_others(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return a warning for results whose answers match the right answers of other examples better than their own.

    Tried are shifts, swapped neighbours and the reversed order of the file. Where even the clean control's answers
    match in another order, the data have wrong right answers, which `wrong_references` reports.
    """
    own = {one: _other_order(one) for one in sweep.answered if one.result["control"] in (None, "baseline", "clean")}
    found = {}
    for one, order in own.items():
        clean = sweep.clean(one)
        if order is not None and not _is_clean_control(one) and (clean is None or own.get(clean) is None):
            message = f"the answers match the right answers {order} better than their own: they belong to other inputs"
            found[one.name] = [finding("answers_of_another", "warning", message)]
    return found


def wrong_references(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return a warning for clean controls whose right answers probably belong to other examples or other data.

    There are three signs. Answers match in another order. Half of the answers are right answers of other examples. Or
    the model ends its answers itself, gives the same varied answers on clean text and after a repair, and none match.
    """
    found = {}
    for one in sweep.answered:
        if not _is_clean_control(one):
            continue
        order = _other_order(one)
        if order is not None:
            message = f"the clean control's answers match the right answers {order} better than their own"
        elif _unmatched(one) and (share := _in_pool(one)) >= POOL:
            message = f"{share:.0%} of the clean control's answers are right answers of other examples, not their own"
        elif _unmatched(one) and (other := _agreeing(one, sweep)) is not None:
            message = f"the clean control and {other} give the same varied answers, but none match the right answers"
        else:
            continue
        message += ": the data probably have wrong right answers"
        found[one.name] = [finding("wrong_references", "warning", message)]
    return found


def _is_clean_control(one: Answered) -> bool:
    return one.result["control"] == "clean" or (one.result["control"] is None and is_clean(one.result))


def _unmatched(one: Answered) -> bool:
    """Return whether varied answers, which the model ended itself, do not match their references."""
    cut = sum(row.get("cut_off", False) for row in one.rows)
    return one.varies() and cut < HALF * len(one.rows) and _own_f1(one).mean() < UNMATCHED


def _own_f1(one: Answered) -> Scores:
    """Return the F1 of each answer, also if another metric is the primary one, (N,)."""
    return np.array([f1_score(row["prediction"], row["references"]) for row in one.rows])


def _in_pool(one: Answered) -> float:
    """Return the share of the answers that are a right answer of another example, but not of their own."""
    pool = {text for texts in one.references for text in texts}
    pairs = zip(one.answers.values(), one.references, strict=True)
    return sum(bool(answer) and answer in pool and answer not in own for answer, own in pairs) / len(one.rows)


def _agreeing(clean: Answered, sweep: FinishedSweep) -> str | None:
    """Return the name of a configuration that changes its inputs and gives the clean control's answers, or None."""
    for one in sweep.answered:
        others = one.result["control"] is None and one.result["variant"] == clean.result["variant"]
        differ = one.result["source"] != clean.result["source"] or one.result["relative_change"] > 0
        if others and differ and one is not clean and one.agreement(clean) >= AGREE:
            return one.name
    return None


def _other_order(one: Answered) -> str | None:
    """Return the order in which the answers match the references better than in their own order, or None."""
    rows, count = one.rows, len(one.rows)
    words = frozenset().union(*map(_words_in, one.references))
    answered = [_words_in((answer,)) for answer in one.answers.values()]
    known = sum(not words.isdisjoint(answer) for answer in answered)
    if count < FEW or known < GAIN * count:  # without a common word F1 is 0 in every order
        return None
    right = [_words_in(texts) for texts in one.references]

    def scores_in(order: Sequence[int]) -> Scores:
        scores = np.zeros(count)
        for place, other in enumerate(order):
            if not answered[place].isdisjoint(right[other]):
                scores[place] = f1_score(rows[place]["prediction"], rows[other]["references"])
        return scores

    own = scores_in(range(count))
    if own.mean() >= HALF:
        return None
    best, most = None, own.mean() + GAIN
    orders = _orders(count)
    for name, order in orders.items():
        scores = scores_in(order)
        if scores.mean() >= most and _sign_test(scores - own) < ORDER_LEVEL / len(orders):
            best, most = name, scores.mean()
    return best


@lru_cache(maxsize=2**17)
def _words_in(texts: tuple[str, ...]) -> frozenset[str]:
    """Return the words of some texts. The configurations of a sweep have the same right answers."""
    return frozenset(word for text in texts for word in text.split())


def _orders(count: int) -> dict[str, list[int]]:
    """Return the orders of `count` examples that are tried, by their description."""
    places = range(count)
    found = {"of the neighbour in pairs": [min(place ^ 1, count - 1) for place in places]}
    found["in reverse order"] = [count - 1 - place for place in places]
    for shift in range(1, min(SHIFTS, count - 1) + 1):
        found[f"of the example {shift} later"] = [(place + shift) % count for place in places]
        found[f"of the example {shift} earlier"] = [(place - shift) % count for place in places]
    return found


def _sign_test(differences: Scores) -> float:
    """Return a bound of the one-sided p-value that positive differences outnumber negative ones by chance.

    Source: Hoeffding 1963: P(share >= 1/2 + t) <= exp(-2 n t^2), or 2^-n if all are positive.
    """
    positive, changed = int((differences > 0).sum()), int((differences != 0).sum())
    if positive == changed:
        return float(0.5**changed)
    return float(np.exp(-2 * changed * max(0.0, positive / changed - 0.5) ** 2))
