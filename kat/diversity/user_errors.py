"""Messages for errors in the functions that compute metrics. Main entry: `explaining()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from latentwire.harness.errors import UserError

S = TypeVar("S")
R = TypeVar("R")


def place_of(define: Callable[..., object]) -> str:
    """Return where a metric is defined: 'my_module.distinct_texts'."""
    return f"{define.__module__}.{define.__qualname__}"


def explaining(name: str, define: Callable[..., object], compute: Callable[[S], R]) -> Callable[[S], R]:
    """Return a function that computes a metric, and raises a `UserError` if the metric raises any exception.

    Args:
        name: Name of the metric, for the message.
        define: Class or function that is registered, for the message.
        compute: Function from texts to the values of the metric.
    """

    def computed(texts: S) -> R:
        try:
            return compute(texts)
        except UserError:
            raise
        except Exception as error:  # a metric may be the user's, so any error in it is the user's to fix
            raise UserError(
                f"diversity metric {name}: raised {type(error).__name__} ({error}); fix {place_of(define)}"
            ) from error

    return computed
