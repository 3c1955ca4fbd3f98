"""The sampler inside the real trainers of TRL: what is drawn, in which groups, and after a resume."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import model_spec

from kat.sampler import DensityAwareSampler
from kat.trl import attach
from latentwire.harness.errors import UserError
from latentwire.models import load_model

trl = pytest.importorskip("trl", reason="trl is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import trl_density  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def policy():
    """A model of its own: it is trained here."""
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.tokenizer.padding_side = "left"
    return lm.model.requires_grad_(True), lm.tokenizer


def record(monkeypatch) -> list[str]:
    """Let the example's reward note the prompts that it is given."""
    seen: list[str] = []

    def reward(prompts, completions, **_):
        seen.extend(prompts)
        return [float(len(completion)) for completion in completions]

    monkeypatch.setattr(trl_density, "brevity", reward)
    return seen


def test_grpo_is_given_the_draws_in_its_groups(policy, monkeypatch, tmp_path):
    seen = record(monkeypatch)
    prompts = trl_density.PROMPTS
    trainer = trl_density.train(*policy, prompts, str(tmp_path), max_steps=3, gradient_accumulation_steps=2,
                                save_strategy="no")  # fmt: skip
    assert trainer.state.global_step == 3
    sampler = trainer._get_train_sampler()
    assert (sampler.num_generations, sampler.prompts_per_batch, sampler.batch_repeats) == (2, 4, 2)
    draws = list(DensityAwareSampler(sampler.weights, seed=0))
    assert seen == [prompts[row] for row in draws[:12] for _ in range(2)]  # 3 steps of 4 prompts, 2 completions each
    assert sampler.weights[-4:].mean() > 2 * sampler.weights[:-4].mean()


def test_a_trainer_that_is_resumed_goes_on_with_the_next_draw(policy, monkeypatch, tmp_path):
    model, tokenizer = policy
    seen = record(monkeypatch)
    prompts = trl_density.PROMPTS[-8:] + trl_density.PROMPTS[:6]
    settings = {"save_steps": 8, "max_steps": 10}  # 7 steps an epoch: saved and resumed within the second
    trainer = trl_density.train(model, tokenizer, prompts, str(tmp_path), **settings)
    whole = list(seen)
    seen.clear()
    attach(trainer, trainer._get_train_sampler())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert seen == whole[-len(seen) :]
    assert len(seen) == 8 and len(whole) == 40


def test_the_reward_trainer_draws_pairs_by_weight(policy, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = policy
    model.save_pretrained(tmp_path / "model")
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    texts = [f"Question {i}" for i in range(12)]
    pairs = Dataset.from_dict({"prompt": texts, "chosen": [" yes indeed"] * 12, "rejected": [" no"] * 12})
    args = trl.RewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2, save_strategy="no",
                            per_device_train_batch_size=4)  # fmt: skip
    trainer = trl.RewardTrainer(judge, args, train_dataset=pairs, processing_class=tokenizer)
    sampler = DensityAwareSampler([0.0] * 4 + [1.0] * 4 + [0.0] * 4, seed=5)
    assert attach(trainer, sampler) is sampler
    batch = next(iter(trainer.get_train_dataloader()))
    expected = list(DensityAwareSampler(sampler.weights, seed=5))[:4]
    chosen = [trainer.train_dataset[row]["chosen_ids"] for row in expected]
    for row, ids in enumerate(chosen):
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == ids
    trainer.train()
    assert trainer.state.global_step == 2
    drawn = sampler.ledger()[1]
    assert int(drawn[:4].sum() + drawn[8:].sum()) == 0 < int(drawn.sum())
    with pytest.raises(UserError, match=r"weighs 5 rows and the trainer's data set has 12"):
        attach(trainer, DensityAwareSampler([1.0] * 5))
    with pytest.raises(UserError, match="num_replicas=2"):
        attach(trainer, DensityAwareSampler([1.0] * 12, num_replicas=2))
    with pytest.raises(UserError, match="object: takes no sampler"):
        attach(object(), sampler)
