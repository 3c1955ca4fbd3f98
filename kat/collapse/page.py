"""The verdict as one HTML page that needs no network. Main entry: `verdict_page_html()`."""

from __future__ import annotations

from importlib.resources import files

from kat.collapse.records import CollapseResult
from kat.collapse.words import question_of
from latentwire.harness.pages import fill

# Colours of arms in their order, then of text, lines and grounds. Okabe and Ito 2008, darker or lighter where a line
# would have less than three times the luminance of its ground.
LIGHT_ARMS = ("#5a5a5a", "#0067a5", "#b85400", "#00795a", "#a8457f", "#6a4fb3", "#8a6d00", "#1c8a8a", "#b02a30")
DARK_ARMS = ("#a8a8a8", "#5fb0e8", "#f09a50", "#3fc79a", "#e48bc0", "#ab93f0", "#d8bd4a", "#5fcfcf", "#f07a78")
LIGHT = {"ground": "#fbfbf9", "panel": "#f0f1ee", "ink": "#1d2126", "soft": "#59616b", "line": "#d5d7d3"}
DARK = {"ground": "#101418", "panel": "#1a2127", "ink": "#e8eaed", "soft": "#9aa4b0", "line": "#2f3840"}
GOOD = {"light": "#00795a", "dark": "#3fc79a"}
BAD = {"light": "#b02a30", "dark": "#f07a78"}


def colours_of(scheme: str) -> dict[str, str]:
    """Return the colours of the scheme "light" or "dark" by their names in the style sheet."""
    grounds, arms = (LIGHT, LIGHT_ARMS) if scheme == "light" else (DARK, DARK_ARMS)
    return {
        **grounds,
        **{f"arm-{number}": colour for number, colour in enumerate(arms)},
        "good": GOOD[scheme],
        "bad": BAD[scheme],
    }


def verdict_page_html(result: CollapseResult) -> str:
    """Return the page as HTML, whose content policy forbids scripts, fonts and images from elsewhere.

    Args:
        result: The content of verdict.json. The page treats its texts as data, never as markup.
    """
    template = files("kat.collapse").joinpath("verdict.html").read_text(encoding="utf-8")
    colours = {
        scheme: " ".join(f"--{name}: {colour};" for name, colour in colours_of(scheme).items())
        for scheme in ("light", "dark")
    }
    shown = {name: result[name] for name in ("answer", "sentence", "arms", "sections")}
    return fill(template, {**shown, "question": question_of(result["arm"]), "colours": len(LIGHT_ARMS)}, **colours)
