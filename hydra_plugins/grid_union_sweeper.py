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
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from latentwire.harness.app import JobFunction
from latentwire.harness.grids import Job, expand, factors, print_jobs, repetitions, select_jobs, variants
from latentwire.harness.plugins import require_choices
from latentwire.harness.worker_counts import require_one_number, set_workers


@dataclass
class GridUnionSweeperConf:
    """The sweeper has no settings of its own."""

    _target_: str = "hydra_plugins.grid_union_sweeper.GridUnionSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid_union", node=GridUnionSweeperConf, provider="latentwire")


class GridUnionSweeper(BasicSweeper):
    """Runs a union of grids. Without a preset, it runs the grid of the command line."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the overrides that choose files
        self.parsed: dict[str, tuple[Override, bool]] = {}  # each override, and whether it chooses a file

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over the session of the command, in which the jobs and the end of the sweep run."""
        assert isinstance(task_function, JobFunction), "this sweeper runs in a program that launch() started"
        self.session = task_function.session
        self.session.sweeping = True
        self.session.workers = set_workers(config, takes_workers=self.session.task(config).takes_workers)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

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
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        if not isinstance(self.launcher, BasicLauncher):
            return self._run_in_workers(jobs)
        returns: list[object] = []
        for start, job in enumerate(jobs):
            self.session.position = (start + 1, len(jobs))
            (returned,) = self.launcher.launch([job.overrides], initial_job_idx=start)
            returns.append(returned.return_value)  # raises the job's exception, if any
        return returns

    def _run_in_workers(self, jobs: list[Job]) -> list[object]:
        """Run jobs in the launcher's workers, and return their results in order."""
        from latentwire.harness.launching import launch_in_workers  # imports torch, which other commands do not need

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        require_one_number([job.config.workers for job in jobs])
        count, copies = len(jobs), self.session.workers
        divisible = bool(self.session.task(self.config).divides_itself)
        more = ["workers=1"] if divisible else []  # a worker starts no others
        jobs = [self.compose([*job.overrides, *more]) for job in jobs]  # a round adds overrides, such as num_examples
        if divisible and copies > 1 and all(self.session.divides(job.config) for job in jobs):
            jobs = [self._begun(job) for job in jobs] * copies  # each worker gets a copy of every job
        results = launch_in_workers(self.launcher, self.hydra_context, self.config, self.session, jobs)
        return results[:count]

    def _begun(self, job: Job) -> Job:
        """Return a job whose work several workers divide. What force=true replaces is removed here, once."""
        if not job.config.force:
            return job
        self.session.start_anew(job.config)
        return self.compose([*job.overrides, "force=false"])

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
