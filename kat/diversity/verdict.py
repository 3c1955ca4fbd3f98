"""Comparisons of several pairs of runs combined, with intervals over the runs. Main entry: `pool()`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kat.diversity.report import (
    GROUPS,
    change_in_diversity,
    described,
    difference_text,
    excludes_0,
    is_shown,
    joined,
    p_holm_text,
    p_text,
    section,
)
from latentwire.harness.errors import UserError
from latentwire.stats.comparison import corrected
from latentwire.stats.intervals import mean_over_runs, t_quantile

ALIKE = ("settings", "seed", "prompts", "embedder", "dtype")  # entries that must be equal in all reports
FEW = 10  # runs of each arm; the report points out smaller numbers
Report = Mapping[str, Any]  # the content of a diversity.json


def arms_of(report: Report) -> list[str]:
    """Return the arms of a report, which are the labels of its checkpoints without the seed."""
    return [re.sub(r"_seed\d+", "", checkpoint["label"]) for checkpoint in report["checkpoints"]]


def require_alike(reports: Mapping[str, Report]) -> None:
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
        a, b = ({key: flat for part in ALIKE for key, flat in _flat(part, each[part])} for each in (one, other))
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


def pool(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return every comparison over the runs: mean differences with Student's intervals.

    Args:
        reports: At least two reports that pass `require_alike`.

    Returns:
        Comparisons in the form of the reports, with arms in place of checkpoints. Each metric has the means of both
        arms (`first`, `second`), the mean `difference`, its 95% `interval`, `p_value` and `p_holm`. Holm's correction
        covers the metrics of a table. `runs` are the differences of the single pairs.
    """
    arms = arms_of(reports[0])
    found = []
    for by_run in zip(*(report["comparisons"] for report in reports), strict=True):
        rows = list(zip(*(comparison["rows"] for comparison in by_run), strict=True))  # by metric, then by run
        differences = np.array([[row["difference"] for row in runs] for runs in rows])  # (S, n)
        labels = [checkpoint["label"] for checkpoint in reports[0]["checkpoints"]]
        pooled = [
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
            for runs, over in zip(rows, corrected(mean_over_runs(differences)), strict=True)
        ]
        about = {name: by_run[0][name] for name in ("group", "form", "prompts")}
        ends = {end: arms[labels.index(by_run[0][end])] for end in ("first", "second")}
        found.append({**ends, **about, "rows": pooled})
    return found


def verdict_summary(comparisons: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Return what the pairs of runs show and do not show, one paragraph for each pair of arms.

    Args:
        comparisons: The comparisons from `pool`.
        count: The number of pairs of runs.
    """
    paragraphs = []
    for first, second in dict.fromkeys((each["first"], each["second"]) for each in comparisons):
        arms = (first, second, "matched")
        matched = [each for each in comparisons if (each["first"], each["second"], each["form"]) == arms]
        sentences = [f"{count} pairs of runs, {second} against {first}, lengths matched."]
        sentences += [_differences(each, count) for each in matched]
        if count < FEW:
            sentences.append(
                f"{count} runs of each arm are few: the interval extends {t_quantile(0.95, count - 1):.1f} standard "
                "errors to each side. Only differences far above the variation between seeds can be shown, and absence "
                "of evidence is not evidence of absence."
            )
        sentences.append("All runs answered the same prompts with the same random numbers, so these intervals do not "
                         "cover the variation between prompts.")  # fmt: skip
        paragraphs.append(" ".join(sentences))
    return paragraphs


def _differences(comparison: Mapping[str, Any], count: int) -> str:
    """Return sentences with the metrics in which two arms differ, with and without Holm's correction."""
    rows = comparison["rows"]
    corrected_rows = [row for row in rows if is_shown(row)]
    uncorrected_rows = [row for row in rows if not is_shown(row) and excludes_0(row)]
    group, n = GROUPS[comparison["group"]], comparison["prompts"]
    scope = f"Over all {n} prompts" if comparison["group"] == "all" else f"Over the {n} {group} prompts"
    finding = "no difference is shown"
    if corrected_rows:
        finding = f"a difference is shown in {joined(map(_described, corrected_rows))}"
    sentence = f"{scope} {finding} (Holm's correction over {len(rows)} metrics)"
    if uncorrected_rows:
        more, verb = "more " if corrected_rows else "", "excludes" if len(uncorrected_rows) == 1 else "exclude"
        sentence += f". Without the correction, {len(uncorrected_rows)} {more}of the intervals {verb} 0, about "
        sentence += f"{len(rows) / 20:.1f} expected by chance: {joined(map(_described, uncorrected_rows))}"
    same_sign = sum(abs(sum(map(np.sign, row["runs"]))) == count for row in rows)
    return f"{sentence}. In {same_sign} of the metrics all {count} differences have the same sign."


def _described(row: Mapping[str, Any]) -> str:
    return described(row, {1: ", more diverse", -1: ", less diverse", 0: ""}[change_in_diversity(row)])


def verdict_markdown(result: Mapping[str, Any]) -> str:
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
        lines += [*_comparison(comparison), ""]
    lines += [
        "## Method",
        "",
        "Each pair of runs gives one difference for each metric, from its diversity.json. Brackets contain the 95% "
        "interval of the mean difference by Student's t with n - 1 degrees of freedom. It assumes independent pairs "
        "and normal differences. p-values are corrected by Holm over the metrics of a table; a star marks values below "
        ".05. If all differences of a metric are equal, p is 1.",
        "",
        *(f"- {name}" for name in result["reports"]),
        "",
    ]
    return "\n".join(lines)


def _comparison(comparison: Mapping[str, Any]) -> Iterator[str]:
    yield from section(comparison, f"{comparison['prompts']} prompts", [
        (comparison["first"], lambda row: f"{row['first']:.3f}"),
        (comparison["second"], lambda row: f"{row['second']:.3f}"),
        ("mean difference", difference_text),
        ("run by run", lambda row: ", ".join(f"{value:+.3f}" for value in row["runs"])),
        ("p", lambda row: p_text(row["p_value"])),
        ("p (Holm)", p_holm_text),
    ])  # fmt: skip


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings with their full names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
