"""Passages for training: which are used, which are skipped, and their order."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from latentwire.data.examples import DataSpec, Example, choose_examples, draw_examples, load_data
from latentwire.data.fingerprints import fingerprint, holder
from latentwire.data.passages import Passage, split_passage
from latentwire.harness.errors import UserError
from latentwire.latent_training.passages import PassageSpec, load_latent_data, order_of

SHORT_QA = DataSpec("short_qa", "short_qa")


def load(
    spec=SHORT_QA, extra="", samples=10000, held_out=0.1, shots=5, seed=0, extra_words=None, extra_part="all"
):  # fmt: skip
    return load_latent_data(spec, extra, PassageSpec(samples, extra_words, held_out, shots, 3, extra_part), seed)


def rows(path, *texts):
    lines = [json.dumps({"id": f"{path.stem}{n}", "context": t, "question": "Who?", "answers": [t.split()[0]]})
             for n, t in enumerate(texts)]  # fmt: skip
    path.write_text("\n".join(lines))
    return DataSpec("file", "file", path=str(path))


def test_the_parts_share_no_passage():
    data = load()
    train = {fingerprint(p.text) for p in data.train}
    held = {fingerprint(p.text) for p in data.held_out}
    shots = {fingerprint(shown[0].context) for shown in data.shots}
    asked = {fingerprint(e.context) for e in load_data(SHORT_QA).validation}
    assert len(train) == len(data.train)
    assert not (train & held) and not (train & shots) and not (held & shots)
    assert not asked & (train | held | shots)
    assert len(train) + len(held) + len(shots) == 120
    assert data.counts["passages shown as shots"] == 5
    assert all(question.context == p.text for p in data.train for question in p.questions)


def test_evaluation_passages_in_extra_texts_are_skipped(tmp_path):
    """They are found by content, without case and spacing."""
    asked = load_data(SHORT_QA).validation[0].context
    extra = tmp_path / "more.txt"
    extra.write_text(f"{asked.upper()}\n\nA new text\nof two lines.\n\nA  new text of TWO lines.\n")
    data = load(extra=str(extra))
    assert data.counts["passages of the evaluation"] == 1
    assert data.counts["passages twice there"] == 1
    assert [p.text for p in data.train if not p.questions] == ["A new text of two lines."]
    assert load(samples=1, extra=str(extra)).train[-1].text == "A new text of two lines."


def test_one_file_is_split_by_content(tmp_path):
    texts = [f"Name{n} lives in house number {n}." for n in range(60)]
    spec = rows(tmp_path / "a.jsonl", *texts)
    data = load(spec, held_out=0.3, shots=2)
    again = load(rows(tmp_path / "b.jsonl", *reversed(texts)), held_out=0.3, shots=2, seed=1)
    assert 5 <= len(data.held_out) <= 30
    assert len(data.train) + len(data.held_out) == 58
    kept = {p.text for p in data.held_out}
    assert len(kept - {p.text for p in again.held_out}) <= 2  # the same passages, except for the shots
    assert data.counts["passages of the evaluation"] == 0


LONG = "Ada came at 5. Bob left! Where did he go? Nobody of the village in the hills ever knew. Ada stayed."


def test_a_passage_is_split_at_the_ends_of_its_sentences():
    asked = [("Who left?", "Bob"), ("Who?", "Ada"), ("Who knew?", "Nobody"), ("What?", "5. Bob"), ("When?", "5")]
    questions = tuple(Example(q, LONG, q, (a, "Nobody")) for q, a in asked)
    counts: Counter[str] = Counter()
    parts = split_passage(Passage(LONG, questions), 6, counts)
    assert [part.text for part in parts] == [
        "Ada came at 5. Bob left!", "Nobody of the village in the hills ever knew."
    ]  # fmt: skip
    assert [[e.question for e in part.questions] for part in parts] == [["Who left?", "What?", "When?"], ["Who knew?"]]
    assert all(e.context == part.text for part in parts for e in part.questions)
    assert counts == {"questions of no one part of a split passage": 1}  # Ada is in two parts
    assert [part.text for part in split_passage(Passage(LONG, ()), 9, counts)] == [
        "Ada came at 5. Bob left!", "Where did he go?", "Nobody of the village in the hills ever knew.", "Ada stayed."
    ]  # fmt: skip
    assert split_passage(Passage(LONG, ()), 10, counts)[0].text == LONG[:41]
    assert split_passage(Passage(LONG, questions), 99, Counter()) == [Passage(LONG, questions)]


def test_extra_passages_are_split_and_never_held_out(tmp_path):
    texts = [f"Name{n} lives here. House number {n} is old." for n in range(40)]
    rows(tmp_path / "a.jsonl", *texts)
    data = load(extra=str(tmp_path / "a.jsonl"), extra_words=5)
    usual = load()
    assert data.held_out == usual.held_out
    assert data.train[: len(usual.train)] == usual.train
    assert {p.text for p in data.train[len(usual.train) :]} == {text.split(".")[0] + "." for text in texts}


@pytest.mark.parametrize("extra_words", [None, 5])
def test_the_halves_of_an_extra_file_are_those_of_part(tmp_path, extra_words):
    """A run on extra_part=select sees no passage of run.py part=confirm, also where passages are split."""
    texts = [f"Name{n} lives here. House number {n} is old." for n in range(40)]
    file = rows(tmp_path / "a.jsonl", *texts)
    usual = len(load().train)

    def names(part: str) -> set[str]:
        """Return the first words of the extra passages, one for each whole passage."""
        data = load(extra=file.path, extra_words=extra_words, extra_part=part)
        return {passage.text.split()[0] for passage in data.train[usual:]}

    for part in ("select", "confirm"):
        _, candidates = draw_examples(load_data(file), 0, 1, 0, part=part)
        assert names(part) == {example.context.split()[0] for example in candidates}
    assert not names("select") & names("confirm")
    assert names("select") | names("confirm") == names("all") == {f"Name{n}" for n in range(40)}


def test_evaluation_passages_are_found_before_splitting(tmp_path):
    (tmp_path / "more.txt").write_text(load_data(SHORT_QA).validation[0].context)
    data = load(extra=str(tmp_path / "more.txt"), extra_words=5)
    assert data.counts["passages of the evaluation"] == 1
    assert data.train == load().train


def test_parts_of_split_passages_are_deduplicated(tmp_path):
    usual = load()
    shown = usual.train[0].text
    words = len(shown.split())
    whole = f"{shown} Nobody knew it. Nobody knew it then."
    (tmp_path / "more.txt").write_text(f"{whole}\n\nNobody knew it.\n\nAll of it is one sentence.")
    data = load(extra=str(tmp_path / "more.txt"), extra_words=words)
    added = data.train[len(usual.train) :]
    assert [p.text for p in added] == ["Nobody knew it. Nobody knew it then.", "Nobody knew it.",
                                       "All of it is one sentence."]  # fmt: skip
    assert data.counts["passages twice there"] == 1
    assert {fingerprint(whole), fingerprint(added[0].text), fingerprint(data.held_out[0].text)} <= set(data.marks())
    assert fingerprint(usual.shots[0][0].context) not in data.marks()
    assert load(extra=str(tmp_path / "more.txt"), extra_words=3).counts["passages twice there"] == 1


@pytest.mark.parametrize("extra_words", [None, 5])
def test_passages_that_contain_reserved_ones_are_skipped(tmp_path, extra_words):
    """Reserved are the passages of the evaluation, of the shots and of the held-out part."""
    asked, held = load_data(SHORT_QA).validation[0].context, load().held_out[0].text
    shown = load().shots[1][0].context
    (tmp_path / "more.txt").write_text(
        f"Before it. {asked.upper()} After.\n\nAs {held} it is.\n\nX{held}.\n\nNew.\n\nWell: {shown}"
    )
    data = load(extra=str(tmp_path / "more.txt"), extra_words=extra_words)
    assert data.counts["passages that hold one of the evaluation, of the shots or of the held out"] == 3
    assert {p.text[0] for p in data.train[len(load().train) :]} >= {"X", "N"}  # a match within a word does not count
    gone = ("Before", "As ", "Well")
    assert not any(p.text.startswith(gone) for p in data.train[len(load().train) :])


def test_data_passages_with_an_evaluation_passage_are_skipped(tmp_path):
    asked = ["Bob is here.", "Name1 lives in house number 1."]
    longer = [f"{text} It rains." for text in asked]
    train = rows(tmp_path / "a.jsonl", *longer, *(f"Name{n} lives in house number {n}." for n in range(10, 40)))
    rows(tmp_path / "b.jsonl", *asked)
    spec = DataSpec("file", "file", path=str(tmp_path / "b.jsonl"), shots_path=train.path)
    data = load(spec, shots=0, held_out=0.2)
    assert not any(passage.text in longer for passage in [*data.train, *data.held_out])
    assert data.counts["passages that hold one of the evaluation, of the shots or of the held out"] == 2
    stopped_by = next(passage.text for passage in data.held_out)
    (tmp_path / "a.jsonl").write_text(
        (tmp_path / "a.jsonl").read_text() + "\n" + json.dumps(
            {"id": "x", "context": f"So {stopped_by} That is all.", "question": "Who?", "answers": ["So"]}
        )
    )  # fmt: skip
    again = load(spec, shots=0, held_out=0.2)
    assert {passage.text for passage in again.held_out} <= {passage.text for passage in data.held_out}
    assert not any(passage.text.startswith("So ") for passage in again.train)


def test_containment_is_checked_word_by_word():
    long = "one two three four five six seven eight nine ten"
    holds = holder([long, "A  short\none", "one two three four five six seven eight nine eleven"])
    assert holds(f"Zero {long.upper()} eleven")
    assert holds("here is a short one.") is False  # the full stop makes its last word differ
    assert holds("here is a short one") and holds("a short one it is")
    assert not holds(long.replace("ten", "nothing"))
    assert not holds(long.replace("two", "too"))
    assert not holds("short one")
    assert not holder([])("Anything.")


def test_shots_match_an_evaluation_with_the_same_seed():
    assert load(seed=3).shots == choose_examples(load_data(SHORT_QA), 1, 5, 3, 3)[0]


def test_two_files_without_ids_are_kept_apart(tmp_path):
    for name, person in (("a", "Name"), ("b", "Other")):
        names = [f"{person}{n}" for n in range(40)]
        lines = [{"context": f"{one} is here.", "question": "Who?", "answers": [one]} for one in names]
        lines[0] = {"context": "Both are here.", "question": "Who?", "answers": ["Both"]}
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = DataSpec("file", "file", path=str(tmp_path / "b.jsonl"), shots_path=str(tmp_path / "a.jsonl"))
    data = load(spec, shots=0)
    assert data.counts["passages of the evaluation"] == 1
    assert "Both are here." not in {p.text for p in [*data.train, *data.held_out]}


def test_samples_bounds_the_questions():
    data = load(samples=7)
    assert sum(len(p.questions) for p in data.train) == 7
    whole = load()
    assert len(data.held_out) == len(whole.held_out)
    assert data.counts["passages beyond samples"] == len(whole.train) - len(data.train)


def test_samples_are_drawn_from_the_whole_file_in_order(tmp_path):
    """A smaller sample is part of a larger one with the same seed."""
    texts = [f"Name{n} lives in house number {n}." for n in range(60)]
    spec = rows(tmp_path / "a.jsonl", *texts)
    more = str(tmp_path / "b.jsonl")
    rows(tmp_path / "b.jsonl", *(f"Other{n} lives elsewhere." for n in range(9)))
    whole = load(spec, shots=1, extra=more)
    own = [p.text for p in whole.train if p.text.startswith("Name")]

    def drawn(samples: int, seed: int = 0) -> list[str]:
        return [p.text for p in load(spec, shots=1, extra=more, samples=samples, seed=seed).train]

    few = drawn(12)
    assert len(few) == 12 and few != own[:12] and few != own[-12:]
    assert few == [text for text in own if text in few]
    assert set(few) < set(drawn(20)) < set(own)
    assert few == drawn(12) != drawn(12, seed=1)
    every = drawn(len(own) + 2)  # passages of the data come before extra ones
    assert every[:-2] == own and all(text.startswith("Other") for text in every[-2:])
    assert drawn(999) == [p.text for p in whole.train]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0.0}, "held_out=0.0"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"samples": 0}, "samples=0"),
        ({"extra_words": 0}, "extra_words=0: must be at least 1"),
        ({"held_out": 1e-9}, r"115 are left to train on and 0 are held out"),
        ({"extra": "nowhere.txt"}, "extra=nowhere.txt: no such file"),
        ({"extra_part": "half"}, "extra_part=half: unknown; use one of all, select, confirm"),
    ],
)
def test_invalid_settings_are_named(change, message):
    with pytest.raises(UserError, match=message):
        load(**change)


def test_a_text_file_without_text_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n \n")
    with pytest.raises(UserError, match="holds no text"):
        load(extra=str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8 text"):
        load(extra=str(path))


def test_an_epoch_has_each_passage_once():
    """Passages of similar length are in the same step."""
    lengths = [(7 * n) % 50 for n in range(75)]
    steps = list(order_of(lengths, 4, 0, 0))
    assert sorted(index for step in steps for index in step) == list(range(75))
    assert len(steps) == 19
    spread = [max(lengths[i] for i in step) - min(lengths[i] for i in step) for step in steps]
    assert sum(spread) / len(spread) < 10
    assert steps == list(order_of(lengths, 4, 0, 0))
    assert steps != list(order_of(lengths, 4, 0, 1))
    assert steps != list(order_of(lengths, 4, 1, 0))
    first = [lengths[step[0]] for step in steps[:8]]
    assert first != sorted(first)


def test_fingerprints_ignore_case_and_spacing():
    assert fingerprint("A  b\nc") == fingerprint("a b C ")
    assert fingerprint("a b c") != fingerprint("a b d")
