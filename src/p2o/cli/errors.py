"""The error that a command shows as a message."""


class InputError(Exception):
    """Bad input; its message is shown without a traceback."""
