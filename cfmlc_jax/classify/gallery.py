"""Images of each class for the report: without the class and most probable, with the class and least probable."""

from collections.abc import Callable

import numpy as np

from cfmlc_jax.classify.examples import jpeg
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.results.evidence import ClassImages, Gallery, GalleryEntry, Picture

MOST = 3  # of each kind, for each class
MOST_PICTURES = 600  # of a split: about 2 MB
SIDE = 96  # longer side of a picture, pixels
SLIMMEST = 24  # minimum of its shorter side


def choose(
    probabilities: np.ndarray,
    labels: np.ndarray,
    precisions: np.ndarray,
    source: Source,
    *,
    exif: bool,
    poll: Callable[[], None] = lambda: None,
) -> Gallery:
    """The pictures of a split, and those that each class shows.

    With many classes each shows fewer pictures, and with more than half of `MOST_PICTURES` only those of the lowest
    average precision show any.

    Args:
        probabilities: [n, k].
        labels: [n, k]; an image is shown to no class of which it is unknown.
        precisions: average precision [k] of the classes.
        source: the split.
        exif: rotate images upright, as the classifier's transform did.
        poll: called before every picture.
    """
    classes = labels.shape[1]
    count = min(MOST, max(1, MOST_PICTURES // (2 * classes)))
    shown = np.argsort(precisions, kind="stable")[: MOST_PICTURES // (2 * count)]
    images = {}
    for k in shown.tolist():
        order = np.argsort(-probabilities[:, k], kind="stable")
        without, with_class = (order[labels[order, k] == label] for label in (0, 1))
        images[k] = without[:count].tolist(), with_class[::-1][:count].tolist()
    numbers = sorted({i for pair in images.values() for each in pair for i in each})
    places = {image: place for place, image in enumerate(numbers)}

    def entries(k, chosen):
        return [GalleryEntry(places[i], float(probabilities[i, k])) for i in chosen]

    def picture(i):
        poll()
        return _picture(source, i, labels[i], exif)

    return Gallery(
        pictures=[picture(i) for i in numbers],
        classes=[
            ClassImages(k, entries(k, without), entries(k, with_class))
            for k, (without, with_class) in sorted(images.items())
        ],
    )


def _picture(source, index, labels, exif) -> Picture:
    record = source[index]
    image = decode(record["image"], record.get("where", record["id"]), exif=exif)
    factor = SIDE / max(image.size)
    size = (max(SLIMMEST, round(image.width * factor)), max(SLIMMEST, round(image.height * factor)))
    image = image.resize(size, reducing_gap=2.0)
    return Picture(
        id=str(record["id"]),
        labels=np.flatnonzero(labels > 0).tolist(),
        width=image.width,
        height=image.height,
        jpeg=jpeg(image, quality=75),
    )
