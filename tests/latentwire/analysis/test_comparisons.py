"""Families of comparisons over all sources of a sweep, their power, and the passages that they resample."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis.comparisons import across_sources
from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports.text import render
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import PairedDifference, paired_differences
from latentwire.stats.intervals import mean_interval
from latentwire.stats.power import detectable_difference, samples_needed
from tests.helpers.random import numbers
from tests.helpers.results import result_of, scored, summary_with

SETTINGS = AnalysisSettings(0.1, 0.05)
COUNT = 60


def analysed(
    sources: dict[str, dict[tuple[str, str], np.ndarray]],
    controls: dict[tuple[str, str], np.ndarray] | None = None,
    passages: list[str] | None = None,
    **more: object,
) -> dict:
    """Analyse source -> (family, name) -> scores, with controls (kind, source) -> scores; names get their source."""
    results, scores, run = [], {}, []
    for group, row in sources.items():
        for (family, experiment), values in row.items():
            name = f"{experiment}@{group}"
            scores[name] = scored(values, passages=passages)
            results.append(result_of(family, name, values, group, experiment=experiment, **more))
    for (kind, group), values in (controls or {}).items():
        name = f"control_{kind}@{group}"
        scores[name] = scored(values, passages=passages)
        run.append(result_of("baseline", name, values, group, experiment="baseline", control=kind))
    return analyze(results, scores, run, SETTINGS, F1, [])


def first(right: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (COUNT - right))


BETTER, EQUAL = first(18), np.roll(first(10), 10)  # against first(10): 8 better; 10 better and 10 worse


# --- baselines --------------------------------------------------------------------------------------------------


def test_a_baseline_that_ran_as_a_control_is_used_and_shown():
    """It is the control of its own source only."""
    sources = {"x": {("rms_matching", "r"): first(40)}, "y": {("rms_matching", "r"): first(40)}}
    lower_and_upper = {("clean", "text"): first(50), ("empty", "text"): first(0)}
    x, y = analysed(sources, {("baseline", "x"): first(10), **lower_and_upper})["groups"]
    assert [(row["name"], row["verdict"]) for row in x["ranking"]] == [
        ("r@x", "better"),
        ("control_baseline@x", "baseline"),
    ]
    assert (x["baseline_score"], x["winner"]) == (pytest.approx(10 / 60), "r@x")
    assert x["ranking"][0]["difference"] == pytest.approx(30 / 60)
    assert [(row["name"], row["verdict"]) for row in y["ranking"]] == [("r@y", "not compared")]
    assert "baseline failed" in y["verdict"]


# --- all sources of a sweep -------------------------------------------------------------------------------------


def test_holm_corrects_over_all_sources():
    """Eight better answers have p = .008: enough alone, not among thirty sources."""
    own = {("baseline", "b"): first(10), ("rms_matching", "r"): BETTER}
    null = {("baseline", "b"): first(10), ("rms_matching", "r"): EQUAL}
    alone = analysed({"x": own})["groups"][0]
    among = analysed({"x": own} | {f"s{i}": null for i in range(29)})["groups"][0]
    one, many = (next(row for row in group["ranking"] if row["experiment"] == "r") for group in (alone, among))
    assert one["p_value"] == pytest.approx(many["p_value"]) == pytest.approx(2**-7, rel=0.2)
    assert (one["p_holm"], one["verdict"], alone["winner"]) == (one["p_value"], "better", "r@x")
    assert many["p_holm"] == pytest.approx(30 * many["p_value"])
    assert (many["verdict"], among["winner"], among["power"]["comparisons"]) == ("within noise", None, 30)


def test_comparisons_without_a_test_correct_nothing():
    """Configurations that changed five answers or fewer do not enter the family."""
    row = {("baseline", "b"): first(10), ("rms_matching", "r"): BETTER}
    row |= {("nearest_k", f"k{i}"): first(10 + i) for i in range(1, 6)}
    (group,) = analysed({"x": row})["groups"]
    best = group["ranking"][0]
    assert (best["experiment"], best["p_holm"], best["verdict"]) == ("r", best["p_value"], "better")
    assert group["power"]["comparisons"] == 1
    assert {row["verdict"] for row in group["ranking"][1:]} == {"within noise", "baseline"}


def found(p_value: float, difference: float = 0.2, changed: int = 20) -> PairedDifference:
    return PairedDifference(difference, (0.0, 1.0), p_value, changed)


def test_the_number_of_sources_with_a_useful_repair():
    """By hand: after Holm within each source, the smallest p-values are .012, .03, .5, 1 and 1."""
    by_group = {
        "a": {"a1": found(0.006), "a2": found(0.3)},
        "b": {"b1": found(0.03), "b2": found(0.5, 0.1, 3)},  # b2 cannot be tested
        "c": {"c1": found(0.25), "c2": found(0.3)},
        "d": {"d1": found(0.001, -0.2)},  # worse
        "e": {"random": found(0.001)},  # a control
    }
    contenders = {"a1", "a2", "b1", "b2", "c1", "c2", "d1"}
    assert across_sources(by_group, contenders) == {"sources": 5, "helped": 0, "alpha": 0.05}  # 5 x .012
    assert across_sources({name: by_group[name] for name in "ab"}, contenders)["helped"] == 2  # 2 x .012 and .03
    assert across_sources(by_group, contenders | {"random"})["helped"] == 2  # 5 x .001, 4 x .012, but 3 x .03
    assert across_sources({"a": by_group["a"]}, contenders) is None
    assert across_sources({"a": by_group["a"], "f": {}}, contenders) is None  # no baseline, nothing compared


def test_the_text_has_one_line_on_all_sources():
    helped = {("baseline", "b"): first(0), ("rms_matching", "r"): first(40), ("random_interpolation", "z"): first(5)}
    null = {("baseline", "b"): first(10), ("rms_matching", "r"): EQUAL, ("random_interpolation", "z"): first(50)}
    analysis = analysed({"x": helped, "y": helped, "z": null})
    assert analysis["across"] == {"sources": 3, "helped": 2, "alpha": 0.05}
    sentence = "At least 2 of 3 sources have a repair that is better than their baseline, with 95% confidence"
    assert sentence in " ".join(render(summary_with(analysis)).split())
    alone = analysed({"x": helped})
    assert alone["across"] is None and "At least" not in render(summary_with(alone))


# --- power ------------------------------------------------------------------------------------------------------


def drawn_row(generator: np.random.Generator) -> dict[tuple[str, str], np.ndarray]:
    base = generator.random(COUNT)
    near, far = (np.clip(base + generator.normal(0, sd, COUNT), 0, 1) for sd in (0.1, 0.3))
    return {("baseline", "b"): base, ("rms_matching", "r"): near, ("rms_matching", "s"): far, ("nearest_k", "t"): base}


def test_the_analysis_reports_the_detectable_difference():
    row = drawn_row(numbers(0))
    base, near, far = (row[key] for key in list(row)[:3])
    analysis = analysed({"x": row})
    (group,) = analysis["groups"]
    rows = {row["experiment"]: row for row in group["ranking"]}
    sds, changes = [], []
    for name, values in (("r", near), ("s", far)):
        differences = values - base
        sds.append(differences.std(ddof=1))
        changes.append(np.abs(differences[differences != 0]).mean())
        expected = [detectable_difference(sds[-1], COUNT, alpha, changes[-1]) for alpha in (0.05, 0.05 / 2)]
        assert [rows[name]["detectable"], rows[name]["detectable_corrected"]] == pytest.approx(expected)
    assert rows["t"]["detectable"] is rows["b"]["detectable"] is None
    power, sd, change = group["power"], np.mean(sds), np.mean(changes)
    assert (power["num_samples"], power["comparisons"], power["target_difference"]) == (COUNT, 2, 0.05)
    assert (power["std"], power["change"]) == (pytest.approx(sd), pytest.approx(change))
    assert power["detectable"] == pytest.approx(detectable_difference(sd, COUNT, 0.05, change))
    assert power["detectable_corrected"] == pytest.approx(detectable_difference(sd, COUNT, 0.05 / 2, change))
    assert power["alpha_corrected"] == pytest.approx(0.05 / 2)
    assert power["samples_needed"] == samples_needed(sd, 0.05, 0.05, change)
    assert power["samples_needed_corrected"] == samples_needed(sd, 0.05, 0.05 / 2, change)
    shown = f"a difference of .050 needs samples={power['samples_needed']}, corrected samples="
    assert shown in render(summary_with(analysis))


def test_controls_have_no_part_in_the_power():
    """Random tokens and supervised transforms differ from the baseline far more than contenders do."""
    row = drawn_row(numbers(0))
    plain = analysed({"x": row})["groups"][0]["power"]
    row[("random_interpolation", "z")] = 1 - row["baseline", "b"]
    with_random = analysed({"x": row})["groups"][0]["power"]
    assert with_random["comparisons"] == plain["comparisons"] + 1
    for name in ("std", "change", "detectable", "samples_needed"):
        assert with_random[name] == plain[name], name
    assert (
        analysed({"x": {key: row[key] for key in row if key[0] in ("baseline", "random_interpolation")}})["groups"][0][
            "power"
        ]
        is None
    )


@pytest.mark.parametrize(("available", "capped"), [(60, True), (100_000, False), (None, False)])
def test_more_examples_than_the_data_have_cannot_be_run(available, capped):
    analysis = analysed({"x": drawn_row(numbers(0))}, available=available)
    assert analysis["groups"][0]["power"]["available"] == available
    text = render(summary_with(analysis))
    assert ("are available" in text) == ("but only 60 are available" in text) == capped


# --- passages ---------------------------------------------------------------------------------------------------


def test_passages_are_the_units_of_every_figure():
    """Three equal answers for each of twenty passages; the same answers about sixty passages are more evidence."""
    passages = [f"p{i // 3}" for i in range(COUNT)]
    base, better = (np.repeat(values[:20], 3) for values in (first(3), first(9)))
    sources = {"text": {("baseline", "b"): base, ("rms_matching", "r"): better}}
    controls = {("clean", "text"): first(52), ("empty", "text"): np.zeros(COUNT)}
    clustered, single = (analysed(sources, controls, labels)["groups"][0] for labels in (passages, None))
    clusters = SampledClusters(passages)
    (expected,) = paired_differences(better[None], base, 0, clusters, 1.0)
    row, alone = clustered["ranking"][0], single["ranking"][0]
    assert row["difference_interval"] == expected.interval and row["p_value"] == expected.p_value
    assert row["score_interval"] == mean_interval(better, clusters)
    assert (clustered["passages"], single["passages"]) == (20, 60)
    assert clustered["design_effect"] == pytest.approx(3 * (59 / 60) / (19 / 20))
    assert single["design_effect"] == pytest.approx(1)
    assert clustered["power"]["std"] == pytest.approx(single["power"]["std"] * clustered["design_effect"] ** 0.5)
    for name in ("score_interval", "difference_interval", "recovered_interval"):
        assert np.ptp(row[name]) > 1.4 * np.ptp(alone[name]), name
    lower = [group["controls"]["lower"][0]["difference_interval"] for group in (clustered, single)]
    assert np.ptp(lower[0]) > 1.2 * np.ptp(lower[1])
    line = "60 examples are about 20 passages, which are resampled as a whole: design effect 3.11"
    assert line in render(summary_with(analysed(sources, controls, passages)))
    assert "resampled as a whole" not in render(summary_with(analysed(sources, controls)))
