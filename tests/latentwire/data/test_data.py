"""The shipped questions keep their guarantees; every format is read, bad input is named, and draws are seeded."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
import torch

from latentwire.data.examples import (
    HALVES,
    Dataset,
    DataSpec,
    Example,
    choose_examples,
    draw_examples,
    first_examples,
    half_of,
    load_data,
    shipped_split_path,
)
from latentwire.evaluation.metrics import normalize_answer
from latentwire.harness.errors import UserError
from tests.helpers.random import shifted

FOX = "The red fox sat near the old mill."
ROW = {"context": FOX, "question": "Who sat there?", "answers": ["red fox"]}
QA = {"id": "q1", "question": "Who sat there?", "answers": [{"text": "red fox", "answer_start": 4}]}


def squad(*qas, context=FOX):
    return {"version": "1.1", "data": [{"title": "Foxes", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def zipped(text):
    return gzip.compress(text.encode(), mtime=0)  # with the time of day, a test would have another name in each process


def load(path, content, **fields):
    """Write a file if there is content, and load it."""
    if content is not None:
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_data(DataSpec(name="file", origin="file", path=str(path), **fields))


# --- short_qa ---------------------------------------------------------------------------------------------------


def shipped(split):
    """Return every (article, paragraph) of a split of short_qa as it stands in the file."""
    articles = json.loads(shipped_split_path(split).read_text(encoding="utf-8"))["data"]
    return [(article, paragraph) for article in articles for paragraph in article["paragraphs"]]


def shipped_questions():
    return [(p["context"], qa) for split in ("train", "validation") for _, p in shipped(split) for qa in p["qas"]]


def test_short_qa_has_enough_passages_of_30_to_80_words():
    passages = [paragraph["context"] for split in ("train", "validation") for _, paragraph in shipped(split)]
    assert len(passages) >= 200
    assert all(30 <= len(passage.split()) <= 80 for passage in passages)


def test_every_shipped_answer_is_a_literal_span_that_occurs_once():
    assert len(shipped_questions()) >= 600
    for context, qa in shipped_questions():
        assert qa["answers"], qa["id"]
        for answer in qa["answers"]:
            text, start = answer["text"], answer["answer_start"]
            assert context[start : start + len(text)] == text, qa["id"]
            assert context.lower().count(text.lower()) == 1, qa["id"]
            assert re.search(rf"(?<!\w){re.escape(text)}(?!\w)", context), f"{qa['id']}: begins or ends in a word"
            assert normalize_answer(text), f"{qa['id']}: nothing is left to score"


def test_no_shipped_question_contains_its_answer():
    """No question occurs twice for one passage either."""
    for _, qa in shipped_questions():
        asked = normalize_answer(qa["question"]).split()
        for answer in qa["answers"]:
            told = normalize_answer(answer["text"]).split()
            assert not any(asked[i : i + len(told)] == told for i in range(len(asked))), qa["id"]
    assert max(Counter((context, qa["question"]) for context, qa in shipped_questions()).values()) == 1


def test_short_qa_splits_are_equal_and_share_nothing():
    """No title, passage or id occurs in both halves."""
    train, validation = shipped("train"), shipped("validation")
    assert len(train) == len(validation)
    for key in ("title", "context"):
        both = [article[key] if key == "title" else paragraph[key] for article, paragraph in train + validation]
        assert len(set(both)) == len(both), key
    ids = [qa["id"] for _, qa in shipped_questions()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shipped_answers_subjects_and_styles_are_varied(split):
    kinds = Counter(qa["answer_type"] for _, paragraph in shipped(split) for qa in paragraph["qas"])
    for kind in ("name", "number", "date", "place", "reason"):
        assert kinds[kind] >= kinds.total() / 10, kind
    for key in ("subject", "style"):
        found = Counter(article[key] for article, _ in shipped(split))
        assert len(found) >= 20, key
        assert max(found.values()) <= found.total() / 10, key
    answers = Counter(
        normalize_answer(qa["answers"][0]["text"]) for _, paragraph in shipped(split) for qa in paragraph["qas"]
    )
    assert max(answers.values()) <= 0.02 * answers.total()  # one guess for all questions scores almost 0


def test_short_qa_loads_whole():
    data = load_data(DataSpec(name="short_qa", origin="short_qa"))
    for split, examples in (("train", data.train), ("validation", data.validation)):
        expected = [(qa["id"], p["context"], qa["question"]) for _, p in shipped(split) for qa in p["qas"]]
        assert [(e.id, e.context, e.question) for e in examples] == expected
        assert [list(e.answers) for e in examples] == [
            [answer["text"] for answer in qa["answers"]] for _, p in shipped(split) for qa in p["qas"]
        ]
    assert not data.left_out


# --- files ------------------------------------------------------------------------------------------------------


def test_squad_v1_keeps_each_question_with_its_passage(tmp_path):
    """Each question keeps its answers too, without repetitions."""
    second = {
        "title": "Mills",
        "paragraphs": [
            {"context": " The mill burned in 1903. ", "qas": [{**QA, "id": 7, "answers": [{"text": "1903"}]}]},
            {"context": "It was new in 1911.", "qas": [{"question": " When? ", "answers": [{"text": "1911"}]}]},
        ],
    }
    told = {**QA, "id": "q2", "answers": [{"text": t} for t in ("The red fox", "red fox", "The red fox")]}
    data = load(tmp_path / "squad.json", {"data": [*squad(QA, told)["data"], second]})
    assert data.validation == [
        Example("q1", FOX, "Who sat there?", ("red fox",)),
        Example("q2", FOX, "Who sat there?", ("The red fox", "red fox")),
        Example("7", "The mill burned in 1903.", "Who sat there?", ("1903",)),
        Example("article 1 paragraph 1 question 0", "It was new in 1911.", "When?", ("1911",)),
    ]
    assert data.train == data.validation
    assert not data.left_out


def test_squad_v2_skips_and_counts_unanswerable_questions(tmp_path):
    flagged = {
        "id": "q2",
        "question": "Why?",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [{"text": "mill"}],
    }
    flagged_only = {**QA, "id": "q3", "is_impossible": True}
    unflagged = {"id": "q4", "question": "When?", "answers": []}
    answerable = {**QA, "is_impossible": False}
    data = load(tmp_path / "v2.json", squad(flagged, answerable, flagged_only, unflagged))
    assert [example.id for example in data.validation] == ["q1"]
    assert data.left_out == {"unanswerable": 3}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("squad.json.gz", zipped(json.dumps(squad(QA)))),
        ("rows.jsonl.gz", zipped(lines({**ROW, "id": "q1"}))),
        ("misnamed.json", zipped(json.dumps(squad(QA)))),  # the content decides, not the name
        ("misnamed.json.gz", json.dumps(squad(QA))),
        ("no_ending", json.dumps(squad(QA), indent=1)),
        ("rows.jsonl", lines({**ROW, "id": "q1"})),
        ("one_row.json", lines({**ROW, "id": "q1"}) + "\n"),
    ],
)
def test_gzip_files_are_recognized_by_their_content(tmp_path, name, content):
    assert load(tmp_path / name, content).validation == [Example("q1", FOX, "Who sat there?", ("red fox",))]


@pytest.mark.parametrize(
    "answers",
    [
        "red fox",
        ["red fox"],
        ["red fox", "red fox"],
        {"text": ["red fox"], "answer_start": [4]},
        {"text": "red fox"},
        [{"text": "red fox", "answer_start": 4}],
    ],
)
def test_jsonl_accepts_each_form_of_answers(tmp_path, answers):
    data = load(tmp_path / "rows.jsonl", lines({**ROW, "answers": answers}, {**ROW, "answers": ["mill"]}))
    assert [example.answers for example in data.validation] == [("red fox",), ("mill",)]


def test_answers_keep_their_order_without_repetitions(tmp_path):
    words = ["mill", "old", "the", "near", "sat", "fox", "red", "The"]
    data = load(tmp_path / "rows.jsonl", lines({**ROW, "answers": [*words, *words]}))
    assert data.validation[0].answers == tuple(words)


def test_each_nonblank_line_of_jsonl_is_a_row(tmp_path):
    """Blank lines do not count, line separators in a text do not end a row, and a row without id gets its line."""
    odd = {"context": "A\u2028B \u0085 naïve", "question": "Was?", "answers": ["naïve"]}
    raw = json.dumps(ROW) + "\r\n\n" + json.dumps(odd, ensure_ascii=False) + "\n\n"
    data = load(tmp_path / "rows.jsonl", raw)
    assert [(e.id, e.context) for e in data.validation] == [("line 1", FOX), ("line 3", odd["context"])]


def test_empty_lists_of_answers_are_unanswerable_in_jsonl_too(tmp_path):
    data = load(tmp_path / "rows.jsonl", lines(ROW, {**ROW, "answers": []}, {**ROW, "answers": {"text": []}}))
    assert [len(data.train), len(data.validation), data.left_out] == [1, 1, {"unanswerable": 2}]


def test_shots_may_come_from_another_file(tmp_path, monkeypatch):
    (tmp_path / "shots.jsonl").write_text(lines({**ROW, "id": "shot"}, {**ROW, "id": "x", "answers": []}))
    monkeypatch.setenv("HOME", str(tmp_path))
    data = load(tmp_path / "asked.json", squad(QA), shots_path="~/shots.jsonl")
    assert [example.id for example in data.train] == ["shot"]
    assert [example.id for example in data.validation] == ["q1"]
    assert data.left_out == {"unanswerable": 1}


def test_data_are_identified_by_their_content(tmp_path):
    paths = [tmp_path / name for name in ("a.json", "same.json", "other.json")]
    for path, content in zip(paths, ["{}", "{}", "[]"], strict=True):
        path.write_text(content)
    first, same, other = (DataSpec(name="file", origin="file", path=str(p)).identity() for p in paths)
    assert first == same != other
    shown = DataSpec(name="file", origin="file", path=str(paths[0]), shots_path=str(paths[2])).identity()
    assert shown not in (first, other)
    hub = [DataSpec(name="n", origin="hub", repo=r, revision=v, split=s) for r, v, s in ("abc", "xbc", "axc", "abx")]
    assert len({json.dumps(spec.identity()) for spec in hub}) == 4


# --- bad input: value, reason, remedy ---------------------------------------------------------------------------

NEXT_TO = {**QA, "id": "q2", "answers": [{"text": "Red fox", "answer_start": 4}]}

BAD_FILES = {
    "missing": ("gone.json", None, ["gone.json", "no such file", "check the spelling"]),
    "empty": ("a.json", "", ["a.json", "the file is empty", "give SQuAD JSON, .json.gz, or JSONL"]),
    "blank": ("a.jsonl", " \n\n", ["a.jsonl", "the file is empty", "give SQuAD JSON"]),
    "empty gzip": ("a.json.gz", zipped(""), ["a.json.gz", "the file is empty", "give SQuAD JSON"]),
    "gzip cut short": ("a.gz", zipped("{}" * 9)[:-6], ["a.gz", "damaged gzip file", "fetch or write it again"]),
    "gzip of noise": ("a.gz", b"\x1f\x8bnonsense----", ["a.gz", "damaged gzip file", "fetch or write it again"]),
    "gzip bent": ("a.gz", zipped("{}" * 9)[:10] + b"\xff" * 20, ["a.gz", "damaged gzip file", "again"]),
    "no UTF-8": ("a.jsonl", b'{"context": "na\xefve"}', ["a.jsonl", "not UTF-8 text", "give SQuAD JSON"]),
    "broken JSON": ("a.json", '{"data": [', ["a.json", "not JSON", "fix it"]),
    "JSONL named .json": ("a.json", lines(ROW, ROW), ["a.json", "not JSON", "name it .jsonl"]),
    "JSONL named .json.gz": ("a.json.gz", zipped(lines(ROW, ROW)), ["a.json.gz", "name it .jsonl"]),
    "broken line": ("a.jsonl", lines(ROW) + "\n\n{oops\n", ["a.jsonl, line 3", "not JSON", "fix or remove that line"]),
    "a list of rows": ("a.json", [ROW], ["a.json", "neither SQuAD's format", "convert it"]),
    "JSON of another shape": ("a.json", {"rows": []}, ["a.json", "neither SQuAD's format", "convert it"]),
    "data no list": ("a.json", {"data": 5}, ["a.json", "not in SQuAD's format", "expected data[].paragraphs[]"]),
    "articles no objects": ("a.json", {"data": ["x"]}, ["a.json", "not in SQuAD's format", "expected data[]"]),
    "no paragraphs": ("a.json", {"data": [{"title": "x"}]}, ["a.json", "'paragraphs'", "expected data[].paragraphs[]"]),
    "no qas": ("a.json", {"data": [{"paragraphs": [{"context": "x"}]}]}, ["a.json", "'qas'", "expected data[]"]),
    "no context": ("a.json", {"data": [{"paragraphs": [{"qas": [QA]}]}]}, ["a.json", "'context'", "expected data[]"]),
    "question no object": ("a.json", squad("why?"), ["a.json", "not in SQuAD's format", "expected data[].par"]),
    "no questions": ("a.json", {"data": []}, ["a.json", "has no question with an answer", "give a file"]),
    "only unanswerable": (
        "a.json",
        squad({**QA, "answers": []}, {**QA, "id": "q2", "is_impossible": True}),
        ["a.json", "has no question with an answer (2 unanswerable)", "give a file with answers"],
    ),
    "row no object": ("a.jsonl", lines(ROW, 5), ["a.jsonl, line 2", "got int", "fix that row"]),
    "row without context": ("a.jsonl", lines(ROW, {"question": "?"}), ["line 2", "context is missing", "fix"]),
    "blank question": ("a.jsonl", lines(ROW, {**ROW, "question": " "}), ["line 2", "question is missing", "fix"]),
    "question no text": ("a.jsonl", lines(ROW, {**ROW, "question": 3}), ["line 2", "question", "not a text", "fix"]),
    "null context": ("a.json", squad(QA, context=None), ["paragraph 0 question 0", "context", "fix"]),
    "no answers": ("a.jsonl", lines(ROW, {**ROW, "answers": None}), ["line 2", "answers are missing", "expected"]),
    "answers a number": ("a.jsonl", lines(ROW, {**ROW, "answers": 4}), ["line 2", "not a list", "expected texts"]),
    "answer blank": ("a.jsonl", lines(ROW, {**ROW, "answers": ["fox", " "]}), ["line 2", "answer is empty", "fix"]),
    "answer no text": ("a.jsonl", lines(ROW, {**ROW, "answers": [4]}), ["line 2", "or not a text", "fix or remove"]),
    "answer not in context": (
        "a.json",
        squad(QA, NEXT_TO),
        ["a.json, article 0 paragraph 0 question 1 (id q2)", "'Red fox' is not in its context", "fix the answer"],
    ),
    "one of two answers not in context": (
        "a.jsonl",
        lines(ROW, {**ROW, "answers": ["red fox", "wolf"]}),
        ["a.jsonl, line 2", "'wolf' is not in its context", "remove the row"],
    ),
    "an id twice": (
        "a.json",
        squad(QA, QA),
        ["a.json, article 0 paragraph 0 question 1", "the id 'q1' occurs twice", "ids must differ"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named_with_reason_and_remedy(tmp_path, name, content, said):
    with pytest.raises(UserError) as caught:
        load(tmp_path / name, content)
    message = str(caught.value)
    assert [part for part in [str(tmp_path), *said] if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"origin": "csv"}, ["data.origin=csv", "unknown", "use one of short_qa, file, hub"]),
        ({"origin": "file"}, ["data=file", "no path given", "add path=FILE"]),
        ({"origin": "file", "path": "{here}"}, ["{here}", "is a folder", "give a file in it"]),
        ({"origin": "file", "path": "{here}/a", "shots_path": "{here}/b"}, ["{here}/b", "no such file", "check"]),
    ],
)
def test_a_bad_spec_is_named_with_reason_and_remedy(tmp_path, fields, said):
    (tmp_path / "a").write_text(lines(ROW))
    spec = DataSpec(name="x", **{key: value.format(here=tmp_path) for key, value in fields.items()})
    with pytest.raises(UserError) as caught:
        load_data(spec)
    assert [part for part in said if part.format(here=tmp_path) not in str(caught.value)] == []


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of parquet files as on the hub; the network is not used."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def write(**splits):
        folder = tmp_path / "repo"
        folder.mkdir()
        for split, rows in splits.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
        return DataSpec(name="squad", origin="hub", repo=str(folder))

    return write


def hub_row(name, *answers):
    starts = [FOX.find(answer) for answer in answers]
    return {**ROW, "id": name, "title": "Foxes", "answers": {"text": list(answers), "answer_start": starts}}


def test_hub_data_are_read_split_by_split(hub):
    shots = [hub_row("t1", "red fox"), hub_row("t2"), hub_row("t3", "old mill")]
    data = load_data(hub(train=shots, validation=[hub_row("v1", "The red fox", "red fox", "red fox")]))
    assert data.train == [Example(i, FOX, ROW["question"], a) for i, a in (("t1", ("red fox",)), ("t3", ("old mill",)))]
    assert data.validation == [Example("v1", FOX, ROW["question"], ("The red fox", "red fox"))]
    assert data.left_out == {"unanswerable": 1}


def test_hub_splits_come_from_the_spec(hub):
    spec = hub(train=[hub_row("t", "fox")], validation=[hub_row("v", "fox")])
    spec.shots_split, spec.split = "validation", "train"
    data = load_data(spec)
    assert [data.train[0].id, data.validation[0].id] == ["v", "t"]


def test_hub_trouble_is_named_with_reason_and_remedy(hub, tmp_path):
    spec = hub(train=[hub_row("t", "fox")], validation=[hub_row("v", "fox")])
    for folder in ("none", "damaged", "several"):
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"nonsense")
    configs = "".join(f"- {{config_name: {name}, data_files: {name}.parquet}}\n" for name in "ab")
    (tmp_path / "several" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in "ab":
        (tmp_path / "several" / f"{name}.parquet").write_bytes((tmp_path / "repo" / "train.parquet").read_bytes())

    for change, reason in (
        ({"split": "test"}, 'Unknown split "test"'),
        ({"repo": f"{tmp_path}/none"}, "doesn't contain any data files"),
        ({"repo": f"{tmp_path}/damaged"}, "Parquet magic bytes not found"),
        ({"repo": f"{tmp_path}/several"}, "Config name is missing"),
        ({"repo": "nobody/nothing"}, "Couldn't reach"),
    ):
        bad = DataSpec(**{**vars(spec), **change})
        with pytest.raises(UserError) as caught:
            load_data(bad)
        place = f"data=squad: {bad.repo} ({change.get('split', 'train')}) could not be read from the hub"
        said = [place, reason, "check the name", "use data=short_qa"]
        assert [part for part in said if part not in str(caught.value)] == []
        assert "\n" not in str(caught.value)


def test_a_faulty_row_of_the_hub_is_named_by_split_and_place(hub):
    spec = hub(train=[hub_row("t", "fox")], validation=[hub_row("u", "fox"), hub_row("v", "wolf")])
    with pytest.raises(
        UserError, match=r"repo \(validation\), row 1 \(id v\): the answer 'wolf' is not in its context"
    ):
        load_data(spec)


# --- choosing ---------------------------------------------------------------------------------------------------


def passages(count, questions, prefix):
    return [
        Example(f"{prefix}{p}-{q}", f"Passage {prefix}{p}.", f"Question {q}?", (f"{prefix}{p}",))
        for p in range(count)
        for q in range(questions)
    ]


ONE_FILE = passages(12, 3, "p")


def draw(data, samples, shots, seed, questions_per_shot=2):
    return choose_examples(data, samples=samples, shots=shots, questions_per_shot=questions_per_shot, seed=seed)


@pytest.mark.parametrize("data", [Dataset(ONE_FILE, ONE_FILE), Dataset(passages(9, 3, "t"), passages(9, 3, "v"))])
def test_shots_and_questions_share_no_passage(data):
    for seed in range(20):
        shots, asked = draw(data, samples=15, shots=4, seed=seed)
        shown = {example.context for shot in shots for example in shot}
        assert len(shots) == len(shown) == 4
        assert len(asked) == len({example.id for example in asked}) == 15
        assert {example for shot in shots for example in shot} <= set(data.train)
        assert set(asked) <= set(data.validation)
        assert not shown & {example.context for example in asked}


@pytest.mark.parametrize(("wanted", "given"), [(1, 1), (2, 2), (3, 3), (10, 3)])
def test_a_shot_has_one_passage_and_n_questions(wanted, given):
    shuffled = [example for question in range(3) for example in ONE_FILE[question::3]]
    shots, _ = draw(Dataset(shuffled, shuffled), samples=1, shots=5, seed=0, questions_per_shot=wanted)
    for shot in shots:
        assert len(set(shot)) == len(shot) == given
        assert len({example.context for example in shot}) == 1


def test_a_draw_depends_only_on_its_seed():
    data = Dataset(ONE_FILE, ONE_FILE)
    torch.manual_seed(shifted(0))
    first = draw(data, 10, 3, seed=1)
    torch.manual_seed(shifted(1))
    assert draw(data, 10, 3, seed=1) == first
    for part in (0, 1):
        assert draw(data, 10, 3, seed=2)[part] != first[part]


def test_each_passage_and_question_can_be_drawn():
    drawn = [draw(Dataset(ONE_FILE, ONE_FILE), 1, 1, seed) for seed in range(300)]
    assert {shots[0][0].context for shots, _ in drawn} == {example.context for example in ONE_FILE}
    assert {asked[0].id for _, asked in drawn} == {example.id for example in ONE_FILE}


def test_fewer_samples_are_a_prefix_of_more():
    data = Dataset(passages(9, 3, "t"), passages(9, 3, "v"))
    shots, ten = draw(data, samples=10, shots=2, seed=0)
    assert draw(data, samples=5, shots=2, seed=0) == (shots, ten[:5])
    assert draw(data, samples=27, shots=2, seed=0)[1][:10] == ten


def test_only_passages_of_the_shots_are_excluded():
    data = Dataset(ONE_FILE, ONE_FILE)
    none, all_asked = draw(data, samples=36, shots=0, seed=0)
    assert none == []
    assert set(all_asked) == set(ONE_FILE)
    shots, asked = draw(data, samples=6, shots=10, seed=0)
    assert {example.context for example in asked} == {e.context for e in ONE_FILE} - {shot[0].context for shot in shots}
    assert len(draw(Dataset(ONE_FILE, passages(1, 1, "v")), samples=1, shots=12, seed=0)[0]) == 12


MANY = passages(60, 2, "p")


def test_each_passage_is_in_one_half():
    """The halves depend neither on the seed nor on the order of the data, and white space and case do not matter."""
    data = Dataset(MANY, MANY)
    for seed in (0, 1):
        shots, every = draw_examples(data, 4, 1, seed)
        halves = [draw_examples(data, 4, 1, seed, part=half) for half in HALVES]
        assert [half[0] for half in halves] == [shots, shots]
        first, second = ({example.context for example in half[1]} for half in halves)
        assert not first & second
        assert min(len(first), len(second)) >= 15  # of 56 passages
        for name, half in zip(HALVES, halves, strict=True):
            assert half[1] == [example for example in every if half_of(example.context) == name]
    assert draw_examples(Dataset(MANY, MANY[::-1]), 0, 1, 0, part="confirm")[1] != []
    assert {half_of("A passage."), half_of(" a   PASSAGE.")} == {half_of("A passage.")}


def test_another_shots_seed_keeps_the_examples():
    """Of one file, only the examples about a shot's passage differ; the others keep their order."""
    two = Dataset(passages(30, 2, "t"), MANY)
    shots, examples = draw_examples(two, 3, 1, seed=5)
    other, same = draw_examples(two, 3, 1, seed=5, shots_seed=6)
    assert same == examples and other != shots
    assert draw_examples(two, 3, 1, seed=7, shots_seed=6)[0] == other  # they depend on their seed alone
    assert draw_examples(two, 3, 1, seed=5, shots_seed=5) == (shots, examples)
    one = Dataset(MANY, MANY)
    every = draw_examples(one, 0, 1, seed=5)[1]
    for shots_seed in (6, 7):
        shots, examples = draw_examples(one, 3, 1, seed=5, shots_seed=shots_seed)
        shown = {shot[0].context for shot in shots}
        assert examples == [example for example in every if example.context not in shown]
        assert len(examples) == len(every) - 6


def test_a_half_with_too_few_examples_counts_them():
    _, half = draw_examples(Dataset(ONE_FILE, ONE_FILE), 0, 1, 0, part="select")
    with pytest.raises(
        UserError, match=rf"samples=30: part=select, .* has only {len(half)} examples .*samples={len(half)} or less"
    ):
        first_examples(half, 30, "select")


@pytest.mark.parametrize(
    ("samples", "shots", "questions_per_shot", "said"),
    [
        (0, 2, 1, ["samples=0", "at least 1 is needed"]),
        (1, -1, 1, ["shots=-1", "at least 0 is needed"]),
        (1, 1, 0, ["questions_per_shot=0", "at least 1 is needed"]),
        (1, 13, 1, ["shots=13", "only 12 passages", "lower shots"]),
        (31, 2, 1, ["samples=31", "only 30 examples", "use samples=30 or less, or more data"]),
        (1, 12, 1, ["samples=1", "only 0 examples", "more data"]),
    ],
)
def test_too_large_draws_are_named_with_reason_and_remedy(samples, shots, questions_per_shot, said):
    with pytest.raises(UserError) as caught:
        draw(Dataset(ONE_FILE, ONE_FILE), samples, shots, 0, questions_per_shot)
    assert [part for part in said if part not in str(caught.value)] == []
