"""The sampler inside TRL's trainers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from kat.sampling.sampler import DensityAwareSampler
from latentwire.harness.errors import UserError


class _Epochs(TrainerCallback):
    """Tells the sampler the trainer's epoch.

    The trainer and Accelerate tell it too, but look for it only one level down: behind the wrappers of a run that was
    resumed within an epoch on several processes they do not find it.
    """

    def __init__(self, sampler: DensityAwareSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the epoch's first row is asked for, resumed or not."""
        self.sampler.set_epoch(int(state.epoch or 0))  # 1.25: a quarter of the second epoch is done


def attach(trainer: Any, sampler: DensityAwareSampler) -> DensityAwareSampler:
    """Let a trainer of TRL or transformers draw its training rows with this sampler; return what it will use.

    A trainer that compares several completions of a prompt (GRPOTrainer, RLOOTrainer) gets its rows in the groups that
    its own RepeatSampler would make: each prompt num_generations times in a row, each generation batch again for every
    step that reuses it. Accelerate shards the rows over processes, so the sampler must not do so itself. Call this
    before `train()`, in every process; all of them take the weights of rank 0, because embeddings computed apart may
    differ in their last bits, and ranks with different weights would draw different orders.

    The trainer resumes by itself, on one process or several: an epoch's order depends on the seed and the epoch alone,
    so it enters the epoch that it was in and skips the rows that it has used. Do not load a state of the sampler then.

    Raises:
        UserError: A sampler over another number of rows than the trainer's data set, one that shards by itself or has
            drawn already; a trainer that takes no sampler.
    """
    if not hasattr(trainer, "_get_train_sampler"):
        raise UserError(f"{type(trainer).__name__}: takes no sampler; use a trainer of TRL or transformers")
    if sampler.num_replicas > 1:
        raise UserError(
            f"num_replicas={sampler.num_replicas}: the trainer shards what it is given over its processes; leave out "
            "rank and num_replicas"
        )
    rows = len(trainer.train_dataset)
    if rows != len(sampler.weights):
        raise UserError(
            f"the sampler weighs {len(sampler.weights)} rows and the trainer's data set has {rows} (TRL drops rows "
            "that are too long): compute the weights from trainer.train_dataset"
        )
    if hasattr(trainer, "num_generations"):
        args = trainer.args
        sampler = sampler.regrouped(
            num_generations=trainer.num_generations,
            prompts_per_batch=args.generation_batch_size // trainer.num_generations,
            batch_repeats=trainer.num_iterations * args.steps_per_generation,
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        weights = sampler.weights.to(trainer.accelerator.device)
        torch.distributed.broadcast(weights, src=0)
        sampler.weights.copy_(weights)
    trainer.remove_callback(_Epochs)
    trainer.add_callback(_Epochs(sampler))
    trainer._get_train_sampler = lambda dataset=None: sampler
    return sampler
