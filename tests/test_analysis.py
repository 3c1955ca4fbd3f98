"""Verdicts on hand-made results: a winner only where the data name one."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis import analyze, ranking_table, render, three_digits

COUNT = 60
IDS = [f"q{i}" for i in range(COUNT)]


def scores_of(right: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * (COUNT - right))


def analysis_of(group: str, right: dict[tuple[str, str], int], **flags: bool) -> dict:
    """Analyse made-up configurations: (family, name) -> how many of the examples are answered right."""
    results, scores = [], {}
    for (family, name), count in right.items():
        values = scores_of(count)
        f1 = float(values.mean())
        results.append(
            {
                "name": name, "experiment": name, "family": family, "dials": {}, "source": group, "group": group,
                "f1": f1, "f1_interval": (max(0, f1 - 0.1), min(1, f1 + 0.1)), "em": f1, "empty_rate": 0.0,
                "identity": flags.get(name, False), "num_samples": COUNT,
            }
        )  # fmt: skip
        scores[name] = (IDS, values)
    return analyze(results, scores)["groups"][0]


def test_a_winner_is_named_with_those_level_with_it():
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
    assert "within noise: no winner" in group["verdict"]
    assert [row["verdict"] for row in group["ranking"]] == ["within noise", "identity", "baseline"]
    holds = {row["observation"]: row["holds"] for row in group["observations"]}
    assert holds["RMS matching wins"].startswith("undecided")
    assert holds["Anchor+offset wins"] == "no: changed nothing on this source"
    assert holds["K-nearest wins"].startswith("unknown")
    assert holds["Baseline F1 > 0.5"].startswith("undecided")


def test_worse_is_said_and_everything_fails_is_seen():
    group = analysis_of("text", {("baseline", "b"): 50, ("nearest_k", "n"): 5})
    assert group["verdict"].startswith("No winner: 1 of 1 configurations are worse")
    dead = analysis_of("noisy", {("baseline", "b"): 0, ("nearest_k", "n"): 0})
    holds = {row["observation"]: row["holds"] for row in dead["observations"]}
    assert holds["Everything fails"].startswith("nearly")
    assert "more samples" in dead["next"]


def test_without_a_baseline_nothing_is_compared():
    group = analysis_of("text", {("nearest_k", "n"): 5, ("rms_matching", "r"): 50})
    assert group["winner"] is None
    assert {row["verdict"] for row in group["ranking"]} == {"not compared"}
    assert group["reached_80_percent"] is None


def test_the_table_and_the_text_show_the_ranking():
    group = analysis_of("scaled", {("baseline", "b"): 0, ("rms_matching", "r"): 40})
    summary = {"sweep": "s", "total_experiments": 2, "successful": 2, "failed": 0, "analysis": {"groups": [group]}}
    columns, rows = ranking_table(summary)
    assert [dict(zip(columns, row, strict=True))["name"] for row in rows] == ["r", "b"]
    text = render(summary)
    assert "  1 r  .667  [.567  .767 ]  .667    0%    +.667 [" in text
    assert "Verdict: r is best: F1 .667 against .000" in text


@pytest.mark.parametrize(("value", "text"), [(0.5, ".500"), (-0.04, "-.040"), (1.0, "1.000"), (0.0, ".000")])
def test_scores_are_written_with_three_digits(value, text):
    assert three_digits(value) == text
