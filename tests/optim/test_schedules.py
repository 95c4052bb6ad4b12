"""Schedules by epoch against PyTorch's values, as schedules of the step, and SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.optim import build, schedules

GOLDEN = "longtail/schedules.npz"


def warmup_multistep():
    return schedules.warmup_multistep(0.2, epochs=200, milestones=(120, 160), factor=0.01)


def test_golden_tables(golden):
    z = golden(GOLDEN)
    np.testing.assert_array_equal(warmup_multistep(), z["warmup_multistep"])
    cosine = schedules.recursive_cosine(0.2, epochs=90)
    np.testing.assert_array_equal(cosine, z["cosine"])
    np.testing.assert_array_equal(schedules.moving_average_rates(cosine), z["mu"])


def test_closed_form_of_the_cosine():
    epoch = np.arange(1, 91)
    closed = 0.01 + (0.2 - 0.01) * (1 + np.cos(np.pi * epoch / 90)) / 2
    np.testing.assert_allclose(schedules.recursive_cosine(0.2, epochs=90, end=0.01), closed, rtol=1e-11)


def test_hand_values_without_warmup():
    table = schedules.warmup_multistep(1.0, epochs=4, milestones=(2, 4), factor=0.5, warmup_epochs=0)
    np.testing.assert_array_equal(table, [1, 0.5, 0.5, 0.25])


def test_hand_values_of_an_exponential_decay():
    np.testing.assert_array_equal(schedules.exponential(2.0, epochs=4, factor=0.5), [2, 1, 0.5, 0.25])
    np.testing.assert_array_equal(schedules.exponential(0.3, epochs=2, factor=1), [0.3, 0.3])


def test_schedule_of_steps():
    table = warmup_multistep()
    schedule = jax.jit(schedules.per_step(table, 3))
    for step, epoch in [(0, 0), (2, 0), (3, 1), (3 * 118 + 2, 118), (3 * 119, 119), (599, 199), (10**6, 199)]:
        assert schedule(step) == np.float32(table[epoch])
    with jax.enable_x64(True):
        assert schedules.per_step(table, 3)(0) == table[0]


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="over 0 epochs"):
        schedules.recursive_cosine(0.1, epochs=0)
    with pytest.raises(ValueError, match=r"\(5, 3\) must be in ascending order"):
        schedules.warmup_multistep(0.1, epochs=9, milestones=(5, 3), factor=0.1)
    with pytest.raises(ValueError, match="over 0 epochs"):
        schedules.exponential(0.1, epochs=0, factor=0.7)
    with pytest.raises(ValueError, match="0 steps per epoch"):
        schedules.per_step([0.1], 0)


def test_sgd_equals_pytorchs():
    """Velocity of gradients with decay, scaled by the rate of each step: three steps by hand."""
    table, momentum, decay = np.array([0.2, 0.02]), 0.9, 5e-4
    optimizer = build.sgd(learning_rate=schedules.per_step(table, 2))
    weights, state = jnp.array([1.0, -2.0]), None
    state = optimizer.init(weights)
    update = jax.jit(optimizer.update)
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(3):
        gradient = np.array([0.3, -0.1]) * (step + 1)
        updates, state = update(jnp.asarray(gradient, jnp.float32), state, weights)
        weights = optax.apply_updates(weights, updates)
        velocity = momentum * velocity + gradient + decay * expected
        expected = expected - table[step // 2] * velocity
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        values = build.hyperparameters(state)
        assert list(values) == ["lr", "momentum"]
        np.testing.assert_allclose([values["lr"], values["momentum"]], [table[step // 2], 0.9], rtol=1e-6)


def test_sgd_leaves_frozen_parameters_unchanged():
    params = {"kernel": jnp.ones(2), "scales": jnp.ones(2)}
    trainable_mask = lambda tree: {name: name == "scales" for name in tree}  # noqa: E731
    optimizer = build.sgd(learning_rate=0.5, weight_decay=0.1, trainable_mask=trainable_mask)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], [0, 0])
    np.testing.assert_allclose(updates["scales"], [-0.05, -0.05], rtol=1e-6)


def test_adadelta_is_pytorchs():
    """Means of squared gradients with decay and of squared steps, and a rate that drops: three steps by hand."""
    fields = configs.default().optim
    fields.name, fields.learning_rate, fields.weight_decay, fields.adadelta.drop = "adadelta", 2.0, 0.1, 0.7
    optimizer = build.create(fields, build.Length(epochs=2, steps=4))
    weights = jnp.array([1.0, -2.0])
    state = optimizer.init(weights)
    expected, squares, steps = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for rate, gradient in ((2.0, [0.5, 3.0]), (2.0, [-1.0, 0.1]), (1.4, [0.25, 0.5])):
        updates, state = optimizer.update(jnp.array(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        decayed = np.array(gradient) + 0.1 * expected
        squares = 0.9 * squares + 0.1 * decayed**2
        step = decayed * np.sqrt(steps + 1e-6) / np.sqrt(squares + 1e-6)
        steps = 0.9 * steps + 0.1 * step**2
        expected = expected - rate * step
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        np.testing.assert_allclose(build.hyperparameters(state)["lr"], rate, rtol=1e-6)


def test_adadelta_leaves_frozen_parameters():
    optimizer = build.adadelta(
        learning_rate=1.0,
        weight_decay=0.5,
        trainable_mask=lambda params: {"trained": True, "frozen": False},
    )
    params = {"trained": jnp.ones(1), "frozen": jnp.ones(1)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert updates["frozen"][0] == 0
    assert updates["trained"][0] < 0
