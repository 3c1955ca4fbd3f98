"""GRPO's pure functions: values computed by hand, and TRL's trainer on the same tensors."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import model_spec

from kat.grpo import (
    Objective,
    advantages,
    degenerate_groups,
    grpo_loss,
    kl_divergence,
    loss_weights,
    token_entropy,
    token_logps,
)
from latentwire.harness.errors import UserError
from latentwire.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

USUAL = {"epsilon": 0.2, "beta": 0.0, "kl": "k3", "kl_correction": False, "normalisation": "token", "scale": "group"}


def objective(**settings) -> Objective:
    return Objective(**{**USUAL, **settings})


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    std = 1.0  # of 1, 2, 3 with G - 1
    expected = torch.tensor([[-1 / (std + 1e-4), 0.0, 1 / (std + 1e-4)], [0.0, 0.0, 0.0]])
    assert torch.allclose(advantages(rewards), expected, atol=1e-7)
    assert torch.equal(advantages(rewards, "none"), torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_advantages_of_a_group_do_not_know_the_other_groups():
    a, b = torch.tensor([[0.0, 4.0]]), torch.tensor([[100.0, -7.0]])
    assert torch.equal(advantages(torch.cat([a, b]))[:1], advantages(a))


def test_a_group_of_one_has_no_advantage():
    with pytest.raises(UserError, match=r"grpo\.num_generations=1.*at least 2"):
        advantages(torch.ones(3, 1))


def test_degenerate_groups_are_those_of_equal_rewards():
    assert degenerate_groups(torch.tensor([[1.0, 1.0], [1.0, 1.1], [0.0, 0.0]])) == 2
    assert degenerate_groups(torch.tensor([[1.0, 1.0, 2.0]])) == 0


def test_statistics_of_tokens_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    assert token_logps(logits, torch.tensor([[1]]), 1.0).item() == pytest.approx(math.log(0.25))
    assert token_entropy(logits, 1.0).item() == pytest.approx(1.5 * math.log(2))
    # half the temperature squares the odds: 4 : 1 : 1
    assert token_logps(logits, torch.tensor([[0]]), 0.5).item() == pytest.approx(math.log(4 / 6))
    assert token_entropy(logits, 0.5).item() == pytest.approx(-(4 / 6) * math.log(4 / 6) - 2 / 6 * math.log(1 / 6))


def test_statistics_have_the_gradient_of_a_softmax():
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    token_logps(logits, torch.tensor([[2]]), 0.5).sum().backward()
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
def test_the_gradient_of_k2_is_that_of_the_divergence_and_that_of_k1_is_none(estimator, follows):
    logits, q = torch.tensor([1.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.3, 0.3, 0.4])
    logp = logits.log_softmax(0)
    (logp.exp().detach() * kl_divergence(logp, q.log(), estimator)).sum().backward()
    sampled, logits.grad = logits.grad, None
    logp = logits.log_softmax(0)
    (logp.exp() * (logp - q.log())).sum().backward()
    assert torch.allclose(sampled, logits.grad if follows else torch.zeros(3), atol=1e-6)


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_weights_of_tokens_by_hand():
    assert torch.allclose(loss_weights(MASK, "token", 4, 2), MASK / 4)
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0], [0, 0, 0]])
    assert torch.allclose(loss_weights(MASK, "sequence", 4, 2), expected)


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_weights_sum_to_one_over_the_micro_batches(normalisation):
    parts = [loss_weights(MASK[row : row + 1], normalisation, 4, 2) for row in range(3)]
    assert torch.cat(parts).sum().item() == pytest.approx(1)
    assert loss_weights(MASK[2:], normalisation, 0, 0).sum() == 0  # a batch of which nothing counts


def one_token(ratio: float, advantage: float, **settings) -> tuple[float, float, bool]:
    """Loss, its gradient by the log-probability, and whether it was clipped, for a single token."""
    logp = torch.tensor([[math.log(ratio) - 2.0]], requires_grad=True)
    old = torch.tensor([[-2.0]])
    terms = grpo_loss(logp, old, None, torch.tensor([advantage]), torch.ones(1, 1), objective(**settings))
    terms.loss.backward()
    return terms.loss.item(), logp.grad.item(), bool(terms.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.1, 2.0, -2.2, -2.2, False),
        (1.5, 2.0, -2.4, 0.0, True),  # enough of it already
        (0.5, 2.0, -1.0, -1.0, False),  # too little of what is good: full pull
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


def test_beta_weighs_the_divergence():
    logp, ref = torch.tensor([[-2.0]]), torch.tensor([[-1.5]])
    got = grpo_loss(logp, logp, ref, torch.tensor([0.0]), torch.ones(1, 1), objective(beta=0.1))
    assert got.loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 0.5 - 1))
    assert got.kl.item() == pytest.approx(math.exp(0.5) - 0.5 - 1)


def test_what_has_no_weight_has_no_part_whatever_it_is():
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
        ({"normalisation": "mean"}, r"grpo\.normalisation=mean.*token, sequence"),
        ({"scale": "batch"}, r"grpo\.scale=batch.*group, none"),
    ],
)
def test_settings_that_are_none_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        objective(**settings).check()
    objective().check()


# TRL's own trainer, on the same tensors

trl = pytest.importorskip("trl", reason="trl is not installed")


def policy_of_its_own():
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.tokenizer.padding_side = "left"
    return lm.model.requires_grad_(True), lm.tokenizer


def trainer_of(tmp_path, reward, **settings):
    from datasets import Dataset

    model, tokenizer = policy_of_its_own()
    args = trl.GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, num_generations=3,
                          per_device_train_batch_size=6, max_completion_length=7, **settings)  # fmt: skip
    data = Dataset.from_dict({"prompt": ["What is it?", "Name one thing that floats."]})
    trainer = trl.GRPOTrainer(model, reward, args, train_dataset=data, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which is not run here
    trainer.model.train()
    return trainer


def made_up_batch(seed: int = 0):
    """Six completions of unlike length after prompts of unlike length, old and reference policies that differ."""
    g = torch.Generator().manual_seed(seed)
    prompt_mask = torch.tensor([[0, 0, 1, 1, 1]] * 3 + [[1, 1, 1, 1, 1]] * 3)
    lengths = torch.tensor([4, 1, 3, 4, 2, 4])
    completion_mask = (torch.arange(4) < lengths[:, None]).long()
    return {
        "prompt_ids": torch.randint(1, 2000, (6, 5), generator=g),
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(1, 2000, (6, 4), generator=g),
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.0, -0.7, -0.3, 0.9, 0.2, -1.1]),
        "num_items_in_batch": completion_mask.sum(),
    }, g


@pytest.mark.parametrize(
    ("loss_type", "normalisation", "beta", "correction", "old_differs", "temperature"),
    [
        ("dapo", "token", 0.0, True, False, 1.0),
        ("dapo", "token", 0.04, True, True, 1.0),
        ("dapo", "token", 0.04, False, True, 1.0),
        ("bnpo", "token", 0.04, False, True, 0.7),
        ("grpo", "sequence", 0.0, True, True, 1.0),
        ("grpo", "sequence", 0.04, True, True, 1.3),
        ("grpo", "sequence", 0.04, True, False, 1.0),
        ("grpo", "sequence", 0.04, False, False, 1.0),
    ],
)
def test_loss_and_gradient_are_those_of_trl(
    tmp_path, loss_type, normalisation, beta, correction, old_differs, temperature
):
    trainer = trainer_of(tmp_path, lambda completions, **_: [0.0] * len(completions), loss_type=loss_type, beta=beta,
                         use_bias_correction_kl=correction, epsilon=0.2, temperature=temperature)  # fmt: skip
    model = trainer.model
    inputs, g = made_up_batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)

    def own_logps():
        logits = model(ids, attention_mask=attention).logits[:, 4:-1]
        logps = token_logps(logits, inputs["completion_ids"], temperature)
        return logps, token_entropy(logits, temperature)

    logps = own_logps()[0].detach()
    old = logps + old_differs * 0.5 * torch.randn(logps.shape, generator=g)
    if old_differs:
        inputs["old_per_token_logps"] = old
    ref = logps + 0.8 * torch.randn(logps.shape, generator=g)
    if beta:
        inputs["ref_per_token_logps"] = ref

    theirs = trainer.compute_loss(model, inputs)
    theirs.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    mask = inputs["completion_mask"]
    weights = loss_weights(mask, normalisation, int(mask.sum()), len(mask))
    logps, entropy = own_logps()
    terms = grpo_loss(logps, old if old_differs else logps.detach(), ref if beta else None, inputs["advantages"],
                      weights, objective(beta=beta, kl_correction=correction))  # fmt: skip
    terms.loss.backward()

    assert bool(terms.clipped.any()) == old_differs
    assert terms.loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, gradient[name], atol=1e-5, rtol=1e-4), name
    shown = trainer._metrics["train"]
    inside = mask.bool()
    assert entropy[inside].mean().item() == pytest.approx(shown["entropy"][0], abs=1e-5)
    assert terms.clipped.sum().item() / int(mask.sum()) == pytest.approx(shown["clip_ratio/region_mean"][0], abs=1e-6)
    if beta and not correction:  # TRL shows the corrected one
        assert terms.kl[inside].mean().item() == pytest.approx(shown["kl"][0], abs=1e-4)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_those_of_trl(tmp_path, scale):
    given: list[float] = []

    def reward(completions, **_):
        values = torch.randn(len(completions), generator=torch.Generator().manual_seed(3)).tolist()
        values[3:] = [0.25] * 3  # a degenerate group
        given.extend(values)
        return values

    trainer = trainer_of(tmp_path, reward, scale_rewards=scale)
    batch = [{"prompt": text} for text in ("What is it?", "Name one thing that floats.") for _ in range(3)]
    theirs = trainer._generate_and_score_completions(batch)["advantages"]
    rewards = torch.tensor(given).view(2, 3)
    assert torch.allclose(advantages(rewards, scale).flatten(), theirs, atol=1e-5)
    assert degenerate_groups(rewards) / 2 == trainer._metrics["train"]["frac_reward_zero_std"][0]
