"""Costs of configurations before they run: finished ones cost nothing, the others as long as their like took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire.evaluation.cost import EXAMPLE, LOADING, costs
from latentwire.harness.app import compose_config
from tests.helpers.files import read_json

TINY = ["model=tiny_random", "samples=4", "shots=1", "max_new_tokens=2"]
RMS = ["embed_transform=rms_matching", "target_scale=1.0"]


def config(*overrides: str):
    return compose_config("run", [*TINY, *overrides])


def slow_down(name: str, seconds: float) -> None:
    """Let a finished result have taken this time."""
    path = Path(f"outputs/single/{name}.json")
    path.write_text(json.dumps({**read_json(path), "time_sec": seconds}))


def test_without_results_every_example_costs_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = costs([config(), config(*RMS), config("samples=40"), config("samples=40", "num_examples=16")])
    assert [cost.seconds for cost in found] == pytest.approx([count * EXAMPLE for count in (4, 4, 40, 16)])
    assert {cost.load_seconds for cost in found} == {LOADING * EXAMPLE}


@pytest.mark.parametrize("other", ["shots=2", "samples=5", "seed=1", "model=smollm2"])
def test_a_group_shares_model_data_and_shots(tmp_path, monkeypatch, other):
    """The transform and its dials make no other group."""
    monkeypatch.chdir(tmp_path)
    one, same, apart = costs([config(), config(*RMS), config(other)])
    assert one.group == same.group != apart.group


def test_finished_ones_are_free_and_tell_the_time_of_others(cli):
    """Without a result of the same transform, the median of all counts."""
    assert cli(*TINY)[0] == 0 and cli(*TINY, *RMS)[0] == 0
    slow_down("baseline", 4.0)
    slow_down("rms_scale1.0", 40.0)
    more = [config(*RMS[:1], "target_scale=0.5"), config("embed_transform=anchor_offset")]
    finished, also, like, unlike = costs([config(), config(*RMS), *more])
    assert finished.seconds == also.seconds == 0
    assert costs([config("force=true")])[0].seconds == pytest.approx(4.0)
    assert like.seconds == pytest.approx(40.0)
    assert unlike.seconds == pytest.approx(4 * (1.0 + 10.0) / 2)
    assert unlike.load_seconds == pytest.approx(LOADING * (1.0 + 10.0) / 2)


def test_an_extended_one_costs_what_it_lacks(cli):
    assert cli(*TINY, "samples=40", "num_examples=16")[0] == 0
    slow_down("baseline", 8.0)
    enough, more = (costs([config("samples=40", f"num_examples={count}")])[0].seconds for count in (16, 32))
    assert (enough, more) == (0, pytest.approx(8.0))


def test_only_a_finished_one_costs_nothing(cli):
    """Also if an example took no time that a result shows."""
    assert cli(*TINY)[0] == 0
    slow_down("baseline", 0.0)
    assert [cost.seconds > 0 for cost in costs([config(), config("force=true"), config(*RMS)])] == [False, True, True]


def test_a_damaged_or_failed_result_costs_a_whole_one(cli):
    assert cli(*TINY)[0] == 0
    path = Path("outputs/single/baseline.json")
    whole = read_json(path)
    path.write_text(json.dumps({**whole, "status": "failed"}))
    assert costs([config()])[0].seconds == pytest.approx(4 * EXAMPLE)
    path.write_text("{")
    assert costs([config()])[0].seconds == pytest.approx(4 * EXAMPLE)


def test_each_configuration_is_looked_up_in_its_folder(cli):
    assert cli(*TINY, "out=one")[0] == 0
    assert [bool(cost.seconds) for cost in costs([config("out=two"), config("out=one")])] == [True, False]
