"""Cue-conflict images and ImageNet-9 in their official layouts."""

import shutil

import numpy as np
import photo_folders
import pytest

from cfmlc_jax.data.sources import checks
from cfmlc_jax.data.sources.cue_conflict import FOLDER, CueConflict
from cfmlc_jax.data.sources.in9 import ImageNet9
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.imagenet_groups import CATEGORIES, IN9_CLASSES


@pytest.fixture
def conflict(tmp_path):
    return photo_folders.write_cue_conflict(tmp_path / "conflict")


@pytest.fixture
def in9(tmp_path):
    return photo_folders.write_in9(tmp_path / "in9")


def test_conflicting_images_are_read_with_both_cues(conflict):
    source = CueConflict(conflict)
    assert len(source) == 16  # those with the texture of their shape are left out
    np.testing.assert_array_equal(source.mechanisms, [[k, (k + 1) % 16] for k in range(16)])
    np.testing.assert_array_equal(source.labels, np.eye(16))
    assert source.class_names == tuple(CATEGORIES)
    assert source.ids[1] == "bear/bear1-bicycle3.png"
    assert source[1]["image"] == (conflict / "bear" / "bear1-bicycle3.png").read_bytes()
    assert "16 images" in checks.summary("test", source)


@pytest.mark.parametrize("above", [FOLDER, f"stimuli/{FOLDER}"])
def test_the_folder_is_found_in_the_repository(conflict, tmp_path, above):
    (tmp_path / "repository" / above).parent.mkdir(parents=True)
    shutil.move(conflict, tmp_path / "repository" / above)
    assert len(CueConflict(tmp_path / "repository")) == 16


def broken(conflict, change):
    if change == "nowhere":
        shutil.rmtree(conflict)
    elif change == "other folder":
        for name in CATEGORIES:
            shutil.rmtree(conflict / name)
    elif change == "two missing":
        for name in ("bear", "oven"):
            shutil.rmtree(conflict / name)
    elif change == "empty":
        for path in (conflict / "cat").iterdir():
            path.unlink()
    elif change == "agreeing":
        for path in conflict.rglob("*3.png"):
            path.unlink()
    else:
        (conflict / "dog" / "dog1-elephant3.png").rename(conflict / "dog" / change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nowhere", "conflict is not a folder"),
        ("other folder", "has none of the 16 categories' folders"),
        ("two missing", "has no folder bear, oven"),
        ("empty", "cat has no images"),
        ("agreeing", "every image has the texture of its shape"),
        ("dog1.png", "the name does not say shape and texture, as dog1-clock2.png"),
        ("dog1-tiger3.png", "the name does not say"),
        ("cat1-dog3.png", "the name does not say"),
    ],
)
def test_other_layouts_of_cue_conflicts_are_refused(conflict, change, message):
    broken(conflict, change)
    with pytest.raises(InputError, match=message) as refusal:
        CueConflict(conflict)
    assert "https://github.com/rgeirhos/texture-vs-shape" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_variations_of_imagenet9_are_read(in9):
    source = ImageNet9(in9, "mixed_same")
    assert len(source) == 10
    assert source.class_names == IN9_CLASSES
    np.testing.assert_array_equal(source.labels.argmax(axis=1), [0, *range(9)])
    assert source.ids[3] == "02_wheeled vehicle/fg_1_bg_2.JPEG"
    assert repr(source) != repr(ImageNet9(in9, "original"))
    in9.rename(in9.parent / "bg_challenge")
    assert len(ImageNet9(in9.parent, "original")) == 9


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (None, "in9 is not a folder"),
        ("mixed_same", "has no folder mixed_same/val"),
        ("mixed_same/val/08_fish", r"has 8 folders \(00_dog, 01_bird, 02_wheeled vehicle, …\), wanted nine"),
        ("mixed_same/val/05_insect/fg_1_bg_2.JPEG", "05_insect has no images"),
    ],
)
def test_other_layouts_of_imagenet9_are_refused(in9, folder, message):
    path = in9 / folder if folder else in9
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(InputError, match=message) as refusal:
        ImageNet9(in9, "mixed_same")
    assert "https://github.com/MadryLab/backgrounds_challenge" in str(refusal.value)
