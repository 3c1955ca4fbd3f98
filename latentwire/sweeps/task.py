"""End of a sweep: summary, analysis and report. Main entries: `finish()` and `analyze_again()`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from latentwire.analysis.controls import AnalysisSettings, ById
from latentwire.analysis.findings import Finding, too_fast
from latentwire.analysis.matrix import matrix_table
from latentwire.analysis.ranking import analyze
from latentwire.evaluation.task import tracker_of
from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import (
    DamagedResultError,
    Result,
    ResultStore,
    ResultWriteError,
    read_json,
    read_jsonl,
    write_text_atomically,
)
from latentwire.harness.session import Session
from latentwire.harness.typed_config import typed
from latentwire.reports.html import write_report
from latentwire.reports.text import render, tables
from latentwire.sweeps import schedule

NOT_IN_SUMMARY = ("config", "versions", "traceback", "too_long_ids")  # long fields, only in the result's own file


def finish(cfg: DictConfig, results: list[Result], session: Session) -> None:
    """Write the summary and report of a sweep, print its analysis, and log it to the tracker.

    Args:
        cfg: Config of the sweep.
        results: Results of its configurations and controls.
        session: Session of the sweep.

    Raises:
        UserError: Configurations failed; the message names them.
    """
    folder = Path(cfg.out)
    failed = [result for result in results if result["status"] != "ok"]
    if is_main_process():
        budget = read_json(schedule.plan_path(folder)) if cfg.budget_minutes is not None else None
        summary = summarize(cfg.sweep.name, results, folder, _analysis_settings(cfg), budget)
        summary["command"] = session.command
        other = ResultStore(folder).save_summary(summary)
        _write_matrix(summary, folder)
        print(render(summary))
        log(f"summary: {folder / 'summary.json'}")
        log(f"report: {write_report(folder, summary)}")
        if other is not None:
            log(f"note: the previous summary also had other configurations; it is kept as {other}")
        figures = sorted((folder / "figures").glob("*.png"))
        tracker_of(cfg, session).log_summary(summary, tables(summary, _examples(summary, folder)), figures)
    if failed:
        listed = "\n".join(f"  {result['name']}: {result['error']}" for result in failed)
        controls = sum(result.get("control") is not None for result in failed)
        total = sum(result.get("control") is None for result in results)
        what = f"{len(failed) - controls} of {total} configurations" + (f" and {controls} controls" if controls else "")
        raise UserError(f"{what} failed; the other results are kept:\n{listed}")


def _analysis_settings(cfg: DictConfig) -> AnalysisSettings:
    settings = typed(AnalysisSettings, {"min_clean_f1": cfg.min_clean_f1, "target_difference": cfg.target_difference})
    settings.check()
    return settings


def summarize(
    sweep: str, results: list[Result], folder: Path, settings: AnalysisSettings, budget: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the summary of a sweep with its analysis.

    Args:
        sweep: Name of the sweep.
        results: Results of its configurations and controls.
        folder: Folder with their predictions.
        settings: Settings of the analysis.
        budget: Plan of a budgeted sweep.

    Raises:
        DamagedResultError: Predictions do not match their result.
    """
    found = too_fast([result for result in results if result["status"] == "ok"])
    results = [
        {**result, "warnings": _with(result.get("warnings", []), found.get(result["name"]))} for result in results
    ]
    controls = [result for result in results if result.get("control")]
    results = [result for result in results if not result.get("control")]
    successful = [result for result in results if result["status"] == "ok"]
    ranked = sorted(successful, key=lambda result: (-result["f1"], result["name"]))
    shown = ("name", "experiment", "source", "group", "f1", "f1_interval", "em", "empty_rate")
    usable = [result for result in controls if result["status"] == "ok"]
    scores = {result["name"]: _scores(result, folder) for result in [*successful, *usable]}
    return {
        "sweep": sweep,
        "total_experiments": len(results),
        "successful": len(successful),
        "failed": len(results) - len(successful),
        "results": [_short(result) for result in results],
        "controls": [_short(result) for result in controls],
        "sorted_by_f1": [{key: result[key] for key in shown} for result in ranked],
        "budget": budget,
        "analysis": analyze(successful, scores, controls, settings),
    }


def _with(findings: list[Finding], more: Finding | None) -> list[Finding]:
    return findings if more is None or more in findings else [*findings, more]


def _short(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in NOT_IN_SUMMARY}


def _scores(result: Result, folder: Path) -> ById:
    """Return the ids and F1 of a result's examples from its predictions, (N,) each."""
    path = ResultStore(folder).predictions_path(result["name"])
    rows = read_jsonl(path)
    f1 = np.array([row["f1"] for row in rows])
    if len(rows) != result["num_samples"] or abs(f1.mean() - result["f1"]) > 1e-9:
        raise DamagedResultError(
            f"{path} does not match the summary (n = {len(rows)}, expected {result['num_samples']}; mean F1 "
            f"{f1.mean():.3f}, expected {result['f1']:.3f}): run the sweep again; finished results are not run twice"
        )
    return [row["id"] for row in rows], f1


def _write_matrix(summary: dict[str, Any], folder: Path) -> None:
    """Write matrix.csv with a row for each source and transform, if the sweep has several sources."""
    if summary["analysis"]["atlas"] is not None:
        columns, rows = matrix_table(summary["analysis"]["atlas"])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_text_atomically(folder / "matrix.csv", text.getvalue())


def _examples(summary: dict[str, Any], folder: Path) -> list[tuple[Result, list[dict[str, Any]]]]:
    """Return the controls, the baselines and the best result of each source, with their predictions."""
    shown = {row["name"] for group in summary["analysis"]["groups"] for row in group["ranking"][:1]}
    every = [result for result in [*summary["controls"], *summary["results"]] if result["status"] == "ok"]
    chosen = [r for r in every if r.get("control") or r["family"] == "baseline" or r["name"] in shown]
    return [(r, read_jsonl(ResultStore(folder).predictions_path(r["name"]))) for r in chosen]


def analyze_again(cfg: DictConfig, session: Session | None = None) -> dict[str, Any]:
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
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise UserError(f"summary={path}: not a summary of a sweep; give the summary.json of an output folder")
    settings = _analysis_settings(cfg)
    try:
        results = [*summary["results"], *summary.get("controls", [])]
        again = summarize(summary["sweep"], results, path.parent, settings, summary.get("budget"))
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, but the analysis compares examples; keep the predictions in the folder of "
            "their summary, or run the sweep again"
        ) from error
    except (KeyError, TypeError) as error:
        raise UserError(f"summary={path}: a result lacks {error}; restore the file, or run the sweep again") from error
    again["command"] = summary.get("command")
    if is_main_process():
        print(render(again))
        try:
            log(f"report: {write_report(path.parent, again)}")
        except ResultWriteError as error:
            raise ResultWriteError(
                error.path, error.reason, "summary=FOLDER/summary.json (a copy, with the results in the same folder)"
            ) from error
    return again
