"""Regions of classes, and images in which the surroundings are continued over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import owners, patches
from cfmlc_jax.causal.views import patch_boxes

COLOUR = jnp.array([0.1, 0.5, 0.9])


@pytest.mark.parametrize("pooling", ["pivot", "exclusive"])
def test_evidence_of_patches_adds_up_to_that_of_the_class(rng, pooling):
    attention, scores = jnp.asarray(3 * rng.normal(size=(2, 3, 9, 4)), jnp.float32)
    pool = patches.POOLINGS[pooling]
    evidence = owners.evidence(attention, scores, pool)
    assert evidence.shape == scores.shape
    assert (evidence >= 0).all()
    present = jax.nn.sigmoid(pool.logits(attention, scores))
    np.testing.assert_allclose(1 - jnp.exp(-evidence.sum(axis=1)), present, rtol=1e-4)


def test_footprints_are_boxes_and_with_reach_their_edges_are_smooth():
    boxes = patch_boxes(12, 3)
    sharp = np.einsum("ph,pw->phw", *owners.footprints(boxes, 12, 0.0))
    for patch, (left, top, right, bottom) in zip(sharp, boxes, strict=True):
        expected = np.zeros((12, 12))
        expected[top:bottom, left:right] = 1
        np.testing.assert_array_equal(patch, expected)
    rows, columns = owners.footprints(boxes, 12, 0.5)
    # The footprints of all patches cover each pixel once.
    np.testing.assert_allclose(np.einsum("ph,pw->hw", rows, columns), 1, rtol=1e-5)
    middle = rows[4]
    assert middle[5] == middle.max()
    assert 0 < middle[2] < middle[3] < middle[4] < 1


def test_a_region_is_where_a_class_has_evidence():
    footprints = owners.footprints(patch_boxes(8, 2), 8, 0.0)
    evidence = jnp.array([[0.0, 0.0, 5.0, 0.0], [0.0] * 4, [owners.LEAST_EVIDENCE / 2] * 4])
    region = owners.region(evidence, *footprints)
    expected = np.zeros((3, 8, 8), bool)
    expected[0, :4, 4:] = True  # patches are numbered column by column
    np.testing.assert_array_equal(region, expected)


def test_only_removed_pixels_change(rng):
    images = jnp.asarray(rng.random((3, 11, 14, 3)), jnp.float32)
    removed = jnp.asarray(rng.random((3, 11, 14)) < 0.4).at[2].set(False)
    filled = owners.continued(images, removed, COLOUR)
    np.testing.assert_array_equal(filled[~removed], images[~removed])
    # Nothing of the removed pixels is left.
    other = jnp.where(removed[..., None], 1 - images, images)
    np.testing.assert_allclose(owners.continued(other, removed, COLOUR), filled, atol=1e-6)
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_a_fill_continues_its_surroundings():
    """A slope is harmonic, so the fill finds it again; of an image of which nothing is left the colour remains."""
    slope = jnp.broadcast_to(jnp.linspace(0.2, 0.8, 32)[None, None, :, None], (2, 32, 32, 3))
    removed = jnp.zeros((2, 32, 32), bool).at[0, 8:22, 9:24].set(True).at[1].set(True)
    hidden = jnp.where(removed[..., None], 0.0, slope)
    filled = owners.continued(hidden, removed, COLOUR)
    np.testing.assert_allclose(filled[0], slope[0], atol=0.02)
    np.testing.assert_allclose(filled[1], jnp.broadcast_to(COLOUR, (32, 32, 3)), atol=1e-6)
