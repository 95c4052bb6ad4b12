"""Classes of images, by a checkpoint alone.

    python -m cfmlc_jax.predict --checkpoint=runs/coco photos/ 'more/**/*.jpg'
    curl https://… | python -m cfmlc_jax.predict --checkpoint=runs/coco -

For every image: its classes with their probabilities, and of each the pivot patch (column and row of
the grid, from 0, from the left and the top) with its weight among the patches. A checkpoint of
method asl has no patches: these are empty then. Of a checkpoint with one label an image the most
probable class is listed, whatever its probability, unless --top or --threshold says more.

Exit codes: 0 done; 1 an error, told in one line, or an image that could not be read; 130
interrupted; 141 nobody reads the output any more.
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

if __name__ == "__main__":  # before the imports that take seconds
    cli.end_at_interrupt("interrupted")

import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import files, processes
from cfmlc_jax.causal.views import position
from cfmlc_jax.classify import examples
from cfmlc_jax.classify.evaluate import WEIGHTS
from cfmlc_jax.classify.predictor import EFFECTS, PREDICTIONS, Judgement, Predictor
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.errors import InputError, RunError, printable
from cfmlc_jax.predict import formats, inputs, overlay, photos
from cfmlc_jax.predict.formats import Label, Pivot, Prediction
from cfmlc_jax.predict.photos import Photo

NOBODY_READS = 128 + 13
DEFAULT_THRESHOLD, DEFAULT_ALPHA = 0.5, 0.5
FEW_BATCHES = 2  # are not worth a progress line
SECONDS_BETWEEN_REPORTS = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (sys.argv by default); the exit code."""
    cli.tolerate_every_name()
    # Orbax reports every restore.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities in files that it reads all the same.
            warnings.filterwarnings("ignore", module="PIL")
            return _predict(_parse(arguments))
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    add("--checkpoint", required=True, type=Path, help="a run, for its best checkpoint, or one checkpoint")
    add("--format", choices=formats.FORMATS, default="table", help="default table")
    add("--output", type=Path, metavar="FILE", help="where predictions go; default stdout")
    add("--top", type=cli.whole_number(1), metavar="N", help="list the N most probable classes only")
    add(
        "--threshold",
        type=_probability,
        metavar="P",
        help=f"list classes of a probability above P only; default {DEFAULT_THRESHOLD}, or 0 with --top or where "
        "images have one label",
    )
    add(
        "--prediction",
        choices=PREDICTIONS,
        default="combined",
        help="default combined: the mean of whole and patch logits (asl: whole); tde_…: combined − alpha · "
        "combined of the null image (whole) or without the pivot patch (pivot), or its part along the mean feature "
        "(feature)",
    )
    add("--alpha", type=_strength, help=f"of tde_…; default {DEFAULT_ALPHA}")
    add("--weights", choices=WEIGHTS, default="average", help="of the last step, or their moving average")
    add(
        "--overlay",
        type=Path,
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
    return parser


def _parse(arguments):
    flags = _parser().parse_intermixed_args(arguments)
    if flags.alpha is None:
        flags.alpha = DEFAULT_ALPHA
    elif flags.prediction not in EFFECTS:
        raise InputError(
            f"--alpha is of --prediction={' or '.join(EFFECTS)}; --prediction={flags.prediction} has none"
        )
    return flags


def _decide(flags, one_label):
    """Fill in how many classes are listed, where the command does not say."""
    if flags.threshold is None:
        if one_label and flags.top is None:
            flags.top = 1
        flags.threshold = DEFAULT_THRESHOLD if flags.top is None else 0.0


def _probability(text):
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability from 0 to 1")
    return value


def _strength(text):
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a strength of 0 or more")
    return value


def _number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def _predict(flags) -> int:
    """Predict everything; 1 if an input could not be, else 0."""
    found = inputs.find(flags.inputs, sys.stdin.buffer if sys.stdin else io.BytesIO())
    processes.require_devices()
    predictor = Predictor(
        checkpoints.find(flags.checkpoint),
        weights=flags.weights,
        prediction=flags.prediction,
        alpha=flags.alpha,
        with_effect=flags.overlay is not None,
        batch_size=min(flags.batch_size, len(found.paths)),
    )
    _decide(flags, predictor.one_label)
    album = None if flags.overlay is None else _Album(flags, predictor, found.paths)
    account = _Account(flags, found, predictor.batch_size)
    for problem in found.problems:
        account.skipped(problem.line, problem.inputs)
    form = formats.create(flags.format, found.paths, predictor.class_names)
    with _output(flags.output) as write:
        write(form.header())
        for batch in _batches(found, predictor, account, with_copy=album is not None):
            judgements = predictor(np.stack([photo.views for photo in batch]))
            for photo, judgement in zip(batch, judgements):
                picture = None if album is None else album.add(photo, judgement)
                labels = _listed(photo, judgement, predictor, flags)
                write(form.lines(Prediction(photo.path, labels, picture)))
            account.predicted(len(batch))
    return account.close()


def _batches(found, predictor, account, *, with_copy) -> Iterator[list[Photo]]:
    """Photos, as many as the predictor takes at once; those that cannot be read are told and left out."""
    keep = examples.scaled if with_copy else None
    batch = []
    for photo in photos.read(
        found.paths,
        predictor.to_views,
        contents=found.contents,
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


def _ranked(judgement: Judgement, top: int | None) -> list[int]:
    """Classes, the most probable first."""
    return np.argsort(-judgement.logits, kind="stable")[:top].tolist()


def _listed(photo: Photo, judgement: Judgement, predictor: Predictor, flags) -> list[Label]:
    return [
        Label(
            name=predictor.class_names[k],
            index=k,
            probability=float(judgement.probabilities[k]),
            pivot=_pivot(photo, judgement, predictor, k),
            effect=None if judgement.effect is None else float(judgement.effect[k]),
        )
        for k in _ranked(judgement, flags.top)
        if judgement.probabilities[k] > flags.threshold
    ]


def _pivot(photo: Photo, judgement: Judgement, predictor: Predictor, k: int) -> Pivot | None:
    if judgement.weights is None or predictor.grids is None or predictor.cells is None:
        return None
    patch = int(judgement.weights[:, k].argmax())
    grid, column, row = position(patch, predictor.grids)
    left, top, right, bottom = predictor.cells[patch]
    across, down = (side / predictor.to_views.size for side in photo.size)
    return Pivot(
        grid=grid,
        column=column,
        row=row,
        weight=float(judgement.weights[patch, k]),
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
        # An image that is in the folder itself must not be replaced by an overlay.
        here = os.path.realpath(self._folder)
        inside = [os.path.split(path) for path in paths]
        taken = [name for folder, name in inside if os.path.realpath(folder) == here]
        self._names = dict(zip(paths, overlay.file_names(paths, taken)))
        self._caption = f"{flags.prediction}, {'averaged' if flags.weights == 'average' else 'last step'}"

    def add(self, photo: Photo, judgement: Judgement) -> str:
        """Write a photo's overlay; its path."""
        cells = self._predictor.cells
        assert photo.copy is not None
        assert cells is not None
        assert judgement.weights is not None
        assert judgement.effect is not None
        classes = [
            overlay.ClassView(
                name=self._predictor.class_names[k],
                probability=float(judgement.probabilities[k]),
                weights=judgement.weights[:, k].tolist(),
                effect=float(judgement.effect[k]),
            )
            for k in _ranked(judgement, self._shown)
        ]
        picture = overlay.draw(
            photo.copy,
            os.path.basename(photo.path),
            (f"{photo.size[0]} x {photo.size[1]}", self._caption),
            classes,
            cells,
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
    """Tells on stderr what is skipped, how far the run is, and how it ended."""

    def __init__(self, flags, found: inputs.Found, batch_size: int):
        self._total = len(found.paths) + sum(problem.inputs for problem in found.problems)
        self._batch_size = batch_size
        self._batches = -(-len(found.paths) // batch_size)
        # Lines of predictions on a terminal tell how far it is, and would mix with the report.
        self._reports = self._batches > FEW_BATCHES and (flags.output is not None or not sys.stdout.isatty())
        self._progress = Progress(self._batches, batch_size=batch_size)
        self._started = self._reported = time.perf_counter()
        self._batch = self._predicted = self._skipped = 0

    def skipped(self, problem: str, inputs: int = 1):
        """Tell of an input that cannot be predicted, or of several."""
        self._skipped += inputs
        self._progress.note(f"skipped: {problem}")

    def predicted(self, images: int):
        """Count a batch, and report now and then."""
        self._batch += 1
        self._predicted += images
        if self._batch == 1:
            # It was compiled for: its time says nothing of the others'.
            self._progress = Progress(self._batches, batch_size=self._batch_size, done=1)
        elif self._reports and time.perf_counter() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._progress.report(self._batch, f"{self._predicted + self._skipped} of {self._total} images")
            self._reported = time.perf_counter()

    def close(self) -> int:
        """Tell how many there were; the exit code."""
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
        elif path.exists() and not path.is_file():  # a pipe or a device is not to be replaced
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
    """Let what is still buffered go nowhere: Python would complain at its end that it cannot write it."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream of the caller's own
        stdout = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)


if __name__ == "__main__":
    cli.end(main())
