"""Folders of runs: arms from configs, runs that do not count, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kat.collapse.experiment import facts_of, read_experiment
from kat.collapse.measures import AnswerRules
from kat.collapse.runs import arm_in, find_runs, missing_runs
from kat.data.prompts import Prompt
from latentwire.harness.errors import UserError
from tests.helpers.collapse_runs import Experiment, write_experiment, write_run
from tests.helpers.files import read_json, read_rows, write_rows

RULES = AnswerRules(0.5, 0.6)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "one"
    arms = {"uniform": 3.0, "density": 2.0, "entropy": 1.0}
    write_experiment(Experiment(folder, arms, seeds=(0, 1, 2), control_seeds=(9,), prompts=6, generations=4,
                                steps=(0, 20)))  # fmt: skip
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "one"))


@pytest.mark.parametrize(
    ("sampler", "grpo", "more", "arm"),
    [
        ("uniform", {}, {}, "uniform"),
        ("density", {"entropy_coef": 0.0}, {}, "density"),
        ("uniform", {"entropy_coef": 0.01}, {}, "entropy"),
        ("uniform", {"reward_funcs": ["valid", "kat.grpo.rewards:novelty"]}, {}, "novelty"),
        ("uniform", {"reward_funcs": ["novelty"], "entropy_coef": 0.1}, {}, "entropy+novelty"),
        ("density", {"entropy_coef": 0.01}, {}, "density+entropy"),
        ("uniform", {"entropy_coef": 0.01}, {"arm": "uniform_again"}, "uniform_again"),
    ],
)
def test_the_arm_follows_from_fields_of_the_config(sampler, grpo, more, arm):
    config = {"name": "novelty_density_seed3", "sampler": {"name": sampler}, "grpo": grpo, **more}
    assert arm_in(config) == arm


def run_of(folder: Path, arm: str, seed: int) -> Path:
    return next(run.folder for run in find_runs(folder) if (run.arm, run.seed) == (arm, seed))


def test_finished_runs_are_measured_by_arm_and_seed(folder):
    found = read_experiment(folder, "density", RULES, [9])
    assert {arm: sorted(runs) for arm, runs in found.runs.by_arm.items()} == {
        "uniform": [0, 1, 2], "density": [0, 1, 2], "entropy": [0, 1, 2],
    }  # fmt: skip
    assert [run.seed for run in found.runs.controls] == [9] and found.runs.again == {}
    assert {state["status"] for state in found.states} == {"finished"} and len(found.states) == 10
    assert found.warnings == []
    run = found.runs.by_arm["uniform"][0]
    assert run.steps == (0, 20) and len(run.facts) == 6 and not run.exact
    assert sum(run.exposure.values()) == pytest.approx(1)


def test_runs_that_do_not_count_are_listed_with_a_reason(folder):
    (run_of(folder, "density", 0) / "result.json").unlink()
    failed = run_of(folder, "entropy", 1)
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"format": 2, "error": "out of memory; use less"}))
    damaged = run_of(folder, "entropy", 2)
    with (damaged / "completions.jsonl").open("a") as file:
        file.write('{"step": 30}\n')
    shutil.rmtree(run_of(folder, "entropy", 0))
    found = read_experiment(folder, "density", RULES, [9])
    others = {(state["arm"], state["seed"]): state for state in found.states if state["status"] != "finished"}
    assert {key: state["status"] for key, state in others.items()} == {
        ("density", 0): "unfinished", ("entropy", 1): "failed", ("entropy", 2): "damaged", ("entropy", 0): "missing",
    }  # fmt: skip
    assert others["entropy", 1]["reason"] == "out of memory; use less"
    assert "line 13, lacks completions, id, prompt" in others["entropy", 2]["reason"]
    assert sorted(found.runs.by_arm["density"]) == [1, 2] and "entropy" not in found.runs.by_arm


def test_exact_values_replace_estimates(folder):
    run = run_of(folder, "density", 1)
    rows = [{"step": row["step"], "id": row["id"], "validity": 0.5, "entropy": 1.25, "distinct": 3.0}
            for row in read_rows(run / "completions.jsonl")]  # fmt: skip
    write_rows(run / "held_out_truth.jsonl", rows)
    write_rows(run_of(folder, "density", 2) / "truth.jsonl", [{"id": row["id"], "entropy": 9.0} for row in rows])
    runs = read_experiment(folder, "density", RULES, []).runs.by_arm["density"]
    assert [run.exact for run in runs.values()] == [False, True, False]
    assert runs[1].curve("entropy_valid", "all") == pytest.approx([1.25, 1.25])
    assert runs[2].curve("entropy_valid", "all").max() < 3


def test_missing_runs_are_all_arms_by_all_seeds(folder):
    runs = [run for run in find_runs(folder) if (run.arm, run.seed) not in [("entropy", 2), ("uniform", 9)]]
    missing = [(state["arm"], state["seed"]) for state in missing_runs(runs, [9])]
    assert missing == [("entropy", 2), ("uniform", 9)]


def test_models_and_replaced_runs_are_not_runs(folder):
    run = run_of(folder, "density", 1)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    shutil.copytree(run, folder / "replaced" / "old")
    assert len(find_runs(folder)) == 10


def test_a_prompts_file_that_changed_is_noticed(folder):
    path = folder / "prompts.jsonl"
    for run in find_runs(folder):
        config = read_json(run.folder / "config.json")
        (run.folder / "config.json").write_text(json.dumps({**config, "prompts_file": str(path)}))
    read_experiment(folder, "density", RULES, [])
    write_rows(path, [{**row, "valid": ["else"]} for row in read_rows(path)])
    with pytest.raises(
        UserError, match=r"0 seeds have finished runs of both uniform and density.* is not the file that"
    ):
        read_experiment(folder, "density", RULES, [])


def test_another_base_model_is_a_warning(folder):
    path = run_of(folder, "density", 1) / "completions.jsonl"
    rows = read_rows(path)
    rows[0]["completions"][0]["text"] = "something else"
    write_rows(path, rows)
    (warning,) = read_experiment(folder, "density", RULES, []).warnings
    assert warning.startswith("density, seed 1: before training the completions differ from uniform's")


def test_other_training_settings_are_refused(folder):
    path = run_of(folder, "density", 1) / "config.json"
    config = read_json(path)
    path.write_text(json.dumps({**config, "grpo": {**config["grpo"], "beta": 0.1}}))
    with pytest.raises(
        UserError, match=r"has grpo\.beta=0\.04 and .* grpo\.beta=0\.1, so their arms cannot be compared"
    ):
        read_experiment(folder, "density", RULES, [])


def test_two_runs_of_an_arm_and_seed_are_refused(folder):
    experiment = Experiment(folder, {"density": 2.0}, prompts=6, generations=4, steps=(0, 20))
    write_run(experiment, folder / "zz", "density", 1)
    with pytest.raises(UserError, match="both are arm density, seed 1; move one of them away"):
        find_runs(folder)
    (folder / "zz" / "result.json").unlink()  # an unfinished one does not count
    assert len(find_runs(folder)) == 11


def test_folders_without_enough_runs_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder; give the folder with the runs"):
        find_runs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no run of GRPO"):
        find_runs(tmp_path / "empty")
    with pytest.raises(UserError, match="0 seeds have finished runs of both uniform and oracle"):
        read_experiment(folder, "oracle", RULES, [])


def test_columns_of_the_prompts_give_facts():
    prompt = Prompt("p", [], "text", columns={"topic": 3, "topic_size": 7, "valid": ["a", "b"], "answer": "a"})
    facts = facts_of(prompt)
    assert (facts.topic, facts.topic_size, facts.valid) == (3, 7, frozenset({"a", "b"}))
    assert facts.references == ("a",)
    assert facts_of(Prompt("p", [], "text")).valid is None
    with pytest.raises(UserError, match="topic='x', topic_size=None: must be whole numbers"):
        facts_of(Prompt("p", [], "text", columns={"topic": "x"}))
    with pytest.raises(UserError, match="the prompt p has valid that are not texts"):
        facts_of(Prompt("p", [], "text", columns={"valid": [1]}))
