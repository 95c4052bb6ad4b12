"""Counterfactual training images: which class loses its region, what fills it, and which labels are left."""

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import removal

SIDE, CELL, CLASSES = 8, 4, 3
SIZE = SIDE * CELL


def focus_at(places):
    """Log focus [b, n², k], as good as none but in one cell (column, row) of each class."""
    focus = np.full((len(places), SIDE * SIDE, CLASSES), -20.0, np.float32)
    for image, cells in enumerate(places):
        for k, (column, row) in enumerate(cells):
            focus[image, column * SIDE + row, k] = 0.0
    return jnp.asarray(focus)


def drawn(classes, seed=0):
    noise = jax.random.uniform(jax.random.key(seed), (len(classes), SIDE, SIDE))
    return removal.Draw(jnp.asarray(classes, jnp.int32), noise)


def test_classes_are_drawn_among_the_labels_at_the_rate():
    labels = jnp.tile(jnp.array([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]]), (1000, 1))
    classes = np.asarray(removal.draw(jax.random.key(0), labels, rate=0.6, side=2).classes).reshape(-1, 3)
    assert (classes[:, 1] == -1).all()
    assert set(classes[:, 2]) == {-1, 1}
    shares = [(classes[:, 0] == k).mean() for k in (-1, 0, 1, 2)]
    np.testing.assert_allclose(shares, [0.4, 0.3, 0, 0.3], atol=0.05)
    every = removal.draw(jax.random.key(1), labels, rate=1.0, side=2)
    assert (np.asarray(every.classes).reshape(-1, 3)[:, 0] >= 0).all()
    assert every.noise.shape == (3000, 2, 2)


def test_a_class_in_the_same_region_goes_too(rng):
    """Class 1 is beside class 0, class 2 two cells further."""
    images, labels = jnp.asarray(rng.random((3, SIZE, SIZE, 3)), jnp.float32), jnp.ones((3, CLASSES))
    focus = focus_at([[(1, 1), (2, 1), (4, 1)]] * 3)
    _, kept = removal.remove(images, labels, focus, drawn([0, 2, -1]))
    np.testing.assert_array_equal(kept, [[0, 0, 1], [1, 1, 0], [1, 1, 1]])


def test_unknown_labels_stay_unknown(rng):
    """Class 1 is in the region of class 0; the donor's class 2 is unknown, and comes with its class 0."""
    images, focus = (
        jnp.asarray(rng.random((2, SIZE, SIZE, 3)), jnp.float32),
        focus_at([[(1, 1)] * CLASSES] * 2),
    )
    labels = jnp.array([[1.0, 0, -1], [1, -1, 0]])
    _, kept = removal.remove(images, labels, focus, drawn([-1, 0]))
    np.testing.assert_array_equal(kept, [[1, 0, -1], [0, -1, 0]])
    exchanged = drawn([-1, 0])._replace(donated=jnp.array([-1, 0]))
    _, kept = removal.remove(images, labels, focus, exchanged)
    np.testing.assert_array_equal(kept, [[1, 0, -1], [1, -1, -1]])


def test_the_region_of_the_class_is_filled_from_where_no_class_is(rng):
    """Class 0 in red at (1, 6), class 1 in green at (5, 2), on grey noise; class 2 is absent."""
    cells = [(1, 6), (5, 2), (4, 4)]
    image = rng.uniform(0.3, 0.6, (SIZE, SIZE, 3)).astype(np.float32)
    for (column, row), colour in zip(cells[:2], ([1.0, 0, 0], [0, 1.0, 0]), strict=True):
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = colour
    images = jnp.asarray(np.stack([image] * 3))
    labels = jnp.tile(jnp.array([1.0, 1, 0]), (3, 1))
    after, kept = map(np.asarray, removal.remove(images, labels, focus_at([cells] * 3), drawn([0, 1, -1])))
    np.testing.assert_array_equal(kept, [[0, 1, 0], [1, 0, 0], [1, 1, 0]])
    red, green = ((after - colour) for colour in (np.float32([1, 0, 0]), np.float32([0, 1, 0])))
    left = [[int((abs(x[i]).max(axis=-1) < 0.2).sum()) for x in (red, green)] for i in range(3)]
    assert left == [[0, CELL**2], [CELL**2, 0], [CELL**2, CELL**2]]
    np.testing.assert_array_equal(after[2], image)
    # Pixels beyond the cells around the region are unchanged.
    changed = (after[0] != image).any(axis=-1)
    assert changed[6 * CELL : 7 * CELL, CELL : 2 * CELL].all()
    assert not changed[: 4 * CELL].any()
    assert not changed[:, 4 * CELL :].any()
    other, _ = removal.remove(images, labels, focus_at([cells] * 3), drawn([0, 1, -1], seed=1))
    assert (np.asarray(other)[0] != after[0]).any()


def test_the_overlap_is_the_badness_under_the_moved_region(rng):
    region, badness = rng.random((2, 5, 5)) < 0.3, rng.random((2, 5, 5)).astype(np.float32)
    result = removal.overlap(jnp.asarray(region), jnp.asarray(badness))
    for y, x in np.ndindex(5, 5):
        expected = (region * np.roll(badness, (-y, -x), (1, 2))).sum(axis=(1, 2))
        np.testing.assert_allclose(result[:, y, x], expected, atol=1e-5)


def test_a_class_of_the_image_before_takes_the_place(rng):
    """The donor has class 2 in white at (5, 2) and class 1 at (0, 7); the image loses class 0 at (1, 6)."""
    donor, image = rng.uniform(0.3, 0.6, (2, SIZE, SIZE, 3)).astype(np.float32)
    donor[2 * CELL : 3 * CELL, 5 * CELL : 6 * CELL] = 1
    images, labels = jnp.stack([donor, image]), jnp.array([[0.0, 1, 1], [1, 0, 0]])
    focus = focus_at([[(4, 4), (0, 7), (5, 2)], [(1, 6), (4, 4), (4, 4)]])
    removal_drawn = drawn([-1, 0])._replace(donated=jnp.array([-1, 2]))
    after, kept = map(np.asarray, removal.remove(images, labels, focus, removal_drawn))
    np.testing.assert_array_equal(kept, [[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(after[0], donor)
    assert (after[1, 6 * CELL : 7 * CELL, CELL : 2 * CELL] > 0.95).all()
    np.testing.assert_array_equal(after[1, : 4 * CELL], image[: 4 * CELL])


def test_only_a_class_that_the_image_does_not_have_takes_the_place():
    labels = jnp.tile(jnp.array([[1.0, 1, 0], [1, 0, 0]]), (500, 1))
    removal_drawn = removal.draw(jax.random.key(0), labels, rate=0.5, side=2, exchange=0.5)
    donated = np.asarray(removal_drawn.donated).reshape(-1, 2)
    assert (donated[:, 0] == -1).all()
    assert set(donated[:, 1]) == {-1, 1}
    np.testing.assert_allclose((donated[:, 1] == 1).mean(), 0.25, atol=0.05)
    assert (np.asarray(removal_drawn.classes).reshape(-1, 2)[donated >= 0] >= 0).all()
