"""What the commands say instead of a traceback."""


class InputError(Exception):
    """Bad input, told in one message without a traceback."""
