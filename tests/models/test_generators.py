"""Small generators: shapes, types, gradients, what training moves, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.generators import biggan_deep, critics, imagenet_cgn, mnist, u2net
from cfmlc_jax.models.generators.spectral import SpectralConv, SpectralDense
from cfmlc_jax.torch_weights import cgn

BIGGAN = functools.partial(
    biggan_deep.BigGANDeep,
    num_classes=10,
    noise_size=8,
    class_size=4,
    width=8,
    layers=((False, 4, 4), (True, 4, 2), (True, 2, 2), (True, 2, 1)),
    attention=2,
    num_statistics=5,
)
U2NET = functools.partial(
    u2net.U2Net,
    encoder=(u2net.Stage(4, 2, 4), u2net.Stage(3, 2, 6), u2net.Stage(3, 2, 6, dilated=True)),
    decoder=(u2net.Stage(3, 2, 4), u2net.Stage(4, 2, 4)),
)


def random_variables(module):
    """Variables by numpy: to compile the random initialisation of hundreds of layers takes minutes."""
    generator, variables = np.random.default_rng(0), {}
    for path, _, shape, _ in cgn.entries(module):
        x = (generator.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
        variables[path] = 1 + np.abs(x) if path[-1] in ("var", "vars", "scale") else x
    return {"batch_stats": {}} | unflatten_dict(variables)


def digits_inputs(b, latent, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    labels = jax.random.randint(keys[0], (b,), 0, 10)
    noise = jax.random.normal(keys[1], (b, latent))
    offsets = {
        "texture": mechanisms.draw_offsets(keys[2], b, 32),
        "background": mechanisms.draw_offsets(keys[3], b, 32),
    }
    return mechanisms.same_for_all(labels), mechanisms.same_for_all(noise), offsets


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_digits(dtype):
    module = mnist.MnistGenerator(latent=6, ngf=4, dtype=dtype)
    run = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    actual, updated = run(random_variables(module), *digits_inputs(5, 6))
    assert actual.image.shape == (5, 32, 32, 3)
    assert actual.mask.shape == (5, 32, 32, 1)
    assert actual.image.dtype == actual.mask.dtype == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))
    low, high = (jnp.asarray(end, dtype) for end in mechanisms.MASK_RANGE)
    assert ((actual.mask >= low) & (actual.mask <= high)).all()
    assert jnp.abs(actual.image).max() <= 1
    # The mean of every shape is 0 before it is clamped.
    np.testing.assert_allclose(actual.shape.mean(axis=(1, 2, 3), dtype=jnp.float32), np.zeros(5), atol=1e-2)


def test_norms_start_around_one():
    scale = mnist.around_one(0.5)(jax.random.key(0), (10_000,))
    np.testing.assert_allclose([scale.mean(), scale.std()], [1, 0.5], atol=0.02)


def test_an_intervention_changes_its_mechanism_alone():
    module = mnist.MnistGenerator(latent=6, ngf=4)
    labels, noise, offsets = digits_inputs(3, 6)
    run = jax.jit(functools.partial(module.apply, random_variables(module), train=False))
    factual = run(labels, noise, offsets)
    counterfactual = run(labels, noise | {"texture": noise["texture"] + 1}, offsets)
    np.testing.assert_array_equal(counterfactual.mask, factual.mask)
    np.testing.assert_array_equal(counterfactual.background, factual.background)
    assert np.abs(counterfactual.foreground - factual.foreground).max() > 1e-3


@pytest.mark.parametrize("module", [critics.LinearCritic(ndf=4), critics.ConvCritic(ndf=2)])
def test_scores_are_float32_and_one_for_one_image(module):
    module = module.clone(dtype=jnp.bfloat16)
    images, labels = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,), jnp.int32)
    scores = jax.jit(functools.partial(module.apply, train=False))(random_variables(module), images, labels)
    assert scores.shape == (1,)
    assert scores.dtype == jnp.float32


def test_a_label_is_projected_on_the_last_features():
    module = critics.ProjectionCritic(ndf=6, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = module.init(jax.random.key(0), images, jnp.zeros(2, int), train=False)
    assert module.apply(variables, images, jnp.array([3, 4]), train=False).dtype == jnp.float32
    module = module.clone(dtype=jnp.float32)
    score = functools.partial(module.apply, variables, images, train=False)
    one, other = score(labels=jnp.array([3, 3])), score(labels=jnp.array([4, 4]))
    np.testing.assert_allclose(score(labels=jnp.array([3, 4])), [one[0], other[1]], rtol=1e-5)
    # The difference between two labels is linear in the difference of their embeddings.
    table = variables["params"]["label_embedding"]["embedding"]
    halfway = {
        "params": variables["params"]
        | {"label_embedding": {"embedding": table.at[3].set((table[3] + table[4]) / 2)}}
    }
    middle = module.apply(halfway, images, jnp.array([3, 3]), train=False)
    np.testing.assert_allclose(middle, (one + other) / 2, rtol=1e-4, atol=1e-6)
    assert np.abs(one - other).min() > 1e-5


def test_features_of_digits_are_pooled_in_float32():
    module = catalogue.create_model("cnn_mnist", 10, image_size=32, dtype=jnp.bfloat16)
    views = jnp.zeros((2, 1, 32, 32, 3))
    variables = module.init(jax.random.key(0), views, train=False)
    outputs = jax.jit(functools.partial(module.apply, train=False))(variables, views)
    assert outputs.features["map"].dtype == jnp.bfloat16
    for array, shape in ((outputs.features["pooled"], (2, 1, 64)), (outputs.whole, (2, 1, 10))):
        assert array.shape == shape
        assert array.dtype == jnp.float32


def test_biggan_in_half_precision():
    module = BIGGAN(layers=((True, 4, 2),), attention=0, dtype=jnp.bfloat16)
    noise, classes = jnp.ones((2, 8)), jax.nn.one_hot(jnp.array([1, 2]), 10)
    run = jax.jit(functools.partial(module.apply, train=False))
    image = run(random_variables(module), noise, classes)["image"]
    assert image.dtype == jnp.bfloat16
    assert np.isfinite(image.astype(jnp.float32)).all()


def test_biggan():
    module = BIGGAN(layers=((False, 4, 4), (True, 4, 2)), attention=1)
    noise, classes = jnp.ones((2, 8)), jax.nn.one_hot(jnp.array([1, 2]), 10)
    variables = random_variables(module)

    @functools.partial(jax.jit, static_argnames="train")
    def run(variables, train):
        return module.apply(variables, noise, classes, 0.5, train=train, mutable=["batch_stats"])

    features, same = run(variables, train=False)
    assert features["image"].shape == (2, 8, 8, 3)
    assert features["image"].dtype == jnp.float32
    assert features["layer1"].shape == features["layer0"].shape == (2, 4, 4, 32)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])
    _, moved = run(variables, train=True)
    assert np.abs(moved["batch_stats"]["gen_z"]["u"] - variables["batch_stats"]["gen_z"]["u"]).max() > 1e-3
    # Statistics of truncations stay, in training too.
    np.testing.assert_array_equal(
        moved["batch_stats"]["bn"]["means"], variables["batch_stats"]["bn"]["means"]
    )


def test_interpolation_between_truncations():
    def shares(truncation, interpolation):
        return dict(biggan_deep.neighbours(truncation, 51, interpolation))

    assert shares(1.0, "reversed") == shares(1.0, "linear") == {50: 1.0}
    reversed_, linear = shares(0.305, "reversed"), shares(0.305, "linear")
    np.testing.assert_allclose([reversed_[15], reversed_[16]], [0.25, 0.75], rtol=1e-9)
    np.testing.assert_allclose([linear[15], linear[16]], [0.75, 0.25], rtol=1e-9)
    # A rounding error moves the reference to the next entry, and the right one by nothing.
    assert shares(0.28, "reversed")[15] == pytest.approx(1)
    assert shares(0.28, "linear")[14] == pytest.approx(1)
    for truncation in (0.0, 1.01, -0.2):
        with pytest.raises(InputError, match=r"is not in \(0, 1\]"):
            shares(truncation, "linear")
    with pytest.raises(InputError, match="'cubic' is not one of reversed, linear"):
        shares(0.5, "cubic")


@pytest.mark.parametrize("layer", [SpectralDense(5), SpectralConv(5, 3)])
def test_a_spectral_norm_finds_the_largest_singular_value(layer, rng):
    x = jnp.asarray(
        rng.normal(size=(2, 6) if isinstance(layer, SpectralDense) else (2, 4, 4, 6)), jnp.float32
    )
    variables = layer.init(jax.random.key(0), x, train=False)
    step = jax.jit(functools.partial(layer.apply, train=True, mutable=["batch_stats"]))
    for _ in range(60):
        variables |= step(variables, x)[1]
    raw = np.asarray(variables["params"]["raw_kernel"])
    u, v = variables["batch_stats"]["u"], variables["batch_stats"]["v"]
    matrix = raw if raw.ndim == 2 else raw.transpose(2, 0, 1, 3).reshape(-1, 5)
    np.testing.assert_allclose(v @ matrix @ u, np.linalg.svd(matrix)[1][0], rtol=1e-3)
    # A kernel's scale makes no difference.
    scaled = variables | {"params": {**variables["params"], "raw_kernel": 3 * raw}}
    run = jax.jit(functools.partial(layer.apply, train=False))
    once, thrice = run(variables, x), run(scaled, x)
    np.testing.assert_allclose(once, thrice, rtol=1e-4, atol=1e-6)
    # The gradient goes through the kernel alone, and has no part along it.

    def square(params):
        return jnp.square(layer.apply(variables | {"params": params}, x, train=False)).sum()

    gradient = jax.jit(jax.grad(square))(variables["params"])["raw_kernel"]
    assert np.isfinite(gradient).all()
    assert abs((gradient * raw).sum()) < 1e-3 * np.abs(gradient * raw).sum()


def test_u2net_of_odd_sizes():
    size = 37
    module, images = U2NET(), jax.random.normal(jax.random.key(1), (2, size, size, 3))
    maps = jax.jit(functools.partial(module.apply, train=False))(random_variables(module), images)
    assert maps["saliency"].shape == (2, size, size, 1)
    assert maps["side2"].shape == (2, (size + 1) // 2, (size + 1) // 2, 1)
    assert ((maps["saliency"] > 0) & (maps["saliency"] < 1)).all()


def test_bilinear_keeps_corners_and_straight_lines():
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 3, 1))
    larger = u2net.resize_bilinear(ramp, (7, 5))
    np.testing.assert_allclose(larger[0, :, 0, 0], np.arange(7) / 2, rtol=1e-6)
    assert u2net.resize_bilinear(jnp.ones((1, 1, 1, 2)), (3, 3)).sum() == 18


def test_imagenet_generator():
    generator = functools.partial(BIGGAN, layers=((True, 4, 1),), attention=0)
    ends = (u2net.Stage(3, 2, 4), u2net.Stage(3, 2, 4))
    saliency = functools.partial(u2net.U2Net, encoder=ends, decoder=ends[:1])
    module = imagenet_cgn.ImageNetGenerator(generator=generator, saliency=saliency)
    noise = mechanisms.same_for_all(jnp.ones((2, 8)))
    classes = {name: jax.nn.one_hot(jnp.array([i, i]), 10) for i, name in enumerate(mechanisms.MECHANISMS)}
    variables = random_variables(module)
    run = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    actual, updated = run(variables, noise, classes)
    assert actual.image.shape == actual.target.shape == (2, 8, 8, 3)
    assert actual.mask.shape == actual.background_saliency.shape == (2, 8, 8, 1)
    moved = {
        part: any(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(updated["batch_stats"][part]), jax.tree.leaves(before))
        )
        for part, before in variables["batch_stats"].items()
    }
    # What is never trained stays as it is.
    assert moved == {"shape": True, "texture": True, "background": True, "target": False, "u2net": False}
