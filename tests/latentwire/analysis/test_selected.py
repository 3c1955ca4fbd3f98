"""Scores of what was chosen among several: winners, the best of a family, and the columns of the matrix."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports.text import render
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.formatting import format_score
from latentwire.stats.selection import cross_fit
from tests.helpers.random import numbers
from tests.helpers.results import IDS, result_of, scored, summary_with

SETTINGS = AnalysisSettings(0.1, 0.05)
COUNT = 80
LABELS = [f"p{i // 2}" for i in range(COUNT)]


def equal_systems(count: int, mean: float = 0.6) -> np.ndarray:
    """Return scores of systems with equal true means, (count, COUNT)."""
    return (numbers(0).random((count, COUNT)) < mean).astype(float)


def analysed(sources: dict[str, list[tuple[str, str, np.ndarray]]], leaks: tuple[str, ...] = ()) -> dict:
    """Analyse source -> (family, experiment, scores), two examples a passage; `leaks` names leaking configurations."""
    results, scores = [], {}
    for group, rows in sources.items():
        for family, experiment, values in rows:
            name = f"{experiment}@{group}"
            scores[name] = scored(values, passages=LABELS)
            warnings = [{"kind": "leaks", "level": "warning", "message": "leaks"}] if experiment in leaks else []
            results.append(result_of(family, name, values, group, experiment=experiment, warnings=warnings))
    return analyze(results, scores, [], SETTINGS, F1, [])


SYSTEMS = equal_systems(5)
ROWS = [("baseline", "b", np.zeros(COUNT)), *(("nearest_k", f"k{i}", row) for i, row in enumerate(SYSTEMS))]


def test_the_winner_is_quoted_with_its_cross_fit_score():
    """The score of the best of five is too high; the verdict and the ranking have the one of the other passages."""
    analysis = analysed({"x": ROWS})
    (group,) = analysis["groups"]
    best, *others = group["ranking"]
    order = np.argsort(-SYSTEMS.mean(axis=1), kind="stable")
    expected = cross_fit(SYSTEMS, SampledClusters(LABELS), 0)
    chosen = best["cross_fit"]
    assert best["experiment"] == f"k{order[0]}" and group["winner"] == best["name"]
    assert (chosen["among"], chosen["score"]) == (5, pytest.approx(expected.mean))
    assert chosen["chosen"] == pytest.approx(expected.chosen[order[0]])
    assert chosen["score"] < best["score"] == pytest.approx(SYSTEMS.mean(axis=1).max())
    assert chosen["difference"] == pytest.approx(chosen["score"])  # from a baseline of 0
    assert all(row["cross_fit"] is None for row in others)
    low, high = chosen["score_interval"]
    shown = f"F1 {format_score(chosen['score'])} [{format_score(low)}, {format_score(high)}]"
    assert group["verdict"].startswith(
        f"{best['experiment']} is best of 5: {shown} on passages that did not choose it,"
    )
    text = render(summary_with(analysis))
    line = next(line for line in text.splitlines() if line.startswith(f"  1x{best['experiment']} "))
    assert line.split()[1] == format_score(chosen["score"])
    assert f"+{format_score(chosen['difference'])} [" in line
    assert text.count("x the best of 5: chosen on half of the passages, scored on the other half") == 1
    assert text.count("\n  2 k") == 1  # the others have no mark


def test_the_recovered_share_of_the_winner_is_cross_fit():
    """The share next to a cross-fit score is of this score, not of the too high one."""
    clean, empty = (np.arange(COUNT) < count for count in (72, 8))
    names = {"control_clean": clean.astype(float), "control_empty": empty.astype(float)}
    made = {f"{experiment}@x": (family, values) for family, experiment, values in ROWS}
    results = [result_of(family, name, values, "x") for name, (family, values) in made.items()]
    controls = [result_of("baseline", f"control_{kind}", names[f"control_{kind}"], "text", control=kind)
                for kind in ("clean", "empty")]  # fmt: skip
    scores = {name: scored(values, passages=LABELS) for name, (_, values) in made.items()}
    scores |= {name: scored(values, passages=LABELS) for name, values in names.items()}
    (group,) = (analysis := analyze(results, scores, controls, SETTINGS, F1, []))["groups"]
    best = group["ranking"][0]
    share = best["cross_fit"]["recovered"]
    assert share == pytest.approx((best["cross_fit"]["score"] - 0.1) / 0.8)
    assert share < best["recovered"] == pytest.approx((best["score"] - 0.1) / 0.8)
    line = next(line for line in render(summary_with(analysis)).splitlines() if line.startswith("  1x"))
    assert f" {share:.0%} " in line


def test_a_single_contender_was_not_chosen():
    (group,) = analysed({"x": ROWS[:2]})["groups"]
    assert group["winner"] == "k0@x" and group["ranking"][0]["cross_fit"] is None
    assert group["verdict"].startswith(f"k0 is best: F1 {format_score(SYSTEMS[0].mean())} [")
    assert "on passages that" not in group["verdict"]


def test_controls_have_no_part_in_the_choice():
    rows = [*ROWS, ("random_interpolation", "z", np.ones(COUNT))]
    plain, with_random = (analysed({"x": own})["groups"][0]["ranking"] for own in (ROWS, rows))
    assert with_random[0]["experiment"] == "z" and with_random[0]["cross_fit"] is None
    assert with_random[1]["cross_fit"] == plain[0]["cross_fit"]


def test_the_best_of_each_family_is_cross_fit_in_it():
    rows = [*ROWS, ("rms_matching", "r", SYSTEMS[0])]
    analysis = analysed({"x": rows})
    found = {row["family"]: row for row in analysis["groups"][0]["best_of_family"]}
    expected = cross_fit(SYSTEMS, SampledClusters(LABELS), 0)
    assert found["nearest_k"]["cross_fit"]["score"] == pytest.approx(expected.mean)
    assert found["nearest_k"]["cross_fit"]["among"] == 5
    assert found["rms_matching"]["cross_fit"] is found["baseline"]["cross_fit"] is None
    text = render(summary_with(analysis))
    part = text[text.index("Best of each family") :]
    line = next(line for line in part.splitlines() if line.strip().startswith("nearest_k"))
    assert line.split()[1] == f"{format_score(expected.mean)}x"


def test_columns_of_the_matrix_are_cross_fit_over_the_sources():
    """The column of a family has the configuration with the highest mean over the sources."""
    other = (numbers(1).random((5, COUNT)) < 0.5).astype(float)
    second = [("baseline", "b", np.zeros(COUNT)), *(("nearest_k", f"k{i}", row) for i, row in enumerate(other))]
    analysis = analysed({"x": ROWS, "y": second})
    atlas = analysis["atlas"]
    mean = (SYSTEMS + other) / 2
    assert atlas["columns"] == ["b", f"k{mean.mean(axis=1).argmax()}"]
    expected = [cross_fit(mean, SampledClusters(LABELS), 0, own).mean for own in (SYSTEMS, other)]
    assert [row[0] for row in atlas["column_scores"]] == [None, None]
    assert [row[1] for row in atlas["column_scores"]] == pytest.approx(expected)
    shown = render(summary_with(analysis)).split("=== the matrix")[1]
    line = next(line for line in shown.splitlines() if line.startswith("x ") and "chosen" not in line)
    assert line.split()[2].removesuffix("*") == f"x{format_score(expected[0])}"
    assert "\nx chosen among several on half of the passages, and scored on the other half" in shown


def test_columns_are_cross_fit_over_sources_of_other_examples():
    """Another seed has other examples. A source of half as many examples has the same weight in the choice."""
    second = [("baseline", "b", np.zeros(40)), *(("nearest_k", f"k{i}", row[:40]) for i, row in enumerate(SYSTEMS))]
    found = analysed({"x": ROWS, "y": second})["atlas"]["column_scores"]
    means = np.array([[row.mean(), row[:40].mean()] for row in SYSTEMS])
    best = means.mean(axis=1).argmax()
    assert [row[0] for row in found] == [None, None]
    assert np.mean([row[1] for row in found]) < means[best].mean()
    sure = [("nearest_k", "sure", np.ones(80)), ("nearest_k", "none", np.zeros(80))]
    always = analysed({"x": [ROWS[0], *sure], "y": [second[0], *((f, n, v[:40] * 0.5) for f, n, v in sure)]})["atlas"]
    assert [row[1] for row in always["column_scores"]] == pytest.approx([1.0, 0.5])


def test_a_column_that_was_not_chosen_has_no_mark():
    analysis = analysed({"x": ROWS, "y": ROWS[:2]})  # only k0 has both sources
    missing = analysis["atlas"]
    assert missing["columns"] == ["b", "k0"] and missing["column_scores"] == [[None, None], [None, None]]
    assert "scored on the other half" not in render(summary_with(analysis)).split("=== the matrix")[1]


def test_too_few_passages_leave_the_score_as_it_is():
    scores = {name: scored(values, passages=[f"p{i % 3}" for i in range(COUNT)]) for _, name, values in ROWS}
    results = [result_of(family, name, values, "x") for family, name, values in ROWS]
    (group,) = analyze(results, scores, [], SETTINGS, F1, [])["groups"]
    assert [row["cross_fit"] for row in group["ranking"]] == [None] * 6
    assert len(IDS) > COUNT


# --- what may win -----------------------------------------------------------------------------------------------


def test_a_leaking_configuration_may_not_win():
    """It keeps its place and its comparison, but has no part in the choice."""
    rows = [*ROWS[:4], ("nearest_k", "best", np.ones(COUNT))]
    sound, leaking = (analysed({"x": rows}, leaks)["groups"][0] for leaks in ((), ("best",)))
    assert (sound["winner"], sound["ranking"][0]["cross_fit"]["among"]) == ("best@x", 4)
    first, second = leaking["ranking"][:2]
    assert (first["experiment"], first["verdict"], first["cross_fit"]) == ("best", "better", None)
    assert (leaking["winner"], second["cross_fit"]["among"]) == (second["name"], 3)
    assert "best," not in leaking["verdict"].split("level with")[-1]
    alone = analysed({"x": [ROWS[0], ("nearest_k", "best", np.ones(COUNT))]}, ("best",))["groups"][0]
    assert alone["winner"] is None and alone["power"] is None


def test_what_is_level_with_the_best_is_tested_among_all():
    """Equal systems are level with the best of them; a clearly worse one that is better than the baseline is not."""
    rows = [*ROWS, ("rms_matching", "weak", SYSTEMS[0] * (np.arange(COUNT) % 4 == 0))]
    (group,) = analysed({"x": rows})["groups"]
    weak = next(row for row in group["ranking"] if row["experiment"] == "weak")
    assert weak["verdict"] == "better"
    tied = group["verdict"].rsplit("level with ", 1)[1].rstrip(".").split(", ")
    assert {*tied, group["winner"].removesuffix("@x")} == {f"k{i}" for i in range(5)}
    holds = {one["observation"]: one["holds"] for one in group["observations"]}
    assert (
        holds["RMS matching wins"] == f"no: better than the baseline, but behind {group['winner'].removesuffix('@x')}"
    )
