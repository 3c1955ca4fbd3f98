"""A transform of your own in a sweep: one decorated class, and the ranking against two others.

`snap` takes the nearest token where its cosine is high enough. In a module of your own the class is a plugin:
`python run.py plugins=[my_module] embed_transform=snap least=0.5`; docs/extending.md has the steps.

python examples/02_own_transform.py                                   20 questions on the embedded model
python examples/02_own_transform.py samples=2 model=tiny_random       any setting of run.py

Measured: 23 s on two cores in bfloat16, other programs next to it. Output, after one line for each configuration:

                        F1    95% interval  EM    empty  recovered   against the baseline
      1xanchor_eps0.05  .650  [.395  .841 ]  .550    0%        100%   +.333 [.081, .586] p=0.031 better
      2 snap0.5         .650  [.395  .841 ]  .550    0%        100%   +.333 [.084, .590] p=0.031 better
      3 baseline        .317  [.134  .582 ]  .250    0%         49%   is the baseline
      4 snap0.9         .317  [.134  .582 ]  .250    0%         49%   identity: changed nothing on this source
    x the best of 3: chosen on half of the passages, scored on the other half

At a cosine of .9 no token is near enough. The results and the page are in outputs/own_transform.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for run.py, which is in no package

from latentwire import Transform, Vocabulary  # noqa: E402
from latentwire.harness.app import launch  # noqa: E402
from latentwire.transforms.base import register_transform, require  # noqa: E402
from run import TASKS  # noqa: E402


@register_transform("snap", label="snap{least}")  # embed_transform=snap; configurations are named snap0.5, snap0.9
class Snap(Transform):
    """The nearest token where its cosine is at least `least`; elsewhere the embedding stays."""

    def __init__(self, vocabulary: Vocabulary, *, least: float = 0.5) -> None:
        super().__init__(vocabulary)
        require(-1 <= least <= 1, "least", least, "is a cosine, between -1 and 1")
        self.least = least

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Snap embeddings (T, D) or (B, T, D) to their nearest tokens."""
        token = self.tokens(self.vocabulary.nearest(x, 1).squeeze(-1), x)  # (..., T, D)
        near = torch.cosine_similarity(x, token, dim=-1) >= self.least  # (..., T)
        return torch.where(near[..., None], token, x)


if __name__ == "__main__":
    settings = [f"hydra.searchpath=[file://{ROOT / 'examples' / 'conf'}]", "sweep=own_transform", "samples=20"]
    given = {argument.split("=")[0] for argument in sys.argv[1:]}
    launch("run", TASKS, [*(s for s in settings if s.split("=")[0] not in given), *sys.argv[1:]])
