"""Baselines and controls that a sweep lacks. Main entry: `control_jobs()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from latentwire.analysis.controls import BASELINE, CLEAN_SOURCE, RANDOM
from latentwire.harness.grids import Job


def control_jobs(jobs: list[Job], compose: Callable[[Sequence[str]], Job]) -> list[Job]:
    """Return the missing baselines and controls of a sweep, for each combination of model, data and settings.

    The controls are clean (the baseline on text), empty (no passages) and random (random tokens). Each source has a
    baseline. Configurations of the sweep serve as baselines and controls where they can. A baseline on text is also
    the clean control. A sweep of nothing but controls gets no others.

    Args:
        jobs: Configurations of the sweep.
        compose: Returns a job from command-line overrides.
    """
    variants: dict[str, list[Job]] = {}
    for job in jobs:
        variants.setdefault(job.config.variant, []).append(job)
    return [job for members in variants.values() for job in _missing_controls(members, compose)]


def _missing_controls(jobs: list[Job], compose: Callable[[Sequence[str]], Job]) -> list[Job]:
    """Return the missing controls and baselines of the jobs of one variant."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.config.control == "none":
            groups.setdefault(job.config.group, []).append(job)
    if not groups:
        return []
    with_baseline = {
        job.config.group
        for job in jobs
        if job.config.embed_transform.name == BASELINE and job.config.control in ("none", "baseline")
    }
    baselines = [
        compose([*_overrides_without(members[0], "embed_transform"), "control=baseline"])
        for group, members in groups.items()
        if group not in with_baseline
    ]
    every = [*jobs, *baselines]
    present = {
        "clean": any(reads_clean_text(job) for job in every),
        "empty": any(job.config.control == "empty" for job in every),
        "random": any(job.config.embed_transform.name == RANDOM for job in every),
    }
    asked = [job for members in groups.values() for job in members]
    typical = next((job for job in asked if job.config.embed_transform.name == BASELINE), asked[0])
    settings = _overrides_without(typical, "embed_source", "embed_transform")
    return [*(compose([*settings, f"control={name}"]) for name, own in present.items() if not own), *baselines]


def _overrides_without(job: Job, *nodes: str) -> list[str]:
    """Return the overrides of a job, but for the given nodes and their dials."""
    dropped = {*nodes, *(str(dial) for node in nodes for dial in job.config[node].dials)}
    keys = [(override.split("=", 1)[0], override) for override in job.overrides]
    return [override for key, override in keys if key not in dropped and key.split(".")[0] not in nodes]


def reads_clean_text(job: Job) -> bool:
    """Return whether a job is the upper control: the baseline on text, with its passages."""
    about = (job.config.embed_source.name, job.config.embed_transform.name)
    return about == (CLEAN_SOURCE, BASELINE) and job.config.control != "empty"
