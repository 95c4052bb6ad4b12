"""The objects of digit scenes, one by one: square crops around their boxes, for a generator of objects.

A crop is used if it lies inside its scene and shows nothing of another object's box, so that what is beside a digit
in training cannot become a part of its background. A crop whose edges are brighter than its inside is inverted: objects
are then bright on dark, as the digits that the generator and its critic were made for. (Three of ten are; of 100 crops
one or two are taken for the wrong kind.)
"""

import math
import operator

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import Record, imbalance
from cfmlc_jax.data.sources.scenes import Box, Scenes
from cfmlc_jax.errors import InputError

SIZE = 32  # side of a crop, pixels
LUMA = np.array([77, 150, 29])  # of red, green and blue, in 256ths (Rec. 601)
EDGE = 2  # pixels along the sides of a crop that show background
MARGIN = 1.2  # side of the window that becomes a crop, in longer sides of the object's box


class SceneObjects:
    """Single-label crops of a split of scenes: uint8 [32, 32, 3], labels uint8 [n, 10], one-hot of the object's class.

    At 6,000 training scenes of bias .9 about 5,300 of 17,700 objects stand alone enough to be cropped.

    mechanisms: int32 [n, 3], the object's class three times: nothing in a scene tells texture or background apart.
    scenes: the scenes that are cropped.
    windows: int32 [n, 4], left, top, right, bottom of each crop in its scene.

    Args:
        scenes: the scenes; their boxes are used, and their masks only in `mask`.

    Raises:
        InputError: no object can be cropped.
    """

    def __init__(self, scenes: Scenes):
        self.scenes, self.class_names = scenes, scenes.class_names
        boxes = scenes.boxes()
        chosen = [
            (image, place, window, label)
            for image in range(len(scenes))
            for place, window, label in _alone(*boxes.of_image(image), scenes.size)
        ]
        if not chosen:
            raise InputError(
                f"scene_objects: no object of {scenes!r} stands alone; give more scenes (data.scenes.num_train)"
            )
        images, places, windows, labels = (list(each) for each in zip(*chosen, strict=True))
        self._images, self._places = images, places
        self.windows = np.array(windows, np.int32)
        self.labels = imbalance.one_hot(np.array(labels), len(self.class_names))
        self.mechanisms = np.repeat(np.array(labels, np.int32)[:, None], 3, axis=1)
        self.ids = [f"{scenes.ids[image]}-{place}" for image, place in zip(images, places)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[operator.index(index)]
        scene = Image.fromarray(self.scenes.render(self._images[index]))
        return Record(
            image=bright_on_dark(np.asarray(self._crop(scene, index))),
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"object {index} of {self!r}",
        )

    def __repr__(self) -> str:
        return f"SceneObjects({self.scenes!r}, objects={len(self)})"

    def mask(self, index: int) -> np.ndarray:
        """The pixels of the object, which are known here and never trained on: bool [32, 32]."""
        index = range(len(self))[operator.index(index)]
        mask = self.scenes.masks(self._images[index])[self._places[index]]
        return np.asarray(self._crop(Image.fromarray(255 * mask.astype(np.uint8)), index)) > 127

    def _crop(self, scene: Image.Image, index) -> Image.Image:
        left, top, right, bottom = self.windows[index].tolist()
        return scene.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def bright_on_dark(crop: np.ndarray) -> np.ndarray:
    """The crop, inverted if its edges are brighter than its inside: uint8 [h, w, 3] -> the same."""
    brightness = crop.astype(np.int64) @ LUMA
    inside = brightness[EDGE:-EDGE, EDGE:-EDGE]
    edges = brightness.sum() - inside.sum()
    darker = inside.sum() * (brightness.size - inside.size) < edges * inside.size
    return 255 - crop if darker else crop


def window(box: Box) -> Box:
    """The square around the centre of a box, whose side is `MARGIN` of the box's longer side, in whole pixels."""
    left, top, right, bottom = (int(side) for side in box)
    side = window_side(max(right - left, bottom - top))
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def window_side(longer: int) -> int:
    """The side of the window of an object whose longer side is given, pixels."""
    return math.ceil(MARGIN * longer)


def overlaps(a: Box, b: Box) -> bool:
    """Whether two boxes share a pixel."""
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _alone(corners, classes, size):
    """(place, window, class) of the objects of an image whose windows are inside it and free of other boxes."""
    for place, box in enumerate(corners):
        square = window(box)
        others = [other for i, other in enumerate(corners) if i != place]
        if min(square) >= 0 and max(square) <= size and not any(overlaps(square, other) for other in others):
            yield place, square, int(classes[place])
