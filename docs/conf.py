"""Settings of the documentation site. `make docs` builds it from the Markdown pages into docs/_build, offline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "latentwire"
author = "The latentwire contributors"
extensions = ["myst_parser"]
exclude_patterns = ["_build", "scripts"]
myst_heading_anchors = 4  # anchors as GitHub makes them, down to the fourth level
html_theme = "furo"
html_title = "latentwire"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
pygments_style = "friendly"

# Files outside docs/ that have a page of the site, so that a link to the file leads to its page.
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "LOG.md": "log.md",
    ROOT / "benchmarks" / "README.md": "benchmarks.md",
    ROOT / "examples" / "README.md": "examples.md",
}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def site_links(text: str, folder: Path) -> str:
    """Return a page whose relative links work on the site.

    The same pages are read on GitHub, where links lead to any file or folder of the repository. On the site a link to
    a file with a page leads to that page, and a link to a folder becomes plain text.

    Args:
        text: The page in Markdown.
        folder: The folder of the file that the text comes from; its links start there.
    """

    def replaced(match: re.Match[str]) -> str:
        image, words, link = match.groups()
        path, sign, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = (folder / path).resolve()
        if target.is_dir():
            return words
        place = PAGES.get(target) or os.path.relpath(target, DOCS)
        return f"{image}[{words}]({place}{sign}{anchor})"

    parts = CODE.split(text)  # code stands at the odd places
    return "".join(part if i % 2 else LINK.sub(replaced, part) for i, part in enumerate(parts))


def _page_read(app: Any, name: str, content: list[str]) -> None:
    content[0] = site_links(content[0], (DOCS / name).parent)


def _file_included(app: Any, path: Path, name: str, content: list[str]) -> None:
    content[0] = site_links(content[0], (DOCS / path).resolve().parent)


def setup(app: Any) -> dict[str, Any]:
    """Connect the rewriting of links."""
    app.connect("source-read", _page_read)
    app.connect("include-read", _file_included)
    return {"parallel_read_safe": True}
