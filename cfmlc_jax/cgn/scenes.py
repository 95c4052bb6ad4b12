"""Counterfactual scenes: real training scenes from which objects are removed and to which generated ones are added.

A network that was trained on the objects of scenes (`data.sources.scene_objects`) draws masks, textures and
backgrounds. A composite starts from a real scene, and is given another set of classes, each independent of the others:

- objects of the scene whose class is wanted stay as they are;
- the others are removed: their boxes are covered with another part of the same scene that shows no object, or, where
  there is none, with a generated background;
- wanted classes that are missing are added: a generated mask, at a place that is free if there is one, with a generated
  texture that stands out. A place where an object was removed is free, so that objects are also exchanged.

So no class says anything about another one, which biased scenes cannot show. Labels and boxes are those of what was
composed; masks of real objects are not used.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn import counterfactuals
from cfmlc_jax.data.sources import counterfactuals as records
from cfmlc_jax.data.sources import scenes as digit_scenes
from cfmlc_jax.data.sources.scene_objects import EDGE, LUMA, MARGIN, SceneObjects, overlaps
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.models.generators.mnist import Composition, MnistGenerator

# Most objects in a composite, as in a scene.
MOST = digit_scenes.MAX_DIGITS
# Objects that are drawn at once.
_BATCH = 100
# Least value of a mask's visible pixels, and of the part of a mask that they must be: less is not an object.
_VISIBLE, _LEAST_AREA = digit_scenes.FAINTEST / 255, 0.01
# Textures that are tried until one stands out, and parts of the scene until one shows no object.
_TEXTURES, _PARTS = 12, digit_scenes.PLACES
_LUMA = (LUMA / 256).astype(np.float32)


class Pieces(NamedTuple):
    """What a network drew for n objects, each mechanism with labels and noise of its own.

    labels: int [n], the classes of the masks.
    masks: float32 [n, s, s] in [0, 1].
    textures, backgrounds: float32 [n, s, s, 3], 0 to 255.
    """

    labels: np.ndarray
    masks: np.ndarray
    textures: np.ndarray
    backgrounds: np.ndarray


class Scene(NamedTuple):
    """An image float32 [h, h, 3], 0 to 255, and the boxes int [m, 4] and classes int [m] of its objects."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def inclusion_rate(mean: float, num_classes: int, most: int = MOST) -> float:
    """The probability of each class for which sets of at most `most` independent classes have a mean size.

    Args:
        mean: wanted, at least 0 and below `most`.
        num_classes: k, at least `most`.
        most: larger sets are drawn again.
    """
    low, high = 0.0, 1 - 1e-9
    for _ in range(60):
        rate = (low + high) / 2
        sizes = np.arange(most + 1)
        weights = np.array([math.comb(num_classes, n) for n in sizes]) * (rate / (1 - rate)) ** sizes
        low, high = (rate, high) if (weights * sizes).sum() < mean * weights.sum() else (low, rate)
    return low


def draw_wanted(random: np.random.Generator, n: int, rate: float, num_classes: int) -> np.ndarray:
    """Independent sets of at most `MOST` classes: bool [n, k]."""
    wanted = random.random((n, num_classes)) < rate
    while (large := wanted.sum(axis=1) > MOST).any():
        wanted[large] = random.random((int(large.sum()), num_classes)) < rate
    return wanted


def compose(scene: Scene, wanted: np.ndarray, own: np.ndarray, pieces: Pieces, sides, random) -> Scene:
    """The scene with the wanted classes, as far as their masks show an object.

    Args:
        scene: a real scene, or a background without objects.
        wanted: bool [k].
        own: indices of the pieces of this composite. The last one covers removed objects if need be; the others are,
            in order, of the wanted classes that the scene lacks.
        pieces: for all composites; textures of others are used where the own ones do not stand out.
        sides: sides of the windows of real objects, pixels, of which one is drawn for each added object.
        random: numpy generator.
    """
    canvas, stay = scene.image.copy(), wanted[scene.classes]
    boxes, classes = list(scene.boxes[stay]), list(scene.classes[stay])
    for box in scene.boxes[~stay]:
        _cover(canvas, scene, box, boxes, pieces.backgrounds[own[-1]], random)
    for piece in own[:-1]:
        box = _add(canvas, pieces, piece, int(random.choice(sides)), boxes, random)
        if box is not None:
            boxes.append(box)
            classes.append(pieces.labels[piece])
    return Scene(canvas, np.array(boxes, int).reshape(-1, 4), np.array(classes, int))


def background(piece: np.ndarray, size: int) -> Scene:
    """A generated background [s, s, 3], at its scale in scenes and continued by mirroring, without objects."""
    scaled = _resized(piece, round(len(piece) / MARGIN))
    before = (size - len(scaled)) // 2
    after = size - len(scaled) - before
    image = np.pad(scaled, ((before, after), (before, after), (0, 0)), mode="symmetric")
    return Scene(image, np.zeros((0, 4), int), np.zeros(0, int))


def write(
    folder: Path,
    generator: MnistGenerator,
    variables,
    source: SceneObjects,
    *,
    num_records: int,
    shard_size: int,
    generated_backgrounds: float,
    seed: int,
    mesh: jax.sharding.Mesh,
    origin: dict[str, Any],
    print_line: Callable[[str], None],
    poll: Callable[[], None],
    removals_alone: bool = False,
) -> None:
    """Write a folder of counterfactual scenes; complete shards of an interrupted call are kept.

    Args:
        folder: of the records; new, or left by an interrupted call with the same arguments.
        generator: draws the objects.
        variables: its weights.
        source: the objects that it was trained on, and their scenes.
        num_records: in all.
        shard_size: records in a file.
        generated_backgrounds: share of the composites that start from a generated background.
        seed: of all random numbers.
        mesh: the devices.
        origin: where the records come from, JSON types; written to the index.
        print_line: prints a line for the user.
        poll: called between batches; it raises if the run must end.
        removals_alone: nothing is added, to tell what the generated objects contribute.

    Raises:
        InputError: the folder holds records of other arguments.
        RunError: the files cannot be written.
    """
    composer = Composer(generator, source, mesh, generated_backgrounds, removals_alone)
    kind = {"removals_alone": True} if removals_alone else {}

    def shard(number, size):
        return composer(variables, seed, number, size, poll)

    counterfactuals.write_shards(
        folder,
        shard,
        class_names=source.class_names,
        num_records=num_records,
        shard_size=shard_size,
        image_size=source.scenes.size,
        task=records.MULTI_LABEL,
        origin=origin | {"seed": seed, "generated_backgrounds": generated_backgrounds} | kind,
        print_line=print_line,
    )


class Composer:
    """Composes shards of scenes: (variables, seed, number, size, poll) -> `counterfactuals.Shard`.

    A shard is a function of weights, seed and number alone.

    Args:
        generator: draws the objects.
        source: real objects, and their scenes.
        mesh: the devices.
        generated_backgrounds: share of the composites that start from a generated background.
        removals_alone: nothing is added.
    """

    def __init__(
        self,
        generator: MnistGenerator,
        source: SceneObjects,
        mesh: jax.sharding.Mesh,
        generated_backgrounds: float,
        removals_alone: bool = False,
    ):
        self._scenes, self._boxes = source.scenes, source.scenes.boxes()
        self._sides = source.windows[:, 2] - source.windows[:, 0]
        self._num_classes = len(source.class_names)
        self._rate = inclusion_rate(float(source.scenes.labels.sum(axis=1).mean()), self._num_classes)
        self._generated_backgrounds, self._removals_alone = generated_backgrounds, removals_alone

        def draw(variables, key, shapes):
            labels, noise, offsets = counterfactuals.draw_inputs(key, _BATCH, 1, generator)
            labels |= {mechanisms.SHAPE: shapes}
            composed = cast(Composition, generator.apply(variables, labels, noise, offsets, train=False))
            return composed.mask[..., 0], composed.foreground, composed.background

        replicated = meshes.replicated(mesh)
        self._draw = jax.jit(draw, out_shardings=replicated, compiler_options=meshes.compiler_options(mesh))

    def __call__(self, variables, seed: int, number: int, size: int, poll) -> "counterfactuals.Shard":
        """The composites of a shard."""
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,))))
        wanted = draw_wanted(random, size, self._rate, self._num_classes)
        bases = random.integers(len(self._scenes), size=size)
        empty = random.random(size) < self._generated_backgrounds
        present = self._scenes.labels[bases].astype(bool) & ~empty[:, None]
        missing = wanted & ~present & (not self._removals_alone)
        added = [np.flatnonzero(row) for row in missing]
        # One more piece for each composite, of whose mask nothing is used.
        labels = np.concatenate([np.append(row, 0) for row in added])
        ends = np.cumsum([len(row) + 1 for row in added])
        key = jax.random.fold_in(jax.random.key(seed), number)
        pieces = _half_inverted(self._pieces(variables, key, labels, poll), random)
        composites = []
        for i in range(size):
            own = np.arange(ends[i] - len(added[i]) - 1, ends[i])
            scene = (
                background(pieces.backgrounds[own[-1]], self._scenes.size)
                if empty[i]
                else self._real(int(bases[i]))
            )
            composites.append(compose(scene, wanted[i], own, pieces, self._sides, random))
        return _shard(composites, self._num_classes)

    def _real(self, index):
        boxes, classes = self._boxes.of_image(index)
        return Scene(self._scenes.render(index).astype(np.float32), boxes.astype(int), classes.astype(int))

    def _pieces(self, variables, key, labels, poll):
        """The pieces of these classes, drawn in batches."""
        padded = np.pad(labels, (0, -len(labels) % _BATCH)).reshape(-1, _BATCH)
        drawn = []
        for batch, shapes in enumerate(padded):
            poll()
            parts = self._draw(variables, jax.random.fold_in(key, batch), jnp.asarray(shapes))
            drawn.append([np.asarray(part) for part in parts])
        masks, textures, backgrounds = (np.concatenate(part)[: len(labels)] for part in zip(*drawn))
        return Pieces(labels, of_inside(masks), 127.5 * (textures + 1), 127.5 * (backgrounds + 1))


def of_inside(masks: np.ndarray) -> np.ndarray:
    """The masks, inverted if they are set along their sides: float32 [n, s, s] -> the same.

    Objects stand inside their crops. A generator may exchange mask and background for some classes, and paint the object
    by the background's network.
    """
    sides = np.ones(masks.shape[1:], bool)
    sides[EDGE:-EDGE, EDGE:-EDGE] = False
    around = masks[:, sides].mean(axis=1) > 0.5
    return np.where(around[:, None, None], 1 - masks, masks)


def _half_inverted(pieces, random):
    """The pieces, of which half have inverted textures and backgrounds: crops are all bright on dark, scenes are not."""
    inverted = (random.random(len(pieces.labels)) < 0.5)[:, None, None, None]
    return pieces._replace(
        textures=np.where(inverted, 255 - pieces.textures, pieces.textures),
        backgrounds=np.where(inverted, 255 - pieces.backgrounds, pieces.backgrounds),
    )


def _shard(composites, num_classes):
    labels = np.zeros((len(composites), num_classes), np.int32)
    for row, scene in zip(labels, composites):
        row[scene.classes] = 1
    return counterfactuals.Shard(
        labels=labels,
        images=np.stack([np.clip(np.rint(scene.image), 0, 255).astype(np.uint8) for scene in composites]),
        boxes=np.concatenate(
            [
                np.column_stack([np.full(len(scene.classes), i), scene.classes, scene.boxes])
                for i, scene in enumerate(composites)
            ]
        ),
    )


def _cover(canvas, scene, box, stay, generated, random):
    """Replace the pixels of a box, but not those of boxes that stay."""
    left, top, right, bottom = (int(side) for side in box)
    patch = _free_part(scene, right - left, bottom - top, random)
    if patch is None:
        # A crowded scene has free quarters where it has no free whole.
        patch = _resized(generated, max(right - left, bottom - top))[: bottom - top, : right - left]
        for rows in _halves(bottom - top):
            for columns in _halves(right - left):
                part = _free_part(scene, columns.stop - columns.start, rows.stop - rows.start, random)
                if part is not None:
                    patch[rows, columns] = part
    covered = np.zeros(canvas.shape[:2], bool)
    covered[top:bottom, left:right] = True
    for x0, y0, x1, y1 in stay:
        covered[y0:y1, x0:x1] = False
    inside = slice(top, bottom), slice(left, right)
    canvas[inside] = np.where(covered[inside][..., None], patch, canvas[inside])


def _free_part(scene, width, height, random):
    """A random part of a scene that shares no pixel with a box, float32 [height, width, 3]; None if none was found."""
    size = len(scene.image)
    for x, y in random.random((_PARTS, 2)).tolist():
        left, top = int(x * (size - width + 1)), int(y * (size - height + 1))
        part = (left, top, left + width, top + height)
        if not any(overlaps(part, other) for other in scene.boxes.tolist()):
            return scene.image[top : part[3], left : part[2]]
    return None


def _halves(length):
    return slice(0, length // 2), slice(length // 2, length)


def _add(canvas, pieces, piece, side, taken, random):
    """Paint a piece that stands out, and return its box; None if its mask shows no object."""
    mask = _resized(pieces.masks[piece], side)
    visible = mask > _VISIBLE
    if visible.mean() < _LEAST_AREA:
        return None
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask = mask[inside][..., None]
    height, width = mask.shape[:2]
    draws = random.random(2 * digit_scenes.PLACES).tolist()
    box = digit_scenes.free_place((width, height), len(canvas), draws, [tuple(each) for each in taken])
    left, top, right, bottom = box
    behind = canvas[top:bottom, left:right]
    tried = (piece + np.arange(_TEXTURES)) % len(pieces.textures)
    contrast = np.abs(pieces.textures[tried].mean(axis=(1, 2)) @ _LUMA - behind.mean(axis=(0, 1)) @ _LUMA)
    enough = contrast >= digit_scenes.CONTRAST
    chosen = tried[enough.argmax() if enough.any() else contrast.argmax()]
    texture = _resized(pieces.textures[chosen], side)[inside]
    canvas[top:bottom, left:right] = mask * texture + (1 - mask) * behind
    return box


def _resized(array, side):
    """A square array [s, s] or [s, s, 3] at another side, float32."""
    channels = array[..., None] if array.ndim == 2 else array
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channels[..., c], np.float32)).resize(
                (side, side), Image.Resampling.BILINEAR
            )
        )
        for c in range(channels.shape[-1])
    ]
    return resized[0] if array.ndim == 2 else np.stack(resized, axis=-1)
