"""The report of a finished sweep: one HTML page that needs no network, and figures. Main entry: `write_report()`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path

from latentwire.analysis.controls import BASELINE, RANDOM, oriented
from latentwire.analysis.ranking import coverage
from latentwire.analysis.records import Analysis, GroupAnalysis, LadderTolerance, Summary
from latentwire.harness.pages import fill
from latentwire.harness.results import JsonObject, ResultStore, write_text_atomically
from latentwire.harness.row_memory import paused_collection
from latentwire.records import (
    EvaluationResult,
    ExampleRow,
    ReadRows,
    ScoredResult,
    ShownMetric,
    SummaryResult,
    read_example_rows,
    read_result,
    succeeded,
)
from latentwire.reports.draws import render_draws
from latentwire.reports.figures import draw_all
from latentwire.reports.goal import goal_lines, goal_on
from latentwire.reports.panels import (
    COLOUR_OF,
    DARK,
    HEAT_TEXT_TURNS,
    LIGHT,
    LINES,
    dial_panels,
    matrix,
    reference_lines,
    scale_top,
)
from latentwire.reports.records import (
    Failure,
    PageAuto,
    PageData,
    PageGroup,
    PageLadder,
    PageRow,
    ShownExample,
    ShownExamples,
)
from latentwire.reports.text import across_line, confirmation_lines, how_to_confirm, incomplete, left_out, tolerated
from latentwire.stats.intervals import FEW

Answers = Mapping[str, Sequence[ExampleRow]]  # name of a result -> its rows
Key = tuple[str, str]  # id and question of an example

ANSWERS = 20_000  # answers that the page contains at most
LONGEST = 300  # characters of a question, reference or answer; longer texts are cut and marked


def write_report(folder: Path, summary: Summary, read: ReadRows = read_example_rows) -> Path:
    """Write report.html and figures/*.png into the folder of a sweep.

    Args:
        folder: Folder with the results and predictions of the summary.
        summary: Summary of the sweep, with its analysis.
        read: Returns the rows of a file; one that remembers what the analysis has read saves time.

    Returns:
        Path of report.html.

    Raises:
        ResultWriteError: The folder cannot be written.
    """
    store = ResultStore(folder)
    successful = [result for result in _all_results(summary) if succeeded(result)]
    with paused_collection():
        shown = page(_contents(store, summary, successful, read))
    path = folder / "report.html"
    write_text_atomically(path, shown)
    draw_all(summary["analysis"], _order(summary), folder / "figures")
    return path


def _contents(store: ResultStore, summary: Summary, successful: Sequence[ScoredResult], read: ReadRows) -> PageData:
    """Return the contents of the page from the files of a sweep."""
    answers = {result["name"]: read(store.predictions_path(result["name"])) for result in successful}
    full = []
    for result in successful:
        path = store.path(result["name"])
        if path.is_file():
            found = read_result(path)
            full += [found] if found["config_hash"] == result["config_hash"] else []
    return collect(summary, answers, full)


def _all_results(summary: Summary) -> list[SummaryResult]:
    return [*summary["results"], *summary["controls"]]


def _order(summary: Summary) -> list[str]:
    return [result["experiment"] for result in summary["results"]]


def collect(summary: Summary, answers: Answers, full: Sequence[EvaluationResult]) -> PageData:
    """Return the contents of the page as plain values.

    Args:
        summary: Summary of the sweep, with its analysis.
        answers: Rows of the successful results and controls, by name.
        full: Contents of their result files, for the config and versions; files may be missing.
    """
    analysis, order = summary["analysis"], _order(summary)
    groups = analysis["groups"]
    result_of = {result["name"]: result for result in _all_results(summary) if succeeded(result)}
    failures: list[Failure] = [
        {"name": result["name"], "error": result.get("error", "")}
        for result in _all_results(summary)
        if not succeeded(result)
    ]
    return {
        "sweep": summary["sweep"],
        "question": _question(summary),
        "metric": analysis["metric"],
        "counts": {
            "total_experiments": summary["total_experiments"],
            "successful": summary["successful"],
            "failed": summary["failed"],
        },
        "failures": failures,
        "warnings": analysis["warnings"],
        "budget": summary["budget"],
        "groups": [_page_group(group, order, result_of, analysis["metric"]) for group in groups],
        "top": scale_top(groups),
        "heat_text_turns": HEAT_TEXT_TURNS,
        "colour_of": COLOUR_OF,
        "line_colours": LINES,
        "matrix": matrix(groups, order),
        "tolerance": [] if analysis["atlas"] is None else [_ladder(one) for one in analysis["atlas"]["tolerance"]],
        "most": coverage(groups)["most"],
        "few_examples": FEW,
        "incomplete": incomplete(summary),
        "draws": render_draws(analysis["draws"], groups),
        "across": None if analysis["across"] is None else across_line(analysis["across"]),
        "auto": _auto(analysis),
        "examples": choose_shown_examples(answers, ANSWERS, analysis["metric"]),
        "run": _run_facts(summary, full),
        "config": json.dumps(shared([result["config"] for result in full]), indent=1, ensure_ascii=False),
    }


def _page_group(
    group: GroupAnalysis, order: list[str], result_of: Mapping[str, ScoredResult], metric: ShownMetric
) -> PageGroup:
    """Return what the page shows of a source."""
    rows: list[PageRow] = [
        {**row, "group": group["group"], "time_sec": result_of[row["name"]]["time_sec"]} for row in group["ranking"]
    ]
    command = group["confirm_command"] if group["confirmation"] is None else None
    return {
        "group": group["group"],
        "num_samples": group["num_samples"],
        "passages": group["passages"],
        "design_effect": group["design_effect"],
        "answerable": group["answerable"],
        "winner": group["winner"],
        "verdict": group["verdict"],
        "confirmation": confirmation_lines(group, metric),
        "next": group["next"],
        "confirm_command": command,
        "how_to_confirm": None if command is None else how_to_confirm(command),
        "controls": group["controls"],
        "power": group["power"],
        "observations": group["observations"],
        "ranking": rows,
        "panels": dial_panels(group["ranking"], order),
        "lines": reference_lines(group),
        "first_shown": _first_shown(group),
    }


def _first_shown(group: GroupAnalysis) -> list[str]:
    """Return the results whose answers are shown at first: the controls, the baseline and the best repair."""
    rows, controls = group["ranking"], group["controls"]
    clean = [] if controls is None else [controls["clean"]["name"]]
    lower = [] if controls is None else [control["name"] for control in controls["lower"]]
    lower += [row["name"] for row in rows if row["family"] == RANDOM]
    baseline = [row["name"] for row in rows if row["verdict"] == "baseline"]
    repairs = [row["name"] for row in rows if row["verdict"] not in ("baseline", "identity") and not row["supervised"]]
    best = repairs[:1] if group["winner"] is None else [group["winner"]]
    return list(dict.fromkeys([*clean, *baseline[:1], *best, *lower[:1]]))


def _ladder(ladder: LadderTolerance) -> PageLadder:
    """Return the tolerances on a ladder, each with its text for the reader."""
    return {
        "ladder": ladder["ladder"],
        "variant": ladder["variant"],
        "dial": ladder["dial"],
        "unit": ladder["unit"],
        "levels": ladder["levels"],
        "threshold": ladder["threshold"],
        "reason": ladder["reason"],
        "transforms": [{**row, "text": tolerated(row)} for row in ladder["transforms"]],
        "left_out": left_out(ladder),
    }


def _auto(analysis: Analysis) -> PageAuto | None:
    """Return the check of the automatic repair with its verdict in sentences."""
    auto = analysis["auto"]
    if auto is None:
        return None
    return {**auto, "text": goal_lines(auto, analysis["metric"]), "words": [goal_on(one) for one in auto["sources"]]}


def _question(summary: Summary) -> str:
    """Return the question that the sweep answers."""
    results = summary["results"]
    repairs = len({result["experiment"] for result in results if result["family"] != BASELINE})
    sources = _different(result["group"] for result in results)
    return (
        f"Which of {repairs} repairs lets {_different(result['model'] for result in results)} answer questions of "
        f"{_different(result['data'] for result in results)} from embeddings of the source {sources}?"
    )


def _different(values: Iterable[str | int | None]) -> str:
    """Return the distinct values as text in their first order, or "not recorded" without values."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "not recorded"


def _run_facts(summary: Summary, full: Sequence[EvaluationResult]) -> list[tuple[str, str]]:
    """Return names and values of the facts about the run."""
    results = _all_results(summary)
    ok = [result for result in results if succeeded(result)]
    seconds = sum(result["time_sec"] for result in ok)
    versions = [f"{name} {version}" for result in full for name, version in result["versions"].items()]
    left_out = {f"{count} {reason}" for result in ok for reason, count in result["left_out"].items()}
    too_long = max((result["too_long"] for result in ok), default=0)
    return [
        ("command", summary["command"] or "not recorded"),
        ("model", _different(result["model_id"] for result in results)),
        ("data", _different(result["data"] for result in results)),
        ("examples per configuration", _different(result["num_samples"] for result in ok)),
        ("questions of the data left out", "; ".join(sorted(left_out)) or "none"),
        ("too long for the model's context", str(too_long)),
        ("seed", _different(result["seed"] for result in ok)),
        ("device", _different(result["device"] for result in ok)),
        ("dtype", _different(result["dtype"] for result in ok)),
        ("processes", _different(result["processes"] for result in ok)),
        ("time", f"{seconds / 60:.1f} minutes for {len(ok)} results, without loading"),
        ("versions", _different(versions)),
        ("git commit", _different(result["git_commit"] for result in ok)),
    ]


def shared(configs: Sequence[JsonObject]) -> JsonObject:
    """Return the part of nested configs that is equal in all of them."""
    if not configs:
        return {}
    common: JsonObject = {}
    for key, value in configs[0].items():
        others = [config[key] for config in configs[1:] if key in config]
        if len(others) < len(configs) - 1:
            continue
        if all(other == value for other in others):
            common[key] = value
        elif len(nodes := [one for one in (value, *others) if isinstance(one, dict)]) == len(configs):
            common[key] = shared(nodes)
    return common


def choose_shown_examples(answers: Answers, most: int, metric: ShownMetric) -> ShownExamples:
    """Choose the examples that the page contains: examples on which the configurations differ most.

    Groups of results with the same examples take turns, so that each group has some. At least one example is chosen.

    Args:
        answers: Rows of each result, by its name.
        most: Largest number of answers, over all configurations.
        metric: Metric of the shown scores.

    Returns:
        The examples and answers. An answer is None if the result lacks the example.
    """
    by_example: dict[Key, dict[str, ExampleRow]] = {}  # example -> name -> row
    for name, rows in answers.items():
        for row in rows:
            by_example.setdefault((row["id"], row["question"]), {})[name] = row
    chosen = _most_different(answers, by_example, most, metric)
    cut = 0

    def short(text: str) -> str:
        nonlocal cut
        if len(text) <= LONGEST:
            return text
        cut += 1
        return text[:LONGEST] + " \u2026"

    items: list[ShownExample] = []
    for identifier, question in chosen:
        first = next(iter(by_example[identifier, question].values()))
        references = [short(text) for text in first["references"]]
        items.append({"id": identifier, "question": short(question), "references": references})
    texts: dict[str, list[tuple[str, float] | None]] = {name: [] for name in answers}
    for name, shown in texts.items():
        for key in chosen:
            given = by_example[key].get(name)
            shown.append(None if given is None else (short(given["prediction"]), _score(given, metric)))
    return {"total": len(by_example), "cut": cut, "items": items, "answers": texts}


def _most_different(
    answers: Answers, by_example: Mapping[Key, Mapping[str, ExampleRow]], most: int, metric: ShownMetric
) -> list[Key]:
    """Return the examples with the most different scores, up to `most` answers; groups of results take turns."""
    example_sets = dict.fromkeys(tuple((row["id"], row["question"]) for row in rows) for rows in answers.values())
    variance = {key: _variance([_score(row, metric) for row in rows.values()]) for key, rows in by_example.items()}
    queues = [sorted(keys, key=lambda key: -variance[key]) for keys in example_sets]
    chosen: list[Key] = []
    count = 0
    for key in dict.fromkeys(key for turn in zip_longest(*queues) for key in turn if key is not None):
        count += len(by_example[key])
        if chosen and count > most:
            break
        chosen.append(key)
    return chosen


def _score(row: ExampleRow, metric: ShownMetric) -> float:
    return oriented(row["scores"][metric["name"]], metric)


def _variance(scores: Sequence[float]) -> float:
    """Return the variance of the scores of the configurations that answered an example."""
    mean = sum(scores) / len(scores)
    return sum((score - mean) ** 2 for score in scores) / len(scores)


def page(content: PageData) -> str:
    """Return the report as one HTML page, whose content policy forbids scripts, fonts and images from elsewhere.

    Args:
        content: Return value of `collect`. The page treats its texts as data, never as markup.
    """
    colours = {
        scheme: " ".join(f"--{name}: {colour};" for name, colour in of.items())
        for scheme, of in (("light", LIGHT), ("dark", DARK))
    }
    return fill(
        files("latentwire.reports").joinpath("templates/report.html").read_text(encoding="utf-8"), content, **colours
    )
