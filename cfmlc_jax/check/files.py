"""What a check reads of each image file: whether it can be decoded, its form, and digests of its content."""

import base64
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from cfmlc_jax.data.views import decode, metadata, picture_files
from cfmlc_jax.errors import InputError

SIDE = 96  # longer side of a thumbnail, pixels


@dataclasses.dataclass(frozen=True)
class Content:
    """What was read of a file.

    error: why it cannot be used; then the other fields are empty.
    width, height: as stored, pixels.
    mode: of the stored pixels, such as "RGB" or "L".
    turned: whether metadata say that the image must be turned.
    bytes: a digest of the file.
    pixels: a digest of the decoded image: equal for copies in another format without loss.
    look: 64 bits that the image mostly keeps at another size or quality; 0 for an image without contrast.
    """

    error: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    turned: bool = False
    bytes: str = ""
    pixels: str = ""
    look: int = 0


def read_all(paths: Iterable[str], threads: int) -> Iterator[Content]:
    """The content of files, in their order."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read, paths)


def read(path: str) -> Content:
    """The content of a file."""
    try:
        data = picture_files.read_anywhere(path)
        stored, orientation = decode.header(data, path, exif=True)
        picture = decode.decode(data, path)
    except InputError as error:
        return Content(error=str(error))
    except OSError as error:
        return Content(error=f"{path}: cannot be read ({error.strerror}); restore the file")
    return Content(
        width=stored.width,
        height=stored.height,
        mode=stored.mode,
        turned=orientation != metadata.UPRIGHT,
        bytes=_digest(data),
        pixels=_digest(np.asarray(picture).tobytes() + bytes(str(picture.size), "ascii")),
        look=_look(picture),
    )


def thumbnail(path: str) -> str | None:
    """A small JPEG of an image as base64; None if it cannot be read."""
    try:
        picture = decode.decode(picture_files.read_anywhere(path), path)
    except (OSError, InputError):
        return None
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _look(picture: Image.Image) -> int:
    """Whether each of 8 x 8 places is brighter than its right neighbour: 64 bits."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")
