"""Diversity of sets of texts: hand-computed values, peer packages, and the direction of each metric."""

from __future__ import annotations

import math
import random
import warnings
import zlib

import numpy as np
import pytest

from kat.diversity.bleu import self_bleu, self_bleu_without
from kat.diversity.kernel import cosines, mean_distance, mean_distance_without, vendi
from kat.diversity.metrics import TextSet, measure, measure_without, set_metrics
from kat.diversity.phrases import em_dashes, not_just_but, words
from kat.diversity.repetition import compression_ratio, ead, ead_without, token_entropy, token_entropy_without
from tests.helpers.random import numbers, shifted

VOCABULARY = 100
NONE = np.zeros(3, dtype=bool)


def random_sets(count: int = 40):
    """Return sets of token sequences of many shapes, some of them short or repetitive."""
    draws = random.Random(shifted(0))
    for _ in range(count):
        size, longest, tokens = draws.randint(3, 7), draws.randint(1, 12), draws.choice([2, 4, 30])
        yield [tuple(draws.randrange(tokens) for _ in range(draws.randint(1, longest))) for _ in range(size)]


def left_out(texts):
    return [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_ead_by_hand():
    # Tokens 1 2 1 and 3: 3 distinct of 4; bigrams 12, 21; trigram 121; n-grams do not cross texts.
    def expected(n, count):
        possible = VOCABULARY**n
        return possible * (1 - ((possible - 1) / possible) ** count)

    by_hand = (3 / expected(1, 4) + 2 / expected(2, 2) + 1 / expected(3, 1)) / 3
    assert ead([(1, 2, 1), (3,)], VOCABULARY) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.statistical
def test_ead_of_uniform_tokens_is_1_at_every_length():
    draws = numbers(0)
    for count in (20, 150):
        distinct = [ead([(int(token),) for token in draws.integers(0, VOCABULARY, count)], VOCABULARY)
                    for _ in range(150)]  # fmt: skip
        assert np.mean(distinct) == pytest.approx(1, abs=0.02)  # plain distinct-1 would fall to 0.52


def test_ead_counts_n_grams_up_to_five():
    same_five = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)]
    other_last = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6)]
    large = 10**6
    assert ead(same_five, large) == pytest.approx(0.5, rel=1e-4)
    # 6 of 10 tokens, 5 of 8 bigrams, 4 of 6, 3 of 4 and 2 of 2 five-grams
    assert ead(other_last, large) == pytest.approx((6 / 10 + 5 / 8 + 4 / 6 + 3 / 4 + 1) / 5, rel=1e-4)


def test_token_entropy_by_hand():
    assert token_entropy([(1, 2), (1, 3)]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert token_entropy([(1,), (2,), (3,)]) == pytest.approx(math.log(3))
    assert token_entropy([(7, 7), (7,)]) == 0
    assert token_entropy([(), ()]) == 0


def test_self_bleu_by_hand():
    # Each of the two has 3 of 4 tokens, 2 of 3 bigrams, 1 of 2 trigrams; the 4-gram is smoothed to 1/2.
    by_hand = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert self_bleu([(1, 2, 3, 4), (1, 2, 3, 5)]) == pytest.approx(by_hand)
    # The longer contains the shorter, which gets the brevity penalty; half of the longer's tokens are in the shorter.
    short, long = math.exp(1 - 4 / 2), (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25
    assert self_bleu([(1, 2), (1, 2, 3, 4)]) == pytest.approx((short + long) / 2)


def test_self_bleu_of_copies_and_of_unrelated_texts():
    assert self_bleu([(1,), (1,)]) == pytest.approx(1)
    assert self_bleu([(1, 2, 3, 4, 5)] * 4) == pytest.approx(1)
    assert self_bleu([(1, 2, 3), (4, 5, 6), (7, 8)]) == 0
    assert self_bleu([(), ()]) == 1
    assert self_bleu([(), (1, 2)]) == 0
    assert self_bleu([(), (), (1, 2)]) == pytest.approx(2 / 3)


def test_self_bleu_equals_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    for texts in random_sets():
        strings = [" ".join(map(str, text)) for text in texts]
        scores = [
            sacrebleu.sentence_bleu(own, others, tokenize="none").score / 100
            for own, others in zip(strings, left_out(strings), strict=True)
        ]
        assert self_bleu(texts) == pytest.approx(np.mean(scores), abs=1e-12)


def test_vendi_equals_the_vendi_score_package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports a SciPy module that moved
        package = pytest.importorskip("vendi_score.vendi", reason="vendi-score is not installed")
        draws = numbers(0)
        for size in (2, 5, 12):
            rows = unit(draws.normal(size=(size, 6)))
            assert vendi(rows @ rows.T) == pytest.approx(package.score_X(rows), rel=1e-9)


def test_vendi_by_hand():
    assert vendi(np.eye(5)) == pytest.approx(5)
    assert vendi(np.ones((5, 5))) == pytest.approx(1)
    two_kinds = np.kron(np.eye(2), np.ones((2, 2)))
    assert vendi(two_kinds) == pytest.approx(2)
    # Eigenvalues of [[1, c], [c, 1]] / 2 are (1 + c) / 2 and (1 - c) / 2.
    p = np.array([0.8, 0.2])
    assert vendi(np.array([[1, 0.6], [0.6, 1]])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_mean_distance_by_hand():
    kernel = np.array([[1, 0.5, 0.2], [0.5, 1, -1], [0.2, -1, 1]])
    assert mean_distance(kernel) == pytest.approx((0.5 + 0.8 + 2) / 3)
    assert mean_distance_without(kernel) == pytest.approx([2, 0.8, 0.5])
    assert mean_distance(np.ones((4, 4))) == 0


def test_empty_texts_equal_each_other_and_no_other_text():
    rows = unit([[1, 0], [1, 1], [0, 1], [3, 4]])
    kernel = cosines(rows, np.array([False, True, False, True]))
    assert kernel == pytest.approx(np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]))
    stacked = cosines(np.stack([rows, rows[::-1]]), np.zeros((2, 4), dtype=bool))
    assert stacked[1] == pytest.approx(rows[::-1] @ rows[::-1].T)
    nothing = measure(TextSet([()] * 3, [""] * 3, cosines(np.zeros((3, 2)), ~NONE), VOCABULARY))
    assert nothing == {"ead": 0, "self_bleu": 1, "embedding_distance": 0, "vendi": pytest.approx(1),
                       "compression_ratio": 3, "token_entropy": 0}  # fmt: skip


@pytest.mark.statistical
def test_compression_ratio():
    strings = ["one line", "a second line", ""]
    raw = b"one line\na second line\n"
    assert compression_ratio(strings) == len(raw) / len(zlib.compress(raw, 9))
    assert compression_ratio(["ä"]) == 2 / len(zlib.compress("ä".encode(), 9))
    draws = random.Random(shifted(0))
    text = "".join(draws.choice("abcdefghijklmnop") for _ in range(150))
    assert compression_ratio([text] * 10) > 8 > 3 > compression_ratio([text])


@pytest.mark.statistical
def test_copies_score_low_and_different_texts_high():
    copies = [(1, 2, 3, 4, 5, 6)] * 6
    partly = [(1, 2, 3, 4 + i, 5, 6 + i) for i in range(6)]
    strangers = [tuple(range(10 * i, 10 * i + 6)) for i in range(6)]
    spread = numbers(0).normal(size=(6, 4))
    scores = [
        measure(
            TextSet(
                texts,
                [" ".join(f"{t * 7919 % 99991:05d}" for t in text) for text in texts],
                cosines(unit(rows), np.zeros(6, bool)),
                1000,
            )
        )
        for texts, rows in (
            (copies, np.ones((6, 4))),
            (partly, np.ones((6, 4)) + spread / 2),
            (strangers, np.eye(6)),
        )
    ]
    for name, metric in set_metrics().items():
        sign = 1 if metric.higher_is_more_diverse else -1
        low, middle, high = (sign * score[name] for score in scores)
        assert low < middle < high, name


def test_without_each_is_the_metric_of_the_others():
    draws = numbers(0)
    for texts in random_sets(15):
        rest = left_out(texts)
        assert self_bleu_without(texts) == pytest.approx([self_bleu(others) for others in rest], abs=1e-12)
        assert ead_without(texts, VOCABULARY) == pytest.approx([ead(others, VOCABULARY) for others in rest])
        assert token_entropy_without(texts) == pytest.approx([token_entropy(others) for others in rest])
        rows, strings = unit(draws.normal(size=(len(texts), 3))), [str(text) for text in texts]
        found = measure_without(TextSet(texts, strings, rows @ rows.T, VOCABULARY))
        for i, (others, lines) in enumerate(zip(rest, left_out(strings), strict=True)):
            kept = np.delete(rows, i, axis=0)
            for name, value in measure(TextSet(others, lines, kept @ kept.T, VOCABULARY)).items():
                assert found[name][i] == pytest.approx(value, abs=1e-9), name


def test_em_dashes_are_counted_and_en_dashes_are_not():
    assert em_dashes("The war — the one of 1914–1918 — ended. A-b -- c") == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is not just fast, but also cheap.", 1),
        ("It isn't just fast but cheap. They aren’t Just tall; but no: NOT JUST big but bold", 2),
        ("Do not press the red button.", 0),
        ("I do not know, but I guess.", 0),
        ("This is not just fast. But it is cheap.", 0),
        ("It is not just a butter knife.", 0),
        ("He is just a boy, but not small.", 0),
    ],
)
def test_not_just_x_but_y_is_counted_within_a_sentence(text, count):
    """Only the whole construction counts, not one of its parts."""
    assert not_just_but(text) == count


def test_words():
    assert words("Don't stop: well-known 1914–1918, it’s — fine.") == 7
    assert words(" — ...") == 0
