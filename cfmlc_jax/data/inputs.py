"""The image files that a command's arguments mean: files, folders, globs, and a list on stdin."""

import glob
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from cfmlc_jax.errors import InputError

# What counts as an image in a folder. A file that is named itself is read whatever it is called.
SUFFIXES = (
    ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".apng",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
STDIN = "-"


class Found(NamedTuple):
    """Files, each once, in the order of the arguments, and a line on every argument that gave none."""

    paths: list[str]
    problems: list[str]


def find(arguments: Iterable[str], stdin: BinaryIO) -> Found:
    """The files that arguments mean.

    A folder stands for the images in it and in its folders, by their suffix, hidden ones left out;
    a glob ("**" for folders) that the shell did not expand for what it matches; "-" for the paths on
    stdin, one a line. Whether a file can be read is not looked at.

    Raises:
        InputError: no file at all.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for argument in _with_stdin(arguments, stdin):
        paths = _meant(argument, problems)
        for path in paths:
            # By its place: "a.jpg", "./a.jpg" and "linked_folder/a.jpg" are one image.
            folder, name = os.path.split(path)
            found.setdefault(os.path.join(os.path.realpath(folder), name), path)
    if not found:
        tried = "; ".join(problems[:3]) or "stdin is empty"
        raise InputError(
            f"there is no image to predict ({tried}); give images, folders, globs, or - for stdin"
        )
    return Found(list(found.values()), problems)


def _with_stdin(arguments, stdin) -> Iterator[str]:
    for argument in arguments:
        if argument == STDIN:
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in stdin)
            yield from (line for line in lines if line)
        else:
            yield argument


def _meant(argument, problems):
    if os.path.isdir(argument):
        return _images_in(argument, problems)
    if os.path.lexists(argument):
        return [argument]
    if not glob.has_magic(argument):
        problems.append(f"{argument!r} does not exist")
        return []
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        problems.append(f"nothing matches {argument!r}")
    paths = []
    for match in matches:
        # With "**" the folders among the matches have been gone through already.
        if not os.path.isdir(match):
            paths.append(match)
        elif "**" not in argument:
            paths += _images_in(match, problems)
    return paths


def _images_in(folder, problems):
    paths: list[str] = []
    seen = set()

    def unreadable(error):
        problems.append(f"folder {error.filename!r} cannot be read ({error.strerror})")

    before = len(problems)
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(place, name) for name in sorted(names) if _is_image(name)]
    if not paths and len(problems) == before:
        problems.append(f"folder {folder!r} has no file ending in {', '.join(_COMMON)}, …")
    return paths


_COMMON = (".jpg", ".png", ".webp", ".tif")


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
