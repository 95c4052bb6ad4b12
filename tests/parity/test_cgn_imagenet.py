"""BigGAN-deep, U²-Net and the ImageNet generator: images, stages, truncation, losses. Weights by rule (`reference`).

Tolerances are those that the numbers were recorded with: 1e-4, spectral norms' step in training 1e-3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded
import reference

from cfmlc_jax import config as configs
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.imagenet import build
from cfmlc_jax.models.generators import biggan_deep, imagenet_cgn, u2net
from cfmlc_jax.torch_weights import cgn

THEIRS = {
    "l1": "loss_l1",
    "style": "loss_perc",
    "entropy": "loss_binary",
    "mask": "loss_mask",
    "text": "loss_perc_text",
    "background": "loss_bg",
}
IMAGES, TRAINING = 1e-4, 1e-3
SLOW = "55 million weights by rule for every BigGAN, and 256 px images: half a minute to minutes"


def one_hot(index):
    return jax.nn.one_hot(jnp.array([index]), 1000)


def noise(seed):
    return np.random.RandomState(seed).standard_normal((1, 128)).astype(np.float32)


def torch_shapes(module, prefix=""):
    return {prefix + entry.key: entry.torch_shape for entry in cgn.entries(module)}


def assert_stage(actual, expected, name):
    recorded.assert_statistics(actual, expected, IMAGES, name)
    recorded.assert_near(np.std(actual, ddof=1), expected["std"], IMAGES * max(expected["std"], 1), name)


def stage_of(features, torch_name):
    """A stage by its name in PyTorch, in PyTorch's layout; None for those that are not given out."""
    name = torch_name.removeprefix("generator.").replace("layers.", "layer")
    if name not in features:
        return None
    actual = np.asarray(features[name])
    return recorded.channels_first(actual) if actual.ndim == 4 else actual


def test_first_stages_of_biggan():
    # To the first layer, on 4 pixels, with a third of all weights; all stages are in the slow tests.
    numbers = recorded.numbers("cgn/biggan")
    module = biggan_deep.BigGANDeep(layers=((False, 16, 16),))
    state_dict = reference.fill_spectral(torch_shapes(module))
    run = jax.jit(functools.partial(module.apply, train=False))
    features = run(cgn.from_torch(module, state_dict), noise(0), one_hot(425))
    compared = 0
    for name, expected in numbers["trunc_1.0"]["stages"].items():
        actual = stage_of(features, name)
        if actual is not None and list(actual.shape) == expected["shape"]:
            assert_stage(actual, expected, name)
            compared += 1
    assert compared == 3
    for name, sigma in numbers["sigma_examples"].items():
        if f"{name}.weight_orig" in state_dict and not name.endswith("conv_to_rgb"):
            raw, u, v = (state_dict[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
            np.testing.assert_allclose(u @ raw.reshape(len(raw), -1) @ v, sigma, rtol=1e-5)


def test_table_of_truncations():
    table = recorded.numbers("cgn/biggan")["truncation_table_start_coef"]
    assert len(table) == 100
    for truncation, (start, share) in table.items():
        actual = biggan_deep.neighbours(float(truncation), 51, biggan_deep.REVERSED)
        expected = ((start, share), (start + 1, 1 - share)) if share else ((start, 1.0),)
        assert actual == expected, truncation


@functools.cache
def biggan():
    module = biggan_deep.BigGANDeep()
    return module, cgn.from_torch(module, reference.fill_spectral(recorded.shapes("biggan_deep_256")))


@pytest.mark.slow(reason=SLOW)
@pytest.mark.parametrize("truncation", [1.0, 0.5, 0.28, 0.3, 0.312])
def test_biggan(truncation):
    golden, numbers = recorded.arrays("cgn/biggan"), recorded.numbers("cgn/biggan")[f"trunc_{truncation}"]
    module, variables = biggan()
    run = jax.jit(functools.partial(module.apply, train=False), static_argnums=3)
    features = run(variables, noise(0), one_hot(425), truncation)
    # .28 has the statistics of .3: a rounding error of the reference's, and its image.
    expected = golden[f"img32_trunc_{0.28 if truncation == 0.3 else truncation}"]
    recorded.assert_near(recorded.pooled(features["image"]), expected, IMAGES)
    recorded.assert_statistics(recorded.channels_first(features["image"]), numbers["img"], IMAGES)
    for name, stage in numbers["stages"].items():
        if (actual := stage_of(features, name)) is not None:
            assert_stage(actual, stage, name)


@pytest.mark.slow(reason=SLOW)
def test_biggan_of_two_classes_and_in_training():
    golden, numbers = recorded.arrays("cgn/biggan"), recorded.numbers("cgn/biggan")["train_mode"]
    module, variables = biggan()
    both = (one_hot(425) + one_hot(147)) / 2
    image = jax.jit(functools.partial(module.apply, train=False))(variables, noise(0), both)["image"]
    recorded.assert_near(recorded.pooled(image), golden["img32_half_425_147_trunc_1.0"], IMAGES)
    train = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    features, updated = train(variables, noise(0), one_hot(425))
    recorded.assert_near(recorded.pooled(features["image"]), golden["img32_train_mode_trunc_1.0"], TRAINING)
    for u, expected in (
        (updated["batch_stats"]["gen_z"]["u"], numbers["gen_z_u"]),
        (updated["batch_stats"]["layer0"]["conv_0"]["u"], numbers["conv0_u"]),
    ):
        recorded.assert_statistics(u, expected, IMAGES)


@functools.cache
def saliency():
    return u2net.U2Net(), cgn.from_torch(u2net.U2Net(), reference.fill_all(recorded.shapes("u2net")))


def test_first_stages_of_u2net():
    numbers = recorded.numbers("cgn/u2net")["in64"]
    module = u2net.U2Net(encoder=u2net.ENCODER[:2], decoder=())
    variables = cgn.from_torch(module, reference.fill_all(torch_shapes(module)))
    x = np.random.RandomState(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    maps = jax.jit(functools.partial(module.apply, train=False))(variables, recorded.channels_last(x))
    for name in ("stage1", "stage2"):
        assert_stage(recorded.channels_first(maps[name]), numbers["stages"][name], name)


@pytest.mark.slow(reason="44 million weights by rule and 120 convolutions to compile")
@pytest.mark.parametrize("size", [64, 100, 256])
def test_u2net(size):
    golden, numbers = recorded.arrays("cgn/u2net"), recorded.numbers("cgn/u2net")[f"in{size}"]
    module, variables = saliency()
    x = np.random.RandomState(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    maps = jax.jit(functools.partial(module.apply, train=False))(variables, recorded.channels_last(x))
    actual = maps["saliency"]
    if size == 256:
        recorded.assert_near(recorded.pooled(actual), golden["out_256_pool32"], IMAGES)
    else:
        recorded.assert_near(recorded.channels_first(actual), golden[f"out_{size}"], IMAGES)
    recorded.assert_statistics(recorded.channels_first(actual), numbers["out"], IMAGES)
    for name, expected in numbers["stages"].items():
        assert_stage(recorded.channels_first(maps[name]), expected, name)


@pytest.mark.slow(reason=SLOW)
def test_imagenet_generator():
    golden, numbers = recorded.arrays("cgn/imagenet_generator"), recorded.numbers("cgn/imagenet_generator")
    composed = imagenet_composition(numbers["ys"], numbers["truncation"])
    names = {
        "x_gt": composed.target,
        "mask": composed.mask,
        "premask": composed.shape,
        "fg": composed.foreground,
        "bg": composed.background,
        "bg_mask": composed.background_saliency,
        "x_gen": composed.image,
    }
    for name, actual in names.items():
        recorded.assert_near(recorded.pooled(actual), golden[f"{name}_pool32"], IMAGES, name)
        recorded.assert_statistics(recorded.channels_first(actual), numbers[name], IMAGES, name)
    for name, actual in imagenet_losses(composed, np.array([numbers["perc_text_idx"]])).items():
        np.testing.assert_allclose(actual[0], numbers[name], rtol=1e-3, err_msg=name)


def imagenet_composition(classes, truncation):
    module = imagenet_cgn.ImageNetGenerator()
    parts = {"target": "biggan_GT", "shape": "f_shape", "texture": "f_text", "background": "f_bg"}
    variables = {}
    for ours, prefix in parts.items():
        shapes = {f"{prefix}.{key}": shape for key, shape in recorded.shapes("biggan_deep_256").items()}
        state_dict = reference.fill_spectral(shapes)
        state_dict = {key.removeprefix(f"{prefix}."): array for key, array in state_dict.items()}
        variables[ours] = cgn.from_torch(biggan_deep.BigGANDeep(), state_dict)
    shapes = {f"u2net.{key}": shape for key, shape in recorded.shapes("u2net").items()}
    state_dict = {key.removeprefix("u2net."): array for key, array in reference.fill_all(shapes).items()}
    variables["u2net"] = cgn.from_torch(u2net.U2Net(), state_dict)
    variables = {
        collection: {part: of_part[collection] for part, of_part in variables.items()}
        for collection in ("params", "batch_stats")
    }
    every_noise = mechanisms.same_for_all(0.5 * noise(3))
    every_class = {name: one_hot(index) for name, index in zip(mechanisms.MECHANISMS, classes)}
    run = jax.jit(functools.partial(module.apply, train=False), static_argnums=3)
    return run(variables, every_noise, every_class, truncation)


def imagenet_losses(composed, picks):
    """The losses of the default configuration, by the reference's names."""
    config = configs.validate(configs.default("cgn_imagenet"))
    objective = build.objective(config, build.create(config))
    vgg = cgn.from_torch(objective.features, reference.fill_all(torch_shapes(objective.features)))
    losses = jax.jit(objective)({"params": vgg["params"]}, composed, picks)
    return {THEIRS[name]: loss for name, loss in losses.items()}
