"""Gradient accumulation: a step in micro-batches is the step of the whole batch."""

import copy
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import Training, mesh_of, objective

from cfmlc_jax import losses
from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import build, invariant
from cfmlc_jax.classify.deconfound import MeanFeature
from cfmlc_jax.classify.masking import Masking
from cfmlc_jax.classify.patching import HostViews, MapCells, Whole
from cfmlc_jax.classify.removing import Removal
from cfmlc_jax.classify.update import DROPOUT, ClassifierSystem
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier, Outputs
from cfmlc_jax.models.heads import linear
from cfmlc_jax.models.layers.norms import BatchNorm

REFERENCE = Path(__file__).parents[2] / "configs" / "reference"
IMAGES, SIZE, CLASSES, STEPS = 8, 32, 3, 3
# The recipes' backbones with one block for each of two stages, and an eighth of the width.
NARROW = {"stage_sizes": (1, 1), "width": 8}


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def wide(tree):
    def leaf(x):
        return jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)

    return jax.tree.map(leaf, tree)


def batches(rng, views):
    for _ in range(STEPS):
        yield {
            "views": jnp.asarray(rng.random((IMAGES, views, SIZE, SIZE, 3))),
            "labels": jnp.asarray(rng.random((IMAGES, CLASSES)) < 0.4, jnp.float64),
        }


def steps(system, batches):
    """What is learned, and the values, after each step, in float64."""
    learned = wide(jax.jit(system.init)(jax.random.key(0)))
    update = jax.jit(lambda *arguments: system.update(*arguments)._replace(watched=()))
    trajectory = []
    for i, batch in enumerate(batches):
        done = update(learned, batch, jax.random.fold_in(jax.random.key(1), i), jnp.int32(i))
        learned = done.learned
        trajectory.append(jax.tree.map(np.asarray, (learned, done.values)))
    return trajectory


def assert_same(ours, theirs, tolerance=1e-13):
    """Within a tolerance of the largest magnitude of each array; the mean feature is always computed in float32."""

    def leaf(path, a, b):
        if jnp.issubdtype(b.dtype, jnp.floating):
            least = 1e-6 if "mean_feature" in jax.tree_util.keystr(path) else 0
            np.testing.assert_allclose(a, b, rtol=0, atol=max(tolerance, least) * max(1, np.abs(b).max()))

    jax.tree_util.tree_map_with_path(leaf, ours, theirs)


def narrowed(monkeypatch, name):
    backbone = catalogue.BACKBONES[name]
    options = (
        dict(NARROW) if name == "resnet101" else NARROW | {"blocks": backbone.create.keywords["blocks"][-2:]}
    )
    create = functools.partial(backbone.create, **options)
    monkeypatch.setitem(catalogue.BACKBONES, name, backbone._replace(create=create))


def recipe(name, micro_batches):
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.views.image_size = SIZE
    config.train.batch_size = config.evaluate.batch_size = IMAGES
    config.train.micro_batches = micro_batches
    config.model.dtype = "float64"
    config.optim.ema_decay = 0.9
    return config


@pytest.mark.parametrize("name", ["resnet101", "tresnet_l", "tresnet_l_v2_in21k"])
def test_published_recipes_of_four_gpus_learn_the_same_in_four_micro_batches(monkeypatch, rng, name):
    """Each of the reference's GPUs is a norm group, and so a micro-batch."""
    narrowed(monkeypatch, recipe(name, 1).model.name)
    every = list(batches(rng, 5))
    trajectories = []
    for micro_batches in (1, 4):
        config = recipe(name, micro_batches)
        assert config.model.norm_groups == 4
        parts = build.create(config, CLASSES, jax.devices()[:1])
        system = build.system(config, parts, steps_per_epoch=10, class_counts=None, validation=None)
        trajectories.append(steps(system, every))
    # The first step; Adam divides by the root of squared gradients, which enlarges rounding where they are almost 0.
    for (ours, values), (theirs, expected), tolerance in zip(*reversed(trajectories), (1e-13, 1e-9, 1e-8)):
        assert_same(ours["variables"]["batch_stats"], theirs["variables"]["batch_stats"], tolerance)
        assert_same(values, expected, tolerance)


def test_micro_batches_that_the_devices_do_not_divide_are_refused():
    config = recipe("resnet101", 4)
    config.train.batch_size = config.evaluate.batch_size = 16
    message = "micro_batches 4 of train.batch_size 16 are of 4 images, which the 8 devices do not divide; try 1 or 2"
    with pytest.raises(InputError, match=message):
        build.require_model(config)


def tiny(number, groups, goal, *, head="linear", patches=None, views=1, **options):
    """A system of a small residual network, trained by plain gradient descent with learning rate 1."""
    frozen_norms = groups is None
    fields = catalogue.Model(
        "resnet_small", head, norm_groups=groups or 1, frozen_norms=frozen_norms, dtype="float64"
    )
    return ClassifierSystem(
        catalogue.create(fields, CLASSES, SIZE, patches, number),
        (1, views, SIZE, SIZE, 3),
        goal,
        optax.sgd(1.0),
        ema_decay=0.75,
        micro_batches=number,
        norm_groups=groups,
        **options,
    )


def one_hot(classes):
    return jnp.asarray(np.eye(CLASSES)[list(classes)])


def masked_patches(number):
    goal = objective(masking=Masking(0.5, "mean", HostViews(2)))
    return tiny(number, 4, goal, patches=catalogue.Patches(), views=5), {}


def removals(number):
    """Each micro-batch finds the classes that its images lose."""
    cells, pooling = MapCells(2, side=SIZE // 8), "exclusive"
    removal = Removal(0.5, 0, cells, POOLINGS[pooling])
    goal = objective(pooling=pooling, patching=cells, removal=removal)
    patches = catalogue.Patches(source="map", map="layer1", pooling="exclusive", branches="self")
    return tiny(number, 4, goal, patches=patches), {}


def long_tailed(number):
    """Rare classes weigh more, and they are in some of the micro-batches only."""
    section, counts = SimpleNamespace(name="weighted_cross_entropy"), [100, 10, 1]
    per_image = losses.create(section, counts)
    goal = objective(
        "whole",
        loss=lambda logits, labels: per_image(logits, labels).mean(),
        patching=Whole(2),
        weight=losses.batch_weight(section, counts),
    )
    system = tiny(number, 4, goal, head="causal_norm", mean_feature=MeanFeature(lambda step: 0.9))
    return system, {"labels": one_hot([0, 0, 0, 1, 0, 0, 2, 2])}


def mixed(number):
    """Of real and generated images, some micro-batches have none."""
    goal = invariant.InvariantObjective(
        loss=losses.cross_entropy, names=invariant.LOSSES, patching=Whole(2), pooling=POOLINGS["pivot"]
    )
    generated = jnp.asarray([True, False, False, False, True, True, False, True])
    classes = jnp.where(generated, jnp.arange(IMAGES) % CLASSES, -1)
    batch = {
        "labels": one_hot([0, 1, 2, 0, 1, 2, 0, 1]),
        "counterfactual": generated,
        "mechanisms": {
            name: jnp.where(generated, (classes + i) % CLASSES, -1) for i, name in enumerate(MECHANISMS)
        },
    }
    return tiny(number, None, goal, head="mechanisms"), batch


@pytest.mark.parametrize(
    ("build_system", "number"), [(masked_patches, 2), (removals, 2), (long_tailed, 2), (mixed, 4)]
)
def test_other_systems_learn_the_same_in_micro_batches(monkeypatch, rng, build_system, number):
    """Masking, removals, weighted means, means over images of a kind, the mean feature: all are of the whole batch."""
    monkeypatch.setitem(
        catalogue.BACKBONES,
        "resnet_small",
        catalogue.BACKBONES["resnet_small"]._replace(
            create=functools.partial(resnet.ResNetSmall, stage_sizes=(1,), width=8)
        ),
    )
    system, fields = build_system(1)
    every = [batch | fields for batch in batches(rng, 5 if build_system is masked_patches else 1)]
    whole = steps(system, every)
    parts = steps(build_system(number)[0], every)
    # Plain gradient descent: what is learned in the first step is the gradient.
    assert_same(parts[0], whole[0])
    assert_same(parts[1:], whole[1:], 1e-9)
    assert whole[0][1]["grad_norm"] > 0


class Noise:
    """A classifier of one bias, whose logits are noise of its dropout key."""

    frozen = ()

    def init(self, key, views, *, train):
        return {"params": {"bias": jnp.zeros(())}}

    def apply(self, variables, views, *, train, mutable, rngs):
        noise = jax.random.normal(rngs["dropout"], (*views.shape[:2], CLASSES))
        return Outputs(variables["params"]["bias"] + noise, None, None, cells=None, features={}), {}


def test_micro_batches_have_dropout_keys_of_their_own():
    goal = objective("whole", loss=lambda logits, labels: logits.sum(), patching=Whole(2))

    def loss(seed, number):
        system = ClassifierSystem(
            Noise(), (1, 1, 4, 4, 3), goal, optax.sgd(0.0), ema_decay=0.5, micro_batches=number
        )
        batch = {"views": jnp.zeros((4, 1, 4, 4, 3)), "labels": jnp.zeros((4, CLASSES))}
        return system.update(system.init(jax.random.key(0)), batch, jax.random.key(seed), 0).values["loss"]

    key = jax.random.key(1)
    np.testing.assert_allclose(loss(1, 1), jax.random.normal(key, (4, 1, CLASSES)).sum())
    parts = [
        jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, DROPOUT), n), (2, 1, CLASSES)).sum()
        for n in range(2)
    ]
    np.testing.assert_allclose(loss(1, 2), sum(parts))
    assert loss(1, 2) == loss(1, 2) != loss(2, 2)


@functools.cache
def trained(devices, number):
    """In float32, with four norm groups."""
    groups = 4
    with jax.enable_x64(False):
        norm = functools.partial(BatchNorm, groups=groups // number)
        backbone = resnet.ResNet(
            stage_sizes=(1,), block=resnet.BasicBlock, width=8, small_stem=True, norm=norm
        )
        return Training(
            Classifier(backbone=backbone, head=linear.LinearHead(CLASSES, "cross")),
            (1, 5, SIZE, SIZE, 3),
            objective(),
            optax.sgd(0.01),
            mesh=mesh_of(devices),
            ema_decay=0.75,
            micro_batches=number,
            norm_groups=groups,
        )


def small_batches(rng, count):
    for _ in range(count):
        yield {
            "views": rng.integers(0, 256, (16, 5, SIZE, SIZE, 3)).astype(np.uint8),
            "labels": (rng.random((16, CLASSES)) < 0.4).astype(np.float32),
        }


def test_micro_batches_over_eight_devices_are_those_of_one(rng):
    with jax.enable_x64(False):
        (batch,) = small_batches(rng, 1)
        runs = [copy.copy(trained(*sizes)).start() for sizes in ((1, 1), (8, 2))]
        for run in runs:
            assert run.update(batch) == -1
        one, eight = (jax.tree.map(np.asarray, run.state.learned["variables"]) for run in runs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eight, one)


def test_a_run_continued_from_its_state_is_bit_identical(rng):
    with jax.enable_x64(False):
        every = list(small_batches(rng, 4))
        unbroken, broken = (copy.copy(trained(8, 2)).start() for _ in range(2))
        for batch in every:
            unbroken.update(batch)
        for batch in every[:2]:
            broken.update(batch)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, broken.abstract)
        saved = jax.tree.map(np.asarray, broken.state)
        broken.state = jax.device_put(saved, shardings)
        for batch in every[2:]:
            broken.update(batch)
        jax.tree.map(np.testing.assert_array_equal, broken.state, unbroken.state)
