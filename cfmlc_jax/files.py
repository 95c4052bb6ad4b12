"""Files written atomically, and checks of the paths that users give: local ones, and addresses in buckets.

A local file is written under a temporary name, then renamed; an object in a bucket is put whole. File and folder are
synced, so that what is removed afterwards is not missed after a power cut. If only the folder cannot be synced, the error is
the same, but the file is the new one.
"""

import argparse
import contextlib
import errno
import functools
import io
import math
import os
import socket
import struct
import threading
import time
import tokenize
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np

from cfmlc_jax import buckets, cli
from cfmlc_jax.buckets import Address
from cfmlc_jax.errors import InputError, WriteError

# Orbax treats the folder of a save as a glob pattern when it merges the files of several processes: the
# save then lacks its index, or contains another run's arrays. TensorStore reads a backslash as a slash.
_PATTERN = "[*?\\"
# What is appended to an object is kept and put later: so often, or so seldom that a megabyte a second is sent.
SECONDS_BETWEEN_PUTS = 10.0
_BYTES_PER_SECOND = 2**20
# Bytes in which the header of a .npy file ends: NumPy writes 128.
_NPY_HEADER = 2**12
# NumPy parses such headers by `ast`, which before Python 3.11.8 fails at times if several threads do (CPython issue 106905).
_LITERALS = threading.Lock()


CACHE_VARIABLE = "CFMLC_CACHE"
_TEMPORARY = ".tmp"  # the last part of the name of a file that is being written
_LEFT_SECONDS = 3600.0  # since its last change, after which another host's such file counts as left behind
# Some file systems cannot sync a folder, and one that may not be listed cannot be opened.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


def user_cache(name: str) -> Path:
    """A folder for files that can be made or downloaded again: <name> in $CFMLC_CACHE.

    Without that variable it is cfmlc_jax/<name> in $XDG_CACHE_HOME, else in ~/.cache.

    Raises:
        InputError: as `place`, for that variable.
    """
    own = os.environ.get(CACHE_VARIABLE, "")
    if own:
        return place(own, f"${CACHE_VARIABLE}").absolute() / name
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of the variable says that relative paths are ignored.
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "cfmlc_jax" / name


def require_path(text: str, name: str, *, bucket: bool = False) -> None:
    """Raise unless a text can be a path on this machine, whether or not it exists.

    Args:
        text: the path.
        name: how the error calls it, for example "--workdir".
        bucket: an address in a bucket is as good (`buckets.SCHEMES`).

    Raises:
        InputError: the text is the address of a store or a web page, or has a control character or broken
            UTF-8 in it.
    """
    scheme = buckets.scheme_of(text)
    served = f"{scheme}://" in buckets.SCHEMES
    if scheme and not (served and bucket):
        also = f", or an address in a bucket, {' or '.join(buckets.SCHEMES)}" if bucket else ""
        raise InputError(
            f"{name} {text!r} is an address, not a path on this machine; give a local or mounted folder{also}"
        )
    character = forbidden_character(text)
    if character:
        raise InputError(
            f"{name} {text!r} has the character {character!r}, which is not allowed in a path; rename it"
        )


def path_of(text: str | os.PathLike, name: str = "path") -> Path:
    """The local path with "~" resolved, or the `buckets.Address`, that a text stands for.

    Addresses are no `Path`, but have what this package uses of it. A `Path` made of an address, which has lost one of
    its two slashes, is the address again, so that it never becomes a folder named "s3:".

    Args:
        text: the path or the address.
        name: how an error calls it.

    Raises:
        InputError: the address of a store that is not one of `buckets.SCHEMES`, or a path that begins with the home of an
            unknown user.
    """
    if isinstance(text, Address):
        return cast(Path, text)
    text = os.fspath(text)
    scheme = buckets.scheme_of(text)
    if not scheme:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise InputError(
                f"{name} {text!r} begins with the home of an unknown user; give the full path"
            ) from error
    require_path(text, name, bucket=True)
    return cast(Path, Address(f"{scheme}://{text.partition(':')[2].lstrip('/')}"))


def forbidden_character(text: str) -> str:
    """The first control character or lone surrogate of a text; empty if there is none."""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), "")


def place(text: str | os.PathLike, name: str, *, bucket: bool = False) -> Path:
    """The path that a user gave with "~" resolved, whether or not it exists.

    Args:
        text: the path.
        name: how the error calls it, for example "--workdir".
        bucket: it may be an address in a bucket; then the bucket must be usable.

    Raises:
        InputError: as `require_path`; or the text is empty, begins with the home of an unknown user, or the
            operating system refuses the path; or `buckets.require_usable` raises.
    """
    text = os.fspath(text)
    if not text:
        raise InputError(f"{name} is empty; give a path, or omit it")
    require_path(text, name, bucket=bucket)
    try:
        path = path_of(text, name)
        if isinstance(path, Address):
            _require_bucket(path, name)
        else:
            path.exists()
    except OSError as error:
        shown = text if len(text) < 200 else f"{text[:100]}…"
        raise InputError(f"{name} {shown!r} cannot be used ({error.strerror}); give another path") from error
    return path


def _require_bucket(address, name):
    try:
        buckets.require_usable(address)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def local_path(text: str) -> Path:
    """A `type` for argparse: a path on this machine; an address is an error."""
    return _path_argument(text, bucket=False)


def any_path(text: str) -> Path:
    """A `type` for argparse: a path on this machine, or an address in a bucket."""
    return _path_argument(text, bucket=True)


def _path_argument(text, *, bucket):
    try:
        require_path(text, "value", bucket=bucket)
        return path_of(text, "value")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_savable(folder: Path, name: str) -> None:
    """Raise unless checkpoints saved in the folder can be read again.

    Raises:
        InputError: the absolute path has a character that Orbax treats as a pattern, or bytes that are not
            text.
    """
    path = str(path_of(folder).absolute())
    character = next((c for c in path if c in _PATTERN), "") or forbidden_character(path)
    if character:
        raise InputError(
            f"{name} {path!r} has {character!r} in it, so checkpoints saved there could not be read; "
            f"choose a path of printable text without any of {' '.join(_PATTERN)}"
        )


def create_folder(folder: Path, name: str) -> None:
    """Create a folder with its parents, unless it exists.

    Args:
        folder: the path.
        name: how the error calls it, for example "--out".

    Raises:
        InputError: it cannot be created, or is a file.
    """
    try:
        if not isinstance(folder, Address):
            _require_local(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{name} {folder} cannot be created ({error.strerror}); give another folder"
        ) from error


def same_path(one: str, other: str) -> bool:
    """Whether two texts name the same path; "~", links, ".." and a trailing slash are resolved."""
    return bool(one) == bool(other) and real_path(one) == real_path(other)


def real_path(text: str) -> str:
    """The text of a path with "~", links and ".." resolved; an address stays as it is, without a trailing slash."""
    return str(path_of(text)) if buckets.scheme_of(text) else os.path.realpath(os.path.expanduser(text))


def read_bytes(path: str | os.PathLike, size: int = -1) -> bytes:
    """The content of a file or object, or its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    given = path_of(path) if buckets.scheme_of(os.fspath(path)) else path
    if isinstance(given, Address):
        return given.read_bytes(size)
    with open(path, "rb") as file:
        return file.read(size)


def write_text(path: Path, text: str) -> None:
    """Replace the file by UTF-8 text; a crash leaves the old file or the new one, never a part of it.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, which replaces the file when the block ends; an exception leaves nothing.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file by these bytes, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        file.write(data)


def write_npz(path: Path, **arrays) -> None:
    """Replace the file by a compressed archive of arrays, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Replace the file by one array, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def sync(folder: Path) -> None:
    """Sync a local folder, all that is in it, and its own name: after that no power cut undoes them.

    Raises:
        OSError: the disk is full or broken, for example.
    """
    for path in (*folder.rglob("*"), folder, folder.parent):
        _sync(path)


def _sync(path):
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


# An archive may be expanded to this many bytes, or to so many times its own size. Deflate can reach a thousandfold.
MOST_EXPANDED, MOST_EXPANSION = 2**28, 100


def opened_zip(file: BinaryIO) -> zipfile.ZipFile:
    """A ZIP archive for reading, whose members all fit in memory together.

    Raises:
        ValueError: it is damaged; or its members expand to more than `MOST_EXPANDED` bytes, `MOST_EXPANSION` times its size.
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
    except (NotImplementedError, struct.error) as error:  # of another version of ZIP, or damaged
        raise ValueError(str(error)) from error
    # A member that is longer than the archive states is cut off at that length, and fails its checksum.
    expanded = sum(member.file_size for member in archive.infolist())
    if expanded > max(MOST_EXPANDED, MOST_EXPANSION * size):
        archive.close()
        raise ValueError(f"{size:,} bytes would expand to {expanded:,}")
    return archive


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays by name of an archive that `write_npz` wrote. No array is larger than what the file has of it.

    Raises:
        ValueError: it expands too far (`opened_zip`), or an array is of objects or not as large as it declares.
        OSError, EOFError, zipfile.BadZipFile, zlib.error: it cannot be read.
    """
    arrays = {}
    with opened_zip(file) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as content:
                    array = _read_array(cast(BinaryIO, content), member.file_size)
            except RuntimeError as error:  # encrypted, or compressed in a way that Python lacks
                raise ValueError(f"{member.filename}: {error}") from error
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def read_npy(path: Path) -> np.ndarray:
    """The array of a file that `write_npy` wrote.

    Raises:
        ValueError: it is of objects, or not as large as it declares.
        OSError, EOFError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return _read_array(file, size)


def map_npy(path: Path) -> np.ndarray:
    """The array of a file that `write_npy` wrote, mapped into memory to be read; the array is not empty.

    Raises:
        ValueError: it is of objects, or larger than what the file has of it.
        OSError, EOFError: it cannot be read.
    """
    with _header():
        return np.lib.format.open_memmap(path, mode="r")


@contextlib.contextmanager
def _header() -> Iterator[None]:
    """A context in which NumPy reads the header of an array, which is a Python literal; a damaged one is a ValueError."""
    try:
        with _LITERALS:
            yield
    # A literal that is nested too deeply is a MemoryError.
    except (SyntaxError, tokenize.TokenError, TypeError, LookupError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header is damaged ({error})") from error


def _read_array(file, size: int) -> np.ndarray:
    """The array of a file of so many bytes, of which memory is asked for only if they are there."""
    _read_header(file, size)
    file.seek(0)
    with _LITERALS:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order (whether Fortran's) and type of the array of a file of so many bytes; the file is at its first number."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"format {version} is not known")
    with _header():
        shape, fortran, dtype = read_header(file)
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if dtype.hasobject or declared != there:
        raise ValueError(f"{there:,} bytes are not an array {dtype} {list(shape)}")
    return shape, fortran, dtype


class ArrayInBucket:
    """The array of an object that `write_npy` wrote, as if it were mapped: a slice of its rows is read when it is asked for.

    Args:
        path: of the object.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: it is of objects, in Fortran's order, or not as large as it declares.
        OSError: it cannot be read.
    """

    def __init__(self, path: Address):
        self._path = path
        header = io.BytesIO(path.read_bytes(_NPY_HEADER))
        self.shape, fortran, self.dtype = _read_header(header, path.stat().st_size)
        if fortran:
            raise ValueError("its columns are consecutive, not its rows")
        self._start = header.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        count = max(stop - start, 0)
        content = (
            b"" if count == 0 else self._path.read_bytes(count * self._row, self._start + start * self._row)
        )
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file: all of it, or none if writing fails.

    Objects cannot be appended to: what is appended to one is kept in memory, and the object is put again after some
    seconds, and by `flush`.

    Raises:
        WriteError: the text cannot be written; the file is unchanged.
    """
    if isinstance(path, Address):
        _growing(path).append(text.encode())
        return
    _require_local(path)
    rest = memoryview(text.encode())
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error


def flush(path: Path) -> None:
    """Make sure that all that was appended to a file is in it.

    Raises:
        WriteError: it cannot be written; what was appended is kept for the next time.
    """
    if isinstance(path, Address) and path in _GROWING:
        _GROWING[path].flush()


class _Growing:
    """An object that is appended to: its content, which is put as a whole."""

    def __init__(self, address: Address):
        self._address = address
        try:
            self._content = bytearray(address.read_bytes() if address.exists() else b"")
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(address)) from error
        self._put, self._next = len(self._content), 0.0

    def append(self, data: bytes) -> None:
        self._content += data
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        if self._put == len(self._content):
            return
        _put(self._address, bytes(self._content))
        self._put = len(self._content)
        self._next = time.monotonic() + max(SECONDS_BETWEEN_PUTS, self._put / _BYTES_PER_SECOND)


_GROWING: dict[Address, _Growing] = {}


def _growing(address):
    if address not in _GROWING:
        _GROWING[address] = _Growing(address)
    return _GROWING[address]


def _put(address, data):
    try:
        address.replace_by(data)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(address)) from error


def _require_local(path):
    """Raise if a local path is an address that was taken for one: it would become a folder named "s3:"."""
    if any(f"{part}//" in buckets.SCHEMES for part in path.parts):
        raise WriteError(errno.EINVAL, "an address, taken for a path on this machine", str(path))


def temporary(path: Path) -> Path:
    """The path under which this process writes a local file before it takes that file's place."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}{_TEMPORARY}")


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes have left of files that they were writing into a local folder or the folders in it.

    A file of a process of this host stays while that runs, and one of another host for an hour: an evaluation may be
    writing it.
    """
    for path in folder.rglob(f".*.[0-9]*{_TEMPORARY}"):
        before, _, pid = path.name.removesuffix(_TEMPORARY).rpartition(".")
        with contextlib.suppress(
            OSError
        ):  # it has its name by now; or it cannot be removed, which harms nobody
            if pid.isdecimal() and _is_left(path, int(pid), own=before.endswith(f".{_host()}")):
                path.unlink()


def _is_left(path, pid, *, own):
    """Whether nobody writes a temporary file any more: `own` is of this host, where processes can be looked up."""
    if own:
        return pid == os.getpid() or not _runs(pid)
    return time.time() - path.stat().st_mtime > _LEFT_SECONDS


def _host():
    """A short name of this host."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _runs(pid):
    """Whether a process of this machine has the number."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def _replacing(path, mode, **options) -> Iterator[Any]:
    if isinstance(path, Address):
        data = io.BytesIO()
        file: Any = data if "b" in mode else io.TextIOWrapper(data, **options)
        yield file
        file.flush()
        _GROWING.pop(path, None)
        _put(path, data.getvalue())
        return
    _require_local(path)
    unfinished = temporary(path)
    with cli.if_interrupted(functools.partial(unfinished.unlink, missing_ok=True)):
        try:
            with unfinished.open(mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _sync(path.parent)
        except OSError as error:
            if isinstance(error, WriteError):  # about another file, written inside the block
                raise
            raise WriteError(error.errno, error.strerror, str(path)) from error
        finally:
            with contextlib.suppress(OSError):  # the file or its folder does not exist
                unfinished.unlink()
