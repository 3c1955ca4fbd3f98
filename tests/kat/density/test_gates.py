"""The gates tell a local density from a global one, on embeddings whose spectrum falls like a language model's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from kat.density.estimate import Density, DensitySpec, effective_sample_size, estimate
from kat.density.gates import crowd_ratios, gate_warnings, measure_gates, require_crowd_gate, stability_over_halves
from kat.density.ranks import rank_correlation
from latentwire.harness.errors import UserError
from tests.helpers.lifelike import lifelike
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")


def gates_of(x: torch.Tensor, **changes) -> dict:
    spec = DensitySpec(**changes)
    return measure_gates(x, spec, estimate(x, spec))


@pytest.mark.statistical
def test_the_default_passes_where_the_others_fail():
    """The planted clusters of the other tests cannot tell these estimators apart; falling spectra can."""
    x = lifelike()
    whitened, knn, kde = (gates_of(x, estimator=name) for name in ("whitened_knn", "knn", "kde_global"))
    assert abs(whitened["centre_correlation"]) < 0.5 < knn["centre_correlation"] < kde["centre_correlation"]
    assert whitened["crowd_ratio"] < 0.2 < 1 < kde["crowd_ratio"]
    assert whitened["local_share"] == 1 and kde["local_share"] < 0.1
    assert kde["stability"] > 0.9  # it is stable because it measures the centre
    assert whitened["stability"] > 0.5


@pytest.mark.statistical
def test_reversed_weights_fail_the_crowd_gate(monkeypatch):
    """A crowd gets more than its share as soon as weights rise with the density."""
    x, spec = lifelike(), DensitySpec(gamma=20.0, target_ess=None, index="exact")
    density = estimate(x, spec).density
    assert max(crowd_ratios(x, density, spec, 0)) < 1

    def wrong(emb: torch.Tensor, spec: DensitySpec, seed: int = 0) -> Density:
        found = estimate(emb, spec, seed)
        return dataclasses.replace(found, weights=(1 / found.weights) / (1 / found.weights).sum())

    monkeypatch.setattr("kat.density.gates.estimate", wrong)
    assert min(crowd_ratios(x, density, spec, 0)) > 1


@pytest.mark.statistical
def test_a_crowd_off_centre_weighs_less_than_its_share():
    """Twenty near copies of the prompt farthest from the mean get less than a tenth of uniform."""
    x = lifelike(1)
    place = int((x @ x.mean(0)).argmin())
    crowd = normalize(x[place] + 0.002 * torch.randn(20, 96, generator=draws(2)), dim=1)
    weights = estimate(torch.cat([x, crowd]), DensitySpec()).weights
    assert float(weights[-20:].sum()) * 820 / 20 < 0.1


@pytest.mark.statistical
def test_stability_falls_with_noise():
    """Isotropic rows have no density to find; the halves then agree less than on topics."""
    spec = DensitySpec(gamma=1.0, target_ess=None, index="exact")
    noise = normalize(torch.randn(800, 96, generator=draws(3)), dim=1)
    assert stability_over_halves(noise, spec, 0) < stability_over_halves(lifelike(), spec, 0) - 0.2


def test_gates_use_gamma_of_the_weights_and_repeat(monkeypatch):
    x, spec = lifelike(n=300), DensitySpec()
    found = estimate(x, spec)
    given = []

    def spied(emb: torch.Tensor, spec: DensitySpec, seed: int = 0) -> Density:
        given.append(spec)
        return estimate(emb, spec, seed)

    monkeypatch.setattr("kat.density.gates.estimate", spied)
    gates = measure_gates(x, spec, found, 5)
    assert {one.gamma for one in given} == {found.gamma}
    assert measure_gates(x, spec, found, 5) == gates
    assert effective_sample_size(found.weights) / 300 == pytest.approx(0.4)


def test_few_prompts_have_no_crowd_and_no_warning():
    gates = gates_of(lifelike(n=60))
    assert gates["crowd_ratio"] is gates["stability"] is gates["agreement"] is None
    assert gate_warnings(gates) == []
    require_crowd_gate(gates, "weights.jsonl")


def test_copies_of_prompts_change_no_gate_but_the_centre():
    """The crowd and the halves are made of different prompts only."""
    x = lifelike(n=300)
    spec = DensitySpec(gamma=5.0, target_ess=None)
    once, twice = (measure_gates(y, spec, estimate(y, spec)) for y in (x, torch.cat([x, x])))
    assert once["crowd_ratio"] == twice["crowd_ratio"] and once["stability"] == twice["stability"]


def test_the_same_embeddings_agree_and_others_do_not():
    x, spec = lifelike(n=300), DensitySpec()
    found, other = estimate(x, spec), estimate(lifelike(7, n=300), spec)
    same = measure_gates(x, spec, found, 0, found)
    assert (same["agreement"], same["weights_apart"]) == (1.0, 0.0)
    apart = measure_gates(x, spec, found, 0, other)
    assert abs(apart["agreement"]) < 0.3 and apart["weights_apart"] > 0.2
    assert "the two embedders disagree" in gate_warnings(apart)[-1]


def test_each_gate_has_its_warning():
    gates = {"local_share": 0.02, "centre_correlation": -0.7, "crowd_ratio": 1.0, "crowd_ratio_mean": 0.5,
             "stability": 0.79, "agreement": 0.29, "weights_apart": 0.5}  # fmt: skip
    beginnings = ["the density is not local", "the density has a rank correlation of -0.70", "a crowd of 20 near",
                  "the density is noisy", "the two embedders disagree"]  # fmt: skip
    assert [warning.startswith(start) for warning, start in zip(gate_warnings(gates), beginnings, strict=True)] == [
        True
    ] * 5
    good = gates | {"local_share": 0.5, "centre_correlation": 0.5, "crowd_ratio": 0.99, "stability": 0.8}
    assert gate_warnings(good | {"agreement": 0.3}) == []
    require_crowd_gate(good, "weights.jsonl")
    with pytest.raises(UserError, match=r"^weights.jsonl: a crowd of 20 .*1\.00 times.*force_weights=true"):
        require_crowd_gate(gates, "weights.jsonl")


def test_rank_correlation_is_scipys():
    a = torch.randint(0, 9, (200,), generator=draws(0))
    b = a + torch.randint(0, 9, (200,), generator=draws(1))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert rank_correlation(a, torch.ones(200)) == 0
