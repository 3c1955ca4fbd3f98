"""Report results and training metrics to W&B, or to no tracker. Main entries: `make_tracker()`, `start_run()`.

A tracker that fails never stops a run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import JsonObject
from latentwire.harness.typed_config import typed

TRACKERS = ("none", "wandb")
Table = tuple[list[str], list[list[object]]]  # columns, and rows of plain values


@dataclass
class TrackerSpec:
    """Settings of the tracker; the `tracker` node of the config. Only W&B has project, entity and tags."""

    name: str  # one of TRACKERS
    project: str = ""
    entity: str | None = None  # None: the default of the login
    tags: list[str] = field(default_factory=list)  # of every run


class Tracker(Protocol):
    """A receiver of finished results."""

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Report the result of one finished configuration.

        Args:
            result: Result with name, config_hash, family, source, status and config, and its scores if it has any.
        """

    def log_summary(
        self, summary: Mapping[str, object], tables: Mapping[str, Table], figures: Sequence[Path], label: str
    ) -> None:
        """Report a finished sweep.

        Args:
            summary: Counts and other facts of the sweep.
            tables: Tables of the sweep, by name. The ranking has the columns group, name, score, score_low and
                score_high.
            figures: Paths of PNG files.
            label: Label of the score in the ranking.
        """


class NoTracker:
    """A tracker that reports nothing."""

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_summary(
        self, summary: Mapping[str, object], tables: Mapping[str, Table], figures: Sequence[Path], label: str
    ) -> None:
        """Do nothing."""


class _Wandb:
    """W&B until it fails: the first failure is a warning, and later reports are dropped."""

    broken = False

    def _try(self, report: Callable[[], object]) -> None:
        if self.broken:
            return
        try:
            report()
        except Exception as error:  # a tracker never stops a run
            self.broken = True
            log(f"warning: W&B failed and is off for the rest of this run ({type(error).__name__}: {error})")


@dataclass(frozen=True)
class _WandbRun:
    """What W&B is to call a run: `key` decides whether it is the same run as an earlier one."""

    name: str
    key: str
    job_type: str
    tags: list[str] = field(default_factory=list)
    config: Mapping[str, object] = field(default_factory=dict)


class WandbTracker(_Wandb):
    """One W&B run per configuration, grouped by sweep, and one run for the summary of the sweep.

    Without a login (an API key in the environment or the netrc file), the runs are written offline below `folder`.
    `wandb sync` sends them later. WANDB_MODE is respected.
    """

    def __init__(self, folder: Path, group: str, project: str, entity: str | None, tags: list[str]) -> None:
        self.folder, self.group, self.project, self.entity, self.tags = folder, group, project, entity, tags

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Report the resolved config, every score with its interval, and the numbers of a finished configuration."""
        scores = {
            key: value for key, value in result.items() if isinstance(value, int | float) or key.endswith("_interval")
        }
        for name, score in result.get("scores", {}).items():
            scores |= {name: score["mean"], f"{name}_interval": score["interval"]}
        run = _WandbRun(
            name=result["name"],
            key=f"{result['name']}/{result['config_hash']}",
            job_type=result["family"],
            tags=[result["family"], result["source"]],
            config=result["config"],
        )
        self._report(run, {**scores, "status": result["status"], "error": result.get("error", "")}, dict)

    def log_summary(
        self, summary: Mapping[str, object], tables: Mapping[str, Table], figures: Sequence[Path], label: str
    ) -> None:
        """Report the tables, counts and figures of a sweep, and a bar chart for each group of the ranking.

        W&B's bar chart draws no intervals. The chart's table and the figures have them.
        """

        def media() -> dict[str, object]:
            import wandb

            found: dict[str, object] = {
                name: wandb.Table(columns=list(columns), data=rows) for name, (columns, rows) in tables.items()
            }
            found |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
            return found | _bars(*tables["ranking"], label)

        counts = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        name = f"{self.group} summary"
        self._report(_WandbRun(name=name, key=name, job_type="summary"), counts, media)

    def _report(self, about: _WandbRun, summary: Mapping[str, object], media: Callable[[], dict[str, object]]) -> None:
        """Open a run, set its summary, and log what `media` returns; in the main process."""

        def report() -> None:
            with _init(
                self.folder,
                about.key,
                project=self.project,
                entity=self.entity,
                group=self.group,
                job_type=about.job_type,
                name=about.name,
                tags=[*self.tags, *about.tags],
                config=about.config,
            ) as run:
                run.summary.update(summary)
                if logged := media():
                    run.log(logged)

        if is_main_process():
            self._try(report)


def _bars(columns: list[str], rows: list[list[object]], label: str) -> dict[str, object]:
    """Return a bar chart of the score for each group of a ranking. The chart's table also has the intervals.

    A row that was chosen among several has its cross-fit score.

    Args:
        columns: Column names of the ranking: group, name, score and cross_fit, both with _low and _high, and others.
        rows: Rows of the ranking.
        label: Label of the score.
    """
    import wandb

    bars: dict[str, list[list[object]]] = {}
    for row in rows:
        cell = dict(zip(columns, row, strict=True))
        shown = "score" if cell["cross_fit"] is None else "cross_fit"
        bar = [cell["name"], cell[shown], cell[f"{shown}_low"], cell[f"{shown}_high"]]
        bars.setdefault(str(cell["group"]), []).append(bar)
    charts: dict[str, object] = {}
    for group, data in bars.items():
        table = wandb.Table(columns=["name", label, "low", "high"], data=data)
        charts[f"bars/{group}"] = wandb.plot.bar(table, "name", label, title=f"{label}, {group}")
    return charts


def make_tracker(spec: TrackerSpec, folder: Path, group: str) -> Tracker:
    """Return the tracker of a sweep.

    Args:
        spec: Settings of the tracker.
        folder: Folder of the sweep.
        group: W&B group of its runs: the name of the sweep.

    Raises:
        UserError: The name is unknown.
    """
    _check_name(spec.name)
    if spec.name == "none":
        return NoTracker()
    return WandbTracker(folder, group, spec.project, spec.entity, spec.tags)


def _check_name(name: str) -> None:
    if name not in TRACKERS:
        raise UserError(f"tracker={name}: unknown; use {' or '.join(TRACKERS)}")


def _init(folder: Path, key: str, **settings: Any) -> Any:
    """Open a W&B run below `folder`. The same key in the same folder continues the same W&B run."""
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
    """A receiver of training metrics that reports nothing."""

    def log(self, step: int, numbers: Mapping[str, object]) -> None:
        """Report the metrics of a step."""

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Report a distribution of numbers."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Report a table: column names and rows of plain values."""

    def close(self, summary: Mapping[str, object]) -> None:
        """Report the summary and close the run."""


class WandbTrainingRun(_Wandb, TrainingRun):
    """One W&B run for one training run. A resumed training run continues it. Offline below `folder` without a login."""

    def __init__(self, folder: Path, name: str, config: JsonObject, group: str, spec: TrackerSpec) -> None:
        self.broken = not is_main_process()
        self.run: Any = None
        self._try(lambda: self._open(folder, name, config, group, spec))

    def log(self, step: int, numbers: Mapping[str, object]) -> None:
        """Report the metrics of a step."""
        self._try(lambda: self.run.log({"step": step, **numbers}))

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Report a distribution of numbers."""

        def report() -> None:
            import wandb

            self.run.log({"step": step, name: wandb.Histogram(list(values))})

        self._try(report)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Report a table: column names and rows of plain values."""

        def report() -> None:
            import wandb

            self.run.log({"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._try(report)

    def close(self, summary: Mapping[str, object]) -> None:
        """Report the summary and close the run."""
        self._try(lambda: self.run.summary.update(dict(summary)))
        self._try(lambda: self.run.finish())

    def _open(self, folder: Path, name: str, config: JsonObject, group: str, spec: TrackerSpec) -> None:
        self.run = _init(
            folder, name, name=name, config=config, group=group, job_type=group, project=spec.project,
            entity=spec.entity, tags=spec.tags,
        )  # fmt: skip
        # A resumed run repeats the steps after its checkpoint. With the axis `step` they overlap in the charts.
        self.run.define_metric("*", step_metric="step")


def start_run(tracker: Mapping[str, object], folder: Path, group: str, name: str, config: JsonObject) -> TrainingRun:
    """Return the receiver of the metrics of a training run.

    Args:
        tracker: Config node `tracker`, see `TrackerSpec`.
        folder: Folder of the training run.
        group: W&B group of related runs: the name of the task.
        name: Name of the training run.
        config: Resolved config, as plain values.

    Raises:
        UserError: The tracker is unknown, or a setting has the wrong type.
    """
    spec = typed(TrackerSpec, dict(tracker), "tracker.")
    _check_name(spec.name)
    if spec.name == "none":
        return TrainingRun()
    return WandbTrainingRun(folder, name, config, group, spec)
