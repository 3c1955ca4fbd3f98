"""A Hydra sweeper for unions of grids: the presets of conf/sweep, multiplied by what the command line varies.

Hydra's own sweeper makes one Cartesian product. This one runs the entries of `sweep.grids` one after the other (all of
them for each of `sweep.sources`, where a preset has those), names every job before it runs any, keeps those that
`only` asks for, runs what the task makes of them round by round, and hands all results to the task.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from latentwire.harness import program
from latentwire.harness.grids import Job, expand, factors, keep, print_jobs, variants


@dataclass
class GridUnionSweeperConf:
    """How many jobs are handed to the launcher at a time; with a parallel launcher set it to null (all)."""

    _target_: str = "hydra_plugins.grid_union_sweeper.GridUnionSweeper"
    max_batch_size: int | None = 1


ConfigStore.instance().store(group="hydra/sweeper", name="grid_union", node=GridUnionSweeperConf, provider="latentwire")


class GridUnionSweeper(BasicSweeper):
    """Runs a union of grids; without a preset, the one grid of the command line."""

    def __init__(self, max_batch_size: int | None) -> None:
        super().__init__(max_batch_size)
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the files that were chosen
        self.parsed: dict[str, tuple[Override, bool]] = {}  # overrides, and whether they choose a file

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every job and return what they returned, in order."""
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        preset = factors(self.config.sweep) if program.current.takes_sweeps(self.config.task) else []
        jobs = [self.compose(job) for job in expand(preset, parser.parse_overrides(arguments))]
        jobs = [
            self.compose([*job.overrides, f"variant='{variant}'"]) if variant else job
            for job, variant in zip(jobs, variants(jobs), strict=True)
        ]
        chosen = (
            program.current.takes_sweeps(self.config.task) or program.current.entry == "train"
        )  # what trains runs under names of its own
        jobs = keep(jobs, self.config.only) if chosen else jobs
        if self.config.task == "list":
            print_jobs(jobs)
            return []
        rounds = program.current.direct(self.config, jobs, self.compose)
        try:
            batch = next(rounds)
            while True:
                batch = rounds.send(self._run(batch))
        except StopIteration as end:
            results: list[Any] = end.value
        program.current.finish(self.config, results)
        return results

    def _run(self, jobs: list[Job]) -> list[Any]:
        """Run jobs and return what they returned, in order."""
        assert self.launcher is not None
        size = self.max_batch_size or max(1, len(jobs))
        returns: list[Any] = []
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            program.current.position = (start + 1, len(jobs)) if len(batch) == 1 else None
            for job in self.launcher.launch([job.overrides for job in batch], initial_job_idx=start):
                returns.append(job.return_value)  # raises what the job raised
        return returns

    def compose(self, overrides: Sequence[str]) -> Job:
        """Compose a job: files once for each choice of them, plain values set on a copy, as Hydra itself sets them.

        Hydra's own settings are left out: most of what there would be to copy, and nobody's to read here.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader: Any = self.hydra_context.config_loader
        new = [override for override in overrides if override not in self.parsed]
        for one in OverridesParser.create(config_loader=loader).parse_overrides(new) if new else []:
            self.parsed[str(one.input_line)] = one, loader.repository.group_exists(one.key_or_group)
        values = [self.parsed[override][0] for override in overrides if not self.parsed[override][1]]
        files = tuple(override for override in overrides if self.parsed[override][1])
        if files not in self.composed:
            self.composed[files] = loader.load_sweep_config(self.config, list(files))
            with open_dict(self.composed[files]):
                del self.composed[files]["hydra"]
        config = copy.deepcopy(self.composed[files])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return Job(list(overrides), config)
