"""The losses against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.encoders.collapse import mean_pairwise_cosine
from latentwire.harness.errors import UserError
from latentwire.latent_training.losses import embedding_loss, manifold_loss, rms_loss
from latentwire.lm.losses import distillation_loss, hidden_loss, token_loss
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.random import draws


def test_cosine_ignores_length_and_mse_does_not():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    turned = torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    assert float(embedding_loss(7 * x, x, 1.0, "cosine")) == pytest.approx(0)
    assert float(embedding_loss(turned, x, 1.0, "cosine")) == pytest.approx(0.5)
    # ((1, 25), (0, 1)) / 4 for a unit of 2
    assert float(embedding_loss(turned, x, 2.0, "mse")) == pytest.approx((1 + 25 + 0 + 1) / 4 / 4)


def test_another_distance_is_refused():
    with pytest.raises(UserError, match="distance=l1: unknown; use one of cosine, mse"):
        embedding_loss(torch.ones(1, 2), torch.ones(1, 2), 1.0, "l1")


def test_rms_loss_is_symmetric_in_the_factor():
    x = torch.tensor([[3.0, 3.0], [3.0, -3.0]])
    assert float(rms_loss(x, 3.0)) == pytest.approx(0)
    assert float(rms_loss(2 * x, 3.0)) == pytest.approx(math.log(2) ** 2)
    assert float(rms_loss(x / 2, 3.0)) == pytest.approx(math.log(2) ** 2)


def test_manifold_loss_is_the_distance_from_the_nearest_token():
    vocabulary = Vocabulary(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[5.0, 0.0], [3.0, 4.0]], requires_grad=True)
    loss = manifold_loss(x, vocabulary)
    assert float(loss.detach()) == pytest.approx((0 + 1 - 0.8) / 2)
    loss.backward()
    assert x.grad is not None
    assert x.grad[1, 0] > 0 > x.grad[1, 1]  # down the gradient, towards (0, 1)


def test_token_loss_and_distillation():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert float(token_loss(logits, torch.tensor([1, 0]))) == pytest.approx((-math.log(0.75) + math.log(2)) / 2)
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    # .75 ln(.75 / .25) + .25 ln(.25 / .75) for the first, 0 for the second
    assert float(distillation_loss(logits, teacher)) == pytest.approx(0.5 * math.log(3) / 2)
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-7)


def test_hidden_loss_by_hand():
    """The first layer's standard deviation is 2: half of it costs 1/8 and three of it 2.5 (smooth L1)."""
    first = math.sqrt(3) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    teacher = torch.stack([first, 700 + 50 * first])
    assert float(first.std()) == pytest.approx(2)
    student = teacher.clone()
    student[0, 0, 0] += 1
    student[0, 1, 1] -= 6
    assert float(hidden_loss(student, teacher)) == pytest.approx((0.125 + 2.5) / 8)
    assert float(hidden_loss(teacher, teacher)) == 0


def test_hidden_loss_is_free_of_each_layers_scale():
    student, teacher = torch.randn(2, 3, 5, 4, generator=draws(0))
    scales = torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    found = hidden_loss(student, teacher)
    assert float(hidden_loss(scales * student, scales * teacher)) == pytest.approx(float(found), rel=1e-4)
    assert float(hidden_loss(scales * student, teacher)) != pytest.approx(float(found), rel=0.1)


def test_mean_cosine_compares_equal_positions_of_passages():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert mean_pairwise_cosine([a, b]) == pytest.approx(0.5)
    assert mean_pairwise_cosine([a, a, b]) == pytest.approx(0.75)
    assert mean_pairwise_cosine([a]) == mean_pairwise_cosine([]) == mean_pairwise_cosine([a, a[:0]]) == 0
