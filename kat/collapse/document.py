"""The verdict as sections of text, tables and charts, for Markdown and HTML alike. Main entry: `sections_of()`."""

from __future__ import annotations

from collections.abc import Sequence

from kat.collapse.examples import choose_prompts
from kat.collapse.frontier import curve_of, frontier_of
from kat.collapse.measures import KL, QUALITY
from kat.collapse.records import (
    Block,
    ChartBlock,
    CollapseResult,
    ForestBlock,
    ForestEntry,
    ListBlock,
    MeasureRow,
    Section,
    SeedDifference,
    Series,
    SeriesPoint,
    TableBlock,
    TextBlock,
)
from kat.collapse.runs import BASELINE
from kat.collapse.table import BASE, ExperimentRuns, RowKey
from kat.collapse.words import DASH, difference_words, interval_text, mean_text, number_text, p_text_of

PASSED = {True: "passed", False: "FAILED", None: "not measured"}
AT = {QUALITY: "quality", KL: "KL from the base model"}
METHOD = (
    "The unit of replication is the seed: a run gives one number for each measure, and an arm is compared with uniform "
    "sampling of the same seed. Brackets contain 95% intervals of the mean difference over seeds, by Student's t with "
    "Hall's correction for half of the skewness. In simulations with 5, 10 and 20 seeds they cover 93% to 97%, up "
    "to a skewness of 1. A p-value is the larger one with and without that correction.",
    "The deciding measure has a family of tests of its own: its arms under test. All other tests of the page are a "
    "second family. Holm's correction covers each family. A star marks a corrected p below .05 with an interval "
    "without 0.",
    "Equivalence means two one-sided tests with the margins of this page, also with Holm's correction; the sign = "
    "marks p below .05. Positive controls are not hypotheses, so they have intervals only.",
)


def text(words: str, strong: bool = False) -> TextBlock:
    """Return a paragraph."""
    return {"kind": "text", "text": words, "strong": True} if strong else {"kind": "text", "text": words}


def entries(sentences: Sequence[str]) -> ListBlock:
    """Return a list of sentences."""
    return {"kind": "list", "entries": list(sentences)}


def table_block(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> TableBlock:
    """Return a table."""
    return {"kind": "table", "title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def sections_of(result: CollapseResult, runs: ExperimentRuns) -> list[Section]:
    """Return the parts of the page in their order.

    Args:
        result: The verdict; its `sections` are ignored.
        runs: The runs, for curves and completions.
    """
    key: RowKey = (result["measure"], result["group"])
    parts: list[tuple[str, str, list[Block]]] = [
        ("gate", "The gate", _gate(result)),
        ("collapse", "From the base model to each arm", _collapse(result)),
        ("arms", "The arms, measure by measure", _arms(result)),
        ("frontier", "At equal reward and equal KL", _frontier(result, runs, key)),
        ("curves", "During training", _curves(result, runs, key)),
        ("topics", "Exposure and diversity, topic by topic", _topics(result)),
        ("power", "What such an experiment can detect", _power(result)),
        ("prompts", "Completions", _prompts(runs)),
        ("limits", "What this does not show", [entries(result["limits"])]),
        ("method", "Method", _method(result, runs)),
        ("runs", "Runs", _runs(result)),
    ]
    return [{"id": name, "title": title, "blocks": blocks} for name, title, blocks in parts if blocks]


def _gate(result: CollapseResult) -> list[Block]:
    rows = [[check["name"], PASSED[check["passed"]], check["text"]] for check in result["gate"]]
    return [
        text("A verdict needs all of these that are measured: an experiment in which nothing collapses, or whose "
             "metrics do not see what is known to raise diversity, cannot answer."),
        table_block("Conditions of a verdict", ["condition", "", "measured"], rows),
    ]  # fmt: skip


def _collapse(result: CollapseResult) -> list[Block]:
    primary = result["primary"]
    base = primary["base"]
    tested = [one for one in primary["differences"] if one["p_holm"] is not None]
    forest: ForestBlock = {
        "kind": "forest",
        "name": "arms",
        "title": f"{primary['label']}: each arm minus {BASELINE}, 95% intervals over seeds",
        "x": f"difference ({'right' if primary['direction'] > 0 else 'left'}: more diverse)",
        "margin": next((one["equivalence"]["margin"] for one in tested if one["equivalence"]), None),
        "entries": [_forest_entry(one) for one in primary["differences"]],
    }
    rows = [[BASE, mean_text(base), DASH, DASH, DASH, DASH]]
    by_arm = {one["arm"]: one for one in primary["differences"]}
    for arm in result["arms"]:
        one = by_arm.get(arm)
        lost = None if base is None else primary["arms"][arm]["mean"] - base["mean"]
        rows.append([
            f"{arm} ({primary['arms'][arm]['seeds']} seeds)",
            mean_text(primary["arms"][arm]),
            DASH if lost is None else number_text(lost, sign=True),
            DASH if one is None else difference_words(one),
            DASH if one is None else p_text_of(one["p_holm"]),
            DASH if one is None or one["equivalence"] is None else p_text_of(one["equivalence"]["p_holm"]),
        ])  # fmt: skip
    columns = ["arm", "after training", f"minus {BASE}", f"minus {BASELINE}", "p (Holm)", "p of equivalence (Holm)"]
    return [forest, table_block(f"The deciding measure: {primary['label']}", columns, rows), text(_margin(result))]


def _forest_entry(one: SeedDifference) -> ForestEntry:
    return {"name": one["arm"], "difference": one["difference"], "interval": one["interval"]}


def _margin(result: CollapseResult) -> str:
    """Return where the margin of the deciding measure comes from."""
    key = (result["measure"], result["group"])
    found = next((one for one in result["margins"] if (one["measure"], one["group"]) == key), None)
    if found is None:
        return ("No margin: collapse.control_seeds names no finished runs that lose diversity, so equivalence is not "
                "tested.")  # fmt: skip
    seeds = ", ".join(map(str, result["control_seeds"]))
    return (
        f"The margin is {found['margin']:.3f}: {result['margin_share']:.0%} of the {found['lost']:.3f} that uniform "
        f"sampling loses from the {BASE} in the control runs (seeds {seeds}). The compared runs have other seeds."
    )


def _arms(result: CollapseResult) -> list[Block]:
    """Return the tables of all other measures."""
    texts = [row for row in result["measures"] if "/" in row["measure"]]
    others = [row for row in result["measures"] if "/" not in row["measure"]]
    tests = sum(one["p_holm"] is not None for row in result["measures"] for one in row["differences"])
    tests += sum(one["p_holm"] is not None for each in result["equal"] for one in each["differences"])
    blocks: list[Block] = [
        text(f"Differences from {BASELINE} after training. Holm's correction covers {tests} tests: these tables and "
             "the comparisons at equal reward and KL. An arrow "
             "points to more diversity, and a check mark means that the measure shows both positive controls as more "
             "diverse."),
    ]  # fmt: skip
    for title, rows in (("Answers", others), ("Metrics of task=diversity, over words", texts)):
        if rows:
            blocks.append(_difference_table(title, result["arms"], rows))
    blocks.append(_mean_table("Means after training", result["arms"], [result["primary"], *result["measures"]]))
    blocks.append(_mean_table("What else the arms do", result["arms"], result["context"]))
    return blocks


def _difference_table(title: str, arms: Sequence[str], rows: Sequence[MeasureRow]) -> TableBlock:
    cells = []
    for row in rows:
        found = {one["arm"]: difference_words(one) for one in row["differences"]}
        sees = {True: "\u2713", False: DASH, None: ""}[row["sees_controls"]]
        cells.append([row["label"] + _arrow(row), sees, *(found.get(arm, DASH) for arm in arms[1:])])
    return table_block(f"{title}: each arm minus {BASELINE}", ["measure", "sees controls", *arms[1:]], cells)


def _mean_table(title: str, arms: Sequence[str], rows: Sequence[MeasureRow]) -> TableBlock:
    cells = [[row["label"], mean_text(row["base"]), *(mean_text(row["arms"].get(arm)) for arm in arms)] for row in rows]
    return table_block(title, ["measure", BASE, *arms], cells)


def _arrow(row: MeasureRow) -> str:
    return {1: " \u2191", -1: " \u2193", 0: ""}[row["direction"]]


def _frontier(result: CollapseResult, runs: ExperimentRuns, key: RowKey) -> list[Block]:
    blocks: list[Block] = []
    for each in result["equal"]:
        name = AT[each["at"]]
        chart: ChartBlock = {
            "kind": "chart",
            "name": f"frontier_{each['at']}",
            "title": f"{result['label']} against {name}, evaluation by evaluation",
            "x": name,
            "y": result["label"],
            "shape": "line",
            "series": [frontier_of(runs, arm, each["at"], key) for arm in result["arms"]],
        }
        rows = [
            [one["arm"], difference_words(one), p_text_of(one["p_holm"]), str(len(one["seeds"])), str(one["left_out"])]
            for one in each["differences"]
        ]
        columns = ["arm", f"minus {BASELINE}", "p (Holm)", "seeds", "pairs left out"]
        blocks += [chart, table_block(f"At a {name} of {each['level']:.3f}", columns, rows)]
    blocks.append(text("Each run is interpolated between its evaluations, where it first reaches the level. All arms "
                       "under test reach it in all but a tenth of the seeds. A run that does not is left out of this "
                       "comparison only."))  # fmt: skip
    return blocks


def _curves(result: CollapseResult, runs: ExperimentRuns, key: RowKey) -> list[Block]:
    shown = [(key[0], result["label"]), (QUALITY, "quality")]
    charts: list[Block] = []
    for name, label in shown:
        chart: ChartBlock = {
            "kind": "chart",
            "name": f"curve_{name}",
            "title": f"{label} during training, means over seeds",
            "x": "step",
            "y": label,
            "shape": "line",
            "series": [curve_of(runs, arm, (name, "all")) for arm in result["arms"]],
        }
        charts.append(chart)
    return charts


def _topics(result: CollapseResult) -> list[Block]:
    topics = result["topics"]
    if not topics:
        return []
    arms = result["arms"]
    series: list[Series] = []
    for arm in arms:
        points: list[SeriesPoint] = [
            {"x": 100 * row["exposure"][arm], "y": row["diversity"][arm], "interval": None,
             "label": f"topic {row['topic']}"}
            for row in topics if arm in row["diversity"]
        ]  # fmt: skip
        series.append({"name": arm, "points": points})
    chart: ChartBlock = {
        "kind": "chart",
        "name": "exposure",
        "title": f"{result['label']} of each topic against its share of the draws",
        "x": "share of the draws, %",
        "y": result["label"],
        "shape": "points",
        "doubling": all(point["x"] > 0 for one in series for point in one["points"]),
        "series": series,
    }
    slopes = [[one["arm"], interval_text(one["slope"], one["interval"], sign=True), str(one["seeds"])]
              for one in result["slopes"]]  # fmt: skip
    rows = [
        [f"{row['topic']}{' (rare)' if row['rare'] else ''}", str(row["size"]), _value(row["diversity"].get(BASE)),
         *(f"{100 * row['exposure'][arm]:.1f}% / {_value(row['diversity'].get(arm))}" for arm in arms)]
        for row in topics
    ]  # fmt: skip
    blocks: list[Block] = [chart]
    if slopes:
        columns = ["arm", f"change of the {result['label']} for twice the draws", "seeds"]
        blocks.append(table_block("Slope over topics, with intervals over seeds", columns, slopes))
    columns = ["topic", "prompts", BASE, *arms]
    return [*blocks, table_block(f"Share of the draws / {result['label']}", columns, rows)]


def _value(value: float | None) -> str:
    return DASH if value is None else number_text(value)


def _power(result: CollapseResult) -> list[Block]:
    if not result["power"]:
        return []
    rows = []
    for one in result["power"]:
        needed = [str(n) if n is not None else f"over {one['most_seeds']}"
                  for n in (one["seeds_needed"], one["seeds_needed_corrected"])]  # fmt: skip
        share = DASH if one["prompt_share"] is None else f"{one['prompt_share']:.0%}"
        rows.append([one["arm"], str(one["seeds"]), number_text(one["sd"]), share, number_text(one["detectable"]),
                     number_text(one["detectable_corrected"]), *needed])  # fmt: skip
    first = result["power"][0]
    columns = ["arm", "seeds", "sd between seeds", "of it by prompts", "detects",
               f"corrected for {first['tests']} tests", f"seeds for {first['target']:.3f}", "corrected"]  # fmt: skip
    return [
        text("From the spread of the differences between seeds: the difference that 80% of such experiments would "
             f"show, and the seeds that a difference of {first['target']:.3f} takes. The spread is itself an estimate, "
             "which these numbers allow for. They assume normal differences."),
        table_block(f"Power for the {result['label']}", columns, rows),
    ]  # fmt: skip


def _prompts(runs: ExperimentRuns) -> list[Block]:
    chosen = choose_prompts(runs)
    shown = [BASE, *runs.arms]
    seed = chosen[0]["seed"] if chosen else 0
    words = text(f"{len(chosen)} prompts of seed {seed}, evenly spaced in the order of their ids, half of them of "
                 "rare topics where topics are known. Equal completions are counted; \u2717 marks those that are not "
                 "good.")  # fmt: skip
    return [words, {"kind": "answers", "arms": shown, "prompts": chosen}]


def _method(result: CollapseResult, runs: ExperimentRuns) -> list[Block]:
    known = [result["primary"], *result["measures"], *result["context"]]
    names = list(dict.fromkeys(row["measure"] for row in known))
    definitions = [f"{runs.measures[name].label}: {runs.measures[name].definition}." for name in names]
    return [*(text(words) for words in METHOD), entries(definitions)]


def _runs(result: CollapseResult) -> list[Block]:
    finished = [state for state in result["runs"] if state["status"] == "finished"]
    others = [state for state in result["runs"] if state["status"] != "finished"]
    counts = {status: sum(state["status"] == status for state in result["runs"])
              for status in ("finished", "unfinished", "failed", "damaged", "missing")}  # fmt: skip
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    blocks: list[Block] = [text(f"Runs in {result['folder']}: {words}."), entries(result["warnings"])]
    if others:
        rows = [[state["arm"], str(state["seed"]), state["status"], state["reason"]] for state in others]
        blocks.append(table_block("Runs that do not count", ["arm", "seed", "", "reason"], rows))
    arms = dict.fromkeys(state["arm"] for state in finished)
    rows = [[arm, ", ".join(str(state["seed"]) for state in finished if state["arm"] == arm)] for arm in arms]
    return [*blocks, table_block("Finished runs", ["arm", "seeds"], rows)]
