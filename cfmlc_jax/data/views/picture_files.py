"""The bytes of picture files, of which none fills the memory."""

import os
import stat

from cfmlc_jax import buckets, files
from cfmlc_jax.errors import InputError

# A larger file is not a photo, and would be read whole before its header is parsed.
MAX_BYTES = 2**30


def read(path: str, where: str) -> bytes:
    """The content of a picture file on this machine.

    Args:
        path: of the file.
        where: how an error calls it.

    Raises:
        InputError: it is no regular file, or has more than `MAX_BYTES`.
        OSError: it cannot be read.
    """
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise InputError(f"{where}: a folder, not an image; give the files in it")
    # Opening a pipe waits for its writer, and some devices never end.
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{where}: not a regular file; copy its content to one")
    _require_size(info.st_size, where)
    with open(path, "rb") as file:
        return file.read()


def read_anywhere(path: str) -> bytes:
    """The content of a picture file, or of an object in a bucket, whose size is known only when it has been read.

    Raises:
        InputError: as `read`.
        OSError: it cannot be read.
    """
    if not buckets.scheme_of(path):
        return read(path, path)
    content = files.read_bytes(path)
    _require_size(len(content), path)
    return content


def _require_size(size, where):
    if size > MAX_BYTES:
        raise InputError(f"{where}: {size} bytes are more than {MAX_BYTES}; scale the image down")
