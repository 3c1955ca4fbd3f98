"""Speed of embedding in batches by length and token budget against batches of 8 in file order. Main entry: `main()`.

python -m benchmarks.embed short=A/prompts_all.jsonl long=B/prompts_all.jsonl model=smollm2

The benchmark uses 400 prompts of the first file and 200 of the second. Prompts with more than `longest` tokens are left
out and counted. The rest are shuffled with a seed. Each round embeds them both ways in turn with the same model, so
background load affects both equally. The output has the seconds and the ratio of each round, and the median ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from kat.data.prompts import read_prompts
from kat.embedding.pooling import HiddenEmbedder, embed_texts
from latentwire.harness.device import describe_machine
from latentwire.harness.paths import CONF
from latentwire.harness.precision import choose_dtype
from latentwire.harness.typed_config import typed
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

SETTINGS = {"short": "", "long": "", "model": "smollm2", "rounds": 3, "batch_tokens": 8192, "dtype": "auto",
            "device": "cpu", "texts": 600, "longest": 1024}  # fmt: skip


def in_file_order(embedder: HiddenEmbedder, texts: list[str]) -> torch.Tensor:
    """Return the embeddings of texts, (N, D), computed in batches of 8 in the given order."""
    return torch.cat([embedder.embed(texts[start : start + 8]) for start in range(0, len(texts), 8)])


def main(arguments: list[str]) -> None:
    """Run all rounds and print their times and ratios."""
    cfg = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(arguments))
    spec = typed(ModelSpec, OmegaConf.load(CONF / "model" / f"{cfg.model}.yaml").model)
    lm = load_model(spec, torch.device(cfg.device), choose_dtype(cfg.dtype, torch.device(cfg.device)))
    embedder = HiddenEmbedder(lm.model, lm.tokenizer)
    num_long = cfg.texts // 3
    texts = [prompt.text for prompt in read_prompts(Path(cfg.short))[: cfg.texts - num_long]]
    texts += [prompt.text for prompt in read_prompts(Path(cfg.long))[:num_long]]
    fitting = [text for text, length in zip(texts, embedder.lengths(texts), strict=True)
               if length <= min(cfg.longest, embedder.max_tokens)]  # fmt: skip
    too_long, texts = len(texts) - len(fitting), fitting
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [texts[i] for i in order]
    lengths = embedder.lengths(texts)
    print(f"{cfg.model} {lm.model.dtype} on {describe_machine(lm.device)}; {len(texts)} prompts of {min(lengths)} to "
          f"{max(lengths)} tokens, {sum(lengths)} in all; batch_tokens={cfg.batch_tokens}; "
          f"{too_long} longer ones left out")  # fmt: skip
    embed_texts(embedder, texts[:16], cfg.batch_tokens)
    ratios = []
    for _ in range(cfg.rounds):
        started = time.perf_counter()
        expected = in_file_order(embedder, texts)
        middle = time.perf_counter()
        ours = embed_texts(embedder, texts, cfg.batch_tokens)
        slow, fast = middle - started, time.perf_counter() - middle
        ratios.append(slow / fast)
        print(f"batches of 8 {slow:.2f} s ({sum(lengths) / slow:.0f} tokens/s)  by length {fast:.2f} s "
              f"({sum(lengths) / fast:.0f} tokens/s)  ratio {slow / fast:.2f}  "
              f"largest difference {(expected - ours).abs().max():.1e}")  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
