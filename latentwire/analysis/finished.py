"""Finished results with their answers, as the detectors read them. Main entries: `FinishedSweep`, `Answered`."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latentwire.analysis.controls import BASELINE, CLEAN_SOURCE, is_clean
from latentwire.records import ExampleRow, ScoredResult, ShownMetric
from latentwire.stats.answers import normalize_answer
from latentwire.stats.clusters import SampledClusters, Scores

# Inputs are near real embeddings below this relative distance, which noise has at about 10 dB. There the model reads
# them nearly as well as text, so what its answers look like is not the fault of the distance.
NEAR = 0.3


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Answered:
    """A successful result with its answers."""

    result: ScoredResult
    rows: Sequence[ExampleRow]

    @property
    def name(self) -> str:
        """Name of the result."""
        return self.result["name"]

    @cached_property
    def row_of(self) -> dict[str, ExampleRow]:
        """Answers by the id of their example, in order."""
        return {row["id"]: row for row in self.rows}

    @cached_property
    def answers(self) -> dict[str, str]:
        """Answers after the normalization of the scores, by the id of their example."""
        return {row["id"]: normalize_answer(row["prediction"]) for row in self.rows}

    @cached_property
    def references(self) -> list[tuple[str, ...]]:
        """Right answers of each example after the normalization of the scores."""
        return [tuple(normalize_answer(text) for text in row["references"]) for row in self.rows]

    @cached_property
    def changes(self) -> Scores:
        """Relative change by the transform of each example, (N,); NaN where it is not stored."""
        return np.array([row.get("change", np.nan) for row in self.rows])

    @cached_property
    def distance(self) -> float | None:
        """Mean relative distance of the inputs from the real embeddings, or None if it is not stored."""
        distances = [row["distance"] for row in self.rows if "distance" in row]
        return float(np.mean(distances)) if distances else None

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the examples, in order."""
        return list(self.row_of)

    def common(self, other: Answered) -> list[str]:
        """Return the ids of the examples that both answered, in order."""
        return self.ids if self.ids == other.ids else [own for own in self.ids if own in other.row_of]

    def predictions(self, ids: list[str]) -> list[str]:
        """Return the answers to examples, as the model gave them."""
        return self._predictions if ids == self.ids else [self.row_of[own]["prediction"] for own in ids]

    @cached_property
    def _predictions(self) -> list[str]:
        return [row["prediction"] for row in self.row_of.values()]

    def changes_of(self, ids: list[str]) -> Scores:
        """Return the relative change by the transform of examples, (N,); NaN where it is not stored."""
        if ids == self.ids and len(self.ids) == len(self.rows):
            return self.changes
        return np.array([self.row_of[own].get("change", np.nan) for own in ids])

    def passages(self, ids: Sequence[str]) -> SampledClusters:
        """Return examples in clusters by their passage. An answer without a stored passage is its own passage."""
        return SampledClusters([self.row_of[identifier].get("passage", identifier) for identifier in ids])

    def agreement(self, other: Answered) -> float:
        """Return the share of their common examples with equal answers, or 0 without common examples."""
        ids = self.common(other)
        if not ids:
            return 0.0
        equal: int = sum(map(operator.eq, self._answers_to(ids), other._answers_to(ids)))
        return equal / len(ids)

    def _answers_to(self, ids: list[str]) -> Iterable[str]:
        """Return the normalized answers to examples, in order."""
        return self.answers.values() if ids == self.ids else [self.answers[own] for own in ids]

    def is_near(self) -> bool:
        """Return whether the inputs are near real embeddings. Where distances are not stored, only text is near."""
        if self.distance is not None:
            return self.distance < NEAR
        return self.result["source"] == CLEAN_SOURCE and self.result["relative_change"] < NEAR

    def varies(self) -> bool:
        """Return whether the answers vary: at least 5 and a tenth of them differ from the most common one."""
        most = Counter(self.answers.values()).most_common(1)[0][1]
        return len(self.rows) - most >= max(5, 0.1 * len(self.rows))


@dataclass(frozen=True, eq=False)
class FinishedSweep:
    """All successful results of a sweep with their answers."""

    answered: Sequence[Answered]
    metric: ShownMetric

    @cached_property
    def groups(self) -> dict[str, list[Answered]]:
        """Configurations of each source, without controls."""
        found: dict[str, list[Answered]] = {}
        for one in self.answered:
            if one.result["control"] is None:
                found.setdefault(one.result["group"], []).append(one)
        return found

    def control(self, kind: str, one: Answered) -> Answered | None:
        """Return the control of a kind with the settings of a result, or None."""
        same = [other for other in self.answered if other.result["variant"] == one.result["variant"]]
        return next((other for other in same if other.result["control"] == kind), None)

    def clean(self, one: Answered) -> Answered | None:
        """Return the clean control with the settings of a result: a control, or a baseline on text; or None."""
        same = [other for other in self.answered if other.result["variant"] == one.result["variant"]]
        own = next((other for other in same if is_clean(other.result) and _has_passage(other)), None)
        return self.control("clean", one) or own

    def baseline(self, group: str) -> Answered | None:
        """Return the baseline of a source, a configuration or a control, or None."""
        baselines = [one for one in self.answered if one.result["family"] == BASELINE and _has_passage(one)]
        return next((one for one in baselines if one.result["group"] == group), None)

    def scores(self, one: Answered, ids: Sequence[str]) -> Scores:
        """Return the scores of a result on examples by the primary metric, higher is better, (N,)."""
        values = np.array([one.row_of[i]["scores"][self.metric["name"]] for i in ids])
        return values if self.metric["higher_is_better"] else 1 - values


def _has_passage(one: Answered) -> bool:
    """Return whether the prompts of a result have their own passages."""
    return one.result["control"] in (None, "clean", "baseline")
