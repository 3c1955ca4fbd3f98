"""Baselines and controls that a sweep adds to its configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from latentwire.evaluation.request import read
from latentwire.harness.device import accelerator_state
from latentwire.harness.grids import Job
from latentwire.harness.paths import CONF
from latentwire.harness.results import ResultStore
from latentwire.records import F1
from latentwire.sweeps.schedule import control_jobs
from latentwire.sweeps.scrambled import scrambled_jobs
from tests.helpers.results import result_of, right


@pytest.fixture(autouse=True)
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def job_of(overrides):
    return Job(list(overrides), compose("run", overrides=["model=tiny_random", *overrides]))


def added(*asked):
    """Return the names of the added jobs with what they control."""
    return [(job.config.name, job.config.control) for job in control_jobs([job_of(one) for one in asked], job_of)]


@pytest.mark.parametrize(("identity", "scrambled"), [(True, "rms_scale1.0"), (False, "anchor_eps0.05")])
def test_what_changes_nothing_gets_no_scrambled_control(tmp_path, identity, scrambled):
    """The best contender gets it; a transform that returns its input is not a contender."""
    jobs = [job_of(["embed_transform=anchor_offset", "eps=0.05"]), job_of(["embed_transform=rms_matching"])]
    results = [
        result_of("anchor_offset", "anchor", right(0.9, 4), "text", identity=identity),
        result_of("rms_matching", "rms", right(0.5, 4), "text"),
    ]
    row = {"question": "?", "references": ["a"], "prediction": "a", "f1": 1.0, "em": 1.0, "scores": {}}
    store = ResultStore(tmp_path)
    for result in results:
        text = "".join(json.dumps({**row, "id": f"q{i}", "passage": f"p{i}"}) + "\n" for i in range(4))
        store.predictions_path(result["name"]).write_text(text, encoding="utf-8")
    found = scrambled_jobs(jobs, results, [job_of(["control=empty"])], job_of, F1, store)
    assert [job.config.name for job in found] == [f"control_scrambled_{scrambled}"]


LOWER = [("control_empty", "empty"), ("control_random", "random")]


def test_a_sweep_of_one_transform_gets_a_baseline():
    """On text the baseline is the clean control too."""
    found = added(*(["embed_transform=anchor_offset", f"eps={eps}"] for eps in (0.01, 0.05)))
    assert found == [*LOWER, ("baseline", "baseline")]


def test_each_source_gets_the_baseline_that_it_lacks():
    transforms = ["embed_transform=baseline", "embed_transform=rms_matching"]
    text, noisy = ([[f"embed_source={source}", one] for one in transforms] for source in ("text", "noisy"))
    scaled = ["embed_source=scaled", "embed_transform=rms_matching"]
    assert added(*text, *noisy) == LOWER
    assert added(*text, *noisy, scaled) == [*LOWER, ("baseline@scaled117.0", "baseline")]
    assert added(*noisy[1:], scaled) == [
        ("control_clean", "clean"),
        *LOWER,
        ("baseline@noisy0.0dB", "baseline"),
        ("baseline@scaled117.0", "baseline"),
    ]


def test_a_baseline_keeps_the_source_and_loses_the_transform():
    """Other settings stay. It is the configuration that a preset has, down to its hash, so its result is reused."""
    asked = job_of(["seed=3", "embed_source=scaled", "factor=12", "embed_transform=nearest_k", "k=5", "alpha=0.5"])
    *_, baseline = control_jobs([asked], job_of)
    assert baseline.overrides == ["seed=3", "embed_source=scaled", "factor=12", "control=baseline"]
    config, other = baseline.config, job_of(["seed=3", "embed_source=scaled", "factor=12"]).config
    assert (config.name, config.experiment, config.group) == ("baseline@scaled12.0", "baseline", asked.config.group)
    assert (config.name, config.group) == (other.name, other.group)
    state = accelerator_state("cpu")
    assert read(config, state, 0).key == read(other, state, 0).key


def test_each_variant_has_its_own_baseline_and_controls():
    found = added(*([f"seed={n}", "embed_transform=rms_matching", f"variant='@seed{n}'"] for n in (0, 1)))
    kinds = [("control_empty", "empty"), ("control_random", "random"), ("baseline", "baseline")]
    assert found == [(f"{name}@seed{n}", control) for n in (0, 1) for name, control in kinds]


def test_a_sweep_of_controls_alone_gets_no_others():
    assert added(["control=clean"], ["control=empty"]) == []


def test_a_control_in_the_sweep_is_not_run_twice():
    """The empty context does not count as a baseline, although its transform is called so."""
    assert added(["control=empty"], ["embed_transform=rms_matching"]) == [LOWER[1], ("baseline", "baseline")]
    assert added(["control=baseline"], ["embed_transform=rms_matching"]) == LOWER
    assert added(["control=none", "embed_transform=rms_matching"]) == [*LOWER, ("baseline", "baseline")]
