"""The analysis of a sweep as tables. Main entry: `tables()`."""

from __future__ import annotations

from collections.abc import Sequence

from latentwire.analysis.controls import oriented, score_of
from latentwire.analysis.matrix import matrix_table
from latentwire.analysis.records import Analysis, AutoGoal, DrawnRow, JoinedFinding, RankingRow, Share, Summary, Table
from latentwire.analysis.tolerance import tolerance_table
from latentwire.records import ExampleRow, ScoredResult, ShownMetric, SummaryResult, succeeded

Answers = Sequence[tuple[SummaryResult, Sequence[ExampleRow]]]  # results with their predictions


def tables(summary: Summary, examples: Answers) -> dict[str, Table]:
    """Return the tables of a sweep by name, from "ranking" to "examples"; docs/tracking.md lists them.

    Args:
        summary: Summary of the sweep, with its analysis.
        examples: Results with their predictions, for the table of examples.
    """
    analysis = summary["analysis"]
    found = {"ranking": ranking_table(analysis), "sources": sources_table(analysis)}
    if controls := [control for control in summary["controls"] if succeeded(control)]:
        found["controls"] = _controls_table(controls, analysis["metric"])
    if analysis["warnings"]:
        found["warnings"] = _warnings_table(analysis["warnings"])
    if analysis["atlas"] is not None:
        found["matrix"] = matrix_table(analysis["atlas"])
        found["tolerance"] = tolerance_table(analysis["atlas"])
    if (across := analysis["across"]) is not None:
        found["across"] = ["sources", "helped", "alpha"], [[across["sources"], across["helped"], across["alpha"]]]
    if analysis["draws"]:
        found["draws"] = _draws_table(analysis["draws"])
    if analysis["auto"] is not None:
        found["auto"] = auto_table(analysis["auto"])
    found["examples"] = _examples_table(examples, analysis["metric"])
    return found


def ranking_table(analysis: Analysis) -> Table:
    """Return the names of the columns and the rows of a table with the rankings of all sources.

    `score` is the primary metric, oriented so that higher is better. A row that was chosen among several also has its
    cross-fit score.
    """
    columns = ["group", "rank", "name", "family", "score", "score_low", "score_high", "cross_fit",
               "cross_fit_low", "cross_fit_high", "num_samples",
               "f1", "em", "empty_rate", "recovered", "difference", "p_holm", "verdict", "supervised"]  # fmt: skip
    rows: list[list[object]] = [
        [group["group"], rank, row["name"], row["family"], row["score"], *row["score_interval"],
         *_cross_fit(row), row["num_samples"], row["f1"], row["em"], row["empty_rate"],
         row["recovered"], row["difference"], row["p_holm"], row["verdict"], row["supervised"]]
        for group in analysis["groups"]
        for rank, row in enumerate(group["ranking"], 1)
    ]  # fmt: skip
    return columns, rows


def _cross_fit(row: RankingRow) -> list[object]:
    chosen = row["cross_fit"]
    return [None] * 3 if chosen is None else [chosen["score"], *chosen["score_interval"]]


def sources_table(analysis: Analysis) -> Table:
    """Return the names of the columns and the rows of a table with the verdict on each source."""
    columns = ["group", "num_samples", "passages", "design_effect", "detectable", "winner", "verdict", "confirmed"]
    rows: list[list[object]] = [
        [group["group"], group["num_samples"], group["passages"], group["design_effect"],
         None if group["power"] is None else group["power"]["detectable_corrected"], group["winner"], group["verdict"],
         None if group["confirmation"] is None else group["confirmation"]["confirmed"]]
        for group in analysis["groups"]
    ]  # fmt: skip
    return columns, rows


def _draws_table(drawn: Sequence[DrawnRow]) -> Table:
    columns = ["group", "experiment", "draws", "mean", "std", "difference", "difference_std", "better", "wins"]
    rows: list[list[object]] = [
        [row["group"], row["experiment"], row["draws"], row["mean"], row["spread"], row["difference"],
         row["difference_spread"], row["better"], row["wins"]]
        for row in drawn
    ]  # fmt: skip
    return columns, rows


def auto_table(auto: AutoGoal) -> Table:
    """Return the names of the columns and the rows of a table with the automatic repair on each source."""
    columns = ["group", "num_samples", "clean_score", "best", "best_score", "best_share", "best_reaches", "auto_score",
               "auto_share", "auto_reaches", "met", "reason"]  # fmt: skip
    rows = [
        [one["group"], one["num_samples"], one["clean_score"], one["best"], *_share(one["best_share"]),
         *_share(one["auto_share"]), one["met"], one["reason"]]
        for one in auto["sources"]
    ]  # fmt: skip
    return columns, rows


def _share(share: Share | None) -> list[object]:
    return [None] * 3 if share is None else [share["score"], share["share"], share["reached"]]


def _controls_table(controls: Sequence[ScoredResult], metric: ShownMetric) -> Table:
    rows: list[list[object]] = []
    for control in controls:
        score, interval = score_of(control, metric)
        about = [control["name"], control["control"], control["group"]]
        rows.append([*about, score, *interval, control["num_samples"]])
    return ["name", "control", "group", "score", "score_low", "score_high", "num_samples"], rows


def _warnings_table(warnings: Sequence[JoinedFinding]) -> Table:
    rows: list[list[object]] = [
        [one["level"], one["kind"], one["message"], one["count"], ", ".join(one["names"])] for one in warnings
    ]
    return ["level", "kind", "message", "count", "names"], rows


def _examples_table(examples: Answers, metric: ShownMetric) -> Table:
    rows: list[list[object]] = [
        [result["name"], result["group"], row["id"], row["question"], " | ".join(row["references"]), row["prediction"],
         oriented(row["scores"][metric["name"]], metric)]
        for result, predictions in examples
        for row in predictions
    ]  # fmt: skip
    return ["name", "group", "id", "question", "references", "prediction", "score"], rows
