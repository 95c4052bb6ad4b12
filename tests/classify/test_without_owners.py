"""Counterfactuals without the pixels of a class: toy scenes whose true effects are rendered."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import ownership, pat, scoring
from cfmlc_jax.classify.patching import DeviceCrops, HostViews, MapCells, Whole
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.classifier import Outputs

SIZE, SIDE = 64, 8
EXCLUSIVE = POOLINGS["exclusive"]
CELLS = MapCells(2, side=SIDE)
# Objects are squares in the colour of their class, at (top, left); the third class is in no scene.
OBJECTS = {0: (8, 10), 1: (38, 34)}
INK, BACKGROUND = 0.9, 0.3


def scene(without=None):
    """A view [1, 1, s, s, 3] of a shaded background with an object of class 0 and one of class 1."""
    image = np.full((SIZE, SIZE, 3), BACKGROUND, np.float32)
    image += np.linspace(-0.1, 0.1, SIZE, dtype=np.float32)[:, None, None]
    for k, (top, left) in OBJECTS.items():
        if k != without:
            image[top : top + 16, left : left + 16, k] = INK
    return image[None, None]


def apply(views):
    """A classifier without parameters: cells are scored by their colour; the whole image by its strongest pixels."""
    views = views[0] if isinstance(views, tuple) else views
    b, v = views.shape[:2]
    cells = views.reshape(b, v, SIDE, SIZE // SIDE, SIDE, SIZE // SIDE, 3).mean(axis=(3, 5))
    scores = 20 * (cells - 0.5).swapaxes(2, 3).reshape(b, v, SIDE * SIDE, 3)
    whole = 8 * (views**4).mean(axis=(2, 3)) - 1
    return Outputs(whole=whole, attention=whole, score=whole, cells=(scores, scores), features={})


@functools.partial(jax.jit, static_argnums=(1, 2))
def effects(views, classes=3, patching=CELLS):
    """Factual logits and estimated effects, two [b, k]; the cells say who owns a pixel."""
    outputs = apply(views)
    owned = ownership.owned(outputs, SIZE, patching=CELLS, pooling=EXCLUSIVE)
    factual = pat.predict(apply(patching.inputs(views)), patching, EXCLUSIVE)["combined"]
    colour = jnp.full(3, 0.5)
    options = {"patching": patching, "pooling": EXCLUSIVE}
    return factual, factual - ownership.without_owners(
        apply, views, factual, colour, owned, classes, **options
    )


def test_estimates_are_the_effects_of_rendered_removals():
    factual, estimated = effects(scene())
    for k in OBJECTS:
        true = (factual - effects(scene(without=k))[0])[0, k]
        assert true > 2
        np.testing.assert_allclose(estimated[0, k], true, rtol=0.05)


def test_without_owner_there_is_no_effect():
    factual, estimated = effects(scene())
    assert estimated[0, 2] == 0
    assert np.isfinite(factual).all()
    empty = jnp.full((1, 1, SIZE, SIZE, 3), BACKGROUND)
    np.testing.assert_array_equal(effects(empty)[1], 0)


def test_only_the_classes_with_the_most_evidence_are_removed():
    estimated, of_all = effects(scene(), 1)[1], effects(scene())[1]
    strongest = int(np.argmax(of_all))
    np.testing.assert_allclose(estimated[0, strongest], of_all[0, strongest], rtol=1e-5)
    assert np.count_nonzero(estimated) == 1


def test_another_classifier_can_say_who_owns_a_pixel():
    """The whole-image classifier has no patches; the cells of the other one are its owners."""
    factual, estimated = effects(scene(), 3, Whole(2))
    for k in OBJECTS:
        true = (factual - effects(scene(without=k), 3, Whole(2))[0])[0, k]
        np.testing.assert_allclose(estimated[0, k], true, rtol=0.05)


@pytest.mark.parametrize("patching", [HostViews(2), HostViews((2, 3), 0.25), DeviceCrops(2, size=SIZE)])
def test_patches_follow_the_changed_image(rng, patching):
    """All that depends on a changed pixel is cut anew; patches elsewhere stay as the host made them."""
    whole = jnp.asarray(rng.random((2, SIZE, SIZE, 3)), jnp.float32)
    changed = jnp.zeros((2, SIZE, SIZE), bool).at[:, 4:20, 6:12].set(True)
    new = jnp.where(changed[..., None], 0.5, whole)
    views = patching.null_inputs(whole)
    views = views[0] if isinstance(views, tuple) else views
    edited = ownership.edited(views, new, changed, patching)
    np.testing.assert_array_equal(edited[:, 0], new)
    expected = patching.null_inputs(new)
    expected = expected[0] if isinstance(expected, tuple) else expected
    np.testing.assert_allclose(edited, expected, atol=1e-6)
    if edited.shape[1] > 1:
        np.testing.assert_array_equal(edited[:, 4], views[:, 4])


def test_pixels_have_no_owner_without_patches():
    with pytest.raises(ValueError, match="only where there are patches"):
        ownership.owned(apply(scene()), SIZE, patching=Whole(2), pooling=EXCLUSIVE)


@pytest.fixture(scope="module")
def mesh():
    return meshes.create(devices=jax.devices()[:1])


def score_of(mesh, lender):
    model = SimpleNamespace(apply=lambda variables, inputs, train: apply(inputs))
    options = {"kinds": ("owner",), "null": "mean", "mesh": mesh, "classes": 3, "lender": lender}
    score = scoring.Score(model, Whole(2), EXCLUSIVE, **options)
    return score({}, jnp.full(3, 0.5), np.round(255 * scene()).astype(np.uint8))


def test_scores_with_lent_owners(mesh):
    """The lender's variables make its cells blind, or let them see."""
    model = SimpleNamespace(apply=lambda variables, inputs, train: apply(variables * inputs))
    seen, unseen = (
        score_of(mesh, scoring.Lender(model, jnp.float32(sight), CELLS, EXCLUSIVE)) for sight in (1, 0)
    )
    factual, expected = effects(np.round(255 * scene()) / np.float32(255), 3, Whole(2))
    np.testing.assert_allclose(seen["combined"], factual, rtol=1e-5)
    np.testing.assert_allclose(seen["combined"] - seen["null_owner"], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(unseen["combined"], unseen["null_owner"])


def test_a_lender_of_other_classes_is_refused(mesh):
    def of_two_classes(variables, inputs, train):
        outputs = apply(inputs)
        return outputs.replace(whole=outputs.whole[..., :2])

    lender = scoring.Lender(SimpleNamespace(apply=of_two_classes), None, CELLS, EXCLUSIVE)
    with pytest.raises(InputError, match=r"effect.owners has 2 classes, but the scored one has 3"):
        score_of(mesh, lender)


@pytest.mark.parametrize(
    ("cells", "size", "message"),
    [
        ("host", SIZE, "its patches are not cells of a map; give a checkpoint"),
        ("map", 2 * SIZE, "has views of 128 pixels, but the scored classifier has 64"),
    ],
)
def test_a_lender_that_cannot_own_is_refused(monkeypatch, mesh, cells, size, message):
    def parts_of(side):
        return SimpleNamespace(
            model=None,
            patching={"evaluate": Whole(2)},
            pooling=EXCLUSIVE,
            mesh=mesh,
            transforms={"evaluate": SimpleNamespace(size=side)},
        )

    lent = SimpleNamespace(patches=SimpleNamespace(source=cells, map="layer1"))
    opened = SimpleNamespace(path="runs/lender", config=lent, parts=parts_of(size))
    monkeypatch.setattr(scoring.checkpoints, "find_together", lambda path: path)
    monkeypatch.setattr(scoring.opening, "open", lambda path: opened)
    effect = SimpleNamespace(null="mean", classes=3, owners="runs/lender")
    with pytest.raises(InputError, match=message):
        scoring.score_step(SimpleNamespace(effect=effect), parts_of(SIZE), ("owner",))
