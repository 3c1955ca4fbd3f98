"""The passages of a file that questions are written about, and what the model is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from latentwire.data.examples import Dataset, Example, draw_examples
from latentwire.harness.errors import UserError
from latentwire.questions.passages import read_question_passages
from latentwire.questions.settings import QuestionSettings
from latentwire.questions.writer import draw_shown

SETTINGS = QuestionSettings(
    seed=0, samples=None, part_words=8, passages_per_part=2, beginnings=["Who", "How many"], examples_per_beginning=2,
    max_question_tokens=8, questions_per_passage=3, min_overlap=0.75, min_f1=0.8, min_confidence=0.7,
    max_f1_without=0.5, shots=2, questions_per_shot=2, max_new_tokens=4, batch_tokens=512, dtype="float32",
)  # fmt: skip
LONG = "Ada came at noon today. Bob left the old house in the evening. Rain fell."


def passages_of(tmp_path, text, settings=SETTINGS, shown=(), name="a.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_question_passages(str(path), settings, shown)


def test_long_passages_are_split_and_each_skip_has_a_reason(tmp_path):
    more = ("Ada  came at noon today.", "Too short.", "Carl saw the heron at dawn.", "Dora   has\nsix oak planks.")
    text = "\n\n".join((LONG, *more))
    found = passages_of(tmp_path, text, shown=["Carl saw the HERON at dawn."])
    assert found.passages == [
        "Ada came at noon today.", "Bob left the old house in the evening.", "Dora has six oak planks.",
    ]  # fmt: skip
    assert found.skipped == {
        "twice in the file": 1, "contains a text that the model is shown": 1, "no sentence of 4 words": 2,
    }  # fmt: skip
    assert passages_of(tmp_path, LONG, replace(SETTINGS, part_words=None)).passages == [LONG]


def test_the_questions_of_a_data_file_are_not_used(tmp_path):
    rows = [{"context": LONG, "question": question, "answers": ["Rain"]} for question in ("What?", "Which?")]
    text = "\n".join(map(json.dumps, rows))
    found = passages_of(tmp_path, text, name="a.jsonl")
    assert found.passages == ["Ada came at noon today.", "Bob left the old house in the evening."]


def test_samples_are_drawn_and_keep_the_order_of_the_file(tmp_path):
    text = "\n\n".join(f"Name{n} lives in house {n}." for n in range(30))
    everything = passages_of(tmp_path, text)
    some = passages_of(tmp_path, text, replace(SETTINGS, samples=7))
    assert some.skipped == {"beyond samples": 23} and len(some.passages) == 7
    assert some.passages == [each for each in everything.passages if each in some.passages]
    assert some.passages != passages_of(tmp_path, text, replace(SETTINGS, samples=7, seed=1)).passages
    assert passages_of(tmp_path, text, replace(SETTINGS, samples=30)).skipped == {}


@pytest.mark.parametrize("text", ["One. Two words.", "Ada came at noon."])
def test_a_text_without_usable_passages_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"path=.*a\.txt: no passage is left \(1 .*give another text"):
        passages_of(tmp_path, text, shown=["Ada came at noon."])


def train(count=12):
    """Return a data set in which each passage has a question with "Who" and one with "How many"."""
    found = []
    for n in range(count):
        text = f"Name{n} leads the dig. The team counted {n} planks. Name{n} wept."
        found.append(Example(f"{n}a", text, "How many planks were counted?", (f"{n} planks",)))
        found.append(Example(f"{n}b", text, "Who leads the dig?", (f"Name{n}",)))  # in two sentences
        found.append(Example(f"{n}c", text, "Whose team counted?", ("The team",)))
    return Dataset(found, found)


def test_shown_sentences_hold_their_answers_once():
    shown = draw_shown(train(), SETTINGS)
    assert len(shown.sentences) == 2  # no question with "Who" has its answer in one sentence alone
    for each in shown.sentences:
        assert each.question == "How many planks were counted?"
        assert each.sentence == f"The team counted {each.answer}."


def test_shots_are_those_of_an_evaluation_and_not_shown_twice():
    data = train()
    shown = draw_shown(data, SETTINGS)
    assert shown.shots == draw_examples(data, 2, 2, 0)[0]
    numbers = {shot[0].context.split()[0].removeprefix("Name") for shot in shown.shots}
    assert numbers.isdisjoint(each.answer.split()[0] for each in shown.sentences)
    assert draw_shown(data, SETTINGS) == shown
    assert len(shown.texts()) == 4


def test_data_without_a_fitting_question_are_refused():
    with pytest.raises(UserError, match=r"beginnings=\['Quando'\]: no question of the data begins like this"):
        draw_shown(train(), replace(SETTINGS, beginnings=["Quando"]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("samples", 0, "samples=0: must be at least 1"),
        ("part_words", 0, "part_words=0: must be at least 1"),
        ("questions_per_passage", 0, "questions_per_passage=0: must be at least 1"),
        ("min_f1", 1.1, r"min_f1=1\.1: must be between 0 and 1"),
        ("min_confidence", -0.1, r"min_confidence=-0\.1: must be between 0 and 1"),
        ("beginnings", [], "beginnings=.*give at least one"),
        ("beginnings", ["Who", " "], "no empty ones"),
        ("seed", -1, "seed=-1: must be between 0"),
    ],
)
def test_invalid_settings_are_refused(name, value, message):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **{name: value})
