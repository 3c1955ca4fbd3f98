"""Prose in the project's files, and the phrases that its style bans. Main entry: `faults()`.

    python -m tests.helpers.prose latentwire/lm docs/atlas.md

prints each banned phrase with its place, and sentences that are too long.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

BANNED = {
    r"mend(s|ed|ing)?": "fix",
    r"told": "reported, shown",
    r"(says?|said|tells?) of": "reports",
    r"beside": "next to, with",
    r"asked": "evaluated",
    r"(hang|hangs|hung) on": "depends on",
    r"so\s+many": "N",
    r"whatever": "any",
    r"wherever": "any place",
    r"(that|those) of": "repeat the noun",
    r"(lies|lie|lay)": "is",
    r"(is|are|was|were) no (?!longer\b|more\b|less\b|worse\b|better\b)[a-z]+": "is not a",
    r"values? that (is|are) none": "invalid value",
}
PATTERN = re.compile(r"\b(?:" + "|".join(f"(?:{pattern})" for pattern in BANNED) + r")\b", flags=re.IGNORECASE)
EXAMPLE = re.compile(r"^ *>>> .*\n(?: *\S.*\n)*", flags=re.MULTILINE)  # an example in a docstring, with its output
LONGEST = 25  # words of a sentence
SUFFIXES = {".py", ".md", ".yaml", ".cff", ".toml"}


def passages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line number and the text of each passage of prose in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _of_python(text)
    elif path.suffix == ".md":
        yield from _of_markdown(text)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if found := re.search(r"(?:^|\s)#\s(.*)", line):
                yield number, found[1]


def _of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield comments, docstrings, and strings of more than one word: messages."""
    comment: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token.string.lstrip("# "))
            yield token.start[0], comment.pop()
    tree = ast.parse(text)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = EXAMPLE.sub(lambda match: "\n" * match[0].count("\n"), node.value)  # keeps the numbers of the lines
            yield from [(node.lineno, text)] if " " in text.strip() else []


def _of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs outside code blocks, without inline code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "X", line)


def faults(path: Path) -> list[tuple[int, str]]:
    """Return the line number and the phrase of each banned phrase in a file's prose."""
    found = []
    for number, text in passages(path):
        plain = re.sub(r"`[^`]*`", "X", text)
        for match in PATTERN.finditer(plain):
            found.append((number + plain[: match.start()].count("\n"), match[0]))
    return sorted(found)


def long_sentences(path: Path) -> list[tuple[int, str]]:
    """Return the line number and the beginning of each sentence with more than LONGEST words."""
    found = []
    for number, text in passages(path):
        for sentence in re.split(r"(?<=[.:;?!])\s+|\n\s*\n|\n\s*[-*|]\s", text):
            if len(words := sentence.split()) > LONGEST and "|" not in sentence:
                found.append((number, " ".join(words[:8]) + f" ... ({len(words)} words)"))
    return found


def files(root: Path) -> list[Path]:
    """Return the files below a folder that hold prose, or the file itself."""
    if root.is_file():
        return [root]
    found = [path for path in sorted(root.rglob("*")) if path.suffix in SUFFIXES]
    return [path for path in found if not any(part[0] in "._" or part == "outputs" for part in path.parent.parts)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for file in files(Path(name)):
            for line, phrase in faults(file):
                print(f"{file}:{line}: {phrase!r}")
            for line, start in long_sentences(file):
                print(f"{file}:{line}: long: {start}")
