"""The scrambled control of a sweep: which transform gets one, its name, resuming, and its place in the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.files import read_json

SWEEP = ["-m", "model=tiny_random", "samples=8", "shots=1", "max_new_tokens=3", "embed_source=text,scaled",
         "embed_transform=baseline,rms_matching,random_interpolation", "min_clean_score=0"]  # fmt: skip
NAMES = ["control_scrambled_rms_scale1.0", "control_scrambled_rms_scale1.0@scaled117.0"]


def answers_path(name: str) -> Path:
    return Path(f"outputs/single/{name}.predictions.jsonl")


def scrambled_of(summary: dict) -> list[dict]:
    return [control for control in summary["controls"] if control["control"] == "scrambled"]


@pytest.mark.slow
def test_each_source_gets_a_scrambled_control_and_resumes_it(cli):
    status, _, err = cli(*SWEEP)
    assert status == 0, err
    summary = read_json("outputs/single/summary.json")
    found = scrambled_of(summary)
    assert [(c["name"], c["group"], c["family"]) for c in found] == [
        (NAMES[0], "text", "rms_matching"), (NAMES[1], "scaled117.0", "rms_matching"),
    ]  # fmt: skip
    assert summary["total_experiments"] == 6  # controls are counted apart
    rows = [
        [json.loads(line)["prediction"] for line in answers_path(name).read_text().splitlines()]
        for name in ("rms_scale1.0", NAMES[0])
    ]
    assert rows[0] != rows[1]
    hashes = {read_json(f"outputs/single/{name}.json")["config_hash"] for name in ("rms_scale1.0", NAMES[0])}
    assert len(hashes) == 2
    status, _, err = cli(*SWEEP)
    assert status == 0
    assert [line for line in err.splitlines() if NAMES[1] in line and "(finished before)" in line]
    assert [control["name"] for control in scrambled_of(read_json("outputs/single/summary.json"))] == NAMES


@pytest.mark.slow
def test_a_budgeted_sweep_scrambles_what_is_left(cli):
    """The control has the examples of the survivor."""
    status, _, err = cli(*SWEEP, "budget_minutes=5")
    assert status == 0, err
    summary = read_json("outputs/single/summary.json")
    assert [(c["name"], c["num_samples"]) for c in scrambled_of(summary)] == [(name, 8) for name in NAMES]
