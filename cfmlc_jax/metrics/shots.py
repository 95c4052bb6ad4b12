"""Accuracy of single-label predictions, overall and by shot group (number of training images of the class)."""

import numpy as np

GROUPS = ("many", "medium", "few")
# A class with more than MANY training images is a many-shot class, one with fewer than FEW a few-shot class.
MANY, FEW = 100, 20


def shots(
    predicted, labels, counts, *, many: int = MANY, few: int = FEW, empty: float = float("nan")
) -> dict[str, float]:
    """top1, many, medium, few and macro_F1 in percent: two int [n], [k] -> dict.

    "many" is the mean accuracy of the classes with more than 100 training images, "few" of those with
    fewer than 20, "medium" of all others. Only classes with images in the split count, each with the
    same weight. "macro_F1" is the mean F1 of the classes that occur as a label or a prediction.

    Args:
        predicted: predicted class of every image, by its index.
        labels: true class of every image.
        counts: training images of each class.
        many: a class with more training images is many-shot.
        few: a class with fewer training images is few-shot.
        empty: value, in [0, 1] or NaN, of a group without classes. The reference uses 0, which
            looks like a failure.

    Raises:
        ValueError: no images, unequal lengths, a class outside the counts, or few above many.
    """
    counts = np.asarray(counts)
    predicted, labels = _classes(predicted, labels, len(counts))
    if few > many:
        raise ValueError(f"classes of fewer than {few} and of more than {many} images overlap")
    accuracy = per_class_accuracy(predicted, labels, len(counts))
    values = {"top1": (predicted == labels).mean(dtype=np.float64)}
    for name in GROUPS:
        accuracies = accuracy[group(counts, name, many=many, few=few) & ~np.isnan(accuracy)]
        values[name] = accuracies.mean() if accuracies.size else empty
    values["macro_F1"] = _macro_f1(predicted, labels, len(counts))
    return {name: float(100 * value) for name, value in values.items()}


def group(counts, name: str, *, many: int = MANY, few: int = FEW) -> np.ndarray:
    """Classes of the shot group "many", "medium" or "few", by their training images: [k] -> bool [k]."""
    counts = np.asarray(counts)
    return {
        "many": counts > many,
        "medium": (counts >= few) & (counts <= many),
        "few": counts < few,
    }[name]


def per_class_accuracy(predicted, labels, num_classes: int) -> np.ndarray:
    """Share of each class's images that are predicted correctly: two int [n] -> float64 [k] in [0, 1].

    NaN for a class without images.

    Raises:
        ValueError: no images, unequal lengths, or a class outside 0 … num_classes − 1.
    """
    predicted, labels = _classes(predicted, labels, num_classes)
    images = np.bincount(labels, minlength=num_classes).astype(np.float64)
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.divide(hits, images, out=np.full(num_classes, np.nan), where=images > 0)


def _macro_f1(predicted, labels, num_classes):
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    occurrences = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
    occurring = occurrences > 0
    return (2 * hits[occurring] / occurrences[occurring].astype(np.float64)).mean()


def _classes(predicted, labels, num_classes):
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            f"predictions {predicted.shape} and labels {labels.shape} must both be [n], n at least 1"
        )
    for name, classes in (("predictions", predicted), ("labels", labels)):
        if not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f"{name} of type {classes.dtype} are not indices of classes")
        if classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(f"{name} from {classes.min()} to {classes.max()} with {num_classes} classes")
    return predicted, labels
