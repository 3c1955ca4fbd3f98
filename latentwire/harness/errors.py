"""The one exception that is meant for the user's eyes."""

from collections.abc import Iterator


class UserError(Exception):
    """A mistake or a circumstance the user can mend.

    The message states the value, the reason and the remedy; the entry points print it without a traceback
    and exit with a non-zero status.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
