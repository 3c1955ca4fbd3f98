"""End of a sweep: summary, analysis and report. Main entries: `finish()` and `analyze_again()`."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from omegaconf import DictConfig

from latentwire.analysis.controls import AUTO, AnalysisSettings, ById, score_of
from latentwire.analysis.findings import too_fast
from latentwire.analysis.matrix import matrix_table
from latentwire.analysis.ranking import analyze
from latentwire.analysis.records import SortedByF1, SortedByScore, Summary
from latentwire.analysis.suspicions import KINDS, suspicions
from latentwire.evaluation.metrics import shown_metric
from latentwire.evaluation.task import tracker_of
from latentwire.harness.errors import UserError
from latentwire.harness.ownership import owned
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import DamagedResultError, ResultStore, ResultWriteError, write_text_atomically
from latentwire.harness.row_memory import paused_collection
from latentwire.harness.session import Session, job
from latentwire.harness.typed_config import typed
from latentwire.records import (
    FORMAT,
    EvaluationResult,
    ExampleRow,
    Finding,
    ReadRows,
    ScoredResult,
    ShownMetric,
    StoredSummary,
    SummaryResult,
    read_example_rows,
    read_summary,
    succeeded,
    sweep_sample,
)
from latentwire.reports.html import write_report
from latentwire.reports.tables import tables
from latentwire.reports.text import render
from latentwire.sources.registry import ladders
from latentwire.sweeps import schedule
from latentwire.sweeps.confirmation import with_confirmation

NOT_IN_SUMMARY = ("config", "versions", "traceback", "too_long_ids")  # long fields, only in the result's own file


def finish(cfg: DictConfig, results: list[EvaluationResult], session: Session) -> None:
    """Write the summary and report of a sweep, print its analysis, and log it to the tracker.

    Args:
        cfg: Config of the sweep.
        results: Results of its configurations and controls.
        session: Session of the sweep.

    Raises:
        UserError: Configurations failed; the message names them.
    """
    folder = Path(str(cfg.out))
    failed = [result for result in results if not succeeded(result)]
    if is_main_process():
        short = [_short(result) for result in results]
        stored: StoredSummary = {
            "format": FORMAT,
            "sweep": cfg.sweep.name,
            "command": session.command,
            **sweep_sample([result["config"] for result in results]),
            "primary_metric": shown_metric(cfg.primary_metric),
            "results": [result for result in short if result["control"] is None],
            "controls": [result for result in short if result["control"] is not None],
            "budget": schedule.read_plan(folder) if cfg.budget_minutes is not None else None,
        }
        read = functools.cache(read_example_rows)  # the analysis and the report need the same rows
        summary = summarize(stored, folder, _analysis_settings(cfg), read)
        with owned(folder, "summary.json", None):  # files of one command
            other = ResultStore(folder).save_summary(summary)
            _write_matrix(summary, folder)
            report = write_report(folder, summary, read)
        print(render(summary))
        log(f"summary: {folder / 'summary.json'}")
        log(f"report: {report}")
        if stored["part"] == "confirm" and (selecting := folder.parent / "summary.json").is_file():
            log(f"these results confirm or refute a winner: python run.py task=analyze summary={selecting}")
        if other is not None:
            log(f"note: the previous summary also had other configurations; it is kept as {other}")
        figures = sorted((folder / "figures").glob("*.png"))
        found = tables(summary, _examples(summary, folder, read))
        tracker_of(cfg, session).log_summary(summary, found, figures, summary["primary_metric"]["label"])
    if failed:
        listed = "\n".join(f"  {result['name']}: {result.get('error')}" for result in failed)
        controls = sum(result["control"] is not None for result in failed)
        total = sum(result["control"] is None for result in results)
        what = f"{len(failed) - controls} of {total} configurations" + (f" and {controls} controls" if controls else "")
        raise UserError(f"{what} failed; the other results are kept:\n{listed}")


def _short(result: EvaluationResult) -> SummaryResult:
    """Return a result without its long fields."""
    return cast(SummaryResult, {key: value for key, value in result.items() if key not in NOT_IN_SUMMARY})


def _analysis_settings(cfg: DictConfig) -> AnalysisSettings:
    values = {"min_clean_score": cfg.min_clean_score, "target_difference": cfg.target_difference}
    settings = typed(AnalysisSettings, values)
    settings.check()
    return settings


def summarize(
    stored: StoredSummary, folder: Path, settings: AnalysisSettings, read: ReadRows = read_example_rows
) -> Summary:
    """Return the summary of a sweep with its analysis and, if it has run, the confirmation of its winners.

    Arguments and errors as in `analysed`.
    """

    def other(of: StoredSummary, where: Path) -> Summary:
        return analysed(of, where, settings, read)

    with paused_collection():
        return with_confirmation(analysed(stored, folder, settings, read), folder, other)


def analysed(
    stored: StoredSummary, folder: Path, settings: AnalysisSettings, read: ReadRows = read_example_rows
) -> Summary:
    """Return the summary of a sweep with its analysis by the primary metric.

    Args:
        stored: Results of the sweep and what else is known of it.
        folder: Folder with the predictions.
        settings: Settings of the analysis.
        read: Returns the rows of a file.

    Raises:
        DamagedResultError: Predictions do not match their result.
        UserError: A result lacks the primary metric.
    """
    metric = stored["primary_metric"]
    every = [result for result in [*stored["results"], *stored["controls"]] if succeeded(result)]
    rows = {result["name"]: _rows(result, folder, metric, read) for result in every}
    found = suspicions(every, rows, metric)
    for name, one in too_fast(every).items():
        found.setdefault(name, []).append(one)
    results, controls = (
        [_with_findings(result, found.get(result["name"], [])) for result in part]
        for part in (stored["results"], stored["controls"])
    )
    successful = [result for result in results if succeeded(result)]
    usable = [result for result in controls if succeeded(result)]
    fresh = _fresh_from(stored)
    scores = {
        result["name"]: _scores(rows[result["name"]][fresh.get(result["name"], 0) :], metric)
        for result in [*successful, *usable]
    }
    return {
        **stored,
        "results": results,
        "controls": controls,
        "total_experiments": len(results),
        "successful": len(successful),
        "failed": len(results) - len(successful),
        "sorted_by_f1": _sorted_by_f1(successful),
        "sorted_by_score": _sorted_by_score(successful, metric),
        "analysis": analyze(successful, scores, controls, settings, metric, ladders()),
    }


def _with_findings(result: SummaryResult, more: list[Finding]) -> SummaryResult:
    """Return a result with the findings of this analysis; they replace the findings of an earlier one."""
    warnings = result.get("warnings", [])
    new = [one for one in warnings if one["kind"] not in {*KINDS, "too_fast"}] + more
    return result if new == warnings else {**result, "warnings": new}


def _rows(result: ScoredResult, folder: Path, metric: ShownMetric, read: ReadRows) -> Sequence[ExampleRow]:
    """Return the answers of a result, after checking that they have the primary metric and match the result."""
    name = metric["name"]
    if name not in result["scores"]:
        raise UserError(
            f"primary_metric={name}: {result['name']} has only {', '.join(result['scores'])}; choose one of them, or "
            f"run the sweep again with metrics=[{name}]"
        )
    path = ResultStore(folder).predictions_path(result["name"])
    rows = read(path)
    values = np.array([row["scores"].get(name, np.nan) for row in rows])
    expected = result["scores"][name]["mean"]
    if len(rows) != result["num_samples"] or not abs(values.mean() - expected) <= 1e-9:
        raise DamagedResultError(
            f"{path} does not match the summary (n = {len(rows)}, expected {result['num_samples']}; mean {name} "
            f"{values.mean():.3f}, expected {expected:.3f}): run the sweep again; finished results are not run twice"
        )
    return rows


def _fresh_from(stored: StoredSummary) -> dict[str, int]:
    """Return from which example on a transform that went on in a budgeted sweep is scored, by name of the result.

    The examples before it decided that the transform goes on, so its score on them is too high. The automatic repair
    always goes on. It is scored on the same examples, so that it can be compared with the others.
    """
    halvings = [] if stored["budget"] is None else stored["budget"]["halvings"]
    deciding = [halving for halving in halvings if halving["decided_on"]]
    if not deciding:
        return {}
    last = deciding[-1]
    names = [name for own in last["groups"] for name in own["names"]]
    names += [
        result["name"]
        for result in stored["results"]
        if succeeded(result) and result["family"] == AUTO and result["num_samples"] > last["decided_on"]
    ]
    return dict.fromkeys(names, last["decided_on"])


def _scores(rows: Sequence[ExampleRow], metric: ShownMetric) -> ById:
    """Return a result's scores of the primary metric by example. An answer without a passage is its own passage."""
    values = np.array([row["scores"][metric["name"]] for row in rows])
    scores = values if metric["higher_is_better"] else 1 - values
    return ById([row["id"] for row in rows], scores, [row.get("passage", row["id"]) for row in rows])


def _sorted_by_f1(results: Sequence[ScoredResult]) -> list[SortedByF1]:
    return [
        {
            "name": result["name"],
            "experiment": result["experiment"],
            "source": result["source"],
            "group": result["group"],
            "f1": result["f1"],
            "f1_interval": result["scores"]["f1"]["interval"],
            "em": result["em"],
            "empty_rate": result["empty_rate"],
        }
        for result in sorted(results, key=lambda result: (-result["f1"], result["name"]))
    ]


def _sorted_by_score(results: Sequence[ScoredResult], metric: ShownMetric) -> list[SortedByScore]:
    scored = [(*score_of(result, metric), result) for result in results]
    return [
        {
            "name": result["name"],
            "experiment": result["experiment"],
            "source": result["source"],
            "group": result["group"],
            "score": score,
            "score_interval": interval,
        }
        for score, interval, result in sorted(scored, key=lambda one: (-one[0], one[2]["name"]))
    ]


def _write_matrix(summary: Summary, folder: Path) -> None:
    """Write matrix.csv with a row for each source and transform, if the sweep has several sources."""
    if summary["analysis"]["atlas"] is not None:
        columns, rows = matrix_table(summary["analysis"]["atlas"])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_text_atomically(folder / "matrix.csv", text.getvalue())


def _examples(summary: Summary, folder: Path, read: ReadRows) -> list[tuple[SummaryResult, Sequence[ExampleRow]]]:
    """Return the controls, the baselines and the best result of each source, with their predictions."""
    shown = {row["name"] for group in summary["analysis"]["groups"] for row in group["ranking"][:1]}
    every = [result for result in [*summary["controls"], *summary["results"]] if result["status"] == "ok"]
    chosen = [r for r in every if r["control"] or r["family"] == "baseline" or r["name"] in shown]
    return [(r, read(ResultStore(folder).predictions_path(r["name"]))) for r in chosen]


@job
def analyze_again(cfg: DictConfig, session: Session | None = None) -> Summary:
    """Print the analysis of a finished sweep and write its report, from its summary and predictions.

    Returns:
        The new summary.

    Raises:
        UserError: The summary is missing or damaged, or its folder lacks the predictions.
        ResultWriteError: The report cannot be written.
    """
    path = Path(cfg.summary)
    if not path.is_file():
        raise UserError(f"summary={path}: no such file; run the sweep first, or give summary=FOLDER/summary.json")
    stored = read_summary(path)
    chosen = cfg.primary_metric
    if chosen is not None and chosen != stored["primary_metric"]["name"]:
        stored["primary_metric"] = shown_metric(chosen)
    try:
        read = functools.cache(read_example_rows)
        summary = summarize(stored, path.parent, _analysis_settings(cfg), read)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, but the analysis compares examples; keep the predictions in the folder of "
            "their summary, or run the sweep again"
        ) from error
    if is_main_process():
        print(render(summary))
        try:
            log(f"report: {write_report(path.parent, summary, read)}")
        except ResultWriteError as error:
            raise ResultWriteError(
                error.path, error.reason, "summary=FOLDER/summary.json (a copy, with the results in the same folder)"
            ) from error
    return summary
