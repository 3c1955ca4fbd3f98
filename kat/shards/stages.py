"""Stages of a large computation, whose units several processes share. Main entry: `Stages`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.harness.progress import Progress
from latentwire.harness.shard_files import ShardFolder
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

    def run(self, stage: str, names: Sequence[str], work: Callable[[str], None]) -> None:
        """Do the unfinished units of a stage with all processes that run it, and return when all are finished.

        Args:
            stage: Name of the stage.
            names: Names of its units.
            work: Does a unit: saves it in `files(stage)`.
        """
        files = self.files(stage)
        missing = [name for name in names if not files.is_finished(name)]
        if not missing:
            return
        with Progress(f"density: {stage}", len(missing)) as progress:

            def done(name: str) -> bool:
                return (files.folder / f"{name}.json").is_file() and files.is_finished(name)

            def do(name: str) -> None:
                work(name)
                progress.advance(1, f"{name} done")

            work_through(files.folder, missing, done, do)

    def are_finished(self, stage: str, names: Sequence[str]) -> bool:
        """Return whether all units of a stage are finished."""
        files = self.files(stage)
        return all((files.folder / f"{name}.json").is_file() and files.is_finished(name) for name in names)

    def remove(self, stage: str) -> None:
        """Remove the results of a stage that no later stage needs."""
        shutil.rmtree(self.folder / stage, ignore_errors=True)
