"""Small files in the official forms, with their own checksums in place of the official ones."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from cfmlc_jax.data.sources import cifar_files
from cfmlc_jax.data.sources.cifar_files import DATA_SETS, DataSet, File, read
from cfmlc_jax.data.sources.cifar_lt import CifarLT
from cfmlc_jax.errors import InputError

PER_CLASS = {"cifar10_lt": 10, "cifar100_lt": 2}  # training images; half as many to test


class Fake:
    """A data set's images and all of its files' bytes, packed and unpacked, by form and path."""

    def __init__(self, name, rng):
        self.name, self.official = name, DATA_SETS[name]
        k = self.official.num_classes
        self.class_names = tuple(f"thing_{number}" for number in range(k))
        self.pixels, self.classes, self.files = {}, {}, {}
        for split, count in (("train", PER_CLASS[name]), ("test", PER_CLASS[name] // 2)):
            self.pixels[split] = rng.integers(0, 256, (count * k, 32, 32, 3), dtype=np.uint8)
            self.classes[split] = rng.permutation(np.repeat(np.arange(k), count))
        for kind in ("python", "binary"):
            self.files[kind] = self._files(kind)

    def _files(self, kind):
        form, write = getattr(self.official, kind), getattr(self, f"_{kind}")
        contents = {}
        for split in ("train", "test"):
            parts = getattr(form, split)
            rows = np.array_split(np.arange(len(self.classes[split])), len(parts))
            for file, own in zip(parts, rows, strict=True):
                planes = self.pixels[split][own].transpose(0, 3, 1, 2).reshape(len(own), -1)
                contents[file.name] = write(planes, self.classes[split][own])
        names = [name.encode() for name in self.class_names]
        text = b"\n".join(names) + b"\n\n"
        contents[form.names.name] = pickle.dumps({self.official.names: names}) if kind == "python" else text
        return contents

    def _python(self, planes, classes):
        return pickle.dumps({b"data": planes, self.official.labels: classes.tolist()})

    def _binary(self, planes, classes):
        others = np.full((len(classes), self.official.label_bytes - 1), 7)
        return np.concatenate([others, classes[:, None], planes], axis=1).astype(np.uint8).tobytes()

    def archive(self, kind):
        form, file = getattr(self.official, kind), io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, data in self.files[kind].items():
                info = tarfile.TarInfo(f"{form.folder}/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return file.getvalue()

    def data_set(self, archives):
        """The official table's entry with the sizes and checksums of these files."""

        def known(kind, file):
            data = self.files[kind][file.name]
            md5 = hashlib.md5(data).hexdigest() if file.md5 else ""
            return File(file.name, md5, len(data) if file.size else 0)

        forms = {}
        for kind, archive in archives.items():
            form = getattr(self.official, kind)
            forms[kind] = form._replace(
                archive=File(form.archive.name, hashlib.md5(archive).hexdigest(), len(archive)),
                train=tuple(known(kind, file) for file in form.train),
                test=tuple(known(kind, file) for file in form.test),
                names=known(kind, form.names),
            )
        return self.official._replace(num_train=len(self.classes["train"]), **forms)

    def unpack(self, root, kind):
        folder = root / getattr(self.official, kind).folder
        folder.mkdir()
        for name, data in self.files[kind].items():
            (folder / name).write_bytes(data)
        return folder


@pytest.fixture(params=["cifar10_lt", "cifar100_lt"])
def name(request):
    return request.param


@pytest.fixture
def fake(name, rng, monkeypatch):
    fake = Fake(name, rng)
    fake.archives = {kind: fake.archive(kind) for kind in ("python", "binary")}
    monkeypatch.setitem(cifar_files.DATA_SETS, name, fake.data_set(fake.archives))
    return fake


def put(fake, root, kind, packed):
    if packed:
        (root / getattr(fake.official, kind).archive.name).write_bytes(fake.archives[kind])
    else:
        fake.unpack(root, kind)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_both_forms_packed_and_unpacked(fake, tmp_path, kind, packed):
    put(fake, tmp_path, kind, packed)
    for split in ("train", "test"):
        images = read(cifar_files.DATA_SETS[fake.name], tmp_path, train=split == "train")
        np.testing.assert_array_equal(images.pixels, fake.pixels[split])
        np.testing.assert_array_equal(images.classes, fake.classes[split])
        assert images.class_names == fake.class_names


def test_the_root_may_be_the_folder_itself(fake, tmp_path):
    images = read(cifar_files.DATA_SETS[fake.name], fake.unpack(tmp_path, "python"), train=False)
    np.testing.assert_array_equal(images.pixels, fake.pixels["test"])


def test_training_has_a_tail_and_testing_is_whole(fake, tmp_path):
    put(fake, tmp_path, "python", packed=False)
    train, val, test = (CifarLT(fake.name, tmp_path, split, ratio=0.5) for split in ("train", "val", "test"))
    assert train.labels.sum(axis=0).tolist() == train.class_counts.tolist() == test.class_counts.tolist()
    assert train.class_counts[0] == PER_CLASS[fake.name]
    assert train.class_counts[-1] == PER_CLASS[fake.name] // 2
    assert val.ids == test.ids == [f"test-{place:05d}" for place in range(len(test))]
    np.testing.assert_array_equal(test.labels.argmax(axis=1), fake.classes["test"])
    assert not set(train.ids) & set(val.ids)
    for source, split in ((train, "train"), (val, "test")):
        assert source.labels.dtype == np.uint8
        assert source.class_names == fake.class_names
        for index in (0, len(source) - 1):
            record, place = source[index], int(source.ids[index].rpartition("-")[2])
            np.testing.assert_array_equal(record["image"], fake.pixels[split][place])
            assert record["labels"].argmax() == fake.classes[split][place]
            assert record["id"] == source.ids[index]
            assert fake.name in record["where"]


def test_seeds_and_ranks(fake, tmp_path):
    put(fake, tmp_path, "python", packed=False)
    make = lambda **fields: CifarLT(fake.name, tmp_path, "train", ratio=0.5, **fields)  # noqa: E731
    first, again, other, shuffled = make(), make(), make(seed=1), make(shuffle_classes=True)
    assert repr(first) == repr(again)
    assert first.ids == again.ids != other.ids
    assert str(tmp_path) not in repr(first)
    assert sorted(shuffled.class_counts) == sorted(first.class_counts)
    assert shuffled.class_counts.tolist() != first.class_counts.tolist()
    assert repr(pickle.loads(pickle.dumps(first))) == repr(first)


def refused(fake, root, split="train"):
    with pytest.raises(InputError) as error:
        CifarLT(fake.name, root, split, ratio=0.5)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_an_empty_folder_is_explained(fake, tmp_path):
    message = refused(fake, tmp_path / "nowhere")
    archive = fake.official.python.archive.name
    assert f"no {fake.official.title} in it; download https://www.cs.toronto.edu/~kriz/{archive} (" in message
    assert message.endswith(f"into {tmp_path / 'nowhere'}; it may stay packed")


def test_a_missing_file(fake, tmp_path):
    folder = fake.unpack(tmp_path, "python")
    missing = folder / fake.official.python.train[-1].name
    missing.unlink()
    message = refused(fake, tmp_path)
    assert message.startswith(f"{missing}: No such file or directory; download ")
    assert message.endswith(f"into {tmp_path}; it may stay packed")


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_a_truncated_file_is_an_error(fake, tmp_path, kind):
    path = fake.unpack(tmp_path, kind) / getattr(fake.official, kind).test[0].name
    path.write_bytes(path.read_bytes()[:-5])
    message = refused(fake, tmp_path, "val")
    assert message.startswith(f"{path}: {'MD5' if kind == 'python' else ''}")
    assert "wanted" in message


def test_another_archive_is_not_opened(fake, tmp_path):
    path = tmp_path / fake.official.python.archive.name
    data = bytearray(fake.archives["python"])
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert refused(fake, tmp_path).startswith(f"{path}: MD5 ")
    path.write_bytes(data[:1000])
    assert refused(fake, tmp_path).startswith(f"{path}: 1,000 bytes, wanted {len(data):,}; download ")


@pytest.mark.parametrize("content", [b"not an archive", "without files"])
def test_an_archive_with_the_right_sum_that_cannot_be_read(fake, tmp_path, monkeypatch, content):
    if content == "without files":
        fake.files["python"] = {"readme": b"x"}
        content = fake.archive("python")
    form = cifar_files.DATA_SETS[fake.name].python
    archive = File(form.archive.name, hashlib.md5(content).hexdigest(), len(content))
    changed = cifar_files.DATA_SETS[fake.name]._replace(python=form._replace(archive=archive))
    monkeypatch.setitem(cifar_files.DATA_SETS, fake.name, changed)
    path = tmp_path / archive.name
    path.write_bytes(content)
    assert refused(fake, tmp_path).startswith(f"{path}: the archive cannot be read (")


def test_code_in_a_pickle_is_not_run(fake, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is neither an array"):
        cifar_files._unpickle(pickle.dumps(Evil()))


def test_a_file_of_python_2_is_read():
    """As the official ones: byte strings by opcodes that Python 3 no longer writes, numpy's old module."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\xfe\x03\x04\xfftb"
    )
    batch = cifar_files._unpickle(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x05K\x09eu.")
    assert batch[b"labels"] == [5, 9]
    data = np.asarray(batch[b"data"])
    assert data.dtype == np.uint8
    np.testing.assert_array_equal(data, [[0, 1, 254], [3, 4, 255]])


def test_an_unknown_split_is_refused(fake, tmp_path):
    assert refused(fake, tmp_path, "trian") == "split 'trian' does not exist; use one of train, val, test"


def test_a_class_without_images_is_named(fake, tmp_path):
    put(fake, tmp_path, "python", packed=False)
    with pytest.raises(InputError, match=r"class \d+ has no training image"):
        CifarLT(fake.name, tmp_path, "train", ratio=0.01)


@pytest.mark.parametrize("official", DATA_SETS.values(), ids=DATA_SETS)
def test_the_tables_of_official_files_are_consistent(official: DataSet):
    """Sizes of binary files are those of 50,000 and 10,000 records; every MD5 is one."""
    record = official.label_bytes + 3072
    assert sum(file.size for file in official.binary.train) == 50_000 * record
    assert official.binary.test[0].size == 10_000 * record
    files = [official.python.archive, official.binary.archive, *official.python.train, official.python.names]
    assert len({file.md5 for file in files}) == len(files)
    assert all(len(file.md5) == 32 and int(file.md5, 16) for file in files)
