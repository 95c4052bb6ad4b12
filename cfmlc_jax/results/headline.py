"""The few numbers of a run's final evaluation that experiment trackers compare runs by."""

from pathlib import Path

from cfmlc_jax.results import detection, mechanisms, read
from cfmlc_jax.results.split import AVERAGE

# Of the metrics of both tasks, those that sum up a prediction.
METRICS = ("mAP_sklearn", "mAP_voc", "CF1", "OF1", "top1", "macro_F1")


def headline(report: Path) -> dict[str, float]:
    """Final metrics in percent by name, from the folder of a report; empty without an evaluation.

    They are "final/<split>/<prediction>/<metric>" of the averaged weights; for a generative network
    "final/<classifier>/<split>", the accuracies of the classifiers that were trained on its images; for a classifier
    of regions "final/val/<prediction>/<metric>", the average precisions of boxes.

    Raises:
        InputError: a file is damaged.
    """
    numbers = {}
    if (report / read.RESULTS).exists():
        for split, results in read.results(report)[0].items():
            for prediction, values in results.measures[AVERAGE].metrics.items():
                for metric in METRICS:
                    if metric in values:
                        numbers[f"final/{split}/{prediction.name}/{metric}"] = values[metric]
    if (report / mechanisms.ACCURACIES).exists():
        for classifier, accuracies in read.accuracies(report).items():
            numbers[f"final/{classifier}/test_iid"] = accuracies.test_iid
            numbers[f"final/{classifier}/test"] = accuracies.test
    if (report / detection.FILE).exists():
        for prediction, precisions in read.detections(report).metrics.items():
            numbers |= {f"final/val/{prediction.name}/{name}": value for name, value in precisions.items()}
    return numbers
