"""GRPO with TRL, rare prompts more often: three lines around the trainer. Runs on a CPU in a minute or two.

python examples/trl_density.py                       the tiny random model, two steps
python examples/trl_density.py FOLDER_OR_HUB_NAME    a model of yours
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from kat.sampling.sampler import DensityAwareSampler
from kat.sampling.trl import attach
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

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
        spec = typed(ModelSpec, OmegaConf.load(CONF / "model" / "tiny_random.yaml").model)
        lm = load_model(spec, torch.device("cpu"), torch.float32)
        policy, words = lm.model.requires_grad_(True), lm.tokenizer
        words.pad_token = words.eos_token
    with tempfile.TemporaryDirectory() as outputs:
        train(policy, words, PROMPTS, outputs, max_steps=2)
