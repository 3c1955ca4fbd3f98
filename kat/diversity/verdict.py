"""Comparisons of several pairs of runs combined, with intervals over the runs. Main entry: `pool()`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kat.diversity.records import ArmRow, DiversityResult, PooledComparison, PooledRow, VerdictResult
from kat.diversity.report import (
    GROUPS,
    Metrics,
    change_in_diversity,
    described,
    difference_text,
    excludes_0,
    heading,
    is_shown,
    joined,
    p_holm_text,
    p_text,
    section,
)
from latentwire.harness.errors import UserError
from latentwire.stats.comparison import corrected
from latentwire.stats.intervals import t_quantile
from latentwire.stats.seeds import mean_over_seeds

FEW = 10  # runs of each arm; the report points out smaller numbers


def arms_of(report: DiversityResult) -> list[str]:
    """Return the arms of a report, which are the labels of its checkpoints without the seed."""
    return [re.sub(r"_seed\d+", "", checkpoint["label"]) for checkpoint in report["checkpoints"]]


def require_alike(reports: Mapping[str, DiversityResult]) -> None:
    """Check that reports make the same comparison for different runs.

    Args:
        reports: The reports by name.

    Raises:
        UserError: There are fewer than two reports, their arms, prompts or settings differ, or a run occurs twice.
    """
    if len(reports) < 2:
        raise UserError(
            f"reports: {len(reports)} given; an interval over runs needs the reports of at least 2 pairs of runs"
        )
    (first, one), *others = reports.items()
    for name, other in others:
        if arms_of(one) != arms_of(other):
            raise UserError(f"reports: {first} compares {joined(arms_of(one))}, {name} {joined(arms_of(other))}; give "
                            "reports of the same arms in the same order")  # fmt: skip
        if (measured := _measured(one)) != _measured(other):
            names = [joined(sorted(dict(each))) for each in (measured, _measured(other))]
            how = f"has {names[0]}, the other {names[1]}" if names[0] != names[1] else "has other code or another order"
            raise UserError(f"reports: {first} and {name} have different metrics: one {how}; run task=diversity on all "
                            "pairs with the same plugins")  # fmt: skip
        a, b = _settings(one), _settings(other)
        if differing := [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]:
            key = differing[0]
            raise UserError(f"reports: {first} and {name} have different settings: {key} is {a.get(key)} and "
                            f"{b.get(key)}; run task=diversity on all pairs with the same settings")  # fmt: skip
    seen: dict[str, str] = {}
    for name, report in reports.items():
        for checkpoint in report["checkpoints"]:
            if before := seen.get(checkpoint["weights"]):
                raise UserError(f"reports: {checkpoint['label']} of {name} has the weights of {before}, so one run "
                                "would count as two; give pairs without a common run")  # fmt: skip
        seen |= {checkpoint["weights"]: f"{checkpoint['label']} of {name}" for checkpoint in report["checkpoints"]}


def pool(reports: Sequence[DiversityResult]) -> list[PooledComparison]:
    """Return every comparison over the runs: mean differences with intervals by `mean_over_seeds`.

    Args:
        reports: At least two reports that pass `require_alike`.

    Returns:
        Comparisons in the form of the reports, with arms in place of checkpoints. Each metric has the means of both
        arms (`first`, `second`), the mean `difference`, its 95% `interval`, `p_value` and `p_holm`. Holm's correction
        covers the metrics of a table. `runs` are the differences of the single pairs.
    """
    arms = arms_of(reports[0])
    arm_of = {checkpoint["label"]: arm for checkpoint, arm in zip(reports[0]["checkpoints"], arms, strict=True)}
    found: list[PooledComparison] = []
    for by_run in zip(*(report["comparisons"] for report in reports), strict=True):
        one = by_run[0]
        found.append(
            {
                "first": arm_of[one["first"]],
                "second": arm_of[one["second"]],
                "group": one["group"],
                "form": one["form"],
                "prompts": one["prompts"],
                "rows": _pooled_rows([comparison["rows"] for comparison in by_run]),
            }
        )
    return found


def _pooled_rows(tables: Sequence[Sequence[ArmRow]]) -> list[PooledRow]:
    """Return the rows of the same comparison in several runs as one table."""
    rows = list(zip(*tables, strict=True))  # by metric, then by run
    differences = np.array([[row["difference"] for row in runs] for runs in rows])  # (S, n)
    return [
        {
            "level": runs[0]["level"],
            "metric": runs[0]["metric"],
            "first": float(np.mean([row["first"]["value"] for row in runs])),
            "second": float(np.mean([row["second"]["value"] for row in runs])),
            "difference": over.difference,
            "interval": list(over.interval),
            "p_value": over.p_value,
            "p_holm": over.p_holm,
            "runs": [row["difference"] for row in runs],
        }
        for runs, over in zip(rows, corrected(mean_over_seeds(differences)), strict=True)
    ]


def verdict_summary(comparisons: Sequence[PooledComparison], metrics: Metrics, count: int) -> list[str]:
    """Return what the pairs of runs show and do not show, one paragraph for each pair of arms.

    Args:
        comparisons: The comparisons from `pool`.
        metrics: The descriptions of the metrics.
        count: The number of pairs of runs.
    """
    paragraphs = []
    for first, second in dict.fromkeys((each["first"], each["second"]) for each in comparisons):
        arms = (first, second, "matched")
        matched = [each for each in comparisons if (each["first"], each["second"], each["form"]) == arms]
        sentences = [f"{count} pairs of runs, {second} against {first}, lengths matched."]
        sentences += [_differences(each, metrics, count) for each in matched]
        if count < FEW:
            sentences.append(
                f"{count} runs of each arm are few: the interval extends about {t_quantile(0.95, count - 1):.1f} "
                "standard errors to each side. Only differences far above the variation between seeds can be shown, "
                "and absence of evidence is not evidence of absence."
            )
        sentences.append("All runs answered the same prompts with the same random numbers, so these intervals do not "
                         "cover the variation between prompts.")  # fmt: skip
        paragraphs.append(" ".join(sentences))
    return paragraphs


def _differences(comparison: PooledComparison, metrics: Metrics, count: int) -> str:
    """Return sentences with the metrics in which two arms differ, with and without Holm's correction."""
    rows = comparison["rows"]

    def listed(chosen: Sequence[PooledRow]) -> str:
        notes = {1: ", more diverse", -1: ", less diverse", 0: ""}
        return joined(described(row, metrics, notes[change_in_diversity(row, metrics)]) for row in chosen)

    corrected_rows = [row for row in rows if is_shown(row)]
    uncorrected_rows = [row for row in rows if not is_shown(row) and excludes_0(row)]
    group, n = GROUPS[comparison["group"]], comparison["prompts"]
    scope = f"Over all {n} prompts" if comparison["group"] == "all" else f"Over the {n} {group} prompts"
    finding = "no difference is shown"
    if corrected_rows:
        finding = f"a difference is shown in {listed(corrected_rows)}"
    sentence = f"{scope} {finding} (Holm's correction over {len(rows)} metrics)"
    if uncorrected_rows:
        more, verb = "more " if corrected_rows else "", "excludes" if len(uncorrected_rows) == 1 else "exclude"
        sentence += f". Without the correction, {len(uncorrected_rows)} {more}of the intervals {verb} 0, about "
        sentence += f"{len(rows) / 20:.1f} expected by chance: {listed(uncorrected_rows)}"
    same_sign = sum(abs(sum(map(np.sign, row["runs"]))) == count for row in rows)
    return f"{sentence}. In {same_sign} of the metrics all {count} differences have the same sign."


def verdict_markdown(result: VerdictResult) -> str:
    """Return the report of task=verdict.

    Args:
        result: The content of verdict.json.
    """
    first, *others = result["arms"]
    lines = [
        f"# {joined(others)} against {first}, over {len(result['reports'])} pairs of runs",
        "",
        *(f"**Warning:** {warning}.\n" for warning in result["warnings"]),
        *(f"{paragraph}\n" for paragraph in result["reading"]),
    ]
    for comparison in result["comparisons"]:
        lines += [*_comparison(comparison, result["metrics"]), ""]
    lines += [
        "## Method",
        "",
        "Each pair of runs gives one difference for each metric, from its diversity.json. Brackets contain the 95% "
        "interval of the mean difference by Student's t with n - 1 degrees of freedom, with half of the observed "
        "skewness corrected (Hall 1992). It assumes independent pairs. p-values are corrected by Holm over the metrics "
        "of a table; a star marks values below .05. If all differences of a metric are equal, p is 1.",
        "",
        *(f"- {name}" for name in result["reports"]),
        "",
    ]
    return "\n".join(lines)


def _comparison(comparison: PooledComparison, metrics: Metrics) -> Iterator[str]:
    yield heading(comparison, f"{comparison['prompts']} prompts")
    yield from section(comparison["rows"], metrics, [
        (comparison["first"], lambda row: f"{row['first']:.3f}"),
        (comparison["second"], lambda row: f"{row['second']:.3f}"),
        ("mean difference", difference_text),
        ("run by run", lambda row: ", ".join(f"{value:+.3f}" for value in row["runs"])),
        ("p", lambda row: p_text(row["p_value"])),
        ("p (Holm)", p_holm_text),
    ])  # fmt: skip


def _measured(report: DiversityResult) -> list[tuple[str, str | None]]:
    """Return the names of a report's metrics in order, each with the digest of its plugin."""
    return [(name, metric["source"]) for name, metric in report["metrics"].items()]


def _settings(report: DiversityResult) -> dict[str, object]:
    """Return what must be equal in all reports, by name."""
    parts = {
        "settings": report["settings"],
        "seed": report["seed"],
        "prompts": report["prompts"],
        "embedder": report["embedder"],
        "dtype": report["dtype"],
    }
    return {key: value for name, part in parts.items() for key, value in _flat(name, part)}


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the values of nested settings with their full names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
