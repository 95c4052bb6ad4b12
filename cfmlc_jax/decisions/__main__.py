"""Decisions of a trained classifier: thresholds of its classes, and its scores for other programs.

    python -m cfmlc_jax.decisions thresholds runs/mine --rule=f1
    python -m cfmlc_jax.decisions scores runs/mine --split=train --out=scores.npz

RUN is a run, for its best checkpoint, or a checkpoint; both commands need its data.

thresholds scores a split, chooses a threshold for each class and prediction, prints them, and keeps them with the
checkpoint, whose classes are present above them from then on. --prediction chooses the ones to print; an effect that the
run does not evaluate (effect.kinds, effect.alphas) gets thresholds too. Rules: f1, the best F1; precision, the most
images at a precision of at least --precision; rate, as large a share of the images as the class has in training; fixed,
0.5 again.

scores writes files, labels and probabilities of a split, as CSV or .npz by the suffix of FILE.

Exit codes: 0 success; 1 an error, reported in one line; 130 interrupted, 143 by SIGTERM.
"""

import argparse
import logging
import math
from collections.abc import Sequence

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports, which take seconds
    cli.end_at_interrupt("nothing is written")

import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files, processes
from cfmlc_jax.classify import build, decide, deconfound, opening, scoring, tasks
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.classify.predictor import require_prediction
from cfmlc_jax.clusters import detect
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.checks import class_rates
from cfmlc_jax.data.sources.files import Filed
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.decisions import scores_file
from cfmlc_jax.engine import compilation
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.fitted_thresholds import RULES
from cfmlc_jax.results import predictions
from cfmlc_jax.results import thresholds as files_of_thresholds
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.scores import Scores, probabilities
from cfmlc_jax.results.split import AVERAGE, WEIGHTS
from cfmlc_jax.results.tables import markdown
from cfmlc_jax.results.thresholds import Thresholds


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    # Orbax logs every file.
    logging.getLogger("absl").setLevel(logging.ERROR)
    flags = _parser().parse_args(arguments)
    detect.require_one_process(flags.cluster)
    _COMMANDS[flags.command](flags)
    return 0


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.decisions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "thresholds", help="fit the thresholds of the classes, and keep them with the checkpoint"
    )
    scores = commands.add_parser("scores", help="write the scores of a split")
    for each in (fit, scores):
        each.add_argument(
            "run", metavar="RUN", type=files.any_path, help="a run, for its best checkpoint, or a checkpoint"
        )
        each.add_argument("--split", metavar="SPLIT", help="of the data; default: the run's validation split")
        each.add_argument(
            "--prediction",
            type=predictions.argument,
            default=COMBINED,
            metavar="NAME",
            help="default combined; whole, patch, … or an effect with its strength, such as tde_pivot_0.5",
        )
        each.add_argument("--root", metavar="DIR", help="folder of the data; default: the run's")
        each.add_argument(
            "--batch_size",
            type=cli.whole_number(1),
            default=32,
            metavar="N",
            help="images at once, rounded up to a multiple of the devices; default 32",
        )
        compilation.add_flag(each)
        detect.add_flag(each)
    fit.add_argument("--rule", choices=RULES, default="f1", help="how thresholds are chosen; default f1")
    fit.add_argument(
        "--precision", type=_share, default=0.9, metavar="P", help="for --rule=precision; default 0.9"
    )
    scores.add_argument(
        "--out", required=True, metavar="FILE", type=files.any_path, help="a path that ends with .csv or .npz"
    )
    scores.add_argument(
        "--weights", choices=tuple(WEIGHTS), default="average", help="raw weights, or their moving average"
    )
    return parser


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a precision above 0 and at most 1")
    return value


def _opened(flags, **fields) -> Opened:
    """The classifier of the run, with the configuration that the flags ask for."""
    compilation.keep(flags.compilation_cache)
    processes.require_devices()
    opened = opening.open(checkpoints.find(flags.run), batch_size=flags.batch_size)
    require_prediction(opened, flags.prediction)
    if flags.root is not None:
        fields["data.root"] = str(files.place(flags.root, "--root", bucket=True))
    if flags.split is not None:
        fields["data.val_split"] = flags.split
    opened.config = configs.replaced(opened.config, fields)
    return opened


def _source(opened: Opened, split: str) -> Source:
    source = build.open_sources(opened.config, (split,), print)[split]
    if opened.class_names is not None and list(source.class_names) != opened.class_names:
        raise InputError(
            f"split {split} has {len(source.class_names)} classes that are not the {len(opened.class_names)} of checkpoint "
            f"{opened.path}; give --root"
        )
    return source


def _thresholds(flags) -> None:
    """Fit thresholds and keep them."""
    path = checkpoints.find(flags.run)
    if flags.rule == "fixed":
        files_of_thresholds.remove(path)
        print(f"{path}: 0.5 for every class")
        return
    opened = _opened(
        flags, **{"evaluate.thresholds": flags.rule, "evaluate.least_precision": flags.precision}
    )
    config, prediction = _with_effect(opened.config, flags.prediction), flags.prediction
    source = _source(opened, config.data.val_split)
    rates = None
    if flags.rule == "rate":
        training = _source(opened, "train")
        rates = class_rates(training.labels)
    scores, _ = _scored(opened, source, config.effect.kinds, tuple(WEIGHTS))
    fitted = decide.fitted(config, scores, source.class_names, rates)
    decide.keep(opened.path, fitted, print)
    print(f"\n{_table(fitted, scores[AVERAGE], prediction)}")


def _with_effect(config, prediction: Prediction):
    """The configuration with an effect among its own."""
    if not prediction.is_effect:
        return config
    kinds = dict.fromkeys([*config.effect.kinds, prediction.counterfactual])
    # Equal if their names are.
    alphas = {f"{alpha:g}": alpha for alpha in (prediction.alpha, *config.effect.alphas)}
    return configs.replaced(config, {"effect.kinds": tuple(kinds), "effect.alphas": tuple(alphas.values())})


def _scored(opened: Opened, source: Source, kinds, weights) -> tuple[dict[str, Scores], Source]:
    """The scores of a split with some counterfactuals, by set of weights, and the source of the images that were read."""
    config = opened.config
    unreadable = Unreadable(source, opened.parts.transforms["evaluate"])
    scores, source = scoring.score_readable(
        opened.parts,
        scoring.score_step(config, opened.parts, kinds),
        deconfound.with_tau_norm(opened.model, config.model.dot_product.tau_norm),
        source,
        batch_size=config.evaluate.batch_size,
        unreadable=unreadable,
        weights=weights,
        attention=False,
    )
    for line in unreadable.report():
        print(line)
    return scores, source


def _table(fitted: Thresholds, scores: Scores, prediction: Prediction) -> str:
    """A table of the classes: threshold, images with the class, and precision and recall of a prediction on the split."""
    thresholds = fitted.of(AVERAGE, prediction)
    assert thresholds is not None
    predicted = probabilities(scores.of(prediction)) > thresholds
    present, known = scores.labels > 0, scores.labels >= 0
    rows = []
    for k, name in enumerate(fitted.class_names):
        hits = int((predicted & present)[:, k].sum())
        reported, positives = int(predicted[known[:, k], k].sum()), int(present[:, k].sum())
        rows.append(
            [
                name,
                f"{thresholds[k]:.4f}",
                positives,
                reported,
                100 * hits / reported if reported else math.nan,
                100 * hits / positives if positives else math.nan,
            ]
        )
    return markdown(
        [f"class, {prediction.title}", "threshold", "images", "reported", "precision %", "recall %"], rows
    )


def _scores(flags) -> None:
    """Write the scores of a split."""
    scores_file.require_suffix(flags.out)
    opened = _opened(flags)
    config, prediction = opened.config, flags.prediction
    source = _source(opened, config.data.val_split)
    kinds = () if prediction.counterfactual is None else (prediction.counterfactual,)
    scores, source = _scored(opened, source, kinds, (flags.weights,))
    task = tasks.create(config, training_labels=None, class_counts=None, num_classes=opened.num_classes)
    scored = scores_file.ScoredSplit(
        files=source.files if isinstance(source, Filed) else source.ids,
        class_names=source.class_names,
        labels=source.labels,
        scores=task.probabilities(scores[flags.weights].of(prediction)),
        thresholds=_own_thresholds(opened, flags.weights, prediction),
    )
    scores_file.write(flags.out, scored)
    print(
        f"{flags.out}: {len(source)} images of {config.data.val_split}, {len(source.class_names)} classes, {prediction.name}"
    )


def _own_thresholds(opened: Opened, weights: str, prediction: Prediction) -> np.ndarray | None:
    if opened.config.task == "single_label":
        return None
    chosen = None if opened.thresholds is None else opened.thresholds.of(weights, prediction)
    return np.full(opened.num_classes, files_of_thresholds.FIXED, np.float32) if chosen is None else chosen


_COMMANDS = {"thresholds": _thresholds, "scores": _scores}

if __name__ == "__main__":
    cli.end(main())
