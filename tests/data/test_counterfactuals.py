"""Generated records: their files, and training batches that mix them with real images."""

import json
import pickle

import numpy as np
import pytest
from absl import flags

from cfmlc_jax import config as configs
from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.data import build as data
from cfmlc_jax.data.identity import identity
from cfmlc_jax.data.mixing import Generated
from cfmlc_jax.data.pipeline import steps_per_epoch, train_batches
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.data.views.crops import PaddedCrop
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.errors import InputError, RunError

flags.FLAGS.mark_as_parsed()  # Grain's workers read its flags

NAMES = tuple("abcde")
SIZE = 16
TO_VIEWS = PaddedCrop(size=SIZE, augment=True)


def written(folder, shards=(4, 3), seed=0, names=NAMES, **origin):
    """A folder of records with random images and labels, and these."""
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    images = generator.integers(0, 256, (sum(shards), SIZE, SIZE, 3)).astype(np.uint8)
    labels = generator.integers(0, len(names), (sum(shards), 3))
    start = 0
    for i, count in enumerate(shards):
        path = folder / counterfactuals.shard_name(i, len(shards))
        counterfactuals.write_shard(path, images[start : start + count], labels[start : start + count])
        start += count
    counterfactuals.write_index(
        folder, class_names=names, shards=shards, image_size=SIZE, seed=seed, **origin
    )
    return images, labels


def test_records_are_read_as_they_were_written(tmp_path):
    images, labels = written(tmp_path / "records")
    source = Counterfactuals(tmp_path / "records")
    assert source.class_names == NAMES
    assert source.image_size == SIZE
    assert len(source) == len(set(source.ids)) == 7
    np.testing.assert_array_equal(source.mechanisms, labels)
    assert source.mechanisms.dtype == np.int32
    np.testing.assert_array_equal(source.labels.argmax(axis=1), labels[:, 0])
    assert (source.labels.sum(axis=1) == 1).all()
    for each in (source, pickle.loads(pickle.dumps(source))):
        for i in (0, 3, 4, 6):
            record = each[i]
            np.testing.assert_array_equal(np.asarray(decode(record["image"], "")), images[i])
            np.testing.assert_array_equal(record["labels"], source.labels[i])
            assert record["id"] == source.ids[i]


def test_a_record_is_three_labels_and_a_file(tmp_path):
    images, labels = written(tmp_path / "records")
    (shard,) = Counterfactuals(tmp_path / "records")._shards[1:]
    assert shard[0][:12] == b"".join(int(label).to_bytes(4, "little") for label in labels[4])
    assert shard[0][12:].startswith(b"\x89PNG")
    counterfactuals.write_shard(tmp_path / "photos.array_record", images[:1], labels[:1], encoding="jpeg")
    assert counterfactuals.encoded(images[0], "jpeg").startswith(b"\xff\xd8\xff")


def test_an_identity_is_of_the_content_alone(tmp_path):
    for name, options in {
        "one": {},
        "same": {},
        "seed": {"seed": 1},
        "other checkpoint": {"checkpoint": "step 7"},
    }.items():
        written(tmp_path / name, **options)
    one, same, seed, checkpoint = (
        Counterfactuals(tmp_path / name) for name in ("one", "same", "seed", "other checkpoint")
    )
    assert identity(one) == identity(same)
    assert repr(one) == repr(same)
    assert str(tmp_path) not in repr(one)
    assert len({source.ids[0] for source in (one, seed, checkpoint)}) == 3


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _change(**changes):
    def change(folder):
        index = json.loads((folder / "index.json").read_text()) | changes
        (folder / "index.json").write_text(json.dumps(index))

    return change


def _cut(folder):
    path = folder / "records-00000-of-00002.array_record"
    path.write_bytes(path.read_bytes()[:40_000])


def _swap(folder):
    first, second = (folder / counterfactuals.shard_name(i, 2) for i in range(2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("index.json"), r"not a folder of generated records: index.json.*No such file.*generate the records .* to the end"),
        (_write("index.json", b"{"), r"index.json is damaged \(.*restore it, or generate"),
        (_write("index.json", b"[1]"), r"index.json is damaged"),
        (_write("index.json", b'{"class_names": ["a"]}'), r"index.json is damaged \('shards'\)"),
        (_change(shards=[4, -3]), r"index.json is damaged \(a field has a wrong value\)"),
        (_change(shards=[]), r"index.json is damaged \(a field has a wrong value\)"),
        (_change(mechanisms=["shape", "texture"]), r"mechanisms \['shape', 'texture'\], wanted shape, texture, ba"),
        (_change(class_names=["a", "a", "b", "c", "d"]), "class 'a' is listed twice"),
        (_change(class_names=["a", "b"]), r"has labels from \d to [34] for 2 classes in index.json"),
        (_change(shards=[3, 4]), r"has labels int32 \[4, 3\], wanted int32 \[3, 3\] by index.json"),
        (_remove("records-00001-of-00002.array_record"), r"00001-of-00002.array_record is missing; generate"),
        (_remove("records-00001-of-00002.npy"), r"00001-of-00002.npy cannot be read \(.*No such file"),
        (_write("records-00001-of-00002.npy", b"no"), r"00001-of-00002.npy cannot be read"),
        (_cut, r"00000-of-00002.array_record is damaged \("),
        (_swap, r"00000-of-00002.array_record has 3 records, but index.json says 4"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(tmp_path, damage, message):
    written(tmp_path / "records")
    damage(tmp_path / "records")
    with pytest.raises(InputError, match=message) as raised:
        Counterfactuals(tmp_path / "records")
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damage_inside_a_shard(tmp_path):
    written(tmp_path / "records", shards=(4,))
    path = tmp_path / "records" / counterfactuals.shard_name(0, 1)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x89PNG")
    content[place + 20 : place + 40] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^records-00000-of-00001.array_record record 0 is damaged \("):
        Counterfactuals(tmp_path / "records")[0]


def test_labels_of_another_shard(tmp_path):
    written(tmp_path / "records", shards=(4,))
    np.save(tmp_path / "records" / "records-00000-of-00001.npy", np.zeros((4, 3), np.int32))
    source = Counterfactuals(tmp_path / "records")
    with pytest.raises(InputError, match=r"record 0 has other labels than records-00000-of-00001\.npy"):
        [source[i] for i in range(4)]


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "records.array_record").mkdir()
    with pytest.raises(RunError, match=r"records.array_record cannot be written"):
        counterfactuals.write_shard(
            tmp_path / "records.array_record", np.zeros((1, 2, 2, 3), np.uint8), [[0, 0, 0]]
        )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_as_a_data_set_of_its_own(tmp_path):
    fields = configs.default().data
    fields.source, fields.root = "counterfactuals", str(tmp_path / "records")
    written(tmp_path / "records")
    assert len(data.source(fields, "train")) == 7
    with pytest.raises(InputError, match=r"have no split 'val': generate it, with another seed, into .*val"):
        data.source(fields, "val")
    written(tmp_path / "records" / "val", shards=(2,), seed=1)
    assert len(data.source(fields, "val")) == 2


class Unread:
    """A source whose records must not be read."""

    def __init__(self, source):
        self.class_names, self.labels, self.ids = source.class_names, source.labels, source.ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        raise AssertionError("a real image was read")

    def __repr__(self):
        return "Unread"


@pytest.fixture(scope="module")
def real():
    return LongTailedDigits("train", most=6, ratio=0.5, size=SIZE)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "records"
    written(folder, shards=(5, 6), names=LongTailedDigits.class_names)
    return Counterfactuals(folder)


def batches(real, drawn, per_batch, reading=None, **changes):
    arguments = {"batch_size": 8, "epochs": 3, "seed": 3} | changes
    generated = Generated(drawn, per_batch) if drawn else None
    return list(
        train_batches(real, TO_VIEWS, reading=reading or Reading(threads=2), generated=generated, **arguments)
    )


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a.keys() - {"mechanisms"}:
            np.testing.assert_array_equal(a[name], b[name])
        for name in a.get("mechanisms", {}):
            np.testing.assert_array_equal(a["mechanisms"][name], b["mechanisms"][name])


def joined(shares):
    """The batches of all processes from their parts."""
    whole = []
    for parts in zip(*shares, strict=True):
        plain = {name: np.concatenate([p[name] for p in parts]) for name in parts[0].keys() - {"mechanisms"}}
        names = parts[0]["mechanisms"]
        labels = {name: np.concatenate([p["mechanisms"][name] for p in parts]) for name in names}
        whole.append(plain | {"mechanisms": labels})
    return whole


@pytest.mark.parametrize(
    ("per_batch", "pattern"),
    [(1, "00000001"), (2, "00010001"), (4, "01010101"), (5, "01011011"), (8, "11111111")],
)
def test_real_and_generated_records_alternate(real, drawn, per_batch, pattern):
    for batch in batches(real, drawn, per_batch):
        assert "".join(map(str, batch["counterfactual"].astype(int))) == pattern
        assert (batch["views"].shape, batch["views"].dtype) == ((8, 1, SIZE, SIZE, 3), np.uint8)
        which, labels = batch["counterfactual"], batch["mechanisms"]
        assert set(labels) == set(MECHANISMS)
        for of_mechanism in labels.values():
            assert of_mechanism.dtype == np.int32
            assert (of_mechanism[~which] == -1).all()
            assert (of_mechanism[which] >= 0).all()
        np.testing.assert_array_equal(labels["shape"][which], batch["labels"][which].argmax(axis=1))


def test_labels_belong_to_their_images(real, drawn):
    plain = PaddedCrop(size=SIZE)
    by_pixels = {
        plain(drawn[i])["views"].tobytes(): tuple(map(int, drawn.mechanisms[i])) for i in range(len(drawn))
    }
    read = train_batches(
        real, plain, batch_size=8, epochs=3, seed=3, reading=Reading(), generated=Generated(drawn, 4)
    )
    seen = []
    for batch in read:
        for i in np.flatnonzero(batch["counterfactual"]):
            labels = tuple(int(batch["mechanisms"][name][i]) for name in MECHANISMS)
            assert by_pixels[batch["views"][i].tobytes()] == labels
            seen.append(batch["views"][i].tobytes())
    # Each turn through the generated records uses all of them once.
    turns = [seen[i : i + 11] for i in range(0, len(seen) - 10, 11)]
    assert len(turns) >= 2
    for turn in turns:
        assert set(turn) == by_pixels.keys()
    assert turns[0] != turns[1]


def test_without_generated_records_batches_are_as_ever(real):
    (first, *_) = batches(real, None, 0)
    assert set(first) == {"views", "labels"}


def test_an_epoch_is_of_the_real_images_if_there_are_any(real, drawn):
    n = len(real)
    assert steps_per_epoch(real, 8) == n // 8
    assert steps_per_epoch(real, 8, Generated(drawn, 4)) == n // 4
    assert steps_per_epoch(real, 8, Generated(drawn, 6)) == n // 2
    assert steps_per_epoch(real, 8, Generated(drawn, 8)) == len(drawn) // 8
    for per_batch in (4, 6):
        found = batches(real, drawn, per_batch, epochs=1)
        assert len(found) == n // (8 - per_batch)
        views = [view.tobytes() for batch in found for view in batch["views"][~batch["counterfactual"]]]
        assert len(set(views)) == len(views)  # no real image twice


def test_generated_records_alone_read_no_real_image(real, drawn):
    found = batches(Unread(real), drawn, 8, epochs=4)
    assert len(found) == 4
    assert_equal(found, batches(real, drawn, 8, epochs=4))
    for batch in found:
        assert len({view.tobytes() for view in batch["views"]}) == 8


@pytest.mark.parametrize("per_batch", [1, 4, 8])
@pytest.mark.parametrize("start", [1, 3])
def test_going_on_gives_the_batches_that_remain(real, drawn, per_batch, start):
    every = batches(real, drawn, per_batch, epochs=6)
    assert_equal(batches(real, drawn, per_batch, epochs=6, start_step=start), every[start:])


@pytest.mark.parametrize("per_batch", [1, 4, 8])
def test_processes_share_every_batch(real, drawn, per_batch):
    shares = [batches(real, drawn, per_batch, Reading(process=i, processes=2, threads=2)) for i in range(2)]
    assert_equal(joined(shares), batches(real, drawn, per_batch))


def test_workers_read_the_same(real, drawn):
    assert_equal(batches(real, drawn, 4, Reading(threads=1, workers=2)), batches(real, drawn, 4))


def test_two_records_of_one_place_are_not_augmented_alike(drawn):
    """The same images as real and as generated ones: neither order nor augmentation agree."""
    (batch, *_) = batches(drawn, drawn, 4)
    which = batch["counterfactual"]
    same = [np.array_equal(a, b) for a, b in zip(batch["views"][which], batch["views"][~which])]
    assert not all(same)


def test_an_unreadable_record_is_replaced_with_its_labels(real, tmp_path):
    written(tmp_path / "records", shards=(8,), names=LongTailedDigits.class_names)
    path = tmp_path / "records" / counterfactuals.shard_name(0, 1)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x89PNG")
    content[place + 20 : place + 40] = bytes(20)
    path.write_bytes(content)
    source = Counterfactuals(tmp_path / "records")
    found = batches(real, source, 8, Reading(skip=True), epochs=1)
    (batch,) = found
    (which,) = np.flatnonzero(batch["replaced"] == 0)
    assert batch["mechanisms"]["texture"][which] == source.mechanisms[1, 1]
    with pytest.raises(InputError, match="record 0 is damaged"):
        batches(real, source, 8, epochs=1)
