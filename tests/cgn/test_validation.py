"""Metrics of masks; warnings of collapsed masks and of a critic that has won."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.cgn.validation import Validation
from cfmlc_jax.data.sources import mechanism_digits
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import RunError
from cfmlc_jax.metrics import masks
from cfmlc_jax.models.generators.mnist import Composition

SOURCE = mechanism_digits.embedded("double_colored_digits", "val")


class Drawn(nn.Module):
    """Draws a real mask of the class asked for, brightened or darkened by its only parameter."""

    num_classes: int = 10
    latent: int = 2

    @nn.compact
    def __call__(self, labels, noise, offsets, *, train):
        shift = self.param("shift", nn.initializers.zeros, ())
        first = [int(index) for index in SOURCE.labels.argmax(axis=0)]
        by_class = np.stack([SOURCE.mask(index) for index in first])[..., None]
        mask = jnp.clip(jnp.asarray(by_class, jnp.float32)[labels["shape"]] + shift, 0, 1)
        image = jnp.broadcast_to(mask, (*mask.shape[:-1], 3))
        return Composition(image, mask, image, image, mask, image, image)


class Critic(nn.Module):
    """Scores images by their brightness."""

    @nn.compact
    def __call__(self, images, labels, *, train):
        factor = self.param("factor", nn.initializers.zeros, ())
        return factor + 0 * images.mean(axis=(1, 2, 3))


def measured(shift, *, factor=0.5, on_collapse="warn"):
    validation = Validation(
        Drawn(), Critic(), SOURCE, meshes.create(), ema_decay=0.0, on_collapse=on_collapse
    )
    drawn = {"params": {"shift": jnp.float32(shift)}}
    learned = {
        "generator": {"params": {"shift": jnp.float32(0)}},
        "average": drawn,
        "critic": {"params": {"factor": jnp.float32(factor)}},
    }
    return validation(learned, lambda: None), validation.warnings()


def test_intersection_over_union():
    a = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
    b = np.array([[[1, 0], [1, 0]], [[1, 1], [0, 0]]], bool)
    np.testing.assert_allclose(masks.intersection_over_union(a, b), [[1 / 3, 1], [0, 0]])
    labels, values = masks.nearest(a[:1], b, [7, 4])
    assert labels.tolist() == [4]
    assert values.tolist() == [1]


def test_masks_are_compared_with_those_of_the_class_asked_for():
    real = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]]], bool)
    drawn = real[[0, 0, 1]]
    quality = masks.quality(drawn.astype(np.float32), np.array([0, 1, 1]), real, np.array([0, 1]))
    assert quality["shape_accuracy"] == pytest.approx(200 / 3)
    assert quality["mask_iou"] == quality["mask_binary"] == 100
    assert quality["mask_iou_class"] == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
    assert quality["mask_mean"] == pytest.approx(100 * 5 / 12)
    assert np.isnan(masks.nearest_of_class(drawn, np.array([0, 1, 7]), real, np.array([0, 1]))).tolist() == [
        False, False, True,
    ]  # fmt: skip


def test_real_masks_have_the_class_that_was_asked_for():
    metrics, warnings = measured(0)
    assert metrics["average"]["shape_accuracy"] == metrics["average"]["mask_iou"] == 100
    assert metrics["average"]["mask_binary"] == metrics["average"]["mask_iou_class"] == 100
    assert 5 < metrics["average"]["mask_mean"] < 40
    assert metrics["average"]["critic_real"] == metrics["average"]["critic_generated"] == 0.5
    assert warnings == []


@pytest.mark.parametrize(("shift", "word"), [(-1, "empty"), (1, "full")])
def test_a_collapse_of_the_averaged_weights_is_reported(shift, word):
    metrics, (warning,) = measured(shift)
    assert metrics["weights"]["shape_accuracy"] == 100
    assert metrics["average"]["shape_accuracy"] < 30
    assert f"the masks are {word}" in warning
    with pytest.raises(RunError, match=f"the masks are {word}.*start again"):
        measured(shift, on_collapse="stop")


@pytest.mark.parametrize("factor", [-170.0, 170.0])
def test_a_critic_that_diverged_is_reported(factor):
    metrics, (warning,) = measured(0, factor=factor)
    assert metrics["average"]["critic_magnitude"] == pytest.approx(170)
    assert (
        "the critic has diverged: its scores, of use from 0 to 1, have a mean magnitude of 170.0; start"
        in warning
    )


def test_a_critic_that_has_won_is_reported(monkeypatch):
    # Real images have colours, drawn ones are grey.
    has_colour = lambda self, images, labels, *, train: (jnp.ptp(images, axis=-1) > 0).any((1, 2)) * 1.0  # noqa: E731
    monkeypatch.setattr(Critic, "__call__", has_colour)
    _, (warning,) = measured(0)
    assert "the critic tells all images apart (mean score 1.00 of real ones, 0.00 of drawn ones)" in warning
