"""The atlas on made-up results with known matrix and tolerances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentwire.analysis.controls import AnalysisSettings
from latentwire.analysis.ladder import Ladder
from latentwire.analysis.matrix import matrix_table
from latentwire.analysis.ranking import analyze
from latentwire.analysis.tolerance import crossing, tolerance_table
from latentwire.records import F1
from latentwire.reports.text import render, tolerated
from tests.helpers.random import numbers
from tests.helpers.results import COUNT, result_of, right, scored, summary_with

LADDERS = (
    Ladder("snr_db", "dB", "linear", rising=False, clean=None, source="noisy"),
    Ladder("factor", "x", "log", rising=True, clean=1.0, label="scaled up", source="scaled"),
    Ladder("factor", "x", "log", rising=False, clean=1.0, label="scaled down", source="scaled"),
    Ladder("offset", "norms", "linear", rising=True, clean=0.0, source="shifted"),
    Ladder("rate", "share", "linear", rising=True, clean=0.0, source="mixed"),
    Ladder("rank", "components", "log", rising=False, clean=None, source="low_rank"),
)


def analysis_of(
    f1s: dict[tuple[str, float | None], dict[str, float]],
    counts: dict[str, int] | None = None,
    empty: float = 0.1,
    passages: int = COUNT,
) -> dict:
    """Analyse (source, level) -> transform -> F1."""
    dial = {ladder.source: ladder.dial for ladder in LADDERS}
    results, scores = [], {}
    for (source, level), row in f1s.items():
        group = source if level is None else f"{source}{level}"
        for family, f1 in row.items():
            name = family if source == "text" else f"{family}@{group}"
            values = right(f1, (counts or {}).get(name, COUNT))
            scores[name] = scored(values, passages=[f"p{i % passages}" for i in range(COUNT)])
            dials = {} if level is None else {dial[source]: level}
            results.append(result_of(family, name, values, group, experiment=family, source=source, source_dials=dials))
    control = result_of("baseline", "control_empty", right(empty), "text", control="empty", variant="")
    scores["control_empty"] = scored(right(empty), passages=[f"p{i % passages}" for i in range(COUNT)])
    return analyze(results, scores, [control], AnalysisSettings(0.1, 0.05), F1, LADDERS)


def tolerance_of(analysis: dict, ladder: str, transform: str) -> dict:
    (found,) = [one for one in analysis["atlas"]["tolerance"] if one["ladder"] == ladder]
    return next(row for row in found["transforms"] if row["experiment"] == transform)


def said(analysis: dict) -> str:
    """Return the printed analysis in one line."""
    return " ".join(render(summary_with(analysis)).split())


NOISY = {
    ("text", None): {"baseline": 0.8, "anchor_offset": 0.8, "nearest_k": 0.8},
    ("noisy", 6.0): {"baseline": 0.6, "anchor_offset": 0.8, "nearest_k": 0.3},
    ("noisy", 0.0): {"baseline": 0.2, "anchor_offset": 0.7, "nearest_k": 0.3},
    ("noisy", -6.0): {"baseline": 0.0, "anchor_offset": 0.5, "nearest_k": 0.3},
}


def test_a_crossing_is_interpolated_between_levels():
    positions = np.array([0.0, 1.0, 3.0])
    means = np.array([[0.9, 0.5, 0.9, 0.3, 0.4], [0.5, 0.1, 0.9, 0.9, 0.4], [0.3, 0.0, 0.9, 0.0, 0.4]])
    found = crossing(positions, means, np.array([0.4, 0.4, 0.4, 0.4, 0.4]))
    assert found[:2] == pytest.approx([2.0, 0.25])
    assert found[2:].tolist() == [math.inf, -math.inf, -math.inf]


def test_the_first_of_several_crossings_counts():
    means = np.array([[0.8], [0.2], [0.8], [0.0]])
    assert crossing(np.arange(4.0), means, np.array([0.5])) == pytest.approx([0.5])


def test_the_tolerance_is_where_half_of_the_clean_score_is_left():
    analysis = analysis_of(NOISY)
    (ladder,) = analysis["atlas"]["tolerance"]
    assert (ladder["ladder"], ladder["dial"], ladder["levels"]) == ("noisy", "snr_db", [6.0, 0.0, -6.0])
    assert ladder["threshold"] == pytest.approx(0.4)
    baseline = tolerance_of(analysis, "noisy", "baseline")
    assert baseline["scores"] == pytest.approx([0.6, 0.2, 0.0])
    assert baseline["status"] == "crosses"
    assert baseline["level"] == pytest.approx(3.0)  # halfway between .6 at 6 dB and .2 at 0 dB
    mild, severe = (end["level"] for end in baseline["interval"])
    assert 6 > mild > 3 > severe > 0
    assert tolerance_of(analysis, "noisy", "anchor_offset")["status"] == "beyond"
    before = tolerance_of(analysis, "noisy", "nearest_k")
    assert (before["status"], before["level"]) == ("before", None)
    assert before["interval"] == [{"status": "before", "level": None}] * 2
    assert ladder["reason"] is None
    assert tolerated(before) == "below half at the first measured level"
    assert tolerated(tolerance_of(analysis, "noisy", "anchor_offset")) == "above half at every level"
    assert tolerated(before | {"anchored": True}) == "below half on clean text"


def test_no_tolerance_if_the_empty_context_reaches_the_threshold():
    """The threshold is half of the clean F1."""
    for empty, usable in ((0.3, True), (0.36, False), (0.4, False), (0.5, False)):
        analysis = analysis_of(NOISY, empty=empty)
        (ladder,) = analysis["atlas"]["tolerance"]
        assert (ladder["reason"] is None) == usable, empty
        row = tolerance_of(analysis, "noisy", "baseline")
        assert (row["level"] is not None) == (row["interval"] is not None) == usable
    assert ladder["reason"] == "an empty context scores F1 .500, not clearly below half of the clean score (.400)"
    assert (row["status"], row["scores"][0]) == ("unknown", pytest.approx(0.6))
    assert f"no tolerance: {ladder['reason']}" in said(analysis)


def test_no_tolerance_if_the_clean_baseline_scores_too_low():
    analysis = analysis_of({key: {name: f1 / 10 for name, f1 in row.items()} for key, row in NOISY.items()}, empty=0.0)
    (ladder,) = analysis["atlas"]["tolerance"]
    assert ladder["reason"].startswith("the clean baseline scores too low: F1 .080")
    assert tolerance_of(analysis, "noisy", "baseline")["level"] is None


def test_no_interval_from_fewer_than_sixteen_passages():
    for count in (15, 16):
        analysis = analysis_of(NOISY, {"baseline@noisy0.0": count})
        row = tolerance_of(analysis, "noisy", "baseline")
        assert (row["num_samples"], row["interval"] is None, row["level"] is None) == (count, count < 16, False)
        columns, rows = tolerance_table(analysis["atlas"])
        (written,) = [dict(zip(columns, one, strict=True)) for one in rows if one[2] == "baseline"]
        assert (written["from"] is None) == (written["to"] is None) == (count < 16)
        fewer = tolerance_of(analysis_of(NOISY, passages=count), "noisy", "baseline")  # of all examples
        assert (fewer["num_samples"], fewer["interval"] is None) == (COUNT, count < 16)
        assert ("no interval below 16 passages  n=15" in render(summary_with(analysis))) == (count < 16)


def test_a_supervised_chain_does_not_represent_its_family():
    results = [
        result_of(family, f"{experiment}@{group}", right(f1), group, experiment=experiment, variant="",
                  fit={"supervised": experiment == "seen"})
        for group in "xy"
        for family, experiment, f1 in (("baseline", "b", 0.2), ("chain", "seen", 0.9), ("chain", "blind", 0.5))
    ]  # fmt: skip
    scores = {result["name"]: scored(right(result["f1"])) for result in results}
    atlas = analyze(results, scores, [], AnalysisSettings(0.1, 0.05), F1, LADDERS)["atlas"]
    assert atlas["columns"] == ["b", "seen", "blind"]
    assert [transform["supervised"] for transform in atlas["transforms"]] == [False, True, False]
    columns, rows = matrix_table(atlas)
    assert [row[columns.index("supervised")] for row in rows] == [False, True, False] * 2


@pytest.mark.statistical
def test_the_interval_covers_the_level_as_often_as_stated():
    """Of 60 draws, fewer than 52 intervals contain the true level with a probability of one in ten thousand."""
    generator = numbers(0)
    held = 0
    for _ in range(60):
        answered = generator.random((3, COUNT)) < np.array([[0.8], [0.6], [0.2]])
        scores = {name: scored(row.astype(float)) for name, row in zip("tab", answered, strict=True)}
        results = [result_of("baseline", "t", scores["t"][1], "text", source_dials={})]
        for name, level in (("a", 6.0), ("b", 0.0)):
            dials = {"snr_db": level}
            results.append(result_of("baseline", name, scores[name][1], f"n{level}", source="noisy", source_dials=dials,
                                     experiment="baseline"))  # fmt: skip
        results[0]["experiment"] = "baseline"
        analysis = analyze(results, scores, [], AnalysisSettings(0.1, 0.05), F1, LADDERS)
        mild, severe = tolerance_of(analysis, "noisy", "baseline")["interval"]
        levels = [{"before": math.inf, "beyond": -math.inf}.get(end["status"], end["level"]) for end in (mild, severe)]
        held += levels[0] >= 3 >= levels[1]
    assert held >= 52


def test_a_scale_has_two_ladders_that_start_at_one():
    text = {"baseline": 0.8}
    scaled = {100.0: 0.0, 10.0: 0.2, 0.1: 0.6, 0.01: 0.0}
    analysis = analysis_of({("text", None): text} | {("scaled", f): {"baseline": f1} for f, f1 in scaled.items()})
    up, down = (tolerance_of(analysis, name, "baseline") for name in ("scaled up", "scaled down"))
    levels = {ladder["ladder"]: ladder["levels"] for ladder in analysis["atlas"]["tolerance"]}
    assert levels == {"scaled up": [10.0, 100.0], "scaled down": [0.1, 0.01]}
    # from .8 at 1 to .2 at 10: two thirds of a decade
    assert up["level"] == pytest.approx(10 ** (2 / 3))
    assert down["level"] == pytest.approx(10 ** (-1 - 1 / 3))
    assert up["interval"][0]["level"] < up["level"] < up["interval"][1]["level"]
    assert down["interval"][0]["level"] > down["level"] > down["interval"][1]["level"]


def test_ladders_that_start_at_zero_and_at_infinity():
    analysis = analysis_of(
        {
            ("text", None): {"baseline": 0.8},
            ("mixed", 0.2): {"baseline": 0.2},
            ("mixed", 0.5): {"baseline": 0.0},
            ("low_rank", 256): {"baseline": 0.6},
            ("low_rank", 64): {"baseline": 0.2},
        }
    )
    # from .8 at 0 to .2 at .2
    assert tolerance_of(analysis, "mixed", "baseline")["level"] == pytest.approx(0.2 * 2 / 3)
    assert tolerance_of(analysis, "low_rank", "baseline")["level"] == pytest.approx(128)


def test_ladders_need_two_levels_and_complete_transforms():
    """A transform with a missing level is left out, and the text names it."""
    f1s = {("text", None): {"baseline": 0.8}, ("shifted", 1.0): {"baseline": 0.1}}
    assert analysis_of(f1s)["atlas"]["tolerance"] == []
    f1s = {
        ("text", None): {"baseline": 0.8},
        ("shifted", 1.0): {"baseline": 0.6, "nearest_k": 0.5},
        ("shifted", 2.0): {"baseline": 0.2},
    }
    analysis = analysis_of(f1s)
    (ladder,) = analysis["atlas"]["tolerance"]
    assert [row["experiment"] for row in ladder["transforms"]] == ["baseline"]
    assert analysis["atlas"]["matrix"][2][1] is None
    assert ladder["left_out"] == ["nearest_k"]
    text = said(analysis)
    assert "levels text 1 2 (norms); 95% interval; the clean score is from the n examples of each row" in text
    assert "left out, because a level or common examples are missing: nearest_k" in text


def test_a_complete_ladder_has_no_note_on_omissions():
    analysis = analysis_of(NOISY)
    assert analysis["atlas"]["tolerance"][0]["left_out"] == []
    text = said(analysis)
    assert "left out" not in text
    assert "levels 6 0 -6 (dB); 95% interval" in text  # noise has no finite clean level, so text is not a level


def test_levels_are_compared_on_their_common_examples():
    analysis = analysis_of(NOISY, {"baseline@noisy-6.0": 20, "anchor_offset@noisy0.0": 40})
    assert tolerance_of(analysis, "noisy", "baseline")["num_samples"] == 20
    assert tolerance_of(analysis, "noisy", "anchor_offset")["num_samples"] == 40
    assert tolerance_of(analysis, "noisy", "nearest_k")["num_samples"] == COUNT
    assert tolerance_of(analysis, "noisy", "baseline")["level"] == pytest.approx(3.0)


def test_the_matrix_holds_every_result_in_its_place():
    analysis = analysis_of(NOISY)
    atlas = analysis["atlas"]
    assert [source["group"] for source in atlas["sources"]] == ["text", "noisy6.0", "noisy0.0", "noisy-6.0"]
    assert atlas["sources"][1]["source_dials"] == {"snr_db": 6.0}
    assert [transform["experiment"] for transform in atlas["transforms"]] == ["baseline", "anchor_offset", "nearest_k"]
    f1s = [[cell["score"] for cell in row] for row in atlas["matrix"]]
    assert f1s == [pytest.approx(list(row.values())) for row in NOISY.values()]
    cell = atlas["matrix"][2][1]
    assert (cell["name"], cell["verdict"], cell["num_samples"]) == ("anchor_offset@noisy0.0", "better", COUNT)
    assert cell["recovered"] == pytest.approx(0.6 / 0.7)
    low, high = cell["recovered_interval"]
    assert low < cell["recovered"] < high
    columns, rows = matrix_table(atlas)
    assert len(rows) == 12
    row = dict(zip(columns, rows[7], strict=True))
    assert (row["source"], row["transform"], row["score"]) == ("noisy0.0", "anchor_offset", cell["score"])
    columns, rows = tolerance_table(atlas)
    assert dict(zip(columns, rows[0], strict=True))["status"] == "crosses"


def test_one_configuration_represents_each_family():
    """It must have run on every source."""
    f1s = {group: {"baseline": 0.5, "nearest_k": 0.4} for group in NOISY}
    analysis = analysis_of(f1s)
    assert analysis["atlas"]["columns"] == ["baseline", "nearest_k"]
    results = [
        result_of(family, f"{experiment}@{group}", right(f1), group, experiment=experiment, source_dials={})
        for group, row in {"x": {"b": 0.2, "k1": 0.9, "k2": 0.5}, "y": {"b": 0.2, "k2": 0.6, "k3": 0.5}}.items()
        for experiment, f1 in row.items()
        for family in [{"b": "baseline"}.get(experiment, "nearest_k")]
    ]
    scores = {result["name"]: scored(right(result["f1"])) for result in results}
    assert analyze(results, scores, [], AnalysisSettings(0.1, 0.05), F1, LADDERS)["atlas"]["columns"] == ["b", "k2"]


def test_one_source_makes_no_atlas():
    assert analysis_of({("text", None): {"baseline": 0.8}})["atlas"] is None


def test_the_text_is_readable_on_a_hundred_columns():
    sources = {("text", None): 0.8} | {("noisy", float(level)): 0.5 for level in (10, 6, 3, 0, -3, -6, -10)}
    families = ["baseline", "rms_matching", "batch_distribution", "nearest_k", "anchor_offset", "soft_codebook",
                "soft_vocab", "random_interpolation", "auto"]  # fmt: skip
    analysis = analysis_of({source: dict.fromkeys(families, f1) for source, f1 in sources.items()})
    text = render(summary_with(analysis))
    matrix = text[text.index("=== the matrix") :]
    assert max(map(len, matrix.splitlines())) <= 100
    assert "noisy-10.0 .500  .500" in matrix
    assert "  a  baseline" in matrix
    assert "=== tolerance: noisy, snr_db where F1 falls to half of the clean score (.400) ===" in matrix
    assert "above half at every level  [after the last, after the last]  n=200" in matrix
    assert text.count("Verdict:") == 8
    assert "Best of each family" not in text  # many sources are printed in short form


def test_the_ladders_of_two_seeds_are_kept_apart():
    results, scores = [], {}
    for variant, f1s in (("@seed0", (0.8, 0.6, 0.2)), ("@seed1", (0.8, 0.5, 0.1))):
        for level, f1 in zip((None, 6.0, 0.0), f1s, strict=True):
            name, values = f"{level}{variant}", right(f1)
            scores[name] = scored(values)
            about = {"source": "text"} if level is None else {"source": "noisy", "source_dials": {"snr_db": level}}
            results.append(result_of("baseline", name, values, name, experiment="baseline", variant=variant) | about)
    found = analyze(results, scores, [], AnalysisSettings(0.1, 0.05), F1, LADDERS)["atlas"]["tolerance"]
    assert [one["transforms"][0]["level"] for one in found] == pytest.approx([3.0, 4.5])
