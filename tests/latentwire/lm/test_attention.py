"""Attention by matrix products: values and gradients against the definition, in double precision."""

from __future__ import annotations

import pytest
import torch

from latentwire.lm.attention import Attend, attend
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

SCALING = 0.3


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (2, 3, 5, 4), keys and values (2, 3, 6, 4), and a mask (1, 1, 5, 6) that hides some columns."""
    generator = draws(1)
    query, key, value = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.double) for n in (5, 6, 6))
    visible = torch.ones(1, 1, 5, 6, dtype=torch.bool).tril(1)
    return query, key, value, torch.zeros(1, 1, 5, 6, dtype=torch.double).masked_fill(~visible, -1e300)


@pytest.mark.parametrize("masked", [True, False])
def test_products_give_the_softmax_and_its_log_sum_exp(masked):
    query, key, value, mask = inputs()
    scores = SCALING * query @ key.transpose(-1, -2) + (mask if masked else 0)
    output, lse = Attend.apply(query, key, value, mask if masked else None, SCALING)
    assert torch.allclose(output, scores.softmax(-1) @ value)
    assert torch.allclose(lse, scores.logsumexp(-1))


def test_gradients_equal_finite_differences_of_both_results():
    query, key, value, mask = (x.requires_grad_(n < 3) for n, x in enumerate(inputs()))
    assert torch.autograd.gradcheck(lambda *own: Attend.apply(*own, mask, SCALING), (query, key, value))


def test_keys_and_values_without_gradients_get_none():
    query, key, value, _ = inputs()
    output, lse = Attend.apply(query.requires_grad_(), key, value, None, SCALING)
    (output.sum() + lse.sum()).backward()
    assert query.grad is not None
    assert key.grad is None
    assert value.grad is None


def test_products_and_the_fused_kernel_agree():
    query, key, value, mask = (x.float() for x in inputs())
    for own, fused in zip(
        Attend.apply(query, key, value, mask.clamp_min(torch.finfo(torch.float32).min), SCALING),
        attend(query, key, value, mask.clamp_min(torch.finfo(torch.float32).min), SCALING),
        strict=True,
    ):
        assert torch.allclose(own, fused, atol=1e-5)
