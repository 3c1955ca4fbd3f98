"""GRPO's pure functions: values computed by hand; test_grpo_trl.py compares them with TRL's trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kat.grpo.objective import (
    BatchSize,
    advantages,
    degenerate_groups,
    entropy_bonus,
    entropy_threshold,
    grpo_loss,
    kl_divergence,
    loss_weights,
    per_token_entropy,
    per_token_logps,
)
from latentwire.harness.errors import UserError
from tests.helpers.grpo import objective

pytestmark = pytest.mark.usefixtures("one_thread")


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    std = 1.0  # of 1, 2, 3 with G - 1
    expected = torch.tensor([[-1 / (std + 1e-4), 0.0, 1 / (std + 1e-4)], [0.0, 0.0, 0.0]])
    assert torch.allclose(advantages(rewards), expected, atol=1e-7)
    assert torch.equal(advantages(rewards, "none"), torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_advantages_do_not_depend_on_other_groups():
    a, b = torch.tensor([[0.0, 4.0]]), torch.tensor([[100.0, -7.0]])
    assert torch.equal(advantages(torch.cat([a, b]))[:1], advantages(a))


def test_a_group_of_one_has_no_advantage():
    with pytest.raises(UserError, match=r"grpo\.num_generations=1.*at least 2"):
        advantages(torch.ones(3, 1))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage_despite_rounding(scale):
    """The mean of seven rewards of 0.1 is not exactly 0.1 in float32."""
    rewards = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]])
    assert float(rewards[0].mean()) != float(rewards[0, 0])
    got = advantages(rewards, scale)
    assert torch.equal(got[0], torch.zeros(7)) and bool((got[1] != 0).all())


def test_degenerate_groups_have_equal_rewards():
    assert degenerate_groups(torch.tensor([[1.0, 1.0], [1.0, 1.1], [0.0, 0.0]])) == 2
    assert degenerate_groups(torch.tensor([[1.0, 1.0, 2.0]])) == 0


def test_statistics_of_tokens_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    assert per_token_logps(logits, torch.tensor([[1]]), 1.0).item() == pytest.approx(math.log(0.25))
    assert per_token_entropy(logits, 1.0).item() == pytest.approx(1.5 * math.log(2))
    # half the temperature squares the odds: 4 : 1 : 1
    assert per_token_logps(logits, torch.tensor([[0]]), 0.5).item() == pytest.approx(math.log(4 / 6))
    assert per_token_entropy(logits, 0.5).item() == pytest.approx(-(4 / 6) * math.log(4 / 6) - 2 / 6 * math.log(1 / 6))


def test_statistics_have_the_gradient_of_a_softmax():
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    per_token_logps(logits, torch.tensor([[2]]), 0.5).sum().backward()
    assert torch.allclose(logits.grad[0, 0], torch.tensor([-2 / 3, -2 / 3, 4 / 3]))


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", -math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 2 - math.log(2) - 1)],
)
def test_kl_by_hand(estimator, expected):
    """The reference finds the token twice as likely as the policy."""
    got = kl_divergence(torch.tensor([[math.log(0.25)]]), torch.tensor([[math.log(0.5)]]), estimator)
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_unbiased_estimators_average_to_the_kl_divergence(estimator):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    assert (p * kl_divergence(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize(("estimator", "follows"), [("k1", False), ("k2", True)])
def test_k2_has_the_gradient_of_the_divergence_and_k1_none(estimator, follows):
    """The expected gradient of k1 is zero."""
    logits, q = torch.tensor([1.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.3, 0.3, 0.4])
    logp = logits.log_softmax(0)
    (logp.exp().detach() * kl_divergence(logp, q.log(), estimator)).sum().backward()
    sampled, logits.grad = logits.grad, None
    logp = logits.log_softmax(0)
    (logp.exp() * (logp - q.log())).sum().backward()
    assert torch.allclose(sampled, logits.grad if follows else torch.zeros(3), atol=1e-6)


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
SIZE = BatchSize(tokens=4, sequences=2, completions=5, own_tokens=3, processes=2, max_completion_length=8)


def test_weights_of_tokens_by_hand():
    for loss_type, divisor in {"dapo": 4, "cispo": 4, "bnpo": 2 * 3, "dr_grpo": 5 * 8}.items():
        assert torch.allclose(loss_weights(MASK, loss_type, SIZE), MASK / divisor)
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0], [0, 0, 0]])
    assert torch.allclose(loss_weights(MASK, "grpo", SIZE), expected)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "cispo"])
def test_weights_sum_to_one_over_micro_batches(loss_type):
    size = replace(SIZE, own_tokens=4, processes=1)
    parts = [loss_weights(MASK[row : row + 1], loss_type, size) for row in range(3)]
    assert torch.cat(parts).sum().item() == pytest.approx(1)
    empty = replace(size, tokens=0, sequences=0, own_tokens=0)
    assert loss_weights(MASK[2:], loss_type, empty).sum() == 0  # a batch without a counted token


LOGP = -2.0  # of the token under the policy that sampled


def one_token(ratio: float, advantage: float, **settings) -> tuple[float, float, bool]:
    """Return a token's loss, its gradient with respect to the log-probability, and whether it was clipped."""
    logp = torch.tensor([[math.log(ratio) + LOGP]], requires_grad=True)
    old = torch.tensor([[LOGP]])
    terms = grpo_loss(logp, old, None, torch.tensor([advantage]), torch.ones(1, 1), objective(**settings))
    terms.loss.backward()
    return terms.loss.item(), logp.grad.item(), bool(terms.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.1, 2.0, -2.2, -2.2, False),
        (1.5, 2.0, -2.4, 0.0, True),  # already raised beyond the range: no gradient
        (0.5, 2.0, -1.0, -1.0, False),  # a good token below the range: full gradient
        (0.5, -2.0, 1.6, 0.0, True),
        (1.5, -2.0, 3.0, 3.0, False),
        (1.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio, advantage, loss, gradient, clipped):
    got = one_token(ratio, advantage)
    assert got == (pytest.approx(loss, abs=1e-5), pytest.approx(gradient, abs=1e-5), clipped)


def test_epsilon_is_the_width_of_the_range():
    assert one_token(1.5, 1.0, epsilon=0.4)[0] == pytest.approx(-1.4)
    assert one_token(1.3, 1.0, epsilon=0.4)[2] is False


def test_epsilon_high_is_the_upper_half_of_the_range():
    assert one_token(1.5, 1.0, epsilon_high=0.4)[0] == pytest.approx(-1.4)
    assert one_token(0.5, -1.0, epsilon_high=0.4)[0] == pytest.approx(0.8)  # the lower half is epsilon


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient", "clipped"),
    [
        (1.5, 2.0, -1.25 * 2, True),  # the gradient stays when the ratio is clipped
        (1.1, 2.0, -1.1 * 2, False),
        (0.5, -2.0, 0.5 * 2, False),  # no clipping from below
        (1.5, -2.0, 1.25 * 2, False),  # clipped, but not counted, as in TRL
    ],
)
def test_cispo_by_hand(ratio, advantage, gradient, clipped):
    """The loss is the gradient, which is minus the clipped ratio times the advantage, times the log-probability."""
    got = one_token(ratio, advantage, loss_type="cispo", epsilon_high=1.25)
    loss = gradient * (math.log(ratio) + LOGP)
    assert got == (pytest.approx(loss, abs=1e-5), pytest.approx(gradient, abs=1e-5), clipped)


def test_the_surrogate_acts_on_selected_tokens():
    """The divergence acts on the other token, too."""
    logp, old, ref = torch.zeros(1, 2), torch.full((1, 2), -0.1), torch.full((1, 2), 0.5)
    terms = grpo_loss(logp, old, ref, torch.tensor([1.0]), torch.ones(1, 2), objective(beta=0.1),
                      torch.tensor([[True, False]]))  # fmt: skip
    assert terms.loss.item() == pytest.approx(-math.exp(0.1) + 2 * 0.1 * (math.exp(0.5) - 0.5 - 1))


def test_the_share_of_highest_entropy():
    entropy = torch.tensor([0.1, 0.5, 0.2, 0.4, 0.3])
    for share, count in {0.0: 1, 0.25: 2, 0.5: 3, 1.0: 5}.items():
        assert int((entropy >= entropy_threshold(entropy, share)).sum()) == count
    assert entropy_threshold(torch.empty(0), 0.5) == math.inf


def test_the_entropy_bonus_is_a_mean_over_acting_tokens():
    entropy, acting = torch.tensor([[2.0, math.nan], [3.0, 1.0]]), torch.tensor([[True, False], [True, True]])
    assert entropy_bonus(entropy, acting, 4).item() == pytest.approx((2 + 3 + 1) / 4)
    assert entropy_bonus(entropy, torch.zeros_like(acting), 0).item() == 0


def test_batch_scale_is_the_deviation_of_all_rewards():
    rewards = torch.tensor([[0.0, 2.0], [4.0, 4.0]])
    std = math.sqrt((2.5**2 + 0.5**2 + 2 * 1.5**2) / 3)
    expected = torch.tensor([[-1.0, 1.0], [0.0, 0.0]]) / (std + 1e-4)
    assert torch.allclose(advantages(rewards, "batch"), expected, atol=1e-6)


def test_beta_weighs_the_divergence():
    logp, ref = torch.tensor([[-2.0]]), torch.tensor([[-1.5]])
    got = grpo_loss(logp, logp, ref, torch.tensor([0.0]), torch.ones(1, 1), objective(beta=0.1))
    assert got.loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 0.5 - 1))
    assert got.kl.item() == pytest.approx(math.exp(0.5) - 0.5 - 1)


def test_tokens_of_weight_0_do_not_affect_the_loss():
    """This holds for infinite log-probabilities too."""
    logp = torch.tensor([[-1.0, 50.0, math.inf]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0, 0.0]])
    bad = torch.tensor([[-1.0, -90.0, 0.0]])
    terms = grpo_loss(logp, bad, bad, torch.tensor([1.0]), weights, objective(beta=0.1))
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(-1.0)
    assert logp.grad.tolist() == [[-1.0, 0.0, 0.0]]
    assert terms.kl.tolist() == [[0.0, 0.0, 0.0]] and not terms.clipped.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, r"grpo\.epsilon=0\.0"),
        ({"epsilon": 1.0}, r"grpo\.epsilon=1\.0"),
        ({"beta": -0.1}, r"grpo\.beta=-0\.1.*negative"),
        ({"kl": "k4"}, r"grpo\.kl=k4.*k1, k2, k3"),
        ({"loss_type": "mean"}, r"grpo\.loss_type=mean.*dapo, grpo"),
        ({"scale_rewards": "step"}, r"grpo\.scale_rewards=step.*group, batch, none"),
        ({"epsilon_high": 0.0}, r"grpo\.epsilon_high=0\.0: .*above 0; 0\.28 is usual"),
        ({"epsilon_high": math.inf}, r"grpo\.epsilon_high=inf: .*above 0"),
        ({"loss_type": "cispo"}, r"grpo\.epsilon_high=None: with loss_type=cispo .*at least 1; 5\.0 is usual"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, r"grpo\.epsilon_high=0\.28: with loss_type=cispo"),
        ({"entropy_coef": -0.1}, r"grpo\.entropy_coef=-0\.1: .*cannot be negative"),
        ({"entropy_coef": math.nan}, r"grpo\.entropy_coef=nan"),
        ({"top_entropy_quantile": 1.5}, r"grpo\.top_entropy_quantile=1\.5: .*from 0 to 1"),
    ],
)
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        objective(**settings).check()
    objective().check()
