"""Masks of COCO's outlines: polygons and run lengths."""

import numpy as np
import pytest

from cfmlc_jax.data.sources.outlines import mask


def text_of(counts):
    """COCO's text of run lengths: five bits a character from the lowest, the sixth tells that more follow."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - counts[i - 2] if i > 2 else count, True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 * more))
    return text


def test_polygons_are_united():
    square, other = [2, 1, 6, 1, 6, 5, 2, 5], [10, 10, 14, 10, 14, 12]
    own = mask([square, other], (20, 16))
    assert own.shape == (16, 20)
    assert own[1:6, 2:7].all()
    assert own[10, 10:15].all()
    assert own.sum() == 25 + mask([other], (20, 16)).sum()


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_go_down_the_columns(compressed):
    wanted = np.random.default_rng(3).random((40, 70)) < 0.3
    wanted[:, 20:60] = True  # runs of more than a thousand
    flat = wanted.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    if flat[0]:
        counts = [0, *counts]
    segmentation = {"size": [40, 70], "counts": text_of(counts) if compressed else counts}
    np.testing.assert_array_equal(mask(segmentation, (70, 40)), wanted)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3]],
        [["a", 1, 2, 3, 4, 5]],
        {"size": [4, 5], "counts": [19]},
        {"size": [4, 5], "counts": [-1, 21]},
        {"size": [5, 4], "counts": [20]},
        {"size": [4, 5], "counts": "\u00e9"},
        {"counts": [20]},
        "text",
    ],
)
def test_unusable_outlines_are_none(segmentation):
    assert mask(segmentation, (5, 4)) is None
