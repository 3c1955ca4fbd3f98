"""Density is high where prompts are crowded, and the rare prompt weighs most."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch.nn.functional import normalize

from kat.density.diagnostics import diagnose_weights, mass_by_decile, on_clusters
from kat.density.estimate import DensitySpec, effective_sample_size, estimate, weigh
from kat.density.estimators import ESTIMATORS
from kat.density.kernel import gaussian_kernel, kernel_sums
from kat.density.nearest import nearest
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from tests.helpers.planted import planted
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")


def spec(**changes) -> DensitySpec:
    """The settings of conf/task/density.yaml, with changes."""
    node = OmegaConf.load(CONF / "task" / "density.yaml").sampler
    return dataclasses.replace(typed(DensitySpec, node), **changes)


def by_gamma(gamma: float, **changes) -> DensitySpec:
    return spec(**{"gamma": gamma, "target_ess": None, "crowd_cap": 0.0, **changes})


def rows(n: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, width, generator=draws(seed)), dim=1)


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# The estimators, against numbers worked out by hand and against scikit-learn.


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def test_knn_by_hand():
    found = estimate(on_circle(0, 10, 30, 90), by_gamma(1.0, estimator="knn", k=2, cap=1.0))
    means = [(chord(10) + chord(30)) / 2, (chord(10) + chord(20)) / 2, (chord(20) + chord(30)) / 2,
             (chord(60) + chord(80)) / 2]  # fmt: skip
    assert found.density.tolist() == pytest.approx([1 / mean for mean in means], rel=1e-5)
    assert found.weights.tolist() == pytest.approx([mean / sum(means) for mean in means], rel=1e-5)
    assert found.bandwidth == pytest.approx(chord(30), rel=1e-5)  # the lower median of the chords of 30, 20, 30, 80


def test_neighbours_are_scikit_learns():
    x = rows(400, 16)
    found = nearest(x, 7, index="exact", min_recall=1.0, seed=0)
    distances, ids = NearestNeighbors(n_neighbors=8, algorithm="brute").fit(x.numpy()).kneighbors(x.numpy())
    assert found.ids.tolist() == ids[:, 1:].tolist()
    np.testing.assert_allclose(found.distances, distances[:, 1:], rtol=1e-4)


@pytest.mark.float_path
def test_kernel_sums_match_scikit_learn(monkeypatch):
    """The size of the blocks does not change the sums."""
    x = rows(150, 5)
    expected = KernelDensity(kernel="gaussian", bandwidth=0.4).fit(x.double().numpy()).score_samples(x.double().numpy())
    norm = len(x) * (0.4 * math.sqrt(2 * math.pi)) ** 5
    whole = kernel_sums(x, torch.ones(150), 0.4)
    np.testing.assert_allclose(whole.numpy(), np.exp(expected) * norm, rtol=1e-5)
    monkeypatch.setattr("kat.density.kernel.BLOCK", 32)
    np.testing.assert_allclose(kernel_sums(x, torch.ones(150), 0.4), whole, rtol=1e-6)


def test_distances_of_close_neighbours_keep_their_digits():
    x = normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, 3e-4]], dtype=torch.float64), dim=1).float()
    assert nearest(x, 1, index="exact", min_recall=1.0, seed=0).distances[:, 0].tolist() == pytest.approx(
        [1e-4, 1e-4, 2e-4], rel=1e-3
    )


# The direction.

GEOMETRY = st.tuples(st.integers(0, 10**6), st.integers(12, 40), st.floats(0.3, 3.0), st.sampled_from([0.6, 0.9, 1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["knn", "kde_global"])
@settings(max_examples=100, deadline=None)
@given(geometry=GEOMETRY, away=st.floats(0.05, 2.0))
def test_moving_a_prompt_away_never_lowers_its_weight(estimator, geometry, away):
    """Gamma and the bandwidth are fixed; no density rises, and the density of the moved prompt i falls.

    Below the cap its weight before normalisation does not fall. After normalisation, w_i/w_j does not fall for any
    prompt j that is at least as crowded. With knn, this holds for prompts j without i among their neighbours. With a
    cap, the ratio may fall, but not below 1.
    """
    seed, n, gamma, cap = geometry
    down = torch.eye(4, dtype=torch.float64)[0]
    others = rows(n, 4, seed).double()
    others[:, 0] = others[:, 0].abs()  # in the upper half, so a move down leads away from most of them
    start = torch.randn(4, generator=draws(seed + 1)).double()
    start = normalize(start - start[0] * down, dim=0)  # on the equator
    end = normalize(start - away * down, dim=0)
    others = others[end @ others.T <= start @ others.T]
    assume(len(others) >= 8)
    settings = by_gamma(gamma, estimator=estimator, k=5, cap=cap)
    before, after = (estimate(torch.cat([point[None], others]), settings) for point in (start, end))
    assert (after.density <= before.density * (1 + 1e-4)).all() or estimator == "kde_global"
    comparable = before.density >= before.density[0]
    if estimator == "kde_global":
        assume(after.bandwidth == pytest.approx(before.bandwidth, rel=1e-6))
        assert (after.density <= before.density * (1 + 1e-4)).all()
    else:
        comparable &= (after.density / before.density - 1).abs() < 1e-5
    comparable[0] = False
    leads = [(found.weights[0] / found.weights)[comparable] for found in (before, after)]
    assert (leads[1] >= 1 - 1e-4).all()
    assert cap < 1 or (leads[1] >= leads[0] * (1 - 1e-3)).all()

    def unnormalised(density):
        order = density.sort(descending=True).values
        return max(float(density[0]), float(order[math.ceil(cap * len(order)) - 1])) ** -gamma

    assert unnormalised(after.density) >= unnormalised(before.density) * (1 - 1e-3)


# Without whitened_sketch, whose kernel is too wide for 49 prompts; test_sketch.py has its direction.
@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - {"whitened_sketch"}))
@pytest.mark.parametrize("weighting", [{"gamma": 1.0, "target_ess": None}, {"gamma": None, "target_ess": 0.5}])
def test_the_lonely_prompt_weighs_most_and_the_crowded_least(estimator, weighting):
    crowd = normalize(torch.eye(32)[0] + 0.05 * torch.randn(40, 32, generator=draws(1)))
    few = normalize(torch.eye(32)[1] + 0.1 * torch.randn(8, 32, generator=draws(2)))
    lonely = torch.eye(32)[2:3]
    weights = estimate(torch.cat([crowd, few, lonely]), spec(estimator=estimator, k=3, cap=1.0, **weighting)).weights
    assert weights[48] == pytest.approx(float(weights.max()))
    assert weights[:40].mean() < weights[40:48].min() < weights[48]


@settings(max_examples=60, deadline=None)
@given(
    density=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=40),
    gamma=st.floats(0.01, 5),
    cap=st.floats(0.5, 1.0),
    row=st.integers(0, 4),
    factor=st.floats(0, 1),
)
def test_a_rarer_prompt_never_weighs_less_at_any_gamma(density, gamma, cap, row, factor):
    """Of two prompts, the rarer one never weighs less; this also holds when gamma is solved for."""
    d = torch.tensor(density, dtype=torch.float64)
    _, capped, _ = weigh(d, gamma, None, cap)
    assert (capped[d.argsort()].diff() <= 1e-12).all()
    _, weights, _ = weigh(d, gamma, None, 1.0)
    d[row] *= 0.001 + 0.998 * factor
    _, after, _ = weigh(d, gamma, None, 1.0)
    assert (after < after[row] * (1 - 1e-9)).sum() >= (weights < weights[row] * (1 - 1e-9)).sum()
    assert after[row] >= weights[row]
    assert float(after.sum()) == pytest.approx(1)


# Duplicates.


@pytest.mark.parametrize("estimator", ["knn", "kde_global"])
def test_exact_duplicates_share_one_weight(estimator):
    """With knn, the place keeps its weight; with kde, each copy raises the density by 1."""
    x = rows(40, 8)
    copies = torch.cat([x, x[:1].repeat(15, 1)])
    found = estimate(copies, by_gamma(1.0, estimator=estimator, k=5, cap=1.0))
    assert found.distinct == 40
    assert found.weights.isfinite().all() and (found.weights > 0).all()
    same = [0, *range(40, 55)]
    assert len(set(found.weights[same].tolist())) == 1
    once = estimate(x, by_gamma(1.0, estimator=estimator, k=5, cap=1.0))
    if estimator == "knn":  # the copies share the weight of their place
        assert found.density[0] == pytest.approx(16 * float(once.density[0]))
        assert float(found.weights[same].sum()) == pytest.approx(float(once.weights[0]))
    else:
        assert float(found.density[0] - once.density[0]) == pytest.approx(15, rel=1e-4)


def test_nearly_equal_rows_have_a_floor_under_their_distance():
    close = normalize(torch.tensor([1.0, 0, 0]) + 1e-7 * torch.randn(20, 3, generator=draws(0)))
    found = estimate(torch.cat([close, rows(20, 3)]), by_gamma(0.5, estimator="knn", k=3))
    assert found.density.max() <= 20 / 1e-4
    assert found.weights.min() > 0
    found = estimate(torch.cat([close, rows(20, 3)]), by_gamma(0.5, estimator="kde_global", k=3))
    assert found.bandwidth == pytest.approx(1e-4)
    assert found.density.min() >= 1  # each prompt counts itself, at any distance to the others


def test_duplicates_count_across_blocks(monkeypatch):
    monkeypatch.setattr("kat.density.kernel.BLOCK", 16)
    x, copies = rows(40, 8), torch.arange(1, 41)
    written_out = kernel_sums(x.repeat_interleave(copies, 0), torch.ones(820), 0.4)[copies.cumsum(0) - 1]
    torch.testing.assert_close(kernel_sums(x, copies.double(), 0.4), written_out, rtol=1e-4, atol=0)


# The weights.


def test_effective_sample_size_by_hand():
    assert effective_sample_size(torch.tensor([1.0, 1, 1, 1])) == pytest.approx(4)
    assert effective_sample_size(torch.tensor([3.0, 1])) == pytest.approx(1.6)


def test_the_cap_is_the_quantile_and_gamma_the_power():
    _, weights, capped = weigh(torch.tensor([8.0, 4, 2, 1]), 2.0, None, 0.75)
    assert weights.tolist() == pytest.approx([1 / 37, 4 / 37, 16 / 37, 16 / 37])
    assert capped == 0.5


@pytest.mark.statistical
@pytest.mark.parametrize("target", [0.3, 0.6, 0.95, 1.0])
def test_gamma_is_solved_for_the_target(target):
    density = torch.rand(500, generator=draws(0), dtype=torch.float64) + 0.1
    gamma, weights, _ = weigh(density, None, target, 0.95)
    assert effective_sample_size(weights) / 500 == pytest.approx(target, abs=1e-6)
    assert effective_sample_size(weigh(density, gamma * 1.1 + 1e-9, None, 0.95)[1]) <= 500 * target + 1e-6


@pytest.mark.parametrize(
    ("density", "target", "reason"),
    [([1.0] * 20, 0.5, "same density"), ([*range(1, 101)], 0.01, r"0\.060 of the prompts")],
)
def test_a_target_that_no_gamma_reaches_is_refused(density, target, reason):
    with pytest.raises(UserError, match=reason):
        weigh(torch.tensor(density, dtype=torch.float64), None, target, 0.95)


# Planted clusters with noise and anisotropy.

NAMED = {
    "default": {},
    "kde_global": {"estimator": "kde_global"},
    "kde_global, gamma 1": {"estimator": "kde_global", "gamma": 1.0, "target_ess": None},
}


@pytest.mark.float_path
@pytest.mark.statistical
@pytest.mark.parametrize("name", NAMED)
def test_planted_clusters_get_nearly_even_shares(name):
    """Prompts outside the clusters get at most 6% of the weight."""
    results = []
    for seed in range(3):
        x, labels = planted(seed)
        weights = estimate(x, spec(**NAMED[name])).weights
        results.append((on_clusters(weights, labels), effective_sample_size(weights) / len(x)))
    for found, ess in results:
        assert found["total_variation_uniform"] > 0.4  # uniform sampling is far from even
        assert found["total_variation"] <= 0.10
        assert found["noise"] <= 0.06
        assert ess >= 0.35
        assert found["rare"] > 3 * found["rare_uniform"]


@pytest.mark.statistical
def test_cosine_to_all_others_would_do_nothing_here():
    x, labels = planted(0)
    weights = 1 / (1e-3 + x @ x.mean(0)).double()
    found = diagnose_weights(1 / weights, weights / weights.sum(), ["toy"] * len(x), labels)
    assert found["warnings"][0].startswith("the weights do nothing")
    assert found["clusters"]["total_variation"] > 0.4


# Approximate search.


@pytest.mark.statistical
def test_lists_find_nearly_all_and_say_how_many(monkeypatch):
    x, _ = planted(0, n=4000, width=64)
    found = nearest(x, 10, index="ivf", min_recall=0.9, seed=0)
    true = nearest(x, 10, index="exact", min_recall=1.0, seed=0)
    share = (found.ids[:, :, None] == true.ids[:, None, :]).any(1).float().mean()
    assert found.index == "ivf" and 0.9 <= found.recall <= 1
    assert found.recall == pytest.approx(float(share), abs=0.02)
    assert (found.ids != torch.arange(4000)[:, None]).all()
    again = nearest(x, 10, index="ivf", min_recall=0.9, seed=0)
    assert torch.equal(again.ids, found.ids)
    monkeypatch.setattr("kat.density.nearest.EXACT_UP_TO", 100)
    assert nearest(x, 10, index="auto", min_recall=0.9, seed=0).index == "ivf"


@pytest.mark.statistical
def test_as_many_lists_are_searched_as_the_recall_needs():
    x = rows(3000, 32)
    few, many = (nearest(x, 10, index="ivf", min_recall=recall, seed=0) for recall in (0.3, 0.8))
    assert 0.3 <= few.recall < 0.6 and 0.8 <= many.recall < 1
    assert nearest(x, 10, index="ivf", min_recall=1.0, seed=0).recall == 1


@pytest.mark.parametrize("recall", [-0.1, 1.1, float("nan")])
def test_a_recall_is_a_share(recall):
    with pytest.raises(UserError, match=r"min_recall=.*must be a share, from 0 to 1"):
        estimate(rows(50, 8), spec(min_recall=recall))


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", ["whitened_knn", "knn"])
def test_the_error_of_the_weights_is_measured(estimator, monkeypatch):
    """On a sample of all prompts, it is the total variation from the exact weights with the same gamma and caps."""
    monkeypatch.setattr("kat.density.nearest.RECALL_QUERIES", 1500)
    x, _ = planted(0, n=1500, width=32)
    settings = by_gamma(3.0, estimator=estimator, cap=1.0, crowd_cap=0.0)
    exact = estimate(x, dataclasses.replace(settings, index="exact"))
    found = estimate(x, dataclasses.replace(settings, index="ivf", min_recall=0.5))
    assert exact.weights_error == 0
    assert found.weights_error == pytest.approx(float((found.weights - exact.weights).abs().sum() / 2), rel=1e-4)
    assert found.weights_error > 1e-3


def test_lists_shorter_than_k_are_completed_exactly():
    found = nearest(rows(300, 8), 20, index="ivf", min_recall=0.0, seed=0)
    assert found.ids.min() >= 0
    assert all(len(set(row)) == 20 for row in found.ids.tolist())


def test_fewer_prompts_than_lists():
    found = nearest(rows(100, 8), 5, index="ivf", min_recall=0.9, seed=0)
    assert found.index == "ivf" and found.ids.shape == (100, 5)


@pytest.mark.statistical
def test_wide_embeddings_need_no_width_by_width_matrix(monkeypatch):
    """With more dimensions than prompts, neighbours are found without an eigendecomposition."""
    monkeypatch.setattr("torch.linalg.eigh", lambda matrix: pytest.fail(f"eigh of {tuple(matrix.shape)}"))
    x, _ = planted(0, n=400, width=600)
    assert nearest(x, 5, index="ivf", min_recall=0.9, seed=0).recall > 0.9


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.statistical
def test_approximate_kernel_sums_report_their_error(monkeypatch):
    """They compute less than half of the kernels; an error above 5% is refused."""
    x, _ = planted(0, n=4000, width=64)
    kde = spec(estimator="kde_global")
    exact = estimate(x, dataclasses.replace(kde, index="exact"))
    assert exact.error == 0 and estimate(x[:100], spec(estimator="knn")).error is None
    computed = []

    def counted(a, b, bandwidth, kernel=gaussian_kernel):
        computed.append(len(a) * len(b))
        return kernel(a, b, bandwidth)

    monkeypatch.setattr("kat.density.kernel.gaussian_kernel", counted)
    monkeypatch.setattr("kat.density.kernel.FAR", 300)
    monkeypatch.setattr("kat.density.kernel.ERROR_ROWS", 500)
    found = estimate(x, dataclasses.replace(kde, index="ivf"))
    assert sum(computed) < 4000**2 / 2
    true = float((found.density / kernel_sums(x, torch.ones(4000), found.bandwidth) - 1).abs().mean())
    assert found.error == pytest.approx(true, rel=0.2)
    assert 0 < true < 0.06
    assert float((found.weights - exact.weights).abs().sum() / 2) < 0.02
    assert torch.equal(found.density, estimate(x, dataclasses.replace(kde, index="ivf")).density)
    monkeypatch.setattr("kat.density.kernel.FAR", 0)
    with pytest.raises(UserError, match=r"densities have a mean error of .*more than 5%; use sampler\.index=exact"):
        estimate(x, dataclasses.replace(kde, index="ivf"))


def test_duplicates_count_in_lists_as_often_as_they_occur():
    x = torch.cat([rows(600, 16), rows(600, 16)[:50].repeat(3, 1)])
    found = estimate(x, by_gamma(1.0, estimator="kde_global", index="ivf", min_recall=0.0))
    expected = kernel_sums(x, torch.ones(750), found.bandwidth)
    torch.testing.assert_close(found.density, expected, rtol=1e-4, atol=0)  # FAR covers all of them


# Diagnostics.


def test_deciles_hold_a_tenth_of_the_prompts_each_crowded_first():
    density = torch.arange(20, 0, -1).double()
    weights = torch.arange(1, 21).double() / 210
    assert mass_by_decile(density, weights) == pytest.approx([(4 * i + 3) / 210 for i in range(10)])
    assert sum(mass_by_decile(torch.rand(23), torch.full((23,), 1 / 23))) == pytest.approx(1)


def test_diagnosis_by_hand():
    weights = torch.tensor([0.1, 0.1, 0.3, 0.5], dtype=torch.float64)
    found = diagnose_weights(1 / weights, weights, ["b", "a", "a", "b"], torch.tensor([4, 4, 7, -1]))
    assert found["ess"] == pytest.approx(1 / 0.36)
    assert found["largest_times_uniform"] == pytest.approx(2)
    assert found["mass_by_source"]["a"] == pytest.approx({"prompts": 2, "share": 0.5, "mass": 0.4})
    assert found["clusters"] == pytest.approx(
        {
            "clusters": 2,
            "total_variation_uniform": 1 / 6,
            "total_variation": 0.1,
            "rare_uniform": 1 / 3,
            "rare": 0.6,
            "rare_wanted": 0.5,
            "noise_uniform": 0.25,
            "noise": 0.5,
        }
    )
    assert found["warnings"] == []


def test_exploding_weights_give_a_warning():
    weights = torch.cat([torch.tensor([1.0]), torch.full((99,), 1e-6)]).double()
    found = diagnose_weights(1 / weights, weights / weights.sum(), ["a"] * 100)
    assert [word.split()[2] for word in found["warnings"]] == ["explode:"]


# Bad input.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k": 12}, r"k=12 needs at least 13 different prompts, got 12; lower sampler\.k or add prompts"),
        ({"k": 0}, "k=0: must be at least 1"),
        ({"estimator": "kde"}, "estimator=kde: is now called kde_global"),
        ({"estimator": "cosine"}, "estimator=cosine.*whitened_knn, knn, kde_global"),
        ({"gamma": -1.0, "target_ess": None}, "gamma=-1"),
        ({"gamma": 1.0}, r"gamma=1\.0 target_ess=0\.4: give one"),
        ({"target_ess": None}, "gamma=None target_ess=None"),
        ({"target_ess": 1.5}, r"target_ess=1\.5"),
        ({"cap": 0.0}, r"cap=0\.0"),
        ({"index": "hnsw"}, "index=hnsw.*auto, exact, ivf"),
    ],
)
def test_settings_out_of_range_are_refused(change, reason):
    with pytest.raises(UserError, match=reason):
        estimate(rows(12), spec(**{"k": 3, **change}))


def test_n_counts_different_prompts():
    with pytest.raises(UserError, match="got 2;"):
        estimate(rows(2).repeat(10, 1), spec(k=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_rows_that_are_not_unit_vectors_are_refused(value):
    x = rows(20)
    x[7] = value
    with pytest.raises(UserError, match=r"row 7 .*1 of 20 rows are not finite or not of unit length"):
        estimate(x, spec(k=3))
