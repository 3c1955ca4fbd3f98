"""Numbers in texts, compared by their value. Main entries: `last_number()` and `are_equal()`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 1000  # a longer run of digits is not read as a number

# A number begins after no letter, digit, point or slash: not the 2 in CO2, nor the parts of a date. A minus after a
# digit or a bracket is a subtraction.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]%])[-+\u2212])?[$€£]?(?<![\w./])"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<decimals>\.[0-9]+)?|(?P<point>\.[0-9]+))"
    r"(?P<exponent>[eE][-+]?[0-9]{1,3}(?!\w))?"
    r"(?:\s?/\s?(?P<divisor>[0-9]+(?:\.[0-9]+)?)(?![\w/]))?"
    r"\s?\\?(?P<percent>%)?"
)


@dataclass(frozen=True)
class TextNumber:
    """A number as it is written: 50% has the value 50."""

    value: Fraction
    is_percent: bool


def last_number(text: str) -> TextNumber | None:
    """Return the last number of a text; None without one.

    Reads signs, thousands commas (1,000), decimals, exponents (1e3), fractions (1/2), percent and currency signs.
    """
    found = None
    for match in NUMBER.finditer(text):
        found = match
    if found is None or len(found[0]) > MOST_DIGITS:
        return None
    digits = found["point"] or found["whole"].replace(",", "") + (found["decimals"] or "")
    divisor = Fraction(found["divisor"] or 1)
    if divisor == 0:
        return None
    value = Fraction(digits + (found["exponent"] or "")) / divisor
    return TextNumber(-value if found["sign"] in ("-", "\u2212") else value, found["percent"] is not None)


def are_equal(number: TextNumber, reference: TextNumber, tolerance: float = 0.0) -> bool:
    """Return whether two numbers are equal.

    If only one of them has a percent sign, the other may be the number or the share: 50% equals 50 and 0.5.

    Args:
        number: A number.
        reference: The right number.
        tolerance: Largest difference, as a share of the reference.
    """
    values, references = [number.value], [reference.value]
    if number.is_percent != reference.is_percent:
        shares = values if number.is_percent else references
        shares.append(shares[0] / 100)
    most = Fraction(tolerance)
    return any(abs(value - right) <= most * abs(right) for value in values for right in references)
