"""Cells of the grid, device patches and removed patches."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import views


def test_patches_are_numbered_column_by_column():
    assert views.patch_boxes(8, 2) == [(0, 0, 4, 4), (0, 4, 4, 8), (4, 0, 8, 4), (4, 4, 8, 8)]


@pytest.mark.parametrize(
    ("size", "grid", "overlap"), [(112, 3, 0.0), (448, 4, 0.0), (64, 2, 0.5), (96, 3, 0.25)]
)
def test_patches_are_equal_squares_inside_the_image(size, grid, overlap):
    boxes = views.patch_boxes(size, grid, overlap)
    assert len(boxes) == grid**2
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes}) == 1
    assert all(x1 - x0 == y1 - y0 for x0, y0, x1, y1 in boxes)
    assert all(min(box) >= 0 and max(box) <= size for box in boxes)


def test_overlap_is_the_shared_fraction_and_reaches_the_edges():
    first, second = views.patch_boxes(96, 2, 0.5)[:2]
    assert (first[1], first[3], second[1], second[3]) == (0, 64, 32, 96)


@pytest.mark.parametrize(("size", "grid", "overlap"), [(8, 1, 0), (8, 2, 1.0), (8, 2, -0.1), (3, 4, 0)])
def test_invalid_grids_are_refused(size, grid, overlap):
    with pytest.raises(ValueError, match=r"grid|overlap"):
        views.patch_boxes(size, grid, overlap)


def test_split_at_native_size_is_the_crop(rng):
    images = jnp.asarray(rng.random((2, 8, 8, 3)), jnp.float32)
    patches = views.split(images, 2, size=4)
    assert patches.shape == (2, 4, 4, 4, 3)
    np.testing.assert_allclose(patches[:, 1], images[:, 4:8, 0:4], rtol=1e-6)
    np.testing.assert_allclose(patches[:, 2], images[:, 0:4, 4:8], rtol=1e-6)


def test_split_enlarges_bilinearly():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 1))
    patch = views.split(ramp, 2, size=8)[0, 0]
    np.testing.assert_allclose(patch[3, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], rtol=1e-6)


def test_split_refuses_images_that_are_not_square():
    with pytest.raises(ValueError, match="not square"):
        views.split(jnp.zeros((1, 4, 6, 3)), 2, size=4)


def without_each(images, null, grid):
    """Images [b, h, h, c] without each patch in turn: [b, p, h, h, c]."""
    patches = range(len(views.patch_boxes(images.shape[1], grid)))
    return jnp.stack(
        [views.remove_one(images, null, jnp.full(len(images), p), grid) for p in patches], axis=1
    )


def test_removed_patches_change_only_their_own_pixels(rng):
    images = jnp.asarray(rng.random((2, 8, 8, 3)), jnp.float32)
    removed = without_each(images, jnp.zeros((1, 8, 8, 3)), 2)
    assert removed.shape == (2, 4, 8, 8, 3)
    for p, (x0, y0, x1, y1) in enumerate(views.patch_boxes(8, 2)):
        by_hand = images.at[:, y0:y1, x0:x1].set(0)
        np.testing.assert_array_equal(removed[:, p], by_hand)


def test_several_grids_follow_each_other():
    assert views.patch_boxes(12, (2, 3)) == views.patch_boxes(12, 2) + views.patch_boxes(12, 3)
    assert views.patch_boxes(12, (3,), 0.25) == views.patch_boxes(12, 3, 0.25)


def test_no_grid_at_all():
    with pytest.raises(ValueError, match="no grid"):
        views.patch_boxes(8, ())


@pytest.mark.parametrize("grid", [2, (2,), (2, 3), (4, 2)])
def test_position_inverts_the_number_of_a_patch(grid):
    for patch, (left, top, right, _) in enumerate(views.patch_boxes(24, grid)):
        along, column, row = views.position(patch, grid)
        side = 24 // along
        assert (left, top, right - left) == (column * side, row * side, side)
    with pytest.raises(ValueError, match="no patch"):
        views.position(len(views.patch_boxes(24, grid)), grid)


def test_split_of_several_grids_brings_all_patches_to_one_size(rng):
    images = jnp.asarray(rng.random((2, 12, 12, 3)), jnp.float32)
    patches = views.split(images, (2, 3), size=6)
    assert patches.shape == (2, 13, 6, 6, 3)
    np.testing.assert_array_equal(patches[:, :4], views.split(images, 2, size=6))
    np.testing.assert_array_equal(patches[:, 4:], views.split(images, 3, size=6))
    np.testing.assert_array_equal(patches[:, 3], images[:, 6:, 6:])


def test_removed_patches_of_several_grids(rng):
    images = jnp.asarray(rng.random((1, 12, 12, 3)), jnp.float32)
    null = jnp.zeros((1, 12, 12, 3))
    both = without_each(images, null, (2, 3))
    separate = [without_each(images, null, grid) for grid in (2, 3)]
    np.testing.assert_array_equal(both, jnp.concatenate(separate, axis=1))


def test_neighbours_share_pixels():
    assert views.neighbours(8, 2).shape == (4, 0)
    assert views.neighbours(8, 3).shape == (9, 0)
    np.testing.assert_array_equal(views.neighbours(8, 2, 0.5), [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    # 0 to 6 and 6 to 12 beside 0 to 4, 4 to 8 and 8 to 12: of nine, the one in the middle meets all four.
    of_scales = [set(row) - {p} for p, row in enumerate(views.neighbours(12, (2, 3)))]
    assert of_scales[0] == {4, 5, 7, 8}
    assert of_scales[4] == {0}
    assert of_scales[5] == {0, 1}
    assert of_scales[8] == {0, 1, 2, 3}
    # Three along 9 pixels, half a side in common: the first and the third touch and share none.
    assert 6 not in views.neighbours(9, 3, 0.5)[0]


@pytest.mark.parametrize(("grid", "overlap"), [(2, 0.0), (2, 0.5), ((2, 3), 0.0), ((2, 3), 0.25)])
def test_a_removed_patch_is_in_no_other(grid, overlap, rng):
    """Whatever was in the box, the patches are the same; those that do not meet it are untouched."""
    size = 12
    images = jnp.asarray(rng.random((2, size, size, 3)), jnp.float32)
    null = jnp.full((1, size, size, 3), 0.5)
    null_patches = views.split(null, grid, overlap=overlap, size=size)
    boxes = views.patch_boxes(size, grid, overlap)
    for patch, (x0, y0, x1, y1) in enumerate(boxes):
        other = images.at[:, y0:y1, x0:x1].set(jnp.asarray(rng.random((2, y1 - y0, x1 - x0, 3)), jnp.float32))
        before = views.split(images, grid, overlap=overlap, size=size)
        number = jnp.array([patch, -1])
        actual, of_other = (
            views.without_one(
                views.split(x, grid, overlap=overlap, size=size), null_patches, number, grid, overlap=overlap
            )
            for x in (images, other)
        )
        np.testing.assert_array_equal(actual[0], of_other[0])
        np.testing.assert_array_equal(actual[0, patch], null_patches[0, patch])
        apart = sorted(set(range(len(boxes))) - {patch} - set(views.neighbours(size, grid, overlap)[patch]))
        np.testing.assert_array_equal(actual[0, apart], before[0, apart])
        np.testing.assert_array_equal(actual[1], before[1])
