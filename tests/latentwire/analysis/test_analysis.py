"""Verdicts on made-up results: a winner only if the data show one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports.tables import ranking_table
from latentwire.reports.text import render
from latentwire.stats.comparison import compare_paired, recovered_shares
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import mean_interval
from tests.helpers.random import numbers
from tests.helpers.results import IDS, result_of, scored, summary_with

COUNT = 60


def scores_of(right: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (COUNT - right))


JUDGING = AnalysisSettings(min_clean_score=0.1, target_difference=0.05)


def whole_analysis_of(
    group: str, right: dict[tuple[str, str], int], controls: dict[str, int] | None = None, **flags: bool
) -> dict:
    """Analyse made-up configurations: (family, name) -> number of right answers."""
    results, scores, control_results = [], {}, []
    for (family, name), count in right.items():
        scores[name] = scored(scores_of(count))
        results.append(result_of(family, name, scores_of(count), group, identity=flags.get(name, False)))
    for control, count in (controls or {}).items():
        scores[f"control_{control}"] = scored(scores_of(count))
        control_results.append(result_of("baseline", f"control_{control}", scores_of(count), "text", control=control))
    return analyze(results, scores, control_results, JUDGING, F1, [])


def analysis_of(*arguments: object, **flags: bool) -> dict:
    """Return the analysis of the only source."""
    return whole_analysis_of(*arguments, **flags)["groups"][0]


def test_a_winner_is_named_with_the_configurations_level_with_it():
    group = analysis_of(
        "scaled",
        {("baseline", "b"): 0, ("rms_matching", "r"): 40, ("anchor_offset", "a"): 41, ("nearest_k", "n"): 15},
    )
    assert group["winner"] == "a"
    assert "level with r." in group["verdict"]
    assert [row["verdict"] for row in group["ranking"]] == ["better", "better", "better", "baseline"]
    holds = {row["observation"]: row["holds"] for row in group["observations"]}
    assert holds["Anchor+offset wins"].startswith("yes: a, level with 1")
    assert holds["RMS matching wins"].startswith("yes: r")
    assert holds["K-nearest wins"] == "no: better than the baseline, but behind a"
    assert holds["Baseline F1 > 0.5"].startswith("no")
    assert group["reached_80_percent"] == 4


def test_within_noise_nobody_wins():
    group = analysis_of("text", {("baseline", "b"): 30, ("rms_matching", "r"): 32, ("anchor_offset", "a"): 30}, a=True)
    assert group["winner"] is None
    assert "No winner: every difference from the baseline is within noise." in group["verdict"]
    assert [row["verdict"] for row in group["ranking"]] == ["within noise", "identity", "baseline"]
    holds = {row["observation"]: row["holds"] for row in group["observations"]}
    assert holds["RMS matching wins"].startswith("undecided")
    assert holds["Anchor+offset wins"] == "no: changed nothing on this source"
    assert holds["K-nearest wins"].startswith("unknown")
    assert holds["Baseline F1 > 0.5"].startswith("undecided")


def test_worse_results_and_total_failure_are_reported():
    group = analysis_of("text", {("baseline", "b"): 50, ("nearest_k", "n"): 5})
    assert group["verdict"].startswith("No winner: 1 of 1 configurations are worse")
    dead = analysis_of("noisy", {("baseline", "b"): 0, ("nearest_k", "n"): 0})
    holds = {row["observation"]: row["holds"] for row in dead["observations"]}
    assert holds["Everything fails"].startswith("nearly")
    assert "more samples" in dead["next"]


def test_without_a_baseline_nothing_is_compared():
    """Every sweep runs its baseline, so a missing one has failed."""
    group = analysis_of("text", {("nearest_k", "n"): 5, ("rms_matching", "r"): 50})
    assert "baseline failed" in group["verdict"]
    assert "run the same command again" in group["next"]
    assert group["winner"] is None
    assert {row["verdict"] for row in group["ranking"]} == {"not compared"}
    assert group["reached_80_percent"] is None


def test_the_table_and_the_text_show_the_ranking():
    analysis = whole_analysis_of("scaled", {("baseline", "b"): 0, ("rms_matching", "r"): 40})
    columns, rows = ranking_table(analysis)
    assert [dict(zip(columns, row, strict=True))["name"] for row in rows] == ["r", "b"]
    text = render(summary_with(analysis))
    low, high = mean_interval(scores_of(40))
    shown = f"  1 r  .667  [{format_score(low):5} {format_score(high):5}]  .667    0%               +.667 ["
    assert shown in text
    assert f"Verdict: r is best: F1 .667 [{format_score(low)}, {format_score(high)}], baseline .000" in text


@pytest.mark.parametrize(("value", "text"), [(0.5, ".500"), (-0.04, "-.040"), (1.0, "1.000"), (0.0, ".000")])
def test_scores_are_written_with_three_digits(value, text):
    assert format_score(value) == text


# --- controls -------------------------------------------------------------------------------------------------


RANDOM = ("random_interpolation", "random_k3")


def test_controls_far_apart_allow_a_winner():
    group = analysis_of(
        "scaled", {("baseline", "b"): 0, ("rms_matching", "r"): 40, RANDOM: 1}, {"clean": 45, "empty": 5}
    )
    assert (group["answerable"], group["reason"], group["winner"]) == (True, None, "r")
    assert group["controls"]["clean"]["name"] == "control_clean"
    empty, random = group["controls"]["lower"]
    assert (empty["name"], empty["control"], empty["clearly_below"]) == ("control_empty", "empty", True)
    assert (random["name"], random["control"], random["clearly_below"]) == ("random_k3", "random_interpolation", True)
    assert empty["difference"] == pytest.approx(40 / 60)
    assert empty["difference_interval"][0] > 0.5
    shares = {row["name"]: row["recovered"] for row in group["ranking"]}
    assert shares == pytest.approx({"r": 35 / 40, "b": -5 / 40, "random_k3": -4 / 40})
    (expected,) = recovered_shares(scores_of(40)[None], scores_of(45), scores_of(5), 0)
    assert group["ranking"][0]["recovered_interval"] == expected[1]
    text = render_of(group)
    assert "Upper control  control_clean F1 .750" in text
    assert "Lower control  control_empty F1 .083" in text
    assert "NOT clearly" not in text
    assert "  87%   +.667 [" in text


@pytest.mark.parametrize(
    ("controls", "random", "reason"),
    [
        ({"clean": 5, "empty": 0}, 0, r"the clean baseline scores too low: F1 \.083, below min_clean_score=\.100"),
        ({"clean": 45, "empty": 45}, 0, r"an empty context scores F1 \.750, not clearly below the clean baseline's"),
        ({"clean": 45, "empty": 40}, 0, r"difference \.083 \[\.000, "),  # five answers of one direction
        ({"clean": 45, "empty": 55}, 0, r"an empty context scores F1 \.917"),
        ({"clean": 45, "empty": 5}, 44, r"random tokens \(random_k3\) scores F1 \.733"),
    ],
)
def test_unsuitable_controls_prevent_a_winner(controls, random, reason):
    right = {("baseline", "b"): 0, ("rms_matching", "r"): 40, RANDOM: random}
    group = analysis_of("scaled", right, controls)
    assert group["answerable"] is False
    assert re.search(reason, group["reason"])
    assert group["winner"] is None
    assert group["verdict"].startswith("This model, prompt and data cannot answer the question: ")
    assert group["ranking"][0]["verdict"] == "better"  # the comparison itself stays
    assert {row["holds"] for row in group["observations"] if "wins" in row["observation"]} == {
        "unknown: the controls show that nothing can be ranked", "unknown: not in this sweep",
    }  # fmt: skip
    assert f"Cannot be answered: {group['reason']}" in render_of(group)


def test_a_clean_score_equal_to_min_clean_score_is_enough():
    right = {("baseline", "b"): 0, ("rms_matching", "r"): 40}
    assert analysis_of("scaled", right, {"clean": 6, "empty": 0})["answerable"] is True
    assert analysis_of("scaled", right)["answerable"] is None
    alone = analysis_of("scaled", right, {"clean": 45})
    assert alone["answerable"] is False
    assert alone["winner"] is None
    assert "empty context (lower control) is missing" in alone["verdict"]
    assert "clean control is missing" in analysis_of("scaled", right, {"empty": 0})["verdict"]


def test_the_baseline_on_text_is_the_clean_control():
    values = scores_of(45)
    results = [result_of("baseline", "baseline", values, "text"), result_of("baseline", "b@n", scores_of(10), "odd")]
    empty = result_of("baseline", "control_empty", scores_of(3), "text", control="empty")
    scores = {"baseline": scored(values), "b@n": scored(scores_of(10)), "control_empty": scored(scores_of(3))}
    text, noisy = analyze(results, scores, [empty], JUDGING, F1, [])["groups"]
    assert text["controls"] == noisy["controls"]
    assert noisy["controls"]["clean"]["name"] == "baseline"
    assert noisy["ranking"][0]["recovered"] == pytest.approx(7 / 42)


def test_a_failed_control_run_prevents_a_winner():
    empty, clean = ({"name": f"control_{name}", "control": name, "variant": "", "status": "failed"}
                    for name in ("empty", "clean"))  # fmt: skip
    right = {"b@n": ("baseline", "odd", 0), "r@n": ("rms_matching", "odd", 40)}
    text = {"b": ("baseline", "text", 45)}
    for asked, failed, reason in (
        (
            text | right,
            [empty],
            "the empty context (lower control) is missing or failed",
        ),
        (right, [clean], "the clean control and the empty context (lower control) are missing or failed"),
        (right, [], None),
    ):
        results = [result_of(family, name, scores_of(n), group) for name, (family, group, n) in asked.items()]
        group = analyze(results, {one["name"]: scored(scores_of(asked[one["name"]][2])) for one in results},
                        failed, JUDGING, F1, [])["groups"][-1]  # fmt: skip
        assert (group["reason"], group["winner"]) == (reason, None if failed else "r@n")


def test_controls_are_matched_by_seed():
    values = scores_of(45)
    results = [result_of("baseline", f"b@seed{s}", values, f"text@seed{s}", source="text", variant=f"@seed{s}")
               for s in (0, 1)]  # fmt: skip
    scores = {result["name"]: scored(values) for result in results}
    groups = analyze(results, scores, [], JUDGING, F1, [])["groups"]
    assert [group["controls"]["clean"]["name"] for group in groups] == ["b@seed0", "b@seed1"]


def test_transforms_without_effect_are_not_compared():
    right = {("baseline", "b"): 10, ("rms_matching", "r"): 20, ("anchor_offset", "a"): 10}
    group = analysis_of("x", right, a=True)
    assert group["power"]["comparisons"] == 1
    assert group["ranking"][0]["p_holm"] == group["ranking"][0]["p_value"]


def test_scores_are_paired_by_id_in_any_order():
    base, own = scores_of(20), scores_of(35)
    results = [result_of("baseline", "b", base, "x"), result_of("rms_matching", "r", own, "x")]
    straight, turned = (
        analyze(results, {"b": scored(base), "r": asked}, [], JUDGING, F1, [])["groups"][0]["ranking"][0]
        for asked in (scored(own), scored(own[::-1], IDS[:COUNT][::-1]))
    )
    assert straight["detectable"] == pytest.approx(turned["detectable"])
    assert straight["difference"] == turned["difference"] == pytest.approx(15 / 60)
    assert straight["difference_interval"] == pytest.approx(turned["difference_interval"], abs=0.01)


def test_counts_and_means_by_dial():
    """Exactly 80% of the baseline counts; an empty rate of exactly one half does not."""
    right, results = {"b": 50, "r": 40, "n": 39}, []
    for (name, count), empty in zip(right.items(), (0.0, 0.5, 0.6), strict=True):
        family, dials = ("baseline", {}) if name == "b" else ("nearest_k", {"k": 3, "alpha": 0.1 * count})
        results.append(result_of(family, name, scores_of(count), "x", empty_rate=empty, dials=dials))
    group = analyze(results, {n: scored(scores_of(c)) for n, c in right.items()}, [], JUDGING, F1, [])["groups"][0]
    assert (group["reached_80_percent"], group["more_than_half_empty"]) == (2, 1)
    results[1]["dials"] = {"k": 3, "alpha": 0.1}
    results[2]["dials"] = {"k": 5, "alpha": 0.1}
    results.append(result_of("nearest_k", "m", scores_of(11), "x", dials={"k": 3, "alpha": 0.2}))
    scores = {n: scored(scores_of(c)) for n, c in {**right, "m": 11}.items()}
    group = analyze(results, scores, [], JUDGING, F1, [])["groups"][0]
    by_k = next(dial for dial in group["dial_means"] if dial["dial"] == "k")
    assert [mean["score"] for mean in by_k["means"]] == pytest.approx([51 / 2 / COUNT, 39 / COUNT])


# --- examples -----------------------------------------------------------------------------------------------------


def test_results_are_compared_on_their_own_examples():
    """A budget gives results fewer examples: one family of comparisons, each on its own examples."""
    generator = numbers(0)
    base, long, short = (generator.random(n).round(1) for n in (COUNT, COUNT, 16))
    results = [result_of("baseline", "b", base, "x"), result_of("rms_matching", "long", long, "x"),
               result_of("rms_matching", "short", short, "x"),
               result_of("rms_matching", "other", short, "x")]  # fmt: skip
    scores = {"b": scored(base), "long": scored(long), "short": scored(short)}
    scores["other"] = scored(short, [*IDS[:15], "no"])
    (group,) = analyze(results, scores, [], JUDGING, F1, [])["groups"]
    rows = {row["name"]: row for row in group["ranking"]}
    (alone,) = compare_paired(short[None], base[:16], 0, largest=1.0)
    assert rows["short"]["difference"] == pytest.approx((short - base[:16]).mean())
    assert rows["short"]["difference_interval"] == alone.interval
    p_values = sorted([rows["short"]["p_value"], rows["long"]["p_value"]])
    assert sorted([rows["short"]["p_holm"], rows["long"]["p_holm"]]) == pytest.approx(
        [min(1, 2 * p_values[0]), max(min(1, 2 * p_values[0]), p_values[1])]
    )
    assert rows["other"]["verdict"] == "not compared"
    assert group["num_samples"] == COUNT
    assert f"n={COUNT} " in render_of(group)


def test_results_with_fewer_examples_are_not_level():
    """The 40 examples are all right, as the winner's are there, but the winner has 60."""
    base, best, level = scores_of(0), scores_of(50), scores_of(48)
    few = scores_of(50)[:40]
    results = [result_of("baseline", "b", base, "x"), result_of("rms_matching", "best", best, "x"),
               result_of("anchor_offset", "level", level, "x"), result_of("nearest_k", "few", few, "x")]  # fmt: skip
    scores = {"b": scored(base), "best": scored(best), "level": scored(level), "few": scored(few)}
    (group,) = analyze(results, scores, [], JUDGING, F1, [])["groups"]
    assert group["winner"] == "best"
    assert group["verdict"].endswith("level with level.")


def render_of(group: dict) -> str:
    analysis = {"groups": [group], "metric": F1, "warnings": [], "atlas": None, "auto": None, "across": None}
    return render(summary_with(analysis | {"draws": []}))


def test_controls_and_results_below_the_empty_context_cannot_win():
    group = analysis_of("scaled", {("baseline", "b"): 0, ("random_interpolation", "z"): 20}, {"clean": 45, "empty": 0})
    assert group["ranking"][0]["verdict"] == "better"
    assert group["winner"] is None
    assert "only z is better than the baseline, and each" in group["verdict"]
    group = analysis_of("scaled", {("baseline", "b"): 0, ("rms_matching", "r"): 15}, {"clean": 45, "empty": 15})
    assert group["ranking"][0]["verdict"] == "better"
    assert group["winner"] is None


def test_results_with_fewer_examples_rank_last():
    """They cannot win either."""
    scores = {"b": scored(scores_of(0)), "long": scored(scores_of(30)), "short": scored(np.ones(8))}
    results = [
        result_of(family, name, scores[name][1], "scaled")
        for family, name in (("baseline", "b"), ("rms_matching", "long"), ("nearest_k", "short"))
    ]
    group = analyze(results, scores, [], JUDGING, F1, [])["groups"][0]
    assert [row["name"] for row in group["ranking"]] == ["long", "b", "short"]
    assert group["winner"] == "long"
