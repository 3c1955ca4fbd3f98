"""The sampler inside the real trainers of TRL: what is drawn, in which groups, and after a resume."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from kat.sampling.sampler import DensityAwareSampler
from kat.sampling.trl import attach
from latentwire.harness.errors import UserError
from latentwire.lm.models import load_model
from tests.helpers.models import model_spec
from tests.helpers.paths import EXAMPLES, ROOT

trl = pytest.importorskip("trl", reason="trl is not installed")
spec = importlib.util.spec_from_file_location("trl_sampler", EXAMPLES / "04_trl_sampler.py")
assert spec is not None and spec.loader is not None
trl_sampler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trl_sampler)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def policy():
    """Return a separate model, because the tests train it."""
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.tokenizer.padding_side = "left"
    return lm.model.requires_grad_(True), lm.tokenizer


def record(monkeypatch) -> list[str]:
    """Let the example's reward record the prompts that it receives."""
    seen: list[str] = []

    def reward(prompts, completions, **_):
        seen.extend(prompts)
        return [float(len(completion)) for completion in completions]

    monkeypatch.setattr(trl_sampler, "brevity", reward)
    return seen


@pytest.mark.slow
def test_grpo_receives_the_draws_in_groups(policy, monkeypatch, tmp_path):
    seen = record(monkeypatch)
    prompts = trl_sampler.PROMPTS
    trainer = trl_sampler.train(*policy, prompts, str(tmp_path), max_steps=3, gradient_accumulation_steps=2,
                                save_strategy="no")  # fmt: skip
    assert trainer.state.global_step == 3
    sampler = trainer._get_train_sampler()
    assert (sampler.plan.num_generations, sampler.plan.prompts_per_batch, sampler.plan.batch_repeats) == (2, 4, 2)
    draws = list(DensityAwareSampler(sampler.weights, seed=0))
    assert seen == [prompts[row] for row in draws[:12] for _ in range(2)]  # 3 steps of 4 prompts, 2 completions each
    assert sampler.weights[-4:].mean() > 2 * sampler.weights[:-4].mean()


@pytest.mark.slow
def test_a_resumed_trainer_continues_with_the_next_draw(policy, monkeypatch, tmp_path):
    model, tokenizer = policy
    seen = record(monkeypatch)
    prompts = trl_sampler.PROMPTS[-8:] + trl_sampler.PROMPTS[:6]
    settings = {"save_steps": 8, "max_steps": 10}  # 7 steps an epoch: saved and resumed within the second
    trainer = trl_sampler.train(model, tokenizer, prompts, str(tmp_path), **settings)
    whole = list(seen)
    seen.clear()
    used = trainer._get_train_sampler()
    with pytest.raises(UserError, match="which new groups would lose"):
        attach(trainer, used)
    attach(trainer, DensityAwareSampler(used.weights, seed=used.plan.seed))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert seen == whole[-len(seen) :]
    assert len(seen) == 8 and len(whole) == 40


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_ranks_resumes_with_its_next_draw(rank, tmp_path):
    """A resumed rank reads SkipBatchSampler(BatchSamplerShard(BatchSampler(sampler))); the test makes the inner two."""
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
    from torch.utils.data import BatchSampler
    from transformers import Trainer, TrainingArguments

    seen: list[int] = []

    class Judge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, row):
            seen.extend(row.tolist())
            return {"loss": self.weight**2 * row.float().mean()}

    def run(**settings):
        seen.clear()
        args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=9, save_steps=6)
        trainer = Trainer(Judge(), args, train_dataset=[{"row": row} for row in range(16)])
        sampler = attach(trainer, DensityAwareSampler(range(1, 17), seed=2))
        shard = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=True), num_processes=2, process_index=rank)
        trainer.get_train_dataloader = lambda: DataLoaderShard(
            trainer.train_dataset, batch_sampler=shard, collate_fn=trainer.data_collator
        )
        trainer.train(**settings)
        return list(seen)

    order = DensityAwareSampler(range(1, 17), seed=2)
    batches = [epoch[i : i + 2] for epoch in (list(order) for _ in range(3)) for i in range(2 * rank, 16, 4)]
    expected = [row for batch in batches[:9] for row in batch]  # 4 steps an epoch
    assert run() == expected
    assert run(resume_from_checkpoint=str(tmp_path / "checkpoint-6")) == expected[12:]


RANK = """
import sys
from types import SimpleNamespace
import torch
from kat.sampling.sampler import DensityAwareSampler
from kat.sampling.trl import attach
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
trainer = SimpleNamespace(_get_train_sampler=None, train_dataset=range(6), add_callback=id, remove_callback=id,
                          accelerator=SimpleNamespace(device=torch.device("cpu")))
sampler = attach(trainer, DensityAwareSampler([1.0, 2.0, 3.0, 4.0, 5.0, 6.0 + 1e-3 * rank]))
print(sampler.weights.numpy().tobytes().hex())
torch.distributed.destroy_process_group()
"""


def test_weights_come_from_the_first_rank(monkeypatch):
    first = DensityAwareSampler([1.0, 2.0, 4.0])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda tensor, src: tensor.copy_(first.weights) if src == 0 else 0
    )
    trainer = SimpleNamespace(_get_train_sampler=None, train_dataset=range(3), add_callback=id, remove_callback=id,
                              accelerator=SimpleNamespace(device=torch.device("cpu")))  # fmt: skip
    given = DensityAwareSampler([1.0, 2.0, 3.9])
    own, before = given.weights, given.weights.tolist()
    assert list(attach(trainer, given)) == list(first)
    assert own.tolist() == before  # other samplers may share them
    assert torch.equal(trainer._get_train_sampler().weights, first.weights)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SLOW_TESTS"), reason="starts two processes; set SLOW_TESTS=1")
def test_all_ranks_take_the_weights_of_the_first(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting")], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        for rank in range(2)
    ]  # fmt: skip
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert told[0][0].strip() == DensityAwareSampler([1.0, 2, 3, 4, 5, 6]).weights.numpy().tobytes().hex()


@pytest.mark.slow
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
    with pytest.raises(UserError, match=r"weights for 5 rows and the trainer's data set has 12"):
        attach(trainer, DensityAwareSampler([1.0] * 5))
    with pytest.raises(UserError, match="num_replicas=2"):
        attach(trainer, DensityAwareSampler([1.0] * 12, num_replicas=2))
    with pytest.raises(UserError, match="object: takes no sampler"):
        attach(object(), sampler)
