"""Counts of draws, in memory that grows with the rows drawn and not with all rows. Main entry: `DrawLedger`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kat.sampling.draws import DrawWeights, expected_draws
from kat.sampling.plan import DrawPlan
from latentwire.harness.checkpoint import State
from latentwire.harness.errors import UserError

STATE_VERSION = 2


def _no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class DrawLedger:
    """The draws of some epochs: how often each row was drawn, and how many draws each epoch had.

    The intended draws need no memory: they follow from the weights and the numbers of draws.

    Attributes:
        rows: Rows that were drawn, (R,) int64, ascending.
        counts: Number of draws of each of these rows, (R,) int64.
        epochs: Number of epochs by their number of draws. An epoch that was stopped half-way has fewer draws.
    """

    rows: Tensor = field(default_factory=_no_rows)
    counts: Tensor = field(default_factory=_no_rows)
    epochs: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_counts(cls, counts: Tensor, epoch: int) -> DrawLedger:
        """Return the ledger of counts of all rows.

        Args:
            counts: The number of draws of each row, (N,) int64.
            epoch: The number of draws of a whole epoch. The draws that fill none are counted as one epoch.
        """
        rows = counts.nonzero().flatten()
        whole, rest = divmod(int(counts.sum()), epoch)
        return cls(rows, counts[rows], {n: times for n, times in ((epoch, whole), (rest, 1)) if n and times})

    def plus(self, drawn: Tensor) -> DrawLedger:
        """Return this ledger with the draws of a further epoch.

        Args:
            drawn: The rows that were drawn, (draws,) int64, in any order.
        """
        if not len(drawn):
            return self
        rows, counts = drawn.unique(return_counts=True)
        union, place = torch.cat([self.rows, rows]).unique(return_inverse=True)
        total = torch.zeros_like(union).index_add_(0, place, torch.cat([self.counts, counts]))
        return DrawLedger(union, total, {**self.epochs, len(drawn): self.epochs.get(len(drawn), 0) + 1})

    def state(self, plan: DrawPlan, weights: DrawWeights) -> State:
        """Return the ledger with the identity of its sampler, as plain values and tensors."""
        return {
            "version": STATE_VERSION,
            "identity": plan.identity(weights),
            "rows": self.rows,
            "counts": self.counts,
            "epochs": dict(self.epochs),
        }

    def drawn(self, num_rows: int) -> Tensor:
        """Return the number of draws of all rows, (num_rows,) int64."""
        return torch.zeros(num_rows, dtype=torch.int64).index_copy_(0, self.rows, self.counts)

    def intended(self, weights: Tensor, replacement: bool) -> Tensor:
        """Return the intended number of draws of all rows, (N,) float64; see `kat.sampling.draws.expected_draws`.

        Args:
            weights: The sampling weights, (N,) float64, sum 1.
            replacement: Whether a row may be drawn twice in an epoch.
        """
        if replacement:
            return weights * sum(n * times for n, times in self.epochs.items())
        total = torch.zeros(len(weights), dtype=torch.float64)
        for n, times in sorted(self.epochs.items()):
            total += expected_draws(weights, n, replacement) * times
        return total


def ledger_of_state(state: State, plan: DrawPlan, weights: DrawWeights) -> DrawLedger:
    """Return the ledger in a saved state. A state of version 1 has the draws of all rows instead.

    Args:
        state: The state of a sampler.
        plan: The draws of the sampler that resumes from it.
        weights: The weights of that sampler.

    Raises:
        UserError: The state comes from a sampler with other weights, settings or ranks, or cannot be converted.
    """
    if not isinstance(state, dict) or state.get("version") not in (1, STATE_VERSION) or "identity" not in state:
        raise UserError(
            f"not a sampler state of version 1 or {STATE_VERSION}; start again, or use the version that wrote it"
        )
    own = plan.identity(weights)
    if differing := [key for key in own if state["identity"].get(key) != own[key]]:
        key = differing[0]
        raise UserError(
            f"the saved sampler had {key}={state['identity'].get(key)} and this one has {key}={own[key]}, so the draws "
            "would not continue; resume with the saved settings"
        )
    if state["version"] == STATE_VERSION:
        return DrawLedger(state["rows"], state["counts"], dict(state["epochs"]))
    ledger = DrawLedger.of_counts(state["drawn"], plan.draws)
    if not torch.allclose(ledger.intended(weights.values, plan.replacement), state["meant"]):
        raise UserError(
            "the saved state is of version 1, and several of its epochs without replacement were stopped half-way: "
            "their intended draws cannot be converted; start again, or use the version that wrote it"
        )
    return ledger
