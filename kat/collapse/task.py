"""The task verdict, over runs of an experiment on mode collapse or reports of task=diversity. Main entry: `verdict()`.

It reads what is in the folder, so it can be run again at any time.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from kat.collapse.experiment import read_experiment
from kat.collapse.figures import draw_figures
from kat.collapse.markdown import FIGURES, verdict_page_markdown
from kat.collapse.page import verdict_page_html
from kat.collapse.records import CollapseResult
from kat.collapse.result import collapse_result
from kat.collapse.settings import spec_of_folder
from kat.diversity.records import VerdictResult
from kat.diversity.verdict_task import verdict_of_reports
from kat.pipeline.artifacts import output_folder, task
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.ownership import owned
from latentwire.harness.progress import log
from latentwire.harness.results import write_json, write_text_atomically


@task
def verdict(cfg: DictConfig) -> CollapseResult | VerdictResult | None:
    """Give the verdict on the runs of `folder`, or on the reports of task=diversity in `reports`.

    With a folder, write verdict.html, verdict.md, verdict.json and the figures into it, or into `out`.

    Returns:
        The content of verdict.json; None in all processes but the main one.

    Raises:
        UserError: Both or neither of folder and reports is given, a setting is out of range, or the runs or reports
            cannot be compared.
    """
    if bool(cfg.folder) == bool(cfg.reports):
        given = "both are given" if cfg.folder else "neither is given"
        raise UserError(f"folder, reports: {given}; write folder=FOLDER for the runs of an experiment, or "
                        "'reports=[FOLDER,FOLDER]' for reports of task=diversity")  # fmt: skip
    if not accelerator_state(cfg.device).is_main_process:
        return None
    if not cfg.folder:
        return verdict_of_reports(cfg)
    folder = Path(str(cfg.folder)).expanduser()
    return verdict_of_folder(folder, cfg.collapse, cfg.seed, output_folder(cfg, folder))


def verdict_of_folder(folder: Path, settings: DictConfig, seed: int, out: Path) -> CollapseResult:
    """Give the verdict on the runs in a folder, and write the page.

    Args:
        folder: Folder of the runs.
        settings: The settings under `collapse`; None stands for what the experiment fixed before its runs.
        seed: Seed of the resampling.
        out: Folder of the page.

    Raises:
        UserError: A setting is out of range, or the runs cannot be compared.
    """
    spec, changed = spec_of_folder(settings, folder)
    experiment = read_experiment(folder, spec.arm, spec.rules, spec.control_seeds)
    experiment.warnings.extend(changed)
    result = collapse_result(str(folder), experiment, spec, seed)
    with owned(out, "verdict.json", None):
        draw_figures(result, out / FIGURES)
        write_text_atomically(out / "verdict.md", verdict_page_markdown(result))
        write_text_atomically(out / "verdict.html", verdict_page_html(result))
        write_json(out / "verdict.json", result)
    print(result["sentence"])
    log(f"verdict: {out / 'verdict.html'}, with verdict.md, verdict.json and the figures in the same folder")
    return result
