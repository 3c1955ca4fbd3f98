"""Errors that are shown to the user. Main entry: `UserError`."""

from collections.abc import Iterator


class UserError(Exception):
    """An error that the user can fix.

    The message gives the value, the reason and the remedy. The entry points print it without a traceback and exit
    with a non-zero status.

    >>> from latentwire import Vocabulary, build_transform, load_model_by_name
    >>> vocabulary = Vocabulary(load_model_by_name("tiny_random").token_embeddings())
    >>> build_transform("anchor_offset", {"eps": -1.0}, vocabulary)
    Traceback (most recent call last):
    latentwire.harness.errors.UserError: eps=-1.0: must be 0 (the anchor alone) or more
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
