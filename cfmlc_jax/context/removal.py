"""Pictures without the objects of one class: which can be made of a split, and the source of them.

An object's pixels are its mask where the data have one (scenes; COCO's outlines) and otherwise its box. All objects of
the class are removed from a picture, and the hole is filled from its rim, so the label of the class becomes 0 and every
other label stays. That is an approximate counterfactual: what is painted is not what was behind the object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from cfmlc_jax.context.inpainting import grown, harmonic_fill
from cfmlc_jax.data.sources import Record, Source, outlines
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.decode import decode

# A hole is this much larger than the object on every side, as a share of the picture's longer side.
RIM = 0.01
# Objects below this share of the picture are hardly seen; of a class with one that small nothing is removed.
LEAST_AREA = 0.002
# Greatest share of another object's box that a hole may cover, if that object's class is to count as still present.
MOST_COVERED = 0.2


@runtime_checkable
class Masked(Protocol):
    """A source that knows the pixels of its objects."""

    def masks(self, index: int) -> np.ndarray:
        """The objects of an image in the order of its boxes: bool [m, h, w]."""


@runtime_checkable
class Outlined(Protocol):
    """A source whose annotation file has outlines."""

    def outlines(self, images: Sequence[int]) -> dict[tuple[int, int], list]:
        """(image, class) -> the "segmentation" of each object."""


@dataclass(frozen=True)
class Removal:
    """The objects of a class in an image.

    image: position in the split.
    label: the class.
    """

    image: int
    label: int


class Regions:
    """The pixels of the objects of an image's class.

    Args:
        source: the split.
        boxes: its boxes.
        images: the images that will be asked for.
        by_boxes: take the boxes, even where masks are known.
    """

    def __init__(self, source: Source, boxes: Boxes, images: Sequence[int], *, by_boxes: bool = False):
        self._boxes = boxes
        self._masked = source if isinstance(source, Masked) and not by_boxes else None
        self._outlines: Mapping = {}
        if isinstance(source, Outlined) and not by_boxes:
            self._outlines = source.outlines(images)

    def __call__(self, removal: Removal, size: tuple[int, int]) -> np.ndarray:
        """The pixels of the objects in a picture of this width and height: bool [h, w]."""
        corners, classes = self._boxes.of_image(removal.image)
        if self._masked is not None:
            return self._masked.masks(removal.image)[classes == removal.label].any(axis=0)
        region = np.zeros(size[::-1], bool)
        segmentations = self._outlines.get((removal.image, removal.label), [None])
        masks = [outlines.mask(segmentation, size) for segmentation in segmentations]
        for each in masks:
            if each is not None:
                region |= each
        if any(
            each is None for each in masks
        ):  # an object without an outline: all boxes, as none is that object's
            scale = np.array([*size, *size]) / np.tile(self._boxes.sizes[removal.image], 2)
            for box in corners[classes == removal.label] * scale:
                left, top = np.floor(box[:2]).astype(int).clip(0)
                right, bottom = np.ceil(box[2:]).astype(int)
                region[top:bottom, left:right] = True
        return region


def possible(boxes: Boxes, labels: np.ndarray, contexts: Sequence[int], largest: float) -> list[Removal]:
    """All removals of the context classes, by class, whose boxes are neither tiny nor large together.

    An image counts only if every label of the class is boxed: what has no box stays in the picture. Images of unknown
    size are left out.

    Args:
        boxes: of the split.
        labels: [n, k].
        contexts: the classes to remove.
        largest: greatest share of the picture that the boxes of a class may cover together.
    """
    areas = _shares(boxes, labels.shape)
    return [
        Removal(int(image), int(label))
        for label in contexts
        for image in np.flatnonzero(
            (labels[:, label] > 0) & (areas[:, label] >= LEAST_AREA) & (areas[:, label] <= largest)
        )
    ]


def chosen(removals: Sequence[Removal], number: int, generator: np.random.Generator) -> list[Removal]:
    """At most so many of the removals, equally many of each class as far as there are: drawn at random."""
    by_class: dict[int, list[Removal]] = {}
    for place in generator.permutation(len(removals)):
        by_class.setdefault(removals[place].label, []).append(removals[place])
    rounds = max((len(each) for each in by_class.values()), default=0)
    in_turn = [each[i] for i in range(rounds) for _, each in sorted(by_class.items()) if i < len(each)]
    return sorted(in_turn[:number], key=lambda removal: (removal.label, removal.image))


def covered(boxes: Boxes, removal: Removal, label: int) -> float:
    """The share of another class's boxes in the image that lies in the removed class's boxes; 1 if it has no box."""
    corners, classes = boxes.of_image(removal.image)
    others, holes = corners[classes == label], corners[classes == removal.label]
    if not len(others):
        return 1.0
    sides = np.minimum(others[:, None, 2:], holes[None, :, 2:]) - np.maximum(
        others[:, None, :2], holes[None, :, :2]
    )
    shared = np.clip(sides, 0, None).prod(axis=2).sum(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return float(min((shared / np.maximum(areas, 1e-9)).max(), 1.0))


class WithoutClass:
    """A source of m pictures, each without the objects of one class.

    Args:
        source: the complete split.
        removals: what is removed.
        boxes: of the split.
        exif: turn pictures upright, as the evaluation does.
        by_boxes: remove boxes, even where the objects' masks are known.
    """

    def __init__(
        self, source: Source, removals: Sequence[Removal], boxes: Boxes, *, exif: bool, by_boxes: bool = False
    ):
        self.source, self.removals = source, list(removals)
        self._boxes, self._exif = boxes, exif
        self._regions = Regions(source, boxes, sorted({each.image for each in removals}), by_boxes=by_boxes)
        self.class_names = source.class_names
        self.labels = labels_without(source, removals)
        self.ids = [
            f"{source.ids[removal.image]}-without-{source.class_names[removal.label]}" for removal in removals
        ]

    def __len__(self) -> int:
        return len(self.removals)

    def __repr__(self) -> str:
        return f"WithoutClass({self.source!r}, removals={len(self)})"

    def __getitem__(self, index: int) -> Record:
        record = self.source[self.removals[index].image]
        return Record(
            image=self.pictures(index)[2],
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"{record.get('where', record['id'])} without {self.class_names[self.removals[index].label]}",
        )

    def pictures(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The picture uint8 [h, w, 3], the hole bool [h, w], and the picture without the objects uint8 [h, w, 3]."""
        removal = self.removals[index]
        record = self.source[removal.image]
        image: Image.Image = decode(record["image"], record.get("where", record["id"]), exif=self._exif)
        pixels = np.asarray(image)
        hole = grown(self._regions(removal, image.size), round(RIM * max(image.size)))
        return pixels, hole, harmonic_fill(pixels, hole)

    def kept(self) -> np.ndarray:
        """Whether the objects of a label that is present are not covered by the hole: bool [r, k]."""
        kept = np.zeros(self.labels.shape, bool)
        for row, each in enumerate(self.removals):
            for label in np.flatnonzero(self.labels[row] > 0):
                kept[row, label] = covered(self._boxes, each, int(label)) <= MOST_COVERED
        return kept


class TrulyWithout:
    """The same pictures as `WithoutClass` of scenes, rendered without the object: what the filling approximates."""

    def __init__(self, scenes: Scenes, removals: Sequence[Removal]):
        self._scenes, self._removals = scenes, list(removals)
        self.class_names = scenes.class_names
        self.labels = labels_without(scenes, removals)
        self.ids = [
            f"{scenes.ids[each.image]}-truly-without-{scenes.class_names[each.label]}" for each in removals
        ]

    def __len__(self) -> int:
        return len(self._removals)

    def __repr__(self) -> str:
        return f"TrulyWithout({self._scenes!r}, removals={len(self)})"

    def __getitem__(self, index: int) -> Record:
        removal = self._removals[index]
        labels = [item.label for item in self._scenes.objects(removal.image)]
        return Record(
            image=self._scenes.render(removal.image, without=labels.index(removal.label)),
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"scene {removal.image} of {self._scenes!r} without {self.class_names[removal.label]}",
        )


def labels_without(source: Source, removals: Sequence[Removal]) -> np.ndarray:
    """The labels of the pictures of removals: uint8 [r, k], 0 for the removed class."""
    labels = source.labels[[each.image for each in removals]].copy()
    labels[np.arange(len(removals)), [each.label for each in removals]] = 0
    return labels


def _shares(boxes: Boxes, shape: tuple[int, ...]) -> np.ndarray:
    """The share of each image that the boxes of each class cover, counted twice where they overlap: [n, k], 0 without."""
    areas = np.zeros(shape)
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    np.add.at(areas, (boxes.images, boxes.classes), sides.astype(np.float64).prod(axis=1))
    pictures = boxes.sizes.astype(np.float64).prod(axis=1)
    return areas / np.where(pictures > 0, pictures, np.inf)[:, None]
