"""W&B or nothing, behind two methods. A tracker that fails warns once and never stops a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

from latentwire.harness.errors import UserError
from latentwire.harness.progress import say, speaks


class Tracker(Protocol):
    """Where finished results are reported to."""

    def log_result(self, result: dict[str, Any]) -> None:
        """Report one finished configuration."""

    def log_summary(self, summary: dict[str, Any], columns: list[str], rows: list[list[Any]]) -> None:
        """Report a finished sweep with its ranked table."""


class NoTracker:
    """Reports to nobody."""

    def log_result(self, result: dict[str, Any]) -> None:
        """Do nothing."""

    def log_summary(self, summary: dict[str, Any], columns: list[str], rows: list[list[Any]]) -> None:
        """Do nothing."""


class WandbTracker:
    """One W&B run a configuration, grouped by sweep, and one more for the sweep's table.

    Without a login (no API key in the environment or the netrc file) the runs are written offline below
    `folder`, from where `wandb sync` sends them. WANDB_MODE is respected.
    """

    def __init__(self, folder: Path, group: str, project: str, entity: str | None, tags: list[str]) -> None:
        self.folder, self.group, self.project, self.entity, self.tags = folder, group, project, entity, tags
        self.broken = False

    def log_result(self, result: dict[str, Any]) -> None:
        """Report one finished configuration: its resolved config, its scores and their intervals."""
        scores = {
            key: value for key, value in result.items() if isinstance(value, int | float) or key.endswith("_interval")
        }
        self._run(
            name=result["name"],
            key=f"{self.folder}/{result['name']}/{result['config_hash']}",
            job_type=result["family"],
            tags=[result["family"], result["source"]],
            config=result["config"],
            summary={**scores, "status": result["status"], "error": result.get("error", "")},
        )

    def log_summary(self, summary: dict[str, Any], columns: list[str], rows: list[list[Any]]) -> None:
        """Report the sweep's ranked table and its counts."""
        counts = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        name = f"{self.group} summary"
        self._run(name=name, key=f"{self.folder}/{name}", job_type="summary", tags=[], config={}, summary=counts,
                  table=(columns, rows))  # fmt: skip

    def _run(
        self,
        name: str,
        key: str,
        job_type: str,
        tags: list[str],
        config: dict[str, Any],
        summary: dict[str, Any],
        table: tuple[list[str], list[list[Any]]] | None = None,
    ) -> None:
        if self.broken or not speaks():
            return
        try:
            import wandb

            mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
            self.folder.mkdir(parents=True, exist_ok=True)
            with wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                job_type=job_type,
                name=name,
                id=hashlib.sha256(key.encode()).hexdigest()[:16],  # the same result again is the same run
                resume="allow",
                tags=[*self.tags, *tags],
                config=config,
                dir=str(self.folder),
                mode=mode,
                settings=wandb.Settings(silent=True),
            ) as run:
                run.summary.update(summary)
                if table is not None:
                    run.log({"ranking": wandb.Table(columns=list(table[0]), data=table[1])})
        except Exception as error:  # a tracker never stops a run; whatever it raised is shown, once
            self.broken = True
            say(f"warning: W&B failed and is off for the rest of this run ({type(error).__name__}: {error})")


def make_tracker(name: str, **settings: Any) -> Tracker:
    """Return the tracker called `name`.

    Raises:
        UserError: An unknown name.
    """
    if name == "none":
        return NoTracker()
    if name == "wandb":
        return WandbTracker(**settings)
    raise UserError(f"tracker={name}: unknown; use none or wandb")
