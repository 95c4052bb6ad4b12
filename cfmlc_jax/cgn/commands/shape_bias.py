"""The command that measures the shape bias of a classifier of ImageNet on cue-conflict images."""

import argparse

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.cgn.probing import Probed, require_imagenet
from cfmlc_jax.classify import opening
from cfmlc_jax.data.sources.cue_conflict import CueConflict
from cfmlc_jax.metrics import cues
from cfmlc_jax.results import tables
from cfmlc_jax.results.predictions import kind_title

_SEED = 0
_ABOUT = """Shape bias of a classifier of ImageNet's 1,000 classes, on cue-conflict images.

The images are those of Geirhos et al. (ICLR 2019), with the shape of one of 16 categories and the texture of another:
stimuli/style-transfer-preprocessed-512 of https://github.com/rgeirhos/texture-vs-shape, 16 folders of files like
cat1-dog3.png. The category with the highest mean probability of its classes is the decision; the bias is the percentage of
shape decisions among shape and texture decisions. Published are values for views of 224 pixels, centre crops of images scaled to
256, which is done for every checkpoint whose patches are not cut from the image."""


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser(
        "shape_bias", help="shape against texture, of a classifier of ImageNet", description=_ABOUT
    )
    parser.set_defaults(run=run)
    common.add_classifier(parser, batch_size=64)
    parser.add_argument(
        "--data",
        type=files.local_path,
        required=True,
        metavar="FOLDER",
        help="style-transfer-preprocessed-512, unpacked",
    )
    common.add_image_size(parser)
    common.add_out(parser)


def run(flags: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        InputError: the checkpoint is not of a classifier of ImageNet, or the images are not there.
        RunError: the results cannot be written, or there is not enough memory.
    """
    common.require_writable(flags.out)
    opened = opening.open(flags.checkpoint, batch_size=flags.batch_size)
    require_imagenet(opened)
    source = CueConflict(flags.data)
    fields = {} if flags.image_size is None else {"views.image_size": flags.image_size}
    if opened.parts.patching["evaluate"].host_grid is None:
        fields["views.transform"] = "area_crop"
    probed = Probed(opened, flags.weights, fields)
    print(f"{probed.description}, on {len(source):,} cue-conflict images")
    print("the classes are assumed to be ImageNet's in their usual order")
    results = {kind: measure(logits, source.mechanisms) for kind, logits in probed.logits(source).items()}
    print(f"\n{table(results)}")
    common.write(
        flags.out,
        {
            "checkpoint": opened.path.name,
            "method": opened.config.method,
            "images": len(source),
            "image_size": probed.config.views.image_size,
            "transform": probed.config.views.transform,
            "predictions": results,
        },
    )


def measure(logits: np.ndarray, mechanisms: np.ndarray) -> dict[str, list[float]]:
    """The bias and the decisions, each [value, low, high] in percent: "shape_bias", "shape", "texture", "none".

    Args:
        logits: [n, 1000].
        mechanisms: int [n, 2], categories of shape and texture.
    """
    decided = cues.category_decisions(logits)
    follows, _ = cues.cue_shares(decided, mechanisms, generator=np.random.default_rng(_SEED))
    bias = cues.shape_bias(decided, *mechanisms.T, generator=np.random.default_rng(_SEED))
    entries = dict(zip(("shape", "texture", "none"), np.stack(follows, axis=1).tolist()))
    return {"shape_bias": [float(end) for end in bias]} | entries


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """A table in Markdown with one row per prediction."""
    return tables.markdown(
        ["%", "shape bias", "shape decisions", "texture decisions", "other decisions"],
        [[kind_title(kind), *map(tables.with_interval, each.values())] for kind, each in results.items()],
    )
