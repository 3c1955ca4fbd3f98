"""GRPO's pure functions against TRL's own trainer on the same tensors: advantages, loss and gradient."""

from __future__ import annotations

import pytest
import torch

from kat.grpo.objective import (
    advantages,
    degenerate_groups,
    grpo_loss,
    loss_weights,
    per_token_entropy,
    per_token_logps,
)
from kat.grpo.reward_calls import Sampled
from kat.grpo.reward_sum import Rewards
from latentwire.lm.models import load_model
from tests.helpers.grpo import objective
from tests.helpers.models import model_spec
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]
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
    """Return six completions after prompts, both of different lengths, and the generator that drew them."""
    g = draws(seed)
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
    ("theirs", "loss_type", "beta", "correction", "old_differs", "temperature"),
    [
        ("dapo", "dapo", 0.0, True, False, 1.0),
        ("dapo", "dapo", 0.04, True, True, 1.0),
        ("dapo", "dapo", 0.04, False, True, 1.0),
        ("bnpo", "dapo", 0.04, False, True, 0.7),
        ("grpo", "grpo", 0.0, True, True, 1.0),
        ("grpo", "grpo", 0.04, True, True, 1.3),
        ("grpo", "grpo", 0.04, True, False, 1.0),
        ("grpo", "grpo", 0.04, False, False, 1.0),
    ],
)
def test_loss_and_gradient_equal_trl(tmp_path, theirs, loss_type, beta, correction, old_differs, temperature):
    trainer = trainer_of(tmp_path, lambda completions, **_: [0.0] * len(completions), loss_type=theirs, beta=beta,
                         use_bias_correction_kl=correction, epsilon=0.2, temperature=temperature)  # fmt: skip
    model = trainer.model
    inputs, g = made_up_batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)

    def own_logps():
        logits = model(ids, attention_mask=attention).logits[:, 4:-1]
        logps = per_token_logps(logits, inputs["completion_ids"], temperature)
        return logps, per_token_entropy(logits, temperature)

    logps = own_logps()[0].detach()
    old = logps + old_differs * 0.5 * torch.randn(logps.shape, generator=g)
    if old_differs:
        inputs["old_per_token_logps"] = old
    ref = logps + 0.8 * torch.randn(logps.shape, generator=g)
    if beta:
        inputs["ref_per_token_logps"] = ref

    expected = trainer.compute_loss(model, inputs)
    expected.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    mask = inputs["completion_mask"]
    weights = loss_weights(mask, loss_type, int(mask.sum()), len(mask))
    logps, entropy = own_logps()
    terms = grpo_loss(logps, old if old_differs else logps.detach(), ref if beta else None, inputs["advantages"],
                      weights, objective(beta=beta, use_bias_correction_kl=correction))  # fmt: skip
    terms.loss.backward()

    assert bool(terms.clipped.any()) == old_differs
    assert terms.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, gradient[name], atol=1e-5, rtol=1e-4), name
    shown = trainer._metrics["train"]
    inside = mask.bool()
    assert entropy[inside].mean().item() == pytest.approx(shown["entropy"][0], abs=1e-5)
    assert terms.clipped.sum().item() / int(mask.sum()) == pytest.approx(shown["clip_ratio/region_mean"][0], abs=1e-6)
    if beta and not correction:  # TRL logs the corrected KL
        assert terms.kl[inside].mean().item() == pytest.approx(shown["kl"][0], abs=1e-4)


SEEN: list[dict] = []


def of_everything(**given):
    SEEN.append({key: value for key, value in given.items() if key not in ("trainer_state", "log_extra", "log_metric")})
    return [None if answer is None else float(len(answer)) for answer in given["answer"]]


async def of_ids(prompts, completion_ids, level, **_):
    return [float(len(ids) * one) for ids, one in zip(completion_ids, level, strict=True)]


def test_rewards_are_called_as_by_trl(tmp_path):
    """A function gets the same arguments, and None leaves a completion to the other rewards."""
    SEEN.clear()
    trainer = trainer_of(tmp_path, [of_everything, of_ids], reward_weights=[10.0, 1.0])
    columns = [{"answer": ["x", "y"], "level": 1, "id": "a"}, {"answer": None, "level": 2, "id": "b"}]
    rows = [{"prompt": text, **each} for text, each in zip(("Why?", "How?"), columns, strict=True) for _ in range(3)]
    prompts, ids = [row["prompt"] for row in rows], [[7], [8, 9], [7], [5], [6, 6], [1, 2, 3]]
    texts = [f"text {i}" for i in range(6)]
    theirs = trainer._calculate_rewards(rows, prompts, texts, ids)
    ours = Rewards([f"{__name__}:of_everything", f"{__name__}:of_ids"], [10.0, 1.0], None, 0, 1)
    sampled = [
        Sampled(row["prompt"], (1,), text, tuple(own), {k: v for k, v in row.items() if k != "prompt"})
        for row, text, own in zip(rows, texts, ids, strict=True)
    ]
    total, by_name = ours(sampled, "a test")
    assert SEEN[0] == SEEN[1] and SEEN[1].keys() == {
        "prompts", "completions", "completion_ids", "answer", "level", "id"}  # fmt: skip
    for i, values in enumerate(by_name.values()):
        assert torch.equal(values.nan_to_num(-1), theirs[:, i].nan_to_num(-1))
    assert total.tolist() == (theirs * torch.tensor([10.0, 1.0])).nansum(dim=1).tolist()


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_equal_trl(tmp_path, scale):
    given: list[float] = []

    def reward(completions, **_):
        values = torch.randn(len(completions), generator=draws(3)).tolist()
        values[3:] = [0.25] * 3  # a degenerate group
        given.extend(values)
        return values

    trainer = trainer_of(tmp_path, reward, scale_rewards=scale)
    batch = [{"prompt": text} for text in ("What is it?", "Name one thing that floats.") for _ in range(3)]
    theirs = trainer._generate_and_score_completions(batch)["advantages"]
    rewards = torch.tensor(given).view(2, 3)
    assert torch.allclose(advantages(rewards, scale).flatten(), theirs, atol=1e-5)
    assert degenerate_groups(rewards) / 2 == trainer._metrics["train"]["frac_reward_zero_std"][0]
