"""The two errors that are no defect of ours: the user can act on one, a restart on the other."""


class InputError(ValueError):
    """Something the user gave is wrong: one line with the value, what was expected, the choices.

    Commands print the line and exit with status 2, without a traceback.
    """


class SystemFault(RuntimeError):
    """The machine failed, not the user: a disk, its space, memory, a network. One line.

    Commands print the line and exit with status 1, after which a supervisor starts them again.
    """
