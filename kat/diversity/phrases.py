"""Counts of words and of two phrases that language models overuse. Main entries: `em_dashes()`, `not_just_but()`."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_NOT_JUST = re.compile(r"(?:\bnot|n['’]t) just\b[^.!?;\n]*?\bbut\b", re.IGNORECASE)


def words(text: str) -> int:
    """Return the number of words; "don't" and "well-known" count as one word each."""
    return len(_WORD.findall(text))


def em_dashes(text: str) -> int:
    """Return the number of em-dashes, U+2014.

    En-dashes do not count, because ranges such as 1914–1918 contain them. Divide the number by words: sentence ends
    cannot be distinguished from abbreviations and decimals. Count in completions without their prompts.
    """
    return text.count("\N{EM DASH}")


def not_just_but(text: str) -> int:
    """Return the number of phrases "not just X but Y", also with "n't", within one sentence.

    Only the whole phrase counts, not a "not" in a text with the letters "but", as in "button".
    """
    return len(_NOT_JUST.findall(text))
