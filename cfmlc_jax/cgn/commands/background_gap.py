"""The command that measures how much a classifier relies on backgrounds: the background gap on ImageNet-9."""

import argparse

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.cgn.probing import Probed, require_imagenet
from cfmlc_jax.classify import opening
from cfmlc_jax.data.sources.in9 import VARIATIONS, ImageNet9
from cfmlc_jax.metrics import cues
from cfmlc_jax.metrics.imagenet_groups import IN9_CLASSES
from cfmlc_jax.results import tables
from cfmlc_jax.results.predictions import kind_title

SAME, RANDOM = "mixed_same", "mixed_rand"
# By what the correct images are divided: their number, or that of full batches, as in the reference.
IMAGES, BATCHES = "images", "batches"
_ABOUT = """Background gap of a classifier of ImageNet: top-1 accuracy on backgrounds of the same class minus on random ones.

The images are those of the backgrounds challenge (Xiao et al., ICLR 2021), in its layout FOLDER/mixed_same/val/00_dog/….JPEG:
the release of https://github.com/MadryLab/backgrounds_challenge. The highest of all 1,000 logits decides, and is right if
its class belongs to the image's of the nine; a classifier of the nine classes is asked as it is. Of method invariant, the
published value is that of shape and texture heads. Pixels are standardised as published, by ImageNet-9's own mean
and deviation, if the checkpoint standardises by ImageNet's; images of 224 pixels are not resized for a
checkpoint of that size."""


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser(
        "background_gap", help="reliance on backgrounds, of a classifier of ImageNet", description=_ABOUT
    )
    parser.set_defaults(run=run)
    common.add_classifier(parser, batch_size=64)
    parser.add_argument(
        "--data", type=files.local_path, required=True, metavar="FOLDER", help="bg_challenge, unpacked"
    )
    common.add_image_size(parser)
    parser.add_argument(
        "--divisor",
        choices=(IMAGES, BATCHES),
        default=IMAGES,
        help="images (default), or batches, as in the reference: of accuracies, number of batches times their size, "
        "which is more than the images if the last batch is not full",
    )
    parser.add_argument(
        "--normalise",
        choices=("published", "checkpoint"),
        default="published",
        help="mean and deviation of the pixels: see above, or the checkpoint's own",
    )
    common.add_out(parser)


def run(flags: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        InputError: the checkpoint is not of a classifier of ImageNet, or the images are not there.
        RunError: the results cannot be written, or there is not enough memory.
    """
    common.require_writable(flags.out)
    opened = opening.open(flags.checkpoint, batch_size=flags.batch_size)
    require_imagenet(opened, also=(len(IN9_CLASSES), "the 9 of ImageNet-9"))
    sources = {variation: ImageNet9(flags.data, variation) for variation in VARIATIONS}
    fields = {"views.transform": "squeeze"}
    if flags.normalise == "published" and opened.config.data.normalise == "imagenet":
        fields["data.normalise"] = "imagenet9"
    if flags.image_size is not None:
        fields["views.image_size"] = flags.image_size
    probed = Probed(opened, flags.weights, fields)
    print(
        f"{probed.description}, on {', '.join(f'{len(each):,} images of {name}' for name, each in sources.items())}"
    )
    print(
        f"views of {probed.config.views.image_size} pixels, data.normalise {probed.config.data.normalise!r}, accuracies "
        f"divided by {flags.divisor}"
    )
    results: dict[str, dict[str, float]] = {}
    for name, source in sources.items():
        for kind, logits in probed.logits(source).items():
            divisor = _divisor(len(source), probed.batch_size, flags.divisor)
            results.setdefault(kind, {})[name] = accuracy(logits, source.labels.argmax(axis=1), divisor)
    for each in results.values():
        each["gap"] = each[SAME] - each[RANDOM]
    print(f"\n{table(results)}")
    common.write(
        flags.out,
        {
            "checkpoint": opened.path.name,
            "method": opened.config.method,
            "images": {name: len(source) for name, source in sources.items()},
            "image_size": probed.config.views.image_size,
            "normalise": probed.config.data.normalise,
            "divisor": flags.divisor,
            "batch_size": probed.batch_size,
            "predictions": results,
        },
    )


def accuracy(logits: np.ndarray, classes: np.ndarray, divisor: int) -> float:
    """Top-1 accuracy in percent: logits [n, 1000] or [n, 9], classes of ImageNet-9 int [n].

    Args:
        logits: of the classifier.
        classes: of the images.
        divisor: what the number of right predictions is divided by.
    """
    return 100 * int((cues.in9_decisions(logits) == classes).sum()) / divisor


def _divisor(images, batch_size, divisor):
    return images if divisor == IMAGES else -(-images // batch_size) * batch_size


def table(results: dict[str, dict[str, float]]) -> str:
    """A table in Markdown with one row per prediction."""
    return tables.markdown(
        ["top-1 %", *VARIATIONS, "gap"],
        [[kind_title(kind), *each.values()] for kind, each in results.items()],
    )
