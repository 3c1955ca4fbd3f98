"""Files of templates: what is read, and what is refused with its place."""

from __future__ import annotations

import re

import pytest

from latentwire.data import template_file
from latentwire.data.generator import generate_examples
from latentwire.data.template_file import load_templates
from latentwire.harness.errors import UserError

GOOD = """
kinds:
  person: ["{first} {last}"]
  first: [Ada, Bo, Cy, Di]
  last: [Moor, Lind, Nash, Pell]
subjects:
  - subject: ferry
    slots: {captain: "{person}", cars: "{12..95}", year: "{1950..1990:year}", why: [fog, a strike]}
    open: {say: "{captain} is the captain of the small ferry to the island in the lake.", captain: "Who commands it?"}
    facts:
      - say: ["It carries {cars} cars on its lower deck.", "There is room for {cars} cars on the lower deck."]
        cars: How many cars fit on board?
      - say: The ferry [left late|was late] because of {why}.
        why: ["Why was the ferry late?", "What delayed it?"]
      - {say: "It was built in {year}.", year: When was the ferry built?}
"""


def load(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_templates(str(path))


def test_the_example_of_the_module_is_valid(tmp_path):
    shown = template_file.__doc__ or ""
    text = "\n".join(line for line in shown.splitlines() if line.startswith("    "))
    assert [subject.name for subject in load(tmp_path, text).subjects] == ["ferry"]


def test_a_file_of_ones_own_is_used(tmp_path):
    templates = load(tmp_path, GOOD)
    for group in generate_examples(templates, 20, 0):
        by_question = {each.question: each.answers[0] for each in group}
        text = group[0].context
        captain = re.match(r"(\w+ \w+) is the captain", text)
        cars = re.search(r"(\d\d) cars", text)
        assert captain and by_question.get("Who commands it?", captain[1]) == captain[1]
        assert cars and by_question.get("How many cars fit on board?", cars[1]) == cars[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kinds:", "kinds: [", r"line \d+: not YAML"),
        ("  person:", "  first: [Al]\n  person:", r"line \d+: not YAML \(the key 'first' is there twice\)"),
        ("kinds:", "kind:", "has no kinds; add it"),
        ("[Ada, Bo, Cy, Di]", "[Ada, 3]", "kinds, first: expected a text or a list of texts, got 3"),
        ("[Ada, Bo, Cy, Di]", "[]", "kinds, first: expected a list with entries"),
        ("[Ada, Bo, Cy, Di]", '["{last}", "{first} B"]', r"kinds, first: \{first\} refers to itself"),
        ("{first} {last}", "{first} {surname}", r"kinds, person: unknown slot \{surname\}"),
        ("{12..95}", "{95..12}", r"slots, cars: .* is not a range"),
        ("{12..95}", "{12..95", "slots, cars: .*a { is not closed"),
        ("[left late|was late]", "[left late]", "fact 2, say: .* has one alternative"),
        ("[left late|was late]", "[left late|was late", r"fact 2, say: .*a \[ is not closed"),
        ("because of {why}", "because of fog", r"fact 2, questions about why: \{why\} must be exactly once"),
        ("There is room for {cars} cars", "There is room for many cars", "questions about cars: .*exactly once"),
        ("What delayed it?", "What delayed {boat}?", r"fact 2, questions about why: unknown slot \{boat\}"),
        ("What delayed it?", "Was it {why}?", "contains its answer"),
        ("What delayed it?", "'What delayed it, with {cars} cars?'", r"names \{cars\}, which the passage may lack"),
        ("[fog, a strike]", "fog", r"\{why\} has one value, so no passage is needed"),
        ("    facts:", "    fact:", "subject number 1: has no facts"),
        ("    slots:", "    more: 1\n    slots:", "subject number 1: unknown key 'more'"),
        ("subject: ferry", "subject: 3", "subject number 1: its name is 3"),
        ("say: The ferry", "tell: The ferry", "fact 2: has no say"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_its_place(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(error.value).startswith(f"templates={tmp_path / 'mine.yaml'}")
    assert ";" in str(error.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing.yaml: cannot be read .*; give a file"):
        load_templates(str(tmp_path / "nothing.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"kinds: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_templates(str(tmp_path / "latin.yaml"))


def test_a_subject_needs_three_facts_with_questions(tmp_path):
    two = GOOD[: GOOD.index('      - {say: "It was built')].replace(', captain: "Who commands it?"', "")
    with pytest.raises(UserError, match="subject ferry: only 2 of its facts have questions; give at least 3"):
        load(tmp_path, two)


def test_templates_that_give_no_passage_are_refused(tmp_path):
    """All sentences are too short for the least length of a passage."""
    short = GOOD.replace(" is the captain of the small ferry to the island in the lake", " sails")
    short = short.replace("on its lower deck", "").replace(" on the lower deck", "")
    with pytest.raises(UserError, match=r"subject ferry: none of \d+ drafts"):
        generate_examples(load(tmp_path, short), 1, 0)
