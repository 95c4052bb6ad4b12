"""Generated scenes: their files, and training batches that have them beside real ones, from an epoch on."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.classify import build
from cfmlc_jax.data import build as data
from cfmlc_jax.data.mixing import Generated
from cfmlc_jax.data.pipeline import steps_per_epoch, train_batches
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.data.sources.boxes import Boxed
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals, CounterfactualScenes, open_records
from cfmlc_jax.data.sources.scenes import CLASS_NAMES, Scenes
from cfmlc_jax.data.views.crops import PaddedCrop
from cfmlc_jax.data.weighting import Weighting
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.errors import InputError

SIZE = 64
TO_VIEWS = PaddedCrop(size=SIZE, augment=True, flip=False)
SHARDS = (10, 8)


def written(folder, seed=0, names=CLASS_NAMES):
    """A folder of scenes with random images, labels and boxes, and these."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    images = random.integers(0, 256, (sum(SHARDS), SIZE, SIZE, 3)).astype(np.uint8)
    labels = random.integers(0, 2, (sum(SHARDS), len(names)))
    labels[1] = 0  # a scene without objects
    rows = np.argwhere(labels)
    boxes = np.column_stack([rows, np.tile([3, 4, 20, 30], (len(rows), 1))])
    start = 0
    for i, count in enumerate(SHARDS):
        own = boxes[(boxes[:, 0] >= start) & (boxes[:, 0] < start + count)] - [start, 0, 0, 0, 0, 0]
        path = folder / counterfactuals.shard_name(i, len(SHARDS))
        counterfactuals.write_shard(
            path, images[start : start + count], labels[start : start + count], boxes=own
        )
        start += count
    counterfactuals.write_index(
        folder, class_names=names, shards=SHARDS, image_size=SIZE, task="multi_label", seed=seed
    )
    return images, labels, boxes


def mechanism_records(folder, count=6):
    folder.mkdir()
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    counterfactuals.write_shard(folder / counterfactuals.shard_name(0, 1), images, np.ones((count, 3), int))
    counterfactuals.write_index(folder, class_names=CLASS_NAMES, shards=[count], image_size=SIZE)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    written(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return CounterfactualScenes(folder)


@pytest.fixture(scope="module")
def real():
    return Scenes("train", num_scenes=32, size=SIZE)


def test_scenes_are_read_as_they_were_written(tmp_path):
    images, labels, boxes = written(tmp_path / "scenes")
    source = open_records(tmp_path / "scenes")
    assert isinstance(source, CounterfactualScenes)
    assert isinstance(source, Boxed)
    assert (source.class_names, source.image_size, len(source)) == (CLASS_NAMES, SIZE, 18)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.labels.dtype == np.uint8
    for each in (source, pickle.loads(pickle.dumps(source))):
        for i in range(18):
            record = each[i]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record["image"]))), images[i])
            np.testing.assert_array_equal(record["labels"], labels[i])
            corners, classes = each.boxes().of_image(i)
            np.testing.assert_array_equal(classes, np.flatnonzero(labels[i]))
            np.testing.assert_array_equal(corners, boxes[boxes[:, 0] == i, 2:])
    np.testing.assert_array_equal(source.boxes().sizes, np.full((18, 2), SIZE))


def test_a_folder_is_opened_by_its_task(tmp_path, folder):
    single = mechanism_records(tmp_path / "objects")
    assert isinstance(open_records(single), Counterfactuals)
    with pytest.raises(InputError, match="has single_label records, wanted multi_label"):
        CounterfactualScenes(single)
    with pytest.raises(InputError, match="has multi_label records, wanted single_label"):
        Counterfactuals(folder)
    fields = configs.default().data
    fields.source, fields.root = "counterfactuals", str(folder)
    assert isinstance(data.source(fields, "train"), CounterfactualScenes)


def _change(**changes):
    def change(folder):
        index = json.loads((folder / "index.json").read_text()) | changes
        (folder / "index.json").write_text(json.dumps(index))

    return change


def _save(name, array):
    return lambda folder: np.save(folder / name, array)


BOXES = "records-00000-of-00002.boxes.npy"
ONE = np.array([[0, 1, 2, 3, 4, 5]], np.int32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change(task="captions"), r"index.json is damaged \(task 'captions'\)"),
        (
            _change(class_names=["a", "b"]),
            r"has labels int32 \[10, 10\], wanted int32 \[10, 2\] by index.json",
        ),
        (
            _save("records-00000-of-00002.npy", np.full((10, 10), 2, np.int32)),
            "has labels from 2 to 2 where scenes",
        ),
        (lambda folder: (folder / BOXES).unlink(), r"boxes.npy cannot be read \(.*No such file"),
        (_save(BOXES, ONE[:, :5]), r"has boxes int32 \[1, 5\], wanted int32 \[m, 6\]"),
        (_save(BOXES, ONE + 10), "has boxes of other records than 0 to 9 in order"),
        (_save(BOXES, np.concatenate([ONE + 1, ONE])), "has boxes of other records than 0 to 9 in order"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, tmp_path, damage, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(InputError, match=message) as raised:
        CounterfactualScenes(copy).boxes()
    assert str(copy) in str(raised.value)
    assert "\n" not in str(raised.value)


def batches(real, generated, **changes):
    arguments = {"batch_size": 8, "epochs": 4, "seed": 3, "reading": Reading(threads=1)} | changes
    return list(train_batches(real, TO_VIEWS, generated=generated, **arguments))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_scenes_join_real_ones_with_their_labels(real, drawn):
    plain = PaddedCrop(size=SIZE, flip=False)
    read = train_batches(
        real, plain, batch_size=8, epochs=2, seed=3, reading=Reading(), generated=Generated(drawn, 4)
    )
    by_pixels = {plain(drawn[i])["views"].tobytes(): drawn.labels[i] for i in range(len(drawn))}
    by_pixels |= {plain(real[i])["views"].tobytes(): real.labels[i] for i in range(len(real))}
    for batch in read:
        assert set(batch) == {"views", "labels", "counterfactual"}
        assert batch["counterfactual"].tolist() == [False, True] * 4
        for views, labels in zip(batch["views"], batch["labels"], strict=True):
            np.testing.assert_array_equal(by_pixels[views.tobytes()], labels)


@pytest.mark.parametrize(("per_batch", "from_epoch"), [(4, 2), (4, 4), (6, 3), (8, 2)])
def test_from_an_epoch_on(real, drawn, per_batch, from_epoch):
    generated = Generated(drawn, per_batch, from_epoch)
    steps = steps_per_epoch(real, 8, generated)
    read = batches(real, generated)
    assert len(read) == 4 * steps
    for i, batch in enumerate(read):
        count = per_batch if i // steps + 1 >= from_epoch else 0
        assert batch["counterfactual"].sum() == count
    # Each pass through the real images has all of them, across the epoch at which the others join.
    labels = np.concatenate([batch["labels"][~batch["counterfactual"]] for batch in read])
    if per_batch < 8:
        assert len(labels) >= 2 * len(real)
        for start in range(0, len(labels) - len(real) + 1, len(real)):
            assert sorted(labels[start : start + len(real)].tolist()) == sorted(real.labels.tolist())


def test_weights_join_in_their_epoch_too(real, drawn):
    generated = Generated(drawn, 2, from_epoch=3)  # the epochs before read real images more than once
    steps = steps_per_epoch(real, 8, generated)
    weights = np.eye(len(real))[5]
    plain = batches(real, generated)
    for from_epoch in (2, 3, 4):
        read = batches(real, generated, weighting=Weighting(weights, from_epoch))
        start = (from_epoch - 1) * steps
        assert_equal(read[:start], plain[:start])
        for batch in read[start:]:
            assert (batch["labels"][~batch["counterfactual"]] == real.labels[5]).all()


def test_before_it_batches_are_those_of_real_images_alone(real, drawn):
    alone = batches(real, None, epochs=2)
    read = batches(real, Generated(drawn, 4, from_epoch=2), epochs=2)
    for ours, theirs in zip(read[:8], alone, strict=True):
        np.testing.assert_array_equal(ours["views"], theirs["views"])
        np.testing.assert_array_equal(ours["labels"], theirs["labels"])


@pytest.mark.parametrize(("per_batch", "from_epoch"), [(4, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("start", [1, 3])
def test_a_resumed_run_gets_the_remaining_batches(real, drawn, per_batch, from_epoch, start):
    generated = Generated(drawn, per_batch, from_epoch)
    assert_equal(batches(real, generated, start_step=start), batches(real, generated)[start:])


def test_processes_share_every_batch(real, drawn):
    generated = Generated(drawn, 4, from_epoch=2)
    shares = [
        batches(real, generated, epochs=2, reading=Reading(process=i, processes=2, threads=1))
        for i in range(2)
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
    assert_equal(joined, batches(real, generated, epochs=2))


def test_records_with_mechanisms_also_join_later(real, tmp_path):
    generated = Generated(Counterfactuals(mechanism_records(tmp_path / "objects")), 4, from_epoch=2)
    first, *_, last = batches(real, generated, epochs=2)
    assert not first["counterfactual"].any()
    for name in MECHANISMS:
        assert (first["mechanisms"][name] == -1).all()
        np.testing.assert_array_equal(last["mechanisms"][name], np.where(last["counterfactual"], 1, -1))


def configuration(path, **fields):
    config = configs.default()
    config.data.source, config.data.counterfactuals.path = "scenes", str(path)
    config.views.image_size, config.train.batch_size = SIZE, 8
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (configs.field(config, section) if section else config)[leaf] = value
    return configs.validate(config)


def test_scenes_are_opened_with_share_and_epoch(folder, real):
    lines = []
    config = configuration(folder, **{"data.counterfactuals.from_epoch": 3})
    configs.require_trainable(config)
    generated = build.open_counterfactuals(config, real, lines.append)
    assert (generated.per_batch, generated.from_epoch, len(generated.source)) == (4, 3, 18)
    assert "counterfactuals: 18 images, 10 classes" in lines[0]
    assert build.open_counterfactuals(configuration("", **{}), real, lines.append) is None


def test_scenes_that_do_not_fit_are_refused(folder, real, tmp_path):
    single = {"task": "single_label", "loss.name": "cross_entropy", "method": "whole", "effect.kinds": ()}
    with pytest.raises(InputError, match=r"counterfactuals: \d+ of 18 images do not have exactly one label"):
        build.open_counterfactuals(configuration(folder, **single), real, print)
    written(tmp_path / "others", names=("a", "b"))
    with pytest.raises(InputError, match=r"class 0 is 'digit 0' in .* and 'a' in"):
        build.open_counterfactuals(configuration(tmp_path / "others"), real, print)


def test_an_epoch_that_never_comes_is_refused():
    config = configuration("scenes", **{"data.counterfactuals.from_epoch": 81})
    with pytest.raises(InputError, match=r"from_epoch is 81, but train.epochs is 80"):
        configs.require_trainable(config)
    with pytest.raises(InputError, match=r"from_epoch is 0; it must be at least 1"):
        configuration("scenes", **{"data.counterfactuals.from_epoch": 0})
    assert configs.unused(configuration("", **{"data.counterfactuals.from_epoch": 2})) == [
        "data.counterfactuals.from_epoch"
    ]
