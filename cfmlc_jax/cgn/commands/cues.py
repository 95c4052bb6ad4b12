"""The command that shows which cue a classifier of digits follows."""

import argparse

from cfmlc_jax import config as configs
from cfmlc_jax.cgn import cues
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.cgn.probing import Probed
from cfmlc_jax.classify import opening
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources import mechanism_digits
from cfmlc_jax.data.sources.digit_looks import SIDE
from cfmlc_jax.data.sources.mechanism_digits import MechanismDigits
from cfmlc_jax.errors import InputError

_SOURCES = (*mechanism_digits.EMBEDDED, *mechanism_digits.OFFICIAL)
_DEFAULT = "double_colored_digits"
_ABOUT = """Which cue does a classifier of digits follow: shape, texture or background?

Digits are shown whose three labels conflict (the test split of --source), and digits of which one mechanism is
exchanged and all else kept. Printed are the percentages of predictions with each label and 95 % bootstrap intervals over
images; of method invariant also those of each head. Of a multi-label classifier the class with the highest logit
counts; if it was trained on scenes, the digit is painted in the middle of 64 x 64 pixels, where it is as large as in scenes."""


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser("cues", help="which cue a classifier of digits follows", description=_ABOUT)
    parser.set_defaults(run=run)
    common.add_classifier(parser, batch_size=500)
    parser.add_argument(
        "--source",
        choices=_SOURCES,
        metavar="SOURCE",
        help=f"one of {', '.join(_SOURCES)}; default: the checkpoint's if it is one of these, else {_DEFAULT}",
    )
    parser.add_argument(
        "--root",
        default="",
        metavar="FOLDER",
        help="of MNIST's files for …_mnist; default $CFMLC_DATA/mnist or data/mnist",
    )
    common.add_out(parser)


def run(flags: argparse.Namespace) -> None:
    """Print the tables.

    Raises:
        InputError: the checkpoint is not of a classifier of the digits, or the source cannot be read.
        RunError: the results cannot be written, or there is not enough memory.
    """
    common.require_writable(flags.out)
    opened = opening.open(flags.checkpoint, batch_size=flags.batch_size)
    require_digits(opened)
    trained_on = opened.config.data.source
    name = flags.source or (trained_on if trained_on in _SOURCES else _DEFAULT)
    source = _source(name, flags.root)
    multi_label = opened.config.task == "multi_label"
    side = 2 * SIDE if multi_label and trained_on not in _SOURCES else SIDE
    probed = Probed(opened, flags.weights)
    print(f"{probed.description}, on {len(source):,} images of {name}")
    results = cues.measure(probed, source, side=side)
    print(f"\n{cues.table(results)}")
    common.write(
        flags.out,
        {"checkpoint": opened.path.name, "method": opened.config.method, "source": repr(source)} | results,
    )


def _source(name: str, root: str) -> MechanismDigits:
    fields = configs.default(configs.CGN).data
    fields.source, fields.root = name, root
    source = data.source(fields, "test")
    assert isinstance(source, MechanismDigits)
    return source


def require_digits(opened: Opened) -> None:
    """Raise unless the classes are the ten digits in their order; print that this is assumed if they have no names.

    Raises:
        InputError: other classes.
    """
    digits = MechanismDigits.class_names
    if opened.class_names is None and opened.num_classes == len(digits):
        print(f"{opened.path} does not name its classes: assuming the digits, in their order")
    elif tuple(opened.class_names or ()) != digits:
        names = opened.class_names or [f"{opened.num_classes} without names"]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise InputError(
            f"checkpoint {opened.path} has other classes ({shown}) than the digits that are shown to it ({digits[0]} to "
            f"{digits[-1]}); give a classifier of digits, such as those in a run of configs/cgn_digits.py; of ImageNet's "
            "classes shape_bias and background_gap ask"
        )
