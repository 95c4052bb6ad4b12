"""The compiled steps: one device against eight, communication between devices, watched arrays."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import Training, asymmetric, mesh_of, objective

from cfmlc_jax import losses
from cfmlc_jax.causal import patches, views
from cfmlc_jax.causal.effects import null_images
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.masking import Masking
from cfmlc_jax.classify.patching import DeviceCrops, HostViews, MapCells, Whole
from cfmlc_jax.classify.scoring import Score as score_step
from cfmlc_jax.classify.update import ClassifierSystem
from cfmlc_jax.engine import flops, memory
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import RunError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import resnet, tresnet
from cfmlc_jax.models.classifier import Classifier, Outputs
from cfmlc_jax.models.heads import linear, map_cells
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen

SIZE, CLASSES = 32, 3
WIDEST = 16  # channels of the last norm of `tiny`
LEARNING_RATE = 0.01
PIVOT = POOLINGS["pivot"]


@pytest.fixture(autouse=True, scope="module")
def small_arrays_are_split():
    """Over "fsdp", as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "LEAST_SPLIT", 2)
        yield


def tiny(attention="cross"):
    backbone = resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=8, small_stem=True)
    return Classifier(backbone=backbone, head=linear.LinearHead(CLASSES, attention))


def batch_of(rng, images=8, size=SIZE):
    return {
        "views": rng.integers(0, 256, (images, 5, size, size, 3)).astype(np.uint8),
        "labels": (rng.random((images, CLASSES)) < 0.4).astype(np.float32),
    }


@functools.cache
def compiled(devices, fsdp, patching):
    """The system and the compiled step that all runs share."""
    return Training(
        tiny(),
        (1, 5, SIZE, SIZE, 3),
        objective(patching=patching),
        optax.sgd(LEARNING_RATE),
        mesh=mesh_of(devices, fsdp),
        ema_decay=0.75,
    )


HOST = HostViews(2)


def run_of(devices=1, fsdp=1, patching=HOST):
    """A tiny run by plain gradient descent, EMA decay 0.75, a log every 2 steps."""
    return copy.copy(compiled(devices, fsdp, patching)).start()


def host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 4)])
def test_a_step_on_eight_devices_equals_one_device(rng, devices, fsdp):
    batch = batch_of(rng)
    one, many = run_of(), run_of(devices, fsdp)
    before = host(one.variables)
    for run in (one, many):
        assert run.update(batch) == -1
    np.testing.assert_allclose(many.tally["loss"], one.tally["loss"], rtol=1e-5)
    # With plain gradient descent, the change of the parameters is the gradient times the learning rate.
    for ours, theirs, start in zip(
        *(jax.tree.leaves(host(x)) for x in (many.variables, one.variables, before)), strict=True
    ):
        np.testing.assert_allclose(ours - start, theirs - start, rtol=1e-5, atol=1e-5)


def test_parameters_are_created_sharded_over_fsdp():
    run = run_of(8, 4)
    kernel = run.variables["params"]["backbone"]["layer2_0"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 16, 16)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 4, 16)}
    assert run.update(batch_of(np.random.default_rng(0))) == -1


def test_no_pixels_cross_devices(rng):
    run = run_of(8)
    batch = meshes.to_devices(batch_of(rng), run.mesh)
    text = run.step.jitted.lower(run.state, batch).compile().as_text()
    assert "all-reduce" in text  # gradients and statistics are communicated
    gathered = re.findall(r"= \(?(\w+\[[\d,]*\])[^=]*? all-gather", text)
    largest = max(
        (
            np.prod([int(n) for n in shape[shape.index("[") + 1 : -1].split(",") if n] or [1])
            for shape in gathered
        ),
        default=0,
    )
    assert largest <= 8 * 3 * WIDEST  # each device's statistics of a norm
    assert "all-to-all" not in text


def test_loss_is_the_papers_sum(rng):
    run = run_of()
    batch = batch_of(rng)
    views = jnp.asarray(batch["views"], jnp.float32) / 255
    outputs, _ = run.model.apply(run.variables, views, train=True, mutable=["batch_stats"])
    patch = patches.patch_logits(outputs.attention[:, 1:], outputs.score[:, 1:])
    expected = [
        losses.asymmetric_loss(x, jnp.asarray(batch["labels"])).sum() for x in (outputs.whole[:, 0], patch)
    ]
    run.update(batch)
    np.testing.assert_allclose(run.tally["loss_whole"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(run.tally["loss_patch"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(run.tally["loss"], sum(expected), rtol=1e-5)


def test_average_holds_parameters_and_statistics(rng):
    run = run_of()
    before = host(run.variables)
    run.update(batch_of(rng))
    after, average = host(run.variables), host(run.average)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-5, atol=1e-7),
        average,
        before,
        after,
    )
    assert not np.array_equal(
        before["batch_stats"]["backbone"]["bn1"]["mean"], average["batch_stats"]["backbone"]["bn1"]["mean"]
    )


def test_tally_restarts_after_every_log(rng):
    run = run_of()
    counts = []
    for _ in range(5):
        run.update(batch_of(rng))
        counts.append(float(run.tally["steps"]))
    assert counts == [1, 2, 1, 2, 1]


def test_mean_colour_is_that_of_all_whole_views(rng):
    run = run_of()
    batches = [batch_of(rng) for _ in range(3)]
    for batch in batches:
        run.update(batch)
    whole = np.concatenate([batch["views"][:, 0] for batch in batches])
    np.testing.assert_allclose(run.mean_colour, whole.mean(axis=(0, 1, 2)) / 255, rtol=1e-5)


def test_it_learns(rng):
    """The labels depend on the colours of the view: the loss falls to a fraction."""
    run = run_of()
    labels = (rng.random((16, CLASSES)) < 0.5).astype(np.float32)
    views = np.broadcast_to((255 * labels)[:, None, None, None], (16, 5, SIZE, SIZE, 3)).astype(np.uint8)
    means = []
    for _ in range(40):
        run.update({"views": views, "labels": labels})
        means.append(float(run.tally["loss"] / run.tally["steps"]))  # of 1 or 2 steps
    assert means[-1] < 0.25 * means[0]


@pytest.mark.parametrize("where", ["loss", "gradient", "activations"])
def test_the_first_value_that_is_not_finite_is_named(rng, where):
    class Poisoned(HostViews):
        def evidence(self, outputs):
            attention, score = super().evidence(outputs)
            if where == "loss":
                score = score * jnp.inf
            if where == "gradient":
                # sqrt at 0: the value is finite, the derivative is not
                score = score + jnp.sqrt(0 * score)
            return attention, score

    run = run_of(patching=Poisoned(2))
    if where == "activations":
        kernel = run.variables["params"]["backbone"]["layer1_0"]["conv2"]["kernel"]
        run.variables["params"]["backbone"]["layer1_0"]["conv2"]["kernel"] = kernel * jnp.inf
    position = run.update(batch_of(rng))
    name = run.step.watched[position]
    assert name.startswith(
        {
            "loss": "loss/loss_patch",
            "gradient": "gradient/backbone/",
            "activations": "batch_stats/backbone/layer1_0/bn2/mean",
        }[where]
    )


@pytest.mark.parametrize("null", ["zeros", "mean", "blur"])
def test_scores_by_name_and_their_counterfactuals(rng, null):
    run = run_of()
    batch = batch_of(rng, images=4)
    kinds = ("whole", "pivot")
    score = score_step(run.model, HOST, PIVOT, kinds=kinds, null=null, mesh=run.mesh, attention=jnp.float16)
    logits = host(score(run.variables, jnp.full(3, 0.5), batch["views"]))
    attention = logits.pop("attention")
    assert (attention.shape, attention.dtype) == ((4, 4, CLASSES), np.float16)
    np.testing.assert_array_equal(logits.pop("pivot"), attention.argmax(axis=1))
    assert set(logits) == {"whole", "patch", "combined", "null_whole", "null_pivot"}
    assert all(x.shape == (4, CLASSES) for x in logits.values())
    np.testing.assert_allclose(logits["combined"], (logits["whole"] + logits["patch"]) / 2, rtol=1e-5)
    constant = np.ptp(logits["null_whole"], axis=0).max() < 1e-5
    assert constant == (null != "blur")
    assert np.ptp(logits["null_pivot"], axis=0).max() > 1e-4


def test_pivot_counterfactual_by_hand(rng):
    """By definition: each masked image goes through the whole pipeline, patch by patch."""
    run = run_of()
    views = batch_of(rng, images=2)["views"]
    score = score_step(run.model, HOST, PIVOT, kinds=("pivot",), null="zeros", mesh=run.mesh)
    ours = host(score(run.variables, jnp.zeros(3), views))["null_pivot"]
    factual = run.model.apply(run.variables, views / np.float32(255), train=False)
    weights = patches.patch_weights(factual.attention[:, 1:])
    expected = 0.0
    half = SIZE // 2
    for p in range(4):
        removed = views.copy()
        x, y = half * (p // 2), half * (p % 2)
        removed[:, 0, y : y + half, x : x + half] = 0
        removed[:, 1 + p] = 0
        outputs = run.model.apply(run.variables, removed / np.float32(255), train=False)
        combined = pat.predict(outputs, HOST, PIVOT)["combined"]
        expected += weights[:, p] * combined
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def apply(views):
    """A classifier without parameters: evidence for each colour, a nonlinear function of each view."""
    parts = views if isinstance(views, tuple) else (views,)
    peak, square = (
        jnp.concatenate([reduce(x) for x in parts], axis=1)
        for reduce in (lambda x: 5 * x.max(axis=(2, 3)), lambda x: (x**2).mean(axis=(2, 3)))
    )
    return Outputs(whole=square, attention=4 * peak + square, score=peak, cells=None, features={})


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def counterfactual(views, patching, pooling="pivot", null="zeros"):
    blank = null_images(views[:, 0], null, jnp.full(3, 0.3))
    outputs = apply(patching.inputs(views))
    options = {"patching": patching, "pooling": POOLINGS[pooling]}
    return pat.counterfactuals(apply, views, outputs, blank, ("pivot",), **options)["pivot"]


@functools.partial(jax.jit, static_argnums=1)
def apply_to_crops(images, crops):
    return apply(crops.inputs(images[:, None]))


def cut_anew(images, crops, pooling="pivot", null="zeros"):
    """The same by definition: each image without a patch is scored as a separate image."""
    pool, blank = POOLINGS[pooling], null_images(images, null, jnp.full(3, 0.3))
    focus = pool.focus(*crops.evidence(apply_to_crops(images, crops)))
    weights = np.asarray(jax.nn.softmax(focus, axis=1))
    expected = 0.0
    for p, (x0, y0, x1, y1) in enumerate(crops.boxes(images.shape[1])):
        without = np.array(images)
        without[:, y0:y1, x0:x1] = blank[:, y0:y1, x0:x1]
        expected += weights[:, p] * pat.predict(apply_to_crops(without, crops), crops, pool)["combined"]
    return expected


@pytest.mark.parametrize(
    ("grids", "overlap", "pooling", "null"),
    [
        ((2,), 0.0, "pivot", "mean"),
        ((2,), 0.25, "exclusive", "mean"),
        ((3,), 0.5, "pivot", "zeros"),
        ((2, 3), 0.0, "pivot", "blur"),
    ],
)
def test_pivot_counterfactual_is_that_of_patches_cut_anew(rng, grids, overlap, pooling, null):
    images = jnp.asarray(rng.random((2, 24, 24, 3)), jnp.float32)
    crops = DeviceCrops(grids, overlap, size=8)
    ours = counterfactual(images[:, None], crops, pooling, null)
    np.testing.assert_allclose(ours, cut_anew(images, crops, pooling, null), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grids", "overlap", "place"), [((2,), 0.25, 11), ((2,), 0.5, 11), ((2, 3), 0.0, 3), ((2, 3), 0.25, 2)]
)
def test_pivot_removal_leaves_nothing_of_the_target_in_host_patches(grids, overlap, place):
    """A red square is in several patches, of one or two scales: without the pivot its evidence is that of black."""
    square = slice(place, place + 2)
    images = jnp.zeros((1, 24, 24, 3)).at[:, square, square, 0].set(1.0).at[:, 20:22, 20:22, 1].set(1.0)
    patching = HostViews(grids, overlap)
    cut = views.split(images, grids, overlap=overlap, size=24)
    host_views = jnp.concatenate([images[:, None], cut], axis=1)
    assert (cut[..., 0].max(axis=(0, 2, 3)) > 0.5).sum() > 1
    ours = counterfactual(host_views, patching)
    assert pat.predict(apply(host_views), patching, PIVOT)["patch"][0, 0] > 4.9
    np.testing.assert_allclose(ours[0, 0], 0, atol=1e-5)
    np.testing.assert_allclose(ours, cut_anew(images, DeviceCrops(grids, overlap, size=24)), atol=1e-5)


def masked(seed, views, patching, *, rate, null, mean_colour):
    masking = Masking(rate, null, patching)
    return masking.apply(views, masking.draw(jax.random.key(seed), views), mean_colour)


def test_masking_in_training_leaves_nothing_of_the_target_in_patches(rng):
    """A fraction of the images loses a patch; neighbouring patches show the null in its box too."""
    images = jnp.zeros((32, 24, 24, 3)).at[:, 11:13, 11:13].set(1.0)
    patching = HostViews((2,), 0.5)
    cut = views.split(images, (2,), overlap=0.5, size=24)
    host_views = jnp.concatenate([images[:, None], cut], axis=1)
    shown = masked(0, host_views, patching, null="zeros", rate=0.5, mean_colour=jnp.zeros(3))
    left = np.asarray(shown.max(axis=(2, 3, 4)) > 0)
    assert 0.3 < left[:, 0].mean() < 0.7
    np.testing.assert_array_equal(left, np.repeat(left[:, :1], 5, axis=1))


@pytest.mark.parametrize("name", ["pat_i", "whole"])
def test_methods_with_one_head(rng, name):
    method, model = pat.METHODS[name], tiny("none")
    views = jnp.asarray(rng.random((2, 5, SIZE, SIZE, 3)), jnp.float32)
    outputs = model.apply(model.init(jax.random.key(0), views, train=False), views, train=False)
    labels = jnp.ones((2, CLASSES))
    assert pat.loss_names(method) == ("loss_whole",)
    parts = pat.loss_parts(outputs, labels, loss=asymmetric, patching=Whole(2), pooling=PIVOT)
    assert set(parts) == {"loss_whole"}
    logits = pat.predict(outputs, HOST if method.predict_patches else Whole(2), PIVOT)
    if name == "whole":
        assert set(logits) == {"whole", "combined"}
        np.testing.assert_array_equal(logits["combined"], outputs.whole[:, 0])
    else:
        expected = patches.patch_logits(outputs.whole[:, 1:], outputs.whole[:, 1:])
        np.testing.assert_allclose(logits["patch"], expected, rtol=1e-6)


TINY_RESNET = resnet.ResNet(
    stage_sizes=(1, 1),
    block=resnet.BasicBlock,
    width=8,
    small_stem=True,
    norm=functools.partial(BatchNorm, frozen=True),
)
TINY_TRESNET = tresnet.TResNet(stage_sizes=(1, 1), blocks=(tresnet.BasicBlock,) * 2, width=8)


def frozen_step(backbone, patterns, size=SIZE):
    """Training with the optimiser of the recipe, on one device."""
    model = Classifier(backbone, linear.LinearHead(CLASSES, "cross"), frozen=patterns)
    trainable_mask = functools.partial(frozen.trainable_mask, frozen=patterns)
    optimizer = optim.adamw_one_cycle(
        max_lr=0.1, total_steps=10, weight_decay=0.1, trainable_mask=trainable_mask
    )
    shape = (1, 5, size, size, 3)
    return Training(model, shape, objective(), optimizer, mesh=mesh_of(1), ema_decay=0.75).start()


@pytest.mark.parametrize(
    ("backbone", "patterns", "statistics_move"),
    [(TINY_RESNET, resnet.FROZEN, False), (TINY_TRESNET, tresnet.FROZEN, True)],
    ids=["resnet", "tresnet"],
)
def test_frozen_parameters_of_query2label_stay_bit_identical(rng, backbone, patterns, statistics_move):
    """No gradient and no decay; norm layers that are not frozen still update their statistics."""
    run = frozen_step(backbone, patterns)
    before = host(run.variables)
    for _ in range(2):
        run.update(batch_of(rng))
    after = host(run.variables)
    trained = frozen.trainable_mask(before["params"], patterns)
    assert len(set(jax.tree.leaves(trained))) == 2
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["params"], after["params"])
    assert moved == trained
    changed = jax.tree.map(lambda a, b: bool((a != b).all()), before["batch_stats"], after["batch_stats"])
    assert set(jax.tree.leaves(changed)) == {statistics_move}


def test_no_backward_pass_through_frozen_layers(rng):
    """The last two of five 3×3 convolutions are trained: gradients of two kernels, and of one input."""
    size = 2 * SIZE  # the last map is 4×4; on a smaller map a 3×3 convolution is a matrix product
    counts = []
    for patterns in (resnet.FROZEN, ()):
        run = frozen_step(TINY_RESNET, patterns, size)
        batch = meshes.to_devices(batch_of(rng, size=size), run.mesh)
        text = run.step.jitted.lower(run.state, batch).compile().as_text()
        counts.append(len(re.findall(r" convolution\(.*window=\{size=\d+x", text)))
    assert counts == [5 + 2 + 1, 5 + 5 + 4]


def trained_once(model, patching, batch, pooling="pivot"):
    """The loss of a first step, and the scores of the initial weights with counterfactuals "whole"."""
    run = Training(
        model,
        (1, *batch["views"].shape[1:]),
        objective(patching=patching, pooling=pooling),
        optax.sgd(LEARNING_RATE),
        mesh=mesh_of(1),
        ema_decay=0.75,
    ).start()
    options = {"kinds": ("whole",), "null": "mean", "attention": jnp.float32}
    score = score_step(model, patching, POOLINGS[pooling], mesh=run.mesh, **options)
    logits = host(score(run.variables, jnp.full(3, 0.5), batch["views"]))
    assert run.update(batch) == -1
    return float(run.tally["loss"]), logits


def test_patches_cut_on_the_device_are_those_of_the_host(rng):
    """Without resizing, host and device give the same pixels; only the batch statistics differ."""
    wholes = rng.integers(0, 256, (4, 1, SIZE, SIZE, 3)).astype(np.uint8)
    labels = (rng.random((4, CLASSES)) < 0.4).astype(np.float32)
    native = DeviceCrops((2,), size=SIZE // 2)
    loss, logits = trained_once(tiny(), native, {"views": wholes, "labels": labels})
    assert np.isfinite(loss)
    assert logits["attention"].shape == (4, 4, CLASSES)

    model = tiny()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1, SIZE, SIZE, 3)), train=False)
    half = SIZE // 2
    crops = [wholes[:, 0, y : y + half, x : x + half] for x in (0, half) for y in (0, half)]
    groups = [wholes / np.float32(255), np.stack(crops, axis=1) / np.float32(255)]
    expected = pat.predict(model.apply(variables, groups, train=False), native, PIVOT)
    for name, values in expected.items():
        np.testing.assert_allclose(logits[name], values, rtol=1e-4, atol=1e-5)
    assert np.ptp(logits["null_whole"], axis=0).max() < 1e-5


@pytest.mark.parametrize("pooling", patches.POOLINGS)
def test_cells_of_a_map_are_trained_and_scored(rng, pooling):
    backbone = resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=8, small_stem=True)
    model = Classifier(
        backbone=backbone,
        head=linear.LinearHead(CLASSES, "none"),
        cells=map_cells.MapCells(CLASSES, "cross", "layer1"),
    )
    batch = batch_of(rng, images=4)
    batch["views"] = batch["views"][:, :1]
    loss, logits = trained_once(model, MapCells(2, side=SIZE // 8), batch, pooling)
    assert np.isfinite(loss)
    assert logits["attention"].shape == (4, (SIZE // 8) ** 2, CLASSES)
    np.testing.assert_allclose(logits["combined"], (logits["whole"] + logits["patch"]) / 2, rtol=1e-5)
    assert np.ptp(logits["null_whole"], axis=0).max() < 1e-5


def test_counterfactuals_need_the_memory_of_one_forward_pass():
    """Of a ResNet-18: patches are removed one after the other. All at once need 1.39 times as much."""
    run, model, size = (
        run_of(),
        catalogue.create_model("resnet18", CLASSES, attention="cross", image_size=64),
        64,
    )
    views = jax.ShapeDtypeStruct((8, 5, size, size, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), views)

    def temporaries(kinds):
        score = score_step(model, HOST, PIVOT, kinds=kinds, null="mean", mesh=run.mesh)
        lowered = score.trace(variables, jax.ShapeDtypeStruct((3,), jnp.float32), views).lower()
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(("whole", "pivot")) < 1.1 * temporaries(())


@pytest.mark.parametrize("null", ["mean", "zeros", "blur"])
def test_a_null_that_is_the_same_for_all_images_is_not_scored_with_every_batch(null):
    run = run_of()
    views = jax.ShapeDtypeStruct((8, 5, SIZE, SIZE, 3), jnp.uint8)

    def operations(kinds):
        score = score_step(run.model, HOST, PIVOT, kinds=kinds, null=null, mesh=run.mesh)
        return flops.count(score.trace(run.variables, jnp.zeros(3), views).jaxpr)

    passes = operations(("whole",)) / operations(())
    if null == "blur":
        assert passes > 2  # the second pass, and the smoothing
    else:
        assert passes == 1


def test_what_was_compiled_ahead_is_not_compiled_again(rng):
    run, compiled = run_of(8), []
    score = score_step(run.model, HOST, PIVOT, kinds=("whole", "pivot"), null="mean", mesh=run.mesh)
    views = meshes.to_devices(batch_of(rng)["views"], run.mesh)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        (run.average, run.mean_colour, views),
    )
    memory.compile_within_memory(score.trace(*shapes).lower())

    def listen(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    score(run.average, run.mean_colour, views)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert [name for name in compiled if "score" in name] == []
    assert [name for name in compiled if "of_null" in name] != []


def test_a_program_that_is_larger_than_the_memory_is_refused(monkeypatch):
    lowered = jax.jit(jnp.cumsum).lower(jax.ShapeDtypeStruct((1024,), jnp.float32))
    memory.compile_within_memory(lowered)
    monkeypatch.setattr(memory, "limit_of", lambda device: 1024)
    with (
        pytest.raises(
            RunError,
            match=r"^evaluation: out of memory on the device.* needs .*, and this machine has 1 KiB; ",
        ),
        memory.explained("evaluation", "make it smaller"),
    ):
        memory.compile_within_memory(lowered)


@pytest.mark.parametrize("v", [1, 5])
def test_masking_replaces_a_patch_in_a_share_of_the_images(rng, v):
    """A step trains on the mean colour in place of the patch, in the whole view too; other pixels are unchanged."""
    b, half = 64, SIZE // 2
    views = jnp.asarray(rng.random((b, v, SIZE, SIZE, 3)), jnp.float32)
    colour = jnp.array([0.25, 0.5, 0.75])
    patching = HostViews((2,)) if v == 5 else Whole((2,))
    masked_views = masked(0, views, patching, null="mean", rate=0.5, mean_colour=colour)
    changed = np.asarray((masked_views != views).any(axis=(2, 3, 4)))
    assert 0.3 < changed[:, 0].mean() < 0.7
    for i in np.flatnonzero(changed[:, 0]):
        pixels = np.asarray((masked_views[i, 0] != views[i, 0]).any(axis=-1))
        where = [(x, y) for x in (0, 1) for y in (0, 1) if pixels[y * half, x * half]]
        (x, y), *others = where
        assert not others
        assert pixels.sum() == pixels[y * half :, x * half :][:half, :half].sum() == half**2
        np.testing.assert_array_equal(masked_views[i, 0, y * half, x * half], colour)
        if v == 5:
            np.testing.assert_array_equal(np.flatnonzero(changed[i, 1:]), [2 * x + y])
    drawn = [masked(s, views, patching, null="zeros", rate=1.0, mean_colour=colour) for s in (1, 2)]
    assert (drawn[0] != drawn[1]).any()


class Recording:
    """A classifier of three biases, which keeps the images and the dropout key of its last call."""

    frozen = ()

    def init(self, key, views, *, train):
        return {"params": {"bias": jnp.zeros(CLASSES)}}

    def apply(self, variables, views, *, train, mutable, rngs):
        self.views, self.dropout_key = views, rngs["dropout"]
        logits = jnp.broadcast_to(variables["params"]["bias"], (*views.shape[:2], CLASSES))
        return Outputs(whole=logits, attention=logits, score=logits, cells=None, features={}), {}


def recorded(views, seed, **options):
    """A classifier after one step on these views, and the new mean colour; a quarter was the old."""
    model = Recording()
    goal = objective("whole", loss=lambda logits, labels: (logits - labels).sum(), **options)
    system = ClassifierSystem(model, views.shape, goal, optax.sgd(0.0), ema_decay=0.75)
    learned = system.init(jax.random.key(0)) | {"mean_colour": jnp.full(3, 0.25)}
    batch = {"views": views, "labels": jnp.ones((len(views), CLASSES))}
    update = system.update(learned, batch, jax.random.key(seed), 1)
    return model, update.learned["mean_colour"]


@pytest.mark.parametrize(("null", "colour"), [("mean", 0.25), ("zeros", 0.0)])
def test_a_step_masks_patches_of_its_own_choice(rng, null, colour):
    """By its key, and independently of dropout. The mean colour is that of the views before."""
    views = jnp.asarray(rng.uniform(0.5, 1, (64, 5, 8, 8, 3)), jnp.float32)
    unmasked, mean_colour = recorded(views, 1)
    np.testing.assert_array_equal(unmasked.views, views)
    np.testing.assert_allclose(mean_colour, (views[:, 0].mean(axis=(0, 1, 2)) + 0.25) / 2, rtol=1e-6)
    (first, colour_too), (same, _), (other, _) = (
        recorded(views, seed, masking=Masking(0.5, null, HOST)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(colour_too, mean_colour)
    changed = first.views != views
    np.testing.assert_array_equal(first.views[changed], np.float32(colour))
    patches_masked = np.asarray(changed.any(axis=(2, 3, 4)))[:, 1:].sum(axis=0)
    assert 0.3 * 64 < patches_masked.sum() < 0.7 * 64
    assert (patches_masked > 0).all()
    np.testing.assert_array_equal(same.views, first.views)
    assert (other.views != first.views).any()
    assert (jax.random.key_data(other.dropout_key) != jax.random.key_data(first.dropout_key)).any()
    _, rate_key = jax.random.split(first.dropout_key)
    by_dropout = np.asarray(jax.random.bernoulli(rate_key, 0.5, (64,)))
    assert (by_dropout != np.asarray(changed.any(axis=(1, 2, 3, 4)))).any()
