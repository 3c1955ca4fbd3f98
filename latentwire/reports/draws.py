"""The spread between draws of the shots and sources as text. Main entry: `render_draws()`."""

from __future__ import annotations

from collections.abc import Sequence

from latentwire.analysis.controls import label
from latentwire.analysis.records import DrawnRow, GroupAnalysis
from latentwire.stats.formatting import format_score


def render_draws(rows: Sequence[DrawnRow], groups: Sequence[GroupAnalysis]) -> list[str]:
    """Return lines with the spread between draws of the best configuration of each family; none without repeats.

    Args:
        rows: Return value of `between_draws`.
        groups: Analysis of each source, which knows the best of each family in the first draw.
    """
    lines: list[str] = []
    for group in groups:
        best = {row["experiment"] for row in group["best_of_family"]}
        own = [row for row in rows if row["group"] == group["group"] and row["experiment"] in best]
        if not own:
            continue
        draws = max(row["draws"] for row in own)
        width = max(len(label(row)) for row in own)
        lines += ["", f"{draws} draws of shots and sources on {group['group']}: mean and standard deviation over draws"]
        for row in sorted(own, key=lambda row: -row["mean"]):
            against = ""
            if row["difference"] is not None and row["difference_spread"] is not None:
                sign = "+" if row["difference"] >= 0 else ""
                against = (
                    f"  {sign}{format_score(row['difference'])} ± {format_score(row['difference_spread'])} against "
                )
                against += f"the baseline, better in {row['better']}, winner in {row['wins']}"
            few = "" if row["draws"] == draws else f"  in {row['draws']} draws"
            lines.append(
                f"  {label(row):{width}}  {format_score(row['mean'])} ± {format_score(row['spread'])}{against}{few}"
            )
    return lines
