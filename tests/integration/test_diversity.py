"""The task diversity from the command line: different and equal checkpoints, a killed run, and refused settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kat.data.heldout import held_out
from kat.diversity import samples
from kat.diversity.plan import plan_comparison
from kat.training.model_folder import beyond_training, differing_settings, find_models
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from tests.helpers.checkpoints import make_checkpoints, write_prompts_and_weights
from tests.helpers.files import read_rows, write_rows
from tests.helpers.random import shifted

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ("model=tiny_random", "prompts=20", "num_generations=3", "max_completion_length=6", "held_out=0.5")
OUT = Path("outputs/diversity/one_vs_two")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The runs one, two and copy, see `make_checkpoints`."""
    return make_checkpoints(tmp_path_factory.mktemp("models"))


@pytest.fixture
def work(tmp_path, monkeypatch, models) -> Path:
    """A working folder with prompts, their weights and the runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path / "runs")
    write_prompts_and_weights(tmp_path / "outputs" / "kat")
    return tmp_path


def report(out: Path = OUT) -> dict:
    return json.loads((out / "diversity.json").read_text())


@pytest.mark.slow
def test_any_end_token_of_a_model_ends_a_completion(work, cli):
    """The generation config of each model names 205 end tokens; none of them is in the text of a completion."""
    ends = list(range(0, 2048, 10))
    for path in Path("runs").rglob("generation_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    assert cli("task=diversity", "a=runs/one", "b=runs/two", *SMALL)[0] == 0
    rows = [json.loads(line) for line in (OUT / "samples.jsonl").read_text().splitlines()]
    assert {row["ended"] for row in rows} == {True, False}
    assert not any(token in ends for row in rows for token in row["ids"])
    assert all(row["ended"] for row in rows if len(row["ids"]) < 6)


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.statistical
def test_a_collapsed_model_is_found_and_a_killed_run_resumes(work, cli, monkeypatch):
    command = ("task=diversity", "a=runs/one", "b=runs/two", *SMALL, "rare_share=0.5", "common_share=0.5",
               f"seed={shifted(0)}")  # fmt: skip
    status, printed, said = cli(*command)
    assert status == 0, said
    found = report()
    assert found["warnings"] == [] and found["prompts"]["sampled"] == 20
    assert said.count("the prompts that it was trained on are unknown") == 2  # these runs have no ledger
    comparisons = {(each["group"], each["form"]): each for each in found["comparisons"]}
    assert {group for group, _ in comparisons} <= {"all", "rare", "common"}
    rows = {(row["level"], row["metric"]): row for row in comparisons["all", "matched"]["rows"]}
    for name, way in (("ead", -1), ("self_bleu", 1), ("embedding_distance", -1), ("vendi", -1), ("token_entropy", -1)):
        row = rows["within", name]
        assert way * row["difference"] > 0 and row["p_holm"] < 0.05, name
    assert rows["within", "self_bleu"]["second"]["value"] > 0.8 > 0.2 > rows["within", "self_bleu"]["first"]["value"]
    assert rows["each", "policy_entropy"]["second"]["value"] < 0.5
    assert "two is less diverse in" in printed and printed.strip() == "\n".join(found["reading"])
    text = (OUT / "diversity.md").read_text()
    assert found["reading"][0] in text and "all prompts, lengths matched (n = 20)" in text
    assert (OUT / "diversity.png").read_bytes().startswith(b"\x89PNG")

    sampled = read_rows(OUT / "samples.jsonl")
    assert len(sampled) == 2 * 20 * 3
    assert all(held_out(row["prompt_id"], 0.5) for row in sampled)
    ended = {name: sum(row["ended"] for row in sampled if row["checkpoint"] == name) for name in ("one", "two")}
    assert max(ended.values()) < 30  # of 60
    assert (f"({ended['one'] / 60:.0%} of one did and {ended['two'] / 60:.0%} of two did), so the comparison covers "
            "only the beginnings of answers") in found["reading"][0]  # fmt: skip
    tokens = {each["label"]: each["tokens"] for each in found["checkpoints"]}
    assert tokens["one"] == sum(len(row["ids"]) for row in sampled if row["checkpoint"] == "one")
    assert all(len(row["entropy"]) == len(row["ids"]) + row["ended"] for row in sampled)

    # The state after a kill: the first model's first piece, half of its second, and a truncated line.
    lines = (OUT / "samples.jsonl").read_text().splitlines(keepends=True)
    (OUT / "samples.jsonl").write_text("".join(lines[:36]) + lines[36][:40])
    (OUT / "diversity.json").unlink()
    sizes, real = [], samples.sample

    def counted(model, prompts, *arguments, **options):
        sizes.append(len(prompts))
        return real(model, prompts, *arguments, **options)

    monkeypatch.setattr(samples, "sample", counted)
    status, _, said = cli(*command)
    assert status == 0, said
    assert sizes == [8, 4, 8, 8, 4] and "one: 1 of 3 pieces are finished from before" in said
    unlike = {"seconds", "git_commit"}
    again = report()
    assert {k: v for k, v in again.items() if k not in unlike} == {k: v for k, v in found.items() if k not in unlike}
    key = ("key", "prompt_id", "number")
    after = {tuple(row[name] for name in key): row for row in read_rows(OUT / "samples.jsonl")}
    assert after == {tuple(row[name] for name in key): row for row in sampled}

    before = (OUT / "diversity.json").stat().st_mtime_ns
    status, printed, said = cli(*command)
    assert status == 0 and "finished before" in said and printed.strip() == "\n".join(found["reading"])
    assert (OUT / "diversity.json").stat().st_mtime_ns == before and len(sizes) == 5
    old = {name: value for name, value in again.items() if name not in ("format", "metrics")}
    old["checkpoints"] = [{**one, **one.pop("totals")} for one in old["checkpoints"]]  # as version 0.2.0 wrote it
    (OUT / "diversity.json").write_text(json.dumps(old))
    status, printed, said = cli(*command)
    assert status == 0 and "finished before" in said and printed.strip() == "\n".join(found["reading"])


@pytest.mark.slow
def test_a_model_compared_with_itself_has_no_differences(work, cli):
    status, _, said = cli("task=diversity", "a=runs/one", "b=runs/copy", "others=[runs/two/model]", *SMALL,
                          "weights_file=null", "out=together")  # fmt: skip
    assert status == 0, said
    assert "one and copy have the same weights: a model is compared with itself" in said
    found = report(Path("together"))
    assert [each["label"] for each in found["checkpoints"]] == ["one", "copy", "two"]
    same = [row for each in found["comparisons"] if each["second"] == "copy" for row in each["rows"]]
    assert len(same) == 15 + 17
    assert all(row["difference"] == 0 and row["interval"] == [0, 0] and row["p_holm"] == 1 for row in same)
    assert [each["group"] for each in found["comparisons"]] == ["all"] * 4
    assert len(read_rows(Path("together/samples.jsonl"))) == 2 * 20 * 3  # equal models are sampled once
    assert {path.name for path in Path("together").glob("*.png")} == {"diversity_copy.png", "diversity_two.png"}
    assert "no difference is shown in any of the 15 metrics" in found["reading"][0]


def test_runs_that_differ_in_more_than_the_sampler_are_named(work):
    path = Path("runs/two/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "grpo": {"beta": 0.1}, "steps": 3}))
    assert differing_settings(json.loads(Path("runs/one/config.json").read_text()), json.loads(path.read_text())) == [
        "grpo.beta (0.04, 0.1)",
        "steps (-, 3)",
    ]


def test_completions_answer_the_template_of_the_runs(work):
    """A model without a run, such as a base model, answers the same prompts as the runs."""

    def record(folder: str, template: str | None) -> None:
        path = Path(f"runs/{folder}/config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "grpo": {"prompt_template": template}}))

    def planned(b: str) -> list[list[int]]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("run", overrides=["task=diversity", "a=runs/one", f"b={b}", *SMALL, "weights_file=null"])
        return plan_comparison(cfg, accelerator_state("cpu")).encoded

    shutil.copytree("runs/two/model", "plain")
    without = planned("plain")
    record("one", "{prompt} Be brief.")
    assert all(len(long) > len(short) for long, short in zip(planned("plain"), without, strict=True))
    with pytest.raises(UserError, match=r"one was trained with grpo.prompt_template='{prompt} Be brief.' and two with"):
        planned("runs/two")
    record("two", "{prompt} Be brief.")
    assert planned("runs/two") == planned("plain")


def test_longer_completions_than_trained_give_a_warning(work):
    path = Path("runs/two/config.json")
    path.write_text(json.dumps({"grpo": {"max_completion_length": 6}}))
    models = find_models({"a": "runs/one", "b": "runs/two"})
    (said,) = beyond_training(models, 7)
    assert said.startswith("two was trained on completions of at most 6 tokens and generates up to 7")
    assert beyond_training(models, 6) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["b="], "b: no checkpoint given; write b=FOLDER"),
        (["b=runs/three"], "b=runs/three: no such folder"),
        (["a=outputs/kat"], "a=outputs/kat: holds no model"),
        (["a=unfinished"], "this run is not finished"),
        (["a=empty"], "has no weights"),
        (["num_generations=1"], "num_generations=1: the diversity of a prompt's completions needs at least 2"),
        (["prompts=5"], "prompts=5: must be at least 10"),
        (["prompts=79"], "of the 80 prompts"),
        (["weights_file=none.jsonl"], "make it with: python run.py task=density"),
        (["held_out=0.6"], "trained with held_out=0.5, so it saw some of these prompts"),
        (["held_out=half"], "held_out=half: must be a share"),
        (["rare_share=0.8"], "rare_share=0.8"),
        (["temperature=0"], "temperature=0"),
        (["max_completion_length=5000"], "more than the context"),
        (["embedder=file", "path=x.pt"], "embedder=file: a file cannot embed completions"),
        (["out=runs/one/config.json"], "is a file; write out=FOLDER"),
        (["b=other"], "have different tokenizers"),
        (["b=seen"], "b=seen: was trained on 20 of the 20 prompts that are held out here"),
    ],
)
def test_invalid_comparisons_are_refused(work, cli, changes, message):
    Path("unfinished/checkpoints").mkdir(parents=True)
    shutil.copytree("runs/one", "empty")
    Path("empty/model/model.safetensors").unlink()
    if changes == ["b=seen"]:
        shutil.copytree("runs/two", "seen")
        drawn = [{"id": row["id"], "drawn": 1} for row in read_rows(Path("outputs/kat/prompts_all.jsonl"))]
        write_rows(Path("seen/ledger.jsonl"), drawn)
    if changes == ["b=other"]:
        shutil.copytree("runs/two", "other")
        path = Path("other/model/tokenizer.json")
        path.write_text(path.read_text().replace("<|end|>", "<|stop|>"))
        config = Path("other/model/tokenizer_config.json")
        config.write_text(config.read_text().replace("<|end|>", "<|stop|>"))
    status, _, said = cli("task=diversity", "a=runs/one", "b=runs/two", *SMALL, *changes)
    assert status == 1 and message in said, said
    assert "Traceback" not in said


def test_without_a_share_of_a_run_one_must_be_given(work, cli):
    found = find_models({"a": "runs/one/model", "b": "runs/two"})
    assert [model.held_out for model in found] == [0.5, 0.5]
    shutil.move("runs/one/model", "plain")
    alone = find_models({"a": "plain", "b": "plain"})
    assert [model.label for model in alone] == ["plain_a", "plain_b"]
    assert alone[0].held_out is None and alone[0].config is None
    status, _, said = cli("task=diversity", "a=plain", "b=plain", *SMALL, "held_out=null")
    assert status == 1 and "none of the checkpoints records which prompts its training held out" in said


def test_a_damaged_row_of_the_samples_is_an_error(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"key": "k", "prompt_id": "p", "number": 0}\nno json\n{"torn": ')
    file = samples.SampleFile(path)
    assert path.read_text().endswith("no json\n")
    with pytest.raises(UserError, match="line 2"):
        file.read("k")
