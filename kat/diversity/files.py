"""Read a diversity.json, also one of an earlier format. Main entry: `read_diversity()`."""

from __future__ import annotations

from pathlib import Path

from kat.diversity.metrics import METRICS, metric_records
from kat.diversity.records import DiversityResult
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, read_json
from latentwire.records import checked

REMEDY = "make it again with task=diversity and force=true"


def read_diversity(path: Path) -> DiversityResult:
    """Return the report in a diversity.json. A report of format 1 gets the descriptions of its metrics.

    Raises:
        UserError: The file is not a report of task=diversity, has a later format, or an unknown metric.
    """
    content = read_json(path)
    if isinstance(content, dict) and "format" not in content and "comparisons" in content:
        try:
            content = _upgraded(content, path)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
    return checked(DiversityResult, content, path, REMEDY)


def _upgraded(content: JsonObject, path: Path) -> JsonObject:
    """Return a report of format 1 in the current format."""
    comparisons = _objects(content, "comparisons")
    names = {str(row["metric"]) for comparison in comparisons for row in _objects(comparison, "rows")}
    if unknown := sorted(names - set(METRICS)):
        raise UserError(f"{path}: has the metric {unknown[0]}, which this version does not know; {REMEDY}")
    counts = ("em_dashes", "not_just_but")
    checkpoints = [
        {**{key: value for key, value in checkpoint.items() if key not in counts},
         "totals": {name: checkpoint[name] for name in counts if name in checkpoint}}
        for checkpoint in (_objects(content, "checkpoints") if "checkpoints" in content else [])
    ]  # fmt: skip
    metrics = {name: metric for name, metric in metric_records().items() if name in names}
    return {**content, "format": 1, "checkpoints": checkpoints, "metrics": metrics}


def _objects(content: JsonObject, name: str) -> list[JsonObject]:
    """Return a field that must be a list of objects."""
    value = content[name]
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise TypeError(f"{name} is not a list of objects")
    return value
