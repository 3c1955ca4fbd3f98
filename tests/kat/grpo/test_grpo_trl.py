"""GRPO's pure functions against TRL's own trainer on the same tensors: advantages, loss and gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kat.grpo.objective import (
    LOSS_TYPES,
    BatchSize,
    advantages,
    degenerate_groups,
    entropy_bonus,
    entropy_threshold,
    grpo_loss,
    loss_weights,
    per_token_entropy,
    per_token_logps,
)
from kat.grpo.policy import Policy
from kat.grpo.reward_calls import Sampled
from kat.grpo.reward_sum import Rewards
from kat.grpo.rewards import novelty
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


CASES = [  # settings of TRL and of ours; whether the policy has moved since it sampled; temperature
    ({"loss_type": "dapo"}, False, 1.0),
    ({"loss_type": "dapo", "beta": 0.04}, True, 1.0),
    ({"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": False}, True, 1.0),
    ({"loss_type": "dapo", "epsilon_high": 0.28}, True, 1.0),
    ({"loss_type": "bnpo", "beta": 0.04, "use_bias_correction_kl": False}, True, 0.7),
    ({"loss_type": "grpo"}, True, 1.0),
    ({"loss_type": "grpo", "beta": 0.04}, True, 1.3),
    ({"loss_type": "grpo", "beta": 0.04}, False, 1.0),
    ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, False, 1.0),
    ({"loss_type": "dr_grpo", "beta": 0.04, "epsilon_high": 0.05}, True, 1.0),
    ({"loss_type": "cispo", "epsilon_high": 1.2}, True, 1.0),
    ({"loss_type": "cispo", "epsilon_high": 1.5, "beta": 0.04}, True, 0.7),
    ({"loss_type": "dapo", "entropy_coef": 0.3}, True, 0.7),
    ({"loss_type": "dr_grpo", "entropy_coef": 0.3, "beta": 0.04}, False, 1.0),
    ({"loss_type": "dapo", "top_entropy_quantile": 0.3, "beta": 0.04}, True, 1.0),
    ({"loss_type": "grpo", "top_entropy_quantile": 0.0, "entropy_coef": 0.1}, True, 1.0),
    ({"loss_type": "cispo", "epsilon_high": 1.2, "top_entropy_quantile": 0.65, "entropy_coef": 0.1}, True, 1.0),
]


@pytest.mark.parametrize(("settings", "old_differs", "temperature"), CASES)
def test_loss_and_gradient_equal_trl(tmp_path, settings, old_differs, temperature):
    settings = {"beta": 0.0, "use_bias_correction_kl": True, **settings}
    trainer = trainer_of(tmp_path, lambda completions, **_: [0.0] * len(completions), epsilon=0.2,
                         temperature=temperature, **settings)  # fmt: skip
    model, ours = trainer.model, objective(**settings)
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
    if ours.beta:
        inputs["ref_per_token_logps"] = ref

    expected = trainer.compute_loss(model, inputs)
    expected.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    mask = inputs["completion_mask"].bool()
    weights = loss_weights(mask, ours.loss_type, size_of(mask))
    logps, entropy = own_logps()
    acting = mask
    if ours.top_entropy_quantile < 1:
        acting = mask & (entropy >= entropy_threshold(entropy[mask].detach(), ours.top_entropy_quantile))
    terms = grpo_loss(logps, old if old_differs else logps.detach(), ref if ours.beta else None, inputs["advantages"],
                      weights, ours, acting)  # fmt: skip
    loss = terms.loss - ours.entropy_coef * entropy_bonus(entropy, acting, int(acting.sum()))
    loss.backward()

    assert bool(terms.clipped.any()) == old_differs
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, gradient[name], atol=1e-5, rtol=1e-4), name
    shown, tokens = trainer._metrics["train"], int(mask.sum())
    assert entropy[mask].mean().item() == pytest.approx(shown["entropy"][0], abs=1e-5)
    names = {"clipped": "clip_ratio/region_mean", "clipped_low": "clip_ratio/low_mean",
             "clipped_high": "clip_ratio/high_mean"}  # fmt: skip
    if ours.loss_type == "cispo":
        names = {"clipped": "cispo_clip_ratio", "clipped_high": "cispo_clip_ratio"}
    for own, theirs in names.items():
        assert getattr(terms, own).sum().item() / tokens == pytest.approx(shown[theirs][0], abs=1e-6)
    if ours.beta and not ours.use_bias_correction_kl:  # TRL logs the corrected KL
        assert terms.kl[mask].mean().item() == pytest.approx(shown["kl"][0], abs=1e-4)


def size_of(mask, part=None) -> BatchSize:
    """Return the size of a batch; a part belongs to one of two processes."""
    own, processes = (mask, 1) if part is None else (mask[part], 2)
    return BatchSize(int(mask.sum()), len(mask), len(mask), int(own.sum()), processes, 7)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_losses_of_two_parts_equal_trl(tmp_path, loss_type):
    """TRL adds up the losses of two accumulation steps; `bnpo` weighs them equally, as two processes here."""
    high = {"epsilon_high": 1.2} if loss_type == "cispo" else {}
    trainer = trainer_of(tmp_path, lambda completions, **_: [0.0] * len(completions), loss_type=loss_type, beta=0.0,
                         gradient_accumulation_steps=2, **high)  # fmt: skip
    trainer.current_gradient_accumulation_steps = 2
    inputs, g = made_up_batch()
    tokens = inputs.pop("num_items_in_batch")
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = trainer.model(ids, attention_mask=attention).logits[:, 4:-1]
        logps = per_token_logps(logits, inputs["completion_ids"], 1.0)
        inputs["old_per_token_logps"] = logps + 0.5 * torch.randn(logps.shape, generator=g)
        mask = inputs["completion_mask"].bool()
        for part in (slice(0, 2), slice(2, 6)):  # TRL's means weigh parts of different sizes equally
            theirs = trainer.compute_loss(
                trainer.model, {**{name: value[part] for name, value in inputs.items()}, "num_items_in_batch": tokens}
            )
            size = size_of(mask, part)
            if loss_type in ("grpo", "dr_grpo"):
                rows = 2 * (part.stop - part.start)
                size = replace(size, sequences=rows, completions=rows)
            weights = loss_weights(mask[part], loss_type, size)
            ours = grpo_loss(logps[part], inputs["old_per_token_logps"][part], None, inputs["advantages"][part],
                             weights, objective(loss_type=loss_type, **high))  # fmt: skip
            assert ours.loss.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_the_reference_moves_as_in_trl(tmp_path):
    """The callback of TRL moves its copy of the model at step 2 and not at step 3."""
    settings = {"ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.3}
    trainer = trainer_of(tmp_path, lambda completions, **_: [0.0] * len(completions), beta=0.1, sync_ref_model=True,
                         **settings)  # fmt: skip
    model = trainer.model
    parameters = {name: p for name, p in model.named_parameters() if "layers.1." in name}
    policy = Policy(model, parameters, 1.0, ref_model=True, moves=True)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    g = draws(5)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, trl.SyncRefModelCallback))
    for step in (2, 3):
        with torch.no_grad():
            for p in parameters.values():
                p.add_(torch.randn(p.shape, generator=g))
        trainer.state.global_step = step
        callback.on_step_end(trainer.args, trainer.state, trainer.control, model=model)
        if step == 2:
            policy.sync_ref_model(0.3)
    theirs = dict(trainer.ref_model.named_parameters())
    assert all(torch.equal(policy.ref_parameters[name], theirs[name]) for name in parameters)
    assert all(torch.equal(policy.start_parameters[name], start[name]) for name in parameters)
    assert not any(torch.equal(policy.ref_parameters[name], start[name]) for name in parameters)


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


def test_novelty_is_a_reward_of_trl(tmp_path):
    """TRL calls it with lists of the whole batch, in which the completions of a prompt are a group."""
    trainer = trainer_of(tmp_path, novelty)
    prompts = ["Why?"] * 3 + ["How?"] * 3
    theirs = trainer._calculate_rewards([{"prompt": text} for text in prompts], prompts, list("aabcde"), [[1]] * 6)
    assert theirs[:, 0].tolist() == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
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
    if scale != "batch":  # there TRL logs whether the whole batch has equal rewards
        assert degenerate_groups(rewards) / 2 == trainer._metrics["train"]["frac_reward_zero_std"][0]
