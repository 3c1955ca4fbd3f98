"""The analysis by another primary metric than F1, and its records compared with their types."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from latentwire.analysis import records
from latentwire.analysis.confirmation import confirmations
from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ladder import Ladder
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports import records as page_records
from latentwire.reports.html import collect
from latentwire.reports.tables import tables
from latentwire.reports.text import render
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import mean_interval
from tests.helpers.random import numbers
from tests.helpers.records import mismatches
from tests.helpers.results import IDS, result_of, right, scored, summary_with

WER = {"name": "wer", "label": "1 - WER", "higher_is_better": False}
EM = {"name": "em", "label": "exact match", "higher_is_better": True}
SETTINGS = AnalysisSettings(0.1, 0.05)
NOISY = Ladder("snr_db", "dB", "linear", rising=False, clean=None, source="noisy")
MIXED = Ladder("rate", "share", "linear", rising=True, clean=0.0, source="mixed")

# source, level -> transform -> mean of the metric in the direction in which lower is better
ERRORS = {
    ("text", None): {"baseline": 0.1, "nearest_k": 0.2, "auto": 0.1},
    ("noisy", 6.0): {"baseline": 0.6, "nearest_k": 0.2, "auto": 0.15},
    ("noisy", 0.0): {"baseline": 0.9, "nearest_k": 0.3, "auto": 0.25},
}


def analysis_by(metric: dict, means: dict, empty: float, other: dict[str, float] | None = None) -> tuple[dict, dict]:
    """Analyse (source, level) -> transform -> mean of the metric.

    Args:
        metric: The primary metric.
        means: Means of the metric itself, not oriented.
        empty: Mean of the control without passages.
        other: Means of F1 by transform; each transform has F1 .5 without it.

    Returns:
        The analysis, and the scores that it read.
    """
    rows = [(source, level, family, mean) for (source, level), row in means.items() for family, mean in row.items()]
    rows.append(("text", None, "control_empty", empty))
    results, scores = [], {}
    for source, level, family, mean in rows:
        group = source if level is None else f"{source}{level}"
        name = family if source == "text" else f"{family}@{group}"
        values = right(mean)
        scores[name] = scored(values if metric["higher_is_better"] else 1 - values)
        result = result_of(family, name, right((other or {}).get(family, 0.5)), group, experiment=family, source=source)
        result["source_dials"] = {} if level is None else {"snr_db": level}
        result["scores"][metric["name"]] = {"mean": mean, "interval": (mean - 0.02, mean + 0.08)}
        results.append(result)
    control = results.pop() | {"family": "baseline", "control": "empty"}
    return analyze(results, scores, [control], SETTINGS, metric, [NOISY]), scores


def test_with_an_error_rate_the_lowest_wins():
    """F1 has the opposite order."""
    f1s = {"baseline": 0.9, "nearest_k": 0.8, "auto": 0.1}
    analysis, _ = analysis_by(WER, ERRORS, 0.95, f1s)
    text, milder, _ = analysis["groups"]
    assert milder["winner"] == "auto@noisy6.0"
    assert [row["experiment"] for row in milder["ranking"]] == ["auto", "nearest_k", "baseline"]
    best = milder["ranking"][0]
    assert best["score"] == pytest.approx(0.85) and best["f1"] == pytest.approx(0.1)
    low, high = mean_interval(right(0.15))
    assert best["score_interval"] == pytest.approx((1 - high, 1 - low))  # the ends of the error rate swap
    assert best["difference"] == pytest.approx(0.45)
    assert milder["baseline_score"] == pytest.approx(0.4)
    assert milder["controls"]["clean"]["score"] == pytest.approx(0.9)
    assert milder["controls"]["lower"][0]["score"] == pytest.approx(0.05)
    assert best["recovered"] == pytest.approx(0.8 / 0.85)
    shown = f"{format_score(1 - high)}, {format_score(1 - low)}"
    assert milder["verdict"].startswith("auto is best of 2: 1 - WER .8")
    assert milder["verdict"].endswith("baseline .400, level with nearest_k.") and shown
    assert text["winner"] is None


def test_an_error_rate_orients_matrix_tolerance_and_goal():
    analysis, _ = analysis_by(WER, ERRORS, 0.95)
    atlas, auto = analysis["atlas"], analysis["auto"]
    assert [[cell["score"] for cell in row] for row in atlas["matrix"]] == [
        pytest.approx([1 - error for error in row.values()]) for row in ERRORS.values()
    ]
    (ladder,) = atlas["tolerance"]
    assert ladder["threshold"] == pytest.approx(0.45)
    baseline = ladder["transforms"][0]
    assert baseline["scores"] == pytest.approx([0.4, 0.1])
    assert baseline["status"] == "before"  # .4 at the first level is below the half of .9
    milder = auto["sources"][1]
    assert (milder["best"], milder["best_share"]["score"]) == ("nearest_k", pytest.approx(0.8))
    share = milder["auto_share"]
    assert (share["score"], share["share"]) == (pytest.approx(0.85), pytest.approx(0.85 / 0.9))
    assert "of the clean 1 - WER" in auto["definition"]


def test_an_error_rate_reaches_the_smallest_clean_score():
    """A clean error rate of .95 is a score of .05, below the smallest one of .1."""
    analysis, _ = analysis_by(WER, {("text", None): {"baseline": 0.95, "nearest_k": 0.5}}, 0.99)
    (group,) = analysis["groups"]
    reason = "the clean baseline scores too low: 1 - WER .050, below min_clean_score=.100"
    assert (group["answerable"], group["reason"]) == (False, reason)


def test_the_text_names_the_primary_metric():
    means = {key: {name: 1 - error for name, error in row.items()} for key, row in ERRORS.items()}
    analysis, _ = analysis_by(EM, means, 0.05, {"auto": 0.3})
    text = render(summary_with(analysis))
    heads = [line for line in text.splitlines() if "95% interval" in line and "empty" in line]
    assert all(line.split()[:6] == ["exact", "match", "95%", "interval", "F1", "empty"] for line in heads)
    first = next(line for line in text.splitlines() if line.startswith("  1xauto "))
    assert [first[heads[0].index(name) :].split()[0] for name in ("exact match", "F1")] == [".900", ".300"]
    for shown in (
        "Baseline exact match > 0.5", "Upper control  baseline exact match .900", "80% of the baseline's exact match",
        "(exact match - empty) / (clean - empty)", "=== the matrix: exact match by source and transform ===",
        "highest mean exact match", "where exact match falls to half", "90% of the clean exact match, if one",
        "Harm on clean text (text, n=200): exact match",
    ):  # fmt: skip
        assert shown in " ".join(text.split()) or shown in text, shown
    assert [word for word in text.split() if "F1" in word] == ["F1"] * len(heads)


def test_f1_and_em_stand_next_to_a_third_metric():
    analysis, scores = analysis_by(WER, {("text", None): {"baseline": 0.1, "nearest_k": 0.2}}, 0.9)
    (head,) = [line for line in render(summary_with(analysis)).splitlines() if "95% interval" in line]
    assert head.split()[:7] == ["1", "-", "WER", "95%", "interval", "F1", "EM"]
    assert scores["baseline"].scores.mean() == pytest.approx(0.9)


def test_the_ranking_table_has_the_score_and_f1():
    analysis, _ = analysis_by(WER, {("text", None): {"baseline": 0.1, "nearest_k": 0.2}}, 0.9)
    control = result_of("baseline", "control_empty", right(0.5), "text", control="empty")
    control["scores"]["wer"] = {"mean": 0.9, "interval": (0.8, 0.95)}
    example = {"id": "q", "question": "?", "references": ["a", "b"], "prediction": "p", "scores": {"wer": 0.25}}
    found = tables(summary_with(analysis) | {"controls": [control]}, [(control, [example])])
    columns, rows = found["ranking"]
    first = dict(zip(columns, rows[0], strict=True))
    assert (first["score"], first["f1"]) == (pytest.approx(0.9), pytest.approx(0.5))
    assert (first["score_low"], first["score_high"]) == pytest.approx(mean_interval(1 - right(0.1)))
    assert first["cross_fit"] is None  # the baseline was not chosen
    columns, (source,) = found["sources"]
    assert dict(zip(columns, source, strict=True))["winner"] is None
    columns, (row,) = found["controls"]
    assert dict(zip(columns, row, strict=True))["score"] == pytest.approx(0.1)
    columns, (row,) = found["examples"]
    assert dict(zip(columns, row, strict=True))["score"] == 0.75


# --- records ----------------------------------------------------------------------------------------------------


@functools.cache  # tests only read it
def rich_summary() -> tuple[dict, dict[str, list[dict]]]:
    """Return a summary whose analysis contains every kind of record, and its predictions."""
    generator = numbers(0)
    kinds = [("baseline", {}), ("auto", {}), ("random_interpolation", {"k": 3}), ("procrustes_supervised", {}),
             *(("nearest_k", {"k": k, "alpha": a}) for k in (3, 5, 10) for a in (0.2, 0.5, 0.7)),
             *(("anchor_offset", {"eps": eps}) for eps in (0.01, 0.3))]  # fmt: skip
    results, scores, answers = [], {}, {}

    def add(family: str, name: str, source: str, level: float | None, values: np.ndarray, **more: object) -> dict:
        dials = {} if level is None else {{"noisy": "snr_db", "mixed": "rate"}[source]: level}
        group = source if level is None else f"{source}{level}"
        scores[name] = scored(values)
        answers[name] = [
            {"id": i, "question": "?", "references": ["a"], "prediction": "p", "f1": value, "em": 0.0,
             "scores": {"f1": value, "em": 0.0}, "cut_off": False, "change": 0.5}
            for i, value in zip(IDS, values, strict=False)
        ]  # fmt: skip
        return result_of(family, name, values, group, source=source, source_dials=dials, **more)

    levels = [("text", None), ("noisy", 6.0), ("noisy", 0.0), ("mixed", 0.2), ("mixed", 0.5)]
    for place, (source, level) in enumerate(levels):
        for family, dials in kinds:
            experiment = "_".join([family, *(f"{dial}{value}" for dial, value in dials.items())])
            share = 0.8 if source == "text" or family in ("auto", "procrustes_supervised") else 0.6 - 0.1 * place
            share = 0.1 if family == "random_interpolation" else share
            count = 20 if (family, source) == ("anchor_offset", "mixed") else len(IDS)
            fit = {"embeddings": 9, "sees": "pairs", "supervised": True, "diagnosis": {}} if "super" in family else None
            finding = [{"kind": "all_alike", "level": "note", "message": "alike"}] if family == "auto" else []
            values = (generator.random(count) < share).astype(float)
            results.append(add(family, f"{experiment}@{source}{level}", source, level, values, experiment=experiment,
                               dials=dials, fit=fit, warnings=finding))  # fmt: skip
    for family in ("baseline", "auto"):
        values = (generator.random(len(IDS)) < 0.8).astype(float)
        again = add(family, f"{family}@draw1", "text", None, values, experiment=family, variant="@draw1", draw=1)
        results.append(again | {"group": "text@draw1"})
    control = add("baseline", "control_empty", "text", None, right(0.05), control="empty")
    head = ("format", "name", "experiment", "family", "dials", "source", "source_dials", "group", "variant", "control",
            "config_hash", "model", "model_id", "data", "num_examples", "seed", "dtype", "device", "processes",
            "git_commit")  # fmt: skip
    failed = {key: results[-1][key] for key in head} | {"name": "broken", "status": "failed", "error": "k=0: too low"}
    analysis = analyze(results, scores, [control], SETTINGS, F1, [NOISY, MIXED])
    confirmed = confirmations(analysis["groups"], analysis["groups"])
    for group in analysis["groups"]:
        group["confirmation"] = confirmed.get(group["group"])
    halving = {"round": 1, "samples": 8, "decided_on": 8, "why": "Time.",
               "groups": [{"group": "text", "names": ["a"], "kept": ["a"], "left_out": ["b"]}]}  # fmt: skip
    budget = {"key": "k", "minutes": 30.0, "configurations": 9, "wanted": 200, "first": 16, "samples": 200,
              "estimate": {"names": ["baseline"], "samples": 16, "seconds_per_example": 0.1}, "stopped": "done",
              "seconds_per_example": 0.2, "seconds_spent": 9.0, "time_model": "t", "halvings": [halving],
              "note": "n"}  # fmt: skip
    summary = summary_with(analysis, [*results, failed]) | {"controls": [control], "budget": budget}
    return summary, answers


def types_in(*modules: object) -> set[type]:
    """Return the TypedDicts that modules define."""
    return {
        one for module in modules for one in vars(module).values()
        if hasattr(one, "__required_keys__") and one.__module__ == module.__name__
    }  # fmt: skip


def test_analysis_and_page_are_as_their_records_state():
    """Every record occurs, with exactly its keys and types, apart from those that the sweep fills."""
    summary, answers = rich_summary()
    full = [result | {"versions": {"torch": "9"}, "config": {"samples": 4}} for result in summary["results"][:2]]
    met: set[type] = set()
    assert mismatches(records.Summary, summary, met) == []
    assert mismatches(page_records.PageData, collect(summary, answers, full), met) == []
    parts = {records.Configuration, records.GroupVerdict}  # fields of other records
    of_sweep = {records.SortedByF1, records.SortedByScore}
    assert types_in(records, page_records) - met == parts | of_sweep


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, ".score: None is not a number"),
        ({"verdict": "best"}, ".verdict: 'best' is not in "),
        ({"extra": 1}, ": RankingRow has no extra"),
        ({"score_interval": (0.1,)}, ".score_interval: (0.1,) is not a tuple"),
    ],
)
def test_a_record_that_differs_from_its_type_is_found(change, message):
    summary, _ = rich_summary()
    row = summary["analysis"]["groups"][0]["ranking"][0]
    assert mismatches(records.RankingRow, row) == []
    (found,) = mismatches(records.RankingRow, row | change)
    assert found.startswith(message)
    lacking = {key: value for key, value in row.items() if key != "em"}
    assert mismatches(records.RankingRow, lacking) == [": RankingRow lacks em"]
