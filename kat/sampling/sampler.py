"""A torch sampler that draws prompts by weight and resumes at the next draw. Main entry: `DensityAwareSampler`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from torch import Tensor
from torch.utils.data import Sampler

from kat.density.estimate import Density, DensitySpec
from kat.sampling.draws import DrawWeights, checked_weights
from kat.sampling.ledger import DrawLedger, ledger_of_state
from kat.sampling.plan import DrawPlan, DrawSettings, OrderSettings
from kat.sampling.weight_files import draw_weights
from latentwire.harness.checkpoint import State
from latentwire.harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kat.sampling.from_model import PromptText

AnyWeights = Tensor | Sequence[float] | DrawWeights


class DensitySettings(TypedDict, total=False):
    """Settings of `DensitySpec` besides k."""

    estimator: str
    gamma: float | None
    target_ess: float | None
    cap: float
    crowd_cap: float
    index: str
    min_recall: float


class ModelSettings(DrawSettings, DensitySettings, total=False):
    """Keyword arguments of `DensityAwareSampler.from_model`: of the sampler and of `DensitySpec`, and a batch size."""

    batch_tokens: int


def _divided(settings: ModelSettings) -> tuple[DensitySettings, DrawSettings]:
    """Return the settings of the density and of the sampler."""
    given = {name: value for name, value in settings.items() if name != "batch_tokens"}
    density = {name: given.pop(name) for name in DensitySettings.__annotations__ if name in given}
    return cast(DensitySettings, density), cast(DrawSettings, given)


class DensityAwareSampler(Sampler[int]):
    """A sampler for any DataLoader that draws row numbers by weight.

    Epochs: iteration after a finished epoch gives the next epoch. An epoch that was stopped half-way begins again.
    `set_epoch` selects an epoch.

    `plan` has the settings and the order of the draws: repetitions and ranks. `ledger` returns the intended and real
    draws of each prompt, `drawn` the drawn prompts only. `density` is the `Density` of `from_model`, else None.

    Args:
        weights: The weights of the rows, (N,), at least 0. They need not sum to 1. `DrawWeights` are used as they are.
        num_samples: Number of draws in an epoch over all ranks; None: N.
        **settings: Further attributes of `DrawPlan`: replacement (True), seed (0), num_generations, prompts_per_batch,
            batch_repeats, rank and num_replicas. With Accelerate or TRL keep the defaults of the last two: these
            libraries divide the whole order among the processes themselves.

    Raises:
        UserError: A weight is negative or not finite, all weights are 0, or a setting is out of range. Or the draws
            without replacement exceed the prompts, or take all of them so that weights have no effect.

    >>> set(DensityAwareSampler([0.0, 3.0, 1.0], num_samples=50, seed=1))
    {1, 2}
    """

    def __init__(
        self, weights: AnyWeights, *, num_samples: int | None = None, **settings: Unpack[OrderSettings]
    ) -> None:
        self._weights = weights if isinstance(weights, DrawWeights) else DrawWeights(checked_weights(weights))
        self.plan = DrawPlan(len(self._weights) if num_samples is None else num_samples, **settings)
        self.plan.check(self._weights)
        self.density: Density | None = None
        self.epoch = self.position = self._resume_at = 0
        self._order: tuple[int, Tensor] | None = None
        self._past = DrawLedger()  # of the epochs before this one

    @property
    def weights(self) -> Tensor:
        """The sampling weights, (N,) float64, sum 1."""
        return self._weights.values

    @classmethod
    def from_weights(cls, path: Path | str, **settings: Unpack[DrawSettings]) -> DensityAwareSampler:
        """Return a sampler of the weights that task=density wrote; row i is row i of the file.

        Args:
            path: A folder of weights, which are mapped into memory, or a weights.jsonl.
            **settings: Settings of the sampler.

        Raises:
            UserError: The weights are missing or damaged, or a setting is out of range.
        """
        return cls(draw_weights(Path(path)), **settings)

    @classmethod
    def from_model(
        cls,
        prompts: Sequence[PromptText],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        k: int = DensitySpec.k,
        **settings: Unpack[ModelSettings],
    ) -> DensityAwareSampler:
        """Return a sampler that draws rare prompts more often, with densities from embeddings of a model.

        Args:
            prompts: Texts or lists of messages; row i of the data set is prompts[i].
            model: A causal LM of transformers. It runs in evaluation mode and then returns to its former mode.
            tokenizer: Its tokenizer.
            k: The number of neighbours that sets the scale of the density.
            **settings: Settings of the sampler; `seed` is also the seed of the approximate search. Attributes of
                `kat.density.estimate.DensitySpec` but k; to set gamma, also set target_ess=None. And batch_tokens,
                the largest number of positions in one forward pass (8192).

        Raises:
            UserError: A prompt has no text, there are too few prompts, or a setting is out of range.

        Warns:
            UserWarning: The weights do nothing, explode or fail a gate, see `kat.density.diagnostics.diagnose_weights`.
        """
        from kat.sampling.from_model import density_of

        density, draws = _divided(settings)
        at_once = settings.get("batch_tokens", 8192)
        spec, seed = DensitySpec(k=k, **density), settings.get("seed", 0)
        found = density_of(prompts, model, tokenizer, spec, batch_tokens=at_once, seed=seed)
        sampler = cls(found.weights, **draws)
        sampler.density = found
        return sampler

    def regrouped(self, num_generations: int, prompts_per_batch: int, batch_repeats: int) -> DensityAwareSampler:
        """Return a new sampler with the same weights and seed and with other groups.

        Args:
            num_generations: The number of times that each draw is yielded in a row.
            prompts_per_batch: The number of draws in a block.
            batch_repeats: The number of times that each block is yielded.

        Raises:
            UserError: This sampler has drawn already, or a state was loaded into it. Its position would be lost.
        """
        if self.epoch or self.position or self._resume_at or self._past.epochs:
            raise UserError(
                f"the sampler is at index {self.position or self._resume_at} of epoch {self.epoch}, which new groups "
                "would lose; give a new sampler, and load a state into the regrouped sampler"
            )
        groups = {"num_generations": num_generations, "prompts_per_batch": prompts_per_batch}
        regrouped = DensityAwareSampler(self._weights, **asdict(self.plan) | groups | {"batch_repeats": batch_repeats})
        regrouped.density = self.density
        return regrouped

    def __len__(self) -> int:
        """Return the number of indices that this rank gets in an epoch."""
        return len(self.plan)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the epoch, from the loaded state or from the first index."""
        if self.position:  # the epoch is finished, or was stopped half-way
            self._enter(self.epoch + (self.position == len(self)))
        self.position, self._resume_at = self._resume_at, 0
        own = self._global_order()[self.plan.rank :: self.plan.num_replicas].numpy()
        while self.position < len(self):
            index = int(own[self.plan.draw_at(self.position)])
            self.position += 1
            yield index  # the epoch number changes when the next one begins, because a loader fetches ahead

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration. A resumed epoch keeps its position."""
        if epoch != self.epoch or self.position == len(self):
            self._enter(epoch)
            self._resume_at = 0

    def state_dict(self, consumed: int | None = None) -> State:
        """Return the state from which a sampler resumes at the next draw, as plain values and tensors.

        Args:
            consumed: The number of indices of this epoch that this rank has used. The default is the number yielded,
                which is right for a plain loop. A DataLoader with workers, or from Accelerate, fetches ahead, so the
                training loop must give the number.
        """
        return {
            **self._past.state(self.plan, self._weights),
            "epoch": self.epoch,
            "position": self._used(consumed),
        }

    def load_state_dict(self, state: State) -> None:
        """Resume from a state of `state_dict`, also from one of version 1, which counted the draws of all rows.

        Raises:
            UserError: The state comes from a sampler with other weights, settings or ranks.
        """
        self._past = ledger_of_state(state, self.plan, self._weights)
        self.epoch, self.position = int(state["epoch"]), 0
        self._resume_at = int(state["position"])
        if self._resume_at == len(self):
            self.position, self._resume_at = self._resume_at, 0
            self._enter(self.epoch + 1)

    def ledger(self, consumed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the intended draws (N,) float64 and the real draws (N,) int64 of each prompt over all ranks.

        Repetitions of a draw count once. Draws count up to the step of this rank; all ranks are at the same step. For
        the intended draws without replacement see `kat.sampling.draws.expected_draws`.

        Args:
            consumed: The number of indices used, see `state_dict`. By default fetched indices count, used or not.
        """
        ledger = self._so_far(self._used(consumed))
        return ledger.intended(self.weights, self.plan.replacement), ledger.drawn(len(self.weights))

    def drawn(self, consumed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the rows drawn so far over all ranks and how often each was drawn, (R,) int64; see `ledger`."""
        ledger = self._so_far(self._used(consumed))
        return ledger.rows, ledger.counts

    def use_weights(self, weights: Tensor) -> None:
        """Replace the weights before the first draw by others, (N,) float64, sum 1, such as the weights of rank 0."""
        self._weights, self._order = DrawWeights(weights), None

    def _used(self, consumed: int | None) -> int:
        """Return the number of used indices of this epoch: `consumed` if given, else the number yielded."""
        if consumed is not None and not 0 <= consumed <= len(self):
            raise UserError(f"consumed={consumed}: must be from 0 to {len(self)}, the indices of this rank in an epoch")
        return (self.position or self._resume_at) if consumed is None else consumed

    def _enter(self, epoch: int) -> None:
        """Add the draws of this epoch to the ledger, and begin the given epoch."""
        self._past = self._so_far(self.position)
        self.epoch, self.position = epoch, 0

    def _so_far(self, position: int) -> DrawLedger:
        """Return the ledger with the draws behind the first `position` indices of this epoch, over all ranks."""
        count = self.plan.draws_behind(position)
        return self._past.plus(self._global_order()[:count]) if count else self._past

    def _global_order(self) -> Tensor:
        """Return the draws of the epoch over all ranks, (draws,) int64."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = self.epoch, self.plan.order(self._weights, self.epoch)
        return self._order[1]
