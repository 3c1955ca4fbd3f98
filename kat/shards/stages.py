"""Stages of a large computation, whose units several processes share. Main entry: `Stages`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latentwire.harness.progress import Progress
from latentwire.harness.shard_files import FinishedShards, ShardFolder
from latentwire.harness.shared_work import work_through


@dataclass(frozen=True)
class Stages:
    """A folder with one folder for each stage.

    Attributes:
        folder: The folder.
        key: Everything that the results depend on, as a hash.
    """

    folder: Path
    key: str

    def files(self, stage: str) -> ShardFolder:
        """Return the results of a stage."""
        return ShardFolder(self.folder / stage, self.key)

    @cached_property
    def _checks(self) -> dict[str, FinishedShards]:
        return {}

    def _finished(self, stage: str) -> FinishedShards:
        return self._checks.setdefault(stage, FinishedShards(self.files(stage)))

    def run(
        self,
        stage: str,
        names: Sequence[str],
        work: Callable[[str], None],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do the unfinished units of a stage with all processes that run it, and return when all are finished.

        Args:
            stage: Name of the stage.
            names: Names of its units.
            work: Does a unit: saves it in `files(stage)`.
            is_over: Returns whether a later stage is finished, so that other processes may have removed this one.
        """
        check = self._finished(stage)

        def is_finished(name: str) -> bool:
            return check(name) or is_over()

        missing = [name for name in names if not is_finished(name)]
        if not missing:
            return
        with Progress(f"density: {stage}", len(missing)) as progress:

            def do(name: str) -> None:
                work(name)
                progress.advance(1, f"{name} done")

            work_through(self.folder / stage, missing, is_finished, do)

    def are_finished(self, stage: str, names: Sequence[str]) -> bool:
        """Return whether all units of a stage are finished."""
        return all(map(self._finished(stage), names))

    def remove(self, stage: str) -> None:
        """Remove the results of a stage that no later stage needs."""
        shutil.rmtree(self.folder / stage, ignore_errors=True)
