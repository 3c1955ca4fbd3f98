"""Comparisons of several pairs of runs as one: what holds over seeds of training, with intervals over runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kat.diversity.report import GROUPS, difference_text, listed, named, p_holm_text, p_text, section, shown, way
from latentwire.harness.errors import UserError
from latentwire.stats.comparison import corrected
from latentwire.stats.intervals import mean_over_runs, t_quantile

ALIKE = ("settings", "seed", "prompts", "embedder", "dtype")  # of all reports: what was asked, and how it was measured
FEW = 10  # runs of a kind; below this the report says that they are few
Report = Mapping[str, Any]  # what a diversity.json holds


def arms_of(report: Report) -> list[str]:
    """Return the arms of a report: the names of its checkpoints without the seed."""
    return [re.sub(r"_seed\d+", "", checkpoint["label"]) for checkpoint in report["checkpoints"]]


def require_alike(reports: Mapping[str, Report]) -> None:
    """Refuse reports that are not of the same comparison for several runs.

    Args:
        reports: By their names.

    Raises:
        UserError: Fewer than two, other arms, prompts or settings, or a run that would count twice.
    """
    if len(reports) < 2:
        raise UserError(f"reports: {len(reports)} given; an interval over runs needs those of at least 2 pairs")
    (first, one), *others = reports.items()
    for name, other in others:
        if arms_of(one) != arms_of(other):
            raise UserError(f"reports: {first} compares {listed(arms_of(one))}, {name} {listed(arms_of(other))}; give "
                            "those of the same arms in the same order")  # fmt: skip
        ours, theirs = ({key: flat for part in ALIKE for key, flat in _flat(part, each[part])} for each in (one, other))
        if differing := [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]:
            key = differing[0]
            raise UserError(f"reports: {first} and {name} were not asked the same: {key} is {ours.get(key)} and "
                            f"{theirs.get(key)}; run task=diversity on all pairs with the same settings")  # fmt: skip
    seen: dict[str, str] = {}
    for name, report in reports.items():
        for checkpoint in report["checkpoints"]:
            if before := seen.get(checkpoint["weights"]):
                raise UserError(f"reports: {checkpoint['label']} of {name} has the weights of {before}, so one run "
                                "would count as two; give pairs of runs that share none")  # fmt: skip
        seen |= {checkpoint["weights"]: f"{checkpoint['label']} of {name}" for checkpoint in report["checkpoints"]}


def pool(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return every comparison over the runs: the mean of their differences, with Student's interval over runs.

    Args:
        reports: At least two of the same comparison, see `require_alike`.

    Returns:
        What the reports hold under `comparisons`, with arms in place of checkpoints. Of each metric: the means of both
        arms, the mean `difference` with its 95% `interval`, `p_value` and `p_holm` (over the metrics of a table), and
        the differences run by run (`runs`).
    """
    arms = arms_of(reports[0])
    found = []
    for same in zip(*(report["comparisons"] for report in reports), strict=True):
        rows = list(zip(*(comparison["rows"] for comparison in same), strict=True))  # by metric, then by run
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
        about = {name: same[0][name] for name in ("group", "form", "prompts")}
        ends = {end: arms[labels.index(same[0][end])] for end in ("first", "second")}
        found.append({**ends, **about, "rows": pooled})
    return found


def reading(comparisons: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Return what `count` pairs of runs show and do not show, a paragraph for each pair of arms."""
    paragraphs = []
    for first, second in dict.fromkeys((each["first"], each["second"]) for each in comparisons):
        arms = (first, second, "matched")
        of = [each for each in comparisons if (each["first"], each["second"], each["form"]) == arms]
        sentences = [f"{count} pairs of runs, {second} against {first}, lengths matched."]
        sentences += [_says(each, count) for each in of]
        if count < FEW:
            sentences.append(
                f"{count} runs of a kind are few: the interval is {t_quantile(0.95, count - 1):.1f} standard errors "
                "wide to each side, so that only a difference far above the spread between seeds can be shown, and "
                "none shown is no proof of none."
            )
        sentences.append("All runs answered the same prompts with the same random numbers: what other prompts would "
                         "give is not in these intervals.")  # fmt: skip
        paragraphs.append(" ".join(sentences))
    return paragraphs


def _says(comparison: Mapping[str, Any], count: int) -> str:
    rows = comparison["rows"]
    sure = [row for row in rows if shown(row)]
    alone = [row for row in rows if not shown(row) and _leaves_out_0(row)]
    group, n = GROUPS[comparison["group"]], comparison["prompts"]
    where = f"Over all {n} prompts" if comparison["group"] == "all" else f"Over the {n} {group} prompts"
    said = f"a difference is shown in {listed(map(_named, sure))}" if sure else "no difference is shown"
    sentence = f"{where} {said} (Holm's correction over {len(rows)} metrics)"
    if alone:
        sentence += (f"; uncorrected, the intervals of {len(alone)} {'more ' if sure else ''}leave out 0, where about "
                     f"{len(rows) / 20:.1f} would by chance: {listed(map(_named, alone))}")  # fmt: skip
    alike = sum(abs(sum(map(np.sign, row["runs"]))) == count for row in rows)
    return f"{sentence}. In {alike} of the metrics all {count} differences have the same sign."


def _named(row: Mapping[str, Any]) -> str:
    return f"{named(row)}{ {1: ', more diverse', -1: ', less diverse', 0: ''}[way(row)] }"


def _leaves_out_0(row: Mapping[str, Any]) -> bool:
    low, high = row["interval"]
    return not low <= 0 <= high


def markdown(result: Mapping[str, Any]) -> str:
    """Return the report of task=verdict; `result` is what verdict.json holds."""
    first, *others = result["arms"]
    lines = [
        f"# {listed(others)} against {first}, over {len(result['reports'])} pairs of runs",
        "",
        *(f"**Warning:** {warning}.\n" for warning in result["warnings"]),
        *(f"{paragraph}\n" for paragraph in result["reading"]),
    ]
    for comparison in result["comparisons"]:
        lines += [*_comparison(comparison), ""]
    lines += [
        "## How it was compared",
        "",
        "Each pair of runs gives one difference for each metric: that of its diversity.json. In brackets: the 95% "
        "interval of their mean by Student's t with n - 1 degrees of freedom, which takes the pairs as independent and "
        "the differences as normal. p-values are corrected by Holm over the metrics of a table; a star marks those "
        "below .05. A metric without any spread between runs has the p-value 1.",
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
    """Yield the plain values of nested settings with their full names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
