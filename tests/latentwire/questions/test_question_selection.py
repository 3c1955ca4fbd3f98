"""The rules that keep a written question, at and around their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentwire.questions.selection import REASONS, SelectionRules, choose_questions, is_span, word_overlap
from tests.helpers.questions import ScriptedModel

PASSAGE = "Ondine found the old grey causeway near Pellbeck. It rained."
RULES = SelectionRules(("Who", "What"), 0.75, 0.8, 0.7, 0.5, 3)
ONE = replace(RULES, beginnings=("Who",))
WHO = "Who does Ondine end?"


def outcome(model: ScriptedModel, rules: SelectionRules = ONE) -> str | None:
    """Return the reason why the only written question is dropped, or None."""
    found = choose_questions([PASSAGE], model, rules)
    assert found.written == 1 == len(found.kept) + found.dropped.total()
    return next(iter(found.dropped), None)


def test_a_kept_question_has_its_passage_and_answer():
    (kept,) = choose_questions([PASSAGE], ScriptedModel(sure={WHO: 0.75}), ONE).kept
    example, confidence = kept
    assert (example.context, example.question, example.answers, confidence) == (PASSAGE, WHO, ("Pellbeck",), 0.75)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ScriptedModel({"Who": "does Ondine end?!"}), "longer than max_question_tokens"),
        (ScriptedModel({"Who": "Ondine."}), "not a question"),
        (ScriptedModel({"Who": "?"}), "not a question"),
        (ScriptedModel({"Who": ""}), "not a question"),
        (ScriptedModel({"Who": "founded the Thornwick museum?"}), "its words are not in the passage"),
        (ScriptedModel(from_sentence={WHO: "Thornwick"}), "its answer is not in the passage"),
        (ScriptedModel(from_sentence={WHO: ""}), "its answer is not in the passage"),
        (ScriptedModel(from_sentence={WHO: "Pell"}), "its answer is not in the passage"),
        (ScriptedModel(from_sentence={WHO: "Ondine"}), "contains its answer"),
        (ScriptedModel(with_passage={WHO: "grey"}), "answered otherwise with the passage"),
        (ScriptedModel(sure={WHO: 0.5}), "answered without confidence"),
        (ScriptedModel(without={WHO: "pellbeck!"}), "answered without the passage"),
        (ScriptedModel(), None),
    ],
)
def test_each_reason_drops_a_question(model, reason):
    assert outcome(model) == reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize(
    ("given", "kept"),
    [("old grey causeway near", True), ("old grey", True), ("old", False), ("old grey big causeway hall", False)],
)
def test_f1_with_the_passage_at_its_limit(given, kept):
    """Against "old grey causeway": 2 of 3 words have F1 .8, 3 of 4 have .857, 1 of 3 has .5, 3 of 5 has .75."""
    model = ScriptedModel(from_sentence={WHO: "old grey causeway"}, with_passage={WHO: given})
    assert (outcome(model) is None) == kept


@pytest.mark.parametrize(
    ("given", "kept"), [("old red blue", False), ("old red", False), ("grey", True), ("causeway x y z", True)]
)
def test_f1_without_the_passage_at_its_limit(given, kept):
    """The answer "old" to "old red blue" has F1 .5; "grey" against "old" has 0."""
    model = ScriptedModel(from_sentence={WHO: "old"}, without={WHO: given})
    assert (outcome(model) is None) == kept


@pytest.mark.parametrize(("sure", "kept"), [(0.7, True), (0.6999, False)])
def test_confidence_at_its_limit(sure, kept):
    assert (outcome(ScriptedModel(sure={WHO: sure})) is None) == kept


@pytest.mark.parametrize(("limit", "kept"), [(0.75, True), (0.7501, False)])
def test_word_overlap_at_its_limit(limit, kept):
    """Ondine, causeway and Pellbeck are in the passage, Thornwick is not."""
    model = ScriptedModel({"Who": "took the Pellbeck causeway from Ondine to Thornwick?"}, {
        "Who took the Pellbeck causeway from Ondine to Thornwick?": "old"})  # fmt: skip
    assert (outcome(model, replace(ONE, min_overlap=limit)) is None) == kept


@pytest.mark.parametrize(
    ("question", "share"),
    [
        ("did the causeways rain?", 1.0),  # one content word, which resembles "causeway"
        ("was it?", 0.0),  # no content word
        ("did Ondine see in 1300?", 0.5),
        ("cause?", 1.0),
        ("causality?", 0.0),
    ],
)
def test_words_are_alike_if_they_share_five_letters(question, share):
    assert word_overlap(question, PASSAGE) == share


def test_a_span_begins_and_ends_with_whole_words():
    assert is_span("Mr. Lee (the elder)", "It was Mr. Lee (the elder) who came.")
    assert not is_span("30", "In 1300") and not is_span("ome", "Rome") and not is_span("rome", "Rome")
    assert not is_span("", "Rome") and not is_span(".", "Rome.")


def test_the_same_question_counts_once_in_a_passage():
    rules = replace(RULES, beginnings=("Who", "who"))
    found = choose_questions([PASSAGE, f"{PASSAGE} Bob left."], ScriptedModel(), rules)
    assert found.written == 4 and len(found.kept) == 2
    assert found.dropped == {"written before about this passage": 2}


def test_the_surest_questions_of_a_passage_are_kept():
    firsts = ("Who", "What", "When", "Where")
    sure = dict(zip((f"{first} does Ondine end?" for first in firsts), (0.7, 0.9, 0.8, 0.8), strict=True))
    found = choose_questions([PASSAGE], ScriptedModel(sure=sure), replace(RULES, beginnings=firsts))
    assert [example.question.split()[0] for example, _ in found.kept] == ["What", "When", "Where"]
    assert found.dropped == {"beyond questions_per_passage": 1}
    assert len({example.id for example, _ in found.kept}) == 3


def test_a_dropped_question_is_not_asked_again():
    """Each step sees only what the steps before it have left."""
    model = ScriptedModel({"Who": "x"}, with_passage={"What does Ondine end?": "grey"})
    choose_questions([PASSAGE], model, replace(RULES, beginnings=("Who", "What", "When")))
    assert model.calls == [("write", 3), ("answer_sentences", 2), ("with", 2), ("confidence", 1), ("without", 1)]


def test_passages_that_give_no_question_need_no_answers():
    model = ScriptedModel({"Who": "x", "What": "x"})
    found = choose_questions([PASSAGE], model, RULES)
    assert found.kept == [] and found.dropped == {"not a question": 2}
    assert model.calls == [("write", 2)]
