"""Budgeted sweeps: first round, halvings, end within the time, and resuming."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

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
from latentwire.sweeps.successive_halving import JobCost, first_round, next_round
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


def test_the_better_half_of_each_source_is_kept():
    standings = {
        "text": [("a", 0.1), ("b", 0.5), ("c", 0.5), ("d", 0.2), ("e", 0.0)],
        "noisy": [("a@n", 0.0), ("b@n", 0.0)],
    }
    decided = next_round(standings, 3, 4, 100, A_SECOND, 1000, "EM")
    assert decided.samples == 8
    assert decided.kept == {"text": ["b", "c", "d"], "noisy": ["a@n"]}  # of equal scores, the earlier one
    assert decided.why.startswith("the better half of the transforms of each source by EM on 4 examples continue to 8")


def test_less_time_keeps_fewer_and_none_ends_the_sweep():
    standings = {"text": [(str(i), i / 10) for i in range(8)], "noisy": [(f"n{i}", 0.0) for i in range(8)]}
    # 4 more examples each cost 28 s for 3 fixed configurations and 2 + 2 contenders.
    decided = next_round(standings, 3, 4, 100, A_SECOND, 28, "F1")
    assert decided.kept == {"text": ["7", "6"], "noisy": ["n0", "n1"]}
    assert "the best 2 of the transforms" in decided.why
    assert next_round(standings, 3, 4, 100, A_SECOND, 27.9, "F1").kept["text"] == ["7"]
    ended = next_round(standings, 3, 4, 100, A_SECOND, 19, "F1")
    assert ended.kept == {}
    assert ended.why == (
        "the budget is used up: 8 examples of one transform for each source need about 20 s more, 19 s are left"
    )


def test_the_last_examples_end_the_sweep():
    assert next_round({"text": [("a", 1.0)]}, 1, 64, 100, A_SECOND, 1e6, "F1").samples == 100
    assert next_round({"text": [("a", 1.0)]}, 1, 100, 100, A_SECOND, 1e6, "F1").why == "all 100 examples are evaluated"


SWEEP = ["-m", "embed_transform=baseline,rms_matching,nearest_k,random_interpolation", "embed_source=text,scaled",
         "model=tiny_random", "samples=20", "shots=1", "max_new_tokens=2", "min_clean_score=0"]  # fmt: skip


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
    """It reports what each halving left out."""
    # 9 jobs: 4 examples each cost 36 s; the clean control has 16 already. Then 4 jobs always continue: both baselines,
    # random tokens on text, the empty context. Of 2 and 3 contenders, 1 and 2 continue (24 s), then 1 and 1 (40 s).
    # 8 s are left.
    monkeypatch.setattr(html, "draw_all", lambda *arguments: [])  # no figures
    real, left = task.evaluate, iter(range(11))

    def interrupting(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(task, "evaluate", interrupting)  # in the second round
    status, _, err = cli(*SWEEP, "budget_minutes=2")
    assert status == 130
    first_line = next(line for line in err.splitlines() if line.startswith("["))
    assert first_line.startswith("[1/1] baseline")  # the clean control alone measures the cost
    assert "round 2: " in err and "round 3: " not in err
    monkeypatch.setattr(task, "evaluate", real)
    status, out, err = cli(*SWEEP, "budget_minutes=2")
    assert status == 0, err
    assert err.count("(finished before)") == 9 - 4 + 1  # round 2 lacked four; round 3 has the clean control
    summary = read_json("outputs/single/summary.json")
    budget = summary["budget"]
    assert summary["total_experiments"] == 8
    assert (budget["minutes"], budget["first"], budget["configurations"], budget["samples"]) == (2, 4, 8, 16)
    assert (budget["wanted"], budget["estimate"]) == (
        20, {"names": ["baseline"], "samples": 16, "seconds_per_example": 1.0},
    )  # fmt: skip
    assert "first estimate: 1.000 s an example, from 16 of baseline" in out
    assert summary["analysis"]["coverage"] == {"configurations": 8, "most": 16, "fewest": 4, "fewer": 3}
    assert "Incomplete matrix: at most 16 of 20 examples were evaluated, and 3 of 8 configurations" in out
    samples = {result["name"]: result["num_samples"] for result in summary["results"]}
    assert samples["baseline"] == samples["baseline@scaled117.0"] == 16
    assert samples["random_k3"] == 16
    assert sorted(samples.values()) == [4] * 2 + [8] + [16] * 5
    assert [control["num_samples"] for control in summary["controls"]] == [16]
    first, second = budget["halvings"]
    assert (first["samples"], second["samples"]) == (8, 16)
    for halving, kept, left_out in ((first, [1, 2], [1, 1]), (second, [1, 1], [0, 1])):
        assert [len(group["kept"]) for group in halving["groups"]] == kept
        assert [len(group["left_out"]) for group in halving["groups"]] == left_out
    assert [samples[name] for name in first["groups"][0]["left_out"]] == [4]
    assert budget["seconds_spent"] == 2 * 4 + 1 * 8 + 6 * 16
    assert budget["stopped"] == (
        "the budget is used up: 20 examples of one transform for each source need about 24 s more, 8 s are left"
    )
    assert budget["stopped"] in out
    assert "2 left out" in out
    for group in summary["analysis"]["groups"]:
        lower = [(row["name"], row["num_samples"]) for row in group["controls"]["lower"]]
        assert lower == [("control_empty", 16), ("random_k3", 16)]  # also if its own random tokens were left out
    assert " n=4 " in out
    assert not list(Path("outputs/single/replaced").glob("*"))
    # The same command again runs nothing and prints the same.
    written = {path: path.stat().st_mtime_ns for path in Path("outputs/single").glob("*.jsonl")}
    _, again, err = cli(*SWEEP, "budget_minutes=2")
    assert again == out
    assert err.count("(finished before)") == 9
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
            f1 = (len(name) * 7 + count) % 10 / 10  # the best transform differs between 4 and 8 examples
            found = {name: {"mean": mean, "interval": (0.0, 1.0)} for name, mean in (("f1", f1), ("em", 1 - f1))}
            answers.append({"name": name, "status": "ok", "scores": found, "num_samples": count,
                            "time_sec": float(count), "job_sec": float(count)})  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_sweep_follows_the_same_plan(tmp_path, monkeypatch):
    """Another budget gets another plan; the old plan is kept."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    transforms = ("baseline", "rms_matching", "nearest_k", "anchor_offset", "random_interpolation")
    asked = [["control=empty"]] + [
        [f"embed_transform={transform}", f"embed_source={source}"]
        for transform in transforms
        for source in ("text", "scaled")
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=20", *one])) for one in asked]

    def of(folder, minutes):
        return OmegaConf.merge(jobs[0].config, {"budget_minutes": minutes, "out": str(tmp_path / folder)})

    finished: dict[str, int] = {}
    launches, real = [], schedule.measured_cost
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "measured_cost", lambda results, count: launches.append(count) or real(results, count))
        whole = played(of("whole", 2.2), jobs, finished)
    assert launches == [1, 1, 2, 3]  # the probe, then one more launch in each round
    # Of 11 jobs 5 always continue; of 3 and 4 contenders 2 and 2 continue, then 1 and 1.
    assert [halving["samples"] for halving in whole["halvings"]] == [8, 16]
    assert sorted(finished.values()) == [4] * 3 + [8] * 2 + [16] * 6
    assert whole["seconds_spent"] == sum(finished.values())
    for calls in (0, 5, 11, 14, 18):  # of 1 + 10 + 7 + 5
        again: dict[str, int] = {}
        cfg = of(f"interrupted{calls}", 2.2)
        assert played(cfg, jobs, again, calls) is None
        assert played(cfg, jobs, again) == whole
        assert again == finished
    assert played(of("whole", 2.2), jobs, finished, 0) == whole  # a repetition evaluates nothing
    more = played(of("whole", 90), jobs, finished)
    assert (more["stopped"], more["halvings"]) == ("all 20 examples are evaluated", [])
    assert set(finished.values()) == {20}
    assert read_json(tmp_path / f"whole/replaced/plan.{whole['key']}.json") == whole


@pytest.mark.parametrize(("metric", "best"), [("f1", 0.9), ("em", 0.2)])
def test_rounds_rank_by_the_primary_metric(tmp_path, monkeypatch, metric, best):
    """In `played`, the EM of a configuration is 1 - F1."""
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    asked = [["control=empty"], ["embed_transform=baseline"]]
    asked += [["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.1, 0.25, 1.125)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=20", *one])) for one in asked]
    first = {job.config.experiment: (len(job.config.name) * 7 + 4) % 10 / 10 for job in jobs[2:]}  # F1 on four examples
    assert (min(first.values()), max(first.values())) == (0.2, 0.9)
    given = {"budget_minutes": 1, "out": str(tmp_path), "primary_metric": metric}
    plan = played(OmegaConf.merge(jobs[0].config, given), jobs, {})
    (group,) = plan["halvings"][0]["groups"]
    assert first[group["kept"][0]] == best
    assert f"transforms of each source by {metric.upper()} on 4 examples" in plan["halvings"][0]["why"]


def test_auto_is_never_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "lap", lambda self, *, count: 0.0)
    transforms = ("baseline", "rms_matching", "nearest_k", "anchor_offset", "auto")
    asked = [["control=empty"]] + [[f"embed_transform={transform}"] for transform in transforms]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        jobs = [Job(one, compose("run", overrides=["model=tiny_random", "samples=20", *one])) for one in asked]
    finished: dict[str, int] = {}
    played(OmegaConf.merge(jobs[0].config, {"budget_minutes": 1, "out": str(tmp_path)}), jobs, finished)
    assert (finished["auto"], finished["anchor_eps0.05"]) == (8, 4)  # both have the same F1 on four examples


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
        time.sleep(0.5)
        return real(jobs, compose)

    monkeypatch.setattr(schedule, "control_jobs", slow)
    # 4 examples each cost 36 s, 45 s with a quarter more, and over 50 s with half a second for each of 9 jobs.
    status, _, err = cli(*SWEEP, "budget_minutes=0.8")
    assert status == 1
    assert "9 configurations on 4 examples each need about" in err


@pytest.mark.slow
def test_an_extended_result_equals_a_direct_one(cli):
    small = ["model=tiny_random", "samples=20", "shots=1", "max_new_tokens=2", "embed_source=noisy"]
    for asked in (4, 8, 20):
        assert cli(*small, f"num_examples={asked}", "out=grown")[0] == 0
    assert cli(*small, "num_examples=20", "out=whole")[0] == 0
    grown, whole = (read_json(f"{folder}/baseline@noisy0.0dB.json") for folder in ("grown", "whole"))
    for result in (grown, whole):
        assert result["timing"]["decoded"] + result["timing"]["reused"] == 20
        for key in ("time_sec", "job_sec", "timing", "config"):
            del result[key]
    assert grown == whole
    rows = [Path(f"{folder}/baseline@noisy0.0dB.predictions.jsonl").read_bytes() for folder in ("grown", "whole")]
    assert rows[0] == rows[1]
    assert not list(Path("grown/replaced").glob("*"))
    _, _, err = cli(*small, "num_examples=8", "out=grown")
    assert "n=20  (finished before)" in err
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
