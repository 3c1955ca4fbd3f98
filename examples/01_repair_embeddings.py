"""Repair embeddings in ten lines: a prompt is distorted, a transform repairs it, the model answers again.

Use it with a model of your own: any causal language model of transformers that reads `inputs_embeds`.

python examples/01_repair_embeddings.py             the embedded model (SmolLM2-135M-Instruct)
python examples/01_repair_embeddings.py FOLDER      a model of yours: a folder or the name of a hub repository

Measured: 11 s on two cores, other programs next to it. Output:

    real tokens     ' Paris.\\n\\n'
    noise           ' the capital of France'
    rms_matching    ' the capital of France'
    anchor_offset   ' Paris.\\n\\n'

Noise as strong as the embeddings themselves (0 dB) hides the question. A right length alone does not bring it back.
The nearest token does: it is still the right one.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latentwire import Vocabulary, build_transform, load_model_by_name

PROMPT = "Question: What is the capital of France?\nAnswer: The capital of France is"


def answer(model: Any, tokenizer: Any, embeddings: torch.Tensor) -> str:
    """Return what the model writes after embeddings of shape (T, D)."""
    mask = torch.ones(1, len(embeddings), dtype=torch.long, device=model.device)
    ids = model.generate(
        inputs_embeds=embeddings[None], attention_mask=mask, max_new_tokens=4, do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


@torch.no_grad()
def repair(model: Any, tokenizer: Any, prompt: str, snr_db: float = 0.0) -> dict[str, str]:
    """Return the model's answers to a prompt as it is, with noise on its embeddings, and after two transforms."""
    embed = model.get_input_embeddings()  # its output counts, not its weight: some models scale inside
    vocabulary = Vocabulary(embed(torch.arange(embed.num_embeddings, device=model.device)))
    real = embed(tokenizer(prompt, return_tensors="pt").input_ids.to(model.device))[0]  # (T, D)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0)).to(real)
    noisy = real + noise * real.square().mean(-1, keepdim=True).sqrt() * 10 ** (-snr_db / 20)  # (T, D)
    answers = {"real tokens": answer(model, tokenizer, real), "noise": answer(model, tokenizer, noisy)}
    for name, dials in {"rms_matching": {"target_scale": 1.0}, "anchor_offset": {"eps": 0.05}}.items():
        transform = build_transform(name, dials, vocabulary)
        answers[name] = answer(model, tokenizer, transform(noisy))
    return answers


if __name__ == "__main__":
    model: Any
    tokenizer: Any
    if len(sys.argv) > 1:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
    else:
        lm = load_model_by_name("smollm2")
        model, tokenizer = lm.model, lm.tokenizer
    for name, text in repair(model, tokenizer, PROMPT).items():
        print(f"{name:<15} {text!r}")
