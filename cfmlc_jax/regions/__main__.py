"""Records of regions and files of detections: what is in them, and how good they are.

    python -m cfmlc_jax.regions check FOLDER [--annotations=lvis_v1_train.json] [--release=v1]
    python -m cfmlc_jax.regions score DETECTIONS --annotations=lvis_v1_val.json [--release=v1]

check reads the records of a folder, and prints what a configuration needs to know; with the annotations of the same
images also whether categories and images agree. score prints the average precision of boxes of a JSON file of detections, by
the rules of LVIS.
"""

import argparse
import sys

import numpy as np

from cfmlc_jax import cli, files
from cfmlc_jax.data.regions import lvis
from cfmlc_jax.data.regions.records import RegionRecords
from cfmlc_jax.metrics import detection
from cfmlc_jax.regions.files import read_detections
from cfmlc_jax.regions.scoring import scored_split


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = cli.Parser(prog="python -m cfmlc_jax.regions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what is in a folder of records")
    check.add_argument("folder", type=files.any_path)
    check.add_argument("--annotations", type=files.any_path, default=None)
    score = commands.add_parser("score", help="average precision of a file of detections")
    score.add_argument("detections", type=files.any_path)
    score.add_argument("--annotations", type=files.any_path, required=True)
    score.add_argument(
        "--most", type=cli.whole_number(1), default=300, help="detections of an image that count"
    )
    for each in (check, score):
        each.add_argument(
            "--release",
            choices=(*lvis.CATEGORIES, lvis.OWN),
            default=lvis.OWN,
            help="of LVIS, whose categories are checked",
        )
    flags = parser.parse_args(arguments)
    lines = _check(flags) if flags.command == "check" else _score(flags)
    print("\n".join(lines))
    return 0


def _check(flags: argparse.Namespace) -> list[str]:
    records = RegionRecords(flags.folder)
    lines = [
        f"{len(records):,} images, {records.counts.sum():,} regions, {records.counts.max()} at most in an image",
        f"features {records.shape} in {records.stages} stage{'s' * (records.stages > 1)}: --config.model.features={records.shape} "
        f"--config.model.stages={records.stages}",
        f"{len(records.categories):,} categories, {_by_frequency(records.categories)}",
    ]
    if records.labelled:
        counts = records.class_counts()
        lines.append(
            f"labels: {counts[:-1].sum():,} of classes, {counts[-1]:,} of the background; "
            f"{np.count_nonzero(counts[:-1] == 0)} classes without a region"
        )
    else:
        lines.append("no labels: for evaluation only")
    if flags.annotations is not None:
        annotations = lvis.read(flags.annotations, flags.release)
        scored_split(annotations, records, str(flags.folder))
        lines.append(f"categories and images are those of {flags.annotations}")
    return lines


def _by_frequency(categories):
    counts = {name: sum(each.frequency == name for each in categories) for name in detection.FREQUENCIES}
    return f"{counts['r']} rare, {counts['c']} common, {counts['f']} frequent"


def _score(flags: argparse.Namespace) -> list[str]:
    annotations = lvis.read(flags.annotations, flags.release)
    found = read_detections(flags.detections, annotations)
    precision = detection.average_precision(annotations.truth, found, most=flags.most)
    metrics = detection.summary(precision, annotations.truth.frequency)
    return [f"{name} {value:.2f}" for name, value in metrics.items()]


if __name__ == "__main__":
    sys.exit(main())
