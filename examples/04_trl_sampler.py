"""The sampler in a trainer of TRL: GRPO that draws rare prompts more often, three lines around the trainer.

python examples/04_trl_sampler.py                       the tiny random model, two steps
python examples/04_trl_sampler.py FOLDER_OR_HUB_NAME    a model of yours

Measured: 20 s on two cores, other programs next to it. Output, after the trainer's own lines:

    2 steps done
    weight of the 20 prompts on capitals: 0.45 on average
    weight of the 4 others: 3.74 on average; 1.00 is an even draw
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from kat import DensityAwareSampler, attach
from latentwire import load_model_by_name

PROMPTS = [f"What is the capital of country number {i}?" for i in range(20)] + [
    "Sort the list [3, 1, 2] in Python.",
    "Write a verse about rain on a tin roof.",
    "Why does ice float?",
    "Translate 'good night' into French.",
]


def brevity(completions: Sequence[str], **_: Any) -> list[float | None]:
    """Reward short answers."""
    return [-float(len(completion)) for completion in completions]


def train(model: Any, tokenizer: Any, prompts: Sequence[str], folder: str, **settings: Any) -> GRPOTrainer:
    """Train a policy for a few steps on prompts drawn by density; return the trainer."""
    dataset = Dataset.from_dict({"prompt": list(prompts)})
    args = GRPOConfig(
        output_dir=folder,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=8,
        **settings,
    )
    sampler = DensityAwareSampler.from_model(dataset["prompt"], model, tokenizer, k=10)
    trainer = GRPOTrainer(model, brevity, args, train_dataset=dataset, processing_class=tokenizer)
    attach(trainer, sampler)
    trainer.train()
    return trainer


if __name__ == "__main__":
    policy: Any
    words: Any
    if len(sys.argv) > 1:
        policy = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
        words = AutoTokenizer.from_pretrained(sys.argv[1])
    else:
        lm = load_model_by_name("tiny_random")
        policy, words = lm.model.requires_grad_(True), lm.tokenizer
        words.pad_token = words.eos_token
    with tempfile.TemporaryDirectory() as outputs:
        trainer = train(policy, words, PROMPTS, outputs, max_steps=2)
    sampler: Any = trainer._get_train_sampler()
    weights = sampler.weights / sampler.weights.mean()
    print(f"{trainer.state.global_step} steps done")
    print(f"weight of the {len(PROMPTS[:-4])} prompts on capitals: {weights[:-4].mean():.2f} on average")
    print(f"weight of the 4 others: {weights[-4:].mean():.2f} on average; 1.00 is an even draw")
