"""Pages that open from a file: a template with its data, and nothing from elsewhere."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">"""  # noqa: E501


def fill(template: str, data: Any, **parts: str) -> str:
    """Return a page: no scripts, fonts or images from elsewhere, and a policy that forbids them.

    Args:
        template: An HTML document with {{head}} for that policy, {{script}} for what the scripts of all pages begin
            with, and {{data}} in a script element of the type application/json, with the id data.
        data: Plain values. Their texts are data to the page, never markup.
        parts: What else stands in the template as {{name}}, by name.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Inside a script element only "<" can end it or open a comment.
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    script = files("latentwire.harness").joinpath("page.js").read_text(encoding="utf-8")
    for name, part in {"head": HEAD, "script": script, **parts}.items():
        template = template.replace(f"{{{{{name}}}}}", part)
    return template.replace("{{data}}", text)  # the last, so that nothing is looked for in the data
