"""Messages stay on one line, whatever they quote."""

import errno
import pickle

import pytest

from cfmlc_jax.checkpoint import UnreadableError
from cfmlc_jax.errors import BucketError, InputError, RunError, WriteError

ODD = "a\nb\x0b\ud800"


@pytest.mark.parametrize(
    "error",
    [
        InputError(ODD),
        RunError(ODD),
        UnreadableError(ODD, ODD),
        WriteError(errno.EIO, ODD, ODD),
        BucketError(errno.EIO, ODD, ODD),
    ],
    ids=lambda error: type(error).__name__,
)
def test_messages_are_one_line_of_text(error):
    assert len(str(error).splitlines()) == 1
    str(error).encode()
    assert r"a\nb\x0b\ud800" in str(error)


@pytest.mark.parametrize("error", [InputError(ODD), RunError(ODD)])
def test_errors_of_other_processes_are_the_same(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
