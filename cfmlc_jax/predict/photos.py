"""Unlabelled image files, read ahead in threads."""

import collections
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cfmlc_jax.data.views import formats, picture_files
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.errors import InputError


@dataclass(frozen=True)
class Photo:
    """An image ready for the classifier.

    path: as it was given.
    views: uint8 [v, s, s, 3].
    size: width and height, pixels, upright.
    copy: what was to be kept of the picture itself.
    """

    path: str
    views: np.ndarray
    size: tuple[int, int]
    copy: Image.Image | None


def read(
    paths: Sequence[str],
    to_views: Transform,
    *,
    contents: Mapping[str, bytes | np.ndarray | Image.Image],
    threads: int,
    where: Callable[[str], str],
    keep: Callable[[Image.Image], Image.Image] | None,
) -> Generator[Photo | InputError, None, None]:
    """The photos in the order of their paths; an error in place of an unreadable one.

    Pictures are turned upright by their EXIF orientation.

    Args:
        paths: image files.
        to_views: cuts the views.
        contents: of paths that are no files, as `decode` takes them.
        threads: that read; twice as many photos are read ahead.
        where: what an error calls a path.
        keep: makes what is kept of a picture; None keeps nothing.
    """
    waiting: collections.deque[Future[Photo | InputError]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for path in paths:
            waiting.append(pool.submit(_read, path, contents.get(path), to_views, where(path), keep))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path, content, to_views, where, keep):
    try:
        picture = decode(_bytes_of(path, where) if content is None else content, where, exif=True)
    except InputError as error:
        return error
    views = to_views.cut(picture)
    return Photo(
        path=path,
        views=np.stack([np.asarray(view) for view in views]),
        size=picture.size,
        copy=None if keep is None else keep(picture),
    )


def _bytes_of(path, where):
    try:
        content = picture_files.read(path, where)
    except OSError as error:
        raise InputError(
            f"{where}: cannot be read ({error.strerror}); check the path and its rights"
        ) from error
    refusal = formats.refusal(path, content[: formats.HEAD_BYTES])
    if refusal is not None:
        raise InputError(f"{where}: {refusal}")
    return content
