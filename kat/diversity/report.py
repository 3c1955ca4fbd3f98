"""The report of task=diversity in sentences and tables. Main entries: `report_markdown()` and `report_summary()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from kat.diversity.comparison import LEVELS
from kat.diversity.records import ArmComparison, ArmPair, DifferenceRow, DiversityResult, MetricRecord

FORMS = {"matched": "lengths matched", "raw": "as sampled"}
GROUPS = {"all": "all", "rare": "rare", "common": "common"}
SIGNIFICANCE = 0.05  # a difference is shown if its Holm-corrected p-value is lower
Metrics = Mapping[str, MetricRecord]  # by name
Row = TypeVar("Row", bound=DifferenceRow)


def report_markdown(result: DiversityResult) -> str:
    """Return the report of task=diversity.

    Args:
        result: The content of diversity.json.
    """
    first, *others = [checkpoint["label"] for checkpoint in result["checkpoints"]]
    prompts, settings, metrics = result["prompts"], result["settings"], result["metrics"]
    counted = list(dict.fromkeys(name for each in result["checkpoints"] for name in each["totals"]))
    lines = [
        f"# Diversity: {', '.join(others)} against {first}",
        "",
        f"Each checkpoint answers {prompts['sampled']} of the {prompts['held_out']} held-out prompts (of "
        f"{prompts['all']}) with {settings['num_generations']} completions of at most "
        f"{settings['max_completion_length']} tokens. Settings: temperature {settings['temperature']:g}, top_p "
        f"{settings['top_p']:g}, seed {result['seed']}, and the same random numbers for every checkpoint.",
        "",
        *(f"**Warning:** {warning}.\n" for warning in result["warnings"]),
        *(f"{paragraph}\n" for paragraph in result["reading"]),
        "## What was sampled",
        "",
        *table(
            ["checkpoint", "completions", "empty", "ended", "tokens", "cut to match", "tokens cut off",
             *(metrics[name]["label"] for name in counted)],
            [
                [each["label"], each["completions"], each["empty"], each["ended"], each["tokens"], each["cut"],
                 each["tokens_cut"], *(each["totals"][name] for name in counted)]
                for each in result["checkpoints"]
            ],
        ),
        "",
    ]  # fmt: skip
    for comparison in result["comparisons"]:
        lines += [*_comparison(comparison, metrics), ""]
    lines += ["## Metrics", ""]
    lines += [
        f"- **{metric['label']}** ({_directions(metric)}): {metric['definition']}." for metric in metrics.values()
    ]
    lines += ["", *_method(result), ""]
    return "\n".join(lines)


def direction(metric: MetricRecord) -> int:
    """Return 1 if higher values are more diverse, -1 if lower values are, and 0 if neither is."""
    return {True: 1, False: -1, None: 0}[metric["higher_is_more_diverse"]]


def _directions(metric: MetricRecord) -> str:
    return {1: "higher: more diverse", -1: "lower: more diverse", 0: "no direction is better"}[direction(metric)]


def _comparison(comparison: ArmComparison, metrics: Metrics) -> Iterator[str]:
    yield heading(comparison, f"n = {comparison['prompts']}")
    yield from section(comparison["rows"], metrics, [
        (comparison["first"], lambda row: with_interval(row["first"]["value"], row["first"]["interval"])),
        (comparison["second"], lambda row: with_interval(row["second"]["value"], row["second"]["interval"])),
        ("difference", difference_text),
        ("p (Holm)", p_holm_text),
    ])  # fmt: skip


def heading(comparison: ArmPair, size: str) -> str:
    """Return the heading of a comparison, with the sample size."""
    return (
        f"## {comparison['second']} against {comparison['first']}: {GROUPS[comparison['group']]} prompts, "
        f"{FORMS[comparison['form']]} ({size})"
    )


def section(
    rows: Sequence[Row], metrics: Metrics, columns: Sequence[tuple[str, Callable[[Row], str]]]
) -> Iterator[str]:
    """Yield an empty line and the table of one comparison, level by level.

    Args:
        rows: The rows of the comparison.
        metrics: The descriptions of the metrics.
        columns: The columns after the name of the metric, each with its title and a function from a row to its cell.
    """
    yield ""
    cells: list[list[object]] = []
    for level, title in LEVELS.items():
        cells.append([f"*{title}*", *("" for _ in columns)])
        cells += [[metrics[row["metric"]]["label"], *(cell(row) for _, cell in columns)]
                  for row in rows if row["level"] == level]  # fmt: skip
    yield from table(["metric", *(title for title, _ in columns)], cells)


def _method(result: DiversityResult) -> Iterator[str]:
    prompts, embedder = result["prompts"], result["embedder"]
    yield "## Method"
    yield ""
    yield (
        "Brackets contain 95% intervals over the prompts: of differences by random flips of signs, of single values by "
        "Student's t with half of the observed skewness corrected. Across prompts, each prompt is represented by its "
        "leave-one-out pseudo-value, because the set does not divide into prompts. p-values are corrected by Holm over "
        "the metrics of a table; a star marks values below .05. For matched lengths, every completion is cut to the "
        "shortest of all checkpoints with the same prompt and number. The distance and the Vendi score use embeddings "
        f"from {embedder}."
    )
    if "rare_at_most" in prompts:
        yield ""
        yield (
            f"Rare prompts have a density of at most {prompts['rare_at_most']:.4g}, the lowest "
            f"{result['settings']['rare_share']:.0%} of all prompts. Common prompts have a density of at least "
            f"{prompts['common_at_least']:.4g}, the highest {result['settings']['common_share']:.0%}. "
            f"{prompts['without_density']} of the sampled prompts have no density."
        )


def report_summary(
    comparisons: Sequence[ArmComparison], metrics: Metrics, warnings: Sequence[str], generations: int
) -> list[str]:
    """Return what the comparisons show and do not show, one paragraph for each pair of arms.

    Args:
        comparisons: The comparisons of all pairs, groups and forms.
        metrics: The descriptions of the metrics.
        warnings: The warnings about the comparisons.
        generations: The number of completions of each prompt.
    """
    paragraphs = []
    for first, second in dict.fromkeys((each["first"], each["second"]) for each in comparisons):
        pair = {(each["group"], each["form"]): each for each in comparisons
                if (each["first"], each["second"]) == (first, second)}  # fmt: skip
        sentences = [_differences(pair["all", "matched"], metrics, generations)]
        groups = [group for group in ("rare", "common") if (group, "matched") in pair]
        sentences += [_differences(pair[group, "matched"], metrics, generations) for group in groups]
        sentences.append(_lengths(pair["all", "raw"], pair["all", "matched"], metrics))
        sentences += _unfinished(pair["all", "raw"])
        if len(groups) == 2:
            sentences.append("No test compares rare with common prompts.")
        sentences.append(
            "Each checkpoint is a single run. The comparison does not cover the variation between training seeds, and "
            "does not show that the sampler is the cause."
        )
        if warnings:
            sentences.append("The warnings above are further limits.")
        paragraphs.append(" ".join(sentences))
    return paragraphs


def is_shown(row: DifferenceRow) -> bool:
    """Return whether a difference is shown: the corrected p-value is below .05 and the interval excludes 0."""
    return row["p_holm"] < SIGNIFICANCE and excludes_0(row)


def excludes_0(row: DifferenceRow) -> bool:
    """Return whether the interval of a difference excludes 0."""
    low, high = row["interval"]
    return not low <= 0 <= high


def _differences(comparison: ArmComparison, metrics: Metrics, generations: int) -> str:
    """Return a sentence with the metrics in which two arms differ."""
    rows, n = comparison["rows"], comparison["prompts"]
    second = comparison["second"]
    scope = {
        "all": f"With lengths matched, over all {n} prompts with {generations} completions each",
        "rare": f"Over the {n} rare prompts",
        "common": f"Over the {n} common prompts",
    }[comparison["group"]]
    differing = [row for row in rows if is_shown(row)]
    if not differing:
        return f"{scope}, no difference is shown in any of the {len(rows)} metrics."
    parts = []
    for change, adjective in ((1, "more diverse"), (-1, "less diverse"), (0, "different")):
        matching = [row for row in differing if change_in_diversity(row, metrics) == change]
        if matching:
            parts.append(f"{adjective} in {joined(described(row, metrics) for row in matching)}")
    rest = len(rows) - len(differing)
    others = f"; in the other {rest} no difference is shown" if rest else ""
    return f"{scope}, {second} is {joined(parts)}{others}."


def change_in_diversity(row: DifferenceRow, metrics: Metrics) -> int:
    """Return 1 if the second arm is more diverse, -1 if it is less diverse, 0 if the metric has no direction."""
    sign = direction(metrics[row["metric"]])
    return sign if row["difference"] > 0 else -sign


def described(row: DifferenceRow, metrics: Metrics, note: str = "") -> str:
    """Return the name of a metric with its level, and in brackets its difference and a note."""
    level = {"within": " within prompts", "across": " across prompts", "each": ""}[row["level"]]
    label = metrics[row["metric"]]["label"]
    return f"{label}{level} ({with_interval(row['difference'], row['interval'], sign=True)}{note})"


def _lengths(raw: ArmComparison, matched: ArmComparison, metrics: Metrics) -> str:
    """Return a sentence about the lengths as sampled, and about differences that vanish with matched lengths."""
    length = next(row for row in raw["rows"] if row["metric"] == "length")
    by = with_interval(length["difference"], length["interval"], sign=True)
    sentence = (
        f"As sampled, the completions of {raw['second']} differ in length by {by} tokens"
        if is_shown(length)
        else f"As sampled, no difference in length is shown ({by} tokens)"
    )
    remaining = {(row["level"], row["metric"]) for row in matched["rows"] if is_shown(row)}
    compared = {(row["level"], row["metric"]) for row in matched["rows"]}
    vanished = [row for row in raw["rows"]
                if is_shown(row) and (row["level"], row["metric"]) in compared - remaining]  # fmt: skip
    if vanished:
        listed = joined(described(row, metrics) for row in vanished)
        return f"{sentence}; shown as sampled but not with lengths matched: {listed}."
    return f"{sentence}."


def _unfinished(raw: ArmComparison) -> Iterator[str]:
    """Yield a sentence if the token limit cut most completions of an arm."""
    ended = next(row for row in raw["rows"] if row["metric"] == "ended")
    shares = {raw["first"]: ended["first"]["value"], raw["second"]: ended["second"]["value"]}
    if min(shares.values()) < 0.5:
        yield (
            "Most completions did not end within the token limit "
            f"({joined(f'{share:.0%} of {label} did' for label, share in shares.items())}), so the comparison covers "
            "only the beginnings of answers."
        )


def joined(parts: Iterable[str]) -> str:
    """Return parts joined in the form "a, b and c"."""
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last


def with_interval(value: float, interval: Sequence[float], sign: bool = False) -> str:
    """Return a value and its interval to three decimals, with a plus sign if `sign` is set."""
    style = "+.3f" if sign else ".3f"
    middle, low, high = (f"{round(number, 3) + 0.0:{style}}" for number in (value, *interval))  # + 0.0 avoids -0.000
    return f"{middle} [{low}, {high}]"


def p_text(value: float) -> str:
    """Return a p-value to three decimals."""
    return "< .001" if value < 0.001 else f"{value:.3f}"


def p_holm_text(row: DifferenceRow) -> str:
    """Return a row's corrected p-value, with a star if its difference is shown."""
    return p_text(row["p_holm"]) + (" *" if is_shown(row) else "")


def difference_text(row: DifferenceRow) -> str:
    """Return a row's difference with its interval."""
    return with_interval(row["difference"], row["interval"], sign=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for row in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
