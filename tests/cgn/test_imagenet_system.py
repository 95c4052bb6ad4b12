"""The system of generators for ImageNet: sums of gradients, losses, what is trained, killed and resumed, half precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.imagenet import build, system
from cfmlc_jax.cgn.imagenet.train import batches
from cfmlc_jax.cgn.imagenet.validation import Validation
from cfmlc_jax.engine import hooks
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.run import Run, RunOptions, Schedule
from cfmlc_jax.errors import RunError
from cfmlc_jax.models.generators import imagenet_cgn, spectral, u2net, vgg16

# Images of 8 pixels, without attention: what compiles within seconds.
BIGGAN = {
    "num_classes": 10,
    "noise_size": 8,
    "class_size": 4,
    "width": 4,
    "layers": ((True, 4, 1),),
    "attention": -1,
    "num_statistics": 5,
}
STAGE = u2net.Stage(2, 2, 4)
SIZE = imagenet_cgn.Size(BIGGAN, {"encoder": (STAGE, STAGE), "decoder": (STAGE,)}, ((1, 4),) * 4)
FEATURES = vgg16.VGG16Features(SIZE.features)
OBJECTIVE = system.Objective(100.0, (4.0,) * 4, 300.0, 500.0, (0.0, 5.0, 5.0, 0.0), 2000.0, FEATURES)
# The text loss depends on the order of patches that are nearly alike, which rounding changes.
WITHOUT_TEXT = dataclasses.replace(OBJECTIVE, text=(0.0,) * 4)
RATES = {"shape": 1e-3, "texture": 3e-3, "background": 2e-3}
KEY = jax.random.key(3)


def trained(micro_batches=2, **options):
    adam = build.adam(RATES, b1=0.9, b2=0.999)
    generator = imagenet_cgn.create(SIZE)
    return system.ImageNetSystem(generator, WITHOUT_TEXT, adam, micro_batches=micro_batches, **options)


@functools.cache
def learned():
    """An initial state whose spectral norms have converged, so that a forward pass does not change them."""
    tree = flatten_dict(jax.device_get(jax.jit(trained().init)(jax.random.key(0))))
    for path in [path for path in tree if path[:2] == ("mechanisms", "params") and path[-1] == "raw_kernel"]:
        vectors = [_singular_vectors(np.asarray(spectral.as_matrix(kernel))) for kernel in tree[path]]
        for name, each in zip("vu", zip(*vectors)):
            tree["mechanisms", "batch_stats", *path[2:-1], name] = np.stack(each)
    return unflatten_dict(tree)


def _singular_vectors(matrix):
    left, _, right = np.linalg.svd(matrix)
    return left[:, 0].astype(np.float32), right[0].astype(np.float32)


@jax.jit
def update(learned):
    """A step of four images in two micro-batches: what is learned after it, its values, its gradients."""
    step = trained().update(learned, {"position": jnp.arange(4)}, KEY, 0)
    return step.learned, step.values, dict(step.watched)["gradient"]


@functools.cache
def first_step():
    return update(learned())


def assert_near(actual, expected, tolerance=1e-3):
    """Within the tolerance of the largest magnitude of each array."""
    scale = max(np.abs(np.asarray(expected)).max(), 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_gradients_of_micro_batches_sum_to_those_of_one_batch():
    """Of all images at once, by `ImageNetGenerator`, whose BigGANs are not stacked."""
    generator = imagenet_cgn.create(SIZE)
    draws = system.draw(KEY, jnp.arange(4), generator, 1.0)
    assert np.asarray(draws.classes).max() < 10
    assert np.abs(draws.noise).max() <= 2
    variables = system.generator_variables(learned())
    noise, classes = system.inputs(draws, generator)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        composed, _ = generator.apply(
            {"params": variables["params"] | params, "batch_stats": variables["batch_stats"]},
            mechanisms.same_for_all(noise),
            classes,
            train=True,
            mutable=["batch_stats"],
        )
        parts = WITHOUT_TEXT(learned()["features"], composed, draws.picks)
        means = {name: jnp.mean(part) for name, part in parts.items()}
        return sum(means.values()), means

    once, means = gradient({name: variables["params"][name] for name in mechanisms.MECHANISMS})
    _, values, sums = first_step()
    # The loss of a micro-batch is a mean: two of two images sum to twice the mean of four.
    for i, name in enumerate(mechanisms.MECHANISMS):
        jax.tree.map(lambda one, both, i=i: assert_near(both[i], 2 * one), once[name], sums)
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(once[name])))
        assert norm > 0.1
        np.testing.assert_allclose(values[f"grad_norm_{name}"], 2 * norm, rtol=1e-3)
    assert set(values) == set(trained().values)
    for name in system.PARTS:
        np.testing.assert_allclose(values[name], means[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["loss"], sum(means.values()), rtol=1e-4)


def test_only_the_mechanisms_are_trained():
    before, (after, _, _) = learned(), first_step()
    for name in ("target", "u2net", "features"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    # Adam's first step is of the learning rate's size, with the gradient's sign.
    steps = after["mechanisms"]["params"]["gen_z"]["raw_kernel"] - np.asarray(
        before["mechanisms"]["params"]["gen_z"]["raw_kernel"]
    )
    np.testing.assert_allclose(np.abs(steps).max(axis=(1, 2)), list(RATES.values()), rtol=1e-2)


def test_spectral_norms_take_a_step_for_each_micro_batch():
    start = jax.jit(trained().init)(jax.random.key(0))
    moved, _, _ = update(start)
    statistics = start["mechanisms"]["batch_stats"]["gen_z"]
    matrix = start["mechanisms"]["params"]["gen_z"]["raw_kernel"][0]
    u = statistics["u"][0]
    for _ in range(2):
        v = spectral.unit(matrix @ u)
        u = spectral.unit(v @ matrix)
    np.testing.assert_allclose(moved["mechanisms"]["batch_stats"]["gen_z"]["u"][0], u, rtol=1e-4, atol=1e-5)


def test_the_text_loss_trains_the_texture_alone():
    generator = imagenet_cgn.create(SIZE)
    shape = (2, 8, 8, 3)
    keys = jax.random.split(KEY, 4)
    images = dict(
        zip(
            ("shape", "foreground", "background", "target"),
            (jnp.tanh(jax.random.normal(k, shape)) for k in keys),
        )
    )
    u2net_variables = {collection: {"u2net": tree} for collection, tree in learned()["u2net"].items()}

    @jax.jit
    @jax.grad
    def gradient(images):
        composed = generator.apply(u2net_variables, **images, method="composed")
        picks = jnp.zeros((2, 36), jnp.int32)
        return OBJECTIVE(learned()["features"], composed, picks)["text"].sum()

    slopes = {name: float(np.abs(each).max()) for name, each in gradient(images).items()}
    assert slopes.pop("foreground") > 0
    assert set(slopes.values()) == {0.0}


def test_half_precision_is_near_single():
    draws = system.draw(KEY, jnp.arange(4), imagenet_cgn.create(SIZE), 0.5)

    def composed(dtype):
        generator = imagenet_cgn.create(SIZE, dtype=dtype)
        noise, classes = system.inputs(draws, generator)
        return jax.jit(lambda model: system.compose(generator, model, noise, classes, 0.5, train=False)[0])(
            learned()
        )

    single, half = composed(jnp.float32), composed(jnp.bfloat16)
    assert half.foreground.dtype == jnp.bfloat16
    # Masks, and with them composed images, stay exact near 0 and 1.
    assert half.mask.dtype == half.image.dtype == jnp.float32
    for name in ("image", "mask", "target"):
        difference = np.asarray(getattr(half, name), np.float32) - getattr(single, name)
        assert np.abs(difference).mean() < 0.02


class KilledError(Exception):
    pass


def run(workdir, *, devices, killed_at=None):
    """The state after a run of four steps, which is killed before a step, or resumed after it was killed."""

    def killed_batches(start):
        for step, batch in enumerate(batches(16, 4 - start), start):
            if step == killed_at:
                raise KilledError
            yield batch

    grid = np.array(jax.devices()[:devices]).reshape(-1, 1)
    mesh = jax.sharding.Mesh(grid, (meshes.DATA, meshes.FSDP), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    measure = lambda learned, poll: {"weights": {"negative_loss": 1.0}}  # noqa: E731
    schedule = Schedule(seed=1, epochs=2, steps_per_epoch=2, batch_size=16, log_every=2, checkpoint_every=1)
    options = RunOptions(
        meta={"class_names": []}, print_line=lambda line: None, preemption=hooks.Preemption()
    )
    each = Run(trained(measure=measure), killed_batches, schedule, workdir, mesh, options)
    try:
        each.resume()
        each.fit()
        return jax.device_get(each._state)
    finally:
        each.close()


def test_a_killed_and_resumed_run_equals_one_never_killed(tmp_path):
    whole = run(tmp_path / "whole", devices=1)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", devices=1, killed_at=3)
    resumed = run(tmp_path / "killed", devices=1)
    assert int(resumed.step) == 4
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_masks_that_are_all_alike_can_end_a_run():
    validation = Validation(
        imagenet_cgn.create(SIZE),
        OBJECTIVE,
        meshes.create(),
        truncation=1.0,
        num_images=4,
        batch_size=2,
        on_collapse="stop",
    )
    flat = jax.tree.map(np.zeros_like, learned()["u2net"]["params"])
    alike = learned() | {"u2net": learned()["u2net"] | {"params": flat}}
    with pytest.raises(
        RunError, match=r"all masks are alike: the deviation between them is 0\.000; start again"
    ):
        validation(alike, lambda: None)
