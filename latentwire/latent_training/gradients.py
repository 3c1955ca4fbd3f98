"""Gradients and sums of the losses of one step of latent training. Main entry: `LossSums`."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import require_finite_loss
from latentwire.latent_training.losses import LossWeights


class LossSums:
    """The mean losses of one step, added up batch by batch.

    Args:
        loss_weights: Weight of each loss in the gradient.
        doing: What the run is doing, for the message about a loss that is not finite.
    """

    def __init__(self, loss_weights: LossWeights, doing: str) -> None:
        self.loss_weights, self.doing = loss_weights, doing
        self.sums: dict[str, float] = {}

    def accumulate(self, losses: dict[str, Tensor], count: int) -> None:
        """Add the gradients of a batch's weighted losses to the parameters, and add the losses to the sums.

        Args:
            losses: Losses summed over the passages of the batch, by name.
            count: Number of passages in the whole step; gradients and losses are divided by it.

        Raises:
            NonFiniteError: A loss is NaN or infinite.
        """
        total = None
        for name, value in losses.items():
            require_finite_loss(f"the loss {name}", value, self.doing)
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) / count
            share = getattr(self.loss_weights, name) * value / count
            total = share if total is None else total + share
        if total is not None:
            torch.autograd.backward(total)

    def over_processes(self, state: PartialState) -> dict[str, float]:
        """Return the losses summed over all processes; a process without passages counts as 0."""
        if state.num_processes == 1:
            return self.sums
        names = sorted({name for names in gather_from_all(state, [sorted(self.sums)]) for name in names})
        values = torch.tensor([self.sums.get(name, 0.0) for name in names], device=state.device)
        return dict(zip(names, reduce(values, reduction="sum").tolist(), strict=True))
