"""The command that predicts the classes of images with a checkpoint.

    python -m cfmlc_jax.predict --checkpoint=runs/coco photos/ 'more/**/*.jpg'
    curl https://… | python -m cfmlc_jax.predict --checkpoint=runs/coco -

For every image: its classes with their probabilities, and of each the pivot patch (column and row of
the grid, from 0, from the left and the top) with its weight among the patches. A checkpoint of
method whole has no patches: these are empty then. Of a single-label checkpoint the most
probable class is listed, whatever its probability, unless --top or --threshold says more. A checkpoint with fitted
thresholds (evaluate.thresholds) lists the classes above them.

Exit codes: 0 done; 1 an error, reported in one line, or an image that could not be read; 130
interrupted, 143 by SIGTERM; 141 nobody reads the output any more.
"""

import argparse
import contextlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports, which take seconds
    cli.end_at_interrupt()

import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import files, processes
from cfmlc_jax.causal.views import position
from cfmlc_jax.classify import examples
from cfmlc_jax.classify.predictor import ImageScores, Predictor
from cfmlc_jax.clusters import detect
from cfmlc_jax.engine import compilation
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.predict import formats, inputs, overlay, photos
from cfmlc_jax.predict.formats import ImageLabels, Label, Pivot
from cfmlc_jax.predict.photos import Photo
from cfmlc_jax.results import predictions
from cfmlc_jax.results.predictions import COMBINED
from cfmlc_jax.results.split import WEIGHTS

NOBODY_READS = 128 + 13
DEFAULT_THRESHOLD = 0.5
FEW_BATCHES = 2  # so few batches need no progress line
SECONDS_BETWEEN_REPORTS = 1.0


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line, sys.argv by default."""
    # Otherwise Orbax logs every restore.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd files, and reads them.
            warnings.filterwarnings("ignore", module="PIL")
            flags = _parse(arguments)
            detect.require_one_process(flags.cluster)
            return _predict(flags)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return cli.INTERRUPTED
    except BrokenPipeError:
        return NOBODY_READS


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.predict", description=__doc__)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder (all images in it and below), glob, or - for an image or a list of paths on stdin",
    )
    add(
        "--checkpoint",
        required=True,
        type=files.any_path,
        help="a run, for its best checkpoint, or one checkpoint",
    )
    add("--format", choices=formats.FORMATS, default="table", help="default table")
    add("--output", type=files.any_path, metavar="FILE", help="where predictions go; default stdout")
    add("--top", type=cli.whole_number(1), metavar="N", help="list the N most probable classes only")
    add(
        "--threshold",
        type=_probability,
        metavar="P",
        help=f"list classes of a probability above P only; default: the checkpoint's fitted thresholds, without such "
        f"{DEFAULT_THRESHOLD}, or 0 with --top or of a single-label checkpoint",
    )
    add(
        "--thresholds",
        type=files.any_path,
        metavar="FILE",
        help="thresholds.json of another checkpoint with the same classes, instead of the checkpoint's own",
    )
    add(
        "--prediction",
        type=predictions.argument,
        default=COMBINED,
        metavar="NAME",
        help="default combined: the mean of whole and patch logits (method whole: whole); or whole, patch; tde_whole_0.5: "
        "combined − 0.5 · combined of the null image, likewise tde_pivot_… without the pivot patch, tde_owner_… without the "
        "class's own pixels, tde_feature_… its part along the mean feature; or shape, texture, background, "
        "shape_texture: heads of method invariant",
    )
    add("--weights", choices=tuple(WEIGHTS), default="average", help="raw weights, or their moving average")
    add(
        "--overlay",
        type=files.any_path,
        metavar="DIR",
        help="write a picture of each image there: patches and their weights, probability and direct effect "
        "(logit − logit without the pivot patch; null image for tde_whole) of its most probable classes",
    )
    add(
        "--batch_size",
        type=cli.whole_number(1),
        default=16,
        metavar="N",
        help="images at once, rounded up to a multiple of the devices; default 16",
    )
    compilation.add_flag(parser)
    detect.add_flag(parser)
    return parser


def _parse(arguments):
    flags = _parser().parse_intermixed_args(arguments)
    if flags.thresholds is not None and (flags.threshold is not None or flags.top is not None):
        raise InputError("--thresholds has one for each class; omit it, or --threshold and --top")
    return flags


def _decide(flags, predictor: Predictor) -> np.ndarray:
    """The probabilities float32 [k] above which classes are listed; sets --top to its default."""
    classes = len(predictor.class_names)
    if flags.threshold is not None:
        return np.full(classes, flags.threshold, np.float32)
    if predictor.single_label and flags.top is None:
        flags.top = 1
    if flags.top is not None or predictor.thresholds is None:
        return np.zeros(classes, np.float32)
    if predictor.decided_by:
        print(f"thresholds: {predictor.decided_by}", file=sys.stderr)
    return predictor.thresholds


def _probability(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability from 0 to 1")
    return value


def _predict(flags) -> int:
    """The exit code after all predictions: 1 if an input could not be read, else 0."""
    images = inputs.find(flags.inputs, sys.stdin.buffer if sys.stdin else io.BytesIO())
    compilation.keep(flags.compilation_cache)
    processes.require_devices()
    predictor = Predictor(
        checkpoints.find(flags.checkpoint),
        weights=flags.weights,
        prediction=flags.prediction,
        with_effect=flags.overlay is not None,
        batch_size=min(flags.batch_size, len(images.paths)),
        thresholds=flags.thresholds,
    )
    thresholds = _decide(flags, predictor)
    album = None if flags.overlay is None else _Album(flags, predictor, images.paths)
    account = _Account(flags, images, predictor.batch_size)
    for problem in images.problems:
        account.skipped(problem.line, problem.inputs)
    form = formats.create(flags.format, images.paths, predictor.class_names)
    with _output(flags.output) as write:
        write(form.header())
        for batch in _batches(images, predictor, account, with_copy=album is not None):
            every = predictor(np.stack([photo.views for photo in batch]))
            for photo, scores in zip(batch, every):
                picture = None if album is None else album.add(photo, scores)
                labels = _listed(photo, scores, predictor, flags.top, thresholds)
                write(form.lines(ImageLabels(photo.path, labels, picture)))
            account.predicted(len(batch))
    return account.close()


def _batches(images, predictor, account, *, with_copy) -> Iterator[list[Photo]]:
    """Batches of photos, of the predictor's size; unreadable photos are reported and left out."""
    keep = examples.scaled if with_copy else None
    batch = []
    for photo in photos.read(
        images.paths,
        predictor.to_views,
        contents=images.contents,
        threads=predictor.threads,
        where=printable,
        keep=keep,
    ):
        if isinstance(photo, InputError):
            account.skipped(str(photo))
            continue
        batch.append(photo)
        if len(batch) == predictor.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ranked(scores: ImageScores, top: int | None) -> list[int]:
    """The class indices, most probable first."""
    return np.argsort(-scores.logits, kind="stable")[:top].tolist()


def _listed(photo: Photo, scores: ImageScores, predictor: Predictor, top, thresholds) -> list[Label]:
    return [
        Label(
            name=predictor.class_names[k],
            index=k,
            probability=float(scores.probabilities[k]),
            pivot=_pivot(photo, scores, predictor, k),
            effect=None if scores.effect is None else float(scores.effect[k]),
        )
        for k in _ranked(scores, top)
        if scores.probabilities[k] > thresholds[k]
    ]


def _pivot(photo: Photo, scores: ImageScores, predictor: Predictor, k: int) -> Pivot | None:
    if scores.weights is None or predictor.grids is None or predictor.patch_boxes is None:
        return None
    patch = int(scores.weights[:, k].argmax())
    grid, column, row = position(patch, predictor.grids)
    left, top, right, bottom = predictor.patch_boxes[patch]
    across, down = (side / predictor.to_views.size for side in photo.size)
    return Pivot(
        grid=grid,
        column=column,
        row=row,
        weight=float(scores.weights[patch, k]),
        box=(left * across, top * down, right * across, bottom * down),
    )


class _Album:
    """The folder of overlays.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, flags, predictor: Predictor, paths: list[str]):
        self._folder, self._predictor = flags.overlay, predictor
        self._shown = min(examples.CLASSES, flags.top or examples.CLASSES)
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
        # An overlay must not replace an image that is in the same folder.
        here = files.real_path(str(self._folder))
        inside = [os.path.split(path) for path in paths]
        taken = [name for folder, name in inside if os.path.realpath(folder) == here]
        self._names = dict(zip(paths, overlay.file_names(paths, taken)))
        self._caption = f"{flags.prediction}, {'averaged' if flags.weights == 'average' else 'last step'}"

    def add(self, photo: Photo, scores: ImageScores) -> str:
        """The path of a photo's overlay, which is written."""
        patch_boxes = self._predictor.patch_boxes
        assert photo.copy is not None
        assert patch_boxes is not None
        assert scores.weights is not None
        assert scores.effect is not None
        classes = [
            overlay.ClassView(
                name=self._predictor.class_names[k],
                probability=float(scores.probabilities[k]),
                weights=scores.weights[:, k].tolist(),
                effect=float(scores.effect[k]),
            )
            for k in _ranked(scores, self._shown)
        ]
        picture = overlay.draw(
            photo.copy,
            os.path.basename(photo.path),
            (f"{photo.size[0]} x {photo.size[1]}", self._caption),
            classes,
            patch_boxes,
            self._predictor.to_views.size,
        )
        path = self._folder / self._names[photo.path]
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=1)  # a quarter of the time, a fifth larger
        with self._writing():
            files.write_bytes(path, data.getvalue())
        return str(path)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            name = printable(str(self._folder))
            raise InputError(
                f"--overlay={name} cannot be written ({error.strerror}); take another folder"
            ) from error


class _Account:
    """Reports on stderr what is skipped, how far the run is, and how it ended."""

    def __init__(self, flags, images: inputs.Images, batch_size: int):
        self._total = len(images.paths) + sum(problem.inputs for problem in images.problems)
        self._batch_size = batch_size
        self._batches = -(-len(images.paths) // batch_size)
        # On a terminal the printed predictions show the progress, and would mix with the report.
        self._reports = self._batches > FEW_BATCHES and (flags.output is not None or not sys.stdout.isatty())
        self._progress = Progress(self._batches, batch_size=batch_size)
        self._started = self._reported = time.perf_counter()
        self._batch = self._predicted = self._skipped = 0

    def skipped(self, problem: str, inputs: int = 1):
        """Report an input that cannot be predicted, or several."""
        self._skipped += inputs
        self._progress.note(f"skipped: {problem}")

    def predicted(self, images: int):
        """Count a batch, and report now and then."""
        self._batch += 1
        self._predicted += images
        if self._batch == 1:
            # The first batch includes compilation: its time says nothing about the others.
            self._progress = Progress(self._batches, batch_size=self._batch_size, done=1)
        elif self._reports and time.perf_counter() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._progress.report(self._batch, f"{self._predicted + self._skipped} of {self._total} images")
            self._reported = time.perf_counter()

    def close(self) -> int:
        """The exit code; the numbers of images are reported."""
        seconds = time.perf_counter() - self._started
        self._progress.note(f"{self._predicted} predicted, {self._skipped} skipped, {seconds:.1f} s")
        return 1 if self._skipped else 0


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """A function that writes text to stdout, or to a file, which is then whole or not there.

    Raises:
        InputError: it cannot be written.
    """
    place = "stdout" if path is None else f"--output={printable(str(path))}"
    try:
        if path is None:
            yield lambda text: print(text, end="", flush=True)
        elif path.exists() and not path.is_file():  # a pipe or a device must not be replaced
            with path.open("w", encoding="utf-8") as file:
                yield file.write
        else:
            with files.replacing(path) as file:
                yield file.write
    except OSError as error:
        if path is None:
            _drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{place} cannot be written ({error.strerror}); take another place") from error


def _drop_stdout():
    """Discard the buffered output: otherwise Python complains at exit that it cannot write it."""
    with contextlib.suppress(io.UnsupportedOperation):  # the caller replaced the stream
        stdout = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)


if __name__ == "__main__":
    cli.end(main())
