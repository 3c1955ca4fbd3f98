"""Files with templates of training passages, read and checked. Main entry: `load_templates()`.

A file is YAML with two keys. `kinds` are words and patterns that slots draw from. A subject is a list of facts:

    kinds:
      person: ["{first} {last}"]
      first: [Ada, Bo]
      last: [Moor, Lind]
    subjects:
      - subject: ferry
        slots: {captain: "{person}", cars: "{12..95}", year: "{1950..1990:year}", why: [fog, a strike]}
        open: {say: "{captain} is the captain of the ferry.", captain: "Who commands the ship?"}
        facts:
          - say: ["It carries {cars} cars.", "There is room for {cars} cars."]
            cars: How many cars fit on board?
          - say: The ferry [left late|was late] because of {why}.
            why: [Why was the ferry late?, What delayed it?]
          - {say: "It was built in {year}.", year: When was the ferry built?}

`latentwire.data.patterns` has the signs of a pattern. `open` comes first, then facts in random order, then `close`.
Every key of a fact besides `say` is a slot with the questions that it answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from latentwire.data.patterns import Alternatives, Pattern, PatternError, Slot, parse_pattern, slot_counts, spread
from latentwire.harness.errors import UserError

FACTS = 3  # least number of facts with questions, `open` included, that a subject needs
Slots = Mapping[str, tuple[Pattern, ...]]


@dataclass(frozen=True)
class Fact:
    """One or two sentences that belong together, and the questions that they answer.

    Attributes:
        say: Phrasings.
        questions: Phrasings of the question that each slot answers.
    """

    say: tuple[Pattern, ...]
    questions: Mapping[str, tuple[Pattern, ...]]


@dataclass(frozen=True)
class Subject:
    """What passages of one subject are made from.

    Attributes:
        name: Name of the subject.
        slots: Patterns of the values of each slot, with the kinds that the sentences use directly.
        opening: Fact that comes first; None: any.
        facts: Facts in any order.
        closing: Sentences of which one may come last.
    """

    name: str
    slots: Slots
    opening: Fact | None
    facts: tuple[Fact, ...]
    closing: tuple[Pattern, ...]


@dataclass(frozen=True)
class Templates:
    """A file of templates: `kinds` are the patterns that slots refer to."""

    path: Path
    kinds: Slots
    subjects: tuple[Subject, ...]


class _At:
    """A place in a file of templates, for error messages."""

    def __init__(self, path: Path, *names: object) -> None:
        self.path, self.names = path, names

    def under(self, *names: object) -> _At:
        """Return a place within this one."""
        return _At(self.path, *self.names, *names)

    def fault(self, reason: str, remedy: str) -> UserError:
        """Return the error of this place."""
        place = "".join(f", {name}" for name in self.names)
        return UserError(f"templates={self.path}{place}: {reason}; {remedy}")


def shipped_templates_path() -> Path:
    """Return the path of the templates that ship with the project."""
    return Path(__file__).parent / "templates" / "passages.yaml"


def load_templates(path: str = "") -> Templates:
    """Return the templates of a file; "" is the file that ships with the project.

    Raises:
        UserError: The file is missing, not YAML, or has a faulty template. The message gives the place.
    """
    file = Path(path).expanduser() if path else shipped_templates_path()
    at = _At(file)
    content = _mapping(_content(file), at, ("kinds", "subjects"))
    kinds = _slots(content["kinds"], at.under("kinds"))
    for name, patterns in kinds.items():
        _require_known(patterns, kinds, at.under("kinds", name))
        _require_no_loop(name, kinds, at.under("kinds", name))
    subjects: dict[str, Subject] = {}
    for number, value in enumerate(_list(content["subjects"], at.under("subjects")), 1):
        subject = _subject(value, kinds, at, number)
        if subject.name in subjects:
            raise at.under(f"subject {subject.name}").fault("is there twice", "rename one or join the two")
        subjects[subject.name] = subject
    return Templates(file, kinds, tuple(subjects.values()))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML, and rejects a key that a mapping has twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Return a mapping."""
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return cast(dict[object, object], super().construct_mapping(node, deep))


def _content(file: Path) -> object:
    at = _At(file)
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # derived from SafeLoader
    except OSError as error:
        raise at.fault(
            f"cannot be read ({error.strerror})", 'give a file, or templates="" for the shipped one'
        ) from error
    except UnicodeDecodeError as error:
        raise at.fault(f"not UTF-8 text ({error.reason})", "convert it") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = at.under(f"line {mark.line + 1}") if mark else at
        raise where.fault(f"not YAML ({getattr(error, 'problem', error)})", "fix that line") from error


def _mapping(value: object, at: _At, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> dict[str, object]:
    """Return a mapping that has all the keys `needed` and no others than these and `allowed`."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise at.fault(f"expected a mapping with {', '.join(needed)}, got {type(value).__name__}", "fix it")
    if missing := [key for key in needed if key not in value]:
        raise at.fault(f"has no {missing[0]}", "add it")
    if unknown := [key for key in value if key not in (*needed, *allowed)]:
        raise at.fault(f"unknown key {unknown[0]!r}", f"use {', '.join((*needed, *allowed))}")
    return value


def _list(value: object, at: _At) -> list[object]:
    if not isinstance(value, list) or not value:
        raise at.fault(f"expected a list with entries, got {value!r:.60}", "fix it")
    return value


def _patterns(value: object, at: _At) -> tuple[Pattern, ...]:
    """Return the patterns of a text or a list of texts."""
    patterns = []
    for text in _list(value if isinstance(value, list) else [value], at):
        if not isinstance(text, str) or not text.strip():
            raise at.fault(f"expected a text or a list of texts, got {text!r:.60}", "put it in quotes")
        try:
            patterns.append(parse_pattern(" ".join(text.split())))
        except PatternError as error:
            raise at.fault(f"{text!r:.80}: {error}", "fix that text") from error
    return tuple(patterns)


def _slots(value: object, at: _At) -> dict[str, tuple[Pattern, ...]]:
    if not isinstance(value, dict) or not value:
        raise at.fault(f"expected a mapping of names to texts, got {value!r:.60}", "fix it")
    found = {}
    for name, texts in value.items():
        try:
            is_slot = isinstance(name, str) and parse_pattern(f"{{{name}}}") == (Slot(name, ""),)
        except PatternError:
            is_slot = False
        if not is_slot or name == "say":
            raise at.fault(f"{name!r} cannot be the name of a slot", "use lower-case letters, digits and _")
        found[name] = _patterns(texts, at.under(name))
    return found


def _require_known(patterns: tuple[Pattern, ...], known: Slots, at: _At) -> None:
    for name in (name for pattern in patterns for name in slot_counts(pattern)):
        if name not in known:
            raise at.fault(f"unknown slot {{{name}}}", "define it in slots or kinds, or correct its name")


def _require_no_loop(name: str, slots: Slots, at: _At) -> None:
    """Check that a slot does not refer to itself, at any depth."""
    reached: set[str] = set()
    todo = [name]
    while todo:
        for found in (found for pattern in slots[todo.pop()] for found in slot_counts(pattern)):
            if found == name:
                raise at.fault(f"{{{name}}} refers to itself", "give it a pattern of other slots")
            todo += [found] if found not in reached else []
            reached.add(found)


def _can_differ(patterns: tuple[Pattern, ...], slots: Slots) -> bool:
    """Return whether a slot has more than one value."""
    return len(patterns) > 1 or any(
        isinstance(node, Alternatives)
        or (isinstance(node, Slot) and _can_differ(slots[node.name], slots))
        or not isinstance(node, str | Slot)
        for pattern in patterns
        for node in pattern
    )


def _subject(value: object, kinds: Slots, at: _At, number: int) -> Subject:
    plain = _mapping(value, at.under(f"subject number {number}"), ("subject", "facts"), ("slots", "open", "close"))
    if not isinstance(name := plain["subject"], str) or not name.strip():
        raise at.under(f"subject number {number}").fault(f"its name is {name!r:.60}", "give it a text as a name")
    at = at.under(f"subject {name}")
    own = _slots(plain["slots"], at.under("slots")) if "slots" in plain else {}
    for slot, patterns in own.items():
        _require_known(patterns, kinds, at.under("slots", slot))
    slots = {**kinds, **own}
    opening = _fact(plain["open"], at.under("open")) if "open" in plain else None
    facts = tuple(
        _fact(fact, at.under(f"fact {n}")) for n, fact in enumerate(_list(plain["facts"], at.under("facts")), 1)
    )
    closing = _patterns(plain["close"], at.under("close")) if "close" in plain else ()
    _require_known(closing, slots, at.under("close"))
    shown = _always(opening) if opening else set()
    if opening:
        _check_fact(opening, slots, set(), at.under("open"))
    for n, fact in enumerate(facts, 1):
        _check_fact(fact, slots, shown, at.under(f"fact {n}"))
    if (asking := sum(bool(fact.questions) for fact in (opening, *facts) if fact)) < FACTS:
        raise at.fault(f"only {asking} of its facts have questions", f"give at least {FACTS}")
    return Subject(name, slots, opening, facts, closing)


def _fact(value: object, at: _At) -> Fact:
    if not isinstance(value, dict):
        return Fact(_patterns(value, at), {})
    if "say" not in value:
        raise at.fault("has no say", "add the sentence")
    questions = {key: texts for key, texts in value.items() if key != "say"}
    return Fact(_patterns(value["say"], at.under("say")), _slots(questions, at) if questions else {})


def _always(fact: Fact) -> set[str]:
    """Return the slots that every phrasing of a fact shows in full."""
    return {name for name, (least, _) in spread(map(slot_counts, fact.say)).items() if least >= 1}


def _check_fact(fact: Fact, slots: Slots, shown: set[str], at: _At) -> None:
    """Check that each phrasing shows the answers, and that the questions name only what the passage shows."""
    _require_known(fact.say, slots, at.under("say"))
    counts = spread(map(slot_counts, fact.say))
    for name, questions in fact.questions.items():
        where = at.under(f"questions about {name}")
        if name not in slots:
            raise where.fault(f"unknown slot {{{name}}}", "define it in slots or kinds, or correct its name")
        if counts.get(name, (0, 0)) != (1, 1):
            raise where.fault(f"{{{name}}} must be exactly once in every phrasing of say", "correct say")
        if not _can_differ(slots[name], slots):
            raise where.fault(f"{{{name}}} has one value, so no passage is needed", "give alternatives")
        _require_known(questions, slots, where)
        for used in (used for question in questions for used in _named(question)):
            if used == name:
                raise where.fault(f"the question contains its answer {{{name}}}", "reword it")
            if used not in shown | _always(fact):
                raise where.fault(f"the question names {{{used}}}, which the passage may lack", "reword it")


def _named(pattern: Pattern) -> Iterator[str]:
    """Yield the slots of a pattern, also those shown in part."""
    yield from slot_counts(pattern)
