"""The exceptions that commands report in one line, without a traceback, and exit code 1.

Any other exception is a defect of this package and keeps its traceback. `printable` keeps a message that
quotes a user's text on its line.
"""

import errno


class InputError(ValueError):
    """What the user gave cannot be used: a configuration, a file, a flag.

    The message is one line: what is wrong, where, and the way out.
    """


class RunError(RuntimeError):
    """A run that cannot go on, though its input was sound: a loss that is not finite, say.

    The message is one line: what happened, when, what is safe, and the way out.
    """


class WriteError(OSError, RunError):
    """A file that cannot be written: the disk is full, its folder is gone.

    Made like an OSError, (number, reason, path), and one too: where the user named the file, the command
    can catch it and say with which flag.
    """

    def __str__(self) -> str:
        full = self.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room there" if full else "mend that"
        return (
            f"{self.filename} cannot be written ({self.strerror}); {way_out} and give the same command again"
        )


def printable(name: str) -> str:
    """The name on one line: line breaks, control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
