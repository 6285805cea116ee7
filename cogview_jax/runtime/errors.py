"""The error a user can act on."""


class InputError(ValueError):
    """Something the user gave is wrong: one line with the value, what was expected, the choices.

    The command-line doors print the line and exit with status 2, without a traceback; every other
    exception is a defect of ours and keeps its traceback.
    """
