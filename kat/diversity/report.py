"""A comparison of arms in words and tables: what the numbers say, and what they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kat.diversity.comparison import LEVELS, METRICS

FORMS = {"matched": "lengths matched", "raw": "as sampled"}
GROUPS = {"all": "all", "rare": "rare", "common": "common"}
LEVEL_OF_DOUBT = 0.05  # Holm-corrected p-values from here on show no difference


def markdown(result: Mapping[str, Any]) -> str:
    """Return the whole report of task=diversity; `result` is what diversity.json holds."""
    first, *others = [checkpoint["label"] for checkpoint in result["checkpoints"]]
    prompts, settings = result["prompts"], result["settings"]
    lines = [
        f"# Diversity: {', '.join(others)} against {first}",
        "",
        f"{settings['num_generations']} completions of at most {settings['max_completion_length']} tokens for each of "
        f"{prompts['sampled']} held-out prompts ({prompts['held_out']} of {prompts['all']} are held out), temperature "
        f"{settings['temperature']:g}, top_p {settings['top_p']:g}, seed {result['seed']}, the same random numbers for "
        "every checkpoint.",
        "",
        *(f"**Warning:** {warning}.\n" for warning in result["warnings"]),
        *(f"{paragraph}\n" for paragraph in result["reading"]),
        "## What was sampled",
        "",
        *table(
            ["checkpoint", "completions", "empty", "ended", "tokens", "cut to match", "tokens cut off", "em-dashes",
             "not just X but Y"],
            [
                [each["label"], each["completions"], each["empty"], each["ended"], each["tokens"], each["cut"],
                 each["tokens_cut"], each["em_dashes"], each["not_just_but"]]
                for each in result["checkpoints"]
            ],
        ),
        "",
    ]  # fmt: skip
    for comparison in result["comparisons"]:
        lines += [*_comparison(comparison), ""]
    lines += ["## What the metrics are", ""]
    lines += [f"- **{metric.label}** ({_directions(metric.direction)}): {metric.definition}."
              for metric in dict.fromkeys(METRICS.values())]  # fmt: skip
    lines += ["", *_method(result), ""]
    return "\n".join(lines)


def _directions(direction: int) -> str:
    return {1: "higher: more diverse", -1: "lower: more diverse", 0: "neither way is better"}[direction]


def _comparison(comparison: Mapping[str, Any]) -> Iterator[str]:
    yield from section(comparison, f"n = {comparison['prompts']}", [
        (comparison["first"], lambda row: with_interval(row["first"]["value"], row["first"]["interval"])),
        (comparison["second"], lambda row: with_interval(row["second"]["value"], row["second"]["interval"])),
        ("difference", difference_text),
        ("p (Holm)", p_holm_text),
    ])  # fmt: skip


def section(
    comparison: Mapping[str, Any], size: str, columns: Sequence[tuple[str, Callable[[Any], str]]]
) -> Iterator[str]:
    """Yield a heading and the table of one comparison, level by level.

    Args:
        comparison: Whose rows.
        size: What it was made over, for the heading.
        columns: Besides the metric's name: the title of each, and what a row says there.
    """
    yield (
        f"## {comparison['second']} against {comparison['first']}: {GROUPS[comparison['group']]} prompts, "
        f"{FORMS[comparison['form']]} ({size})"
    )
    yield ""
    rows: list[list[object]] = []
    for level, words in LEVELS.items():
        rows.append([f"*{words}*", *("" for _ in columns)])
        rows += [[METRICS[level, row["metric"]].label, *(cell(row) for _, cell in columns)]
                 for row in comparison["rows"] if row["level"] == level]  # fmt: skip
    yield from table(["metric", *(title for title, _ in columns)], rows)


def _method(result: Mapping[str, Any]) -> Iterator[str]:
    prompts, embedder = result["prompts"], result["embedder"]
    yield "## How it was compared"
    yield ""
    yield (
        "In brackets: 95% intervals of 10,000 bootstrap resamples of the prompts, the differences paired; with "
        "fewer than 30 prompts they are somewhat too narrow. Across prompts each prompt stands for its "
        "leave-one-out pseudo-value, as drawing a prompt twice would put copies into the set. p-values are corrected "
        "by Holm over the metrics of a table; a star marks those below .05. Lengths matched: every completion is cut "
        "to the shortest of all checkpoints with the same prompt and number. Embeddings for the distance and the "
        "Vendi score: "
        f"{embedder}."
    )
    if "rare_at_most" in prompts:
        yield ""
        yield (
            f"Rare are prompts with a density of at most {prompts['rare_at_most']:.4g}, common those of at least "
            f"{prompts['common_at_least']:.4g}: the lowest {result['settings']['rare_share']:.0%} and the highest "
            f"{result['settings']['common_share']:.0%} of all prompts. {prompts['without_density']} of the sampled "
            "prompts have no density."
        )


def reading(comparisons: Sequence[Mapping[str, Any]], warnings: Sequence[str], generations: int) -> list[str]:
    """Return what the comparisons say and do not say, a paragraph for each pair of arms.

    Args:
        comparisons: Those of all pairs, groups and forms.
        warnings: What makes them doubtful.
        generations: Completions of each prompt.
    """
    paragraphs = []
    for first, second in dict.fromkeys((each["first"], each["second"]) for each in comparisons):
        of = {(each["group"], each["form"]): each for each in comparisons
              if (each["first"], each["second"]) == (first, second)}  # fmt: skip
        sentences = [_says(of["all", "matched"], generations)]
        parts = [group for group in ("rare", "common") if (group, "matched") in of]
        sentences += [_says(of[group, "matched"], generations) for group in parts]
        sentences.append(_lengths(of["all", "raw"], of["all", "matched"]))
        sentences += _unfinished(of["all", "raw"])
        if len(parts) == 2:
            sentences.append("Whether rare and common prompts differ in this was not tested.")
        sentences.append(
            "These are two checkpoints, one run of each kind: what another seed of training would give, and whether "
            "the sampler is the cause, they cannot say."
        )
        if warnings:
            sentences.append("The warnings above limit this further.")
        paragraphs.append(" ".join(sentences))
    return paragraphs


def shown(row: Mapping[str, Any]) -> bool:
    """Tell whether a difference is shown: its corrected p-value says so, and its interval leaves out 0."""
    low, high = row["interval"]
    return bool(row["p_holm"] < LEVEL_OF_DOUBT and not low <= 0 <= high)


def _says(comparison: Mapping[str, Any], generations: int) -> str:
    """Return in which metrics two arms differ, and in which no difference is shown."""
    rows, n = comparison["rows"], comparison["prompts"]
    second = comparison["second"]
    where = {
        "all": f"With lengths matched, over all {n} prompts with {generations} completions each",
        "rare": f"Over the {n} rare prompts",
        "common": f"Over the {n} common prompts",
    }[comparison["group"]]
    differing = [row for row in rows if shown(row)]
    if not differing:
        return f"{where}, no difference is shown in any of the {len(rows)} metrics."
    parts = []
    for direction, words in ((1, "more diverse"), (-1, "less diverse"), (0, "different")):
        found = [row for row in differing if way(row) == direction]
        if found:
            parts.append(f"{words} in {listed(map(named, found))}")
    rest = len(rows) - len(differing)
    none = f"; in the other {rest} no difference is shown" if rest else ""
    return f"{where}, {second} is {listed(parts)}{none}."


def way(row: Mapping[str, Any]) -> int:
    """Return 1 where the second arm is the more diverse, -1 where it is less, 0 where the metric says neither."""
    direction = METRICS[row["level"], row["metric"]].direction
    return direction if row["difference"] > 0 else -direction


def named(row: Mapping[str, Any]) -> str:
    """Return the name of a metric with its level and its difference."""
    level = {"within": " within prompts", "across": " across prompts", "each": ""}[row["level"]]
    label = METRICS[row["level"], row["metric"]].label
    return f"{label}{level} ({with_interval(row['difference'], row['interval'], sign=True)})"


def _lengths(raw: Mapping[str, Any], matched: Mapping[str, Any]) -> str:
    """Return how lengths differ, and which differences go when they are matched."""
    length = next(row for row in raw["rows"] if row["metric"] == "length")
    by = with_interval(length["difference"], length["interval"], sign=True)
    sentence = (
        f"As sampled, the completions of {raw['second']} differ in length by {by} tokens"
        if shown(length)
        else f"As sampled, no difference in length is shown ({by} tokens)"
    )
    still = {(row["level"], row["metric"]) for row in matched["rows"] if shown(row)}
    compared = {(row["level"], row["metric"]) for row in matched["rows"]}
    gone = [row for row in raw["rows"]
            if shown(row) and (row["level"], row["metric"]) in compared - still]  # fmt: skip
    if gone:
        return f"{sentence}; shown there but not with lengths matched: {listed(map(named, gone))}."
    return f"{sentence}."


def _unfinished(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence where most completions of an arm were cut off: their beginnings are what is compared."""
    ended = next(row for row in raw["rows"] if row["metric"] == "ended")
    shares = {raw[arm]: ended[arm]["value"] for arm in ("first", "second")}
    if min(shares.values()) < 0.5:
        yield (
            f"Most completions did not come to their end within the limit of tokens "
            f"({listed(f'{share:.0%} of {label} did' for label, share in shares.items())}), so what is compared are "
            "beginnings of answers."
        )


def listed(parts: Iterable[str]) -> str:
    """Return parts as a list in words: a, b and c."""
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last


def with_interval(value: float, interval: Sequence[float], sign: bool = False) -> str:
    """Return a value and its interval to three decimals."""
    style = "+.3f" if sign else ".3f"
    middle, low, high = (f"{round(number, 3) + 0.0:{style}}" for number in (value, *interval))  # + 0.0: no -0.000
    return f"{middle} [{low}, {high}]"


def p_text(value: float) -> str:
    """Return a p-value to three decimals."""
    return "< .001" if value < 0.001 else f"{value:.3f}"


def p_holm_text(row: Mapping[str, Any]) -> str:
    """Return a row's corrected p-value, with a star where it is shown to differ."""
    return p_text(row["p_holm"]) + (" *" if shown(row) else "")


def difference_text(row: Mapping[str, Any]) -> str:
    """Return a row's difference with its interval."""
    return with_interval(row["difference"], row["interval"], sign=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for row in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
