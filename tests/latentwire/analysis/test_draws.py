"""The spread between draws of the shots and of the seeded sources."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ranking import analyze
from latentwire.records import F1
from latentwire.reports.draws import render_draws
from latentwire.reports.text import render
from tests.helpers.results import result_of, right, scored, summary_with

SETTINGS = AnalysisSettings(min_clean_score=0.1, target_difference=0.05)


def drawn_analysis(shares: dict[str, list[float]]) -> dict:
    """Analyse configurations with the given shares of right answers in each draw; "base" is the baseline."""
    results, scores = [], {}
    for experiment, by_draw in shares.items():
        for draw, share in enumerate(by_draw):
            suffix = f"@draw{draw}" if draw else ""
            name, family = experiment + suffix, "baseline" if experiment == "base" else experiment
            values = right(share)
            about = {"experiment": experiment, "draw": draw, "variant": suffix, "source": "noisy"}
            results.append(result_of(family, name, values, f"noisy0.0dB{suffix}", **about))
            scores[name] = scored(values)
    return analyze(results, scores, [], SETTINGS, F1, [])


@pytest.fixture(scope="module")
def analysis() -> dict:
    return drawn_analysis({"base": [0.2, 0.3, 0.25], "anchor": [0.7, 0.8, 0.6], "once": [0.5]})


def test_a_row_has_mean_and_spread_over_the_draws(analysis):
    rows = {row["experiment"]: row for row in analysis["draws"]}
    assert set(rows) == {"base", "anchor"}  # one draw has no spread
    anchor = rows["anchor"]
    assert anchor["scores"] == pytest.approx([0.7, 0.8, 0.6])
    assert (anchor["mean"], anchor["spread"]) == pytest.approx((0.7, 0.1))
    assert anchor["difference"] == pytest.approx(0.45)
    assert anchor["difference_spread"] == pytest.approx(np.std([0.5, 0.5, 0.35], ddof=1))
    assert (anchor["draws"], anchor["better"], anchor["wins"]) == (3, 3, 3)
    assert rows["base"]["difference"] is None


def test_sources_with_other_dials_are_not_mixed():
    analysis = drawn_analysis({"base": [0.2, 0.3], "anchor": [0.7, 0.8]})
    assert len(analysis["groups"]) == 2
    assert {row["group"] for row in analysis["draws"]} == {"noisy0.0dB"}
    assert analysis["atlas"] is None  # two draws are one source
    assert analysis["across"] is None


def test_the_text_shows_the_first_draw_and_the_spread(analysis):
    lines = render_draws(analysis["draws"], analysis["groups"][:1])
    assert "3 draws of shots and sources on noisy0.0dB" in lines[1]
    assert any(".700 ± .100  +.450 ± .087" in line and "better in 3, winner in 3" in line for line in lines)
    text = render(summary_with(analysis))
    assert text.count("=== source") == 1
    assert "3 draws" in text
    assert render_draws([], analysis["groups"]) == []
