"""Which prompt comes next: weighted, seeded, in groups, over ranks, and resumed at the very next draw."""

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
from kat.sampling.arms import checked_weights, draw, expected_draws
from latentwire.harness.errors import UserError

STATE_VERSION = 1


class DensityAwareSampler(Sampler[int]):
    """Draws row numbers by weight; works in any DataLoader.

    Order: an epoch is one list of draws, the same on every rank, fixed by the seed and the epoch alone.

    Ranks: rank r of R takes every R-th draw, from the r-th on. No draw is taken twice, and all ranks take equally
    many: draws at the end that do not fill a batch on every rank are left out.

    Groups: each draw is handed out `num_generations` times in a row. Each block of `prompts_per_batch` draws is handed
    out `batch_repeats` times before the next, as TRL's RepeatSampler does to reuse completions.

    Epochs: iterating again after a finished epoch gives the next one; an epoch given up half-way is started again;
    `set_epoch` chooses one.

    `ledger` tells how often each prompt was meant to be drawn and was. `density` is what `from_model` measured, else
    None.

    Args:
        weights: One per row, at least 0, (N,); need not sum to 1.
        num_samples: Prompts drawn in an epoch over all ranks; N by default.
        replacement: Whether a prompt may come twice in an epoch. Without, draws follow Efraimidis and Spirakis
            (2006): the num_samples smallest of E_i / w_i with E_i exponential, in that order.
        seed: Of every draw.
        num_generations: G, indices handed out in a row for each draw.
        prompts_per_batch: Draws in a block that is repeated as a whole.
        batch_repeats: How often such a block is handed out.
        rank: Of this process.
        num_replicas: Processes that share the draws. Leave both alone under Accelerate or TRL: they shard what they
            are given, and every process then needs the whole order.

    Raises:
        UserError: Weights that are negative, not finite or all zero, more draws than there are prompts, or draws
            without replacement that take everything, so that weights could not matter.
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
        unit = prompts_per_batch * num_replicas
        self.draws = self.num_samples // unit * unit  # of an epoch, over all ranks
        if self.draws == 0:
            raise UserError(
                f"num_samples={self.num_samples}: {num_replicas} ranks with {prompts_per_batch} prompts a batch need "
                f"at least {unit}; draw more or use fewer ranks"
            )
        if not replacement:
            self._check_without_replacement()
        self.density: Density | None = None
        self.epoch = self.position = 0
        self._resume_at = 0
        self._order: tuple[int, Tensor] | None = None
        self._meant_by_epoch: Tensor | None = None  # the same for each
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
        """Embed the prompts with a model, estimate their density, and sample the rare ones more often.

        Args:
            prompts: Texts, or lists of messages with a `content`; row i of the data set is prompts[i].
            model: A causal LM of transformers; used as it is, in evaluation mode, and left as it was.
            tokenizer: Its tokenizer.
            k: Neighbours that set the scale of the density.
            estimator, gamma, target_ess, cap, index, min_recall: As in `kat.density.estimate.DensitySpec`; with a gamma of your
                own, target_ess=None.
            batch_tokens: Positions in one forward pass.
            seed: Of the draws, and of an approximate search.
            **draws: Whatever else the sampler itself takes.

        Raises:
            UserError: A prompt without text, too few prompts, a setting out of its range.

        Warns:
            UserWarning: The weights do nothing, or explode, as `kat.density.diagnostics.diagnose_weights` says.
        """
        from kat.embedding.pooling import embed_hidden

        spec = DensitySpec(estimator, k, gamma, target_ess, cap, index, min_recall)
        training = model.training
        model.eval()
        try:
            emb = embed_hidden(model, tokenizer, [_text(i, prompt) for i, prompt in enumerate(prompts)], batch_tokens)
        finally:
            model.train(training)
        found = estimate(emb, spec, seed)
        for words in diagnose_weights(found.density, found.weights, found.gamma, [""] * len(emb))["warnings"]:
            warnings.warn(words, stacklevel=2)
        sampler = cls(found.weights, seed=seed, **draws)
        sampler.density = found
        return sampler

    def regrouped(self, num_generations: int, prompts_per_batch: int, batch_repeats: int) -> DensityAwareSampler:
        """Return a new sampler with the same weights and seed that hands its draws out in other groups.

        Raises:
            UserError: This one has drawn already, or a state was loaded into it: other groups cannot go on there.
        """
        if self.epoch or self.position or self._resume_at or bool(self._drawn.any()):
            raise UserError(
                f"the sampler is at index {self.position or self._resume_at} of epoch {self.epoch}, which other groups "
                "would lose; give a new sampler, and load a state into the regrouped one"
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
        """Return the number of indices that this rank is handed in a whole epoch."""
        return self.draws // self.num_replicas * self.num_generations * self.batch_repeats

    def __iter__(self) -> Iterator[int]:
        """Hand out the epoch's indices, from where load_state_dict left off or from the first."""
        if self.position:  # finished, or given up half-way
            self._enter(self.epoch + (self.position == len(self)))
        self.position, self._resume_at = self._resume_at, 0
        own = self._global_order()[self.rank :: self.num_replicas].tolist()
        while self.position < len(self):
            index = own[self._draw_at(self.position)]
            self.position += 1
            yield index  # the epoch stays until the next begins: a loader asks ahead of what is used

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; one that was resumed half-way still goes on from there."""
        if epoch != self.epoch or self.position == len(self):
            self._enter(epoch)
            self._resume_at = 0

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Return all that is needed to go on at the very next draw, as plain values and tensors.

        Args:
            consumed: Indices of this epoch that were really used on this rank. By default those handed out, which is
                right for a plain loop; a DataLoader with workers, or one wrapped by Accelerate, asks for indices
                ahead of their use, and only the training loop knows how many it has used.
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
        """Go on where `state_dict` was taken.

        Raises:
            UserError: The state is of a sampler with other weights, settings or ranks.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION or "identity" not in state:
            raise UserError("this is no sampler state of this version; start again, or use the version that wrote it")
        mine = self._identity()
        if differing := [key for key in mine if state["identity"].get(key) != mine[key]]:
            key = differing[0]
            raise UserError(
                f"the saved sampler had {key}={state['identity'].get(key)} and this one has {key}={mine[key]}: its "
                "draws would not continue; resume with the settings it was saved with"
            )
        self.epoch, self.position = int(state["epoch"]), 0
        self._meant, self._drawn = state["meant"].clone(), state["drawn"].clone()
        self._resume_at = int(state["position"])
        if self._resume_at == len(self):
            self.position, self._resume_at = self._resume_at, 0
            self._enter(self.epoch + 1)

    def ledger(self, consumed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return how often each prompt was meant to be drawn (N,) float64, and was (N,) int64, over all ranks.

        Counts draws, not their repetitions, up to the step that this rank has reached; all ranks are in step. Without
        replacement the expectation is that of the sampling scheme in the limit of many prompts: 1 - exp(-w_i t).

        Args:
            consumed: As in `state_dict`: without it, what a loader has asked for ahead of its use counts too.
        """
        meant, drawn = self._so_far(self._used(consumed))
        return self._meant + meant, self._drawn + drawn

    def _used(self, consumed: int | None) -> int:
        """Return how many indices of this epoch were used: those handed out, unless the loop knows better."""
        if consumed is not None and not 0 <= consumed <= len(self):
            raise UserError(f"consumed={consumed}: an epoch has {len(self)} indices on this rank")
        return (self.position or self._resume_at) if consumed is None else consumed

    def _enter(self, epoch: int) -> None:
        """Write what was drawn of this epoch into the ledger, and turn to another, or to this one again."""
        meant, drawn = self._so_far(self.position)
        self._meant += meant
        self._drawn += drawn
        self.epoch, self.position = epoch, 0

    def _so_far(self, position: int) -> tuple[Tensor, Tensor]:
        """Return expected and real draws of the first `position` indices of this epoch, over all ranks."""
        if position == 0:
            return torch.zeros_like(self._meant), torch.zeros_like(self._drawn)
        block, within = divmod(position - 1, self._block() * self.batch_repeats)
        started = min(
            within // self.num_generations + 1, self.prompts_per_batch
        )  # of the block; all in its repetitions
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
        """Return which of this rank's draws the index at `position` of the epoch is."""
        block, within = divmod(position, self._block() * self.batch_repeats)
        return block * self.prompts_per_batch + within % self._block() // self.num_generations

    def _global_order(self) -> Tensor:
        """Return the epoch's draws over all ranks, (draws,) int64."""
        if self._order is None or self._order[0] != self.epoch:
            digest = hashlib.blake2b(f"draws {self.seed} {self.epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
            order = draw(self.weights, self.num_samples, replacement=self.replacement, generator=generator)
            self._order = self.epoch, order[: self.draws]
        return self._order[1]

    def _identity(self) -> dict[str, Any]:
        """Return what decides which index comes when; ranks are in step, so one state serves all of them."""
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
                "change nothing but the order; draw fewer, or use replacement=true"
            )


def _text(row: int, prompt: Any) -> str:
    """Return a prompt as the text that task=embed embeds too."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = normalise(prompt)
        text = render_conversation(messages)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"prompt {row} is {type(prompt).__name__}: expected a text or a list of messages with role and content; "
            "give data_set['prompt']"
        ) from error
    if not any(message["content"] for message in messages):
        raise UserError(f"prompt {row} is blank: it has no text to embed; remove it")
    return text
