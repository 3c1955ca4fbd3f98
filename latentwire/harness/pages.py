"""HTML pages that open from a file and load nothing from elsewhere. Main entry: `fill()`."""

from __future__ import annotations

import json
from importlib.resources import files

HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">"""  # noqa: E501


def fill(template: str, data: object, **parts: str) -> str:
    """Fill a template and return the page. Its security policy forbids scripts, fonts and images from elsewhere.

    Args:
        template: HTML document with the placeholders {{head}} for the policy and {{script}} for page.js. {{data}} is in
            a script element with the type application/json and the id `data`.
        data: Plain values, written as JSON. The page shows their texts as text, never as markup.
        parts: Texts of the other placeholders, by name: `title` replaces {{title}}.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Only "<" can end a script element or open a comment inside it.
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    script = files("latentwire.harness").joinpath("page.js").read_text(encoding="utf-8")
    for name, part in {"head": HEAD, "script": script, **parts}.items():
        template = template.replace(f"{{{{{name}}}}}", part)
    return template.replace("{{data}}", text)  # last, so that placeholders inside the data stay
