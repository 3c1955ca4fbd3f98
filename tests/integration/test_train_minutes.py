"""Training for some minutes: the steps that fit are fixed at the start, and `steps` repeats them."""

from __future__ import annotations

import pytest

from tests.helpers.files import read_json, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = ["task=latent", "encoder=bottleneck", "d_z=4", "loss=reconstruction", "model=tiny_random", "device=cpu",
       "dtype=float32", "adapter_hidden=16", "samples=24", "shots=1", "passages_per_step=2", "epochs=40",
       "evaluate_every=40"]  # fmt: skip


def test_minutes_fix_a_number_of_steps_that_steps_repeats(trains, tmp_path):
    status, _, err = trains(*RUN, "minutes=0.01", "out=timed")
    assert status == 0, err
    timed = read_json(tmp_path / "timed/result.json")
    steps = timed["steps"]
    assert read_json(tmp_path / "timed/plan.json")["steps"] == steps == len(read_rows(tmp_path / "timed/metrics.jsonl"))
    assert f"max_steps={steps} repeats this run" in err
    assert steps >= 1

    status, _, err = trains(*RUN, f"max_steps={steps}", "out=counted")
    assert status == 0, err
    digests = [read_json(tmp_path / name / "encoder/config.json")["sha256"] for name in ("timed", "counted")]
    assert digests[0] == digests[1]
    assert read_rows(tmp_path / "timed/metrics.jsonl") == read_rows(tmp_path / "counted/metrics.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["minutes=0"], "minutes=0.0: must be above 0"),
        (["minutes=inf"], "minutes=inf: must be above 0"),
        (["minutes=x"], "minutes=x: expected a number"),
        (["max_steps=0"], "max_steps=0: must be at least 1"),
        (["max_steps=5", "minutes=1"], "max_steps=5 minutes=1.0: both say when to stop; leave one out"),
        (["minutes=1e-9"], "minutes=1e-09: a step takes"),
    ],
)
def test_bad_times_are_refused(trains, settings, message):
    status, _, err = trains(*RUN, *settings, "out=bad")
    assert status == 1
    assert f"error: {message}" in err
