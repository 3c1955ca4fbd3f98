"""The end of a sweep: its summary with the analysis, its matrix, page and tables; and the analysis again."""

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
from latentwire.harness import program
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
from latentwire.harness.typed_config import typed
from latentwire.reports.html import write_report
from latentwire.reports.text import render, tables
from latentwire.sweeps import schedule

IN_SUMMARY_TOO_LONG = (
    "config",
    "versions",
    "traceback",
    "too_long_ids",
)  # these stay in the result's own file


def finish(cfg: DictConfig, results: list[Result]) -> None:
    """Write the summary of a sweep and its report, print its analysis and hand it to the tracker.

    Raises:
        UserError: Some configurations failed; names them.
    """
    folder = Path(cfg.out)
    failed = [result for result in results if result["status"] != "ok"]
    if is_main_process():
        budget = read_json(schedule.plan_path(folder)) if cfg.budget_minutes is not None else None
        summary = summarize(cfg.sweep.name, results, folder, _judging(cfg), budget)
        summary["command"] = program.command()
        other = ResultStore(folder).save_summary(summary)
        _write_matrix(summary, folder)
        print(render(summary))
        log(f"summary: {folder / 'summary.json'}")
        log(f"report: {write_report(folder, summary)}")
        if other is not None:
            log(f"note: the summary that was there has other configurations as well; it is kept as {other}")
        figures = sorted((folder / "figures").glob("*.png"))
        tracker_of(cfg).log_summary(summary, tables(summary, _examples(summary, folder)), figures)
    if failed:
        listed = "\n".join(f"  {result['name']}: {result['error']}" for result in failed)
        controls = sum(result.get("control") is not None for result in failed)
        total = sum(result.get("control") is None for result in results)
        what = f"{len(failed) - controls} of {total} configurations" + (f" and {controls} controls" if controls else "")
        raise UserError(f"{what} failed; the others are finished and kept:\n{listed}")


def _judging(cfg: DictConfig) -> AnalysisSettings:
    judging = typed(AnalysisSettings, {"min_clean_f1": cfg.min_clean_f1, "target_difference": cfg.target_difference})
    judging.check()
    return judging


def summarize(
    sweep: str, results: list[Result], folder: Path, judging: AnalysisSettings, budget: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the summary of a sweep with its analysis, from results and the predictions in `folder`."""
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
        "analysis": analyze(successful, scores, controls, judging),
    }


def _with(findings: list[Finding], more: Finding | None) -> list[Finding]:
    return findings if more is None or more in findings else [*findings, more]


def _short(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in IN_SUMMARY_TOO_LONG}


def _scores(result: Result, folder: Path) -> ById:
    """Return the ids of a result's examples and their F1, as its predictions have them."""
    path = ResultStore(folder).predictions_path(result["name"])
    rows = read_jsonl(path)
    f1 = np.array([row["f1"] for row in rows])
    if len(rows) != result["num_samples"] or abs(f1.mean() - result["f1"]) > 1e-9:
        raise DamagedResultError(
            f"{path} is not what the summary was made from (n = {len(rows)}, not {result['num_samples']}, or "
            f"another mean F1 than {result['f1']:.3f}): run the sweep again; what is finished is not run twice"
        )
    return [row["id"] for row in rows], f1


def _write_matrix(summary: dict[str, Any], folder: Path) -> None:
    """Write matrix.csv, one row for each source and transform, where there are several sources."""
    if summary["analysis"]["atlas"] is not None:
        columns, rows = matrix_table(summary["analysis"]["atlas"])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_text_atomically(folder / "matrix.csv", text.getvalue())


def _examples(summary: dict[str, Any], folder: Path) -> list[tuple[Result, list[dict[str, Any]]]]:
    """Return the results worth reading side by side with their predictions: controls, baselines, the best."""
    shown = {row["name"] for group in summary["analysis"]["groups"] for row in group["ranking"][:1]}
    every = [result for result in [*summary["controls"], *summary["results"]] if result["status"] == "ok"]
    chosen = [r for r in every if r.get("control") or r["family"] == "baseline" or r["name"] in shown]
    return [(r, read_jsonl(ResultStore(folder).predictions_path(r["name"]))) for r in chosen]


def analyze_again(cfg: DictConfig) -> dict[str, Any]:
    """Print the analysis of a finished sweep from its summary and the predictions beside it; write its report again.

    Raises:
        UserError: There is no such summary, or it is damaged, or the predictions are not beside it, or the report
            cannot be written there.
    """
    path = Path(cfg.summary)
    if not path.is_file():
        raise UserError(f"summary={path}: no such file; run the sweep first, or give summary=FOLDER/summary.json")
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise UserError(f"summary={path}: is no summary of a sweep; give the summary.json of an output folder")
    judging = _judging(cfg)
    try:
        results = [*summary["results"], *summary.get("controls", [])]
        again = summarize(summary["sweep"], results, path.parent, judging, summary.get("budget"))
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, but comparisons are made example by example; keep the predictions beside "
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
                error.path, error.reason, "summary=FOLDER/summary.json (a copy, with the results beside it)"
            ) from error
    return again
