"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake or a circumstance the user can mend.

    The message states the value, the reason and the remedy; the entry points print it without a traceback
    and exit with a non-zero status.
    """
