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
from kat.collapse.settings import CollapseSpec
from kat.diversity.records import VerdictResult
from kat.diversity.verdict_task import verdict_of_reports
from kat.pipeline.artifacts import output_folder, task
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import write_json, write_text_atomically
from latentwire.harness.typed_config import typed


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
    spec = typed(CollapseSpec, cfg.collapse, "collapse.")
    if bool(cfg.folder) == bool(cfg.reports):
        given = "both are given" if cfg.folder else "neither is given"
        raise UserError(f"folder, reports: {given}; write folder=FOLDER for the runs of an experiment, or "
                        "'reports=[FOLDER,FOLDER]' for reports of task=diversity")  # fmt: skip
    if not accelerator_state(cfg.device).is_main_process:
        return None
    return verdict_of_folder(cfg, spec) if cfg.folder else verdict_of_reports(cfg)


def verdict_of_folder(cfg: DictConfig, spec: CollapseSpec) -> CollapseResult:
    """Give the verdict on the runs of cfg.folder, and write the page.

    Args:
        cfg: The config: folder, out and seed.
        spec: The settings of the verdict.

    Raises:
        UserError: The runs cannot be compared.
    """
    folder = Path(str(cfg.folder)).expanduser()
    experiment = read_experiment(folder, spec.arm, spec.rules, spec.control_seeds)
    result = collapse_result(str(cfg.folder), experiment, spec, cfg.seed)
    out = output_folder(cfg, folder)
    draw_figures(result, out / FIGURES)
    write_text_atomically(out / "verdict.md", verdict_page_markdown(result))
    write_text_atomically(out / "verdict.html", verdict_page_html(result))
    write_json(out / "verdict.json", result)
    print(result["sentence"])
    log(f"verdict: {out / 'verdict.html'}, with verdict.md, verdict.json and the figures in the same folder")
    return result
