"""Objects cut out of photos: poses, appearances, their scenes, and the files that they come from."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.data import build as data
from cfmlc_jax.data.class_names import KNOWN
from cfmlc_jax.data.sizes import Size, require
from cfmlc_jax.data.sources import cut_outs, embedded
from cfmlc_jax.data.sources.scenes import PHOTOS, SPLITS, Scenes
from cfmlc_jax.errors import InputError

COIN = cut_outs.CLASS_NAMES.index("coin")
ASSETS = Path(cut_outs.__file__).parents[1] / "assets"


def sha256(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


@pytest.fixture(scope="module")
def builder():
    path = Path(__file__).parents[2] / "scripts" / "build_scene_assets.py"
    spec = importlib.util.spec_from_file_location("build_scene_assets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Scenes


@pytest.mark.parametrize("split", SPLITS)
def test_source_contract(split):
    source = Scenes(split, num_scenes=8, objects=PHOTOS)
    assert source.class_names == cut_outs.CLASS_NAMES == KNOWN["photo_scenes"]
    np.testing.assert_array_equal(source.labels, Scenes(split, num_scenes=8).labels)
    boxes = source.boxes()
    for index, record in enumerate(source):
        assert (record["image"].shape, record["image"].dtype) == ((64, 64, 3), np.uint8)
        corners, classes = boxes.of_image(index)
        assert sorted(classes) == list(np.flatnonzero(source.labels[index]))
        assert (corners >= 0).all()
        assert (corners <= 64).all()


def test_the_same_scenes_on_every_machine():
    """A hash that Pillow 11.0 with NumPy 2.0 and 13.0 with 2.4 agree on; another value means other data."""
    pixels = sha256(*(Scenes(split, objects=PHOTOS).render(index) for split in SPLITS for index in range(20)))
    assert pixels == "ac9757f188df5bde7c7839033c264e0fac98fdb30e492a423581d3d35a1381d4"


def test_a_removed_object_leaves_everything_else_unchanged():
    source = Scenes("test_balanced", num_scenes=30, objects=PHOTOS)
    changed = 0
    for index in range(30):
        whole = source.render(index)
        for position, mask in enumerate(source.masks(index)):
            without = source.render(index, without=position)
            np.testing.assert_array_equal(without[~mask], whole[~mask])
            changed += (without != whole).any()
    assert changed > 50


def test_repr_and_unknown_objects():
    assert repr(Scenes("val", num_scenes=3, objects=PHOTOS)).endswith("max_digits=4, objects='photos')")
    with pytest.raises(InputError, match="no objects 'photo'; choose one of digits, photos"):
        Scenes("val", objects="photo")


def test_the_configuration_opens_them():
    config = configs.default()
    config.data.source = "photo_scenes"
    config.data.scenes.num_train = 5
    config.data.scenes.num_test = 3
    assert repr(data.source(config.data, "train")).startswith(
        "Scenes('train', bias=0.9, size=64, num_scenes=5"
    )
    assert data.source(config.data, "test_conflict").kind == PHOTOS
    assert require(config.data) == Size(10, 5)


# Poses and appearances


@pytest.mark.parametrize("label", range(10))
def test_every_pose_shows_a_part_of_an_object(label):
    for pose in cut_outs.poses(label):
        left, top, right, bottom = pose.window
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert min(right - left, bottom - top) >= cut_outs._LEAST_SHOWN
        assert abs(pose.rotation) <= cut_outs._STEEPEST
        assert pose.cut_out < len(cut_outs.cut_outs(label))
    for pose in cut_outs.poses(label)[::10]:
        alpha = cut_outs._turned(label, pose, 9)[..., 3]
        assert (alpha >= cut_outs.FAINTEST).sum() > 0.1 * 9**2


def test_parts_share_no_pose_and_no_coin():
    poses = cut_outs.poses(COIN)
    assert len(cut_outs.cut_outs(COIN)) == 24
    coins = {part: {pose.cut_out for pose in poses[own]} for part, own in cut_outs.POSES.items()}
    assert {part: len(own) for part, own in coins.items()} == {"train": 16, "val": 3, "test": 5}
    assert len(set.union(*coins.values())) == 24
    assert len({pose for label in range(10) for pose in cut_outs.poses(label)[:350]}) > 3400
    for label in range(10):
        own = cut_outs.poses(label)
        assert not set(own[cut_outs.POSES["train"]]) & set(own[cut_outs.POSES["test"]])
    for split, part in (("train", "train"), ("val", "val"), ("test_iid", "test")):
        source = Scenes(split, num_scenes=30, objects=PHOTOS)
        used = {item.instance for index in range(30) for item in source.objects(index)}
        assert used <= set(range(500)[cut_outs.POSES[part]])


@pytest.mark.parametrize("size", [32, 64, 200])
def test_appearances_fit_into_their_scenes(size):
    random = np.random.default_rng(0)
    for label in range(10):
        for _ in range(5):
            image, alpha, _, _ = cut_outs.appearance(
                "train", label, size, random.random(cut_outs.DRAWS).tolist()
            )
            assert image.size == alpha.size
            assert max(alpha.size) <= size * 3 // 4
            assert np.asarray(alpha).max() == 255


def test_without_rotation_and_at_its_own_size_a_picture_is_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4)).astype(np.int32)
    pixels[..., 3] = 255
    sampled = cut_outs._sampled(np.concatenate([255 * pixels[..., :3], pixels[..., 3:]], axis=2), (9, 9), 0)
    np.testing.assert_array_equal(sampled[1:10, 1:10], pixels)
    assert sampled[..., 3].sum() == 255 * 81


def test_a_rotation_turns_clockwise_by_the_stated_angle():
    """k 32 is a quarter turn: rows become columns."""
    pixels = np.zeros((9, 9, 4), np.int32)
    pixels[..., 3] = 255
    pixels[1, 4, 0] = 255 * 255  # a red point above the middle
    turned = cut_outs._sampled(pixels, (9, 9), 32)
    y, x = np.unravel_index(turned[..., 0].argmax(), turned.shape[:2])
    middle = (len(turned) - 1) / 2
    assert abs(y - middle) <= 0.5
    assert abs(abs(x - middle) - 3) <= 0.5


# Files


def test_assets_are_the_ones_built(builder):
    """A hash of the arrays of a build from the wheels that the builder names."""
    arrays = embedded.arrays("cut_outs.npz")
    assert (ASSETS / "cut_outs.npz").stat().st_size < 400_000
    assert (
        sha256(*(arrays[name] for name in sorted(arrays)))
        == "50fdbaaa0cd3295fb489dacc63aaf93551c71ff73ea142361b5080830674fb64"
    )
    assert {name.rpartition("_")[0] for name in arrays} == {*cut_outs.CLASS_NAMES, *builder.BACKGROUNDS}
    assert {*builder.OUTLINES, *builder.DISCS} == set(cut_outs.CLASS_NAMES)
    for part in ("train", "test"):
        assert min(min(photo.shape[:2]) for photo in cut_outs.backgrounds(part)) >= 64


def test_builder_cuts_out_polygons_and_discs(builder):
    photo = np.full((100, 200, 3), (10, 20, 30), np.uint8)
    square = builder.cut_out(photo, [(20, 10), (120, 10), (120, 60), (20, 60)])
    assert square.shape == (32, 64, 4)
    assert (square[4:28, 4:60] == (10, 20, 30, 255)).all()
    disc = builder.cut_out(photo, [(50, 50, 20)])
    assert abs(int((disc[..., 3] > 127).sum()) - np.pi * 20**2) < 40
    assert (disc[disc[..., 3] == 0] == 0).all()


def test_notice_names_every_source(builder):
    notice = (ASSETS / "NOTICE.md").read_text(encoding="utf-8")
    for name in (*cut_outs.CLASS_NAMES, *builder.BACKGROUNDS):
        assert f"| {name} |" in notice
    for member, digest in builder.SHA256.items():
        assert Path(member).name in notice, digest
