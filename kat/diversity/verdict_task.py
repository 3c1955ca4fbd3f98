"""The task verdict for the diversity reports of several pairs of runs. Main entry: `verdict_of_reports()`."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from kat.diversity.files import read_diversity
from kat.diversity.plots import plot_differences
from kat.diversity.records import VerdictResult
from kat.diversity.verdict import arms_of, pool, require_alike, verdict_markdown, verdict_summary
from kat.pipeline.artifacts import output_folder
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import write_json, write_text_atomically
from latentwire.records import FORMAT

FILE = "diversity.json"


def verdict_of_reports(cfg: DictConfig) -> VerdictResult:
    """Combine the comparisons of cfg.reports, write verdict.json, verdict.md and the plots, and return verdict.json.

    Raises:
        UserError: A report does not exist, or the reports do not make the same comparison.
    """
    if not isinstance(cfg.reports, ListConfig):
        raise UserError(f"reports={cfg.reports}: expected a list; write 'reports=[FOLDER,FOLDER]'")
    reports = {str(path.parent): read_diversity(path) for path in _files([str(entry) for entry in cfg.reports])}
    require_alike(reports)
    one = next(iter(reports.values()))
    arms, metrics = arms_of(one), one["metrics"]
    comparisons = pool(list(reports.values()))
    result: VerdictResult = {
        "format": FORMAT,
        "arms": arms,
        "reports": list(reports),
        "warnings": [f"{name}: {warning}" for name, report in reports.items() for warning in report["warnings"]],
        "reading": verdict_summary(comparisons, metrics, len(reports)),
        "metrics": metrics,
        "comparisons": comparisons,
    }
    out = output_folder(cfg, Path("outputs", "verdict", "_vs_".join(arms)))
    for arm in arms[1:]:
        pair = [each for each in comparisons if each["second"] == arm]
        name = "verdict.png" if len(arms) == 2 else f"verdict_{arm}.png"
        plot_differences(pair, metrics, out / name, f"{len(reports)} pairs of runs")
    write_text_atomically(out / "verdict.md", verdict_markdown(result))
    write_json(out / "verdict.json", result)
    for paragraph in result["reading"]:
        print(paragraph)
    log(f"verdict: {out / 'verdict.md'}, with verdict.json and the plots in the same folder")
    return result


def _files(entries: Sequence[str]) -> list[Path]:
    """Return the report files of folders or shell patterns of folders, each file once."""
    found: list[Path] = []
    for entry in entries:
        pattern = str(Path(entry).expanduser())
        folders = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))  # noqa: PTH207 (Path.glob rejects absolute patterns)
        files = [path for folder in folders if (path := Path(folder, FILE)).is_file()]
        if not files:
            raise UserError(f"reports: {entry}: no such folder with a {FILE}; make it with run.py task=diversity")
        found += [path for path in files if path not in found]
    return found
