"""Records of regions: what a detector wrote is what is read; damaged folders; batches of training."""

import json

import numpy as np
import pytest

from cfmlc_jax.data.regions import sampling
from cfmlc_jax.data.regions.assign import assign
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.regions.pooling import pool
from cfmlc_jax.data.regions.records import INDEX, RegionRecords, Writer
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.errors import InputError

CATEGORIES = (Category(3, "a", "r"), Category(7, "b", "c"), Category(8, "c", "f"))
COUNTS = (4, 0, 3, 6, 1)


def regions(rng, count, shape=(5,), stages=2):
    features = rng.normal(size=(count, stages, *shape))
    return features, rng.uniform(0, 50, (count, 4)), rng.integers(-1, 4, (count, stages))


def write(folder, rng, *, shape=(5,), **options):
    """Records of five images in three shards; the arrays that were given to the writer."""
    writer = Writer(
        folder, shape=shape, categories=CATEGORIES, stages=2, shard_regions=5, detector="a test", **options
    )
    given = [regions(rng, count, shape) for count in COUNTS]
    for i, arrays in enumerate(given):
        writer.add(100 - i, *arrays)
    writer.close()
    return given


@pytest.mark.parametrize("shape", [(5,), (2, 2, 3)])
def test_what_was_written_is_read(tmp_path, rng, shape):
    given = write(tmp_path / "r", rng, shape=shape, dtype="float32")
    records = RegionRecords(tmp_path / "r")
    assert (len(records), records.shape, records.stages) == (5, shape, 2)
    assert records.categories == CATEGORIES
    assert records.counts.tolist() == list(COUNTS)
    assert records.image_ids.tolist() == [100, 99, 98, 97, 96]
    for i, (features, boxes, labels) in enumerate(given):
        np.testing.assert_array_equal(records[i].features, features.astype(np.float32))
        np.testing.assert_array_equal(records[i].boxes, boxes.astype(np.float32))
        np.testing.assert_array_equal(records[i].labels, labels)
    every = np.concatenate([labels.reshape(-1) for _, _, labels in given])
    np.testing.assert_array_equal(records.class_counts(), np.bincount(every[every >= 0], minlength=4))
    assert isinstance(records[0].features.base, np.memmap)
    assert json.loads((tmp_path / "r" / INDEX).read_text())["origin"] == {"detector": "a test"}
    write(tmp_path / "again", np.random.default_rng(1), shape=shape)
    other = RegionRecords(tmp_path / "again")
    assert other.content != records.content  # of another type


def damage(name):
    def resave(kind, change):
        def do(folder):
            path = folder / f"shard-00001.{kind}.npy"
            np.save(path, change(np.load(path)))

        return do

    def index(**values):
        def do(folder):
            stored = json.loads((folder / INDEX).read_text())
            (folder / INDEX).write_text(json.dumps(stored | values))

        return do

    return {
        "width": (
            resave("features", lambda x: x[..., :4]),
            r"shard-00001\.features\.npy has float16 \[6, 2, 4\], but regions\.json says float16 \[6, 2, 5\]",
        ),
        "type": (
            resave("boxes", lambda x: x.astype(np.float64)),
            r"boxes\.npy has float64 \[6, 4\], but .* float32",
        ),
        "counts": (
            resave("images", lambda x: x + np.array([[0, 1]])),
            r"images\.npy has 7 regions, but regions\.json says 6",
        ),
        "twice": (resave("images", lambda x: x + np.array([[1, 0]])), "has image 98 twice"),
        "cut": (
            lambda folder: (folder / "shard-00000.labels.npy").write_bytes(b"\x93NUMPY"),
            r"labels\.npy cannot be read",
        ),
        "header": (
            lambda folder: (folder / "shard-00000.labels.npy").write_bytes(
                b"\x93NUMPY\x01\x00\x07\x00{[]: 1}"
            ),
            r"labels\.npy cannot be read .the header is damaged",
        ),
        "packed": (
            lambda folder: (folder / "shard-00000.boxes.npy").write_bytes(b"PK\x03\x04" + bytes(40)),
            r"boxes\.npy cannot be read",
        ),
        "missing": (
            lambda folder: (folder / "shard-00000.boxes.npy").unlink(),
            r"boxes\.npy cannot be read .*No such file",
        ),
        "unfinished": (
            lambda folder: (folder / INDEX).unlink(),
            r"is not a folder of region features: regions\.json, which is written last, cannot be read",
        ),
        "format": (index(format=2), "is damaged .format 2, wanted 1"),
        "shape": (index(shape=[5, 5]), r"is damaged .shape \[5, 5\]"),
        "categories": (
            index(categories=[[2, "a", "r"], [1, "b", "r"]]),
            "the ids of categories do not ascend",
        ),
        "ids": (index(categories=["abr", "cdr"]), "the id of a category is not a whole number"),
        "frequency": (index(categories=[[2, "a", "x"]]), "a frequency is not r, c or f"),
        "no shard": (index(shards=[]), "a size is not a whole number above 0"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["width", "type", "counts", "twice", "cut", "header", "packed", "missing", "unfinished", "format", "shape", "categories", "ids", "frequency", "no shard"],
)  # fmt: skip
def test_damaged_folders(tmp_path, rng, name):
    write(tmp_path / "r", rng)
    change, message = damage(name)
    change(tmp_path / "r")
    with pytest.raises(InputError, match=message) as caught:
        RegionRecords(tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_arrays_that_cannot_be_written(tmp_path, rng):
    features, boxes, labels = regions(rng, 3)
    writer = Writer(tmp_path / "r", shape=(5,), categories=CATEGORIES, stages=2)
    for arrays, message in (
        ((features[..., :4], boxes, labels), r"image 1: features have shape \[3, 2, 4\], wanted \[3, 2, 5\]"),
        ((features, boxes, labels[:, :1]), r"labels have shape \[3, 1\], wanted \[3, 2\]"),
        (
            (features, boxes, labels + 9),
            "image 1: labels from .*; wanted 0 to 2 for classes, 3 for the background",
        ),
        ((features * 1e6, boxes, labels), "features are not finite in float16; write float32"),
        ((features, boxes), "labels are missing"),
    ):
        with pytest.raises(InputError, match=message), np.errstate(over="ignore"):
            writer.add(1, *arrays)
    with pytest.raises(InputError, match="no image was added"):
        writer.close()
    write(tmp_path / "full", rng)
    with pytest.raises(InputError, match="has records already"):
        Writer(tmp_path / "full", shape=(5,), categories=CATEGORIES)


def batches(records, **options):
    defaults = {
        "batch_size": 2,
        "regions": 4,
        "foreground": 0.5,
        "epochs": 2,
        "seed": 3,
        "reading": Reading(),
    }
    return list(sampling.train_batches(records, **defaults | options))


def test_batches_of_training(tmp_path, rng):
    given = write(tmp_path / "r", rng, dtype="float32")
    records = RegionRecords(tmp_path / "r")
    every = batches(records)
    assert len(every) == 4
    stored = {tuple(row): label for x, _, y in given for stage in (0, 1) for row, label in zip(x[:, stage].astype(np.float32), y[:, stage])}  # fmt: skip
    for batch in every:
        assert batch["features"].shape == (2, 4, 2, 5)
        labels = batch["labels"]
        assert ((labels >= 0) & (labels < 3)).sum(axis=1).max() <= 2
        for row, label in zip(batch["features"].reshape(-1, 5), labels.reshape(-1)):
            assert (stored[tuple(row)] == label) if label >= 0 else not row.any()
    # A run that resumes, and each of two processes, get the same batches.
    for whole, rest in zip(every[1:], batches(records, start_step=1), strict=True):
        np.testing.assert_array_equal(whole["features"], rest["features"])
    second = batches(records, reading=Reading(process=1, processes=2))
    np.testing.assert_array_equal(every[2]["labels"][1:], second[2]["labels"])


def test_chosen_regions():
    labels = np.array([3, 3, 0, 1, -1, 3, 2, 3])
    generator = np.random.default_rng(0)
    rows = sampling.choose(labels, 3, 6, 0.34, generator)
    assert sorted(labels[rows].tolist())[2:] == [3, 3, 3, 3]
    assert len({*rows.tolist()}) == 6
    # Background fills up what objects leave, not the other way round.
    assert sorted(labels[sampling.choose(labels, 3, 100, 0.02, generator)].tolist())[2:] == [3, 3, 3, 3]


def test_assigned_objects():
    corners, classes = [(0, 0, 10, 10), (20, 0, 30, 10)], [4, 5]
    boxes = [(0, 0, 10, 10), (0, 0, 10, 5), (21, 0, 30, 10), (10, 0, 20, 10)]
    assert assign(boxes, corners, classes, overlap=0.5, background=9).tolist() == [4, 4, 5, 9]
    assert assign(boxes, corners, classes, overlap=0.7, background=9).tolist() == [4, 9, 5, 9]
    assert assign(boxes, np.zeros((0, 4)), [], overlap=0.5, background=9).tolist() == [9] * 4


def test_pooled_features():
    """Of a plane, whose values are linear, the values at the centres of the grid's cells."""
    y, x = np.mgrid[:8, :8] + 0.5
    plane = np.stack([x, y], axis=-1) / 8
    pooled = pool(plane, [(0.25, 0.125, 0.75, 0.875), (0, 0, 0.125, 0.125)], 2)
    np.testing.assert_allclose(pooled[0, 0, 0], [0.375, 0.3125], rtol=1e-6)
    np.testing.assert_allclose(pooled[0, 1, 1], [0.625, 0.6875], rtol=1e-6)
    np.testing.assert_allclose(
        pooled[1, 0, 0], [0.0625, 0.0625], rtol=1e-6
    )  # at the border, the outermost cell
