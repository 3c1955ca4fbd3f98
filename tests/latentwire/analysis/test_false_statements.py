"""Statements that an analysis must not make, on made-up results that tempt it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports.text import render
from latentwire.stats.formatting import format_p
from tests.helpers.results import result_of, scored, summary_with

SETTINGS = AnalysisSettings(0.1, 0.05)
COUNT = 100


def ones(*spans: tuple[int, int]) -> np.ndarray:
    """Return scores of 1 in the given spans of places, and 0 elsewhere."""
    found = np.zeros(COUNT)
    for start, stop in spans:
        found[start:stop] = 1
    return found


def analysed(
    groups: dict[str, list[tuple[str, str, np.ndarray]]], passages: list[str] | None = None, **more: dict
) -> dict:
    """Analyse source with "@setting" -> (family, experiment, scores); `more` has fields by experiment or group."""
    results, scores = [], {}
    for group, rows in groups.items():
        for family, experiment, values in rows:
            name, (source, _, variant) = f"{experiment}@{group}", group.partition("@")
            # Another seed draws other examples.
            ids = [f"{variant}{i}" for i in range(len(values))]
            scores[name] = scored(values, ids, passages)
            own = {field: by[experiment] for field, by in more.items() if experiment in by}
            results.append(
                result_of(family, name, values, group, experiment=experiment, source=source, variant=variant, **own)
            )
    return analyze(results, scores, [], SETTINGS, F1, [])


BASE = ("baseline", "b", ones((0, 50)))
SURE = ("rms_matching", "sure", ones((0, 59)))  # 9 better, none worse: .09 better, p = .004
HIGH = ("nearest_k", "high", ones((20, 85)))  # 35 better, 20 worse: .15 better, p = .05


def test_a_higher_score_within_noise_is_level_with_the_winner():
    """The winner is not called the best of all, and its score is not the score of the choice of another."""
    (group,) = analysed({"x": [BASE, SURE, HIGH]})["groups"]
    high, sure, _ = group["ranking"]
    assert (high["verdict"], sure["verdict"], group["winner"]) == ("within noise", "better", "sure@x")
    assert group["verdict"].startswith("sure is best of those better than the baseline: F1 .590 [")
    assert group["verdict"].endswith("level with high.")
    assert sure["cross_fit"] is None  # nothing else was left to choose
    assert high["cross_fit"]["among"] == 2 and high["cross_fit"]["score"] < high["score"]
    holds = {one["observation"]: one["holds"] for one in group["observations"]}
    assert holds["RMS matching wins"] == "yes: sure"
    assert holds["K-nearest wins"].startswith("undecided")


def test_seeds_of_one_source_are_one_source():
    rows = [BASE, ("rms_matching", "r", ones((0, 80)))]
    analysis = analysed({"x@seed=0": rows, "x@seed=1": rows})
    assert [group["winner"] for group in analysis["groups"]] == ["r@x@seed=0", "r@x@seed=1"]
    assert analysis["across"] is None
    across = analysed({"x@seed=0": rows, "x@seed=1": rows, "y@seed=0": [BASE, SURE], "y@seed=1": [BASE, HIGH]})[
        "across"
    ]
    assert (across["sources"], across["helped"]) == (2, 2)


@pytest.mark.parametrize(("count", "passages"), [(4, 4), (100, 3)])
def test_too_few_passages_detect_nothing(count, passages):
    """A test needs six changed passages, and a difference of scores is at most 1."""
    rows = [("baseline", "b", np.zeros(count)), ("nearest_k", "k", np.arange(count) % 4 != 0)]
    rows = [(family, name, values.astype(float)) for family, name, values in rows]
    analysis = analysed({"x": rows}, [f"p{i % passages}" for i in range(count)])
    (group,) = analysis["groups"]
    assert group["power"]["detectable"] is group["power"]["detectable_corrected"] is None
    assert all(row["detectable"] is None for row in group["ranking"])
    assert f"{count} examples detect no difference with power 80% in one comparison" in render(summary_with(analysis))


def test_no_p_value_is_printed_as_zero():
    analysis = analysed({"x": [("baseline", "b", ones()), ("nearest_k", "k", ones((0, 90)))]})
    assert 0 < analysis["groups"][0]["ranking"][0]["p_holm"] < 0.0005
    assert " p<0.001 better" in render(summary_with(analysis))
    assert (format_p(0.001), format_p(0.04996)) == ("p=0.001", "p=0.050")


def test_a_dial_may_have_texts_and_none():
    rows = [(BASE), *(("nearest_k", name, ones((0, 50))) for name in "jklm")]
    dials = dict(zip("jklm", ({"r": None}, {"r": 10}, {"r": "all"}, {"r": 9}), strict=True))
    (entry,) = analysed({"x": rows}, dials=dials)["groups"][0]["dial_means"]
    assert [mean["value"] for mean in entry["means"]] == [9, 10, None, "all"]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_tiny_sweeps_have_a_strict_json_summary_and_no_winner(count, score):
    values = np.full(count, score)
    rows = [("baseline", "b", values), ("nearest_k", "k", values), ("nearest_k", "j", values), ("auto", "a", values)]
    analysis = analysed({"x": rows, "text": rows})
    assert json.loads(json.dumps(analysis, allow_nan=False))["across"]["helped"] == 0
    assert [group["winner"] for group in analysis["groups"]] == [None, None]
    assert analysis["auto"]["met"] == "undecided"
    render(summary_with(analysis))
