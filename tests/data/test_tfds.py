import importlib.util
import io
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.data.sources import tfds as tfds_source
from cfmlc_jax.data.sources.checks import require_disjoint
from cfmlc_jax.data.sources.tfds import Tfds
from cfmlc_jax.errors import InputError

needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None, reason="needs pip install 'cfmlc_jax[tfds]'"
)
NAMES = ["ape", "bee", "cat"]


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data directory with `tiny_photos`: 5 records to train on, 3 to validate on, 1 unlabelled."""
    import tensorflow_datasets as tfds

    class TinyPhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=NAMES)
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image/filename": tfds.features.Text(),
                "labels": tfds.features.Sequence(label),
                "label": label,
                "number": np.int64,
                "raw": tfds.features.Text(),
                "objects": tfds.features.Sequence({"label": label, "size": np.int64}),
                "nested": {"photo": tfds.features.Image(shape=(None, None, 3))},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(5)),
                "validation": self._generate_examples(range(5, 8)),
                "unlabelled": self._generate_examples([-1]),
            }

        def _generate_examples(self, numbers):
            for n in numbers:
                labels = [n] if n < 0 else sorted({n % 3, n // 3})
                yield (
                    str(n),
                    {
                        "image": png(n % 9),
                        "image/filename": f"{n}.png",
                        "labels": labels if n != 4 else [],
                        "label": n % 3,
                        "number": n,
                        "raw": b"\xff",
                        "objects": [{"label": n % 3, "size": 1}] * 2,
                        "nested": {"photo": png(100)},
                    },
                )

    path = tmp_path_factory.mktemp("tfds")
    TinyPhotos(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def open_tiny(root, split="train", **options):
    return Tfds(root, split, name="tiny_photos", **{"id_key": "image/filename", **options})


@needs_tfds
def test_labels_are_multi_hot_in_the_order_of_the_class_label(root):
    source = open_tiny(root)
    assert source.class_names == tuple(NAMES)
    assert source.labels.dtype == np.uint8
    # Number n has the classes n % 3 and n // 3; TFDS shuffles records when it writes them.
    wanted = {
        "0.png": [1, 0, 0],
        "1.png": [1, 1, 0],
        "2.png": [1, 0, 1],
        "3.png": [1, 1, 0],
        "4.png": [0, 0, 0],
    }
    assert {key: row.tolist() for key, row in zip(source.ids, source.labels)} == wanted


@needs_tfds
def test_a_record_has_the_encoded_bytes(root):
    source = open_tiny(root)
    index = source.ids.index("3.png")
    record = source[index]
    assert record["image"] == png(3)
    assert record["where"] == f"tiny_photos train record {index}"
    np.testing.assert_array_equal(record["labels"], source.labels[index])


@needs_tfds
@pytest.mark.parametrize("key", ["label", "objects/label"])
def test_one_label_and_labels_of_objects(root, key):
    source = open_tiny(root, labels_key=key)
    wanted = np.eye(3, dtype=np.uint8)[[int(name[0]) % 3 for name in source.ids]]
    np.testing.assert_array_equal(source.labels, wanted)


@needs_tfds
def test_a_nested_image(root):
    assert open_tiny(root, image_key="nested/photo")[0]["image"] == png(100)


@needs_tfds
def test_splits_are_named_by_tfds(root):
    assert len(open_tiny(root, "val")) == 3
    assert len(open_tiny(root, "val", val_split="train[:40%]")) == 2
    both = open_tiny(root, train_split="train+validation")
    assert sorted(both.ids) == [f"{n}.png" for n in range(8)]
    require_disjoint(open_tiny(root), open_tiny(root, "val"))


@needs_tfds
def test_ids_without_a_key_count_records(root):
    assert open_tiny(root, id_key=None).ids == [f"train/{index}" for index in range(5)]


@needs_tfds
@pytest.mark.parametrize("id_key", [None, "number"])
def test_a_record_in_two_splits_is_a_leak(root, id_key):
    cut = {"train_split": "train[:60%]", "id_key": id_key}
    require_disjoint(open_tiny(root, **cut), open_tiny(root, "val", val_split="train[60%:]", **cut))
    with pytest.raises(InputError, match="1 images are in both"):
        require_disjoint(open_tiny(root, **cut), open_tiny(root, "val", val_split="train[40%:]", **cut))


@needs_tfds
def test_an_id_may_be_a_number(root):
    source = open_tiny(root, id_key="number")
    assert sorted(source.ids) == ["0", "1", "2", "3", "4"]
    assert repr(source)


@pytest.mark.parametrize("value", [None, "dog", [[0], [1, 2]], [None], {"label": 1}, b"dog"])
def test_labels_that_are_no_numbers_of_classes(value):
    with pytest.raises(InputError, match=r"record 4: the labels .* are not class numbers"):
        tfds_source._classes(value, "tiny train record 4", 3)


@needs_tfds
def test_it_pickles_and_its_repr_has_no_path(root):
    source = open_tiny(root)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2]["image"] == source[2]["image"]
    assert repr(copy) == repr(source)
    assert str(root) not in repr(source)


@needs_tfds
def test_tensorflow_stays_out(root):
    open_tiny(root)[0]
    assert "tensorflow" not in sys.modules


@needs_tfds
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "no_such_set"},
            r"TFDS cannot open 'no_such_set' in .* \(.*not found.*\); prepare it: tfds build",
        ),
        ({"name": "voc/2007"}, r"voc/2007 is not in .*; prepare it: tfds build voc/2007"),
        ({"name": "voc/1066"}, r"TFDS cannot open 'voc/1066'"),
        ({"train_split": "training"}, r"Unknown split 'training'.*choose a split that has records"),
        ({"image_key": "photo"}, "has no feature 'photo'; it has image, image/filename, label, labels"),
        ({"labels_key": "objects/name"}, "has no feature 'objects/name'"),
        ({"labels_key": "labels/name"}, "has no feature 'labels/name'"),
        ({"image_key": "label"}, "feature 'label' is ClassLabel, wanted Image"),
        ({"labels_key": "objects/size"}, "feature 'objects/size' is .*, wanted ClassLabel"),
        ({"id_key": "name"}, "has no feature 'name'"),
        (
            {"id_key": "label"},
            r"train record \d has the same label '\d' as record \d; set id_key to a unique feature",
        ),
        ({"id_key": "raw"}, r"train record 0: the raw b'\\xff' is no id; set id_key to a feature of text"),
        ({"id_key": "labels"}, r"train record \d: the labels .* is no id"),
        ({"id_key": "nested"}, "train record 0: the nested .* is no id"),
        ({"train_split": "train[:0]"}, r"choose a split that has records, not 'train\[:0\]'"),
        ({"train_split": "unlabelled"}, "unlabelled record 0: label -1 is none of the 3 classes"),
    ],
)
def test_wrong_names_are_refused(root, options, message):
    with pytest.raises(InputError, match=message) as caught:
        Tfds(root, "train", **{"name": "tiny_photos", **options})
    assert "\n" not in str(caught.value)


@needs_tfds
def test_a_sequential_format_is_refused(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "tiny_photos" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        InputError, match=r"tiny_photos is prepared in .* in a format without random access; prepare it again"
    ):
        open_tiny(tmp_path)


def test_without_tfds_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'cfmlc_jax\[tfds\]'"):
        Tfds(tmp_path, "train", name="voc/2007")


@needs_tfds
def test_code_beside_the_records_is_not_run(tmp_path, monkeypatch):
    version = tmp_path / "data" / "tiny_photos" / "1.0.0"
    version.mkdir(parents=True)
    (version / "features.json").write_text('{"pythonClassName": "planted.Feature", "content": "x"}')
    (version / "dataset_info.json").write_text('{"name": "tiny_photos", "version": "1.0.0"}')
    (tmp_path / "planted.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"features are of class 'planted\.Feature', whose module would be run"
    ):
        Tfds(tmp_path / "data", "train", name="tiny_photos:1.0.0")
    # What the user has imported is known.
    monkeypatch.setitem(sys.modules, "planted", sys)
    tfds_source._require_known_classes(tmp_path / "data" / "tiny_photos")
