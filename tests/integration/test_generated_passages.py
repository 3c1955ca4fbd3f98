"""Generated passages in a training run, and in a file of their own."""

from __future__ import annotations

import json

import pytest

from latentwire.data.examples import DataSpec, choose_examples, load_data
from latentwire.data.fingerprints import fingerprint
from latentwire.data.generator import GeneratedSpec
from latentwire.data.template_file import load_templates
from latentwire.latent_training.passages import PassageSpec, load_latent_data
from tests.helpers.files import read_json

RUN = ["task=latent", "model=tiny_random", "device=cpu", "dtype=float32", "adapter_hidden=16", "samples=24", "shots=1",
       "encoder=bottleneck", "d_z=8", "loss=reconstruction", "epochs=1", "out=run"]  # fmt: skip


@pytest.fixture
def made(tmp_path, cli):
    """A file of task=passages with 30 passages, and what the command printed."""
    status, out, err = cli("task=passages", "generated=30", "seed=2", "device=cpu", "out=made")
    assert status == 0, err
    return tmp_path / "made" / "passages.json", out


def test_the_file_is_read_as_it_was_generated(made):
    path, out = made
    examples = load_data(DataSpec("file", "file", path=str(path))).train
    expected = [example for group in GeneratedSpec(30).examples(2) for example in group]
    assert examples == expected
    shown = {example.context for example in expected if example.context in out}
    assert len(shown) == 3 and f"{expected[0].question} {expected[0].answers[0]}" in out
    for article in read_json(path)["data"]:
        [paragraph] = article["paragraphs"]
        for question in paragraph["qas"]:
            [answer] = question["answers"]
            assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generated=0"], "generated=0: must be at least 1 passage"),
        (["templates=nothing.yaml"], "templates=nothing.yaml: cannot be read"),
    ],
)
def test_a_bad_setting_is_explained(cli, tmp_path, arguments, message):
    status, _, err = cli("task=passages", "device=cpu", "out=made", *arguments)
    assert status == 1 and message in err
    assert not (tmp_path / "made").exists()


def latent_data(generated, samples=24, extra="", seed=0, shots=1):
    spec = PassageSpec(samples, None, 0.1, shots, 3)
    return load_latent_data(DataSpec("short_qa", "short_qa"), extra, spec, seed, GeneratedSpec(generated))


def test_generated_passages_come_last_and_are_never_held_out():
    """`samples` limits the other passages alone, and the held-out passages stay the same."""
    without, data = latent_data(0), latent_data(50)
    texts = [group[0].context for group in GeneratedSpec(50).examples(0)]
    assert [passage.text for passage in data.train[-50:]] == texts and data.generated == 50
    assert data.train[:-50] == without.train and data.held_out == without.held_out
    assert sum(len(passage.questions) for passage in without.train) == 24


def test_generated_passages_of_other_data_are_skipped(made):
    """Passages that the extra file has are duplicates."""
    path, _ = made
    data = latent_data(40, samples=10_000, extra=str(path), seed=2)
    assert data.counts["passages twice there"] == 30 and data.generated == 10


def test_generated_passages_of_an_evaluation_are_skipped(made):
    path, _ = made
    data = DataSpec("file", "file", path="", shots_path="")
    data.path, data.shots_path = str(path), str(path)
    shots, _ = choose_examples(load_data(data), 1, 1, 3, 2)
    found = load_latent_data(data, "", PassageSpec(10_000, None, 0.3, 1, 3), 2, GeneratedSpec(30))
    trained = [fingerprint(passage.text) for passage in found.train]
    assert len(set(trained)) == len(trained) and found.generated == 0
    assert fingerprint(shots[0][0].context) not in trained
    assert not set(trained) & {fingerprint(passage.text) for passage in found.held_out}


@pytest.mark.slow
def test_generated_passages_are_in_counts_and_identity(trains, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(load_templates().path.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert trains(*RUN)[0] == 0
    for change in (["generated=7"], ["generated=7", "templates=mine.yaml"]):
        assert trains(*RUN, *change)[0] == 1
        assert trains(*RUN, *change, "force=true")[0] == 0
        counts = json.loads((tmp_path / "run" / "result.json").read_text())["counts"]
        assert counts["generated_passages"] == 7
        assert counts["train_passages"] > 7
