"""The exceptions that commands report in one line, without a traceback, and exit code 1.

Any other exception is a bug in this package and keeps its traceback. A message may quote a user's text as it is: the
exceptions keep it on one line, by `printable`.
"""

import errno


class InputError(ValueError):
    """The user's input cannot be used: a configuration, a file, a flag.

    The message is one line: what is wrong, where, and what to do.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class RunError(RuntimeError):
    """A run cannot continue although its input was valid: a loss is not finite, for example.

    The message is one line: what happened, when, what is intact, and what to do.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class WriteError(OSError, RunError):
    """A file cannot be written: the disk is full, or its folder is missing.

    It is also an OSError and takes the same arguments (errno, reason, path): where the user named the file,
    the command can catch it and name the flag.
    """

    def __str__(self) -> str:
        full = self.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free space there" if full else "fix that"
        return printable(
            f"{self.filename} cannot be written ({self.strerror}); {way_out} and run the same command again"
        )


class BucketError(OSError, RunError):
    """A bucket cannot be used: no rights, no credentials, no network.

    It takes the arguments of an OSError: errno, reason, address. `way_out` says what to do.
    """

    @property
    def way_out(self) -> str:
        """What to do."""
        if self.errno == errno.EACCES:
            return "get rights or credentials for it"
        if self.errno in (errno.ENOSPC, errno.EDQUOT):
            return "free space there"
        return "check the network and that the bucket is there"

    def __str__(self) -> str:
        return printable(
            f"{self.filename} cannot be used ({self.strerror}); {self.way_out} and run the same command again"
        )


def printable(name: str) -> str:
    """The name on one line: line breaks, control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
