"""How many classes and training images a data set has, known without reading it."""

from typing import Any, NamedTuple

from cfmlc_jax.data import build, class_names
from cfmlc_jax.data.sources import coco, image_list, imbalance, mechanism_digits, nus_wide, visual_genome, voc
from cfmlc_jax.data.sources.cifar_files import DATA_SETS
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

CLASS_LIST = "classes.txt"


class Size(NamedTuple):
    """The size of a training split.

    num_classes: k.
    num_images: as published, or as the configuration asks for.
    most: images of the most common class; None: unknown.
    """

    num_classes: int
    num_images: int
    most: int | None = None


def known(data: Any) -> Size | None:
    """The size of the training split of config.data, without reading images or annotations; None if unknown.

    0 images: only the number of classes is known, by a list of their names.
    """
    name = data.source
    if name == "table" and (build.place(name, data.root) / CLASS_LIST).is_file():
        return Size(len(class_names.class_names(str(build.place(name, data.root) / CLASS_LIST))), 0)
    if name == "vg256" and data.vocabulary:
        names, _ = visual_genome.read_vocabulary(path_of(data.vocabulary))
        return Size(len(names), visual_genome.NUM_TRAIN)
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    if name in DATA_SETS:
        each = DATA_SETS[name]
        return _long_tailed(data.longtail, each.num_train // each.num_classes, each.num_classes)
    if name == "long_tailed_digits":
        return _long_tailed(data.longtail, data.longtail.largest, 10)
    if name in build.SCENES:
        return Size(10, data.scenes.num_train)
    if name in mechanism_digits.EMBEDDED or name == "scene_objects":
        source = build.source(data, "train")  # drawn, not read
        return Size(len(source.class_names), len(source))
    if name in mechanism_digits.OFFICIAL:
        return Size(10, mechanism_digits.OFFICIAL_TRAIN)
    return None


def require(data: Any, *, classes: int | None = None, images: int | None = None) -> Size:
    """The size of the training split of config.data, of which the caller may know more.

    Args:
        data: section `data` of a configuration.
        classes: number of classes; None: the known one.
        images: number of training images; None: the known one, or 0.

    Raises:
        InputError: the number of classes is unknown.
    """
    published = known(data)
    if published is None and classes is None:
        raise InputError(
            f"the number of classes of data.source {data.source!r} is not known without reading it; give --classes=N"
        )
    if published is None:
        return Size(classes or 0, images or 0)
    most = published.most if images is None else None
    return Size(classes or published.num_classes, published.num_images if images is None else images, most)


_PUBLISHED = {
    "coco": Size(coco.NUM_CLASSES, coco.NUM_TRAIN),
    "coco2017": Size(coco.NUM_CLASSES, coco.NUM_TRAIN_2017),
    "nus_wide": Size(nus_wide.NUM_CLASSES, nus_wide.NUM_TRAIN),
    "voc2007": Size(len(voc.CLASS_NAMES), voc.NUM_TRAIN),
    "vg256": Size(visual_genome.NUM_CLASSES, visual_genome.NUM_TRAIN),
    **{name: Size(*sizes) for name, sizes in image_list.PUBLISHED.items()},
}


def _long_tailed(longtail, most, num_classes):
    counts = imbalance.class_counts(most, num_classes, longtail.imbalance, longtail.ratio)
    return Size(num_classes, int(counts.sum()), int(counts.max()))
