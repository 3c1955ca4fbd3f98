"""Order of a sweep: controls and configurations, all at once or in rounds within a budget. Main entry: `direct()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.analysis.controls import AUTO, BASELINE, RANDOM, oriented
from latentwire.encoders.checkpoint import about_latents
from latentwire.evaluation.metrics import shown_metric
from latentwire.evaluation.request import read
from latentwire.evaluation.setup import FIRST_BLOCK
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.grids import Job
from latentwire.harness.ownership import owned
from latentwire.harness.progress import log
from latentwire.harness.results import ResultStore, config_hash, write_json, writing
from latentwire.harness.session import Session
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec
from latentwire.records import (
    Budget,
    EvaluationResult,
    Halving,
    ScoredResult,
    ShownMetric,
    read_example_rows,
    read_record,
    succeeded,
)
from latentwire.sources.registry import SOURCES
from latentwire.sweeps.missing_controls import control_jobs, reads_clean_text
from latentwire.sweeps.scrambled import scrambled_jobs
from latentwire.sweeps.successive_halving import (
    Contender,
    JobCost,
    Round,
    RoundEnd,
    first_round,
    next_round,
    tie_order,
)

Rounds = Generator[list[Job], list[EvaluationResult], list[EvaluationResult]]
Standings = dict[str, list[Contender]]  # contenders of each source in the random order that decides ties

PLAN = "plan.json"
ALWAYS = (BASELINE, AUTO)  # families that are never left out
TIME_MODEL = (
    "seconds for each job and each of its examples, measured in this sweep: first on the clean control, then on the "
    "whole last round. Identical inputs are decoded once and cost little. The budget includes loading, saving and "
    "tracking, but not the scrambled control of each source and the analysis at the end"
)
BIAS = (
    "The transforms that continue score too high on the examples that decided it. So the scores of those that went on "
    "to the end are from the examples after the last decision. Transforms that were left out have fewer examples and "
    "wider intervals."
)


def direct(cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job], session: Session) -> Rounds:
    """Run the controls and configurations of a sweep, as a generator of the jobs to run next.

    Args:
        cfg: Config of the sweep.
        jobs: Configurations of the sweep.
        compose: Returns a job from command-line overrides.
        session: Session of the sweep.

    Returns:
        Results of the configurations, then of the controls.

    Raises:
        UserError: The budget is not positive or too small. Also, before any control runs: a trained encoder is missing
            or belongs to another model.
    """
    for job in jobs:
        source = job.config.embed_source
        if (folder := SOURCES[source.name].encoder_folder(source.dials)) is not None:
            about_latents(folder, typed(ModelSpec, job.config.model, "model.").identity())
    began = time.monotonic()
    controls = control_jobs(jobs, compose)
    if cfg.budget_minutes is not None:
        launching = (time.monotonic() - began) / max(1, len(controls))  # mostly the time to compose a config
        with owned(Path(str(cfg.out)), PLAN, accelerator_state(cfg.device)):  # one command decides at a time
            results = yield from within_budget(cfg, controls, jobs, launching, session)
    elif session.workers > 1:
        found = yield [*controls, *jobs]  # at once, so that no worker waits for the last control
        results = [*found[len(controls) :], *found[: len(controls)]]
    else:
        of_controls = (yield controls) if controls else []
        results = [*(yield jobs), *of_controls]
    store, metric = ResultStore(Path(str(cfg.out))), shown_metric(cfg.primary_metric)
    scrambled = scrambled_jobs(jobs, results[: len(jobs)], controls, compose, metric, store)
    return [*results, *((yield scrambled) if scrambled else [])]


def plan_path(folder: Path) -> Path:
    """Return the path of the file with the decisions of a budgeted sweep."""
    return folder / PLAN


def read_plan(folder: Path) -> Budget:
    """Return the decisions of a budgeted sweep from its file."""
    return read_record(Budget, plan_path(folder), "restore the file, or delete it to plan the sweep again")


def measured_cost(results: Sequence[ScoredResult], launches: int) -> JobCost:
    """Return the mean cost of a job and of an example.

    Args:
        results: Results with their times.
        launches: Number of times that each job was launched.
    """
    count = sum(result["num_samples"] for result in results)
    overhead = sum(result["job_sec"] - result["time_sec"] for result in results)
    return JobCost(overhead / (launches * len(results)), sum(result["time_sec"] for result in results) / count)


def within_budget(cfg: DictConfig, controls: list[Job], jobs: list[Job], launching: float, session: Session) -> Rounds:
    """Run rounds until the budget or the examples are used up, as a generator of the jobs to run next.

    Each decision is saved at once. A killed sweep continues from its saved decisions and results.

    Args:
        cfg: Config of the sweep.
        controls: Controls to run.
        jobs: Configurations of the sweep.
        launching: Seconds to launch a job, before it is measured.
        session: Session of the sweep.

    Returns:
        Results of the configurations, then of the controls.

    Raises:
        UserError: The budget is not positive or too small, or the sweep has only controls or uses force.
    """
    sweep = _BudgetedSweep(cfg, controls, jobs, session)
    if sweep.plan["first"] is None:
        yield from sweep.plan_first_round(launching)
    results = yield from sweep.run_rounds()
    return [results[job.config.name] for job in [*jobs, *controls]]


class _BudgetedSweep:
    """The rounds of a sweep with a time limit; arguments and errors as in `within_budget`."""

    def __init__(self, cfg: DictConfig, controls: list[Job], jobs: list[Job], session: Session) -> None:
        self.seconds = _seconds(cfg.budget_minutes) * session.workers  # of all workers together
        if cfg.force:
            raise UserError("force=true: a budgeted sweep extends its own results; choose another out=FOLDER instead")
        if all(job.config.control != "none" for job in jobs):
            raise UserError("budget_minutes: this sweep has only controls, which always run whole; leave it out")
        if not all(isinstance(job.config.samples, int) for job in jobs):
            raise UserError(f"samples={jobs[0].config.samples}: expected a whole number")
        self.cfg, self.session = cfg, session
        self.state, self.store = accelerator_state(cfg.device), ResultStore(Path(str(cfg.out)))
        self.metric = shown_metric(cfg.primary_metric)
        self.most = min(job.config.samples for job in jobs)
        self.plan = open_plan(cfg, self.state, [*controls, *jobs], self.most)
        self.every = {job.config.name: job for job in [*controls, *jobs]}
        self.groups = {group: tie_order(names, self.plan["key"]) for group, names in _contenders(jobs).items()}
        self.contenders = {name for members in self.groups.values() for name in members}

    def plan_first_round(self, launching: float) -> Generator[list[Job], list[EvaluationResult], None]:
        """Measure the cost of an example on the clean control, and plan the number of examples of the first round."""
        probes = [job for job in self.every.values() if reads_clean_text(job)]
        results = yield [_with_examples(job, min(FIRST_BLOCK, self.most)) for job in probes]
        probed = [result for result in results if succeeded(result)]
        if len(probed) < len(results):
            broken = next(result for result in results if not succeeded(result))
            raise UserError(f"budget_minutes: {broken['name']} failed ({broken.get('error')}); fix that first")
        # The probe's overhead is mostly loading the model, which happens once, so `launching` replaces it.
        cost: JobCost = broadcast_from_main(self.state, JobCost(launching, measured_cost(probed, 1).per_example))
        self.plan["estimate"] = {
            "names": [result["name"] for result in probed],
            "samples": min(result["num_samples"] for result in probed),
            "seconds_per_example": cost.per_example,
        }
        self.plan["first"] = first_round(len(self.every), cost, self.seconds, FIRST_BLOCK, self.most)
        self._save()

    def run_rounds(self) -> Generator[list[Job], list[EvaluationResult], dict[str, EvaluationResult]]:
        """Run the saved rounds and further ones, and return the last result of each job by name."""
        assert self.plan["first"] is not None
        num_examples = dict.fromkeys(self.every, self.plan["first"])
        for halving in self.plan["halvings"]:
            self._advance(num_examples, halving)
        results: dict[str, EvaluationResult] = {}
        todo = list(self.every)
        while True:
            round_jobs = [_with_examples(self.every[name], num_examples[name]) for name in todo]
            results |= zip(todo, (yield round_jobs), strict=True)
            now = max(num_examples.values())
            running = {
                name: result for name in self.every if num_examples[name] == now and succeeded(result := results[name])
            }
            if self.plan["stopped"] or not running:
                return results
            spent = sum(result.get("job_sec", 0.0) for result in results.values())
            since = self.session.lap(count=False) if self.session.workers == 1 else 0.0  # workers count their own
            decided = self._decide(running, now, spent + since)
            if decided.kept:
                self._advance(num_examples, self.plan["halvings"][-1])
            self.plan["samples"] = max(num_examples.values())
            self._save()
            if self.plan["stopped"]:
                return results
            todo = [name for name in self.every if num_examples[name] == decided.samples]

    def _decide(self, running: dict[str, ScoredResult], now: int, spent: float) -> Round:
        """Decide about the next round, and add the decision to the plan.

        Args:
            running: Results of the last round, by name.
            now: Their number of examples.
            spent: Seconds since the sweep began.
        """
        plan = self.plan
        standings: Standings = {
            group: [
                Contender(name, running[name]["family"], score_of_first(self.store, running[name], now, self.metric))
                for name in members
                if name in running
            ]
            for group, members in self.groups.items()
        }
        cost = measured_cost(list(running.values()), 1 + len(plan["halvings"]))
        cost, spent = broadcast_from_main(self.state, (cost, spent))
        plan["seconds_spent"] = round(spent, 3)
        plan["seconds_per_example"] = cost.per_example
        always, left = len(self.every) - len(self.contenders), self.seconds - plan["seconds_spent"]
        end = RoundEnd(now, self.most, FIRST_BLOCK, always, left)
        decided = next_round(standings, end, cost, self.metric["label"])
        if decided.kept:
            plan["halvings"].append(self._halving(decided, standings, now))
            log(f"round {len(plan['halvings']) + 1}: {decided.why}")
        else:
            plan["stopped"] = decided.why
            log(f"the sweep ends: {decided.why}")
        return decided

    def _advance(self, num_examples: dict[str, int], halving: Halving) -> None:
        """Set the number of examples of each configuration that a halving keeps."""
        kept = {name for group in halving["groups"] for name in group["names"]}
        for name in num_examples:
            if name in kept or name not in self.contenders:
                num_examples[name] = halving["samples"]

    def _halving(self, decided: Round, standings: Standings, now: int) -> Halving:
        """Return a decision on `now` examples as plain values, for the plan and the summary."""

        def experiments(names: list[str]) -> list[str]:
            return [self.every[name].config.experiment for name in names]

        left_out = {
            group: [one.name for one in standings[group] if one.name not in names]
            for group, names in decided.kept.items()
        }
        return {
            "round": len(self.plan["halvings"]) + 1,
            "samples": decided.samples,
            "decided_on": now if any(left_out.values()) else 0,
            "why": decided.why,
            "groups": [
                {
                    "group": group,
                    "names": names,
                    "kept": experiments(names),
                    "left_out": experiments(left_out[group]),
                }
                for group, names in decided.kept.items()
            ],
        }

    def _save(self) -> None:
        if self.state.is_main_process:
            write_json(plan_path(self.store.folder), self.plan)


def _contenders(jobs: list[Job]) -> dict[str, list[str]]:
    """Return the configurations of each source that a halving may leave out."""
    groups: dict[str, list[str]] = {job.config.group: [] for job in jobs}
    random: dict[str, str] = {}  # variant -> its first random tokens, a control of every source
    for job in jobs:
        if job.config.embed_transform.name == RANDOM:
            random.setdefault(job.config.variant, job.config.name)
        if job.config.embed_transform.name not in ALWAYS and job.config.name not in random.values():
            groups[job.config.group].append(job.config.name)
    return groups


def _seconds(minutes: object) -> float:
    try:
        seconds = 60 * float(str(minutes))
    except ValueError as error:
        raise UserError(f"budget_minutes={minutes}: expected a number of minutes, or null") from error
    if not 0 < seconds < float("inf"):
        raise UserError(f"budget_minutes={minutes}: must be above 0; null sets no limit")
    return seconds


def score_of_first(store: ResultStore, result: ScoredResult, count: int, metric: ShownMetric) -> float:
    """Return the mean score of a result's first examples; an earlier, larger budget may have added more.

    Rounding makes means of the same scores in another order equal.

    Args:
        store: Results of the sweep.
        result: Result with at least `count` examples.
        count: Number of examples.
        metric: The primary metric. The score is oriented so that higher is better.
    """
    if result["num_samples"] <= count:
        return round(oriented(result["scores"][metric["name"]]["mean"], metric), 9)
    rows = read_example_rows(store.predictions_path(result["name"]))[:count]
    return round(oriented(sum(row["scores"][metric["name"]] for row in rows) / count, metric), 9)


def _with_examples(job: Job, count: int) -> Job:
    """Return a job that evaluates `count` examples."""
    return Job([*job.overrides, f"num_examples={count}"], job.config)


def open_plan(cfg: DictConfig, state: PartialState, jobs: list[Job], most: int) -> Budget:
    """Return the plan of this sweep, from its file or new; the plan of another sweep moves to replaced/.

    The key of a plan is a hash of the budget, the primary metric and the keys of all results, which cover everything
    that decides the plan.

    Args:
        cfg: Config of the sweep.
        state: Device and processes.
        jobs: Controls and configurations.
        most: Largest number of examples.
    """
    result_keys = [[job.config.name, read(job.config, state, FIRST_BLOCK).key] for job in jobs]
    key = config_hash([cfg.budget_minutes, cfg.primary_metric, result_keys])
    path = plan_path(Path(str(cfg.out)))
    plan: Budget | None = None
    if state.is_main_process and path.exists():
        plan = read_plan(path.parent)
        if plan["key"] != key:
            aside = path.parent / "replaced" / f"plan.{plan['key']}.json"
            with writing(aside):
                aside.parent.mkdir(parents=True, exist_ok=True)
                path.replace(aside)
            plan = None
    new: Budget = {
        "key": key,
        "minutes": float(cfg.budget_minutes),
        "configurations": sum(job.config.control == "none" for job in jobs),
        "wanted": most,
        "estimate": None,
        "first": None,
        "samples": None,
        "seconds_per_example": None,
        "seconds_spent": 0.0,
        "time_model": TIME_MODEL,
        "halvings": [],
        "stopped": None,
        "note": BIAS,
    }
    opened: Budget = broadcast_from_main(state, plan or new)
    return opened
