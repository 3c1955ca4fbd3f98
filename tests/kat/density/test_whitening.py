"""Whitened rows: no direction dominates, and the shape of the embeddings does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kat.density.estimate import DensitySpec, estimate
from kat.density.whitening import CENTRE, whiten
from latentwire.harness.errors import UserError
from tests.helpers.planted import planted
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=draws(seed), dtype=torch.float64)


def test_whitening_by_its_formula():
    x = normal(60, 5) * torch.tensor([9.0, 3.0, 1.0, 0.5, 0.1]) + 4
    rows = x.numpy()
    centred = rows - rows.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    variance = singular**2 / 60
    y = centred @ axes.T / np.sqrt(variance + np.median(variance))
    length = np.sqrt((y**2).sum(1).mean())
    y = np.hstack([y, np.full((60, 1), CENTRE * length)])
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    found = whiten(x.float()).double().numpy()
    np.testing.assert_allclose(found @ found.T, y @ y.T, atol=1e-5)  # the signs and the order of axes are free


def test_rotations_and_units_change_nothing():
    x = normal(80, 12) * torch.arange(1, 13)
    rotation = torch.linalg.qr(normal(12, 12, seed=1))[0]
    first, second = whiten(x), whiten(3 * x @ rotation + 5)
    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(30, 200), (200, 30), (31, 30)])
def test_constant_and_repeated_columns_change_nothing(shape):
    """Rank-deficient embeddings have fewer components, wide ones at most N - 1."""
    x = normal(*shape)
    wide = torch.cat([x, torch.full((shape[0], 3), 0.5), torch.zeros(shape[0], 2)], dim=1)
    first, second = whiten(x), whiten(wide)
    assert first.shape[1] <= min(shape[1], shape[0] - 1) + 1
    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(shape[0]))


def test_a_crowd_at_the_mean_stays_a_crowd():
    """Without the constant coordinate, its prompts would point in random directions and look rare."""
    shell = normalize(normal(60, 16), dim=1)
    crowd = 1e-3 * normal(60, 16, seed=1)
    around = torch.cat([shell, -shell, crowd - crowd.mean(0)])
    y = whiten(around)
    gaps = torch.cdist(y, y).fill_diagonal_(9).topk(5, largest=False).values.mean(1)
    assert gaps[120:].max() < 0.3 * gaps[:120].min()


def test_wide_embeddings_are_fitted_on_a_sample(monkeypatch):
    monkeypatch.setattr("kat.density.whitening.WIDEST", 20)
    monkeypatch.setattr("kat.density.whitening.SAMPLE", 40)
    x = normalize(normal(300, 50), dim=1)
    assert whiten(x, seed=1).shape == (300, 40)  # 39 components of 40 rows, and the constant
    assert torch.equal(whiten(x, seed=1), whiten(x, seed=1))


def test_blocks_change_nothing(monkeypatch):
    x = normal(100, 10)
    whole = whiten(x)
    monkeypatch.setattr("kat.density.whitening.BLOCK", 7)
    blocks = whiten(x)
    torch.testing.assert_close(whole @ whole.T, blocks @ blocks.T, atol=1e-5, rtol=0)


def test_one_direction_is_refused():
    x = torch.tensor([[0.6, 0.8]]).repeat(20, 1) * torch.linspace(1, 2, 20)[:, None]
    with pytest.raises(UserError, match=r"vary in 1 directions.*estimator=knn"):
        whiten(x)


@pytest.mark.statistical
def test_lists_after_whitening_find_the_neighbours():
    """Whitened rows have no few axes of large variance, so more lists and axes are searched."""
    x, _ = planted(0, n=3000, width=64)
    exact = estimate(x, DensitySpec(index="exact"))
    lists = estimate(x, DensitySpec(index="ivf"))
    assert lists.index == "ivf" and lists.recall >= 0.95
    assert float((lists.weights - exact.weights).abs().sum() / 2) < 0.05
    assert torch.equal(estimate(x, DensitySpec(index="ivf")).weights, lists.weights)


def test_copies_do_not_move_the_axes():
    """The place of 30 copies has 30 times the density of one, and no other density changes."""
    x = normalize(normal(120, 12), dim=1).float()
    once, copied = (estimate(y, DensitySpec()).density for y in (x, torch.cat([x, x[:1].repeat(29, 1)])))
    torch.testing.assert_close(copied[1:120], once[1:])
    assert copied[[0, *range(120, 149)]].tolist() == pytest.approx([30 * float(once[0])] * 30)
