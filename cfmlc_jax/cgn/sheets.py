"""Sheets: pictures of what a generator draws, mechanism by mechanism.

The mechanisms of an image are drawn independently, so that a sheet needs few drawn images: it takes masks, textures and
backgrounds from them and composes them in every way that it shows.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cfmlc_jax import files
from cfmlc_jax.causal.mechanisms import BACKGROUND, MECHANISMS, SHAPE, TEXTURE, compose, same_for_all
from cfmlc_jax.cgn.system import draw, in_bytes
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import WriteError
from cfmlc_jax.models.generators.mnist import MnistGenerator
from cfmlc_jax.results import mechanisms as results

# Pixels of a run's sheets for each pixel that is drawn.
SCALE = 2
# Classes that have a row in a sheet; of more classes, so many that are evenly spaced.
MOST_CLASSES = 10
# Images of an interpolation, its two ends included.
STEPS = 10
# In the column of exchanged mechanisms: whose texture and background a class gets, in thirds of the classes further on.
_EXCHANGED = {TEXTURE: 1, BACKGROUND: 2}
_EPOCH_SEED = 0
_GAP, _MARGIN = 2, 12
# Sizes of letters, and how many of them are as wide as the tiles of a wide picture.
_SMALLEST, _LARGEST, _LETTERS = 11, 20, 46
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 26, 32), (104, 110, 122)


@dataclass(frozen=True)
class Sheet:
    """A picture's tiles and their names.

    title: what rows and columns are, in a sentence.
    rows, columns: names of the rows and columns.
    tiles: uint8 [rows, columns, h, w, 3].
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    tiles: np.ndarray


class Artist:
    """Draws the sheets of a generator on the mesh.

    Attributes:
        shown: positions of the classes that have rows.

    Args:
        generator: draws images.
        mesh: the devices.
        class_names: in label order.
    """

    def __init__(self, generator: MnistGenerator, mesh: jax.sharding.Mesh, class_names: Sequence[str]):
        self._generator, self._names = generator, list(class_names)
        positions = np.linspace(0, len(class_names) - 1, min(MOST_CLASSES, len(class_names)))
        self.shown = positions.round().astype(int)
        self._compose = jax.jit(
            lambda variables, labels, noise, offsets: generator.apply(
                variables, labels, noise, offsets, train=False
            ),
            out_shardings=meshes.replicated(mesh),
            compiler_options=meshes.compiler_options(mesh),
        )

    def sheets(self, variables, seed: int) -> dict[str, Sheet]:
        """All sheets by name (`results.mechanisms.SHEETS`).

        Args:
            variables: weights of the generator.
            seed: of the noise, and of the classes that are interpolated.
        """
        keys = jax.random.split(jax.random.key(seed), 3)
        drawn, names = self._one_of_each_class(variables, keys[0])
        return {
            "mechanisms": mechanism_sheet(drawn, names),
            "exchanged_texture": exchange_sheet(drawn, TEXTURE, names),
            "exchanged_background": exchange_sheet(drawn, BACKGROUND, names),
            "interpolated_labels": self._between_labels(variables, keys[1]),
            "interpolated_noise": self._between_noise(variables, keys[2]),
        }

    def after_epoch(self, variables) -> Image.Image:
        """The tiles of `mechanism_sheet` in their own size and without names: of the same noise after every epoch."""
        drawn, names = self._one_of_each_class(variables, jax.random.key(_EPOCH_SEED))
        return Image.fromarray(mosaic(mechanism_sheet(drawn, names).tiles))

    def _one_of_each_class(self, variables, key):
        """Masks, foregrounds and backgrounds of one image for each class that is shown, and the classes' names."""
        draws = draw(key, len(self.shown), self._generator)
        labels = jnp.eye(len(self._names))[self.shown]
        drawn = self._drawn(variables, labels, draws.noise, draws.offsets)
        return drawn, [self._names[k] for k in self.shown]

    def _between_labels(self, variables, key) -> Sheet:
        class_key, draw_key = jax.random.split(key)
        k = len(self._names)
        first, last = jax.random.choice(class_key, k, (2,), replace=k < 2).tolist()
        draws = _repeated(draw(draw_key, 1, self._generator), STEPS)
        shares = jnp.linspace(1, 0, STEPS)
        one_hot = jnp.eye(k)
        labels = jnp.outer(shares, one_hot[first]) + jnp.outer(1 - shares, one_hot[last])
        drawn = self._drawn(variables, labels, draws.noise, draws.offsets)
        ends = (self._names[first], self._names[last])
        return interpolation_sheet(drawn, f"From {ends[0]} to {ends[1]}, with the same noise", ends)

    def _between_noise(self, variables, key) -> Sheet:
        class_key, first_key, last_key = jax.random.split(key, 3)
        k = len(self._names)
        label = int(jax.random.randint(class_key, (), 0, k))
        first, last = (draw(each, 1, self._generator) for each in (first_key, last_key))
        draws = _repeated(first, STEPS)
        # On an arc, so that each step's noise has the deviation of the generator's noise.
        angle = jnp.linspace(0, jnp.pi / 2, STEPS)[:, None]
        noise = jnp.cos(angle) * first.noise + jnp.sin(angle) * last.noise
        labels = jnp.eye(k)[jnp.full(STEPS, label)]
        drawn = self._drawn(variables, labels, noise, draws.offsets)
        name = self._names[label]
        return interpolation_sheet(drawn, f"From one {name} to another", (name, name))

    def _drawn(self, variables, labels, noise, offsets):
        composed = self._compose(variables, same_for_all(labels), same_for_all(noise), offsets)
        parts = {SHAPE: composed.mask, TEXTURE: composed.foreground, BACKGROUND: composed.background}
        return {name: np.asarray(part) for name, part in parts.items()}


def mechanism_sheet(drawn: dict[str, np.ndarray], class_names: Sequence[str]) -> Sheet:
    """A row for each class: mask, texture, background, composite, and a composite of mechanisms of three classes.

    Args:
        drawn: {mechanism: [k, 32, 32, c]}, one of each class: masks, foregrounds and backgrounds.
        class_names: of the k classes.
    """
    k = len(class_names)
    exchanged = {
        name: np.roll(drawn[name], -(_EXCHANGED.get(name, 0) * k // 3), axis=0) for name in MECHANISMS
    }
    columns = [_mask_pixels(drawn[SHAPE]), *(_pixels(drawn[name]) for name in (TEXTURE, BACKGROUND))]
    columns += [_composed(drawn), _composed(exchanged)]
    return Sheet(
        "A class in each row; last, its shape with the texture and the background of other rows",
        class_names,
        ("mask", "texture", "background", "composite", "exchanged"),
        np.stack(columns, axis=1),
    )


def exchange_sheet(drawn: dict[str, np.ndarray], exchanged: str, class_names: Sequence[str]) -> Sheet:
    """Composites with the shape of their row and another mechanism of their column; the third is the same for all.

    The first row and column show the mechanisms themselves, and their corner the fixed one: that of the first class.

    Args:
        drawn: as in `mechanism_sheet`.
        exchanged: the mechanism of the columns.
        class_names: of the k classes.
    """
    k = len(class_names)
    (fixed,) = set(MECHANISMS) - {SHAPE, exchanged}
    rows, columns = (index.ravel() for index in np.indices((k, k)))
    index = {SHAPE: rows, exchanged: columns, fixed: np.zeros_like(rows)}
    composed = _composed({name: drawn[name][index[name]] for name in MECHANISMS})
    body = composed.reshape(k, k, *composed.shape[1:])
    left = np.concatenate([_pixels(drawn[fixed][:1]), _mask_pixels(drawn[SHAPE])])
    body = np.concatenate([_pixels(drawn[exchanged])[None], body])
    return Sheet(
        f"Rows: the shape; columns: the {exchanged}; corner: the {fixed} of all",
        ("", *class_names),
        ("", *class_names),
        np.concatenate([left[:, None], body], axis=1),
    )


def interpolation_sheet(drawn: dict[str, np.ndarray], title: str, ends: tuple[str, str]) -> Sheet:
    """A row in which each mechanism changes alone while the others stay as at the first step, and one in which all change.

    Args:
        drawn: {mechanism: [steps, 32, 32, c]}, in which all mechanisms change from step to step.
        title: from what to what.
        ends: names of the first and the last column.
    """
    first = {name: np.repeat(part[:1], len(part), axis=0) for name, part in drawn.items()}
    rows = {name: _composed(first | {name: drawn[name]}) for name in MECHANISMS} | {"all": _composed(drawn)}
    between = [""] * (len(drawn[SHAPE]) - 2)
    tiles = np.stack(list(rows.values()))
    return Sheet(
        f"{title}: one mechanism at a time, and all", list(rows), (ends[0], *between, ends[1]), tiles
    )


def mosaic(tiles: np.ndarray, gap: int = _GAP) -> np.ndarray:
    """The tiles side by side on white: uint8 [rows, columns, h, w, 3] -> uint8 [height, width, 3]."""
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, h, w, c = tiles.shape
    whole = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
    return whole[: rows * h - gap, : columns * w - gap]


def picture(sheet: Sheet, scale: int) -> Image.Image:
    """The sheet with its names, each tile enlarged `scale` times."""
    tiles = sheet.tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    gap = scale * _GAP
    body = Image.fromarray(mosaic(tiles, gap))
    h, w = tiles.shape[2] + gap, tiles.shape[3] + gap
    # A wide picture is shown at a smaller scale.
    size = min(_LARGEST, max(_SMALLEST, body.width // _LETTERS))
    font, line = ImageFont.load_default(size), round(1.5 * size)
    left = _MARGIN + max(round(font.getlength(name)) for name in sheet.rows) + line // 2
    top = _MARGIN + 2 * line
    width = max(left + body.width, _MARGIN + round(font.getlength(sheet.title))) + _MARGIN
    canvas = Image.new("RGB", (width, top + body.height + _MARGIN), _PAPER)
    canvas.paste(body, (left, top))
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN), sheet.title, fill=_INK, font=font)
    for i, name in enumerate(sheet.rows):
        at = left - line // 2, top + i * h + (h - gap) / 2
        pen.text(at, name, fill=_FAINT, font=font, anchor="rm")
    for j, name in enumerate(sheet.columns):
        at = left + j * w + (w - gap) / 2, top - line // 3
        pen.text(at, _fitted(name, w, font), fill=_FAINT, font=font, anchor="ms")
    return canvas


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def write(folder: Path, sheets: dict[str, Sheet], scale: int) -> list[Path]:
    """Write each sheet as a PNG file into a folder, and return the paths.

    Raises:
        WriteError: the folder cannot be made, or a file not written.
    """
    _make(folder)
    paths = {name: folder / results.sheet_file(name) for name in sheets}
    for name, path in paths.items():
        files.write_bytes(path, png(picture(sheets[name], scale)))
    return list(paths.values())


def write_epoch(folder: Path, epoch: int, picture: Image.Image) -> None:
    """Write the sheet after an epoch into a folder, as a PNG file.

    Raises:
        WriteError: the folder cannot be made, or the file not written.
    """
    _make(folder)
    files.write_bytes(folder / results.epoch_file(epoch), png(picture))


def _make(folder):
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(folder)) from error


def _composed(drawn: dict[str, Any]) -> np.ndarray:
    """Composites in bytes of masks, foregrounds and backgrounds."""
    return np.asarray(in_bytes(compose(*(jnp.asarray(drawn[name]) for name in MECHANISMS))))


def _pixels(images) -> np.ndarray:
    return np.asarray(in_bytes(jnp.asarray(images)))


def _mask_pixels(masks) -> np.ndarray:
    return _pixels(2 * masks - 1).repeat(3, axis=-1)


def _repeated(draws, count):
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), draws)


def _fitted(text, room, font):
    """The text, cut off where it does not fit."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"
