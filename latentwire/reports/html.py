"""The report of a finished sweep: one page that opens without any network, and its figures as PNG beside it."""

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

ANSWERS = 20_000  # the page carries at most so many answers
LONGEST = 300  # characters of a question, reference or answer; what is longer is cut, with a mark
OF_RESULT = ("cut_off", "relative_change", "time_sec")  # shown with a row of the ranking


def write_report(folder: Path, summary: Summary) -> Path:
    """Write report.html and figures/*.png into the folder of a sweep; return the page's path.

    Args:
        folder: Holds the results and predictions that the summary was made from.
        summary: With its analysis.

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
    """Return all that the page shows, as plain values.

    Args:
        summary: With its analysis.
        answers: Of the successful results and controls.
        full: Their result files, for what a summary leaves out (config, versions); may be fewer, or none.
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
        "asked": _asked(summary),
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
        "run": _how(summary, full),
        "config": json.dumps(shared([result["config"] for result in full if "config" in result]), indent=1,
                             ensure_ascii=False),
    }  # fmt: skip


def _tolerance(analysis: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tolerances with what is to be read of each."""
    ladders = (analysis.get("atlas") or {}).get("tolerance", [])
    return [
        {**ladder, "transforms": [{**row, "told": tolerated(row)} for row in ladder["transforms"]],
         "left_out": left_out(ladder)}
        for ladder in ladders
    ]  # fmt: skip


def _auto(analysis: dict[str, Any]) -> dict[str, Any] | None:
    """Return the goal of the automatic repair with its verdict in sentences."""
    auto = analysis.get("auto")
    return None if auto is None else {**auto, "told": goal_lines(auto)}


def _asked(summary: Summary) -> str:
    """Return the question of the sweep in a sentence."""
    results = summary["results"]
    repairs = len({result["experiment"] for result in results if result["family"] != "baseline"})
    sources = _different(result["group"] for result in results)
    return (
        f"Which of {repairs} repairs lets {_different(result.get('model') for result in results)} answer questions of "
        f"{_different(result.get('data') for result in results)} from embeddings of the source {sources}?"
    )


def _different(values: Iterable[Any]) -> str:
    """Return the different values as a text, in the order they came; "not recorded" where there is none."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "not recorded"


def _how(summary: Summary, full: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return how the sweep was run, as pairs of words and values."""
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
        ("examples of a configuration", _different(result["num_samples"] for result in ok)),
        ("questions of the data left out", "; ".join(sorted(left_out)) or "none"),
        ("too long for the model's context", str(too_long)),
        ("seed", _different(result.get("seed") for result in ok)),
        ("device", _different(result.get("device") for result in ok)),
        ("dtype", _different(result.get("dtype") for result in ok)),
        ("processes", _different(result.get("processes") for result in ok)),
        ("time", f"{seconds / 60:.1f} minutes for {len(ok)} results, loading not counted"),
        ("versions", _different(versions)),
        ("git commit", _different(result.get("git_commit") for result in ok)),
    ]


def shared(configs: list[Any]) -> Any:
    """Return what nested configs have in common: the keys whose values are equal in all of them."""
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
    """Choose the examples that the page carries: those on which the configurations differ most, for its size.

    Results that were asked the same examples take turns, so that none is left without. At least one example is
    carried, however many configurations answered it.

    Args:
        answers: By name of the result.
        most: Answers carried at most, over all configurations.

    Returns:
        {total, cut: how many texts were cut, items: [{id, question, references}], answers: {name: [[text, f1] or
        None where it was not asked, one for each item]}}.
    """
    by_example: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # (id, question) -> name -> row
    asked_together: dict[tuple[tuple[str, str], ...], None] = {}
    for name, rows in answers.items():
        keys = [(str(row["id"]), row["question"]) for row in rows]
        asked_together[tuple(keys)] = None
        for key, row in zip(keys, rows, strict=True):
            by_example.setdefault(key, {})[name] = row
    queues = [sorted(keys, key=lambda key: -_spread(by_example[key])) for keys in asked_together]
    chosen: list[tuple[str, str]] = []
    carried = 0
    for key in dict.fromkeys(key for turn in zip_longest(*queues) for key in turn if key is not None):
        carried += len(by_example[key])
        if chosen and carried > most:
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


def _spread(rows: dict[str, dict[str, Any]]) -> float:
    """Return the variance of F1 over the configurations that answered an example."""
    scores = [row["f1"] for row in rows.values()]
    mean = sum(scores) / len(scores)
    return sum((score - mean) ** 2 for score in scores) / len(scores)


def page(content: dict[str, Any]) -> str:
    """Return the report as one HTML page: no scripts, fonts or images from elsewhere, and a policy that forbids them.

    Args:
        content: Of `collect`. Its texts are data to the page, never markup.
    """
    colours = {
        scheme: " ".join(f"--{name}: {colour};" for name, colour in of.items())
        for scheme, of in (("light", LIGHT), ("dark", DARK))
    }
    return fill(
        files("latentwire.reports").joinpath("templates/report.html").read_text(encoding="utf-8"), content, **colours
    )
