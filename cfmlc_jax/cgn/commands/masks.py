"""The command that measures a generator: its masks, and the colours of its images."""

import argparse
from typing import Any

import jax
import numpy as np

from cfmlc_jax import cli
from cfmlc_jax.causal.mechanisms import MECHANISMS, SHAPE
from cfmlc_jax.cgn import opening
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.cgn.counterfactuals import Painter
from cfmlc_jax.cgn.opening import Opened
from cfmlc_jax.cgn.system import in_bytes
from cfmlc_jax.cgn.validation import MOST_REAL, spread
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources import mechanism_digits
from cfmlc_jax.data.sources.mechanism_digits import MechanismDigits
from cfmlc_jax.engine.memory import explained
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics import colours, masks
from cfmlc_jax.results import tables

_SOURCES = (*mechanism_digits.EMBEDDED, *mechanism_digits.OFFICIAL)
_ABOUT = """Quality of a generator's masks and of its images' colours.

Counterfactuals are drawn, and their masks are compared with the real masks of the training split: intersection over union
with the nearest one of the class that was asked for, and the class of the nearest of all. Masks of real test images are measured
likewise: no generator needs to be better. The colours of all pixels are compared with those of real images whose
mechanisms are independent, as the drawn ones' are.

Inception score and FID are not computed: they need the weights of a network that was trained on photos of 299 pixels,
which are not part of this package, and whose features say little about small digits."""


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser(
        "masks", help="quality of a generator's masks and colours", description=_ABOUT
    )
    parser.set_defaults(run=run)
    common.add_generator(parser)
    parser.add_argument(
        "--images", type=cli.whole_number(1), default=1000, metavar="N", help="to draw; default 1000"
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")
    parser.add_argument("--root", metavar="FOLDER", help="of the data; default: as in the run")
    common.add_out(parser)


def run(flags: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        InputError: the checkpoint is not of a generator, or its data cannot be read.
        RunError: the results cannot be written, or there is not enough memory.
    """
    common.require_writable(flags.out)
    opened = opening.open(flags.checkpoint)
    fields = opened.config.data.copy_and_resolve_references()
    if flags.root is not None:
        with fields.unlocked():
            fields.root = flags.root
    print(f"checkpoint {opened.path.name}, {flags.images:,} images, real ones of {fields.source}")
    with explained("drawing", f"make --images (now {flags.images}) smaller"):
        results = measure(opened, fields, flags.images, flags.seed)
    print(f"\n{table(results)}")
    common.write(
        flags.out,
        {"checkpoint": opened.path.name, "data": fields.source, "images": flags.images, "seed": flags.seed}
        | results,
    )


def measure(opened: Opened, fields: Any, images: int, seed: int) -> dict[str, Any]:
    """Metrics of drawn and of real test images, JSON types.

    {"masks": {"drawn" or "real": `metrics.masks.quality`}, "classes": {class: {"shape_accuracy", "mask_iou_class"}},
    "colours": {"drawn" or "real": `metrics.colours.distances` from real images}}.

    Args:
        opened: the generator.
        fields: section `data` of its configuration.
        images: number of images to draw.
        seed: of labels and noise.
    """
    train, test, independent = (
        _with_masks(fields, split) for split in ("train", "test", "train_decorrelated")
    )
    real_masks, real_labels = _masks(train)
    test_masks, test_labels = _masks(test)
    labels, composed = Painter(opened.parts.generator, opened.parts.mesh, images)(
        opened.drawing_weights(), jax.random.key(seed)
    )
    asked = labels[:, MECHANISMS.index(SHAPE)]
    drawn = np.asarray(composed.mask)[..., 0]
    real = _images(independent)
    return {
        "masks": {
            "drawn": masks.quality(drawn, asked, real_masks, real_labels),
            "real": masks.quality(test_masks.astype(np.float32), test_labels, real_masks, real_labels),
        },
        "classes": {
            name: _of_class(drawn[asked == k], k, real_masks, real_labels)
            for k, name in enumerate(opened.class_names)
            if (asked == k).any()
        },
        "colours": {
            "drawn": colours.distances(np.asarray(in_bytes(composed.image)), real),
            "real": colours.distances(_images(test), real),
        },
    }


def _with_masks(fields, split) -> MechanismDigits:
    source = data.source(fields, split) if fields.source in _SOURCES else None
    if not isinstance(source, MechanismDigits):
        raise InputError(
            f"masks of {fields.source} are not compared, only those of digits whose mechanisms are known; give a run on "
            f"{', '.join(mechanism_digits.EMBEDDED)} or MNIST, such as one of configs/cgn_digits.py"
        )
    return source


def _masks(source: MechanismDigits):
    """Masks bool [m, h, w] and classes int [m] of at most `MOST_REAL` images, evenly spread over a split."""
    chosen = spread(len(source), MOST_REAL)
    return np.stack([source.mask(index) for index in chosen]), source.labels[chosen].argmax(axis=1)


def _images(source):
    return np.stack([np.asarray(source[index]["image"]) for index in spread(len(source), MOST_REAL)])


def _of_class(drawn, k, real_masks, real_labels):
    quality = masks.quality(drawn, np.full(len(drawn), k), real_masks, real_labels)
    return {name: quality[name] for name in ("shape_accuracy", "mask_iou_class")}


def table(results: dict[str, Any]) -> str:
    """Tables in Markdown: masks, masks by class, colours."""
    quality = tables.markdown(
        ["masks, %", "shape accuracy", "IoU, its class", "IoU, nearest", "mean", "deviation", "binary"],
        [[name, *(each[column] for column in _COLUMNS)] for name, each in results["masks"].items()],
    )
    classes = tables.markdown(
        ["drawn masks, %", "shape accuracy", "IoU, its class"],
        [[name, *each.values()] for name, each in results["classes"].items()],
    )
    distances = tables.markdown(
        ["colours, distance from real ones", "mean (of 255)", "Fréchet (of 255)", "histogram %"],
        [[name, *each.values()] for name, each in results["colours"].items()],
    )
    return f"{quality}\n\n{classes}\n\n{distances}"


_COLUMNS = ("shape_accuracy", "mask_iou_class", "mask_iou", "mask_mean", "mask_deviation", "mask_binary")
