"""Downloads of one file by HTTP: into a part beside its place, resumed where a transfer broke off, then renamed."""

import contextlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cfmlc_jax
from cfmlc_jax.errors import InputError, RunError, WriteError
from cfmlc_jax.weights import cache

# A folder of the web with the same files: https://host/path is asked for as MIRROR/host/path.
MIRROR = "CFMLC_MIRROR"
TRIES = 5
# Before the first byte has arrived: no network is a likelier reason than a broken transfer.
FIRST_TRIES = 3
TIMEOUT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 1.0
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
# The version of the file whose beginning is in the part, beside it.
_VERSION = ".version"


class _BrokenError(Exception):
    """A transfer ended early, or did not begin; another try may help."""


class Place(NamedTuple):
    """Where a file comes from and goes to.

    url: of the file.
    path: in the cache.
    name: how messages call it.
    """

    url: str
    path: Path
    name: str

    def by_hand(self) -> str:
        """What a person can do instead of the download."""
        return f"or bring the file yourself, from {self.url} to {self.path}"


def download(place: Place, say: Callable[[str], None], *, silent: bool = False) -> None:
    """Download a file to its path, which appears when it is complete.

    A part that an earlier transfer left is continued, if the server can (HTTP Range) and has the same file still.

    Args:
        place: its folder exists.
        say: prints a line for the user.
        silent: show no progress.

    Raises:
        InputError: the server has no such file, or asks for a login.
        RunError: the server cannot be reached, or all transfers broke off; what has arrived is kept.
        WriteError: the cache cannot be written.
    """
    with cache.locked(place.path, say) as is_locked:
        if place.path.exists():  # another process has brought it
            return
        # Without a lock another process may be writing its own part.
        suffix = cache.PART if is_locked else f".{os.getpid()}{cache.PART}"
        part = place.path.with_name(place.path.name + suffix)
        say(f"downloading {mirrored(place.url)} to {place.path}")
        try:
            _fill(part, place, say, silent)
            os.replace(part, place.path)
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(place.path)) from error
        _version(part).unlink(missing_ok=True)


def mirrored(url: str) -> str:
    """The URL at the mirror that $CFMLC_MIRROR names; the URL itself if it names none."""
    mirror = os.environ.get(MIRROR, "")
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}" if mirror else url


def _fill(part, place, say, silent):
    """Bring all of the file into its part, in several transfers if need be."""
    progress = Progress(place.name, silent)
    most, pause, tries = _size(part), _FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            _transfer(part, place, progress)
            progress.close()
            return
        except _BrokenError as error:
            progress.close()
            if _size(part) > most:
                most, pause, tries = _size(part), _FIRST_PAUSE_SECONDS, 0
            tries += 1
            if tries == (TRIES if most else FIRST_TRIES):
                raise _gave_up(part, place, error) from error
            say(f"{place.name}: {error}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause *= 2


def _gave_up(part, place, error):
    arrived = _size(part)
    if arrived:
        return RunError(
            f"{mirrored(place.url)}: {error}; {arrived:,} bytes are kept in {part}: run the same command again to go on from there, "
            f"{place.by_hand()}"
        )
    return RunError(
        f"{mirrored(place.url)} cannot be reached ({error}); check the network, {place.by_hand()}"
    )


def _transfer(part, place, progress):
    """One request, appended to the part, or written over it if the server sends the file from its beginning."""
    start = _size(part)
    headers = {"User-Agent": f"cfmlc_jax/{cfmlc_jax.__version__}", "Accept-Encoding": "identity"}
    version = _read_version(part)
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version
    try:
        response = _open(place, headers)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                _past_the_end(part, error)
                return
            raise _refused(place, error) from error
    with response:
        start, total = _extent(response, start)
        _write_version(part, response.headers)
        progress.begin(start)
        _receive(part, response, start, total, progress)


def _open(place, headers):
    """The response to a request; raises `HTTPError` if the server refuses."""
    try:
        request = urllib.request.Request(mirrored(place.url), headers=headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _BrokenError(_reason(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error
    except ValueError as error:
        raise InputError(f"{mirrored(place.url)!r} is not a URL ({error}); check ${MIRROR}") from error


def _extent(response, asked) -> tuple[int, int | None]:
    """(the byte at which the response begins, bytes of the whole file or None), from its headers."""
    length = response.headers.get("Content-Length", "")
    if response.status != http.client.PARTIAL_CONTENT:
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != asked:
        raise _BrokenError(f"the server sends another range than bytes {asked:,} and following")
    return asked, int(match[3]) if match[3].isdecimal() else int(match[2]) + 1


def _receive(part, response, start, total, progress):
    """Write a response from the byte `start` on into the part."""
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        arrived = start
        while chunk := _chunk(response):
            file.write(chunk)
            arrived += len(chunk)
            progress.show(arrived, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and arrived != total:
        raise _BrokenError(f"the transfer broke off after {arrived:,} of {total:,} bytes")


def _chunk(response):
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error


def _past_the_end(part, error):
    """The part has as many bytes as the file, or more: in the second case it is of another file, and is dropped."""
    match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != _size(part):
        part.unlink()
        raise _BrokenError("what an earlier transfer left is not of this file")


def _refused(place, error):
    if error.code in _BUSY:
        return _BrokenError(f"the server answers {error.code} {error.reason}")
    if error.code in (401, 403):
        return InputError(
            f"{mirrored(place.url)} asks for a login (HTTP {error.code}); download it in a browser to {place.path}"
        )
    if error.code in (404, 410):
        return InputError(
            f"{mirrored(place.url)} is not there (HTTP {error.code}): it was moved or removed; if you have the file, put it at "
            f"{place.path}"
        )
    return RunError(
        f"{mirrored(place.url)}: the server answers {error.code} {error.reason}; try later, {place.by_hand()}"
    )


def _reason(error: Any) -> str:
    """What the operating system says about a connection, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _version(part):
    return part.with_name(part.name + _VERSION)


def _read_version(part):
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _version(part).read_text(encoding="ascii").strip()
    return ""


def _write_version(part, headers):
    """Keep what If-Range asks by: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag", "")
    version = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    _version(part).write_text(version, encoding="ascii")


class Progress:
    """Prints "resnet101: 40.0 of 170.5 MB, 12.1 MB/s" to standard error while a file arrives.

    On a terminal each line overwrites the last; elsewhere there is a line every ten seconds.
    """

    def __init__(self, name: str, silent: bool):
        self._name, self._silent = name, silent
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._open_line = False
        self.begin(0)

    def begin(self, arrived: int) -> None:
        """Measure the speed from now on, with so many bytes there already."""
        self._begun = self._last = time.monotonic()
        self._before = arrived

    def show(self, arrived: int, total: int | None) -> None:
        """Report how many bytes have arrived."""
        now = time.monotonic()
        if self._silent or now - self._last < self._every:
            return
        self._last = now
        rate = (arrived - self._before) / max(now - self._begun, 1e-9) / 1e6
        of_total = "" if total is None else f" of {total / 1e6:.1f}"
        line = f"{self._name}: {arrived / 1e6:.1f}{of_total} MB, {rate:.1f} MB/s"
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End an open line."""
        if self._open_line:
            print(file=sys.stderr, flush=True)
        self._open_line = False
