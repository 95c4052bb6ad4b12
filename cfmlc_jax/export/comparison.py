"""Comparison of an exported program with the checkpoint that it comes from, on some images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cfmlc_jax.causal import effects, patches
from cfmlc_jax.classify import scoring, tasks
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.resample import to_square
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import RunError
from cfmlc_jax.export import graph
from cfmlc_jax.results.predictions import counterfactual_of, null_name

# Greatest difference of a probability.
TOLERANCE = 1e-4
_SIDE = 64  # of the scenes, pixels


@dataclass(frozen=True)
class Difference:
    """The greatest difference between a program and its checkpoint.

    value: of a probability.
    output: name of the output.
    image: number of the image.
    class_name: the class.
    values: the program's, and the checkpoint's.
    """

    value: float
    output: str
    image: int
    class_name: str
    values: tuple[float, float]


def example_images(number: int, size: int) -> np.ndarray:
    """Scenes of digits on photos, the last one noise: uint8 [number, size, size, 3]."""
    source = Scenes("test_iid", num_scenes=max(number - 1, 1), size=_SIDE)
    scenes = [Image.fromarray(source[i]["image"]) for i in range(number - 1)]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return np.stack(
        [*(np.asarray(to_square(each, size, Image.Resampling.BILINEAR)) for each in scenes), noise]
    )


def of_checkpoint(
    opened: Opened, variables: Any, mean_colour: Any, images: np.ndarray, alpha: float
) -> dict[str, np.ndarray]:
    """What the checkpoint says of images of the model's size, as `predict` computes it: the outputs of `graph.function`.

    The host cuts the patches, and the devices of the mesh score them.

    Args:
        opened: the classifier.
        variables: its weights.
        mean_colour: [3].
        images: uint8 [b, s, s, 3], b divisible by the number of devices.
        alpha: strength of the total direct effect.
    """
    transform = opened.parts.transforms["evaluate"]
    views = images[:, None]
    if transform.grid is not None:
        views = np.stack(
            [
                np.stack([np.asarray(view) for view in transform.cut(Image.fromarray(image))])
                for image in images
            ]
        )
    kinds = ("feature",) if graph.has_mean_feature(opened) else ()
    score = scoring.score_step(opened.config, opened.parts, kinds, attention=np.float32)
    on_devices = meshes.to_devices(views, opened.parts.mesh)
    arrays = {name: np.asarray(rows) for name, rows in score(variables, mean_colour, on_devices).items()}
    logits = {name: rows for name, rows in arrays.items() if rows.ndim == 2 and name != "pivot"}
    for kind in kinds:
        null = logits.pop(null_name(kind))
        logits[f"tde_{kind}"] = effects.total_direct_effect(logits["combined"], null, alpha)
    assert not any(counterfactual_of(name) for name in logits)
    task = tasks.create(
        opened.config, training_labels=None, class_counts=None, num_classes=opened.num_classes
    )
    outputs = {name: task.probabilities(rows) for name, rows in logits.items()}
    if "attention" in arrays:
        outputs[graph.PATCH_WEIGHTS] = np.asarray(patches.patch_weights(arrays["attention"]))
    return outputs


def greatest(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Difference:
    """The greatest difference of all outputs, arrays [b, …, k] by name. NaN counts as a difference of 1."""
    assert outputs.keys() == expected.keys(), (outputs.keys(), expected.keys())
    differences = []
    for name, wanted in expected.items():
        assert outputs[name].shape == wanted.shape, (name, outputs[name].shape, wanted.shape)
        apart = np.abs(outputs[name].astype(np.float64) - wanted)
        apart = np.where(np.isnan(apart), 1.0, apart)
        place = np.unravel_index(apart.argmax(), apart.shape)
        values = float(outputs[name][place]), float(wanted[place])
        differences.append(
            Difference(float(apart[place]), name, int(place[0]), class_names[int(place[-1])], values)
        )
    return max(differences, key=lambda difference: difference.value)


def require_equal(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    images: np.ndarray,
    expected: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    batches: Sequence[int],
) -> Difference:
    """The greatest difference of a program from the checkpoint; raise if it is above `TOLERANCE`.

    Args:
        run: the program: images -> outputs by name.
        images: uint8 [b, s, s, 3].
        expected: of the checkpoint (`of_checkpoint`).
        class_names: k.
        batches: sizes of the batches in which the program gets the images, in turn.

    Raises:
        RunError: names the class, the output and both probabilities.
    """
    worst = None
    start = 0
    for size in batches:
        rows = slice(start, start + size)
        wanted = {name: array[rows] for name, array in expected.items()}
        difference = greatest(run(images[rows]), wanted, class_names)
        if worst is None or difference.value > worst.value:
            worst = difference
        start += size
    assert worst is not None
    if worst.value > TOLERANCE:
        ours, theirs = worst.values
        raise RunError(
            f"the exported {worst.output} of class {worst.class_name!r} is {ours:.6f} where the checkpoint's is "
            f"{theirs:.6f} (image {worst.image}); they differ by {worst.value:.1g}, more than {TOLERANCE:g}: nothing "
            "was written; export in the other format, and report this model"
        )
    return worst
