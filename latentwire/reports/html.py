"""The report of a finished sweep: one HTML page that needs no network, and figures. Main entry: `write_report()`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from latentwire.analysis.ranking import coverage
from latentwire.harness.pages import fill
from latentwire.harness.results import ResultStore, read_json, read_jsonl, write_text_atomically
from latentwire.reports.figures import draw_all
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
from latentwire.reports.text import goal_lines, incomplete, left_out, tolerated
from latentwire.stats.intervals import FEW

Summary = dict[str, Any]
Answers = dict[str, list[dict[str, Any]]]  # name of a result -> its rows: id, question, references, prediction, f1, em

ANSWERS = 20_000  # answers that the page contains at most
LONGEST = 300  # characters of a question, reference or answer; longer texts are cut and marked
OF_RESULT = ("cut_off", "relative_change", "time_sec")  # fields of a result that its row of the ranking shows


def write_report(folder: Path, summary: Summary) -> Path:
    """Write report.html and figures/*.png into the folder of a sweep.

    Args:
        folder: Folder with the results and predictions of the summary.
        summary: Summary of the sweep, with its analysis.

    Returns:
        Path of report.html.

    Raises:
        ResultWriteError: The folder cannot be written.
    """
    store = ResultStore(folder)
    successful = [result for result in _all_results(summary) if result["status"] == "ok"]
    answers = {result["name"]: read_jsonl(store.predictions_path(result["name"])) for result in successful}
    full = []
    for result in successful:
        path = store.path(result["name"])
        found = read_json(path) if path.is_file() else {}
        if found.get("config_hash") == result.get("config_hash"):
            full.append(found)
    content = collect(summary, answers, full)
    path = folder / "report.html"
    write_text_atomically(path, page(content))
    draw_all(content["groups"], _order(summary), content["top"], folder / "figures")
    return path


def _all_results(summary: Summary) -> list[dict[str, Any]]:
    return [*summary["results"], *summary.get("controls", [])]


def _order(summary: Summary) -> list[str]:
    return [result["experiment"] for result in summary["results"]]


def collect(summary: Summary, answers: Answers, full: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of the page as plain values.

    Args:
        summary: Summary of the sweep, with its analysis.
        answers: Rows of the successful results and controls, by name.
        full: Contents of their result files, for the config and versions; files may be missing.
    """
    analysis = summary["analysis"]
    result_of = {result["name"]: result for result in summary["results"]}
    order = _order(summary)
    groups = []
    for group in analysis["groups"]:
        rows = [
            {**row, **{key: result_of[row["name"]].get(key) for key in OF_RESULT}, "group": group["group"]}
            for row in group["ranking"]
        ]
        panels = dial_panels(rows, order)
        groups.append({**group, "ranking": rows, "panels": panels, "lines": reference_lines(group)})
    return {
        "sweep": summary["sweep"],
        "asked": _question(summary),
        "counts": {key: summary[key] for key in ("total_experiments", "successful", "failed")},
        "failures": [
            {"name": result["name"], "error": result.get("error", "")}
            for result in _all_results(summary)
            if result["status"] != "ok"
        ],
        "warnings": analysis.get("warnings"),
        "budget": summary.get("budget"),
        "groups": groups,
        "top": scale_top(groups),
        "heat_text_turns": HEAT_TEXT_TURNS,
        "colour_of": COLOUR_OF,
        "line_colours": LINES,
        "matrix": matrix(groups, order),
        "tolerance": _tolerance(analysis),
        "most": coverage(analysis["groups"])["most"],
        "few_examples": FEW,
        "incomplete": incomplete(summary),
        "auto": _auto(analysis),
        "examples": choose_shown_examples(answers, ANSWERS),
        "run": _run_facts(summary, full),
        "config": json.dumps(shared([result["config"] for result in full if "config" in result]), indent=1,
                             ensure_ascii=False),
    }  # fmt: skip


def _tolerance(analysis: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tolerances, each with its text for the reader."""
    ladders = (analysis.get("atlas") or {}).get("tolerance", [])
    return [
        {**ladder, "transforms": [{**row, "told": tolerated(row)} for row in ladder["transforms"]],
         "left_out": left_out(ladder)}
        for ladder in ladders
    ]  # fmt: skip


def _auto(analysis: dict[str, Any]) -> dict[str, Any] | None:
    """Return the check of the automatic repair with its verdict in sentences."""
    auto = analysis.get("auto")
    return None if auto is None else {**auto, "told": goal_lines(auto)}


def _question(summary: Summary) -> str:
    """Return the question that the sweep answers."""
    results = summary["results"]
    repairs = len({result["experiment"] for result in results if result["family"] != "baseline"})
    sources = _different(result["group"] for result in results)
    return (
        f"Which of {repairs} repairs lets {_different(result.get('model') for result in results)} answer questions of "
        f"{_different(result.get('data') for result in results)} from embeddings of the source {sources}?"
    )


def _different(values: Iterable[Any]) -> str:
    """Return the distinct values as text in their first order, or "not recorded" without values."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "not recorded"


def _run_facts(summary: Summary, full: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return names and values of the facts about the run."""
    results = _all_results(summary)
    ok = [result for result in results if result["status"] == "ok"]
    seconds = sum(result.get("time_sec", 0.0) for result in ok)
    versions = [f"{name} {version}" for result in full for name, version in result.get("versions", {}).items()]
    left_out = {f"{count} {reason}" for result in ok for reason, count in (result.get("left_out") or {}).items()}
    too_long = max((result.get("too_long", 0) for result in ok), default=0)
    return [
        ("command", summary.get("command") or "not recorded"),
        ("model", _different(result.get("model_id") or result.get("model") for result in results)),
        ("data", _different(result.get("data") for result in results)),
        ("examples per configuration", _different(result["num_samples"] for result in ok)),
        ("questions of the data left out", "; ".join(sorted(left_out)) or "none"),
        ("too long for the model's context", str(too_long)),
        ("seed", _different(result.get("seed") for result in ok)),
        ("device", _different(result.get("device") for result in ok)),
        ("dtype", _different(result.get("dtype") for result in ok)),
        ("processes", _different(result.get("processes") for result in ok)),
        ("time", f"{seconds / 60:.1f} minutes for {len(ok)} results, without loading"),
        ("versions", _different(versions)),
        ("git commit", _different(result.get("git_commit") for result in ok)),
    ]


def shared(configs: list[Any]) -> Any:
    """Return the part of nested configs that is equal in all of them."""
    if not configs:
        return {}
    common = {}
    for key, value in configs[0].items():
        others = [config[key] for config in configs[1:] if key in config]
        if len(others) < len(configs) - 1:
            continue
        if all(other == value for other in others):
            common[key] = value
        elif isinstance(value, dict) and all(isinstance(other, dict) for other in others):
            common[key] = shared([value, *others])
    return common


def choose_shown_examples(answers: Answers, most: int) -> dict[str, Any]:
    """Choose the examples that the page contains: examples on which the configurations differ most.

    Groups of results with the same examples take turns, so that each group has some. At least one example is chosen.

    Args:
        answers: Rows of each result, by its name.
        most: Largest number of answers, over all configurations.

    Returns:
        {total: number of examples, cut: number of cut texts, items: [{id, question, references}],
        answers: {name: [[text, f1] or None for each item]}}. None means that the result lacks the example.
    """
    by_example: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # (id, question) -> name -> row
    example_sets: dict[tuple[tuple[str, str], ...], None] = {}
    for name, rows in answers.items():
        keys = [(str(row["id"]), row["question"]) for row in rows]
        example_sets[tuple(keys)] = None
        for key, row in zip(keys, rows, strict=True):
            by_example.setdefault(key, {})[name] = row
    queues = [sorted(keys, key=lambda key: -_variance(by_example[key])) for keys in example_sets]
    chosen: list[tuple[str, str]] = []
    count = 0
    for key in dict.fromkeys(key for turn in zip_longest(*queues) for key in turn if key is not None):
        count += len(by_example[key])
        if chosen and count > most:
            break
        chosen.append(key)
    cut = 0

    def short(text: str) -> str:
        nonlocal cut
        if len(text) <= LONGEST:
            return text
        cut += 1
        return text[:LONGEST] + " \u2026"

    items = []
    for identifier, question in chosen:
        first = next(iter(by_example[identifier, question].values()))
        references = [short(text) for text in first["references"]]
        items.append({"id": identifier, "question": short(question), "references": references})
    texts: dict[str, list[Any]] = {
        name: [
            [short(given["prediction"]), given["f1"]] if (given := by_example[key].get(name)) is not None else None
            for key in chosen
        ]
        for name in answers
    }
    return {"total": len(by_example), "cut": cut, "items": items, "answers": texts}


def _variance(rows: dict[str, dict[str, Any]]) -> float:
    """Return the variance of F1 over the configurations that answered an example."""
    scores = [row["f1"] for row in rows.values()]
    mean = sum(scores) / len(scores)
    return sum((score - mean) ** 2 for score in scores) / len(scores)


def page(content: dict[str, Any]) -> str:
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
