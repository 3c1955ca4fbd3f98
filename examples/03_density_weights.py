"""Density weights for prompts of your own: a text file in, sampling weights out.

Density is high where prompts are crowded. A rare prompt gets a high weight, a crowded one a low weight.

python examples/03_density_weights.py                             examples/prompts.txt, weights on the screen alone
python examples/03_density_weights.py PROMPTS.txt WEIGHTS.jsonl   a prompt a line; a line of {"weight", "prompt"} each

Measured: 22 s on two cores, other programs next to it. Output:

    40 prompts; a weight of 1.00 means an even draw

    rarest
      3.47  Write a verse about rain on a tin roof.
      3.47  Why does ice float on water?
      3.47  Which chess opening suits a beginner?
      3.46  My sourdough does not rise. What should I check first?
      3.45  Draft a polite e-mail that declines a meeting.

    most crowded
      0.16  What is the capital of France?
      0.12  What is 12 plus 7?
      0.12  What is 15 plus 6?
      0.12  What is 21 plus 13?
      0.12  What is 17 plus 18?
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from kat import DensityAwareSampler
from latentwire import load_model_by_name

PROMPTS = Path(__file__).with_name("prompts.txt")


def weigh(path: Path, model: str = "smollm2") -> tuple[list[str], torch.Tensor]:
    """Return the prompts of a text file and their sampling weights, (N,) of sum 1."""
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    lm = load_model_by_name(model)
    sampler = DensityAwareSampler.from_model(prompts, lm.model, lm.tokenizer, k=5)
    return prompts, sampler.weights / sampler.weights.sum()


def main(arguments: list[str]) -> None:
    """Print the rarest and the most crowded prompts, and write all weights where a second file is named."""
    prompts, weights = weigh(Path(arguments[0]) if arguments else PROMPTS)
    order = weights.argsort(descending=True, stable=True).tolist()
    print(f"{len(prompts)} prompts; a weight of 1.00 means an even draw")
    for title, shown in {"rarest": order[:5], "most crowded": order[-5:]}.items():
        print(f"\n{title}")
        for row in shown:
            print(f"  {weights[row] * len(prompts):4.2f}  {prompts[row]}")
    if len(arguments) > 1:
        rows = [{"weight": weight, "prompt": prompt} for weight, prompt in zip(weights.tolist(), prompts, strict=True)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        Path(arguments[1]).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
