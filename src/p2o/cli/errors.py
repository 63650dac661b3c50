"""What every command raises for bad input; apart, so that a command without models waits for none."""


class InputError(Exception):
    """Bad input, told in one message without a traceback."""
