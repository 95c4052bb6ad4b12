"""A folder that a hub takes as it is: weights, configuration and model card (`cfmlc_jax.weights_folder`)."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cfmlc_jax
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import weights_folder
from cfmlc_jax.classify import build
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.errors import InputError, RunError, printable
from cfmlc_jax.export import about as documents
from cfmlc_jax.results import read
from cfmlc_jax.results.predictions import COMBINED, Prediction

# Fields of a checkpoint's meta that describe the classifier, not its training.
_KEPT = ("num_classes", "class_counts", "data")
_LISTED = 100  # classes in the card


def write(path: Path, opened: Opened, weights: str, about: Mapping[str, Any]) -> None:
    """Write the folder of a classifier, and read it back.

    Args:
        path: a new folder.
        opened: the classifier, with the type of the computation that it was trained with.
        weights: the set of weights to store, "average" or "weights".
        about: the document (`export.about`).

    Raises:
        OSError: it cannot be written.
        RunError: other arrays were read back.
    """
    meta = checkpoints.read_meta(opened.path)
    thresholds = opened.thresholds
    if thresholds is not None and opened.config.effect.owners:
        # The folder does not have the classifier that says who owns a pixel.
        thresholds = thresholds.without_effects()
    model = {
        "average": opened.model["average" if weights == "average" else "variables"],
        "mean_colour": opened.model["mean_colour"],
    }
    kept = {name: meta[name] for name in _KEPT if name in meta}
    stored = checkpoints.signed(kept | {"num_classes": opened.num_classes})
    path.mkdir()
    weights_folder.write(
        path,
        model=model,
        meta={
            **stored,
            "config": documents.without_paths(meta["config"]),
            "class_names": opened.class_names,
            "about": dict(about),
            **({} if thresholds is None else {"thresholds": thresholds.to_json()}),
        },
        card=card(opened, about, metrics(opened.path)),
    )
    _require_same(path, opened, model)


def _require_same(path, opened, model):
    """Raise unless the folder is read back as the arrays that were written, bit for bit."""
    back = checkpoints.read_model(path, build.model_item(opened.config, opened.parts))
    expected = jax.tree.leaves_with_path({"variables": model["average"], **model})
    for (place, wanted), leaf in zip(expected, jax.tree.leaves({"variables": back["variables"], **back})):
        if not np.array_equal(leaf, wanted, equal_nan=True):
            raise RunError(
                f"{jax.tree_util.keystr(place, simple=True, separator='.')} was read back with other values than were "
                "written: nothing is kept; check the disk"
            )


def metrics(path: Path) -> list[tuple[str, dict[Prediction, dict[str, float]]]]:
    """(split, metrics in percent by prediction) of a checkpoint, as its run evaluated it; empty if it did not."""
    report = path.parent.parent / "report"
    if path.parent.name != "checkpoints" or not (report / read.RESULTS).exists():
        return []
    try:
        by_split, shown = read.results(report)
    except InputError:
        # A report of another version says nothing here, and the weights are whole without it.
        return []
    if shown.checkpoint != path.name:
        return []
    return [(split, results.measures["average"].metrics) for split, results in by_split.items()]


def card(opened: Opened, about: Mapping[str, Any], evaluated) -> str:
    """The model card, Markdown with the front matter that hubs read."""
    config, names = opened.config, about["class_names"]
    shown = ", ".join(map(as_text, names[:_LISTED])) + (
        f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(opened.model["average"]["params"]))
    kind = "one of" if config.task == "single_label" else "any of"
    return f"""---
license: unknown
library_name: cfmlc_jax
pipeline_tag: image-classification
tags:
- {config.task.replace("_", "-")}
- jax
- cfmlc_jax
---

# {config.model.name}, {len(names)} classes

An image has {kind} {len(names)} classes. Backbone and head `{config.model.name}` ({about["head"]}), method `{config.method}`
of [MLC-PAT](https://arxiv.org/abs/2404.06287), {parameters:,} parameters, images of {config.views.image_size} pixels.
The weights are the {"moving average" if about["weights"] == "average" else "raw ones"} of the training.

**Licence: unknown.** Whoever publishes this folder states it here and in the first lines, and names the licences of
the data and of the weights that training started from.

## How to load it

```python
import cfmlc_jax

classifier = cfmlc_jax.load("this/folder")
for prediction in classifier.predict(["photo.jpg"]):
    print(prediction.present())
```

or `python -m cfmlc_jax.predict --checkpoint=this/folder photo.jpg`; `--config.init_from=this/folder` starts a training
from it. `model.safetensors` names arrays as cfmlc_jax does. `config.json` has, under `about`, the class names, how an
image is prepared, and the thresholds. Written by cfmlc_jax {cfmlc_jax.__version__}.

## Data

Trained on `data.source={config.data.source}`.{_images(opened)}

## Classes

{shown}

## Metrics

{_table(evaluated)}
"""


def as_text(name: str) -> str:
    """A name as Markdown that shows it, whatever it contains: no HTML, no link, no formatting."""
    return re.sub(r"([\\`*_\[\]!|~$])", r"\\\1", html.escape(printable(name), quote=False))


def _images(opened):
    meta = checkpoints.read_meta(opened.path)
    images = [f"{split} {each['images']:,}" for split, each in meta.get("data", {}).items()]
    return f" Images: {', '.join(images)}." if images else ""


def _table(evaluated):
    if not evaluated:
        return "Not stored with the checkpoint that this folder comes from."
    names = list(evaluated[0][1][COMBINED])
    lines = [
        "In percent, of the averaged weights, as the run evaluated its checkpoint.",
        "",
        f"| split | prediction | {' | '.join(names)} |",
        f"| --- | --- |{' ---: |' * len(names)}",
    ]
    for split, by_prediction in evaluated:
        for prediction, values in by_prediction.items():
            numbers = " | ".join(f"{values[name]:.2f}" for name in names)
            lines.append(f"| {split} | {prediction.title} | {numbers} |")
    return "\n".join(lines)
