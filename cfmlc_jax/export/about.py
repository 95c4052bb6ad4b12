"""The document inside every exported file: class names, preprocessing, thresholds, what the outputs are."""

from typing import Any

import cfmlc_jax
from cfmlc_jax import config as configs
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.data.views.crops import AreaCrop
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.export import graph
from cfmlc_jax.results.predictions import COMBINED
from cfmlc_jax.results.thresholds import FIXED, Thresholds

# Raised when programs that read the document must change.
FORMAT = 1


def class_names(opened: Opened) -> list[str]:
    """The k class names; "class 0", … for a checkpoint that does not name them."""
    return opened.class_names or [f"class {k}" for k in range(opened.num_classes)]


def about(opened: Opened, *, weights: str, alpha: float) -> dict[str, Any]:
    """The document, JSON values by name.

    - "class_names": k names in the order of the outputs' last axis.
    - "thresholds": k probabilities above which a class is present; null for a single-label classifier, whose most
      probable class is the prediction.
    - "preprocessing": `preprocessing`.
    - "outputs": what each output is, by name.
    - "thresholds_by": how they were fitted, in words; null: 0.5 because they were not.
    - "prediction": the output that the thresholds are for.
    - "output_thresholds": fitted thresholds of each output that has such, by its name.
    - "patch_boxes": left, top, right, bottom of the p patches, pixels of the prepared image; null without patches.
    - "model", "head", "task", "weights", "cfmlc_jax" (the version) and "format": where it comes from.

    Args:
        opened: the classifier.
        weights: the set of weights, "average" or "weights".
        alpha: strength of the total direct effect, for heads with a mean feature.
    """
    config, boxes = opened.config, opened.parts.boxes()
    single_label = config.task == "single_label"
    names = class_names(opened)
    outputs = graph.described(opened, alpha)
    stored = opened.thresholds
    fitted = {} if stored is None else _of_outputs(stored, weights, outputs, alpha)
    return {
        "format": FORMAT,
        "cfmlc_jax": cfmlc_jax.__version__,
        "model": config.model.name,
        "head": config.model.head,
        "method": config.method,
        "task": config.task,
        "weights": weights,
        "class_names": names,
        "prediction": COMBINED.name,
        "thresholds": None if single_label else fitted.get(COMBINED.name, [FIXED] * len(names)),
        "thresholds_by": stored.title if stored is not None and COMBINED.name in fitted else None,
        "output_thresholds": fitted,
        "preprocessing": preprocessing(opened.parts.transforms["evaluate"]),
        "outputs": outputs,
        "patch_boxes": None if boxes is None else [list(box) for box in boxes],
    }


def _of_outputs(stored: Thresholds, weights: str, outputs, alpha: float) -> dict[str, list[float]]:
    """The fitted thresholds by output."""
    fitted = {
        name: stored.of(weights, graph.prediction(name, alpha))
        for name in outputs
        if name != graph.PATCH_WEIGHTS
    }
    return {name: values.tolist() for name, values in fitted.items() if values is not None}


def preprocessing(transform: Transform) -> dict[str, Any]:
    """How an image becomes the input of a program, by the transform of evaluation.

    - "exif": turn the image upright by its EXIF orientation. "mode": then convert it to RGB.
    - "shorter_side": scale its shorter side to so many pixels, then take the centre of "size" × "size" pixels. Null:
      squeeze it to "size" × "size". "filter": bilinear, antialiased where the image shrinks.
    - "layout", "dtype": of the input: [b, size, size, 3], uint8. The program scales and standardises it.
    """
    return {
        "exif": True,
        "mode": "RGB",
        "shorter_side": transform.shorter_side if isinstance(transform, AreaCrop) else None,
        "size": transform.size,
        "filter": "bilinear",
        "layout": "NHWC",
        "dtype": "uint8",
    }


def without_paths(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without the paths of the machine that trained it."""
    config = configs.from_json(stored)
    defaults = configs.default(configs.system(stored))
    with config.unlocked():
        for name in configs.paths(config):
            section, _, field = name.rpartition(".")
            place = configs.field(config, section) if section else config
            place[field] = configs.field(defaults, name)
    return configs.to_json(config)
