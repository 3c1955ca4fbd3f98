"""Unique prompts: ids that neither order nor spacing changes, multiplicity, sources, splits, and their files."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kat.data.pairs import PreferencePair, read_pairs
from kat.data.prompts import normalise, prompt_id, read_prompts, render_conversation, unique_prompts
from kat.data.tables import read_weights
from kat.pipeline.artifacts import SIDECARS
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.results import write_jsonl


def u(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def pair(name: str, prompt: list[dict], source: str = "a", split: str = "train") -> PreferencePair:
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    return PreferencePair(name, prompt, *answers, source, split)


PAIRS = [
    pair("1", u("Why?")),
    pair("2", u("How?"), "b"),
    pair("3", u(" Why?\r\n"), "b"),
    pair("4", [*u("Why?"), {"role": "assistant", "content": "So."}, *u("No.")]),
    pair("5", u("Why?"), "a", "test"),
    pair("6", u("Where?"), "a", "test"),
]


def test_the_id_is_the_hash_of_the_normal_form():
    assert prompt_id(u("Why?")) == hashlib.sha256(b'[["user","Why?"]]').hexdigest()[:16]
    assert normalise([{"role": " User ", "content": "\n e\u0301 \r\n\r x "}]) == u("\u00e9 \n\n x")


def test_ids_depend_on_the_whole_conversation():
    different = [u("Why?"), u("why?"), u("Why"), u("W hy?"), u("Wh\ny?"), [*u("Why?"), *u("Why?")],
                 [{"role": "system", "content": "Why?"}], u("user: Why?")]  # fmt: skip
    assert len({prompt_id(prompt) for prompt in different}) == len(different)


def test_equal_prompts_are_one_with_their_sources_and_splits():
    prompts, pair_to_prompt = unique_prompts(PAIRS, split="train")
    why, how, dialogue = prompts
    assert [prompt.text for prompt in prompts] == ["Why?", "How?", "user: Why?\n\nassistant: So.\n\nuser: No."]
    assert (why.multiplicity, dict(why.sources), dict(why.splits)) == (2, {"a": 1, "b": 1}, {"train": 2, "test": 1})
    assert (why.source, how.source, dialogue.source) == ("a+b", "b", "a")
    assert pair_to_prompt == [("1", why.id), ("2", how.id), ("3", why.id), ("4", dialogue.id)]


def test_without_a_split_all_prompts_are_taken():
    prompts, pair_to_prompt = unique_prompts(PAIRS)
    assert [prompt.multiplicity for prompt in prompts] == [3, 1, 1, 1]
    assert len(pair_to_prompt) == len(PAIRS)


@given(st.randoms(use_true_random=False))
def test_order_changes_no_id_text_or_count(rng: random.Random):
    shuffled = list(PAIRS)
    rng.shuffle(shuffled)
    as_set = [
        sorted(json.dumps(p.row(), sort_keys=True) for p in unique_prompts(pairs)[0]) for pairs in (PAIRS, shuffled)
    ]
    assert as_set[0] == as_set[1]
    assert sorted(unique_prompts(PAIRS)[1]) == sorted(unique_prompts(shuffled)[1])


def test_a_single_question_is_shown_as_it_is():
    assert render_conversation(u("Why?")) == "Why?"
    assert render_conversation([{"role": "system", "content": "Be brief."}]) == "system: Be brief."


def with_columns(name: str, prompt: list[dict], split: str = "train", **columns: object) -> PreferencePair:
    return replace(pair(name, prompt, split=split), columns=columns)


RICH = [
    with_columns("1", u("Why?"), "test", a="of another split"),
    with_columns("2", u("Why?"), a=None, b=["x"]),
    with_columns("3", u("How?"), c=0),
    with_columns("4", u(" Why?"), a="first", b=["x"]),
    with_columns("5", u("Why?"), a="second", b=["y"], c=None),
    with_columns("6", u("Why?"), a="third"),
]


def test_the_first_row_with_a_value_gives_a_column():
    why, how = unique_prompts(RICH, "train")[0]
    assert why.columns == {"a": "first", "b": ["x"], "c": None} and how.columns == {"a": None, "b": None, "c": 0}
    assert why.conflicts == {"a", "b"} and how.conflicts == set()
    assert list(why.row())[-3:] == ["a", "b", "c"] and why.row()["a"] == "first"


def test_columns_change_neither_ids_nor_order_nor_counts():
    plain, rich = (unique_prompts(pairs) for pairs in ([replace(pair, columns={}) for pair in RICH], RICH))
    assert [replace(prompt, columns={}) for prompt in rich[0]] == plain[0] and rich[1] == plain[1]


def test_the_task_counts_columns_that_differ(cli):
    write_jsonl(Path("outputs/kat/pairs_all.jsonl"), [p.row() for p in RICH])
    status, _, err = cli("task=prompts")
    assert status == 0, err
    assert "columns for reward functions: a, b, c" in err
    assert "column a: the rows of 1 prompts differ; the first value is kept" in err
    record = json.loads(Path("outputs/kat/prompts.json").read_text())
    assert (record["columns"], record["column_conflicts"]) == (["a", "b", "c"], {"a": 1, "b": 1})
    assert read_prompts(Path("outputs/kat/prompts_all.jsonl")) == unique_prompts(RICH, "train")[0]


def test_a_prompts_file_of_ones_own_gets_ids_and_texts(tmp_path):
    """They are those that task=prompts gives the same prompts, in any container."""
    rows = [{"prompt": " Why?\r\n", "answer": "So."}, {"prompt": PAIRS[3].prompt, "level": 2}]
    made = {prompt.id: prompt for prompt in unique_prompts(PAIRS)[0]}
    (tmp_path / "my.set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.json").write_text(json.dumps(rows))
    (tmp_path / "my.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for path in sorted(tmp_path.iterdir()):
        first, second = read_prompts(path)
        for prompt in (first, second):
            assert (prompt.prompt, prompt.text) == (made[prompt.id].prompt, made[prompt.id].text)
        assert (first.text, first.source, first.multiplicity) == ("Why?", "my", 1)
        assert (first.columns, second.columns) == ({"answer": "So.", "level": None}, {"answer": None, "level": 2})


def test_given_ids_and_texts_are_kept(tmp_path):
    path = tmp_path / "my.jsonl"
    rows = [{"id": "q7"}, {"text": "Wherefore"}, {"id": "q8", "text": "t", "source": "s"}]
    write_jsonl(path, [{**row, "prompt": " Why? "} for row in rows])
    first, second, third = read_prompts(path)
    assert (first.id, first.text, first.prompt) == ("q7", "Why?", u("Why?"))
    assert (second.id, second.text) == (prompt_id(u("Why?")), "Wherefore")
    assert (third.id, third.text, third.prompt, third.source) == ("q8", "t", u(" Why? "), "s")


def test_the_task_writes_prompts_and_the_map_and_they_read_back(cli):
    write_jsonl(Path("outputs/kat/pairs_all.jsonl"), [p.row() for p in PAIRS])
    status, _, err = cli("task=prompts")
    assert status == 0
    assert "3 unique of 4 pairs" in err
    assert "warning: 1 of these prompts occur in another split" in err
    prompts = read_prompts(Path("outputs/kat/prompts_all.jsonl"))
    assert prompts == unique_prompts(PAIRS, "train")[0]
    rows = [json.loads(line) for line in Path("outputs/kat/pair_to_prompt.jsonl").read_text().splitlines()]
    assert [(row["pair_id"], row["prompt_id"]) for row in rows] == unique_prompts(PAIRS, "train")[1]
    # Another file has its own map, and both maps stay.
    before = Path("outputs/kat/pair_to_prompt.jsonl").read_bytes()
    assert cli("task=prompts", "split=null", "out=all.jsonl")[0] == 0
    assert len(read_prompts(Path("outputs/kat/all.jsonl"))) == 4
    assert len(Path("outputs/kat/all_pair_to_prompt.jsonl").read_text().splitlines()) == len(PAIRS)
    assert Path("outputs/kat/pair_to_prompt.jsonl").read_bytes() == before
    status, _, err = cli("task=prompts", "split=dev")
    assert (status, "split=dev: no pair" in err) == (1, True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pair_to_prompt.jsonl", "this name is reserved for files that kat tasks write"),
        ("test_pair_to_prompt.jsonl", "this name is reserved for files that kat tasks write"),
        ("embeddings.json", "this name is reserved for files that kat tasks write"),
        ("pairs_all.jsonl", "would overwrite pairs_file"),
        ("embeddings.pt", "would overwrite embeddings_file"),
    ],
)
def test_an_output_cannot_overwrite_another_result(cli, name, reason):
    write_jsonl(Path("outputs/kat/pairs_all.jsonl"), [p.row() for p in PAIRS])
    status, _, err = cli("task=prompts", f"out={name}")
    assert status == 1 and reason in err, err
    assert [path.name for path in Path("outputs/kat").iterdir()] == ["pairs_all.jsonl"]


def test_sidecar_names_are_defaults_of_the_config():
    usual = {str(name) for key, name in OmegaConf.load(CONF / "kat" / "files.yaml").items() if key.endswith("_file")}
    assert set(SIDECARS.values()) <= usual


def test_a_weights_file_with_broken_rows_is_rejected(tmp_path):
    path = tmp_path / "weights.jsonl"
    good = {"id": "1", "density": 2.0, "weight": 0.5}
    for rows, expected in (
        ([good, {"id": "2", "density": 1.0}], "line 2: has no weight.*task=density"),
        ([{**good, "id": 1}], "line 1: has no id"),
        ([{**good, "density": True}], "line 1: has no density"),
        ([{**good, "weight": -1}], "weight -1 of 1: must be finite and not negative"),
        ([good, good], "line 2: the id 1 is also on line 1"),
        ([], "is empty"),
    ):
        write_jsonl(path, rows)
        with pytest.raises(UserError, match=expected):
            read_weights(path)


def pairs_refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_pairs(path))
    return str(caught.value)


def test_an_invalid_pairs_file_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    assert "no such file; make it with task=pairs" in pairs_refusal(path)
    good = json.dumps(PAIRS[0].row())
    for content, expected in (
        (f"{good}\n{good}\n", "line 2: the id 1 occurs twice"),
        (f"{good}\n{good[:30]}\n", "line 2: is not valid JSON"),
        ('{"text": "x"}\n', "line 1: not a row of a pairs file"),
        ("[]\n[]", "begins like a JSON array"),
        (json.dumps({**PAIRS[0].row(), "chosen": []}), "line 1: chosen is empty"),
        (json.dumps({**PAIRS[0].row(), "prompt": "Why?"}), "line 1: not a row of a pairs file"),
    ):
        path.write_text(content)
        assert expected in pairs_refusal(path)


def test_an_invalid_prompts_file_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    good = {"id": "1", "prompt": u("x"), "text": "x", "source": "a"}
    for content, expected in (
        (None, "no such file; make it with task=prompts"),
        ("", "has no rows"),
        ('{"id": ', "line 1: is not valid JSON.*task=prompts"),
        (json.dumps([1]), "row 0: not a row of a prompts file.*task=prompts"),
        (json.dumps({"id": "1"}), "line 1: not a row of a prompts file"),
        (json.dumps({"id": "1", "prompt": []}), "line 1: the prompt is empty"),
        (json.dumps({"id": "1", "prompt": [{"role": "user"}]}), "line 1: prompt: a message has no role or no text"),
        (json.dumps({"prompt": 3}), "line 1: prompt: a turn is neither a text nor a list"),
        (json.dumps({"prompt": "\ud83d"}), "line 1: the prompt is empty or not valid Unicode"),
        (json.dumps(good) + "\n" + json.dumps(good), "line 2: has the id 1, as line 1 has"),
        (
            '{"prompt": "x"}\n\n{"prompt": " x "}',
            "line 3: has the id [0-9a-f]{16}, as line 1 has; remove one of the rows",
        ),
        (json.dumps({**good, "text": " "}), "line 1: text=' ': must be a text that is not empty"),
        (json.dumps({**good, "id": 7}), "line 1: id=7: must be a text .* or rename this column"),
        (json.dumps({**good, "sources": ["http://x"]}), "line 1: sources=.*must be an object of whole numbers"),
        (json.dumps({**good, "multiplicity": "many"}), "line 1: multiplicity='many': must be a whole number"),
        (json.dumps({**good, "completions": ["x"]}), "line 1: completions is an argument of every reward function"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=expected):
            read_prompts(path)
    path.write_text(json.dumps(good))
    assert read_prompts(path)[0].row()["sources"] == {"a": 1}
