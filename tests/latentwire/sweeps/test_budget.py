"""Budgeted sweeps: first round, halvings, end within the time, and resuming."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from latentwire.evaluation import request, task
from latentwire.evaluation.setup import block_ends
from latentwire.harness import session
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.paths import CONF
from latentwire.harness.results import ResultStore, write_jsonl
from latentwire.reports import html
from latentwire.sweeps import schedule
from latentwire.sweeps.successive_halving import Contender, JobCost, RoundEnd, first_round, next_round, tie_order
from tests.helpers.files import read_json
from tests.helpers.programs import start
from tests.helpers.results import without_timings

A_SECOND = JobCost(0.0, 1.0)


@pytest.mark.parametrize(
    ("count", "first", "ends"),
    [(100, 4, [4, 8, 16, 32, 64, 100]), (8, 4, [4, 8]), (6, 4, [4, 6]), (3, 4, [3]), (100, 0, [100])],
)
def test_blocks_double(count, first, ends):
    assert block_ends(count, first) == ends


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (1249, None),  # 4 examples each need 1,000 s plus a quarter, one second more
        (1250, 4),
        (4999, 4),  # 8 examples would need 2 x 2,000 s plus a quarter
        (5000, 8),
        (10_000, 16),
        (24_999, 32),
        (25_000, 80),  # all examples, without halving
    ],
)
def test_the_first_round_leaves_time_for_two_halvings(seconds, count):
    if count is None:
        with pytest.raises(UserError, match=r"250 configurations on 4 examples each need about 20\.8 minutes here"):
            first_round(250, A_SECOND, seconds, 4, 80)
    else:
        assert first_round(250, A_SECOND, seconds, 4, 80) == count


def test_launching_a_job_costs_too():
    assert JobCost(2.0, 0.5).of(10, 4) == 40
    assert first_round(250, JobCost(8.0, 1.0), 5000, 4, 80) == 4


def group(scores, families=None):
    """Return contenders a, b, c, ... with these scores, all of one family unless families are given."""
    names = "abcdefghijkl"
    return [
        Contender(name, family, score) for name, family, score in zip(names, families or "f" * 12, scores, strict=False)
    ]


def after(num_examples, seconds_left, always=3, most=100):
    return RoundEnd(num_examples, most, 16, always, seconds_left)


def decide(standings, end):
    return next_round(standings, end, A_SECOND, "EM")


def test_the_better_half_of_each_source_is_kept():
    decided = decide({"text": group([0.1, 0.5, 0.4, 0.2, 0.0]), "noisy": group([0.0, 0.1])}, after(16, 1000))
    assert decided.samples == 32
    assert decided.kept == {"text": ["b", "c", "d"], "noisy": ["b"]}
    assert decided.why.startswith("the better half of the transforms of each source by EM on 16 examples, ")


def test_equal_scores_at_the_cut_are_all_kept():
    assert decide({"text": group([0.1, 0.5, 0.5, 0.5, 0.5, 0.0])}, after(16, 1e6)).kept == {
        "text": ["b", "c", "d", "e"]
    }
    assert decide({"text": group([0.0] * 4)}, after(16, 1e6)).kept == {"text": ["a", "b", "c", "d"]}


def test_the_best_of_each_family_is_kept():
    standings = {"text": group([0.9, 0.8, 0.7, 0.3, 0.2, 0.1], "ffffgg")}
    decided = decide(standings, after(16, 1e6))
    assert decided.kept == {"text": ["a", "b", "c", "e"]}
    assert "all equal ones and the best of each family continue to 32" in decided.why
    # Time for three: one of each family comes first, then the better ones. Time for one: the best.
    each = 16  # seconds
    some = decide(standings, after(16, (3 + 3) * each))
    assert some.kept == {"text": ["a", "b", "e"]}
    assert "the time allows 3 transforms of each source" in some.why and "one of each family among them" in some.why
    one = decide(standings, after(16, (3 + 1) * each))
    assert one.kept == {"text": ["a"]}
    assert "without 1 families that the time does not allow" in one.why


def test_less_time_keeps_fewer_and_none_ends_the_sweep():
    standings = {"text": group([i / 10 for i in range(8)]), "noisy": group([0.0] * 8)}
    # 16 more examples each cost 112 s for 3 fixed configurations and 2 + 2 contenders.
    decided = decide(standings, after(16, 112))
    assert decided.kept == {"text": ["h", "g"], "noisy": ["a", "b"]}
    assert "the time allows 2 transforms of each source" in decided.why
    assert decide(standings, after(16, 111.9)).kept["text"] == ["h"]
    ended = decide(standings, after(16, 79))
    assert ended.kept == {}
    assert ended.why == (
        "the budget is used up: 32 examples of one transform for each source need about 80 s more, 79 s are left"
    )


def test_no_decision_is_made_without_examples_after_it():
    """With 64 of 70 examples all continue, or none if the time does not suffice; with 64 of 80 half of them do."""
    standings = {"text": group([0.4, 0.3, 0.2, 0.1])}
    decided = decide(standings, after(64, 42, most=70))
    assert (decided.samples, decided.kept) == (70, {"text": ["a", "b", "c", "d"]})
    assert "would leave fewer than 16 examples" in decided.why
    ended = decide(standings, after(64, 41, most=70))
    assert ended.kept == {}
    assert "70 examples of each transform need about 42 s more, 41 s are left" in ended.why
    assert decide(standings, after(64, 1e6, most=80)).kept == {"text": ["a", "b"]}


def test_the_last_examples_end_the_sweep():
    assert decide({"text": group([1.0])}, after(64, 1e6)).samples == 100
    assert decide({"text": group([1.0])}, after(100, 1e6)).why == "all 100 examples are evaluated"


@pytest.mark.parametrize("seconds", [1e6, (3 + 2) * 16])
def test_equal_transforms_survive_equally_often(seconds):
    """Four transforms of one family and one distribution of F1: 28% zeros, 10% between, 62% ones.

    With the time for two of four, ties are decided at random, by the key of the sweep and not by its order.
    """
    names, survived = ["a", "b", "c", "d"], Counter()
    draws, sweeps = np.random.default_rng(0), 1500
    for number in range(sweeps):
        kinds = draws.choice(3, size=(4, 16), p=[0.28, 0.1, 0.62])
        scores = dict(zip(names, np.array([0.0, 0.5, 1.0])[kinds].mean(axis=1).round(9).tolist(), strict=True))
        contenders = [Contender(name, "f", scores[name]) for name in tie_order(names, str(number))]
        survived.update(decide({"text": contenders}, after(16, seconds)).kept["text"])
    shares = [survived[name] / sweeps for name in names]
    assert max(shares) - min(shares) < 0.06  # four standard errors
    assert min(shares) > 0.45
    if seconds < 1e6:
        assert sum(shares) == 2


GRIDS = "[{embed_transform:baseline},{embed_transform:rms_matching,target_scale:[0.8,1.0,1.2]}]"
SWEEP = ["-m", f"sweep.grids={GRIDS}", "embed_source=text,scaled", "model=tiny_random", "samples=80", "shots=1",
         "max_new_tokens=2", "min_clean_score=0"]  # fmt: skip
BY_SCALE = {0.8: 0.1, 1.0: 0.3, 1.2: 0.2}  # scores, because all scores of the tiny model are equal


@pytest.fixture
def exact_costs(monkeypatch):
    """Costs that do not depend on the machine: a second for each example, none for a launch."""

    monkeypatch.setattr(schedule, "measured_cost", lambda results, launches: A_SECOND)
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    real = schedule.within_budget

    def at_a_second_each(cfg, controls, jobs, launching, session):
        inner = real(cfg, controls, jobs, launching, session)
        answers = None
        while True:
            try:
                todo = next(inner) if answers is None else inner.send(answers)
            except StopIteration as end:
                return end.value
            answers = [result | {"job_sec": float(result["num_samples"])} for result in (yield todo)]

    monkeypatch.setattr(schedule, "within_budget", at_a_second_each)


@pytest.mark.slow
def test_a_budgeted_sweep_halves_and_resumes(cli, exact_costs, monkeypatch):
    """It reports what each halving left out, and how many examples decided it."""
    # 10 jobs: 16 examples each cost 160 s. Then 4 jobs always continue: both baselines, and the controls. Of 3 and 3
    # contenders, 2 and 2 continue (128 s), then 1 and 1 (192 s). 60 s are left.
    monkeypatch.setattr(html, "draw_all", lambda *arguments: [])  # no figures
    monkeypatch.setattr(
        schedule, "score_of_first", lambda store, result, *others: BY_SCALE[result["dials"]["target_scale"]]
    )
    real, left = task.evaluate, iter(range(11))

    def interrupting(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(task, "evaluate", interrupting)  # in the second round
    status, _, err = cli(*SWEEP, "budget_minutes=9")
    assert status == 130
    first_line = next(line for line in err.splitlines() if line.startswith("["))
    assert first_line.startswith("[1/1] baseline")  # the clean control alone measures the cost
    assert "round 2: " in err and "round 3: " not in err
    monkeypatch.setattr(task, "evaluate", real)
    status, out, err = cli(*SWEEP, "budget_minutes=9")
    assert status == 0, err
    assert err.count("(finished before)") == 2 + 1  # two were left out, and one had finished round 2
    summary = read_json("outputs/single/summary.json")
    budget = summary["budget"]
    assert summary["total_experiments"] == 8
    assert (budget["minutes"], budget["first"], budget["configurations"], budget["samples"]) == (9, 16, 8, 64)
    assert (budget["wanted"], budget["estimate"]) == (
        80, {"names": ["baseline"], "samples": 16, "seconds_per_example": 1.0},
    )  # fmt: skip
    assert "first estimate: 1.000 s an example, from 16 of baseline" in out
    assert "Incomplete matrix: at most 64 of 80 examples were evaluated, and 4 of 8 configurations" in out
    samples = {result["name"]: result["num_samples"] for result in summary["results"]}
    assert samples["baseline"] == samples["baseline@scaled117.0"] == 64
    assert samples["rms_scale1.0"] == samples["rms_scale1.0@scaled117.0"] == 64
    assert samples["rms_scale1.2"] == samples["rms_scale1.2@scaled117.0"] == 32
    assert samples["rms_scale0.8"] == samples["rms_scale0.8@scaled117.0"] == 16
    assert {control["num_samples"] for control in summary["controls"]} == {64}
    first, second = budget["halvings"]
    assert (first["samples"], second["samples"]) == (32, 64)
    assert (first["decided_on"], second["decided_on"]) == (16, 32)
    for halving, kept, left_out in ((first, [2, 2], [1, 1]), (second, [1, 1], [1, 1])):
        assert [len(group["kept"]) for group in halving["groups"]] == kept
        assert [len(group["left_out"]) for group in halving["groups"]] == left_out
    assert first["groups"][0]["left_out"] == ["rms_scale0.8"]
    assert budget["seconds_spent"] == 2 * 16 + 2 * 32 + 6 * 64
    assert budget["stopped"] == (
        "the budget is used up: 80 examples of one transform for each source need about 96 s more, 60 s are left"
    )
    assert budget["stopped"] in out
    assert "2 left out" in out
    for group in summary["analysis"]["groups"]:
        lower = [(row["name"], row["num_samples"]) for row in group["controls"]["lower"]]
        assert lower == [("control_empty", 64), ("control_random", 64)]  # controls are in no decision
        scored = {row["experiment"]: row["num_samples"] for row in group["ranking"]}  # on examples without a decision
        assert scored == {"baseline": 64, "rms_scale1.0": 32, "rms_scale1.2": 32, "rms_scale0.8": 16}
    assert " n=16 " in out
    assert not list(Path("outputs/single/replaced").glob("*"))
    # The same command again runs nothing and prints the same.
    written = {path: path.stat().st_mtime_ns for path in Path("outputs/single").glob("*.jsonl")}
    _, again, err = cli(*SWEEP, "budget_minutes=9")
    assert again == out
    assert err.count("(finished before)") == len(summary["results"]) + len(summary["controls"])
    assert {path: path.stat().st_mtime_ns for path in Path("outputs/single").glob("*.jsonl")} == written
    assert read_json("outputs/single/summary.json") == summary


def played(cfg, jobs, finished, calls=None):
    """Play the rounds of a sweep at a second an example, from finished results; return the plan.

    Args:
        cfg: Config with the budget and the folder of the plan.
        jobs: Jobs of the sweep, the empty context first.
        finished: Evaluated examples by name; grows.
        calls: Number of new results after which the sweep is interrupted.
    """
    left = iter(range(10**6 if calls is None else calls))
    playing = schedule.within_budget(cfg, jobs[:1], jobs[1:], 0.0, session.Session())
    answers = None
    while True:
        try:
            todo = next(playing) if answers is None else playing.send(answers)
        except StopIteration:
            return read_json(schedule.plan_path(Path(cfg.out)))
        answers = []
        for job in todo:
            name, asked = job.config.name, int(job.overrides[-1].removeprefix("num_examples="))
            if finished.get(name, 0) < asked:
                if next(left, None) is None:
                    return None
                finished[name] = asked
            count = finished[name]
            f1 = (len(name) * 7 + count) % 10 / 10  # the best transform differs between 16 and 32 examples
            found = {name: {"mean": mean, "interval": (0.0, 1.0)} for name, mean in (("f1", f1), ("em", 1 - f1))}
            family = job.config.embed_transform.name
            answers.append({"name": name, "family": family, "status": "ok", "scores": found, "num_samples": count,
                            "time_sec": float(count), "job_sec": float(count)})  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_sweep_follows_the_same_plan(tmp_path, monkeypatch):
    """Another budget gets another plan; the old plan is kept."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    transforms = [["embed_transform=baseline"], ["embed_transform=random_interpolation"]]
    transforms += [["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.1, 0.25, 1.125)]
    asked = [["control=empty"]]
    asked += [[*transform, f"embed_source={source}"] for transform in transforms for source in ("text", "scaled")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=80", *one])) for one in asked]

    def of(folder, minutes):
        return OmegaConf.merge(jobs[0].config, {"budget_minutes": minutes, "out": str(tmp_path / folder)})

    finished: dict[str, int] = {}
    launches, real = [], schedule.measured_cost
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "measured_cost", lambda results, count: launches.append(count) or real(results, count))
        whole = played(of("whole", 10.5), jobs, finished)
    assert launches == [1, 1, 2, 3]  # the probe, then one more launch in each round
    # Of 11 jobs 4 always continue; of 3 and 4 contenders 2 and 3 continue, then 1 and 2: random tokens are a family.
    assert [(halving["samples"], halving["decided_on"]) for halving in whole["halvings"]] == [(32, 16), (64, 32)]
    assert sorted(finished.values()) == [16] * 2 + [32] * 2 + [64] * 7
    assert whole["seconds_spent"] == sum(finished.values())
    for calls in (0, 5, 11, 14, 22):  # of 1 + 10 + 9 + 7
        again: dict[str, int] = {}
        cfg = of(f"interrupted{calls}", 10.5)
        assert played(cfg, jobs, again, calls) is None
        assert played(cfg, jobs, again) == whole
        assert again == finished
    assert played(of("whole", 10.5), jobs, finished, 0) == whole  # a repetition evaluates nothing
    more = played(of("whole", 90), jobs, finished)
    assert (more["stopped"], more["halvings"]) == ("all 80 examples are evaluated", [])
    assert set(finished.values()) == {80}
    assert read_json(tmp_path / f"whole/replaced/plan.{whole['key']}.json") == whole


@pytest.mark.parametrize(("metric", "best"), [("f1", 0.7), ("em", 0.1)])
def test_rounds_rank_by_the_primary_metric(tmp_path, monkeypatch, metric, best):
    """In `played`, the EM of a configuration is 1 - F1."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    asked = [["control=empty"], ["embed_transform=baseline"]]
    asked += [["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.1, 0.25, 1.125)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=80", *one])) for one in asked]
    first = {job.config.experiment: (len(job.config.name) * 7 + 16) % 10 / 10 for job in jobs[2:]}  # F1 on 16 examples
    assert (min(first.values()), max(first.values())) == (0.1, 0.7)
    given = {"budget_minutes": 3, "out": str(tmp_path), "primary_metric": metric}
    plan = played(OmegaConf.merge(jobs[0].config, given), jobs, {})
    (group,) = plan["halvings"][0]["groups"]
    assert first[group["kept"][0]] == best
    assert f"transforms of each source by {metric.upper()} on 16 examples" in plan["halvings"][0]["why"]


def equal_jobs(count):
    """Return the empty context, the baseline, and transforms that `played` scores alike."""
    asked = [["control=empty"], ["embed_transform=baseline"]]
    asked += [["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.1, 0.2, 0.3, 0.4)[:count]]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [Job(one, compose("run", overrides=["model=tiny_random", "samples=80", *one])) for one in asked]


def test_the_key_of_a_sweep_decides_between_equal_ones(tmp_path, monkeypatch):
    """There is time for one of four: 6 x 16 s, then 3 x 16 s."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    jobs, kept = equal_jobs(4), set()
    for number in range(12):
        budget = {"budget_minutes": (150 + number / 100) / 60, "out": str(tmp_path / str(number))}
        plan = played(OmegaConf.merge(jobs[0].config, budget), jobs, {})
        (group,) = plan["halvings"][0]["groups"]
        assert len(group["kept"]) == 1 and plan["halvings"][0]["decided_on"] == 16
        kept.update(group["kept"])
    assert len(kept) > 1


def test_a_round_that_leaves_none_out_decided_on_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    jobs = equal_jobs(2)
    plan = played(OmegaConf.merge(jobs[0].config, {"budget_minutes": 3, "out": str(tmp_path)}), jobs, {})
    assert [(halving["samples"], halving["decided_on"]) for halving in plan["halvings"]] == [(32, 0)]


def test_auto_is_never_left_out(tmp_path, monkeypatch):
    """It does not compete, although four of the others score as high or higher."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    asked = [["control=empty"], ["embed_transform=baseline"], ["embed_transform=auto"]]
    asked += [["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.1, 0.2, 0.25, 1.125)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=80", *one])) for one in asked]
    finished: dict[str, int] = {}
    plan = played(OmegaConf.merge(jobs[0].config, {"budget_minutes": 4, "out": str(tmp_path)}), jobs, finished)
    groups = [group for halving in plan["halvings"] for group in halving["groups"]]
    assert groups and not [group for group in groups if "auto" in [*group["kept"], *group["left_out"]]]
    assert finished["auto"] == max(finished.values()) > min(finished.values())


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, [0.25, 0.5]), (False, [0.75, 0.5])])
def test_a_round_is_scored_on_its_first_examples(tmp_path, higher_is_better, expected):
    """By the primary metric, oriented so that higher is better."""
    store, metric = ResultStore(tmp_path), {"name": "wer", "label": "WER", "higher_is_better": higher_is_better}
    rows = [
        {"id": "q", "question": "", "references": [], "prediction": "", "f1": 1.0, "em": 0.0, "scores": {"wer": wer}}
        for wer in (0.5, 0.0, 1.0, 0.5)
    ]
    write_jsonl(store.predictions_path("a"), rows)
    result = {"name": "a", "num_samples": 4, "scores": {"wer": {"mean": 0.5, "interval": (0.0, 1.0)}}}
    assert [schedule.score_of_first(store, result, count, metric) for count in (2, 4)] == expected


@pytest.mark.slow
def test_the_first_estimate_includes_launching_jobs(cli, exact_costs, monkeypatch):
    real = schedule.control_jobs

    def slow(jobs, compose):
        time.sleep(1)
        return real(jobs, compose)

    monkeypatch.setattr(schedule, "control_jobs", slow)
    # 16 examples each cost 160 s, 200 s with a quarter more, and over 206 s with half a second for each of 10 jobs: the
    # second of two controls.
    status, _, err = cli(*SWEEP, "budget_minutes=3.4")
    assert status == 1
    assert "10 configurations on 16 examples each need about" in err


@pytest.mark.slow
def test_an_extended_result_equals_a_direct_one(cli):
    small = ["model=tiny_random", "samples=40", "shots=1", "max_new_tokens=2", "embed_source=noisy"]
    for asked in (16, 32, 40):
        assert cli(*small, f"num_examples={asked}", "out=grown")[0] == 0
    assert cli(*small, "num_examples=40", "out=whole")[0] == 0
    grown, whole = (read_json(f"{folder}/baseline@noisy0.0dB.json") for folder in ("grown", "whole"))
    for result in (grown, whole):
        assert result["timing"]["decoded"] + result["timing"]["reused"] == 40
        for key in ("time_sec", "job_sec", "timing", "config"):
            del result[key]
    assert grown == whole
    rows = [Path(f"{folder}/baseline@noisy0.0dB.predictions.jsonl").read_bytes() for folder in ("grown", "whole")]
    assert rows[0] == rows[1]
    assert not list(Path("grown/replaced").glob("*"))
    _, _, err = cli(*small, "num_examples=16", "out=grown")
    assert "n=40  (finished before)" in err
    assert "num_examples=5: must be the end of a block" in cli(*small, "num_examples=5", "out=new")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "sweep=smoke", "budget_minutes=0"], "budget_minutes=0: must be above 0"),
        (["-m", "sweep=smoke", "budget_minutes=much"], "budget_minutes=much: expected a number of minutes"),
        (["-m", "sweep=smoke", "budget_minutes=1", "force=true"], "force=true: a budgeted sweep extends its own"),
        (["-m", "control=clean,empty", "budget_minutes=1"], "this sweep has only controls"),
        (["budget_minutes=1"], "limits a sweep; add -m"),
        (["-m", "sweep=smoke", "budget_minutes=0.0001", "samples=4"], "raise the budget, or choose fewer"),
    ],
)
def test_invalid_budgets_are_refused(cli, arguments, message):
    status, out, err = cli(*arguments, "model=tiny_random", "shots=1")
    assert status == 1
    assert message in err
    assert out == ""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_budgeted_sweep_resumes_its_plan(cli, tmp_path):
    sweeping = ["-m", "embed_transform=baseline,rms_matching", "embed_source=scaled", "model=tiny_random", "samples=20",
                "shots=1", "max_new_tokens=2", "min_clean_score=0", "budget_minutes=30"]  # fmt: skip
    # The budget suffices for all five jobs, so the plan does not depend on times.
    out = tmp_path / "killed"
    killed = start("run", *sweeping, "out=killed", folder=tmp_path)
    killed.kill_when(lambda: len(list(out.glob("*.predictions.jsonl"))) >= 3)
    plan = read_json(out / "plan.json")
    results = {path: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "plan.json"}
    kept = {path: written for path, written in results.items() if read_json(path)["num_samples"] == 20}
    assert len(kept) >= 2 and not (out / "summary.json").exists()
    status, _, err = cli(*sweeping, "out=killed")
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished results are not run again
    gone_on = read_json(out / "plan.json")
    assert (gone_on["key"], gone_on["first"], gone_on["estimate"]) == (plan["key"], plan["first"], plan["estimate"])
    assert gone_on["seconds_spent"] >= sum(read_json(path)["job_sec"] for path in kept)  # the plan counts their cost
    assert gone_on["stopped"] == "all 20 examples are evaluated"
    assert cli(*sweeping, "out=whole")[0] == 0
    summaries = []
    for folder in ("whole", "killed"):
        summary = without_timings(read_json(tmp_path / folder / "summary.json"))
        for key in ("seconds_spent", "seconds_per_example", "estimate"):
            del summary["budget"][key]
        summaries.append(summary)
    assert summaries[0] == summaries[1]


def test_costs_of_a_job_and_of_an_example():
    results = [
        {"num_samples": 8, "time_sec": 4.0, "job_sec": 7.0},
        {"num_samples": 8, "time_sec": 12.0, "job_sec": 13.0},
    ]
    assert schedule.measured_cost(results, 1) == JobCost(2.0, 1.0)
    assert schedule.measured_cost(results, 2) == JobCost(1.0, 1.0)


def test_a_lap_includes_all_uncounted_seconds(monkeypatch):
    times = iter([10.0, 10.0, 12.5, 13.0, 14.0])
    monkeypatch.setattr(session.time, "monotonic", lambda: next(times))
    own = session.Session(lap_started=9.0)
    assert pickle.loads(pickle.dumps(session.Session(lap_started=-1.0))).lap_started == 10.0  # another process's clock
    assert [own.lap(count=count) for count in (False, True, False, True)] == [1.0, 3.5, 0.5, 1.5]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["seed=1", "data=file", "max_new_tokens=3", "version"])
def test_a_plan_depends_on_settings_that_affect_results(change, tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text(
        '{"id": "q", "context": "Number one lives here.", "question": "Who?", "answers": "Number one"}'
    )
    state = accelerator_state("cpu")

    def key(*overrides: str) -> str:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("run", overrides=["model=tiny_random", "samples=20", f"out={tmp_path}", *overrides])
        job = Job([], cfg)
        with_budget = OmegaConf.merge(cfg, {"budget_minutes": 5})
        return schedule.open_plan(with_budget, state, [job], 20)["key"]

    before = key()
    assert before == key("only=base*", "target_difference=0.1", "metrics=[em]")  # settings that decide no result
    assert before != key("primary_metric=em")  # by which the rounds rank
    if change == "version":
        monkeypatch.setattr(request.latentwire, "__version__", "9")
        assert key() != before
    else:
        assert key(change, *([f"path={tmp_path / 'mine.jsonl'}"] if change == "data=file" else [])) != before
