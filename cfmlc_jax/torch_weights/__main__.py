"""Converts PyTorch weights to a checkpoint of this package, and back.

    python -m cfmlc_jax.torch_weights model_best.pth.tar OUT --classes=coco
    python -m cfmlc_jax.torch_weights torchvision:resnet101.IMAGENET1K_V2 OUT
    python -m cfmlc_jax.main --mode=evaluate --checkpoint=OUT
    python -m cfmlc_jax.main --config=configs/coco.py --config.init_from=OUT

    python -m cfmlc_jax.torch_weights runs/coco OUT.pth.tar --to_torch

IN is a PyTorch or safetensors file with weights of MLC-PAT, Query2Label, torchvision, timm, MIIL,
the long-tailed reference (Long-Tailed-Recognition.pytorch), or a generator of
counterfactual_generative_networks, of digits or for ImageNet. Or IN is the name of public weights, which are
downloaded: those of python -m cfmlc_jax.weights list, and hf:owner/name. Wrappers of training (Lightning,
DistributedDataParallel, torch.compile) are removed, and a moving average is converted too.
Model, classes, attention and head are recognised from the entries. Conversion is strict: unmatched
entries are errors and are listed. A backbone without a head can only initialise new runs (--config.init_from).

OUT is a new folder, which can be used like any checkpoint. With --to_torch, IN is a run or a checkpoint, and OUT
a new file in MLC-PAT's format, or, for the heads causal_norm, dot_product and lws, in the format of the
long-tailed reference, or, for a generator, in that of counterfactual_generative_networks.

Needs PyTorch, except to read safetensors: pip install 'cfmlc_jax[torch]'.
Exit codes: 0 OUT is written; 1 an error, printed in one line; 130 interrupted, 143 by SIGTERM.
"""

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports that take seconds
    cli.end_at_interrupt("OUT is not written")

import jax
import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files as paths
from cfmlc_jax import main as command
from cfmlc_jax.cgn.counterfactuals import drawing_weights
from cfmlc_jax.cgn.imagenet import torch_files as generator_files
from cfmlc_jax.clusters import detect
from cfmlc_jax.config import recipes
from cfmlc_jax.data.class_names import KNOWN, class_names
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.generators import mnist
from cfmlc_jax.models.layers import normalise
from cfmlc_jax.models.layers.normalise import NORMALISATIONS
from cfmlc_jax.torch_weights import cgn, files, long_tailed, mlc_pat
from cfmlc_jax.weights import fetch, hub, read

PROGRAM = "python -m cfmlc_jax.torch_weights"
# ImageNet's mean, in [0, 1], instead of the mean of the training images, which PyTorch files do not have. It is
# the null image of effect.null=mean and does not affect the plain prediction.
MEAN_COLOUR = (0.485, 0.456, 0.406)
ALLOW = "--allow=REGEX permits entries to be missing or left over"
IN_PLACE_NORMS = {"auto": None, "yes": True, "no": False}


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Orbax logs every file.
    logging.getLogger("absl").setLevel(logging.ERROR)
    flags = _parser().parse_args(arguments)
    detect.require_one_process(flags.cluster)
    local = flags.out if flags.to_torch else flags.source
    paths.require_path(str(local), "OUT" if flags.to_torch else "IN")
    if flags.out.exists():
        raise InputError(f"{flags.out} exists already; remove it, or choose another path")
    if flags.to_torch:
        to_torch(flags)
    else:
        flags.normalisation = bring(flags)
        from_torch(flags)
    return 0


def bring(flags: argparse.Namespace) -> str | None:
    """The normalisation that the publisher of IN states, as text; None if there is none.

    Public weights are downloaded unless they are in the cache; IN becomes their file, and their model the default.

    Raises:
        InputError: nothing has this name, or the file cannot be had.
        RunError: it cannot be downloaded.
    """
    weights = fetch.named(str(flags.source))
    if weights is not None:
        if weights.entry is not None:
            flags.model = flags.model or weights.entry.model
        path = fetch.fetch(weights, lambda text: print(text, file=sys.stderr, flush=True))
        flags.source = path.parent if path.name in hub.WEIGHTS else path
    flags.source = fetch.file_in(flags.source)
    if flags.source.is_dir():
        _refuse_checkpoint(flags.source)
    return read.expected(flags.source, weights)


def _refuse_checkpoint(folder):
    try:
        path = checkpoints.find(folder)
    except InputError:
        return
    raise InputError(f"{path} is a checkpoint already; use it as it is, or convert it back by --to_torch")


def from_torch(flags: argparse.Namespace) -> None:
    """Write the checkpoint OUT from the file IN, and print where each entry went.

    Raises:
        InputError: a file, a name or an option cannot be used.
    """
    if flags.model:
        catalogue.parts(flags.model)  # reports a misspelt name before the file is read
    stored = files.load(flags.source)
    if long_tailed.is_checkpoint(stored):
        from_long_tailed(flags, stored)
        return
    contents = files.weights_in(flags.source, stored)
    with _naming(flags.source):
        is_generator = generator_files.is_generator(contents.weights)
    if is_generator:
        from_imagenet_generator(flags, contents.weights)
        return
    read = unwrapped(flags.source, contents)
    weights, average = read.weights, read.average
    if cgn.is_digits_generator(weights):
        from_digits_generator(flags, weights)
        return
    flags.model = flags.model or _recognised(flags, weights)
    with _naming(flags.source):
        arch = mlc_pat.architecture(flags.model, weights)
    names = _class_names(flags, arch.num_classes, read)
    config = configuration(flags, arch)
    lines: list[str] = []
    variables = _converted(flags, weights, arch, "weights", lines.append)
    averaged = variables if average is None else _converted(flags, average, arch, "average", None)
    print(aligned(lines))
    _write(flags.out, variables, averaged, config, names, arch.num_classes)
    print(f"\n{_summary(flags.model, weights, variables, arch)}")
    print(f"averaged weights: {'the same, since the file has none' if average is None else 'from the file'}")
    print(_names_line(flags, names, arch.num_classes, read))
    print(_pixels_line(flags, config))
    what = f"a checkpoint with method {config.method}" if arch.head else "a backbone, for --config.init_from"
    print(f"{flags.out}: {what}, image size {config.views.image_size}")


def unwrapped(path: Path, read: files.Weights) -> files.Weights:
    """The weights without wrappers around the model; a model and its average in one state_dict are separated.

    Raises:
        InputError: the file has several models.
    """
    with _naming(path):
        weights, inner_average = mlc_pat.unwrapped(read.weights)
        average = inner_average if read.average is None else mlc_pat.unwrapped(read.average)[0]
    return read._replace(weights=weights, average=average)


def _recognised(flags, state_dict):
    try:
        return mlc_pat.recognise(state_dict, allow=flags.allow)
    except InputError as error:
        raise InputError(f"{flags.source}: {error}; {ALLOW}") from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors raised inside the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _write(out, variables, average, config, names, num_classes):
    checkpoints.write(
        out,
        model={
            "variables": variables,
            "average": average,
            "mean_colour": np.asarray(MEAN_COLOUR, np.float32),
        },
        meta={"config": configs.to_json(config), "class_names": names, "num_classes": num_classes},
    )


def from_imagenet_generator(flags: argparse.Namespace, weights: Mapping[str, Any]) -> None:
    """Write the checkpoint OUT of a counterfactual generator for ImageNet.

    Raises:
        InputError: left over, missing or mis-shaped entries, which are listed; or an option that cannot be used.
    """
    for name in ("model", "image_size", "allow"):
        if getattr(flags, name):
            raise InputError(
                f"--{name} does not go with {flags.source}, a counterfactual generator for ImageNet; omit it"
            )
    config = configs.default(configs.CGN_IMAGENET)
    if flags.config:
        config = command.parse(command.define_flags(), [PROGRAM, f"--config={flags.config}"])
    elif flags.classes:
        config.generator.class_names = flags.classes
    with _naming(flags.source):
        meta, model = generator_files.from_torch(configs.validate(config), weights)
    checkpoints.write(flags.out, model=model, meta=meta)
    print(f"{flags.out}: a generator for ImageNet, to draw counterfactuals with (cfmlc_jax.cgn)")


def from_long_tailed(flags: argparse.Namespace, stored: Any) -> None:
    """Write the checkpoint OUT from the content of a file IN of the long-tailed reference.

    Raises:
        InputError: a file, a name or an option cannot be used.
    """
    if flags.allow:
        raise InputError(
            "--allow does not go with a file of the long-tailed reference, whose entries must all match; omit it"
        )
    checkpoint = long_tailed.checkpoint_in(flags.source, stored)
    with _naming(flags.source):
        flags.model = flags.model or long_tailed.recognise(checkpoint)
        variables = long_tailed.from_torch(flags.model, checkpoint)
    head = long_tailed.head_of(variables)
    num_classes = variables["params"]["head"][long_tailed.BRANCH]["kernel"].shape[1]
    config = long_tailed_configuration(flags, head)
    names = _class_names(flags, num_classes, None)
    # The reference has no moving average of its weights.
    _write(flags.out, variables, variables, config, names, num_classes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{flags.model} with head {head}: {parameters:,} parameters, {num_classes} classes")
    print(_names_line(flags, names, num_classes, None))
    print(f"{flags.out}: a single-label checkpoint, image size {config.views.image_size}")


def from_digits_generator(flags: argparse.Namespace, weights: Mapping[str, np.ndarray]) -> None:
    """Write the checkpoint OUT of a generator of digits.

    Raises:
        InputError: a file, a name or an option cannot be used.
    """
    for name in ("model", "allow", "image_size"):
        if getattr(flags, name):
            raise InputError(
                f"--{name} does not go with a generator of digits, whose sizes are in IN; omit it"
            )
    with _naming(flags.source):
        sizes = cgn.digits_generator_sizes(weights)
        variables = cgn.from_torch(mnist.MnistGenerator(**sizes._asdict()), weights)
    if flags.config:
        config = command.parse(command.define_flags(), [PROGRAM, f"--config={flags.config}"])
        if configs.system(configs.to_json(config)) != configs.CGN:
            raise InputError(
                f"--config={flags.config} is of a classifier, but IN is a generator; give configs/cgn_mnist.py:LOOK"
            )
    else:
        config = configs.default(configs.CGN)
    stored = configs.to_json(config)
    stored["generator"] |= {"latent": sizes.latent, "ngf": sizes.ngf}
    stored["optim"]["ema_decay"] = (
        0.0  # the weights are raw ones, with the batch statistics of their training
    )
    names = _class_names(flags, sizes.num_classes, None)
    if names is None:
        names = [f"digit {digit}" for digit in range(sizes.num_classes)]
    checkpoints.write(
        flags.out,
        model={"generator": variables, "average": variables},
        meta={"config": stored, "class_names": names, "num_classes": sizes.num_classes},
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(
        f"{len(weights)} entries of a generator of digits: {parameters:,} parameters, {sizes.num_classes} classes"
    )
    print(f"{flags.out}: a checkpoint of data {config.data.source}")


def long_tailed_configuration(flags: argparse.Namespace, head: str) -> Any:
    """The configuration of a checkpoint of the long-tailed reference: --config's, or its recipe, with this model.

    Raises:
        InputError: a configuration that cannot be read or is multi-label; an image size that does not suit
            the model.
    """
    if flags.config:
        config = command.parse(command.define_flags(), [PROGRAM, f"--config={flags.config}"])
        if config.task != "single_label":
            raise InputError(
                f"--config={flags.config} is multi-label, but IN is single-label; give a single-label configuration"
            )
    else:
        config = recipes.long_tailed(recipes.OF_HEAD[head])
        small = flags.model == "resnet32_cifar"
        config.views.transform = "padded_crop" if small else "area_crop"
        config.views.image_size = 32 if small else 224
        config.data.normalise = "cifar" if small else "imagenet"
    if flags.normalise != "auto":
        config.data.normalise = "" if flags.normalise == "none" else flags.normalise
    fields = configs.to_json(config)
    fields["model"] |= {"name": flags.model, "head": head}
    fields["views"]["image_size"] = flags.image_size or config.views.image_size
    catalogue.create_model(
        flags.model, 2, image_size=fields["views"]["image_size"], head=head
    )  # raises if model, head and image size do not match
    return configs.from_json(fields)


def to_torch(flags: argparse.Namespace) -> None:
    """Write the file OUT, weights and average, from the checkpoint IN.

    Raises:
        InputError: a checkpoint or an option cannot be used.
    """
    for name in ("config", "classes", "allow"):
        if getattr(flags, name):
            raise InputError(
                f"--{name} does not go with --to_torch, which takes it from the checkpoint; omit it"
            )
    if flags.out.suffix == ".safetensors":
        raise InputError(f"{flags.out}: --to_torch writes PyTorch files; give a name that ends with .pth")
    path = checkpoints.find(flags.source)
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        config = configs.from_json(meta["config"])
    if configs.system(config) == configs.CGN:
        generator_to_torch(flags, path, config, len(meta["class_names"]))
        return
    if configs.system(config) == configs.CGN_IMAGENET:
        generator_files.write(flags.out, path, config)
        print(f"{flags.out}: state_dict of the generator in {path}")
        return
    if configs.system(config) == configs.REGIONS:
        raise InputError(
            f"checkpoint {path} is of a classifier of stored regions, which is not written as a PyTorch file; give one of "
            "images"
        )
    name = config.model.name
    if flags.model not in (None, name):
        raise InputError(f"--model={flags.model}, but the model of checkpoint {path} is {name}; omit --model")
    model = checkpoints.read_part(path, checkpoints.model_shapes(path))
    if config.model.head in long_tailed.HEADS and configs.branches(config) == "none":
        long_tailed.write(flags.out, long_tailed.to_torch(name, model["average"]))
        print(f"{flags.out}: averaged weights of {path} in the format of the long-tailed reference")
        return
    if catalogue.HEADS[config.model.head].torch is None:
        raise InputError(
            f"checkpoint {path} has the head {config.model.head!r} with branches {configs.branches(config)!r}, "
            "which no reference has; only causal_norm, dot_product and lws with one head are converted"
        )
    weights, average = (
        mlc_pat.to_torch(
            name,
            model[part],
            image_size=flags.image_size or config.views.image_size,
            in_place_norms=IN_PLACE_NORMS[flags.in_place_norms],
        )
        for part in ("variables", "average")
    )
    files.write_torch(flags.out, weights, average)
    arch = mlc_pat.architecture(name, weights)
    print(_summary(name, weights, model["variables"], arch))
    print(f"{flags.out}: state_dict and state_dict_ema of {path}")


def generator_to_torch(flags: argparse.Namespace, path: Path, config: Any, num_classes: int) -> None:
    """Write the file OUT, the state_dict of the weights that draw counterfactuals.

    Raises:
        InputError: the checkpoint cannot be read or the file not written.
    """
    if flags.model:
        raise InputError(f"--model={flags.model}, but checkpoint {path} is of a generator; omit --model")
    torch = files.import_torch(f"to write {flags.out}")
    generator = mnist.create(num_classes, config.generator)
    model = checkpoints.read_part(path, checkpoints.model_shapes(path))
    drawing = drawing_weights(model["average"], generator, config.optim.ema_decay)
    state_dict = cgn.to_torch(generator, jax.device_get(drawing))
    files.save(torch, flags.out, files.tensors(torch, state_dict))
    print(f"{flags.out}: state_dict of the generator of {path}")


def configuration(flags: argparse.Namespace, arch: mlc_pat.Architecture) -> Any:
    """The configuration of the checkpoint: --config's, or the default, with the model of the weights.

    Weights with attention branches get the method PAT-T. Weights with one head, or none, get PAT-I unless --config
    has another method with one head. Weights from a plain ImageNet recipe get standardised pixels.

    Raises:
        InputError: a configuration that cannot be read, or an image size that does not suit the model.
    """
    arguments = [PROGRAM, *([f"--config={flags.config}"] if flags.config else [])]
    config = command.parse(command.define_flags(), arguments) or configs.default()
    fields = configs.to_json(config)
    pixels = flags.normalise
    if pixels == "auto":
        stated = flags.normalisation
        pixels = mlc_pat.normalisation(flags.model, arch) if stated is None else stated or "none"
    fields["model"] |= {"name": flags.model, "head": arch.head or catalogue.parts(flags.model)[1][0]}
    if pixels or config.data.normalise == normalise.AUTO:
        fields["data"]["normalise"] = "" if pixels == "none" else pixels
    if arch.queries:
        fields["model"]["ml_decoder"]["queries"] = arch.queries
    if arch.attention != "none":
        fields["method"] = "pat_t"
        fields["patches"]["branches"] = arch.attention
    elif fields["method"] == "pat_t":
        fields["method"] = "pat_i"
    fields["views"]["image_size"] = flags.image_size or config.views.image_size
    mlc_pat.model(flags.model, arch, image_size=fields["views"]["image_size"])
    return configs.from_json(fields)


def aligned(lines: Sequence[str]) -> str:
    """Lines "left -> right" aligned in two columns, as text."""
    pairs = [line.split(" -> ", 1) for line in lines]
    width = max(len(left) for left, _ in pairs)
    return "\n".join(f"{left:<{width}} -> {right}" for left, right in pairs)


def _converted(flags, state_dict, arch, kind, report):
    try:
        own = mlc_pat.architecture(flags.model, state_dict)
        if own[:4] != arch[:4]:
            raise InputError(
                f"{own[:4]} instead of the weights' {arch[:4]} (classes, attention, head, queries)"
            )
        return mlc_pat.from_torch(
            flags.model,
            state_dict,
            allow=flags.allow,
            in_place_norms=IN_PLACE_NORMS[flags.in_place_norms],
            report=report,
        )
    except InputError as error:
        raise InputError(f"{flags.source}, {kind}: {error}{_hint(flags, state_dict)}") from error


def _hint(flags, state_dict):
    """What to do about an error of conversion: the model whose weights these are, or the flag --allow."""
    try:
        other = mlc_pat.recognise(state_dict)
    except InputError:
        return f"; {ALLOW}"
    return "" if other == flags.model else f"; they are those of {other}: omit --model"


def _class_names(flags, num_classes, read):
    """The names from --classes, else the file's own; None if neither has any.

    Raises:
        InputError: --classes has another number of classes, or another order than the file's names.
    """
    own = _own_names(read, num_classes)
    if not flags.classes:
        return own and list(own)
    names = class_names(flags.classes)
    if len(names) != num_classes:
        raise InputError(
            f"--classes={flags.classes} names {len(names)} classes, but the weights have {num_classes}"
        )
    moved = [i for i, name in enumerate(names) if own and name != own[i] and name in own]
    if moved:
        i = moved[0]
        raise InputError(
            f"--classes={flags.classes} calls class {i} {names[i]!r}, {flags.source} calls it {own[i]!r}, and class "
            f"{own.index(names[i])} {names[i]!r}: the order differs; omit --classes to use the file's names"
        )
    return list(names)


def _own_names(read, num_classes):
    """The file's own class names if there is one for each class, else None."""
    names = read and read.class_names
    return names if names and len(names) == num_classes else None


def _names_line(flags, names, num_classes, read):
    """A line with the origin of the class names; also prints a warning if the file's names differ."""
    own = _own_names(read, num_classes)
    other = [i for i, name in enumerate(names or ()) if own and name != own[i]]
    if other:
        i = other[0]
        _warn(
            f"{flags.source} has other names for {len(other)} classes: class {i} {own[i]!r}, not {names[i]!r}"
        )
    elif read and read.unread:
        _warn(f"{flags.source}: {read.unread}; its class names are ignored")
    elif read and read.class_names and own is None:
        _warn(f"{flags.source} names {len(read.class_names)} classes, but its weights have {num_classes}")
    if not num_classes:
        return "class names: none, without a head"
    if flags.classes or not names:
        return f"class names: {flags.classes or 'not known; evaluation uses those of its data'}"
    return f"class names: the file's ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _warn(text):
    print(f"warning: {text}", file=sys.stderr)


def _pixels_line(flags, config):
    """A line about the normalisation of pixels, which a run initialised from the weights must share."""
    name = config.data.normalise
    if not name:
        usual = catalogue.parts(flags.model)[0].torch.normalisation or "imagenet"
        return f"pixels: in [0, 1] (--normalise={usual} if training standardised them)"
    line = f"pixels: standardised by {name}'s mean and deviation"
    if flags.normalise == "auto" and flags.normalisation is not None:
        line += ", as their publisher states"
    elif flags.normalise == "auto":
        line += ", as in ImageNet's plain recipes (--normalise=none: in [0, 1], as in MLC-PAT's)"
    return f"{line}; for a run initialised from these weights set --config.data.normalise={name}, or auto"


def _summary(name, state_dict, variables, arch):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    head = f"{arch.num_classes} classes, attention {arch.attention}, head {arch.head}"
    return (
        f"{len(state_dict)} entries of {name}: {parameters:,} parameters, {head if arch.head else 'no head'}"
    )


def _normalisation(text):
    if text not in ("auto", "none"):
        try:
            normalise.parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _pattern(text):
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression ({error})") from error
    return text


def _parser():
    parser = cli.Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add(
        "source",
        metavar="IN",
        type=paths.any_path,
        help="a file of weights; with --to_torch a run or a checkpoint",
    )
    add("out", metavar="OUT", type=paths.any_path, help="a new folder; with --to_torch a new file")
    add("--model", help=f"one of {', '.join(catalogue.names())}; default: recognised from the entries")
    add(
        "--config",
        metavar="FILE",
        help="configuration to store with the checkpoint, a file or a name such as voc2007; default: the paper's recipe "
        "for COCO",
    )
    add(
        "--classes",
        metavar="NAMES",
        help=f"{', '.join(KNOWN)}, vg256.json, or a file with one class per line; default: the names in IN",
    )
    add(
        "--image_size",
        type=cli.whole_number(1),
        metavar="PIXELS",
        help="side of the views; default: the configuration's",
    )
    add(
        "--allow",
        action="append",
        default=[],
        type=_pattern,
        metavar="REGEX",
        help="entries that may be left over, or missing (they get initial values); can be given several times",
    )
    add(
        "--in_place_norms",
        choices=IN_PLACE_NORMS,
        default="auto",
        help="whether norm weights w act as |w| + 1e-5, as in InPlaceABN; default auto: yes for TResNets only",
    )
    add(
        "--normalise",
        "--statistics",  # the flag's older name
        type=_normalisation,
        metavar="NAME",
        default="auto",
        help=f"mean and deviation that pixels are standardised by: none, {', '.join(NORMALISATIONS)}, or six numbers, "
        "0.5,0.5,0.5/0.2,0.2,0.2; default auto: as the publisher states, else imagenet for plain ImageNet classifiers "
        "and for backbones alone, else none",
    )
    add("--to_torch", action="store_true", help="convert a checkpoint to a PyTorch file")
    detect.add_flag(parser)
    return parser


if __name__ == "__main__":
    cli.end(main())
