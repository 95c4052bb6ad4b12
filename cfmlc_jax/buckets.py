"""Addresses in buckets, gs://… and s3://…, which are used like local paths; and copies of folders of objects.

fsspec's file systems (gcsfs, s3fs) move the bytes and repeat requests that fail for a moment. Whatever else they raise
becomes an `OSError`, as of a local path: `FileNotFoundError`, or a `BucketError` that says in one line what is wrong.

A bucket has objects, no folders: a folder exists as long as an object below it does. An object appears whole or not at
all; it cannot be appended to or renamed.
"""

import contextlib
import errno
import fcntl
import fnmatch
import functools
import importlib
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from etils.epath.gpath import PosixGPath

from cfmlc_jax import installed
from cfmlc_jax.errors import BucketError, InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_STAGING = "cfmlc_jax-copies-"


class _Store(NamedTuple):
    """package: of fsspec's file system, and the extra of this package that installs it.

    errors: modules and names of the exceptions that are no OSErrors.
    """

    package: str
    extra: str
    errors: tuple[tuple[str, str], ...]


_ERRORS = (("aiohttp", "ClientError"), ("asyncio", "TimeoutError"))
_STORES = {
    "gs": _Store(
        "gcsfs",
        "gcs",
        (*_ERRORS, ("gcsfs.retry", "HttpError"), ("google.auth.exceptions", "GoogleAuthError")),
    ),
    "s3": _Store(
        "s3fs",
        "s3",
        (*_ERRORS, ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError")),
    ),
}
SCHEMES = tuple(f"{scheme}://" for scheme in _STORES)


def scheme_of(text: str) -> str:
    """The scheme of an address, "s3" of s3://bucket/run; also with the one slash that pathlib leaves; "" of a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else ""


class Address(PosixGPath):
    """An object in a bucket, or a folder of objects: what this package needs of `pathlib.Path`.

    Its parents, its name and its children are etils' `epath`; what reads and writes is not: epath makes a local path
    of the address in `absolute()`, remembers what folders held, and passes on whatever a store raises.
    """

    @property
    def _backend(self) -> Any:
        raise NotImplementedError(f"{self}: of epath's own input and output, none is used")

    @property
    def _key(self) -> str:
        """Bucket and name, as file systems want them."""
        return "/".join(self.parts[2:])

    @property
    def _scheme(self) -> str:
        return self.parts[1]

    @property
    def bucket(self) -> "Address":
        """The bucket's own address."""
        return self._new(f"{self._scheme}://{self.parts[2]}")

    def absolute(self) -> "Address":
        """The address itself."""
        return self

    resolve = expanduser = absolute

    def exists(self) -> bool:
        """Whether there is such an object, or one below."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether there is an object below."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        """Whether there is such an object."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def stat(self) -> Any:
        """`st_size`, and `version`, a text that another content would not have."""
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        version = next(
            (info[name] for name in ("ETag", "etag", "LastModified", "mtime") if info.get(name)), ""
        )
        return SimpleNamespace(st_size=info.get("size") or 0, version=str(version))

    def iterdir(self) -> Iterator["Address"]:
        """The objects and folders directly below."""
        return iter([self / name for name in self.entries()])

    def entries(self) -> dict[str, bool]:
        """Names of what is directly below, and whether each is a folder.

        Raises:
            FileNotFoundError: there is nothing below.
        """
        with self._translated() as system:
            listed = system.ls(self._key, detail=True)
        # A browser's "new folder" is an object with the folder's own name and a slash.
        names = {entry["name"].rstrip("/"): entry["type"] == "directory" for entry in listed}
        return {
            name.rpartition("/")[2]: is_folder
            for name, is_folder in names.items()
            if name.strip("/") != self._key.strip("/")
        }

    def glob(self, pattern: str) -> Iterator["Address"]:
        """Those directly below whose names match; none if there is nothing."""
        names: Collection[str] = ()
        with contextlib.suppress(FileNotFoundError):
            names = self.entries()
        return iter([self / name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)])

    def read_bytes(self, size: int = -1, start: int = 0) -> bytes:
        """The object's content, or so many of its bytes from a place on."""
        options = {} if size < 0 else {"start": start, "end": start + size}
        with self._translated() as system:
            return system.cat_file(self._key, **options)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text, with universal newlines as of a local file."""
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding) as file:
            return file.read()

    def open(self, mode: str = "r", *, encoding: str = "utf-8") -> Any:
        """The object's content as an open file, for reading only."""
        assert mode in ("r", "rb")
        return io.BytesIO(self.read_bytes()) if mode == "rb" else io.StringIO(self.read_text(encoding))

    def replace_by(self, data: bytes) -> None:
        """Put an object there, in place of the one before: whole or not at all."""
        with self._translated() as system:
            system.pipe_file(self._key, data)

    def create(self, data: bytes) -> bool:
        """Put an object there if there is none, and return whether it was put; of several that try, one succeeds.

        Some servers of s3:// have no such request: there two that try at the same moment may both succeed.
        """
        try:
            with self._translated() as system:
                system.pipe_file(self._key, data, mode="create")
        except FileExistsError:
            return False
        except BucketError as error:
            if not re.search(r"not implemented|NotImplemented|functionality", str(error.strerror)):
                raise
            if self.exists():
                return False
            self.replace_by(data)
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        with _unless(missing_ok), self._translated() as system:
            system.rm_file(self._key)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders need not be created."""

    def rmdir(self) -> None:
        """Do nothing: an empty folder does not exist."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Remove all objects below."""
        with _unless(missing_ok), self._translated() as system:
            system.rm(self._key, recursive=True)

    def files(self) -> list[str]:
        """The objects below, at any depth, relative to this address."""
        with self._translated() as system:
            found = system.find(self._key)
        start = len(self._key.strip("/")) + 1
        return sorted(name.strip("/")[start:] for name in found if not name.endswith("/"))

    def upload(self, folder: Path, *, last: str) -> None:
        """Copy a local folder here; its file `last` appears after all others."""
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        for some in ([name for name in names if name != last], [last]):
            with self._translated() as system:
                system.put([str(folder / name) for name in some], [f"{self._key}/{name}" for name in some])

    def download(self, folder: Path, names: Collection[str]) -> None:
        """Copy objects, relative to this address, into a local folder."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self._translated() as system:
            system.get([f"{self._key}/{name}" for name in names], [str(folder / name) for name in names])

    def copy_to(self, target: "Address", *, last: str) -> None:
        """Copy the objects below into another folder of the store; `last` appears after all others."""
        names = self.files()
        for name in sorted(names, key=lambda name: name == last):
            with self._translated() as system:
                system.cp_file(f"{self._key}/{name}", f"{target._key}/{name}")

    def _info(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError), self._translated() as system:
            return system.info(self._key)
        return None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[Any]:
        """The file system of the store; what it raises in the block becomes an `OSError` about this address."""
        system = filesystem(self._scheme)
        try:
            yield system
        except (FileNotFoundError, FileExistsError) as error:
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EEXIST
            raise OSError(number, os.strerror(number), str(self)) from error
        except BucketError:
            raise
        except _errors(self._scheme) as error:
            raise _bucket_error(error, self) from error


def _unless(missing_ok):
    return contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext()


@functools.cache
def filesystem(scheme: str) -> Any:
    """fsspec's file system of a store, one for each process.

    Raises:
        InputError: the package of the store is not installed, or what configures it is wrong.
    """
    store = _STORES[scheme]
    try:
        import fsspec

        importlib.import_module(store.package)
    except ImportError as error:
        raise InputError(
            f"{scheme}:// needs the package {store.package}; pip install 'cfmlc_jax[{store.extra}]'"
        ) from error
    # It prints what it raises as well.
    logging.getLogger(store.package).setLevel(logging.CRITICAL)
    try:
        # A listing that is kept would hide what other processes write.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{scheme}:// cannot be used ({_one_line(error)}); see {installed.document('buckets.md')}"
        ) from error


@functools.cache
def _errors(scheme) -> tuple[type[Exception], ...]:
    """What the file system of a store raises."""
    kinds: list[type[Exception]] = [OSError]
    for module, name in _STORES[scheme].errors:
        with contextlib.suppress(ImportError):  # a store that tests put in its place
            kinds.append(getattr(importlib.import_module(module), name))
    return tuple(kinds)


def _bucket_error(error, address) -> BucketError:
    text = _one_line(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"NoCredentialsError", "PartialCredentialsError", "GoogleAuthError"}:
        return BucketError(errno.EACCES, f"no valid credentials: {text}", str(address))
    if isinstance(error, PermissionError) or re.search(r"\b(401|403|AccessDenied|Forbidden)\b", text):
        return BucketError(errno.EACCES, f"access denied: {text}", str(address))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a local copy
        return BucketError(error.errno, os.strerror(error.errno), str(error.filename or address))
    return BucketError(errno.EIO, text, str(address))


def _one_line(error):
    text = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
    return (text or type(error).__name__)[:200]


def require_usable(address: Address) -> None:
    """Raise unless the address can be read, or nothing is there yet in a bucket that exists.

    Raises:
        InputError: the bucket does not exist, no credentials, no rights, no network; or the package is missing.
    """
    if len(address.parts) < 3:
        raise InputError(f"{address} names no bucket; write {address._scheme}://bucket/folder")
    try:
        if address.exists():
            return
    except BucketError as error:
        raise InputError(f"{error.filename} cannot be used ({error.strerror}); {error.way_out}") from error
    # Who may read objects may often not ask about the bucket.
    with contextlib.suppress(BucketError):
        if not address.bucket.exists():
            raise InputError(f"bucket {address.bucket} does not exist; create it, or correct the address")


@contextlib.contextmanager
def local_folder() -> Iterator[Path]:
    """A new folder on the local disk ($TMPDIR), removed when the block ends; those of killed processes are too."""
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_STAGING))
    with (folder / ".new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / ".lock")  # which nobody sees unlocked
        try:
            yield folder
        finally:
            _remove(folder)


def _remove_abandoned():
    """Remove the folders whose process was killed: nobody holds their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError), (folder / ".lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _remove(folder):
    """Remove a folder of copies, its lock last: a process that is killed meanwhile leaves one that the next removes."""
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
