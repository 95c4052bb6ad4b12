"""Class names without a data set: those of well-known data sets, or from a file."""

from cfmlc_jax.data.sources import fields, files, scenes, voc
from cfmlc_jax.data.sources.visual_genome import read_vocabulary
from cfmlc_jax.files import path_of

# In the order of `categories` in the annotation files of MS-COCO 2014.
COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant"),
    *("bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
    *("teddy bear", "hair drier", "toothbrush"),
)
KNOWN = {
    "coco": COCO,
    "voc2007": voc.CLASS_NAMES,
    "scenes": scenes.OBJECTS[scenes.DIGITS],
    "photo_scenes": scenes.OBJECTS[scenes.PHOTOS],
}


def class_names(place: str) -> tuple[str, ...]:
    """Class names [k] in label order.

    Args:
        place: a key of `KNOWN`; a text file with one class per line; or the vocabulary of VG-256, a
            file whose name ends with .json.

    Raises:
        InputError: the file does not exist, has no class, or has a class twice.
    """
    if place in KNOWN:
        return KNOWN[place]
    path = path_of(place)
    if path.suffix == ".json":
        return read_vocabulary(path)[0]
    way_out = f"name one of {', '.join(KNOWN)}, or a file with one class per line"
    return fields.class_names(files.read_class_list(path, way_out), str(path))
