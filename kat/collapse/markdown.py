"""The verdict as Markdown, with the charts as pictures. Main entry: `verdict_page_markdown()`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kat.collapse.records import AnswersBlock, Block, CollapseResult, ForestBlock, ShownAnswer
from kat.collapse.words import DASH, interval_text, question_of
from kat.diversity.report import table

FIGURES = "figures"  # folder of the pictures, next to the page
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def verdict_page_markdown(result: CollapseResult) -> str:
    """Return the page as Markdown.

    Args:
        result: The content of verdict.json.
    """
    lines = [f"# {question_of(result['arm'])}", "", f"**{escaped(result['sentence'])}**", ""]
    for section in result["sections"]:
        lines += [f"## {section['title']}", ""]
        for block in section["blocks"]:
            lines += [*_block(block), ""]
    return "\n".join(lines)


def escaped(words: str) -> str:
    """Return a text of the model or the user that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(words.split()))


def _block(block: Block) -> Iterator[str]:
    if block["kind"] == "text":
        yield escaped(block["text"])
    elif block["kind"] == "list":
        yield from (f"- {escaped(entry)}" for entry in block["entries"])
    elif block["kind"] == "table":
        yield f"**{escaped(block['title'])}**"
        yield ""
        rows = [[_cell(cell) for cell in row] for row in block["rows"]]
        yield from table([_cell(column) for column in block["columns"]], rows)
    elif block["kind"] == "answers":
        yield from _answers(block)
    else:
        yield f"![{escaped(block['title'])}]({FIGURES}/{block['name']}.png)"
        if block["kind"] == "forest":
            yield from ("", *_forest(block))


def _cell(words: str) -> str:
    """Return a text for a cell. `table` escapes the bars."""
    return escaped(words).replace("\\|", "|")


def _forest(block: ForestBlock) -> Iterator[str]:
    for entry in block["entries"]:
        yield f"- {escaped(entry['name'])}: {escaped(interval_text(entry['difference'], entry['interval'], sign=True))}"


def _answers(block: AnswersBlock) -> Iterator[str]:
    rows = [
        [
            _cell(f"{prompt['prompt']} ({prompt['group']})"),
            *(_given(prompt["answers"].get(arm)) for arm in block["arms"]),
        ]
        for prompt in block["prompts"]
    ]
    yield from table(["prompt", *map(_cell, block["arms"])], rows)


def _given(answers: list[ShownAnswer] | None) -> str:
    if answers is None:
        return DASH
    parts = []
    for one in answers:
        bad = "" if one["good"] else " \u2717"
        parts.append(f"{_cell(one['text']) or '(empty)'} \u00d7{one['count']}{bad}")
    return ", ".join(parts)
