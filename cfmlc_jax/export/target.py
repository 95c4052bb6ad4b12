"""The place of an export: what its name asks for, and how it is filled without ever being half there."""

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

from cfmlc_jax import cli, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.weights_folder import CARD, CONFIG, WEIGHTS

ONNX, STABLEHLO, FOLDER = "onnx", "stablehlo", "folder"
_SUFFIXES = {".onnx": ONNX, ".stablehlo": STABLEHLO}


def kind(text: str) -> str:
    """What is written to a path: `ONNX`, `STABLEHLO`, or `FOLDER` for one without a suffix or with a final slash.

    Raises:
        InputError: another suffix.
    """
    suffix = Path(text).suffix
    if text.endswith("/") or not suffix:
        return FOLDER
    if suffix not in _SUFFIXES:
        raise InputError(
            f"OUT {text} has the suffix {suffix!r}; give a name with {' or '.join(_SUFFIXES)}, or a folder's, which has "
            "no suffix or ends with a slash"
        )
    return _SUFFIXES[suffix]


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raise if something is at a path that may not be replaced.

    Raises:
        InputError: names the way out.
    """
    if not (path.exists() or path.is_symlink()):
        return
    if not overwrite:
        raise InputError(f"{path} exists already; remove it, choose another path, or add --overwrite")
    if path.is_dir() and any(path.iterdir()) and not _is_export(path):
        raise InputError(
            f"{path} is a folder of other files, which --overwrite does not remove; choose another path"
        )


@contextlib.contextmanager
def filling(path: Path) -> Iterator[Path]:
    """A context with a temporary path beside `path`, which is moved there if the block ends without an exception.

    What was at `path` is replaced.

    Raises:
        InputError: the path cannot be written.
    """
    temporary = files.temporary(path)
    with cli.if_interrupted(functools.partial(_remove, temporary)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path.is_dir():
                replaced = temporary.with_suffix(".old")
                path.rename(replaced)
                temporary.rename(path)
                shutil.rmtree(replaced)
            else:
                temporary.replace(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); free space there, or choose another path"
            ) from error
        finally:
            _remove(temporary)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))


def _is_export(path):
    """Whether a folder holds nothing but what an export writes."""
    return {each.name for each in path.iterdir()} <= {WEIGHTS, CONFIG, CARD}


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it was never there
            path.unlink()
