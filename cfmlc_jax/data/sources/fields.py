"""What annotations may hold in a field: text, ids, class names, paths. Each has one spelling, whoever wrote it."""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from cfmlc_jax.errors import InputError

# Control characters, halves of surrogate pairs and line ends: none can be part of a name or a table.
_NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:/")


def shown(value: Any) -> str:
    """A value for a message, on one line and not too long."""
    text = repr(value).replace("\n", " ")  # arrays
    return text if len(text) <= 100 else f"{text[:99]}…"


def composed(text: str) -> str:
    """Text with its accents composed (NFC): names that look equal are equal."""
    return unicodedata.normalize("NFC", text)


def as_text(value: Any) -> str | None:
    """Text, composed; None if it is not one line of text."""
    if not isinstance(value, str):
        return None
    if not value.isprintable() and any(unicodedata.category(character) in _NOT_TEXT for character in value):
        return None
    return composed(value)


def as_key(value: Any) -> str | None:
    """An id as text: 7, 7.0 and "7" are one; None if it is neither text nor a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value) or None


def as_class_name(value: Any, where: str) -> str:
    """A class name, composed and without blanks around it; a number is the name that its digits are.

    Raises:
        InputError: neither a whole number nor a line of text.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool)
    name = (as_text(str(value) if is_number else value) or "").strip()
    if not name:
        raise InputError(f"{where}: class name {shown(value)}; give every class a name, one line of text")
    return name


def class_names(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """Class names [k] as `as_class_name` gives them.

    Raises:
        InputError: no class, one twice, or one that is no name.
    """
    names = tuple(as_class_name(value, where) for value in values)
    if not names:
        raise InputError(f"{where}: no class in it; name the classes, one a line")
    require_distinct(names, where)
    return names


def require_distinct(names: Sequence[str], where: str) -> None:
    """Nothing, if no class is listed twice.

    Raises:
        InputError: with the first that is.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where}: class {name!r} is listed twice; list it once")
        seen.add(name)


def relative_path(written: Any, where: str, folder: str = "") -> str:
    """A path from the root as everyone writes it: ".\\sub\\a.jpg" in "train2014" -> "train2014/sub/a.jpg".

    One spelling for one file: slashes, neither "." nor "..", accents composed (NFC).

    Args:
        written: relative to `folder`, with slashes or with the backslashes of Windows.
        where: what an error begins with.
        folder: relative to the root.

    Raises:
        InputError: not text, absolute, or leading out of the root.
    """
    text = as_text(written)
    path = (text or "").replace("\\", "/")
    normal = posixpath.normpath(posixpath.join(folder, path))
    if not path or path.startswith("/") or _WINDOWS_DRIVE.match(path) or normal.split("/")[0] == "..":
        raise InputError(
            f"{where}: path {shown(written)}; write it relative to the folder of the data, and inside it"
        )
    return normal
