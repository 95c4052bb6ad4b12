"""Data that are still those of a checkpoint, and what has changed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cfmlc_jax.data import identity
from cfmlc_jax.data.sources.scenes import Scenes

IDS = ["a.jpg", "b.jpg", "c.jpg"]
LABELS = np.array([[1, 0], [0, 1], [1, 1]], np.uint8)


class Images(SimpleNamespace):
    def __len__(self):
        return len(self.ids)


def identity_of(ids=IDS, labels=LABELS):
    return {"train": identity.identity(Images(ids=ids, labels=labels))}


def changed(new, same_classes=True):
    return identity.changed_images(identity_of(), new, same_classes=same_classes)


def test_equal_data_have_one_identity_wherever_they_are():
    stored = json.loads(json.dumps(identity_of()))
    assert stored == identity_of(list(IDS), LABELS.astype(np.int64))
    assert identity.changed_images(stored, identity_of(), same_classes=True) == []
    scenes = identity.identity(Scenes("train", num_scenes=8))
    assert scenes == identity.identity(Scenes("train", num_scenes=8))
    assert scenes["images"] == 8


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (identity_of(IDS[:2], LABELS[:2]), "train has 2 images, not 3"),
        (identity_of([*IDS, "d.jpg"], LABELS[[0, 1, 2, 2]]), "train has 4 images, not 3"),
        (identity_of(["a.jpg", "b.jpg", "d.jpg"]), "train has other images, or another order of its 3"),
        (identity_of(IDS[::-1]), "train has other images, or another order of its 3"),
        (identity_of(labels=LABELS[::-1]), "train has other labels on its 3 images"),
        (identity_of(labels=LABELS[:, ::-1]), "train has other labels on its 3 images"),
    ],
)
def test_changed_data_is_named(new, words):
    assert changed(new) == [words]


def test_labels_of_other_classes_differ_anyhow():
    assert changed(identity_of(labels=LABELS[:, ::-1]), same_classes=False) == []


def test_splits_that_a_checkpoint_does_not_know():
    assert identity.changed_images({}, identity_of(), same_classes=True) == []
    assert identity.changed_images(identity_of(), {"val": identity_of()["train"]}, same_classes=True) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cat dog", "cat dog", []),
        ("cat dog", "cat dog owl", ["classes added: owl"]),
        ("cat dog owl", "cat owl", ["classes removed: dog"]),
        ("cat dog", "cat Dog", ["classes added: Dog", "classes removed: dog"]),
        ("cat dog owl", "dog cat owl", ["classes in another order: dog (1 -> 0), cat (0 -> 1)"]),
        ("a", "a b c d e f g", ["classes added: b, c, d, e, f and 1 more"]),
    ],
)
def test_classes_are_compared_by_name_and_place(old, new, words):
    assert identity.changed_classes(old.split(), new.split()) == words
