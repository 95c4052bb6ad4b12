"""Losses of the counterfactual generators and VGG-16's features: recorded values and gradients.

Tolerances are those that the numbers were recorded with: 1e-5 relative, style 1e-4.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import reference

from cfmlc_jax import losses
from cfmlc_jax.losses import text_patches
from cfmlc_jax.models.generators import vgg16
from cfmlc_jax.torch_weights import cgn

VALUES, STYLE = 1e-5, 1e-4
MODULE = vgg16.VGG16Features()
# Record and its weights of content and style.
PERCEPTUAL = {
    "style_0_.05_.05_0": (None, (0, 0.05, 0.05, 0)),
    "style_4444": (None, (4, 4, 4, 4)),
    "content_1_.5_.25_.1": ((1, 0.5, 0.25, 0.1), None),
}


def images(seed, size, channels=3):
    x = np.random.RandomState(seed).uniform(-1, 1, (2, channels, size, size)).astype(np.float32)
    return recorded.channels_last(x)


@functools.cache
def vgg():
    wanted = {entry.key: entry.torch_shape for entry in cgn.entries(MODULE)}
    return cgn.from_torch(MODULE, reference.fill_all(wanted))


@pytest.mark.parametrize(
    ("name", "loss", "factor"),
    [
        ("binary", losses.binary_entropy, 0.3),
        ("mask", losses.mask_size, 500),
        ("background", losses.background_size, 2000),
    ],
)
def test_losses_of_masks(name, loss, factor):
    golden = recorded.arrays("cgn/losses")
    mask = golden["mask"]
    per_image = factor * loss(jnp.asarray(mask))
    expected = golden[f"{name}_value"]
    np.testing.assert_allclose(per_image if expected.ndim else per_image.mean(), expected, rtol=VALUES)
    gradient = jax.grad(lambda mask: factor * loss(mask).mean())(jnp.asarray(mask))
    expected = golden[f"{name}_grad"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=VALUES * np.abs(expected).max())


def test_features_of_vgg16():
    numbers = recorded.numbers("cgn/losses")
    maps = jax.jit(MODULE.apply)(vgg(), images(7, 32))
    for layer, actual in zip((3, 8, 15, 22), maps, strict=True):
        expected = numbers["vgg_feats_32"][f"layer{layer}"]
        recorded.assert_statistics(recorded.channels_first(actual), expected, VALUES)
        recorded.assert_statistics(losses.gram(actual), numbers["vgg_grams_32"][f"layer{layer}"], STYLE)


def perceptual(name, maps, targets):
    content, style = PERCEPTUAL[name]
    return losses.content(maps, targets, content) if content else losses.style(maps, targets, style)


@pytest.mark.parametrize("size", [32, 64])
def test_content_and_style(size):
    numbers = recorded.numbers("cgn/losses")
    features = jax.jit(MODULE.apply)
    maps, targets = features(vgg(), images(7, size)), features(vgg(), images(8, size))
    for name in PERCEPTUAL:
        expected = numbers[f"perc_{size}_{name}"]["value"]
        value = perceptual(name, maps, targets).mean()
        np.testing.assert_allclose(value, expected, rtol=STYLE if "style" in name else VALUES)


@pytest.mark.parametrize("name", ["style_4444", "content_1_.5_.25_.1"])
def test_gradients_of_content_and_style(name):
    golden, numbers = recorded.arrays("cgn/losses"), recorded.numbers("cgn/losses")

    @jax.jit
    @jax.grad
    def of_images(x, target, vgg):
        return perceptual(name, MODULE.apply(vgg, x), MODULE.apply(vgg, target)).mean()

    gradient = recorded.channels_first(of_images(images(7, 32), images(8, 32), vgg()))
    recorded.assert_statistics(gradient, numbers[f"perc_32_{name}"]["grad"], STYLE)
    if f"perc_{name}_grad_x" in golden:
        expected = golden[f"perc_{name}_grad_x"]
        recorded.assert_near(gradient, expected, STYLE * np.abs(expected).max())


def text_inputs(size):
    """Images, mask and painted texture by the recorded rule: the mask is smoothed noise over all of [0, 1]."""
    mask = recorded.channels_first(
        np.random.RandomState(22).uniform(0, 1, (2, 1, size, size)).astype(np.float32).transpose(0, 2, 3, 1)
    )
    padded = np.pad(mask[:, 0], ((0, 0), (4, 4), (4, 4)))
    smooth = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2)).mean(axis=(3, 4))
    mask = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return images(21, size), mask[..., None].astype(np.float32), images(23, size)


@pytest.mark.parametrize("size", [64, 256])
def test_patches_inside_the_mask(size):
    golden = recorded.arrays("cgn/losses")
    numbers = recorded.numbers("cgn/losses")[f"perc_text_{size}"]
    ims, mask, _ = text_inputs(size)
    resized = text_patches.resize_bicubic(mask, (128, 128))
    recorded.assert_statistics(recorded.channels_first(resized), numbers["bicubic_mask128"], VALUES)
    best = golden[f"text{size}_top100_idx"]
    # The order among the best has gaps below float32's rounding of the means; who is among them has not.
    np.testing.assert_array_equal(np.sort(text_patches.ranking(mask)), np.sort(best))
    picks = np.stack([golden[f"text{size}_rand0{i}_randint"] for i in range(2)])
    places = np.take_along_axis(best, picks, axis=1)
    grids = text_patches.grids_of_places(jnp.asarray(ims), places)
    recorded.assert_statistics(recorded.channels_first(grids), numbers["patches"], VALUES)
    if size == 64:
        recorded.assert_near(recorded.channels_first(grids), golden["text64_patches"], VALUES)
    else:
        recorded.assert_near(recorded.pooled(grids), golden["text256_patches_avgpool"], VALUES)


def test_style_of_the_patches():
    golden = recorded.arrays("cgn/losses")
    expected = recorded.numbers("cgn/losses")["perc_text_64"]
    _, _, paint = text_inputs(64)

    @jax.jit
    @jax.value_and_grad
    def text_style(paint, patches, vgg):
        maps, targets = MODULE.apply(vgg, paint), MODULE.apply(vgg, patches)
        return losses.style(maps, targets, (0, 5, 5, 0)).mean()

    value, gradient = text_style(paint, recorded.channels_last(golden["text64_patches"]), vgg())
    np.testing.assert_allclose(value, expected["value"], rtol=STYLE)
    recorded.assert_statistics(recorded.channels_first(gradient), expected["grad_paint"], STYLE)
