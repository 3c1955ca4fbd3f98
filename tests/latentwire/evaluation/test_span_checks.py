"""Checks of the first examples: another order, other processes, and results that are extended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentwire.data.examples import DataSpec, load_data
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.setup import Component
from latentwire.evaluation.span_checks import CHECKED, SpanChecks
from latentwire.transforms.scaling import RMSMatching
from tests.faults.planting import NOISY, RMS, Bench, bench

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def tiny_bench(tiny) -> Bench:
    return bench(tiny, load_data(DataSpec("short_qa", "short_qa")))


def observed(on: Bench, indices: list[int]) -> SpanChecks:
    """Checks of a configuration that evaluated these examples in order."""
    inputs = RepairedInputs(on.setup, NOISY, RMS)
    checks = SpanChecks(inputs)
    for index in indices:
        checks.observe(index, inputs.embed(on.setup.prompts[index])[1])
    return checks


def test_a_state_of_one_pair_of_neighbours_shows(tiny_bench, monkeypatch):
    """Only the third example, directly after the second, differs: the reverse order has no such pair."""
    second, third = (int(tiny_bench.setup.prompts[index].source_mask.sum()) for index in (1, 2))
    lengths = [0]
    sound = RMSMatching.repair

    def repair(self, x, generator):
        lengths.append(len(x))
        return sound(self, x, generator) * (1.5 if lengths[-2:] == [second, third] else 1)

    assert second != third
    monkeypatch.setattr(RMSMatching, "repair", repair)
    kinds = [one["kind"] for one in observed(tiny_bench, [0, 1, 2, 3]).findings()]
    assert kinds == ["state"]


def test_the_sketch_does_not_depend_on_who_evaluated(tiny_bench):
    """A process that evaluated other examples computes the first ones itself."""
    all_seen, few_seen = observed(tiny_bench, [3, 2, 1, 0]), observed(tiny_bench, [2, 5, 6])
    few_seen.complete()
    assert sorted(few_seen.spans) == list(range(CHECKED))
    assert few_seen.sketch() == pytest.approx(all_seen.sketch(), rel=1e-4, abs=1e-5)
    assert few_seen.findings() == []


def test_a_result_has_its_sketch(tiny_bench):
    measured, rows = evaluate(tiny_bench.setup, NOISY, RMS, tiny_bench.state, "")
    expected = observed(tiny_bench, [0, 1, 2, 3]).sketch()
    assert measured["sketch"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert all(0 < row["distance"] < 2 and 0 <= row["tokens"] <= 4 for row in rows)


def test_the_clean_level_of_a_ladder_may_change_nothing(tiny_bench):
    for source in (Component("scaled", {"factor": 1.0}), Component("shifted", {"offset": 0.0}), Component("text")):
        assert tiny_bench.configuration(source, RMS) == []


@pytest.mark.slow
def test_an_extended_result_keeps_what_its_first_examples_showed(cli, monkeypatch):
    monkeypatch.setattr(RMSMatching, "repair", lambda self, x, generator: (x / 3).half().float())
    command = ["model=tiny_random", "samples=18", "shots=1", "max_new_tokens=2", "embed_transform=rms_matching"]
    command += ["embed_source=noisy", "snr_db=0"]
    results = []
    for examples in (16, 18):
        status, out, err = cli(*command, f"num_examples={examples}")
        assert status == 0, (out, err)
        (path,) = Path("outputs/single").glob("rms_scale1.0*dB.json")
        results.append(json.loads(path.read_text()))
    first, second = results
    assert (first["num_samples"], second["num_samples"]) == (16, 18)
    assert second["sketch"] == first["sketch"]
    assert [[one["kind"] for one in result["warnings"]].count("half_precision") for result in results] == [1, 1]
    assert torch.tensor(first["sketch"]).abs().max() > 0
