"""The image files of a command's arguments: files, folders, globs, and stdin."""

import codecs
import glob
import os
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from cfmlc_jax import buckets
from cfmlc_jax.data.views import formats
from cfmlc_jax.data.views.picture_files import MAX_BYTES
from cfmlc_jax.errors import InputError

# The argument for stdin, and the name of an image on it.
STDIN, STDIN_NAME = "-", "stdin"
_LONGEST = 300  # characters of an argument that are shown
_FIRST = 3  # problems or names that a message lists


class Problem(NamedTuple):
    """A line about inputs that are not predicted, and their number."""

    line: str
    inputs: int = 1


class Images(NamedTuple):
    """The images of the arguments.

    paths: files, each once, in the order of the arguments; `STDIN_NAME` for the image on stdin.
    contents: the bytes of that image, by its name.
    problems: on every argument that gave none, and on pictures in folders of kinds that are not read.
    """

    paths: list[str]
    contents: dict[str, bytes]
    problems: list[Problem]


def find(arguments: Iterable[str], stdin: BinaryIO) -> Images:
    """The files of the arguments.

    A folder stands for the images in it and in its folders, by their suffix, hidden ones left out;
    a glob ("**" for folders) that the shell did not expand for what it matches; "-" for the image on
    stdin, or else for the paths there, one a line or with a zero byte behind each. Whether a file can be
    read is not looked at.

    Raises:
        InputError: no file at all.
    """
    paths: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    problems: list[Problem] = []

    def add(argument):
        for path in _meant(argument, problems):
            # Images are compared by their real path: "a.jpg" and "./a.jpg" are one image.
            folder, name = os.path.split(path)
            # A file has the name of the image on stdin.
            unmistakable = os.path.join(os.curdir, path) if path == STDIN_NAME else path
            paths.setdefault(os.path.join(os.path.realpath(folder), name), unmistakable)

    for argument in arguments:
        if argument != STDIN:
            add(argument)
            continue
        data = _all_of(stdin)
        if formats.kind_of(data[: formats.HEAD_BYTES]) is not None:
            contents[STDIN_NAME] = data
            paths[STDIN] = STDIN_NAME
        else:
            for path in _listed(data, problems):
                add(path)
    if not paths:
        tried = "; ".join(problem.line for problem in problems[:_FIRST]) or "stdin is empty"
        raise InputError(
            f"there is no image to predict ({tried}); give images, folders, globs, or - for stdin"
        )
    return Images(list(paths.values()), contents, problems)


def _all_of(stdin):
    data = stdin.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"stdin: more than {MAX_BYTES} bytes are neither an image nor a list of paths")
    return data


def _listed(data, problems):
    """The paths in a list; no paths and a problem if the text is not a list."""
    data = data.removeprefix(codecs.BOM_UTF8)
    entries = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    paths = [os.fsdecode(entry) for entry in entries if entry]
    # Names may be any bytes, but most names in a list of paths exist.
    if not _is_text(data) and 2 * sum(map(os.path.lexists, paths)) <= len(paths):
        problems.append(Problem(f"stdin: {len(data)} bytes that are neither an image nor a list of paths"))
        return []
    return paths


def _is_text(data):
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _meant(argument, problems):
    if buckets.scheme_of(argument):
        problems.append(Problem(f"{_quoted(argument)} is an address; copy the images to a local folder"))
        return []
    if os.path.isdir(argument):
        return _images_in(argument, problems)
    if os.path.lexists(argument):
        return [argument]
    if not glob.has_magic(argument):
        problems.append(Problem(f"{_quoted(argument)} does not exist"))
        return []
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        problems.append(Problem(f"nothing matches {_quoted(argument)}"))
    paths = []
    for match in matches:
        # With "**" the files inside matching folders are matches too.
        if not os.path.isdir(match):
            paths.append(match)
        elif "**" not in argument:
            paths += _images_in(match, problems)
    return paths


def _quoted(argument):
    # A line on stdin may have any bytes.
    return repr(argument) if len(argument) <= _LONGEST else f"{argument[:_LONGEST]!r}…"


def _images_in(folder, problems):
    paths: list[str] = []
    unread: list[str] = []
    seen = set()

    def unreadable(error):
        problems.append(Problem(f"folder {error.filename!r} cannot be read ({error.strerror})"))

    before = len(problems)
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a symbolic link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        paths += [os.path.join(place, name) for name in names if name.lower().endswith(formats.SUFFIXES)]
        unread += [name for name in names if name.lower().endswith(formats.UNREAD_SUFFIXES)]
    if unread:
        problems.append(Problem(_not_read(folder, unread), len(unread)))
    if not paths and len(problems) == before:
        problems.append(Problem(f"folder {folder!r} has no file ending in {', '.join(_COMMON)}, …"))
    return paths


def _not_read(folder, names):
    first = ", ".join(map(repr, names[:_FIRST])) + (", …" if len(names) > _FIRST else "")
    kinds = "1 file of a kind that is" if len(names) == 1 else f"{len(names)} files of kinds that are"
    return f"folder {folder!r}: {kinds} not read ({first}); convert to JPEG or PNG"


_COMMON = (".jpg", ".png", ".webp", ".tif")
