import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources.long_tailed_digits import SPLITS, LongTailedDigits
from cfmlc_jax.errors import InputError

COUNTS = [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]


@pytest.fixture(scope="module")
def train():
    return LongTailedDigits("train")


def test_the_default_tail(train):
    assert train.class_counts.tolist() == train.labels.sum(axis=0).tolist() == COUNTS
    assert len(train) == sum(COUNTS)


@pytest.mark.parametrize("split", SPLITS)
def test_source_contract(split):
    source = LongTailedDigits(split, most=20, ratio=0.2, num_test=3)
    expected = source.class_counts.sum() if split == "train" else 30
    assert len(source) == len(source.ids) == len(set(source.ids)) == expected
    assert source.labels.shape == (expected, 10)
    assert source.labels.dtype == np.uint8
    assert (source.labels.sum(axis=1) == 1).all()
    for index, record in enumerate(source):
        assert record["image"].shape == (32, 32, 3)
        assert record["image"].dtype == np.uint8
        assert (record["image"] == record["image"][:, :, :1]).all()
        np.testing.assert_array_equal(record["labels"], source.labels[index])
        assert record["id"] == source.ids[index]
        assert split in record["where"]
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    np.testing.assert_array_equal(copy[2]["image"], source[2]["image"])


def test_val_and_test_are_balanced_and_know_the_tail():
    for split in ("val", "test"):
        source = LongTailedDigits(split)
        assert source.labels.sum(axis=0).tolist() == [100] * 10
        assert source.class_counts.tolist() == COUNTS


def test_the_digit_is_whole_and_near_the_middle(train):
    inside = 0
    for index in range(300):
        box = train._scenes.objects(train._kept[index])[0].box
        for near, far, corner in zip(box[:2], box[2:], train._corner(index, box), strict=True):
            assert 0 <= corner <= near
            assert far <= corner + 32 <= 64
            inside += abs((near + far) / 2 - (corner + 16)) <= 2.5
    assert inside > 0.8 * 600


@pytest.mark.parametrize("size", [16, 48])
def test_other_sizes(size):
    source = LongTailedDigits("test", size=size, num_test=1)
    assert all(record["image"].shape == (size, size, 3) for record in source)


def test_the_digit_is_in_the_picture(train):
    """Pixels of its ink differ from what is behind it: levels of grey spread over the window."""
    contrast = [np.ptp(train[index]["image"].astype(int)) for index in range(100)]
    assert np.median(contrast) > 90
    assert min(contrast) > 30


def test_a_smaller_tail_is_a_part_of_a_larger():
    larger, smaller = (LongTailedDigits("train", most=50, ratio=ratio) for ratio in (0.5, 0.1))
    assert set(smaller.ids) < set(larger.ids)
    shared = larger.ids.index(smaller.ids[-1])
    np.testing.assert_array_equal(larger[shared]["image"], smaller[len(smaller) - 1]["image"])


def test_splits_share_no_handwriting():
    used = {}
    for split in SPLITS:
        source = LongTailedDigits(split, most=30, ratio=1.0, num_test=30)
        used[split] = {source._scenes.objects(scene)[0].instance for scene in source._kept}
        labels = [source._scenes.objects(scene)[0].digit for scene in source._kept]
        assert labels == source.labels.argmax(axis=1).tolist()
    assert not used["train"] & used["test"]
    assert not used["train"] & used["val"]


def test_seeds_and_ranks(train):
    other = LongTailedDigits("train", seed=1)
    assert other.class_counts.tolist() == COUNTS
    assert repr(other) != repr(train)
    assert not np.array_equal(other[0]["image"], train[0]["image"])
    shuffled = LongTailedDigits("train", shuffle_classes=True)
    assert sorted(shuffled.class_counts.tolist()) == sorted(COUNTS)
    assert shuffled.labels.sum(axis=0).tolist() == shuffled.class_counts.tolist() != COUNTS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "trian"}, "split 'trian' does not exist; use one of train, val, test"),
        ({"ratio": 0.0}, r"ratio 0.0 is not in \(0, 1\]"),
        ({"ratio": 0.0005}, "class 9 has no training image"),
        ({"most": 0}, "most 0 is not a number of images"),
        ({"num_test": 0}, "num_test 0 is not a number of images"),
        ({"size": 8}, "size 8 is out of range; give 16 to 256 pixels"),
    ],
)
def test_invalid_data_is_refused(fields, message):
    with pytest.raises(InputError, match=message) as error:
        LongTailedDigits(**({"split": "train"} | fields))
    assert "\n" not in str(error.value)
