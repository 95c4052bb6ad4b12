"""The system of counterfactual networks: killed and resumed, its parts, and its values."""

import jax
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors
from training import mesh_of

from cfmlc_jax.cgn import build, sheets, system
from cfmlc_jax.engine import hooks
from cfmlc_jax.engine.run import Run, RunOptions, Schedule
from cfmlc_jax.engine.system import Update
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import critics, mnist, vgg16
from cfmlc_jax.torch_weights import cgn

PER_EPOCH, EPOCHS, BATCH = 3, 2, 8


def digits_system(*, ema_decay=0.5, critic="linear", measure=lambda learned, poll: {}):
    networks = {
        "linear": critics.LinearCritic(ndf=8, dropout=0.5),
        "conv": critics.ConvCritic(ndf=2),
    }
    objective = system.Objective(0.3, (0.0, 0.05, 0.0, 0.05), vgg16.VGG16Features(((1, 2),) * 4))
    adam = optax.adam(1e-3, b1=0.5)
    return system.DigitsSystem(
        mnist.MnistGenerator(latent=4, ngf=2),
        networks[critic],
        objective,
        {"generator": adam, "critic": adam},
        ema_decay=ema_decay,
        measure=measure,
    )


def batch(step):
    random = np.random.default_rng(step)
    labels = random.integers(0, 10, BATCH)
    return {
        "views": random.integers(0, 256, (BATCH, 1, 32, 32, 3)).astype(np.uint8),
        "labels": np.eye(10, dtype=np.float32)[labels],
    }


class KilledError(Exception):
    pass


def train(workdir, *, killed_at=None):
    """The state after a run on two devices, which is killed before a step, or resumed after it was killed."""

    def batches(start):
        for step in range(start, PER_EPOCH * EPOCHS):
            if step == killed_at:
                raise KilledError
            yield batch(step)

    names, validated = [str(digit) for digit in range(10)], []
    artist = sheets.Artist(mnist.MnistGenerator(latent=4, ngf=2), mesh_of(1), names)

    def measure(learned, poll):
        validated.append(jax.device_get(learned["average"]))
        return {"average": {"shape_accuracy": 1.0}}

    def keep(epoch):
        sheets.write_epoch(workdir / "sheets", epoch, artist.after_epoch(validated[-1]))

    schedule = Schedule(
        seed=1, epochs=EPOCHS, steps_per_epoch=PER_EPOCH, batch_size=BATCH, log_every=2, checkpoint_every=2
    )
    options = RunOptions(
        meta={"class_names": []}, print_line=lambda line: None, preemption=hooks.Preemption(), keep=keep
    )
    run = Run(digits_system(critic="conv", measure=measure), batches, schedule, workdir, mesh_of(2), options)
    try:
        run.resume()
        run.fit()
        return jax.device_get(run._state)
    finally:
        run.close()


def pictures(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "sheets").iterdir())}


def test_a_killed_and_resumed_run_equals_one_never_killed(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KilledError):
        train(tmp_path / "killed", killed_at=5)
    assert list(pictures(tmp_path / "killed")) == ["epoch-001.png"]
    resumed = train(tmp_path / "killed")
    assert int(resumed.step) == PER_EPOCH * EPOCHS
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert list(pictures(tmp_path / "whole")) == ["epoch-001.png", "epoch-002.png"]
    assert pictures(tmp_path / "killed") == pictures(tmp_path / "whole")


@pytest.fixture(scope="module")
def first_step():
    trained = digits_system()
    learned = jax.jit(trained.init)(jax.random.key(0))

    @jax.jit
    def update(learned, batch):
        step = trained.update(learned, batch, jax.random.key(1), 0)
        return step.learned, step.values

    return trained, learned, Update(*update(learned, batch(0)))


def test_an_update_returns_its_values_in_order(first_step):
    trained, learned, update = first_step
    assert set(update.values) == set(trained.values)
    values = {name: float(value) for name, value in update.values.items()}
    assert values["loss"] == pytest.approx(values["adversarial"] + values["entropy"] + values["style"])
    assert values["loss_critic"] == pytest.approx((values["critic_real"] + values["critic_generated"]) / 2)
    assert jax.tree.structure(update.learned) == jax.tree.structure(learned)


def test_both_optimisers_step_and_the_features_stay(first_step):
    _, learned, update = first_step
    for part in ("generator", "critic"):
        kernels = [tree[part]["params"] for tree in (learned, update.learned)]
        assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, kernels)))
    jax.tree.map(np.testing.assert_array_equal, learned["features"], update.learned["features"])


def test_the_average_is_half_of_each_at_decay_one_half(first_step):
    _, learned, update = first_step
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, (old + new) / 2, atol=1e-6),
        update.learned["average"],
        learned["average"],
        update.learned["generator"],
    )


def test_a_checkpoint_needs_the_generator_alone_to_draw(first_step):
    trained, learned, _ = first_step
    model, rest = trained.split(learned)
    assert set(model) == {"generator", "average"}
    assert model | rest == learned


def test_images_in_bytes_are_the_same_after_two_conversions():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(system.in_bytes(system.in_signed_range(pixels)), pixels)
    assert np.asarray(system.in_bytes(np.array([-1.5, 1.5]))).tolist() == [0, 255]


def test_features_are_read_from_a_file_of_torchvision(tmp_path):
    features = vgg16.VGG16Features()
    abstract = jax.eval_shape(features.init, jax.random.key(0), *features.example())
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), abstract)
    safetensors.save_file(cgn.to_torch(features, variables), tmp_path / "vgg16.safetensors")
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device), abstract
    )
    loaded = build.vgg16_features(tmp_path / "vgg16.safetensors", wanted)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(
        InputError, match=r"features_from: .*nowhere.safetensors is no file; download https://.*vgg16"
    ):
        build.vgg16_features(tmp_path / "nowhere.safetensors", wanted)
