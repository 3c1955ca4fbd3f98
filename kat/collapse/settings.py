"""What an experiment on mode collapse fixes before its runs. Main entries: `CollapseSpec`, `spec_of_folder()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from kat.collapse.measures import DISTINCT_GOOD, ENTROPY, MEASURES, SIMILARITY, AnswerRules
from kat.collapse.runs import BASELINE, CONTROLS
from kat.collapse.table import ExperimentRuns, RowKey
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.results import JsonObject, read_json
from latentwire.harness.typed_config import plain_values, typed

EXPERIMENT = "experiment.json"  # in the folder of the runs: what was fixed before them
AUTO = "auto"


@dataclass
class CollapseSpec:
    """What the verdict is about, and its limits, fixed before the runs."""

    arm: str
    measure: str
    control_seeds: list[int]
    margin_share: float
    min_collapse: float
    target_share: float
    good_from: float
    same_from: float

    def __post_init__(self) -> None:
        for name in ("margin_share", "min_collapse", "target_share"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"collapse.{name}={getattr(self, name)}: must be above 0 and below 1")
        if self.arm in (BASELINE, *CONTROLS):
            raise UserError(f"collapse.arm={self.arm}: is the baseline or a positive control; name an arm under test")

    @property
    def rules(self) -> AnswerRules:
        """Return what makes completions good and equal."""
        return AnswerRules(self.good_from, self.same_from)

    def primary(self, runs: ExperimentRuns) -> RowKey:
        """Return the deciding measure: the entropy over valid answers if they are known, else distinct-k of good ones.

        Raises:
            UserError: The measure is unknown, has no direction, or the runs do not have it.
        """
        name = self.measure
        if name == AUTO:
            name = ENTROPY if runs.has((ENTROPY, "all")) else DISTINCT_GOOD
        usable = [each for each, measure in MEASURES.items()
                  if measure.direction and each != SIMILARITY and runs.has((each, "all"))]  # fmt: skip
        if name not in usable:
            raise UserError(f"collapse.measure={name}: must be a measure of these runs with a direction; one of "
                            f"{', '.join(usable)}")  # fmt: skip
        return name, "all"


def recorded_in(folder: Path) -> JsonObject | None:
    """Return what an experiment recorded before its runs: collapse, training and seeds; None without a record.

    Raises:
        UserError: The record cannot be read.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        return None
    recorded = read_json(path)
    kinds = (("collapse", dict), ("training", dict), ("seeds", list))
    if not isinstance(recorded, dict) or not all(isinstance(recorded.get(name), kind) for name, kind in kinds):
        raise UserError(f"{path}: lacks collapse, training or seeds; restore the file that the experiment wrote")
    return recorded


def spec_of_folder(given: DictConfig, folder: Path) -> tuple[CollapseSpec, list[str]]:
    """Return the settings of a verdict on the runs in a folder, and warnings about those changed after the runs.

    Args:
        given: The settings under `collapse`. None stands for what the experiment recorded, or without a record for the
            value in conf/collapse/fixed.yaml.
        folder: Folder of the runs.

    Raises:
        UserError: A setting has the wrong type or is out of range, or the record cannot be read.
    """
    known = recorded_in(folder)
    recorded: JsonObject = {} if known is None else cast(JsonObject, known["collapse"])
    chosen = {name: value for name, value in plain_values(given).items() if value is not None}
    default = OmegaConf.to_container(OmegaConf.load(CONF / "collapse" / "fixed.yaml"))
    assert isinstance(default, dict)
    spec = typed(CollapseSpec, {**default, **recorded, **chosen}, "collapse.")
    changed = [
        f"collapse.{name}={value}: the experiment had fixed {recorded[name]} before its runs"
        for name, value in chosen.items()
        if name in recorded and recorded[name] != value
    ]
    planned = [] if known is None else cast(list[int], known["seeds"])
    if len(planned) > 1:
        changed.append(f"planned with {planned[0]} seeds and run with {planned[-1]}: p-values and intervals hold if no "
                       "verdict had a part in this change")  # fmt: skip
    return spec, changed
