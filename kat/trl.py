"""The sampler inside TRL's trainers."""

from __future__ import annotations

from typing import Any

from kat.sampler import DensityAwareSampler
from latentwire.harness.errors import UserError


def attach(trainer: Any, sampler: DensityAwareSampler) -> DensityAwareSampler:
    """Let a trainer of TRL or transformers draw its training rows with this sampler; return what it will use.

    A trainer that compares several completions of a prompt (GRPOTrainer, RLOOTrainer) gets its rows in the groups that
    its own RepeatSampler would make: each prompt num_generations times in a row, each generation batch again for every
    step that reuses it. Accelerate shards the rows over processes, so the sampler must not do so itself. Call this
    before `train()`. Resuming by the trainer works: an epoch's order depends on the seed and the epoch alone.

    Raises:
        UserError: A sampler over another number of rows than the trainer's data set, or one that shards by itself; a
            trainer that takes no sampler.
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
    trainer._get_train_sampler = lambda dataset=None: sampler
    return sampler
