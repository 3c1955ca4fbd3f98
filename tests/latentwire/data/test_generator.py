"""Generated passages: their answers, their randomness, and what they share with short_qa."""

from __future__ import annotations

import re

import pytest

from latentwire.data.examples import DataSpec, load_data
from latentwire.data.fingerprints import fingerprint, holder
from latentwire.data.generator import GeneratedSpec, generate_examples
from latentwire.data.template_file import load_templates
from latentwire.harness.errors import UserError

SAME = 6  # a sentence may share at most 5 words in a row with short_qa, such as "because of a lack of"
SENTENCE = 3  # shorter sentences, such as "Tuesday.", may be shared


def words(text):
    return re.findall(r"[\w'-]+", text.lower())


def sentences(text):
    return re.split(r"(?<=[.!?])\s+", text)


def runs(text, size):
    """Return the runs of `size` words within the sentences of a text."""
    found = [words(sentence) for sentence in sentences(text)]
    return {tuple(each[at : at + size]) for each in found for at in range(len(each) - size + 1)}


@pytest.fixture(scope="module")
def templates():
    return load_templates()


@pytest.fixture(scope="module")
def made(templates):
    return generate_examples(templates, 5000, 3)


@pytest.fixture(scope="module")
def shipped():
    data = load_data(DataSpec("short_qa", "short_qa"))
    return [*data.train, *data.validation]


def test_answers_occur_once_and_not_in_the_question(made):
    for group in made[:2000]:
        text = group[0].context
        for each in group:
            assert each.context == text
            assert text.count(each.answers[0]) == 1
            assert not re.search(rf"\b{re.escape(each.answers[0])}\b", each.question)


def test_passages_have_the_promised_size(made):
    for group in made:
        assert 3 <= len(group) <= 5
        assert 24 <= len(group[0].context.split()) <= 58


def test_text_has_no_signs_of_patterns_and_right_articles(made):
    text = "\n".join(line for group in made for line in (group[0].context, *(each.question for each in group)))
    assert not re.search(r"[\[\]{}|]|\(n\)|  ", text)
    assert not re.search(r"\b[aA] [aeioAEIO](?!ne\b|ne-|nce\b|u)\w", text)
    assert not re.search(r"\b[aA]n [bcdfgjklmnpqrstvwxyz]", text)
    assert not re.search(r"[.!?] [a-z]", text)


def test_a_longer_draw_extends_a_shorter_one(templates, made):
    assert generate_examples(templates, 40, 3) == made[:40]
    other = generate_examples(templates, 40, 4)
    assert not {group[0].context for group in other} & {group[0].context for group in made}


def test_no_two_passages_are_alike(templates, made):
    assert len({fingerprint(group[0].context) for group in made}) == len(made)
    assert len({each.id for group in made for each in group}) == sum(map(len, made))
    assert len(templates.subjects) >= 60


def test_no_passage_is_one_of_short_qa(made, shipped):
    own = {group[0].context for group in made}
    theirs = {example.context for example in shipped}
    holds_theirs, holds_own = holder(theirs), holder(own)
    assert not [text for text in own if holds_theirs(text)]
    assert not [text for text in theirs if holds_own(text)]


def test_no_sentence_or_question_is_one_of_short_qa(made, shipped):
    own = {" ".join(words(sentence)) for group in made for sentence in sentences(group[0].context)}
    theirs = {" ".join(words(sentence)) for example in shipped for sentence in sentences(example.context)}
    assert len([each for each in own & theirs if len(each.split()) >= SENTENCE]) == 0
    assert len({each.question for group in made for each in group} & {example.question for example in shipped}) == 0


def test_no_run_of_six_words_is_one_of_short_qa(made, shipped):
    own = set().union(*(runs(group[0].context, SAME) for group in made))
    theirs = set().union(*(runs(example.context, SAME) for example in shipped))
    assert len(own & theirs) == 0


def test_no_name_occurs_in_short_qa(templates, shipped):
    """All first and last names and all names made of syllables are compared, not only the ones of a sample."""
    texts = [text for example in shipped for text in (example.context, example.question)]
    theirs = {word for text in texts for word in re.findall(r"[\w'-]+", text) if word[0].isupper()}
    kinds = {name: [pattern[0] for pattern in patterns] for name, patterns in templates.kinds.items()}
    own = {*kinds["first"], *kinds["last"]}
    own |= {a + b for a in kinds["fa"] for b in kinds["fb"]}
    own |= {a + m + b for a in kinds["la"] for m in ["", *kinds["lb"]] for b in kinds["lc"]}
    own |= {a + m + b for a in kinds["pa"] for m in ["", *kinds["pm"]] for b in kinds["pb"]}
    assert len(own) > 10_000 and "Agnieszka" in own
    assert len(own & theirs) == 0


def test_the_identity_follows_the_templates(tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text(load_templates().path.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    first, second = GeneratedSpec(5).identity(), GeneratedSpec(5, str(copy)).identity()
    assert first["count"] == second["count"] == 5
    assert first["templates_sha256"] != second["templates_sha256"]
    assert GeneratedSpec(5).examples(0) == GeneratedSpec(5, str(copy)).examples(0)


def test_a_negative_count_is_refused():
    with pytest.raises(UserError, match=r"generated=-1: must be 0 or more"):
        GeneratedSpec(-1)


def test_templates_without_passages_are_refused():
    with pytest.raises(
        UserError, match=r"templates=mine\.yaml: no passages are generated from them.*leave templates out"
    ):
        GeneratedSpec(0, "mine.yaml")
    assert GeneratedSpec(0).examples(0) == []
