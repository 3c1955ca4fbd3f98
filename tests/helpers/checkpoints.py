"""Folders of tiny trained models, as runs of task=grpo leave them. Main entry: `make_checkpoints()`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from kat.data.prompts import prompt_id
from latentwire.lm.models import load_model
from tests.helpers.files import write_rows
from tests.helpers.models import model_spec


def make_checkpoints(folder: Path) -> Path:
    """Write three runs: one; two, whose answers are all equal because its distribution is sharp; copy, a copy of one.

    Args:
        folder: The folder of the runs, which is returned.
    """
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    for name in ("one", "two"):
        lm.model.save_pretrained(folder / name / "model")
        lm.tokenizer.save_pretrained(folder / name / "model")
        config = {"sampler": {"name": name}, "held_out": 0.5, "grpo": {"beta": 0.04}, "out": name}
        (folder / name / "config.json").write_text(json.dumps(config))
        with torch.no_grad():
            lm.model.model.norm.weight.mul_(300)
    shutil.copytree(folder / "one", folder / "copy")
    return folder


def write_prompts_and_weights(folder: Path, count: int = 80) -> None:
    """Write prompts_all.jsonl and weights.jsonl of short questions into a folder."""
    conversations = [[{"role": "user", "content": f"what is number {i} of {i * i % 97}?"}] for i in range(count)]
    ids = [prompt_id(messages) for messages in conversations]
    rows = [{"id": name, "prompt": messages, "text": messages[0]["content"], "source": "made"}
            for name, messages in zip(ids, conversations, strict=True)]  # fmt: skip
    folder.mkdir(parents=True)
    write_rows(folder / "prompts_all.jsonl", rows)
    weights = [{"id": name, "density": float(i), "weight": 1 / count} for i, name in enumerate(ids)]
    write_rows(folder / "weights.jsonl", weights)
