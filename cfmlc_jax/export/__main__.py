"""The command that writes a checkpoint's classifier for other programs.

    python -m cfmlc_jax.export runs/coco coco.onnx
    python -m cfmlc_jax.export runs/coco coco.stablehlo
    python -m cfmlc_jax.export runs/coco coco

RUN is a run, for its best checkpoint, or a checkpoint. The suffix of OUT says what is written:

    OUT.onnx       for ONNX Runtime and others; needs pip install 'cfmlc_jax[onnx]'
    OUT.stablehlo  for JAX without this package, on CPUs, CUDA and TPUs; needs pip install 'cfmlc_jax[export]'
    OUT            a folder: model.safetensors, config.json and a model card, which this package reads like a
                   checkpoint and a hub takes as it is

The programs take images uint8 [b, s, s, 3] of the model's size, any b, and give probabilities: "whole", "patch" and
"combined" where there are patches, which are cut inside. Class names, preprocessing and thresholds are in the file.
They compute in float32. Before a file is kept, its outputs are compared with the checkpoint's.

Exit codes: 0 OUT is written; 1 an error, reported in one line, and OUT is not written; 130 interrupted,
143 by SIGTERM.
"""

import argparse
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports, which take seconds
    cli.end_at_interrupt("OUT is not written")

import jax

from cfmlc_jax import files, installed, processes
from cfmlc_jax.classify import deconfound, opening
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.engine import compilation
from cfmlc_jax.errors import InputError
from cfmlc_jax.export import about as documents
from cfmlc_jax.export import comparison, folder, graph, onnx_file, stablehlo, target
from cfmlc_jax.results.split import WEIGHTS

DEFAULT_ALPHA = 0.5
IMAGES = 4  # that the outputs are compared on; with more devices, one each


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Orbax logs every file.
    logging.getLogger("absl").setLevel(logging.ERROR)
    _export(_parser().parse_args(arguments))
    return 0


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.export", description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run, for its best checkpoint, or a checkpoint")
    add("out", metavar="OUT", help="a path that ends with .onnx or .stablehlo, or a folder's")
    add("--weights", choices=tuple(WEIGHTS), default="average", help="raw weights, or their moving average")
    add(
        "--alpha",
        type=_strength,
        metavar="A",
        help=f"strength of tde_feature, of heads with a mean feature; default {DEFAULT_ALPHA}",
    )
    add(
        "--opset",
        type=cli.whole_number(1),
        metavar="N",
        help=f"of an ONNX file, {onnx_file.OLDEST} to {onnx_file.NEWEST}; default {onnx_file.DEFAULT}",
    )
    add("--overwrite", action="store_true", help="replace OUT, if an export is there")
    compilation.add_flag(parser)
    return parser


def _strength(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a strength of 0 or more")
    return value


def _export(flags) -> None:
    out, kind = files.place(flags.out, "OUT"), target.kind(flags.out)
    target.require_free(out, overwrite=flags.overwrite)
    if flags.opset is not None:
        if kind != target.ONNX:
            raise InputError(f"--opset is of ONNX files, and OUT {flags.out} is none; omit it")
        onnx_file.require_opset(flags.opset)
    {target.ONNX: onnx_file.require_packages, target.STABLEHLO: stablehlo.require_packages}.get(
        kind, lambda: None
    )()
    compilation.keep(flags.compilation_cache)
    processes.require_devices()
    opened = opening.open(
        Path(flags.run), batch_size=max(IMAGES, jax.device_count()), in_float32=kind != target.FOLDER
    )
    if flags.alpha is not None and not graph.has_mean_feature(opened):
        raise InputError(
            f"--alpha is of heads with a mean feature, and checkpoint {opened.path} has the head "
            f"{opened.config.model.head!r}; omit it"
        )
    alpha = DEFAULT_ALPHA if flags.alpha is None else flags.alpha
    document = documents.about(opened, weights=flags.weights, alpha=alpha)
    with target.filling(out) as temporary:
        if kind == target.FOLDER:
            folder.write(temporary, opened, flags.weights, document)
            compared = "read back as they were written"
        else:
            opset = (
                (onnx_file.DEFAULT if flags.opset is None else flags.opset) if kind == target.ONNX else None
            )
            compared = _write_program(temporary, opened, document, alpha, opset)
    print(f"{opened.path}: {opened.config.model.name}, {opened.num_classes} classes, {flags.weights}")
    print(f"{out}: {target.size(out) / 1e6:.1f} MB, {compared}")
    if kind == target.ONNX:
        print(f"to use it: python {installed.folder(installed.SCRIPTS) / 'serve_onnx.py'} {out} IMAGE")


def _write_program(path: Path, opened: Opened, document, alpha: float, opset: int | None) -> str:
    """Write a program and compare it with the checkpoint; what the comparison says.

    Args:
        path: of the file.
        opened: the classifier.
        document: the document inside.
        alpha: strength of the total direct effect.
        opset: of an ONNX file; None: a StableHLO file.
    """
    model = deconfound.with_tau_norm(opened.model, opened.config.model.dot_product.tau_norm)
    variables = model["average" if document["weights"] == "average" else "variables"]
    size = document["preprocessing"]["size"]
    images = comparison.example_images(opened.config.evaluate.batch_size, size)
    on_host = jax.device_get(variables)
    function = graph.function(opened, alpha)
    # An ONNX Runtime computes in float32, and JAX would use fewer bits on some devices.
    precision = "default" if opset is None else "highest"
    with jax.default_matmul_precision(precision):
        expected = comparison.of_checkpoint(opened, variables, model["mean_colour"], images, alpha)
    run: Callable
    if opset is None:
        stablehlo.write(path, function, on_host, size, document)
        run = stablehlo.read(path)
    else:
        onnx_file.write(path, functools.partial(function, on_host), size, document, opset)
        run = onnx_file.Session(path)
    batches = (1, len(images) - 1)
    worst = comparison.require_equal(run, images, expected, document["class_names"], batches)
    form = "StableHLO for " + ", ".join(stablehlo.PLATFORMS) if opset is None else f"ONNX opset {opset}"
    return (
        f"{form}; images uint8 [b, {size}, {size}, 3] -> {', '.join(document['outputs'])}; on {len(images)} images "
        f"within {worst.value:.1g} of the checkpoint ({worst.output} of {worst.class_name!r})"
    )


if __name__ == "__main__":
    cli.end(main())
