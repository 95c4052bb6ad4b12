"""Values in annotation files: text, ids, class names, paths, each normalised to one spelling."""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from cfmlc_jax.errors import InputError

# Unicode categories of control characters, surrogates and line separators, which names must not contain.
_NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:/")


def shown(value: Any) -> str:
    """A value for an error message, on one line of at most 100 characters."""
    text = repr(value).replace("\n", " ")  # arrays have several lines
    return text if len(text) <= 100 else f"{text[:99]}…"


def composed(text: str) -> str:
    """Text with composed accents (NFC), so that names that look equal are equal."""
    return unicodedata.normalize("NFC", text)


def as_text(value: Any) -> str | None:
    """The value as composed text; None if it is not one line of text."""
    if not isinstance(value, str):
        return None
    if not value.isprintable() and any(unicodedata.category(character) in _NOT_TEXT for character in value):
        return None
    return composed(value)


def as_key(value: Any) -> str | None:
    """An id as text, so that 7, 7.0 and "7" are equal; None if it is neither text nor a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value) or None


def as_class_name(value: Any, where: str) -> str:
    """A class name, composed and stripped of blanks; a whole number is turned into its digits.

    Raises:
        InputError: the value is neither a whole number nor one line of text.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool)
    name = (as_text(str(value) if is_number else value) or "").strip()
    if not name:
        raise InputError(f"{where}: class name {shown(value)}; give every class a name, one line of text")
    return name


def class_names(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """Class names [k], each normalised by `as_class_name`.

    Raises:
        InputError: there is no class, a class twice, or a value that is no class name.
    """
    names = tuple(as_class_name(value, where) for value in values)
    if not names:
        raise InputError(f"{where}: no class in it; name the classes, one per line")
    require_distinct(names, where)
    return names


def require_distinct(names: Sequence[str], where: str) -> None:
    """Raise if a class is listed twice.

    Raises:
        InputError: a class is; the message names the first.
    """
    earlier: set[str] = set()
    for name in names:
        if name in earlier:
            raise InputError(f"{where}: class {name!r} is listed twice; list it once")
        earlier.add(name)


def relative_path(written: Any, where: str, folder: str = "") -> str:
    """A path relative to the root in one spelling: ".\\sub\\a.jpg" in "train2014" -> "train2014/sub/a.jpg".

    The result has slashes, neither "." nor "..", and composed accents (NFC).

    Args:
        written: the path as annotated, relative to `folder`, with slashes or with Windows backslashes.
        where: beginning of the error message.
        folder: a folder relative to the root.

    Raises:
        InputError: the path is not text, is absolute, or leads out of the root.
    """
    text = as_text(written)
    path = (text or "").replace("\\", "/")
    normal = posixpath.normpath(posixpath.join(folder, path))
    if not path or path.startswith("/") or _WINDOWS_DRIVE.match(path) or normal.split("/")[0] == "..":
        raise InputError(
            f"{where}: path {shown(written)}; write a path relative to the folder of the data and inside it"
        )
    return normal
