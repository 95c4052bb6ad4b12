"""The counterfactual generators' MNIST data against the reference's, of ten fake digits: all numbers are equal."""

import numpy as np
import pytest
import recorded

from cfmlc_jax.data.sources import digit_looks


@pytest.fixture(scope="module")
def golden():
    return recorded.arrays("cgn/mnist_data")


def in_half(image):
    """Images of 0 to 1, in [−1, 1] and PyTorch's layout, with float32 operations as in the reference."""
    assert image.dtype == np.float32
    return np.moveaxis((image - np.float32(0.5)) / np.float32(0.5), -1, -3)


@pytest.mark.parametrize(("places", "key"), [("BY_CORNER", "torch_nearest"), ("BY_CENTRE", "pil_nearest")])
def test_nearest_places(golden, places, key):
    np.testing.assert_array_equal(getattr(digit_looks, places), golden[key])


def test_colours(golden):
    np.testing.assert_array_equal(digit_looks.BACKGROUND_COLOURS, golden["background_colors"])
    np.testing.assert_array_equal(digit_looks.OBJECT_COLOURS, golden["object_colors"])


def test_masks(golden):
    for ink, expected in zip(golden["mnist"], golden["digit_binary"], strict=True):
        np.testing.assert_array_equal(digit_looks.ink_mask(ink, digit_looks.BY_CORNER), expected.astype(bool))


@pytest.mark.parametrize("kind", ["nojitter", "jitter", "test_mode_nojitter"])
def test_double_colours(golden, kind):
    labels = np.column_stack([golden["labels"]] * 2)
    if kind == "test_mode_nojitter":
        labels = golden["test_mode_color_draws"]  # the background's was drawn first
    jitter = golden["jitter"] if kind == "jitter" else np.zeros((10, 2, 3), np.float32)
    for number, expected in enumerate(golden[f"double_colored_{kind}"]):
        mask = golden["digit_binary"][number].astype(bool)
        background, texture = labels[number]
        image = digit_looks.double_coloured(mask, texture, background, jitter[number])
        np.testing.assert_array_equal(in_half(image), expected)


def test_a_stored_coloured_image(golden):
    image = golden["colored_image"][0][np.ix_(digit_looks.BY_CENTRE, digit_looks.BY_CENTRE)]
    np.testing.assert_array_equal(
        in_half(image.astype(np.float32) / np.float32(255)), golden["colored_out"][0]
    )
