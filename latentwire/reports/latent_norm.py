"""The report of sweep=latent_norm: figure, page, tables and text. Main entry: `write_norm_report()`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from latentwire.analysis.latent_norm import MEASURES, NormAnalysis, NormCurve
from latentwire.analysis.records import Table
from latentwire.harness.pages import fill
from latentwire.harness.results import write_text_atomically
from latentwire.reports.panels import DARK, LIGHT, LINES
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 56, 16, 14, 84  # of the figure, in pixels
DASHES = ("", "7 4", "7 3 2 3", "2 4", "12 4")  # of the lines, so that colour is not the only difference
SHAPES = ("circle", "square", "diamond")
KEY_COLUMN = 220  # pixels of an entry of the key


def write_norm_report(folder: Path, found: NormAnalysis) -> Path:
    """Write latent_norm.svg, latent_norm.html and a CSV file for each table into a folder; return the page's path.

    Raises:
        ResultWriteError: The folder cannot be written.
    """
    write_text_atomically(folder / "latent_norm.svg", norm_figure(found, standalone=True))
    for name, (columns, rows) in norm_tables(found).items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_text_atomically(folder / f"{name}.csv", text.getvalue())
    path = folder / "latent_norm.html"
    write_text_atomically(path, norm_page(found))
    return path


def norm_tables(found: NormAnalysis) -> dict[str, Table]:
    """Return the tables by name: f1_by_factor, residual_stream and nearest_tokens."""
    f1: list[list[object]] = [
        [curve["kind"], point["factor"], point["f1"], *point["interval"], curve["over"], curve["seeds"]]
        for curve in found["curves"]
        for point in curve["points"]
    ]
    layers: list[list[object]] = [
        [row["kind"], row["factor"], row["layer"], row["rms"], *row["rms_interval"],
         row["turn"], *_ends(row["turn_interval"]), row["from_input"], *_ends(row["from_input_interval"]),
         row["passages"]]
        for row in found["layers"]
    ]  # fmt: skip
    near: list[list[object]] = [
        [row["kind"], row["answers"], row["questions"], row["passages"],
         *(value for name in MEASURES for value in (row["means"][name], *row["intervals"][name])),
         row["random_cosine"]]
        for row in found["nearness"]
    ]  # fmt: skip
    return {
        "f1_by_factor": (["kind", "factor", "f1", "low", "high", "interval_over", "seeds"], f1),
        "residual_stream": (
            ["kind", "factor", "layer", "rms", "rms_low", "rms_high", "cosine_before", "cosine_before_low",
             "cosine_before_high", "cosine_input", "cosine_input_low", "cosine_input_high", "passages"],
            layers,
        ),
        "nearest_tokens": (
            ["kind", "answers", "questions", "passages",
             *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")), "random_cosine"],
            near,
        ),
    }  # fmt: skip


def _ends(interval: Interval | None) -> Sequence[float | None]:
    return (None, None) if interval is None else interval


def norm_figure(found: NormAnalysis, *, standalone: bool) -> str:
    """Return the figure as SVG: F1 by factor on a logarithmic axis, with a line for each kind and for no passage.

    Args:
        found: What the sweep found.
        standalone: Whether the figure is a file of its own, which needs its colours.
    """
    factors = found["factors"]
    low, high = math.log10(factors[0]), math.log10(factors[-1])
    most = max([point["interval"][1] for curve in found["curves"] for point in curve["points"]])
    top = min(1.0, max(0.1, math.ceil(most * 10 - 1e-9) / 10))
    span = max(high - low, 1e-9)

    def x(factor: float) -> float:
        return round(LEFT + (math.log10(factor) - low) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(score: float) -> float:
        return round(HEIGHT - BOTTOM - score / top * (HEIGHT - TOP - BOTTOM), 1)

    bottom = HEIGHT - BOTTOM
    parts = []
    for tenth in range(round(top * 10) + 1):
        at = y(tenth / 10)
        parts.append(_line((LEFT, at), (WIDTH - RIGHT, at), "line"))
        parts.append(_text((LEFT - 8, at + 4), format_score(tenth / 10)[:-2], "end"))
    for factor in factors:
        parts.append(_line((x(factor), bottom), (x(factor), bottom + 5), "line"))
        parts.append(_text((x(factor), bottom + 19), f"{factor:g}".removeprefix("0")))
    parts.append(_text(((LEFT + WIDTH - RIGHT) / 2, bottom + 36), "factor of the embeddings that the model reads"))
    floor = y(found["empty"]["f1"])
    parts.append(_line((LEFT, floor), (WIDTH - RIGHT, floor), "soft", 'stroke-dasharray="1 3"'))
    parts.append(_text((WIDTH - RIGHT, floor - 4), "no passage", "end"))
    for number, curve in enumerate(found["curves"]):
        points = [(x(point["factor"]), y(point["f1"])) for point in curve["points"]]
        ends = [(y(point["interval"][0]), y(point["interval"][1])) for point in curve["points"]]
        parts += [_series(curve, number, points, ends), _key(curve, number)]
    colours = "" if not standalone else " ".join(f"--{name}: {colour};" for name, colour in LIGHT.items())
    style = f'style="{colours} background: {LIGHT["ground"]}"' if standalone else ""
    title = "F1 by factor, for tokens and kinds of latents"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        f'font-family="system-ui, sans-serif" font-size="12" {style}>{"".join(parts)}</svg>\n'
    )


def _colour(number: int) -> str:
    return f"line-{number % LINES}"


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, more: str = "") -> str:
    return f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" style="stroke: var(--{colour})" {more}/>'


def _text(at: tuple[float, float], text: str, anchor: str = "middle") -> str:
    return f'<text x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}" style="fill: var(--soft)">{escape(text)}</text>'


def _series(
    curve: NormCurve, number: int, points: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float]]
) -> str:
    """Return a kind's line with its intervals and marks; a mark's title has its numbers."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = f'stroke-dasharray="{DASHES[number % len(DASHES)]}"'
    parts = [
        f'<polyline points="{path}" fill="none" stroke-width="2" {dash} style="stroke: var(--{_colour(number)})"/>'
    ]
    for point, (x, y), (low, high) in zip(curve["points"], points, ends, strict=True):
        parts.append(_line((x, low), (x, high), _colour(number), 'opacity=".5"'))
        title = f"{curve['kind']}, factor {point['factor']:g}: {_with_interval(point['f1'], point['interval'])}"
        parts.append(_mark(number, x, y, title))
    return f'<g data-kind="{escape(curve["kind"])}">{"".join(parts)}</g>'


def _mark(number: int, x: float, y: float, title: str) -> str:
    style = f'style="fill: var(--{_colour(number)})"'
    inside = f"<title>{escape(title)}</title>"
    shape = SHAPES[number % len(SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="4" {style}>{inside}</circle>'
    turn = f'transform="rotate(45 {x} {y})"' if shape == "diamond" else ""
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" {turn} {style}>{inside}</rect>'


def _key(curve: NormCurve, number: int) -> str:
    columns = max(1, (WIDTH - LEFT) // KEY_COLUMN)
    x, y = LEFT + number % columns * KEY_COLUMN, HEIGHT - 28 + number // columns * 18
    dash = f'stroke-dasharray="{DASHES[number % len(DASHES)]}" stroke-width="2"'
    line = _line((x, y), (x + 30, y), _colour(number), dash)
    return line + _mark(number, x + 15, y, curve["kind"]) + _text((x + 38, y + 4), curve["kind"], "start")


def _with_interval(value: float, interval: Interval) -> str:
    return f"{format_score(value)} [{format_score(interval[0])}, {format_score(interval[1])}]"


def norm_page(found: NormAnalysis) -> str:
    """Return the page as HTML, whose content policy forbids scripts, fonts and images from elsewhere."""
    template = files("latentwire.reports").joinpath("templates/latent_norm.html").read_text(encoding="utf-8")
    schemes = {
        scheme: " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        for scheme, colours in (("light", LIGHT), ("dark", DARK))
    }
    return fill(template, found, figure=norm_figure(found, standalone=False), **schemes)


def render_norm(found: NormAnalysis) -> str:
    """Return what the sweep found as text: F1 by factor, the comparison of kinds, nearest tokens, the conclusion."""
    width = max(len(curve["kind"]) for curve in found["curves"])
    lines = [f"F1 by factor, n = {found['questions']} questions about {found['passages']} passages"]
    lines.append(" " * width + "".join(f"  {factor:>5g}" for factor in found["factors"]) + "  unchanged")
    for curve in found["curves"]:
        scores = "".join(f"  {format_score(point['f1']):>5}" for point in curve["points"])
        lines.append(f"{curve['kind']:<{width}}{scores}  {curve['tolerated'][0]:g} to {curve['tolerated'][1]:g}")
    lines += [f"no passage {_with_interval(found['empty']['f1'], found['empty']['interval'])}", ""]
    for row in found["nearness"]:
        group = _with_interval(row["means"]["group"], row["intervals"]["group"])
        lines.append(
            f"{row['kind']}, answers {row['answers']} (n = {row['questions']}): nearest token in the own group "
            f"{group}, in another passage's {format_score(row['means']['other'])}; cosine "
            f"{format_score(row['means']['cosine'])}, of random directions {format_score(row['random_cosine'])}"
        )
    return "\n".join([*lines, "", found["verdict"]["sentence"]])
