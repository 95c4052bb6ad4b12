"""Pivot patches against boxes: hand values on a 2 × 2 grid, stretching, ties, sizes, exact chance."""

import dataclasses

import numpy as np
import pytest

from cfmlc_jax.causal import patches
from cfmlc_jax.causal.views import patch_boxes
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.metrics import localization

TOP_LEFT, BOTTOM_LEFT, TOP_RIGHT, BOTTOM_RIGHT = range(4)  # patches go column by column


def localize(pivot, boxes, box_classes, sizes, **options):
    """`localization.localize` of boxes and classes that are listed by image."""
    corners = np.concatenate([np.zeros((0, 4)), *boxes])
    classes = np.concatenate([np.zeros(0, int), *(np.asarray(own, int) for own in box_classes)])
    images = np.repeat(np.arange(len(boxes)), [len(own) for own in box_classes])
    return localization.localize(pivot, corners, classes, images, sizes, **options)


def one_image(pivot, *boxes, width=100, height=100, **options):
    """Pairs of one image with boxes of class 0."""
    options = {"size": 64, "patch_boxes": patch_boxes(64, 2)} | options
    return localize(
        np.array([[pivot]]), [np.array(boxes, float)], [[0] * len(boxes)], [(width, height)], **options
    )


def scenes(count):
    boxes = Scenes("train", num_scenes=count).boxes()
    return tuple(zip(*(boxes.of_image(i) for i in range(count)), strict=True))


def test_values_computed_by_hand():
    # Three quarters of the box lie in the left half, all of it in the upper.
    box = (20, 10, 60, 30)
    located = one_image(TOP_LEFT, box)
    assert located.image.tolist() == located.label.tolist() == [0]
    assert located.hit.tolist() == [True]
    np.testing.assert_allclose(
        [located.share[0], located.chance_share[0], located.best_share[0]], [0.75, 0.25, 0.75]
    )
    np.testing.assert_allclose([located.chance_hit[0], located.best_hit[0]], [0.25, 1])
    np.testing.assert_allclose([located.area[0], located.relative_area[0]], [800, 0.08])
    other = one_image(TOP_RIGHT, box)
    assert other.hit.tolist() == [False]
    np.testing.assert_allclose(other.share, 0.25)


def test_patches_are_numbered_as_views_are():
    for pivot, box in [
        (TOP_LEFT, (10, 10, 20, 20)),
        (BOTTOM_LEFT, (10, 80, 20, 90)),
        (TOP_RIGHT, (80, 10, 90, 20)),
        (BOTTOM_RIGHT, (80, 80, 90, 90)),
    ]:
        assert [one_image(p, box).hit[0] for p in range(4)] == [p == pivot for p in range(4)]


def test_boxes_are_scaled_with_the_image():
    square = one_image(TOP_LEFT, (20, 10, 60, 30))
    wide = one_image(TOP_LEFT, (80, 5, 240, 15), width=400, height=50)
    for name in ("hit", "share", "chance_share", "best_share", "relative_area"):
        np.testing.assert_allclose(getattr(wide, name), getattr(square, name), err_msg=name)
    np.testing.assert_allclose(wide.area, 2 * square.area)


def test_every_patch_with_an_equal_part_is_a_hit():
    centred = (30, 10, 70, 30)  # on the cut between left and right
    assert [one_image(p, centred).hit[0] for p in range(4)] == [True, False, True, False]
    assert one_image(0, centred).chance_hit == [0.5]
    # A third of a pixel is not a float: only rounding tells the halves of this box apart.
    thirds = (100 / 3, 10, 200 / 3, 30)
    assert one_image(0, thirds).chance_hit == [0.5]
    whole = one_image(BOTTOM_RIGHT, (0, 0, 100, 100))
    assert whole.chance_hit == whole.best_hit == [1]
    np.testing.assert_allclose(whole.best_share, 0.25)


def test_an_object_inside_the_overlap_is_held_by_several_patches():
    # Two patches of side 2/3 overlap in the middle third.
    located = one_image(TOP_RIGHT, (45, 10, 55, 20), size=90, patch_boxes=patch_boxes(90, 2, 0.5))
    np.testing.assert_allclose(
        [located.chance_hit[0], located.share[0], located.chance_share[0]], [0.5, 1, 0.5]
    )


def test_a_hit_on_any_box_of_the_class_counts():
    boxes = [(10, 10, 20, 20), (70, 70, 95, 95)]
    assert [one_image(p, *boxes).hit[0] for p in range(4)] == [True, False, False, True]
    located = one_image(TOP_LEFT, *boxes)
    assert located.chance_hit == [0.5]
    np.testing.assert_allclose(located.share, 1)
    np.testing.assert_allclose(located.area, 625)  # of the largest


def test_the_remainder_of_the_division_belongs_to_no_patch():
    # 7 // 2 = 3: the last of seven columns is in no patch.
    located = one_image(TOP_RIGHT, (6, 0, 7, 2), width=7, height=7, size=7, patch_boxes=patch_boxes(7, 2))
    assert not located.hit[0]
    assert located.chance_hit == located.best_hit == located.best_share == [0]


def test_classes_and_images_are_kept_apart():
    pivot = np.array([[TOP_LEFT, BOTTOM_RIGHT], [TOP_LEFT, TOP_LEFT], [TOP_RIGHT, TOP_LEFT]])
    boxes = [
        np.array([[80, 80, 90, 90], [10, 10, 20, 20]]),
        np.zeros((0, 4)),
        np.array([[80, 10, 90, 20], [80, 10, 80, 20]]),  # the second has no area
    ]
    located = localize(
        pivot, boxes, [[1, 0], [], [1, 0]], [(100, 100)] * 3, size=64, patch_boxes=patch_boxes(64, 2)
    )
    assert located.image.tolist() == [0, 0, 2]
    assert located.label.tolist() == [0, 1, 1]
    assert located.hit.tolist() == [True, True, False]
    assert (located.images_without_boxes, located.boxes_without_area) == (1, 1)
    of_classes = localization.by_class(located, 2)
    assert [(r.pairs, r.hit) for r in of_classes] == [(1, 1.0), (2, 0.5)]
    assert localization.rates(located).hit == pytest.approx(2 / 3)
    assert localization.rates(located, located.image == 2).share == 0


def test_boxes_are_clipped_to_the_image():
    located = one_image(TOP_LEFT, (-10, -10, 10, 10), (200, 200, 210, 210))
    np.testing.assert_allclose(located.area, 100)
    assert located.boxes_without_area == 1
    assert located.share == [1]


def test_sizes_in_pixels_and_relative():
    sides = [31.99, 32, 95.99, 96]
    for width, height, relative in [(640, 480, False), (640, 480, True), (64, 48, True)]:
        scale = width / 640
        located = localize(
            np.zeros((4, 1), int),
            [np.array([[0, 0, side * scale, side * scale]]) for side in sides],
            [[0]] * 4,
            [(width, height)] * 4,
            size=64,
            patch_boxes=patch_boxes(64, 2),
        )
        groups = localization.by_size(located, relative=relative)
        assert [(name, r.pairs) for name, r in groups.items()] == [("small", 1), ("medium", 2), ("large", 1)]
    everything_small = localization.by_size(located, relative=False)
    assert everything_small["small"].pairs == 4
    assert np.isnan(everything_small["large"].hit)


def test_objects_that_span_patches():
    located = [one_image(TOP_LEFT, box) for box in [(0, 0, 100, 100), (30, 10, 70, 30), (10, 10, 20, 20)]]
    spanning = [localization.by_span(pairs)["spanning"].pairs for pairs in located]
    assert spanning == [1, 0, 0]  # a quarter; half; all in one patch
    assert localization.by_span(located[1], 0.6)["within"].pairs == 0


@pytest.mark.parametrize(("grid", "overlap"), [(2, 0.0), (3, 0.0), (3, 0.4)])
def test_chance_is_the_mean_over_all_pivots_and_best_the_maximum(grid, overlap):
    boxes, classes = scenes(40)
    options = {"size": 64, "patch_boxes": patch_boxes(64, grid, overlap)}
    every = [
        localize(np.full((40, 10), p), boxes, classes, [(64, 64)] * 40, **options) for p in range(grid**2)
    ]
    hits, shares = np.stack([f.hit for f in every]), np.stack([f.share for f in every])
    np.testing.assert_allclose(hits.mean(axis=0), every[0].chance_hit)
    np.testing.assert_allclose(hits.max(axis=0), every[0].best_hit)
    np.testing.assert_allclose(shares.mean(axis=0), every[0].chance_share)
    np.testing.assert_allclose(shares.max(axis=0), every[0].best_share)
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-12


def test_attention_that_sees_the_object_is_always_right():
    boxes, classes = scenes(40)
    options = {
        "boxes": boxes,
        "box_classes": classes,
        "sizes": [(64, 64)] * 40,
        "size": 64,
        "patch_boxes": patch_boxes(64, 2),
    }
    rng = np.random.default_rng(0)
    held = [localize(np.full((40, 10), p), **options) for p in range(4)]
    attention = rng.random((40, 4, 10))
    for p, pairs in enumerate(held):
        attention[pairs.image, p, pairs.label] += 10 * pairs.share
    located = localization.rates(localize(patches.pivot(attention), **options))
    assert located.pairs == sum(len(np.unique(c)) for c in classes)
    assert located.hit == located.best_hit == 1
    assert located.share == pytest.approx(located.best_share)
    assert located.chance_hit < 0.5


def test_the_order_of_images_and_boxes_does_not_matter(rng):
    boxes, classes = scenes(30)
    pivot = rng.integers(0, 4, (30, 10))
    order = rng.permutation(30)
    plain = localize(pivot, boxes, classes, [(64, 64)] * 30, size=64, patch_boxes=patch_boxes(64, 2))
    moved = localize(
        pivot[order],
        [boxes[i][::-1] for i in order],
        [classes[i][::-1] for i in order],
        [(64, 64)] * 30,
        size=64,
        patch_boxes=patch_boxes(64, 2),
    )
    for one, other in zip(localization.by_class(plain, 10), localization.by_class(moved, 10), strict=True):
        assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(one))


def test_no_boxes_at_all():
    located = localize(
        np.zeros((2, 3), int),
        [np.zeros((0, 4))] * 2,
        [[]] * 2,
        [(9, 9)] * 2,
        size=64,
        patch_boxes=patch_boxes(64, 2),
    )
    assert located.images_without_boxes == 2
    overall = localization.rates(located)
    assert overall.pairs == 0
    assert np.isnan(overall.hit)


GOOD = {
    "pivot": np.zeros((1, 2), int),
    "corners": [[0.0, 0, 5, 5]],
    "classes": [1],
    "images": [0],
    "sizes": [(10, 10)],
    "size": 64,
    "patch_boxes": patch_boxes(64, 2),
}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pivot": np.zeros((1, 2))}, "must be int"),
        ({"pivot": np.zeros(2, int)}, "must be int"),
        ({"pivot": np.full((1, 2), 4)}, "from 4 to 4 are not all of 4 patches"),
        ({"corners": np.zeros((0, 4))}, "do not match"),
        ({"images": []}, "do not match"),
        ({"images": [1]}, "boxes belong to images 1 to 1, but there are pivots of 1 images"),
        ({"sizes": [(10, 10)] * 2}, "do not match"),
        ({"sizes": [(10, 0)]}, "image 0 has no pixels"),
        ({"classes": [1, 1]}, r"boxes \(1, 4\), classes \(2,\)"),
        ({"classes": [2]}, "boxes belong to classes 2 to 2, but there are pivots of 2 classes"),
        ({"corners": [[5.0, 0, 0, 5]]}, "image 0: box .* is not left, top, right, bottom"),
        ({"corners": [[np.nan, 0, 0, 5]]}, "is not left, top, right, bottom"),
    ],
)
def test_invalid_inputs_are_refused(changes, match):
    assert len(localization.localize(**GOOD).hit) == 1
    with pytest.raises(ValueError, match=match):
        localization.localize(**GOOD | changes)


def test_a_picture_without_a_box_needs_no_size():
    located = localize(np.zeros((2, 2), int), [np.zeros((0, 4)), [[0, 0, 5, 5]]], [[], [1]], [(0, 0), (10, 10)],
                     size=64, patch_boxes=patch_boxes(64, 2))  # fmt: skip
    assert located.image.tolist() == [1]


def test_a_mask_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="mask"):
        localization.rates(localization.localize(**GOOD), [True, False])
