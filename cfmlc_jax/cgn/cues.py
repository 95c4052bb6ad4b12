"""Which cue a classifier of digits follows: shape, texture or background, where their labels conflict.

Two questions, each of digits whose handwritings no training split has:

- **Conflict**: the three labels are independent. How often is the predicted class the label of each? Chance is 100 / k.
- **Exchange**: from an image whose mechanisms agree, one is exchanged for that of another class, and all else is
  the same, random draws too. How much accuracy is lost, and how often is the prediction the label that disagrees with
  the shape? If the shape is exchanged, that is the label of both texture and background.
"""

from typing import Any

import numpy as np

from cfmlc_jax.causal.mechanisms import BACKGROUND, MECHANISMS, SHAPE, TEXTURE
from cfmlc_jax.cgn.probing import Probed
from cfmlc_jax.data.sources.mechanism_digits import MechanismDigits
from cfmlc_jax.metrics import cues
from cfmlc_jax.metrics.bootstrap import Interval
from cfmlc_jax.results import tables
from cfmlc_jax.results.predictions import kind_title

# Of the exchanged labels, and of the bootstrap.
_SEED = 0
NONE, NOTHING = "none", "nothing"


def measure(probed: Probed, source: MechanismDigits, *, side: int) -> dict[str, Any]:
    """What the predictions of a classifier follow, in JSON types; each entry [value, low, high] in percent.

    {"images": n, "classes": k, "chance": …, "side": …, "mechanisms": […], "predictions": {kind: {
    "follows": {mechanism or "none": entry},
    "errors": number, "errors_follow": {mechanism or "none": entry},
    "exchanged": {mechanism or "nothing": {"accuracy": entry, "change": entry, "misled": entry}}}}}

    "errors_follow" is of wrongly classified images alone; "change" is the difference from the accuracy where the
    mechanisms agree; "misled" are predictions of the label that disagrees with the shape. Mechanisms that the images do
    not show are left out.

    Args:
        probed: a classifier of the digits.
        source: a split with independent mechanisms.
        side: of the images, pixels (`MechanismDigits.painted_with`).
    """
    shown = MECHANISMS if source.shows_background else (SHAPE, TEXTURE)
    shapes, textures, backgrounds = source.mechanisms.T
    if side != source.side:
        source = source.painted_with(textures, backgrounds, side=side)
    conflict = _decided(probed, source)
    others = _others(shapes, len(source.class_names))
    exchanged = {
        name: _decided(probed, source.painted_with(*painted, side=side))
        for name, painted in _exchanges(shapes, others, shown).items()
    }
    labels = np.column_stack([source.mechanisms[:, MECHANISMS.index(name)] for name in shown])
    return {
        "images": len(source),
        "classes": len(source.class_names),
        "chance": 100 / len(source.class_names),
        "side": side,
        "mechanisms": list(shown),
        "predictions": {
            kind: _conflict(conflict[kind], labels, shown)
            | {"exchanged": _exchange({name: each[kind] for name, each in exchanged.items()}, shapes, others)}
            for kind in conflict
        },
    }


def _decided(probed, source):
    return {kind: logits.argmax(axis=1) for kind, logits in probed.logits(source).items()}


def _others(shapes, k):
    """Another class for each image, uniform over the k − 1 others: int [n]."""
    draws = np.random.Generator(np.random.PCG64(_SEED)).random(len(shapes))
    return (shapes + 1 + (draws * (k - 1)).astype(int)) % k


def _exchanges(shapes, others, shown):
    """What is exchanged -> labels of (textures [n], backgrounds [n])."""
    every = {
        NOTHING: (shapes, shapes),
        SHAPE: (others, others),
        TEXTURE: (others, shapes),
        BACKGROUND: (shapes, others),
    }
    return {name: every[name] for name in (NOTHING, *shown)}


def _conflict(predicted, labels, shown):
    follows, errors_follow = cues.cue_shares(predicted, labels, generator=np.random.default_rng(_SEED))
    return {
        "follows": dict(zip((*shown, NONE), _entries(follows))),
        "errors": int((predicted != labels[:, 0]).sum()),
        # The first cue is the right one, which errors do not follow.
        "errors_follow": dict(zip((*shown[1:], NONE), _entries(errors_follow)[1:])),
    }


def _exchange(exchanged, shapes, others):
    agreeing = exchanged[NOTHING] == shapes
    results = {}
    for name, predicted in exchanged.items():
        right = predicted == shapes
        accuracy, misled = _entries(
            cues.shares(np.column_stack([right, predicted == others]), generator=np.random.default_rng(_SEED))
        )
        difference = cues.change(right, agreeing, generator=np.random.default_rng(_SEED))
        results[name] = {"accuracy": accuracy, "change": [float(end) for end in difference], "misled": misled}
    return results


def _entries(intervals: Interval) -> list[list[float]]:
    """[value, low, high] of each statistic."""
    return np.stack(intervals, axis=1).tolist()


def table(results: dict[str, Any]) -> str:
    """Tables in Markdown: what predictions and errors follow, and what an exchanged mechanism changes."""
    shown, chance = results["mechanisms"], results["chance"]
    predictions = {kind_title(kind): each for kind, each in results["predictions"].items()}
    follows = tables.markdown(
        [f"% predicted as the label of (chance {chance:g})", *shown, NONE],
        [
            [title, *map(tables.with_interval, each["follows"].values())]
            for title, each in predictions.items()
        ],
    )
    errors = tables.markdown(
        ["% of the errors with the label of", "errors", *shown[1:], NONE],
        [
            [title, each["errors"], *map(tables.with_interval, each["errors_follow"].values())]
            for title, each in predictions.items()
        ],
    )
    rows = [
        [title, name, *(tables.with_interval(values[entry]) for entry in ("accuracy", "change", "misled"))]
        for title, each in predictions.items()
        for name, values in each["exchanged"].items()
    ]
    exchanged = tables.markdown(
        ["%", "exchanged", "accuracy", "change", "predicted as the other class"], rows
    )
    return f"{follows}\n\n{errors}\n\n{exchanged}"
