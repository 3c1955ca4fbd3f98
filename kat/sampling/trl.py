"""The density-aware sampler in trainers of TRL and transformers. Main entry: `attach()`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kat.sampling.sampler import DensityAwareSampler
from latentwire.harness.errors import UserError


class _Epochs(TrainerCallback):
    """A callback that sets the sampler's epoch.

    The trainer and Accelerate also set it, but they search only one level of wrappers. They miss the sampler in a run
    on several processes that was resumed within an epoch.
    """

    def __init__(self, sampler: DensityAwareSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Set the epoch before its first row is drawn."""
        self.sampler.set_epoch(int(state.epoch or 0))  # 1.25 means that a quarter of the second epoch is done


def attach(trainer: Any, sampler: DensityAwareSampler) -> DensityAwareSampler:
    """Make a trainer of TRL or transformers draw its training rows with this sampler.

    Call this before `train()`, in every process. A trainer that compares completions of a prompt (GRPOTrainer,
    RLOOTrainer) gets the same groups as from its own RepeatSampler. Each prompt comes num_generations times in a row,
    and each generation batch comes again for every step that reuses it.

    Accelerate divides the rows among the processes, so the sampler must not. All processes use the weights of rank 0:
    embeddings from different processes may differ in their last bits, and other weights would give another order.

    The trainer resumes without help: the order depends only on the seed and the epoch, so the trainer skips the rows
    that it has used. Do not load a state of the sampler.

    Args:
        trainer: A trainer of TRL or transformers.
        sampler: A sampler that has not drawn yet.

    Returns:
        The sampler that the trainer uses.

    Raises:
        UserError: The sampler has another number of rows than the data set, divides the draws among ranks, or has
            drawn already. Or the trainer has no sampler to replace.

    >>> attach(object(), DensityAwareSampler([1.0, 2.0]))
    Traceback (most recent call last):
    latentwire.harness.errors.UserError: object: takes no sampler; use a trainer of TRL or transformers
    """
    if not hasattr(trainer, "_get_train_sampler"):
        raise UserError(f"{type(trainer).__name__}: takes no sampler; use a trainer of TRL or transformers")
    if sampler.plan.num_replicas > 1:
        raise UserError(
            f"num_replicas={sampler.plan.num_replicas}: the trainer divides the rows among its processes; leave out "
            "rank and num_replicas"
        )
    rows = len(trainer.train_dataset)
    if rows != len(sampler.weights):
        raise UserError(
            f"the sampler has weights for {len(sampler.weights)} rows and the trainer's data set has {rows} (TRL drops "
            "rows that are too long); compute the weights from trainer.train_dataset"
        )
    if hasattr(trainer, "num_generations"):
        args = trainer.args
        sampler = sampler.regrouped(
            num_generations=trainer.num_generations,
            prompts_per_batch=args.generation_batch_size // trainer.num_generations,
            batch_repeats=trainer.num_iterations * args.steps_per_generation,
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        weights = sampler.weights.clone().to(trainer.accelerator.device)
        torch.distributed.broadcast(weights, src=0)
        sampler.use_weights(weights.cpu())
    trainer.remove_callback(_Epochs)
    trainer.add_callback(_Epochs(sampler))
    trainer._get_train_sampler = lambda dataset=None: sampler
    return sampler
