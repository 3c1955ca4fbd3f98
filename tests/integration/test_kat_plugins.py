"""Metrics of diversity and an embedder of a user's own module, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kat.diversity.metrics import METRICS
from kat.embedding.registry import EMBEDDERS
from kat.embedding.store import load_embeddings
from kat.records import EmbeddingsRecord
from tests.helpers.checkpoints import make_checkpoints, write_prompts_and_weights
from tests.helpers.files import read_json, read_rows
from tests.helpers.plugins import forget, forgotten_afterwards
from tests.helpers.records import mismatches

pytestmark = pytest.mark.usefixtures("one_thread")

PLUGIN = '''
import torch

from kat.diversity.metrics import Ratio, register_completion_metric, register_diversity_metric
from kat.embedding.pooling import unit_rows
from kat.embedding.registry import register_embedder


@register_diversity_metric("distinct_texts", label="distinct texts", higher_is_more_diverse=True,
                           definition="number of different texts, from 1 to n")
def distinct_texts(texts):
    return len(set(texts.strings))


@register_completion_metric("spaces", label="spaces", higher_is_more_diverse=None, definition="spaces per text",
                            counts=True)
def spaces(prompt):
    return Ratio(sum(text.count(" ") for text in prompt.strings), len(prompt.strings))


@register_embedder("letters")
class Letters:
    """Counts of characters in `size` classes."""

    max_tokens = 1000

    def __init__(self, inputs, *, size: int = 32):
        self.size = size

    def lengths(self, texts):
        return [len(text) for text in texts]

    def embed(self, texts):
        letters = [torch.tensor([ord(character) % self.size for character in text]) for text in texts]
        return unit_rows(torch.stack([torch.bincount(each, minlength=self.size) for each in letters]))
'''
SMALL = ["model=tiny_random", "plugins=[mine]", "embedder=letters"]
COMPARE = [*SMALL, "task=diversity", "a=runs/one", "b=runs/two", "prompts=12", "num_generations=3",
           "max_completion_length=5", "held_out=0.5", "weights_file=null"]  # fmt: skip
REPORT = Path("outputs/diversity/one_vs_two")
OUT = Path("outputs/kat/embeddings.pt")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return make_checkpoints(tmp_path_factory.mktemp("models"))


@pytest.fixture
def plugin(tmp_path, monkeypatch, models):
    """The file of the module, in a working folder with prompts and the runs one and two."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path / "runs")
    write_prompts_and_weights(tmp_path / "outputs" / "kat")
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN, encoding="utf-8")
    with forgotten_afterwards(tmp_path):
        yield path


def change(plugin: Path, old: str, new: str) -> None:
    content = plugin.read_text(encoding="utf-8")
    assert old in content
    plugin.write_text(content.replace(old, new), encoding="utf-8")
    forget(plugin.stem)


def rows_of(result: dict, metric: str, form: str = "raw") -> dict[str, dict]:
    """Return the rows of a metric by level."""
    (comparison,) = [one for one in result["comparisons"] if one["form"] == form]
    return {row["level"]: row for row in comparison["rows"] if row["metric"] == metric}


@pytest.mark.slow
def test_a_plugins_metrics_are_compared_and_explained(cli, plugin):
    """The values agree with the texts, the direction is in the result, and a changed module is compared again."""
    status, printed, said = cli(*COMPARE)
    assert status == 0, said
    result = read_json(REPORT / "diversity.json")
    distinct = result["metrics"]["distinct_texts"]
    assert (distinct["label"], distinct["higher_is_more_diverse"]) == ("distinct texts", True)
    assert distinct["source"] == result["metrics"]["spaces"]["source"] is not None
    samples = read_rows(REPORT / "samples.jsonl")
    by_arm = {name: [row for row in samples if row["checkpoint"] == name] for name in ("one", "two")}
    prompts = sorted({row["prompt_id"] for row in samples})
    for arm, name in (("first", "one"), ("second", "two")):
        numbers = [len({row["text"] for row in by_arm[name] if row["prompt_id"] == prompt}) for prompt in prompts]
        assert rows_of(result, "distinct_texts")["within"][arm]["value"] == pytest.approx(np.mean(numbers))
        sets = [len({row["text"] for row in by_arm[name] if row["number"] == g}) for g in range(3)]
        assert rows_of(result, "distinct_texts")["across"][arm]["value"] == pytest.approx(np.mean(sets))
        total = sum(row["text"].count(" ") for row in by_arm[name])
        assert rows_of(result, "spaces")["each"][arm]["value"] == pytest.approx(total / 36)
        assert {one["label"]: one["totals"]["spaces"] for one in result["checkpoints"]}[name] == total
    assert "distinct texts within prompts (" in printed and "two is less diverse in" in printed
    page = (REPORT / "diversity.md").read_text()
    assert "- **distinct texts** (higher: more diverse): number of different texts, from 1 to n." in page
    assert "| not just X but Y | spaces |" in page and "embeddings from letters." in page

    assert "finished before" in cli(*COMPARE)[2]
    change(plugin, "len(set(texts.strings))", "-len(set(texts.strings))")
    status, _, said = cli(*COMPARE)
    assert status == 0 and "finished before" not in said and "one: 2 of 2 pieces are finished from before" in said
    again = read_json(REPORT / "diversity.json")
    old, new = (rows_of(each, "distinct_texts")["within"]["difference"] for each in (result, again))
    assert new == pytest.approx(-old) and new > 0
    assert rows_of(again, "ead") == rows_of(result, "ead")


@pytest.mark.slow
def test_a_verdict_needs_no_plugin(cli, plugin, monkeypatch):
    """The reports describe their metrics; reports with different metrics are refused."""
    short = [*COMPARE, "prompts=10", "num_generations=2", "max_completion_length=3"]
    assert cli(*short)[0] == 0
    result = read_json(REPORT / "diversity.json")
    copies = {"first": result, "second": {**result, "checkpoints": [
        {**one, "weights": f"other {one['weights']}"} for one in result["checkpoints"]
    ]}}  # fmt: skip
    for name, content in copies.items():
        Path(name).mkdir()
        Path(name, "diversity.json").write_text(json.dumps(content))
    for name in ("distinct_texts", "spaces"):
        monkeypatch.delitem(METRICS.things, name)  # put back into a dictionary that the fixture has thrown away
    status, printed, said = cli("task=verdict", "reports=[first,second]")
    assert status == 0, said
    assert "distinct texts within prompts (" in printed
    found = read_json("outputs/verdict/one_vs_two/verdict.json")
    assert found["metrics"] == result["metrics"]
    assert "| distinct texts |" in Path("outputs/verdict/one_vs_two/verdict.md").read_text()

    assert cli(*[word for word in short if "plugin" not in word and "embedder" not in word], "out=third")[0] == 0
    status, _, said = cli("task=verdict", "reports=[first,third]")
    assert status == 1 and "first and third have different metrics" in said


def test_a_metric_without_a_finite_number_is_an_error(cli, plugin):
    change(plugin, "return len(set(texts.strings))", "return float('nan')")
    status, _, said = cli(*COMPARE)
    assert status == 1
    assert "diversity metric distinct_texts: returned nan instead of one finite number; fix mine.distinct_texts" in said


@pytest.mark.slow
def test_a_plugins_embedder_embeds_and_retrieves(cli, plugin, monkeypatch):
    """Its settings and its module decide whether embeddings are made again."""
    command = ["task=embed", *SMALL, "embedder.size=16"]
    status, _, said = cli(*command)
    assert status == 0, said
    record = read_json(OUT.with_suffix(".json"))
    assert mismatches(EmbeddingsRecord, record) == []
    source = EMBEDDERS.source_digest("letters")
    assert record["embedder"] == {
        "embedder": "letters", "text": "plain-1", "dtype": "float32", "settings": {"size": 16}, "source": source,
    }  # fmt: skip
    assert (record["model"], record["n"], record["dim"], record["max_tokens"]) == (None, 80, 16, 1000)
    first = load_embeddings(OUT)[1]
    counts = torch.bincount(torch.tensor([ord(c) % 16 for c in "what is number 0 of 0?"]), minlength=16).float()
    assert torch.allclose(first[0], counts / counts.norm())

    status, printed, said = cli("task=retrieve", *SMALL, "embedder.size=16", "query=what is number 7 of 49?", "top_k=1")
    assert status == 0 and printed.split()[1] == "1.0000" and "what is number 7 of 49?" in printed, said
    status, _, said = cli("task=retrieve", *SMALL, "query=x")
    assert status == 1 and "embeddings.pt was made with embedder.size=16, so the query" in said
    assert "(embedder=letters, dtype=float32, embedder.size=16, path or full" in said
    with monkeypatch.context() as patch:  # as in a new process without plugins=
        patch.setattr(EMBEDDERS, "things", {name: kind for name, kind in EMBEDDERS.items() if name != "letters"})
        status, _, said = cli("task=retrieve", "model=tiny_random", "query=x")
    assert status == 1 and "was made with embedder=letters, embedder.size=16, so the" in said, said
    assert "embedder.size=16, plugins=[MODULE] with the module that registers it, path" in said

    assert "finished before" in cli(*command)[2]
    change(plugin, "ord(character) %", "3 * ord(character) %")
    status, _, said = cli("task=retrieve", *SMALL, "embedder.size=16", "query=x")
    assert status == 1 and "was made with an earlier version of the embedder's module, so" in said
    assert "finished before" not in cli(*command)[2]
    assert not torch.equal(load_embeddings(OUT)[1], first)
    assert (OUT.parent / "replaced" / f"embeddings.{record['key']}.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedder.size=wide"], "embedder.size=wide: expected a whole number"),
        (["embedder.size=2.5"], "embedder.size=2.5: expected a whole number"),
        (["embedder.width=3"], "embedder.width=3: no such setting; embedder=letters has embedder.size\n"),
        (["embedder.name=none"], "embedder=none: unknown; use one of file, hidden, logits, sentence, letters"),
    ],
)
def test_settings_of_a_plugins_embedder_are_checked(cli, plugin, arguments, message):
    status, _, said = cli("task=embed", *SMALL, *arguments)
    assert status == 1 and message in said and "Traceback" not in said, said


def test_an_embedder_without_defaults_needs_a_file(cli, plugin):
    change(plugin, "size: int = 32", "size: int")
    status, _, said = cli("task=embed", *SMALL)
    assert status == 1 and "embedder=letters: its setting size has no default; write size=VALUE in the" in said
