"""Sound sources and transforms give no warning."""

from __future__ import annotations

import pytest
import torch

from latentwire.data.examples import DataSpec, load_data
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.setup import Component
from latentwire.evaluation.span_checks import SpanChecks
from latentwire.lm.models import load_model
from latentwire.records import Finding
from latentwire.transforms.registry import TRANSFORMS
from tests.faults.planting import Bench, bench
from tests.helpers.choices import default_dials
from tests.helpers.models import model_spec

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCES = [
    Component("text"),
    Component("scaled", {"factor": 117.0}),
    Component("scaled", {"factor": 1.0}),
    Component("noisy", {"snr_db": 0.0}),
    Component("noisy", {"snr_db": -15.0}),
    Component("shifted", {"offset": 2.0}),
    Component("low_rank", {"rank": 32}),
    Component("rotated"),
    Component("mixed", {"rate": 0.5}),
    Component("token_scale", {"spread": 1.0}),
    Component("anisotropic", {"spread": 1.0}),
    Component("averaged", {"ratio": 2.0, "positions": None}),
    Component("cut", {"ratio": 1.0, "positions": None}),
    Component("scaled_passage", {"factor": 100.0}),
    Component("chosen", {"ratio": 2.0, "positions": None, "checkpoint": ""}),
]
ROUGHEST = {
    "nearest_k": {"k": 1, "alpha": 0.0},
    "anchor_offset": {"eps": 0.0},
    "soft_vocab": {"tau": 0.02},
    "random_interpolation": {"k": 1},
    "chain": {"steps": "rms_scale1.0+anchor_eps0.05"},
}


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def benches(request) -> Bench:
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), getattr(torch, request.param))
    return bench(lm, load_data(DataSpec("short_qa", "short_qa")))


def warnings_of(on: Bench, source: Component, transform: Component) -> list[Finding]:
    inputs = RepairedInputs(on.setup, source, transform)
    checks = SpanChecks(inputs)
    for index, prompt in enumerate(on.setup.prompts):
        checks.observe(index, inputs.embed(prompt)[1])
    return [one for one in [*inputs.findings(), *checks.findings()] if one["level"] == "warning"]


def test_a_sound_set_up_gives_no_warning(benches):
    assert benches.setup.warnings == []


@pytest.mark.parametrize("fitted", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.label)
def test_sound_configurations_give_no_warning(benches, source, fitted):
    for name, transform in TRANSFORMS.items():
        # These sources have no pairs to be fitted to.
        unpaired = name == "procrustes_supervised" and source.name in ("averaged", "chosen")
        if bool(transform.fits) == fitted and not unpaired:
            dials = ROUGHEST[name] if name in ROUGHEST else default_dials("embed_transform", name)
            assert warnings_of(benches, source, Component(name, dials)) == [], name
