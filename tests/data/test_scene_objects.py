"""Crops of the objects of scenes: what they show, whose they are, and their masks."""

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources import scene_objects
from cfmlc_jax.data.sources.scene_objects import SIZE, SceneObjects
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError

SCENES = Scenes("train", num_scenes=60, bias=0.9)


@pytest.fixture(scope="module")
def source():
    return SceneObjects(SCENES)


def test_a_crop_shows_its_object_alone(source):
    assert len(source) > 20
    for i in range(len(source)):
        image, place = source.ids[i].rsplit("-", 1)
        scene, objects = SCENES.painted(SCENES.ids.index(image))
        left, top, right, bottom = source.windows[i].tolist()
        assert 0 <= left < right <= SCENES.size
        assert 0 <= top < bottom <= SCENES.size
        own = objects.pop(int(place))
        assert source.labels[i].tolist() == [int(digit == own.digit) for digit in range(10)]
        assert left <= own.box[0] < own.box[2] <= right
        assert top <= own.box[1] < own.box[3] <= bottom
        assert right - left == bottom - top
        for other in objects:
            assert not scene_objects.overlaps((left, top, right, bottom), other.box)
        if i < 5:
            crop = Image.fromarray(scene[top:bottom, left:right]).resize(
                (SIZE, SIZE), Image.Resampling.NEAREST
            )
            shown = scene_objects.bright_on_dark(np.asarray(crop)).astype(float)
            assert np.abs(shown - source[i]["image"]).mean() < 12


def test_an_object_that_stands_alone_is_used(source):
    expected = 0
    for index in range(len(SCENES)):
        boxes = [item.box for item in SCENES.objects(index)]
        for box in boxes:
            window = scene_objects.window(box)
            others = [other for other in boxes if other != box]
            inside = min(window) >= 0 and max(window) <= SCENES.size
            expected += inside and not any(scene_objects.overlaps(window, other) for other in others)
    assert len(source) == expected


def test_masks_are_where_the_object_is(source):
    for i in range(10):
        image, place = source.ids[i].rsplit("-", 1)
        index = SCENES.ids.index(image)
        mask = source.mask(i)
        without = Image.fromarray(SCENES.render(index, without=int(place)))
        box = source.windows[i].tolist()
        covered = np.asarray(without.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        scene = Image.fromarray(SCENES.render(index))
        changed = covered != np.asarray(scene.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        assert (mask.dtype, mask.shape) == (bool, (SIZE, SIZE))
        assert 0.03 < mask.mean() < 0.7
        assert changed.any(axis=-1)[mask].mean() > 0.97


def test_crops_are_bright_on_dark(source):
    for crop in (np.full((32, 32, 3), 40, np.uint8), np.full((32, 32, 3), 215, np.uint8)):
        crop[8:24, 8:24] = 255 - crop[0, 0]
        shown = scene_objects.bright_on_dark(crop)
        assert (shown[16, 16, 0], shown[0, 0, 0]) == (215, 40)
    brighter = [
        source[i]["image"][source.mask(i)].mean() > source[i]["image"][~source.mask(i)].mean()
        for i in range(len(source))
    ]
    assert np.mean(brighter) > 0.9


def test_as_a_data_set(source):
    fields = configs.default("cgn").data
    fields.source = "scene_objects"
    fields.scenes.num_train = 60
    opened = data.mechanism_source(fields, "train")
    assert repr(opened) == repr(source)
    assert opened.ids == source.ids
    np.testing.assert_array_equal(opened.mechanisms[:, 0], source.labels.argmax(axis=1))
    assert (opened.mechanisms == opened.mechanisms[:, :1]).all()
    record = opened[-1]
    assert (record["id"], record["image"].shape, record["image"].dtype) == (
        source.ids[-1],
        (32, 32, 3),
        np.uint8,
    )
    assert "object" in record["where"]


def test_scenes_in_which_no_object_stands_alone_are_refused():
    crowded = Scenes("train", num_scenes=1, bias=1.0, min_digits=5, max_digits=5)
    with pytest.raises(InputError, match=r"no object of Scenes\(.* stands alone; give more scenes"):
        SceneObjects(crowded)
