"""Settings of task=verdict for an experiment on mode collapse. Main entry: `CollapseSpec`."""

from __future__ import annotations

from dataclasses import dataclass

from kat.collapse.measures import DISTINCT_GOOD, ENTROPY, MEASURES, SIMILARITY, AnswerRules
from kat.collapse.runs import BASELINE, CONTROLS
from kat.collapse.table import ExperimentRuns, RowKey
from latentwire.harness.errors import UserError


@dataclass
class CollapseSpec:
    """What the verdict is about, and its limits, fixed before the runs."""

    arm: str
    measure: str | None
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
        name = self.measure or (ENTROPY if runs.has((ENTROPY, "all")) else DISTINCT_GOOD)
        usable = [each for each, measure in MEASURES.items()
                  if measure.direction and each != SIMILARITY and runs.has((each, "all"))]  # fmt: skip
        if name not in usable:
            raise UserError(f"collapse.measure={name}: must be a measure of these runs with a direction; one of "
                            f"{', '.join(usable)}")  # fmt: skip
        return name, "all"
