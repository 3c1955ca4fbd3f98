"""Exact match and F1 against SQuAD's own arithmetic, and classes of similar texts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from latentwire.stats.answers import classes_of, exact_match, f1_score, normalize_answer

ODD = [
    *("", " ", "the", "a an the", "The U.S.A.", "usa", "th-e", "red-brick", "redbrick", "an apple", "AN APPLE!"),
    *("apple", "3,000", "3000", "3.5%", "$3.50", "“red”", "red", "theatre", "the_end", "a/an", "naïve", "NAÏVE"),
    *("Straße", "İstanbul", "二〇二四年", "tab\tand\nnewline", "nbsp\u00a0here", "...", "'s", "a's", "red red blue"),
    *("red blue blue", "blue red red", "the cat sat on the mat", "cat on mat", "\u2028", "🙂 red", "x’a’y"),
]
PIECES = st.sampled_from(["the", "A", "an", "red", "Red", "blue", "12", "x", ",", ".", "-", "'", "’", " ", "  ", "\n"])
TEXTS = st.one_of(st.sampled_from(ODD), st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12))


def peer_scores(prediction: str, references: list[str]) -> tuple[float, float]:
    answers = {"text": references, "answer_start": [0] * len(references)}
    scores = squad([{"prediction_text": prediction, "id": "1"}], [{"answers": answers, "id": "1"}])
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_scores_equal_torchmetrics(prediction, references):
    em, f1 = peer_scores(prediction, references)
    both_empty = normalize_answer(prediction) == "" and "" in map(normalize_answer, references)
    assert exact_match(prediction, references) == em
    assert f1_score(prediction, references) == pytest.approx(0.0 if both_empty else f1, abs=1e-6)


def test_odd_strings_score_as_in_torchmetrics():
    for prediction, reference in itertools.product(ODD, ODD):
        em, f1 = peer_scores(prediction, [reference])
        if normalize_answer(prediction) or normalize_answer(reference):
            assert f1_score(prediction, [reference]) == pytest.approx(f1, abs=1e-6), (prediction, reference)
        assert exact_match(prediction, [reference]) == em, (prediction, reference)


@pytest.mark.parametrize("prediction", ["", "the", " ...", "A."])
def test_empty_against_empty_matches_but_has_no_f1(prediction):
    assert peer_scores(prediction, ["an"]) == (1.0, 1.0)  # the documented difference
    assert exact_match(prediction, ["an"]) == 1.0
    assert f1_score(prediction, ["an"]) == 0.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("U.S.A.", "usa"),
        ("th-e end", "end"),  # punctuation goes first, so that this becomes an article
        ("red-brick", "redbrick"),
        ("theatre of an ant", "theatre of ant"),
        ("“Red” – 5 €", "“red” – 5 €"),  # only ASCII punctuation is dropped
        ("x’a’y", "x’ ’y"),  # a space takes an article's place
        ("a the an", ""),
    ],
)
def test_normalizing_by_hand(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("red red blue", "red blue blue", 2 / 3),  # as sets they would be equal
        ("red red", "red", 2 / 3),
        ("blue car", "blue sports car", 4 / 5),
        ("blue", "blue sports car", 1 / 2),
        ("green", "blue sports car", 0.0),
    ],
)
def test_f1_counts_repeated_words(prediction, reference, f1):
    assert f1_score(prediction, [reference]) == pytest.approx(f1)
    assert f1_score(reference, [prediction]) == pytest.approx(f1)


def test_the_best_reference_counts_in_any_order():
    for references in itertools.permutations(["blue bus", "blue car park", "green"]):
        assert f1_score("blue car", references) == pytest.approx(4 / 5)
        assert exact_match("the Green", references) == 1.0
        assert exact_match("blue car", references) == 0.0


def test_similar_texts_share_a_class():
    texts = ["In 1998.", "1998", "the year 1998", "Paris", "  paris!", "", "."]
    assert classes_of(texts, 0.6) == [0, 0, 1, 2, 2, 3, 3]  # word F1 with the first text: 2/3, then 1/2
    assert classes_of(texts, 1.1) == [0, 1, 2, 3, 3, 4, 4]  # only equal words
