"""Which prompt comes next: weighted, seeded, in groups, over ranks, and resumed at the very next draw."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from kat.density import Density, DensitySpec, estimate
from kat.diagnostics import diagnose
from kat.prompts import normalise, render
from latentwire.harness.errors import UserError

ARMS = ("uniform", "density", "reversed", "shuffled")
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
            estimator, gamma, target_ess, cap, index, min_recall: As in `kat.density.DensitySpec`; with a gamma of your
                own, target_ess=None.
            batch_tokens: Positions in one forward pass.
            seed: Of the draws, and of an approximate search.
            **draws: Whatever else the sampler itself takes.

        Raises:
            UserError: A prompt without text, too few prompts, a setting out of its range.

        Warns:
            UserWarning: The weights do nothing, or explode, as `kat.diagnostics.diagnose` says.
        """
        from kat.embed import embed_hidden

        spec = DensitySpec(estimator, k, gamma, target_ess, cap, index, min_recall)
        training = model.training
        model.eval()
        try:
            emb = embed_hidden(model, tokenizer, [_text(i, prompt) for i, prompt in enumerate(prompts)], batch_tokens)
        finally:
            model.train(training)
        found = estimate(emb, spec, seed)
        for words in diagnose(found.density, found.weights, found.gamma, [""] * len(emb))["warnings"]:
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


def checked_weights(weights: Tensor | Sequence[float]) -> Tensor:
    """Return weights as float64 of sum 1, (N,).

    Raises:
        UserError: Not one row of numbers, negative, not finite, or of sum 0.
    """
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
    if w.ndim != 1 or len(w) == 0:
        raise UserError(f"weights of shape {tuple(w.shape)}: expected one number per prompt")
    bad = ~(w.isfinite() & (w >= 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(f"weight {float(w[row])} of row {row}: must be finite and not negative; make the weights again")
    if w.sum() == 0:
        raise UserError("all weights are 0, so nothing can be drawn; make the weights again")
    return w / w.sum()


def draw(weights: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    """Draw rows by weight, (count,) int64, for any number of rows (torch.multinomial ends at 2^24).

    Args:
        weights: (N,) float64 of sum 1. A row of weight 0 is never drawn.
        count: Rows to draw; without replacement at most as many as have a weight.
        replacement: With: inverse of the cumulative weights. Without: see the class.
        generator: Of the random numbers.
    """
    if replacement:
        reached = weights.cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * reached[-1]
        last = int(weights.nonzero()[-1])
        return torch.searchsorted(reached, uniform, right=True).clamp(max=last)
    exponential = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (exponential / weights).topk(count, largest=False, sorted=True).indices


def expected_draws(weights: Tensor, count: int, replacement: bool) -> Tensor:
    """Return how often each row is drawn on average in `count` draws, (N,) float64."""
    if replacement or count == 0:
        return weights * count
    if count == int((weights > 0).sum()):
        return (weights > 0).double()
    low, high = 0.0, 1.0
    while float(-torch.expm1(-weights * high).sum()) < count:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        few = float(-torch.expm1(-weights * middle).sum()) < count
        low, high = (middle, high) if few else (low, middle)
    return -torch.expm1(-weights * high)


def arm_weights(arm: str, weights: Tensor | Sequence[float], seed: int) -> Tensor:
    """Return the weights of one arm of the experiment from those of the density, (N,) float64 of sum 1.

    uniform: all equal. density: as they are. reversed: the same weights in opposite order, so that the rarest prompt
    gets what the most crowded had. shuffled: the same weights assigned at random. The last two have the same histogram
    and so the same repetition, without (or against) the meaning.

    Raises:
        UserError: An unknown arm, or weights that are none.
    """
    w = checked_weights(weights)
    if arm == "uniform":
        return torch.full_like(w, 1 / len(w))
    if arm == "density":
        return w
    if arm == "reversed":
        order = w.argsort(stable=True)
        return torch.empty_like(w).scatter(0, order, w[order.flip(0)])
    if arm == "shuffled":
        return w[torch.randperm(len(w), generator=torch.Generator().manual_seed(seed))]
    raise UserError(f"sampler={arm}: unknown; use one of {', '.join(ARMS)}")


def pair_weights(
    prompt_ids: Sequence[str], weights: Tensor, prompt_of_pair: Sequence[str], unread: Collection[str] = ()
) -> Tensor:
    """Return a weight per pair, (P,) float64 of sum 1: a prompt's mass is divided evenly among its pairs.

    Prompts without a pair, such as those of another split, leave their mass to the others in proportion. Pairs of
    `unread` prompts get the weight 0, so they are never drawn; how many they are is said in a warning.

    Args:
        prompt_ids: Ids of the N prompts.
        weights: Their weights, (N,).
        prompt_of_pair: Prompt id of each of the P pairs.
        unread: Ids of prompts that have no weight because the embedder could not read them: `too_long` in the
            embeddings.json of task=embed.

    Raises:
        UserError: A pair of any other prompt that has no weight (there is none to assume for it), or an unread prompt
            that has one.
    """
    w = checked_weights(weights)
    row = {name: i for i, name in enumerate(prompt_ids)}
    if len(row) != len(w):
        raise UserError(
            f"{len(prompt_ids)} prompt ids ({len(row)} different) for {len(w)} weights; make the weights again"
        )
    if both := sorted(set(unread) & row.keys()):
        raise UserError(f"prompt {both[0]} and {len(both) - 1} others are called unread but have a weight; give the "
                        "too_long of the embeddings that these weights were made from")  # fmt: skip
    if strangers := sorted({name for name in prompt_of_pair if name not in row} - set(unread)):
        raise UserError(
            f"prompt {strangers[0]} and {len(strangers) - 1} others have pairs but no weight; run task=density again "
            "on the prompts of these pairs, or name them as unread if the embedder left them out"
        )
    rows = torch.tensor([row.get(name, len(w)) for name in prompt_of_pair], dtype=torch.int64)  # N: unread
    if left_out := int((rows == len(w)).sum()):
        warnings.warn(f"{left_out} of {len(rows)} pairs have a prompt that the embedder could not read: they get the "
                      "weight 0 and are never drawn", stacklevel=2)  # fmt: skip
    shares = torch.cat([w, torch.zeros(1, dtype=w.dtype)]) / torch.bincount(rows, minlength=len(w) + 1)
    return checked_weights(shares[rows])


def _text(row: int, prompt: Any) -> str:
    """Return a prompt as the text that task=embed embeds too."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = normalise(prompt)
        text = render(messages)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"prompt {row} is {type(prompt).__name__}: expected a text or a list of messages with role and content; "
            "give data_set['prompt']"
        ) from error
    if not any(message["content"] for message in messages):
        raise UserError(f"prompt {row} is blank: it has no text to embed; remove it")
    return text
