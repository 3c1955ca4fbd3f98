"""A two-layer Llama with random weights, for tests and trials. Main entry: `build_tiny()`."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentwire.lm.model_folder import bars_on_terminals_only


class TinyConfig(TypedDict):
    """Arguments of `transformers.LlamaConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    initializer_range: float
    tie_word_embeddings: bool


class TinyModel(TypedDict):
    """What decides the model: the version of its recipe, its seed and its sizes."""

    version: int
    seed: int
    vocabulary: int
    config: TinyConfig


TINY: TinyModel = {
    "version": 1,
    "seed": 0,
    "vocabulary": 2048,
    "config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    },
}


def build_tiny(folder: Path) -> None:
    """Write a Llama with random weights and a small byte-level BPE tokenizer, identical on every machine."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from latentwire.data.examples import shipped_split_path

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocabulary"],
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([shipped_split_path("train").read_text(encoding="utf-8")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)  # noqa: S106

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY["seed"])
        config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), bos_token_id=None, eos_token_id=0,
                             **TINY["config"])  # fmt: skip
        with bars_on_terminals_only():
            LlamaForCausalLM(config).save_pretrained(folder)
