"""W&B or nothing: finished results, and the metrics of a training run. A tracker that fails never stops a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process, log

Table = tuple[list[str], list[list[Any]]]  # columns and rows of plain values


class Tracker(Protocol):
    """Where finished results are reported to."""

    def log_result(self, result: dict[str, Any]) -> None:
        """Report one finished configuration."""

    def log_summary(self, summary: dict[str, Any], tables: dict[str, Table], figures: Sequence[Path]) -> None:
        """Report a finished sweep with its tables, by name, and its figures, PNG files."""


class NoTracker:
    """Reports to nobody."""

    def log_result(self, result: dict[str, Any]) -> None:
        """Do nothing."""

    def log_summary(self, summary: dict[str, Any], tables: dict[str, Table], figures: Sequence[Path]) -> None:
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
            key=f"{result['name']}/{result['config_hash']}",
            job_type=result["family"],
            tags=[result["family"], result["source"]],
            config=result["config"],
            summary={**scores, "status": result["status"], "error": result.get("error", "")},
        )

    def log_summary(self, summary: dict[str, Any], tables: dict[str, Table], figures: Sequence[Path]) -> None:
        """Report the sweep's tables, counts and figures, and a bar chart for each group of the ranking.

        W&B's bar chart draws no intervals: they stand in the chart's table and in the figures.
        """
        counts = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        name = f"{self.group} summary"
        self._run(name=name, key=name, job_type="summary", tags=[], config={}, summary=counts, tables=tables,
                  figures=figures)  # fmt: skip

    def _run(
        self,
        name: str,
        key: str,
        job_type: str,
        tags: list[str],
        config: dict[str, Any],
        summary: dict[str, Any],
        tables: dict[str, Table] | None = None,
        figures: Sequence[Path] = (),
    ) -> None:
        if self.broken or not is_main_process():
            return
        try:
            import wandb

            with _init(
                self.folder,
                key,
                project=self.project,
                entity=self.entity,
                group=self.group,
                job_type=job_type,
                name=name,
                tags=[*self.tags, *tags],
                config=config,
            ) as run:
                run.summary.update(summary)
                if tables:
                    logged: dict[str, Any] = {
                        name: wandb.Table(columns=list(columns), data=rows) for name, (columns, rows) in tables.items()
                    }
                    logged |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
                    run.log(logged | _bars(*tables["ranking"]))
        except Exception as error:  # a tracker never stops a run; whatever it raised is shown, once
            self.broken = True
            log(f"warning: W&B failed and is off for the rest of this run ({type(error).__name__}: {error})")


def _bars(columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    """Return a bar chart of F1 for each group of a ranking, over a table that has its intervals too.

    Args:
        columns: Of the ranking; group, name, f1, f1_low and f1_high are among them.
        rows: Of the ranking.
    """
    import wandb

    shown = ["name", "f1", "f1_low", "f1_high"]
    where = [columns.index(column) for column in ("group", *shown)]
    bars: dict[str, list[list[Any]]] = {}
    for row in rows:
        group, *bar = (row[place] for place in where)
        bars.setdefault(str(group), []).append(bar)
    charts = {}
    for group, data in bars.items():
        table = wandb.Table(columns=list(shown), data=data)
        charts[f"bars/{group}"] = wandb.plot.bar(table, "name", "f1", title=f"F1, {group}")
    return charts


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


def _init(folder: Path, key: str, **settings: Any) -> Any:
    """Open a W&B run below `folder`; the same key in the same folder is the same run. Offline without a login."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        id=hashlib.sha256(f"{folder.resolve()}/{key}".encode()).hexdigest()[:16],
        resume="allow",
        dir=str(folder),
        mode=mode,
        settings=wandb.Settings(silent=True),
        **settings,
    )


class TrainingRun:
    """Where a training loop reports to while it runs: nobody."""

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Report the numbers of a step."""

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Report a distribution."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Report rows of plain values."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Report what came out, and end."""


class WandbTrainingRun(TrainingRun):
    """One W&B run for one training run, which a resumed run goes on with; offline below `folder` without a login."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], **settings: Any) -> None:
        self.broken = not is_main_process()
        self.run: Any = None
        self._try(lambda: self._open(folder, name, config, settings))

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Report the numbers of a step."""
        self._try(lambda: self.run.log({"step": step, **numbers}))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Report a distribution, (N,) numbers."""

        def report() -> None:
            import wandb

            self.run.log({"step": step, name: wandb.Histogram(list(values))})

        self._try(report)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Report rows of plain values."""

        def report() -> None:
            import wandb

            self.run.log({"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._try(report)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Report what came out, and end."""
        self._try(lambda: self.run.summary.update(dict(summary)))
        self._try(lambda: self.run.finish())

    def _open(self, folder: Path, name: str, config: dict[str, Any], settings: dict[str, Any]) -> None:
        self.run = _init(folder, name, name=name, config=config, **settings)
        # A resumed run repeats the steps after its checkpoint; with an axis of its own they fall on one another.
        self.run.define_metric("*", step_metric="step")

    def _try(self, report: Callable[[], Any]) -> None:
        if self.broken:
            return
        try:
            report()
        except Exception as error:  # a tracker never stops a run; whatever it raised is shown, once
            self.broken = True
            log(f"warning: W&B failed and is off for the rest of this run ({type(error).__name__}: {error})")


def start_run(tracker: Mapping[str, Any], folder: Path, group: str, name: str, config: dict[str, Any]) -> TrainingRun:
    """Return where a training run reports to.

    Args:
        tracker: The config's node `tracker`: name, and for W&B project, entity and tags.
        folder: Of the run.
        group: Of runs that belong together, the task.
        name: Of the run.
        config: Resolved, as plain values.

    Raises:
        UserError: An unknown tracker.
    """
    if tracker["name"] == "none":
        return TrainingRun()
    if tracker["name"] == "wandb":
        settings = {key: tracker[key] for key in ("project", "entity")}
        return WandbTrainingRun(
            folder, name, config, group=group, job_type=group, tags=list(tracker["tags"]), **settings
        )
    raise UserError(f"tracker={tracker['name']}: unknown; use none or wandb")
