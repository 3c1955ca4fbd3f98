"""A Hydra sweeper for unions of grids: the presets of conf/sweep. Main entry: `GridUnionSweeper.sweep()`.

Hydra's own sweeper runs one Cartesian product. This sweeper runs the grids in `sweep.grids` one after the other. If the
preset has `sweep.sources`, it runs all grids for each source. The command line's lists multiply both.

The sweeper names all jobs before it runs any, and drops the jobs that `only` does not match. The task may run the jobs
in rounds. At the end the task receives all results.
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
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from latentwire.harness.app import JobFunction
from latentwire.harness.grids import Job, expand, factors, print_jobs, repetitions, select_jobs, variants
from latentwire.harness.plugins import require_choices


@dataclass
class GridUnionSweeperConf:
    """Number of jobs that the launcher gets at a time. With a parallel launcher set it to null (all jobs)."""

    _target_: str = "hydra_plugins.grid_union_sweeper.GridUnionSweeper"
    max_batch_size: int | None = 1


ConfigStore.instance().store(group="hydra/sweeper", name="grid_union", node=GridUnionSweeperConf, provider="latentwire")


class GridUnionSweeper(BasicSweeper):
    """Runs a union of grids. Without a preset, it runs the grid of the command line."""

    def __init__(self, max_batch_size: int | None) -> None:
        super().__init__(max_batch_size)
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the overrides that choose files
        self.parsed: dict[str, tuple[Override, bool]] = {}  # each override, and whether it chooses a file

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over the session of the command, in which the jobs and the end of the sweep run."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert isinstance(task_function, JobFunction), "this sweeper runs in a program that launch() started"
        self.session = task_function.session
        self.session.sweeping = True

    def sweep(self, arguments: list[str]) -> list[object]:
        """Run the jobs of the preset and the command line, and return their results in order."""
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        preset = factors(self.config.sweep) if self.session.takes_sweeps(self.config.task) else []
        jobs = [self.compose(job) for job in expand(preset, parser.parse_overrides(arguments))]
        jobs = [
            self.compose([*job.overrides, f"variant='{variant}'"]) if variant else job
            for job, variant in zip(jobs, variants(jobs), strict=True)
        ]
        if self.session.takes_sweeps(self.config.task):
            if "repeats" in self.config:
                jobs += [self.compose(overrides) for overrides in repetitions(jobs, self.config.repeats)]
            jobs = select_jobs(jobs, self.config.only)
        if self.config.task == "list":
            print_jobs(jobs)
            return []
        rounds = self.session.direct(self.config, jobs, self.compose)
        try:
            batch = next(rounds)
            while True:
                batch = rounds.send(self._run(batch))
        except StopIteration as end:
            results: list[object] = end.value
        self.session.finish(self.config, results)
        return results

    def _run(self, jobs: list[Job]) -> list[object]:
        """Run jobs and return their results in order."""
        assert self.launcher is not None
        size = self.max_batch_size or max(1, len(jobs))
        returns: list[object] = []
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            self.session.position = (start + 1, len(jobs)) if len(batch) == 1 else None
            for job in self.launcher.launch([job.overrides for job in batch], initial_job_idx=start):
                returns.append(job.return_value)  # raises the job's exception, if any
        return returns

    def compose(self, overrides: Sequence[str]) -> Job:
        """Return a job with its config, equal to Hydra's own.

        Config files are composed once for each choice of files. Plain values are then set on a copy. The copy lacks
        the node `hydra`, which is large and not needed here.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader: Any = self.hydra_context.config_loader
        new = [text for text in overrides if text not in self.parsed]
        for override in OverridesParser.create(config_loader=loader).parse_overrides(new) if new else []:
            self.parsed[str(override.input_line)] = override, loader.repository.group_exists(override.key_or_group)
        values = [self.parsed[text][0] for text in overrides if not self.parsed[text][1]]
        files = tuple(text for text in overrides if self.parsed[text][1])
        if files not in self.composed:
            self.composed[files] = loader.load_sweep_config(self.config, list(files))
            with open_dict(self.composed[files]):
                del self.composed[files]["hydra"]
        config = copy.deepcopy(self.composed[files])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        require_choices(config)
        return Job(list(overrides), config)
