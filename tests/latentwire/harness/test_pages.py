"""Pages keep any data as data, and every page has the policy and the script."""

from __future__ import annotations

import json
import re

import pytest

from latentwire.harness.pages import fill

TEMPLATE = '<head>{{head}}</head><style>{{dark}}</style><script id="data">{{data}}</script><script>{{script}}</script>'
HOSTILE = "</script><!-- {{script}} {{data}} {{dark}} \u2028\u2029 ü"


def test_data_are_escaped_and_placeholders_in_them_stay():
    content = {"text": HOSTILE, HOSTILE: [1.5, None, True]}
    html = fill(TEMPLATE, content, dark="--ink: white;")
    block, script = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.DOTALL)
    assert json.loads(block) == content
    assert "<" not in block and "\u2028" not in block and "\u2029" not in block and "ü" in block
    assert script.startswith('"use strict";') and "dataset.errors" in script
    assert "<style>--ink: white;</style>" in html
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


def test_a_number_that_a_page_cannot_read_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fill(TEMPLATE, float("nan"), dark="")
