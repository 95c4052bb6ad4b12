"""The exceptions that commands report in one line, without a traceback, and exit code 1.

Any other exception is a defect of this package and keeps its traceback.
"""


class InputError(ValueError):
    """What the user gave cannot be used: a configuration, a file, a flag.

    The message is one line: what is wrong, where, and the way out.
    """


class RunError(RuntimeError):
    """A run that cannot go on, though its input was sound: a loss that is not finite, say.

    The message is one line: what happened, when, what is safe, and the way out.
    """
