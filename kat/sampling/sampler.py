"""A torch sampler that draws prompts by weight and resumes at the next draw. Main entry: `DensityAwareSampler`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from kat.data.prompts import normalise, render_conversation
from kat.density.diagnostics import diagnose_weights
from kat.density.estimate import Density, DensitySpec, estimate
from kat.sampling.draws import checked_weights, draw, expected_draws
from latentwire.harness.errors import UserError

STATE_VERSION = 1


class DensityAwareSampler(Sampler[int]):
    """A sampler for any DataLoader that draws row numbers by weight.

    Order: an epoch is one list of draws. It depends only on the seed and the epoch, and is the same on every rank.

    Ranks: rank r of R takes every R-th draw, beginning with draw r. No draw is taken twice, and all ranks take the
    same number. Draws at the end that do not fill a batch on every rank are left out.

    Groups: each draw is yielded `num_generations` times in a row. Each block of `prompts_per_batch` draws is yielded
    `batch_repeats` times before the next block, as in TRL's RepeatSampler, which reuses completions.

    Epochs: iteration after a finished epoch gives the next epoch. An epoch that was stopped half-way begins again.
    `set_epoch` selects an epoch.

    `ledger` returns the intended and the real draws of each prompt. `density` is the `Density` that `from_model`
    computed, else None.

    Args:
        weights: The weights of the rows, (N,), at least 0. They need not sum to 1.
        num_samples: The number of draws in an epoch over all ranks; N by default.
        replacement: Whether a prompt may be drawn twice in an epoch, see `kat.sampling.draws.draw`.
        seed: The seed of the draws.
        num_generations: G, the number of times that each draw is yielded in a row.
        prompts_per_batch: The number of draws in a block.
        batch_repeats: The number of times that each block is yielded.
        rank: The rank of this process.
        num_replicas: The number of processes that share the draws. With Accelerate or TRL keep the defaults of both:
            these libraries divide the whole order among the processes themselves.

    Raises:
        UserError: A weight is negative or not finite, all weights are 0, or there are too few draws for the ranks. Or
            the draws without replacement exceed the prompts, or take all of them so that weights have no effect.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        *,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        num_generations: int = 1,
        prompts_per_batch: int = 1,
        batch_repeats: int = 1,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.weights = checked_weights(weights)
        self.num_samples = len(self.weights) if num_samples is None else num_samples
        self.replacement, self.seed, self.num_generations = replacement, seed, num_generations
        self.prompts_per_batch, self.batch_repeats = prompts_per_batch, batch_repeats
        self.rank, self.num_replicas = rank, num_replicas
        for name in ("num_samples", "num_generations", "prompts_per_batch", "batch_repeats", "num_replicas"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= rank < num_replicas:
            raise UserError(f"rank={rank}: must be from 0 to num_replicas - 1 = {num_replicas - 1}")
        draws_per_batch = prompts_per_batch * num_replicas
        self.draws = self.num_samples // draws_per_batch * draws_per_batch  # in an epoch, over all ranks
        if self.draws == 0:
            raise UserError(
                f"num_samples={self.num_samples}: {num_replicas} ranks with {prompts_per_batch} prompts a batch need "
                f"at least {draws_per_batch}; draw more or use fewer ranks"
            )
        if not replacement:
            self._check_without_replacement()
        self.density: Density | None = None
        self.epoch = self.position = 0
        self._resume_at = 0
        self._order: tuple[int, Tensor] | None = None
        self._meant_by_epoch: Tensor | None = None  # the same for every epoch
        self._meant = torch.zeros(len(self.weights), dtype=torch.float64)
        self._drawn = torch.zeros(len(self.weights), dtype=torch.int64)

    @classmethod
    def from_model(
        cls,
        prompts: Sequence[Any],
        model: Any,
        tokenizer: Any,
        k: int = 10,
        *,
        estimator: str = "kde",
        gamma: float | None = None,
        target_ess: float | None = 0.4,
        cap: float = 0.95,
        index: str = "auto",
        min_recall: float = 0.95,
        batch_tokens: int = 8192,
        seed: int = 0,
        **draws: Any,
    ) -> DensityAwareSampler:
        """Return a sampler that draws rare prompts more often, with densities from embeddings of a model.

        Args:
            prompts: Texts or lists of messages; row i of the data set is prompts[i].
            model: A causal LM of transformers. It runs in evaluation mode and then returns to its former mode.
            tokenizer: Its tokenizer.
            k: The number of neighbours that sets the scale of the density.
            estimator, gamma, target_ess, cap, index, min_recall: See `kat.density.estimate.DensitySpec`. To set gamma,
                also set target_ess=None.
            batch_tokens: The largest number of positions in one forward pass.
            seed: The seed of the draws and of the approximate search.
            **draws: Further arguments of `DensityAwareSampler`.

        Raises:
            UserError: A prompt has no text, there are too few prompts, or a setting is out of range.

        Warns:
            UserWarning: The weights do nothing or explode, see `kat.density.diagnostics.diagnose_weights`.
        """
        from kat.embedding.pooling import embed_hidden

        spec = DensitySpec(estimator, k, gamma, target_ess, cap, index, min_recall)
        training = model.training
        model.eval()
        try:
            emb = embed_hidden(model, tokenizer, [_text(i, prompt) for i, prompt in enumerate(prompts)], batch_tokens)
        finally:
            model.train(training)
        result = estimate(emb, spec, seed)
        for message in diagnose_weights(result.density, result.weights, result.gamma, [""] * len(emb))["warnings"]:
            warnings.warn(message, stacklevel=2)
        sampler = cls(result.weights, seed=seed, **draws)
        sampler.density = result
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
        if self.epoch or self.position or self._resume_at or bool(self._drawn.any()):
            raise UserError(
                f"the sampler is at index {self.position or self._resume_at} of epoch {self.epoch}, which new groups "
                "would lose; give a new sampler, and load a state into the regrouped sampler"
            )
        regrouped = DensityAwareSampler(
            self.weights,
            num_samples=self.num_samples,
            replacement=self.replacement,
            seed=self.seed,
            num_generations=num_generations,
            prompts_per_batch=prompts_per_batch,
            batch_repeats=batch_repeats,
            rank=self.rank,
            num_replicas=self.num_replicas,
        )
        regrouped.density = self.density
        return regrouped

    def __len__(self) -> int:
        """Return the number of indices that this rank gets in an epoch."""
        return self.draws // self.num_replicas * self.num_generations * self.batch_repeats

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the epoch, from the loaded state or from the first index."""
        if self.position:  # the epoch is finished, or was stopped half-way
            self._enter(self.epoch + (self.position == len(self)))
        self.position, self._resume_at = self._resume_at, 0
        own = self._global_order()[self.rank :: self.num_replicas].tolist()
        while self.position < len(self):
            index = own[self._draw_at(self.position)]
            self.position += 1
            yield index  # the epoch number changes when the next one begins, because a loader fetches ahead

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration. A resumed epoch keeps its position."""
        if epoch != self.epoch or self.position == len(self):
            self._enter(epoch)
            self._resume_at = 0

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Return the state from which a sampler resumes at the next draw, as plain values and tensors.

        Args:
            consumed: The number of indices of this epoch that this rank has used. The default is the number yielded,
                which is right for a plain loop. A DataLoader with workers, or from Accelerate, fetches ahead, so the
                training loop must give the number.
        """
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "epoch": self.epoch,
            "position": self._used(consumed),
            "meant": self._meant.clone(),
            "drawn": self._drawn.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Raises:
            UserError: The state comes from a sampler with other weights, settings or ranks.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION or "identity" not in state:
            raise UserError(
                f"not a sampler state of version {STATE_VERSION}; start again, or use the version that wrote it"
            )
        own = self._identity()
        if differing := [key for key in own if state["identity"].get(key) != own[key]]:
            key = differing[0]
            raise UserError(
                f"the saved sampler had {key}={state['identity'].get(key)} and this one has {key}={own[key]}, so the "
                "draws would not continue; resume with the saved settings"
            )
        self.epoch, self.position = int(state["epoch"]), 0
        self._meant, self._drawn = state["meant"].clone(), state["drawn"].clone()
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
        meant, drawn = self._so_far(self._used(consumed))
        return self._meant + meant, self._drawn + drawn

    def _used(self, consumed: int | None) -> int:
        """Return the number of used indices of this epoch: `consumed` if given, else the number yielded."""
        if consumed is not None and not 0 <= consumed <= len(self):
            raise UserError(f"consumed={consumed}: must be from 0 to {len(self)}, the indices of this rank in an epoch")
        return (self.position or self._resume_at) if consumed is None else consumed

    def _enter(self, epoch: int) -> None:
        """Add the draws of this epoch to the ledger, and begin the given epoch."""
        meant, drawn = self._so_far(self.position)
        self._meant += meant
        self._drawn += drawn
        self.epoch, self.position = epoch, 0

    def _so_far(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the expected and real draws behind the first `position` indices of this epoch, over all ranks."""
        if position == 0:
            return torch.zeros_like(self._meant), torch.zeros_like(self._drawn)
        block, within = divmod(position - 1, self._block() * self.batch_repeats)
        # Repetitions of a block come after all of its draws, hence the minimum.
        started = min(within // self.num_generations + 1, self.prompts_per_batch)
        count = (block * self.prompts_per_batch + started) * self.num_replicas
        drawn = torch.bincount(self._global_order()[:count], minlength=len(self.weights))
        if count < self.draws:
            return expected_draws(self.weights, count, self.replacement), drawn
        if self._meant_by_epoch is None:
            self._meant_by_epoch = expected_draws(self.weights, count, self.replacement)
        return self._meant_by_epoch, drawn

    def _block(self) -> int:
        return self.prompts_per_batch * self.num_generations

    def _draw_at(self, position: int) -> int:
        """Return the number of this rank's draw that is yielded at `position` of the epoch."""
        block, within = divmod(position, self._block() * self.batch_repeats)
        return block * self.prompts_per_batch + within % self._block() // self.num_generations

    def _global_order(self) -> Tensor:
        """Return the draws of the epoch over all ranks, (draws,) int64."""
        if self._order is None or self._order[0] != self.epoch:
            digest = hashlib.blake2b(f"draws {self.seed} {self.epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
            order = draw(self.weights, self.num_samples, replacement=self.replacement, generator=generator)
            self._order = self.epoch, order[: self.draws]
        return self._order[1]

    def _identity(self) -> dict[str, Any]:
        """Return everything that the order of the indices depends on except the rank, so all ranks share a state."""
        names = ("num_samples", "replacement", "seed", "num_generations", "prompts_per_batch", "batch_repeats")
        return {
            "weights": hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()[:16],
            **{name: getattr(self, name) for name in (*names, "num_replicas")},
        }

    def _check_without_replacement(self) -> None:
        drawable = int((self.weights > 0).sum())
        if self.num_samples > drawable:
            raise UserError(
                f"num_samples={self.num_samples}: only {drawable} prompts can be drawn without replacement; draw "
                "fewer, or use replacement=true"
            )
        if self.num_samples == drawable and self.weights[self.weights > 0].unique().numel() > 1:
            raise UserError(
                f"num_samples={self.num_samples} without replacement draws every prompt once, so the weights would "
                "only change the order; draw fewer, or use replacement=true"
            )


def _text(row: int, prompt: Any) -> str:
    """Return a prompt as text, in the same form as task=embed."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = normalise(prompt)
        text = render_conversation(messages)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"prompt {row} is {type(prompt).__name__}: must be a text or a list of messages with role and content; "
            "give data_set['prompt']"
        ) from error
    if not any(message["content"] for message in messages):
        raise UserError(f"prompt {row} is blank: it has no text to embed; remove it")
    return text
