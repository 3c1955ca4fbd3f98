"""Preference pairs: rows of real data sets, dropped rows with their reasons, and files of every kind."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import math
from pathlib import Path

import datasets
import pytest
from omegaconf import OmegaConf
from trl.data_utils import maybe_extract_prompt

from kat.data.formats import FORMATS, UnusableRowError, detect, drafts, fault, split_dialogue
from kat.data.pairs import Dropped, PairsSpec, PreferencePair, read_pairs, readings
from kat.pipeline.prepare import pairs
from latentwire.harness.errors import UserError
from tests.helpers.files import read_rows


def u(text: str) -> dict:
    return {"role": "user", "content": text}


def a(text: str) -> dict:
    return {"role": "assistant", "content": text}


SKY = [u("What color is the sky?")]
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\nthere\n\nHuman: Sky?\n\nAssistant:"
TURNS = [u("Hi"), a("Hello\nthere"), u("Sky?")]
ANSWER = {"author": "someone", "author_id": 1, "author_profile": "p"}

# format -> a row as the data set writes it, and its (prompt, chosen, rejected)
ROWS = {
    "trl_standard": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        [([u("The sky is")], [a(" blue.")], [a(" green.")])],
    ),
    "trl_standard_implicit": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        [([u("The sky is")], [a(" blue.")], [a(" green.")])],
    ),
    "trl_conversational": (
        {"prompt": SKY, "chosen": [a("It is blue.")], "rejected": [a("It is green.")]},
        [(SKY, [a("It is blue.")], [a("It is green.")])],
    ),
    "trl_conversational_implicit": (
        {"chosen": [*SKY, a("It is blue.")], "rejected": [*SKY, a("It is green.")]},
        [(SKY, [a("It is blue.")], [a("It is green.")])],
    ),
    "reward_bench": (
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "chosen_model": "m", "subset": "math-prm", "id": 3},
        [([u("2+2?")], [a("4")], [a("5")])],
    ),
    "hh": (
        {"chosen": f"{DIALOGUE} Blue.\n\nAlways.", "rejected": f"{DIALOGUE} Green. Human: no marker"},
        [(TURNS, [a("Blue.\n\nAlways.")], [a("Green. Human: no marker")])],
    ),
    "ultrafeedback": (
        {"prompt": SKY[0]["content"], "prompt_id": "ab", "messages": [*SKY, a("Blue.")], "score_chosen": 8.0,
         "score_rejected": 3.5, "chosen": [*SKY, a("Blue.")], "rejected": [*SKY, a("Green.")]},
        [(SKY, [a("Blue.")], [a("Green.")])],
    ),
    "stack_exchange": (
        {"qid": 7, "question": "<p>Why?</p>", "date": "2016/03/14", "metadata": ["https://stackexchange.com"],
         "answers": [{**ANSWER, "answer_id": i, "text": text, "pm_score": score, "selected": selected}
                     for i, (text, score, selected) in
                     enumerate([("c", 1, False), ("best", 4, True), ("b", 4, False), ("d", -1, False)])]},
        [([u("<p>Why?</p>")], [a("best")], [a("c")]), ([u("<p>Why?</p>")], [a("best")], [a("d")])],
    ),
    "shp": (
        {"post_id": "x", "domain": "askculinary_train", "history": "Salt?", "human_ref_A": "no", "human_ref_B": "yes",
         "labels": 0, "score_A": 3, "score_B": 9, "score_ratio": 3.0},
        [([u("Salt?")], [a("yes")], [a("no")])],
    ),
    "nq_open": (
        {"question": "who", "answer": ["Ann"], "def_correct_predictions": ["ann"], "poss_correct_predictions": ["A."],
         "def_incorrect_predictions": ["Bob", '\\"Zo\\u00eb\\"'], "answer_and_def_correct_predictions": ["Ann", "ann"]},
        [([u("who")], [a(right)], [a(wrong)]) for right in ("Ann", "ann") for wrong in ("Bob", '"Zoë"')],
    ),
    "alpaca_eval": (
        {"instruction": "Sing", "output_1": "la", "output_2": "no", "generator_1": "x", "preference": 2,
         "dataset": "koala"},
        [([u("Sing")], [a("no")], [a("la")])],
    ),
}  # fmt: skip


def test_every_format_is_tried():
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format_is_detected_and_read(name):
    row, expected = ROWS[name]
    assert detect(row) == name
    found = drafts(row, name)
    assert [(draft.prompt, draft.chosen, draft.rejected) for draft in found] == expected
    assert [fault(draft) for draft in found] == [None] * len(expected)


@pytest.mark.parametrize("name", ["trl_standard_implicit", "trl_conversational_implicit", "ultrafeedback"])
def test_an_implicit_prompt_is_the_one_that_trl_finds(name):
    row = {key: ROWS[name][0][key] for key in ("prompt", "chosen", "rejected") if key in ROWS[name][0]}
    theirs = maybe_extract_prompt(row)
    (draft,) = drafts(row, name)
    prompt = draft.prompt[0]["content"] if isinstance(theirs["prompt"], str) else draft.prompt
    assert prompt == theirs["prompt"]
    text = isinstance(theirs["chosen"], str)
    assert (draft.chosen[0]["content"] if text else draft.chosen) == theirs["chosen"]
    assert (draft.rejected[0]["content"] if text else draft.rejected) == theirs["rejected"]


def test_a_dialogue_is_split_at_its_real_markers_alone():
    text = "\n\nHuman: say\nHuman: x\n\n Assistant: y\n\nHumans: z\n\nAssistant:  two spaces\n"
    assert split_dialogue(text) == [u("say\nHuman: x\n\n Assistant: y\n\nHumans: z"), a(" two spaces\n")]
    assert split_dialogue("Human: Hi\n\nAssistant: Yo") == [u("Hi"), a("Yo")]  # the first line breaks stripped
    for bad in ("human: hi", "before\n\nHuman: hi", ""):
        with pytest.raises(UnusableRowError, match="does not begin with"):
            split_dialogue(bad)


@pytest.mark.parametrize(
    "change", [{"chosen": ""}, {"rejected": ""}, {key: text.strip() for key, text in ROWS["hh"][0].items()}]
)
def test_one_dialogue_is_enough_to_detect_the_hh_format(change):
    """An empty answer or missing line breaks at the start do not change the detected format."""
    assert detect({**ROWS["hh"][0], **change}) == "hh"


REFUSED = {
    "an empty chosen": ("hh", {"chosen": DIALOGUE + " \n"}, "chosen is empty"),
    "another prompt": ("hh", {"rejected": "\n\nHuman: Bye\n\nAssistant: x"}, "differ before the last turn"),
    "no answer": ("hh", {"chosen": "\n\nHuman: Bye"}, "does not end with an answer"),
    "a missing column": ("trl_standard", {"chosen": None}, "column chosen is missing"),
    "the same answers": ("trl_standard", {"rejected": " blue."}, "chosen and rejected are the same"),
    "an empty prompt": ("trl_standard", {"prompt": " \n"}, "prompt is empty"),
    "a number": ("trl_standard", {"rejected": 3}, "neither a text nor a list"),
    "half a surrogate": ("trl_standard", {"rejected": "\ud83d"}, "not valid Unicode"),
    "an image": ("trl_conversational", {"chosen": [{"role": "user", "content": [{"type": "image"}]}]}, "no text"),
    "no prompt in common": ("trl_standard_implicit", {"rejected": "Green."}, "prompt is empty"),
    "a dialogue as plain text": (
        "trl_standard_implicit",
        {"chosen": DIALOGUE.strip() + " x", "rejected": DIALOGUE.strip() + " y"},
        "format=hh",
    ),
    "a dialogue against plain text": ("trl_standard_implicit", {"rejected": f"{DIALOGUE} y"}, "format=hh"),
    "a tie": ("ultrafeedback", {"score_rejected": 8.0}, "the same score"),
    "one answer": ("stack_exchange", {"answers": [{"text": "x", "pm_score": 3}]}, "no two answers"),
    "no score": ("stack_exchange", {"answers": [{"text": "x"}, {"text": "y"}]}, "no pm_score"),
    "another label": ("shp", {"labels": 2}, "neither 0 nor 1"),
    "a label against its scores": ("shp", {"labels": 1}, "contradict"),
    "no wrong answer": ("nq_open", {"def_incorrect_predictions": []}, "no wrong answer"),
    "no preference": ("alpaca_eval", {"preference": 0}, "no preference"),
}


def reason_of(row: dict, name: str) -> str | None:
    try:
        (draft,) = drafts(row, name)
    except UnusableRowError as error:
        return str(error)
    return fault(draft)


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_row_says_why(case):
    name, change, reason = REFUSED[case]
    assert reason in reason_of({**ROWS[name][0], **change}, name)


# Files


def of_file(path: Path | str, **options: str) -> list[PreferencePair | Dropped]:
    spec = PairsSpec(name="mine", origin="file", splits={"train": str(path)}, **options)
    return [item for reading in readings([spec]) for item in reading]


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = ROWS["trl_standard"][0]
MORE = [GOOD, {**GOOD, "prompt": "Grass is", "chosen": " green.", "rejected": "\nblue."}]


def test_the_same_rows_in_any_container_are_the_same_pairs(tmp_path):
    plain = write_lines(tmp_path / "a.jsonl", MORE)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(MORE, indent=2))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(b"\n  " + json.dumps(MORE).encode()))
    datasets.Dataset.from_list(MORE).to_parquet(tmp_path / "e.parquet")
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + plain.read_bytes().replace(b"\n", b"\r\n"))
    found = [of_file(path) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 6
    assert all(pairs == found[0] for pairs in found)
    assert [pair.rejected[0]["content"] for pair in found[0]] == [" green.", "\nblue."]


def test_parquet_of_conversations_reads_as_lists_of_messages(tmp_path):
    row, ((prompt, chosen, rejected),) = ROWS["ultrafeedback"]
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "x.parquet")
    (pair,) = of_file(tmp_path / "x.parquet")
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)


def test_dropped_rows_have_a_place_and_a_reason(tmp_path):
    """The valid rows of the file are kept."""
    path = tmp_path / "mixed.jsonl"
    lines = [json.dumps(GOOD), "", '{"prompt": ', "[1]", json.dumps(GOOD), json.dumps({**GOOD, "chosen": ""})]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + json.dumps(MORE[1]).encode())
    items = of_file(path)
    dropped = [(item.place, item.reason) for item in items if isinstance(item, Dropped)]
    assert dropped == [
        ("line 3", "is not valid JSON"),
        ("line 4", "is not a JSON object"),
        ("line 5", "the same pair occurs before"),
        ("line 6", "chosen is empty"),
        ("line 7", "is not UTF-8 text"),
    ]
    assert next(item.content for item in items if isinstance(item, Dropped)) == '{"prompt": '
    assert len([item for item in items if isinstance(item, PreferencePair)]) == 2


def test_the_source_names_the_subset(tmp_path):
    row = ROWS["reward_bench"][0]
    pairs = of_file(write_lines(tmp_path / "x.jsonl", [row, {**row, "subset": "hep-go"}]))
    assert [pair.source for pair in pairs] == ["mine/math-prm", "mine/hep-go"]
    assert len({pair.id for pair in pairs}) == 2


def test_ids_depend_only_on_the_content(tmp_path):
    first = of_file(write_lines(tmp_path / "x.jsonl", MORE))
    second = of_file(write_lines(tmp_path / "y.jsonl", MORE[::-1]))
    assert [pair.id for pair in first] == [pair.id for pair in second][::-1]
    assert len({pair.id for pair in first}) == 2


def test_a_pair_of_the_train_split_is_dropped_from_test(tmp_path):
    files = {"train": str(write_lines(tmp_path / "x", MORE[:1])), "test": str(write_lines(tmp_path / "y", MORE))}
    items = [item for reading in readings([PairsSpec("mine", "file", files)]) for item in reading]
    assert [(type(item).__name__, item.split) for item in items] == [
        ("PreferencePair", "train"), ("Dropped", "test"), ("PreferencePair", "test"),
    ]  # fmt: skip


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        of_file(path, **options)
    return str(caught.value)


def test_unknown_columns_give_an_error_with_valid_columns(tmp_path):
    message = refusal(write_lines(tmp_path / "x.jsonl", [{"question": "q", "good": "a", "bad": "b"}]))
    assert "bad, good, question" in message
    assert "prompt, chosen, rejected" in message
    assert "history, human_ref_A" in message


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "has no rows" in refusal(tmp_path / "empty.jsonl")
    assert "no such file" in refusal(tmp_path / "nowhere.jsonl")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "broken.json").write_text("[{},")
    assert "begins like a JSON array" in refusal(tmp_path / "broken.json")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 99)[:-9])
    assert "damaged gzip" in refusal(tmp_path / "cut.gz")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    assert "damaged Parquet" in refusal(tmp_path / "x.parquet")


def test_a_spec_with_an_unknown_value_is_refused():
    for options, match in (
        ({"origin": "ftp"}, "origin=ftp"),
        ({"origin": "file", "format": "dpo"}, "format=dpo: unknown; use one of alpaca_eval"),
        ({"origin": "file", "splits": {}}, "names no split"),
    ):
        with pytest.raises(UserError, match=match):
            readings([PairsSpec(**{"name": "x", "splits": {"train": "y"}, **options})])


def test_hub_rows_are_read_under_our_names_of_splits(monkeypatch):
    asked = []

    def load(repo, config, revision, split):
        asked.append((repo, config, revision, split))
        return datasets.Dataset.from_list([ROWS["ultrafeedback"][0]])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("kat.data.pairs.hub_commit", lambda *of: {("org/uf", "main", "dataset"): "c0ffee"}[of])
    spec = PairsSpec("uf", "hub", {"test": "test_prefs"}, format="ultrafeedback", repo="org/uf")
    (reading,) = readings([spec])
    (pair,) = reading
    assert asked == [("org/uf", None, "c0ffee", "test_prefs")]
    assert reading.origin == {"repo": "org/uf", "commit": "c0ffee", "split": "test_prefs"}
    assert (pair.split, pair.source, pair.prompt) == ("test", "uf", SKY)


def test_a_hub_that_does_not_answer_is_explained(monkeypatch):
    def load(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"org/uf \(train\) could not be read.*no route.*pairs=nq_open"):
        [*readings([PairsSpec("uf", "hub", {"train": "train"}, repo="org/uf")])[0]]


# Columns


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nq_open", {"answer": ["Ann"], "def_correct_predictions": ["ann"], "poss_correct_predictions": ["A."]}),
        ("reward_bench", {"chosen_model": "m", "id_": 3}),
        ("ultrafeedback", {"prompt_id": "ab", "score_chosen": 8.0, "score_rejected": 3.5}),
        ("stack_exchange", {"qid": 7, "date": "2016/03/14", "metadata": ["https://stackexchange.com"]}),
        ("alpaca_eval", {"generator_1": "x", "dataset": "koala"}),
        ("hh", {}),
    ],
)
def test_pairs_keep_the_columns_that_are_not_in_them(tmp_path, name, expected):
    pairs = of_file(write_lines(tmp_path / "x.jsonl", [ROWS[name][0]]), format=name)
    assert pairs and all(pair.columns == expected for pair in pairs)
    assert all({**pair.row(), **expected} == pair.row() for pair in pairs)


def test_columns_with_names_of_own_fields_are_renamed(tmp_path):
    row = {**GOOD, "id": 1, "id_": 2, "source": "s", "completions": [], "answer_": None}
    (pair,) = of_file(write_lines(tmp_path / "x.jsonl", [row]))
    assert pair.columns == {"id_": 1, "id__": 2, "source_": "s", "completions_": [], "answer_": None}
    assert (pair.source, pair.split, len(pair.id)) == ("mine", "train", 16)


def test_columns_do_not_change_the_id_of_a_pair(tmp_path):
    plain, rich = (of_file(write_lines(tmp_path / "x.jsonl", [row])) for row in (GOOD, {**GOOD, "answer": "blue"}))
    assert plain[0].id == rich[0].id and rich[0].columns == {"answer": "blue"}


def test_values_that_json_cannot_hold_are_left_out(tmp_path):
    when = datetime.datetime(2026, 1, 2)
    odd = [{**row, "when": when, "raw": b"x", "score": score, "in": {"a": [score]}, "n": 1}
           for row, score in zip(MORE, (0.5, math.nan), strict=True)]  # fmt: skip
    datasets.Dataset.from_list(odd).to_parquet(tmp_path / "x.parquet")
    (reading,) = readings([PairsSpec("mine", "file", {"train": str(tmp_path / "x.parquet")})])
    first, second = reading
    assert first.columns == {"score": 0.5, "in": {"a": [0.5]}, "n": 1} and second.columns == {"n": 1}
    assert reading.left_out == {"when": 2, "raw": 2, "score": 1, "in": 1}
    assert reading.columns == {"score": 1, "in": 1, "n": 2}


def test_half_a_surrogate_in_a_column_is_left_out(tmp_path):
    (pair,) = of_file(
        write_lines(tmp_path / "x.jsonl", [{**GOOD, "a": "\ud83d", "b": {"\ud83d": 1}, "c": "\U0001f642"}])
    )
    assert pair.columns == {"c": "\U0001f642"}


# The task


@pytest.mark.slow
def test_the_task_writes_pairs_drops_and_a_record(cli):
    rows = [{**MORE[0], "answer": "blue", "id": 7}, {**MORE[1], "answer": "green"}, {**GOOD, "chosen": "\ud800"}]
    write_lines(Path("my.set.jsonl"), rows)
    status, _, err = cli("task=pairs", "pairs=file", "path=my.set.jsonl")
    assert status == 0
    assert "columns kept for reward functions: answer, id_" in err
    assert "2 pairs out of 3 rows, read as trl_standard" in err
    assert "dropped 1: chosen contains characters" in err
    rows = read_rows("outputs/kat/pairs_all.jsonl")
    assert [row["source"] for row in rows] == ["my", "my"]
    assert [(row["answer"], row.get("id_")) for row in rows] == [("blue", 7), ("green", None)]
    assert [pair.row() for pair in read_pairs(Path("outputs/kat/pairs_all.jsonl"))] == rows
    (dropped,) = read_rows("outputs/kat/pairs_dropped.jsonl")
    assert (dropped["place"], dropped["row"]["chosen"]) == ("line 3", "\ud800")
    # A file of another name in another folder: the name does not become a folder.
    assert cli("task=pairs", "pairs=file", "path=my.set.jsonl", "out=./mine.jsonl")[0] == 0
    assert Path("mine.jsonl").read_bytes() == Path("outputs/kat/pairs_all.jsonl").read_bytes()
    assert Path("mine_pairs_dropped.jsonl").is_file()
    record = json.loads(Path("outputs/kat/pairs.json").read_text())["sets"]["my/train"]
    reasons = {"chosen contains characters that are not valid Unicode": 1}
    assert (record["rows"], record["pairs"], record["dropped"]) == (3, 2, reasons)
    assert (record["columns"], record["columns_left_out"]) == (["answer", "id_"], {})
    assert record["origin"]["sha256"] == hashlib.sha256(Path("my.set.jsonl").read_bytes()).hexdigest()
    assert json.loads(Path("mine_pairs.json").read_text())["sets"] == {"my/train": record}
    # The written file can be read as pairs.
    assert cli("task=pairs", "pairs=file", "path=mine.jsonl", "folder=again")[0] == 0
    again = read_rows("again/pairs_all.jsonl")
    assert [row["prompt"] for row in again] == [row["prompt"] for row in rows]
    assert [row["id_"] for row in again] == [row["id"] for row in rows] and again[0]["id__"] == 7


@pytest.mark.slow
def test_a_file_without_usable_rows_writes_nothing(cli):
    write_lines(Path("bad.jsonl"), [{**GOOD, "chosen": ""}, 3])
    status, _, err = cli("task=pairs", "pairs=file", "path=bad.jsonl")
    assert status == 1
    assert "none of its 2 rows gives a pair (1 chosen is empty, 1 is not a JSON object)" in err
    assert not list(Path("outputs").rglob("*.json*"))
    for arguments, expected in (
        (["pairs=file"], "no path given"),
        (["pairs=file", "path=bad.jsonl", "out=."], "is a folder"),
        (["pairs=file", "path=bad.jsonl", "out="], "no file given"),
        (["pairs=file", "path=bad.jsonl", "out=./bad.jsonl"], "would overwrite path=bad.jsonl"),
        (["pairs=file", "path=bad.jsonl", "tracker=wandb"], "tracker=wandb: task=pairs does not use a tracker"),
        (["path=bad.jsonl"], "path belongs to pairs=file"),
        (["top_k=3"], "top_k belongs to task=retrieve"),
    ):
        status, _, err = cli("task=pairs", *arguments)
        assert (status, err.count("error:"), "Traceback" in err) == (1, 1, False)
        assert expected in err


def test_a_split_without_pairs_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(Path("good.jsonl"), MORE)
    write_lines(Path("bad.jsonl"), [{**GOOD, "chosen": ""}])
    node = {"name": "good", "origin": "file", "splits": {"train": "good.jsonl", "test": "bad.jsonl"}}
    cfg = {"task": "pairs", "tracker": {"name": "none"}, "device": "cpu", "folder": "outputs/kat",
           "pairs": {"mine": node}, "pairs_file": "pairs_all.jsonl", "out": "pairs_all.jsonl"}  # fmt: skip
    pairs(OmegaConf.create(cfg))
    err = capsys.readouterr().err
    assert "warning: good/test: none of its 1 rows gives a pair (1 chosen is empty)" in err
    assert len(read_rows("outputs/kat/pairs_all.jsonl")) == 2
    assert [row["split"] for row in read_rows("outputs/kat/pairs_dropped.jsonl")] == ["test"]
    sets = json.loads(Path("outputs/kat/pairs.json").read_text())["sets"]
    assert {name: entry["pairs"] for name, entry in sets.items()} == {"good/train": 2, "good/test": 0}


def test_a_file_that_cannot_be_written_has_a_remedy_that_fits(cli):
    write_lines(Path("good.jsonl"), MORE)
    Path("in_the_way").write_text("")
    status, _, err = cli("task=pairs", "pairs=file", "path=good.jsonl", "folder=in_the_way/below")
    assert status == 1 and "choose another folder with folder=FOLDER" in err, err


@pytest.mark.slow
@pytest.mark.real_model
def test_nq_open_out_of_its_wheel_gives_the_judged_triples(cli):
    assert cli("task=pairs")[0] == 0
    kept, dropped = read_rows("outputs/kat/pairs_all.jsonl"), read_rows("outputs/kat/pairs_dropped.jsonl")
    reasons = [row["reason"] for row in dropped]
    assert reasons.count("no wrong answer") == 399
    # 8,519 triples with a right and a wrong answer; without JSON's escapes, 6 are equal and 1 is a duplicate.
    assert len(kept) == 8512
    assert sorted(set(reasons)) == [
        "chosen and rejected are the same",
        "no wrong answer",
        "the same pair occurs before",
    ]
    assert len(kept) + len(dropped) - 399 == 8519
    assert len({row["prompt"][0]["content"] for row in kept} | {r["row"]["question"] for r in dropped}) == 1769
    assert not any("\\u00" in row["rejected"][0]["content"] for row in kept)
    # Every pair has the reference answers of its question, and right answers begin with them.
    assert all(row["answer"] and {"def_correct_predictions", "poss_correct_predictions"} <= row.keys() for row in kept)
    chosen = {(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in kept}
    assert ("who wrote the miraculous journey of edward tulane", "Kate DiCamillo") not in chosen  # no wrong answer
    first = next(row for row in kept if row["prompt"][0]["content"].startswith("how many 5 star generals"))
    assert first["answer"] == ["Nine"] and first["chosen"][0]["content"] == "Nine"
