"""Encoders for frozen models of other families, from a folder: training, report and controls from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.helpers.files import read_json, read_rows

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

SIZES = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "pad_token_id": 0,
}  # fmt: skip
TRAIN = ["task=latent", "model=path", "model.path=model", "device=cpu", "dtype=float32", "adapter_hidden=8",
         "samples=40", "shots=1", "questions_per_shot=1", "loss=full", "weights.hidden=1", "epochs=1", "ratio=4",
         "ratios=[4,2]", "first_phase=0.5", "held_out=0.02", "passages_per_step=2", "max_new_tokens=2",
         "out=run"]  # fmt: skip
REPORT = ["task=latent_report", "model=path", "model.path=model", "device=cpu", "dtype=float32", "checkpoint=run",
          "samples=6", "shots=1", "questions_per_shot=1", "max_new_tokens=2", "ratio=2", "out=report"]  # fmt: skip


def qwen2() -> PreTrainedModel:
    """Biases in the attention; the output head is not the embedding table."""
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))


def gemma3() -> PreTrainedModel:
    """A sliding window in every second layer, embeddings scaled within the model, norms after the MLP."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=16, layer_types=kinds))


@pytest.mark.parametrize(
    ("build", "encoder"),
    [
        (qwen2, ["encoder=lm_layers", "layers=2", "markers=1"]),
        (qwen2, ["encoder=lm_layers", "layers=2", "groups=equal", "pool=halving"]),
        (qwen2, ["encoder=lm_states", "every=2"]),
        (gemma3, ["encoder=lm_layers", "layers=2", "adapter_scale=free"]),
        (gemma3, ["encoder=lm_attention", "layers=2"]),
        (gemma3, ["encoder=lm_states", "every=1"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "_".join(each.split("=")[1] for each in value),
)
def test_the_whole_path_runs(trains, cli, tiny, tmp_path, build, encoder):
    torch.manual_seed(0)
    folder: Path = tmp_path / "model"
    build().save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)

    status, _, err = trains(*TRAIN, *encoder)
    assert status == 0, err
    steps = read_rows(tmp_path / "run/metrics.jsonl")
    assert {step["kind"] for step in steps} == {"reconstruction", "continuation", "answers"}
    assert all(step["grad_norm"] > 0 for step in steps)
    assert all(step["hidden"] > 0 for step in steps if step["kind"] == "answers")

    status, _, err = cli(*REPORT)
    assert status == 0, err
    rows = {row["source"]: row for row in read_json(tmp_path / "report/report.json")["rows"]}
    assert list(rows) == ["text", "latent", "cut", "chosen", "averaged", "empty"]
    assert rows["latent"]["positions"] == rows["cut"]["positions"] < rows["text"]["positions"]
