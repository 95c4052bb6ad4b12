"""One cycle against PyTorch's values at every step; the average; the optimiser's update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError
from cfmlc_jax.optim import build, ema, frozen, one_cycle


@pytest.mark.parametrize(("name", "total"), [("spe10_ep4", 40), ("spe7_ep80", 560), ("spe3_ep1", 3)])
def test_golden_schedule(golden, name, total):
    expected = golden("one_cycle.npz")[name]
    lr = one_cycle.learning_rate(1e-4, total_steps=total)
    beta1 = one_cycle.beta1(total_steps=total)
    with jax.enable_x64(True):
        np.testing.assert_allclose([lr(s) for s in range(total)], expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose([beta1(s) for s in range(total)], expected[:, 1], rtol=1e-12)
    np.testing.assert_allclose([lr(s) for s in range(total)], expected[:, 0], rtol=1e-6)


def test_schedule_stays_at_its_end():
    lr = one_cycle.learning_rate(1.0, total_steps=10)
    assert lr(9) == lr(50)


def test_a_schedule_may_begin_at_its_peak():
    lr = one_cycle.learning_rate(1.0, total_steps=10, pct_start=0.1)
    assert lr(0) == 1.0
    assert lr(1) < 1.0


def test_an_invalid_schedule_is_refused():
    with pytest.raises(ValueError, match="over 0 steps"):
        one_cycle.learning_rate(1.0, total_steps=0)


def test_average_moves_by_one_minus_decay():
    average = ema.update({"a": jnp.array([1.0])}, {"a": jnp.array([2.0])}, 0.9)
    np.testing.assert_allclose(average["a"], [1.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs", "final"), [(10, 4, 0.9978115558624268), (3, 1, 0.9998638033866882)]
)
def test_golden_weights_after_all_steps(steps_per_epoch, epochs, final):
    """Three weights from 1 with gradient 0.1·(step + 1): PyTorch's AdamW and OneCycleLR end at `final`."""
    total = steps_per_epoch * epochs
    optimizer = build.adamw_one_cycle(max_lr=1e-4, total_steps=total)
    weights = jnp.ones(3)
    state = optimizer.init(weights)
    update = jax.jit(optimizer.update)
    for step in range(total):
        updates, state = update(jnp.full(3, 0.1 * (step + 1)), state, weights)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(weights, final, rtol=2e-7)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 10.0])
def test_gradients_are_clipped_to_their_global_norm(clip_norm):
    """3-4-5: a norm of 5 is scaled to 1, and is unchanged by a limit of 10. The state is the optimiser's own."""
    optim = configs.default().optim
    optim.name, optim.clip_norm, optim.weight_decay = "sgd", clip_norm, 0.0
    weights = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    optimizer = build.create(optim, build.Length(epochs=200, steps=200))
    state = optimizer.init(weights)
    updates, state = optimizer.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, state, weights)
    assert set(build.hyperparameters(state)) == {"lr", "momentum"}
    factor = -build.hyperparameters(state)["lr"] * (0.2 if clip_norm == 1 else 1)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], factor * np.array([3.0, 4.0]), rtol=1e-6)
    optim.clip_norm = 0.0
    plain = build.create(optim, build.Length(epochs=200, steps=200)).init(weights)
    assert jax.tree.structure(state) == jax.tree.structure(plain)


def test_values_in_use_are_reported():
    optimizer = build.adamw_one_cycle(max_lr=1e-4, total_steps=10)
    state = optimizer.init(jnp.ones(1))
    _, state = optimizer.update(jnp.ones(1), state, jnp.ones(1))
    values = build.hyperparameters(state)
    np.testing.assert_allclose([values["lr"], values["beta1"]], [4e-6, 0.95], rtol=1e-6)


PARAMS = {
    "backbone": {"conv1": {"kernel": jnp.ones(2)}, "bn1": {"scale": jnp.ones(3)}},
    "head": {"b": jnp.ones(1)},
}


def test_whole_paths_are_frozen():
    trained = frozen.trainable_mask(PARAMS, (r"backbone/(conv1|layer1_\d+)/.*", "head/b"))
    assert trained == {"backbone": {"conv1": {"kernel": False}, "bn1": {"scale": True}}, "head": {"b": False}}


def test_no_patterns_freeze_no_parameters():
    assert all(jax.tree.leaves(frozen.trainable_mask(PARAMS, ())))


def test_a_pattern_that_matches_no_parameter_is_refused():
    with pytest.raises(InputError, match=r"no parameter matches 'conv1'; .* such as 'backbone/"):
        frozen.trainable_mask(PARAMS, ("head/b", "conv1"))


def test_held_parameters_have_no_gradient():
    def loss(params):
        return sum(
            (leaf**2).sum() for leaf in jax.tree.leaves(frozen.stop_frozen_gradients(params, ("head/.*",)))
        )

    gradient = jax.grad(loss)(PARAMS)
    assert loss(PARAMS) == 6
    np.testing.assert_array_equal(gradient["head"]["b"], [0])
    np.testing.assert_array_equal(gradient["backbone"]["bn1"]["scale"], [2, 2, 2])


def test_frozen_parameters_do_not_decay():
    trainable_mask = functools.partial(frozen.trainable_mask, frozen=("head/b",))
    optimizer = build.adamw_one_cycle(
        max_lr=1.0, total_steps=10, weight_decay=0.5, trainable_mask=trainable_mask
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["head"]["b"], [0])
    np.testing.assert_allclose(updates["backbone"]["bn1"]["scale"], -0.5 * 0.04, rtol=1e-5)


def test_an_average_that_stays_at_its_beginning_is_reported():
    assert ema.slowness(0.9997, 54) == (
        "few steps: after 54 the averaged weights, which predict, would still be 98% the initial ones; set "
        "config.optim.ema_decay to 0.91, say"
    )
    assert ema.slowness(0.9997, 3) == (
        "few steps: after 3 the averaged weights, which predict, would still be 100% the initial ones; set "
        "config.optim.ema_decay to 0.5, say"
    )
    for decay, steps in ((0.9997, 51_000), (0.97, 90), (0.0, 1)):
        assert ema.slowness(decay, steps) == ""
