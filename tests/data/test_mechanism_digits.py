import multiprocessing
import pickle
import re
import zlib
from concurrent.futures import ProcessPoolExecutor

import mnist_files
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.data import build
from cfmlc_jax.data.sources import (
    checks,
    colored_mnist_file,
    digit_looks,
    idx_files,
    mechanism_digits,
    scenes,
)
from cfmlc_jax.data.sources.mechanism_digits import SPLITS, embedded, official
from cfmlc_jax.errors import InputError

EMBEDDED = ("colored_digits", "double_colored_digits", "wildlife_digits")
OFFICIAL = ("colored_mnist", "double_colored_mnist", "wildlife_mnist")
SIZES = {"train": 3500, "val": 500, "test_iid": 1000, "test": 1000, "train_decorrelated": 3500}
SHAPE, TEXTURE, BACKGROUND = (mechanisms.MECHANISMS.index(name) for name in mechanisms.MECHANISMS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Small files of MNIST and textures; the training file is split at 40."""
    mnist_files.accept_small_files(monkeypatch)
    mnist_files.write_mnist(tmp_path)
    mnist_files.write_textures(tmp_path)
    end, all_tests = slice(40, 60), slice(0, 20)
    files = {"train": ("train", slice(0, 40)), "val": ("t10k", all_tests), "test": ("train", end)}
    monkeypatch.setattr(mechanism_digits, "_MNIST", files)
    coloured = files | {"val": ("train", end), "test": ("t10k", all_tests)}
    monkeypatch.setattr(mechanism_digits, "_COLORED_MNIST", coloured)
    return tmp_path


def opened(name, split, root, seed=0):
    return embedded(name, split, seed=seed) if name in EMBEDDED else official(name, root, split, seed=seed)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", EMBEDDED + OFFICIAL)
def test_source_contract(name, split, root):
    source = opened(name, split, root)
    n = len(source)
    assert n == (SIZES[split] if name in EMBEDDED else 40 if "train" in split else 20)
    assert len(source.ids) == len(set(source.ids)) == n
    assert source.labels.shape == (n, 10)
    assert source.labels.dtype == np.uint8
    assert source.mechanisms.shape == (n, 3)
    assert source.mechanisms.dtype == np.int32
    np.testing.assert_array_equal(source.labels, np.eye(10)[source.mechanisms[:, SHAPE]])
    for index in range(-3, 20):
        record, mask = source[index], source.mask(index)
        assert record["image"].shape == (32, 32, 3)
        assert record["image"].dtype == np.uint8
        np.testing.assert_array_equal(record["labels"], source.labels[index])
        assert record["id"] == source.ids[index]
        assert split in record["where"]
        assert mask.shape == (32, 32)
        assert mask.dtype == bool
    for outside in (n, -n - 1):
        with pytest.raises(IndexError):
            source[outside]
        with pytest.raises(IndexError):
            source.mask(outside)
    checks.require_one_label(split, source, "cross_entropy")


@pytest.mark.parametrize("name", EMBEDDED + OFFICIAL)
def test_cues_agree_in_training_and_are_independent_in_test(name, root):
    for split in ("train", "val", "test_iid"):
        labels = opened(name, split, root).mechanisms
        assert (labels == labels[:, :1]).all()
    if name in OFFICIAL:
        return  # too few for statistics
    for split in ("test", "train_decorrelated"):
        labels = embedded(name, split).mechanisms
        for a, b in ((SHAPE, TEXTURE), (SHAPE, BACKGROUND), (TEXTURE, BACKGROUND)):
            table = np.zeros((10, 10))
            np.add.at(table, (labels[:, a], labels[:, b]), 1)
            expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(labels)
            # χ² of 81 degrees of freedom: mean 81, deviation 12.7.
            assert ((table - expected) ** 2 / expected).sum() < 81 + 4 * 12.7
            assert table.sum(axis=0).min() > 0.07 * len(labels)


def test_in_one_of_ten_test_images_the_digit_has_the_colour_of_its_background():
    """Ten pairs of labels, always with the same difference: a ceiling of about 91 % for a classifier."""
    source = embedded("double_colored_digits", "test")
    same = (source.mechanisms[:, TEXTURE] + 4) % 10 == source.mechanisms[:, BACKGROUND]
    assert same.mean() == 0.105  # of 1,000
    for index, is_same in enumerate(same[:200]):
        image, mask = source[index]["image"].astype(int), source.mask(index)
        difference = np.abs(image[mask][0] - image[~mask][0]).max()
        assert (difference < 20) == is_same
    train = embedded("double_colored_digits", "train").mechanisms
    assert not ((train[:, TEXTURE] + 4) % 10 == train[:, BACKGROUND]).any()


@pytest.mark.parametrize("split", ["train", "test"])
def test_masks_and_colours_of_double_coloured_digits(split):
    source = embedded("double_colored_digits", split)
    residues = []
    for index in range(300):
        image, mask = source[index]["image"], source.mask(index)
        assert 0.03 < mask.mean() < 0.45
        _, texture, background = source.mechanisms[index]
        for pixels, colours, label in (
            (image[mask], digit_looks.OBJECT_COLOURS, texture),
            (image[~mask], digit_looks.BACKGROUND_COLOURS, background),
        ):
            assert (pixels == pixels[0]).all()
            wanted = 255 * colours[label].astype(float)
            assert np.abs(pixels[0] - wanted).max() < 255 * 0.06
            residues += (pixels[0] - wanted)[(wanted > 20) & (wanted < 235)].tolist()
    assert np.std(residues) == pytest.approx(255 * 0.01, rel=0.1)
    assert abs(np.mean(residues)) < 0.3


def test_coloured_digits_are_on_black_with_their_jitter():
    source = embedded("colored_digits", "train")
    residues = []
    for index in range(1000):
        image, mask = source[index]["image"], source.mask(index)
        assert not image[~mask].any()
        assert (image[mask] == image[mask][0]).all()
        assert image[mask].any()
        wanted = 255 * digit_looks.MEAN_COLOURS[source.mechanisms[index, TEXTURE]].astype(float)
        inside = np.abs(wanted - 127.5) < 60  # rarely clipped
        residues += (image[mask][0] - wanted)[inside].tolist()
    assert np.std(residues) == pytest.approx(255 * 0.02**0.5, rel=0.1)
    # Another enlargement than that of the other variants, as in the reference.
    other = embedded("double_colored_digits", "train")
    assert any((source.mask(index) != other.mask(index)).any() for index in range(10))


def shows(texture, pixels, mask):
    """Whether the pixels inside the mask are those of some crop of the texture."""
    crops = np.lib.stride_tricks.sliding_window_view(texture, (32, 32), axis=(0, 1))
    rows, columns = np.nonzero(mask)
    first = (crops[:, :, :, rows[0], columns[0]] == pixels[rows[0], columns[0]]).all(axis=-1)
    return any(
        (crops[top, left][:, mask] == pixels[mask].T).all() for top, left in np.argwhere(first)
    )  # fmt: skip


@pytest.mark.parametrize("name", ["wildlife_digits", "wildlife_mnist"])
def test_textured_digits_show_crops_of_their_labels_textures(name, root):
    textures = digit_looks.embedded_textures() if name in EMBEDDED else digit_looks.read_textures(root)
    source = opened(name, "test", root)
    for index in range(12):
        image, mask = source[index]["image"], source.mask(index)
        _, texture, background = source.mechanisms[index]
        assert shows(textures.objects[texture], image, mask)
        assert shows(textures.backgrounds[background], image, ~mask)


def test_embedded_textures_differ_and_digits_stand_out_from_every_background():
    textures = digit_looks.embedded_textures()
    every = [*textures.objects, *textures.backgrounds]
    assert len({texture.tobytes() for texture in every}) == 20
    assert all(min(texture.shape[:2]) >= 32 and texture.shape[2] == 3 for texture in every)
    source = embedded("wildlife_digits", "test")
    for index in range(len(source)):
        image, mask = source[index]["image"].mean(axis=-1), source.mask(index)
        assert image[mask].mean() - image[~mask].mean() > 30


def test_texture_files_are_prepared_as_in_the_reference(root):
    """Nearest 150 × 150 of the file, and three pixels more on each side, mirrored without the edge."""
    textures = digit_looks.read_textures(root)
    for kind, prepared in (("object", textures.objects), ("background", textures.backgrounds)):
        for digit, texture in enumerate(prepared):
            with Image.open(root / "textures" / kind / f"{digit}_some_{99 - digit}.jpg") as file:
                pixels = np.asarray(file)
            rows, columns = ((2 * np.arange(150) + 1) * side // 300 for side in pixels.shape[:2])
            around = np.abs(np.arange(-3, 153))
            around = np.where(around > 149, 298 - around, around)
            np.testing.assert_array_equal(texture, pixels[rows][:, columns][around][:, around])


@pytest.mark.parametrize(("draw", "top"), [(0.0, 0), (1 - 2**-53, 124)])
def test_crops_reach_both_ends(draw, top):
    texture = np.arange(156 * 156, dtype=np.int64).reshape(156, 156, 1)
    assert digit_looks.crop(texture, draw, draw)[0, 0, 0] == top * 157


def test_normals():
    uniform = (np.arange(10_001) + 0.5) / 10_001
    numbers = digit_looks.normals(uniform.tolist())
    assert numbers.dtype == np.float32
    assert numbers[5000] == 0
    assert np.std(numbers) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(numbers, -numbers[::-1], atol=1e-5)
    assert np.isfinite(digit_looks.normals([0.0, 1 - 2**-53])).all()


@pytest.mark.parametrize("name", EMBEDDED)
def test_pixels_are_the_same_in_any_order_and_for_every_open(name):
    first, second = embedded(name, "test"), embedded(name, "test")
    forwards = [first[index]["image"] for index in range(30)]
    backwards = [second[index]["image"] for index in reversed(range(30))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(first.mechanisms, second.mechanisms)
    np.testing.assert_array_equal(first[-1]["image"], first[len(first) - 1]["image"])
    assert repr(first) == repr(second)
    # A record is the caller's own.
    first[0]["image"][:] = 0
    first[0]["labels"][:] = 0
    np.testing.assert_array_equal(first[0]["image"], forwards[0])


@pytest.mark.parametrize("name", EMBEDDED)
def test_another_seed_draws_anew_with_the_same_handwritings(name):
    first, second = embedded(name, "test"), embedded(name, "test", seed=1)
    assert repr(first) != repr(second)
    assert first.ids == second.ids
    assert (first.mechanisms[:, 1:] != second.mechanisms[:, 1:]).mean() > 0.85
    np.testing.assert_array_equal(first.mask(3), second.mask(3))
    assert (first[3]["image"] != second[3]["image"]).any()
    train, decorrelated = embedded(name, "train"), embedded(name, "train_decorrelated")
    np.testing.assert_array_equal(train.mask(3), decorrelated.mask(3))
    np.testing.assert_array_equal(train.labels, decorrelated.labels)


@pytest.mark.parametrize(
    ("name", "checksum"),
    [("colored_digits", 0xC8B84A99), ("double_colored_digits", 0xB74D5875), ("wildlife_digits", 0x0CFCA4F1)],
)
def test_known_pixels(name, checksum):
    """The same on every machine."""
    source = embedded(name, "test")
    images = b"".join(source[index]["image"].tobytes() for index in range(100))
    assert zlib.crc32(images, zlib.crc32(source.mechanisms.tobytes())) == checksum


def test_splits_share_no_handwriting(root):
    rows = {
        part: {row.tobytes() for row in embedded("colored_digits", part)._handwritings.ink}
        for part in ("train", "val", "test")
    }
    assert {part: len(inks) for part, inks in rows.items()} == {"train": 3500, "val": 500, "test": 1000}
    assert not rows["train"] & rows["val"] | rows["train"] & rows["test"] | rows["val"] & rows["test"]
    for name in EMBEDDED + OFFICIAL:
        inks = {part: opened(name, part, root)._handwritings.ink for part in SPLITS}
        np.testing.assert_array_equal(inks["train"], inks["train_decorrelated"])
        np.testing.assert_array_equal(inks["test"], inks["test_iid"])
        checks.require_disjoint(opened(name, "train", root), opened(name, "test", root))
    assert len(scenes.digit_images()[0]) == 5000


def first_images(source):
    return [source[index]["image"] for index in range(5)]


@pytest.mark.parametrize("name", EMBEDDED)
def test_reading_from_other_processes(name):
    sources = [embedded(name, split) for split in ("train", "test")]
    assert [repr(source) for source in pickle.loads(pickle.dumps(sources))] == list(map(repr, sources))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for source, images in zip(sources, pool.map(first_images, sources), strict=True):
            np.testing.assert_array_equal(images, first_images(source))


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_in_their_order(name, root):
    arrays = mnist_files.write_mnist(root)
    file, rows = ("t10k", slice(0, 20)) if name == "colored_mnist" else ("train", slice(40, 60))
    np.testing.assert_array_equal(official(name, root, "train").mechanisms[:, 0], arrays["train"][1][:40])
    np.testing.assert_array_equal(official(name, root, "test").mechanisms[:, 0], arrays[file][1][rows])
    places = digit_looks.BY_CENTRE if name == "colored_mnist" else digit_looks.BY_CORNER
    expected = arrays[file][0][rows][3][np.ix_(places, places)] / 255 > 0.1
    np.testing.assert_array_equal(official(name, root, "test").mask(3), expected)
    config = type("Data", (), {"source": name, "root": str(root)})
    assert repr(build.source(config, "val")) == repr(official(name, root, "val"))


def test_the_reference_trains_on_50000():
    for files in (mechanism_digits._MNIST, mechanism_digits._COLORED_MNIST):
        assert files["train"] == ("train", slice(0, 50_000))
        parts = {(part, rows.start, rows.stop) for part, rows in files.values()}
        assert parts == {("train", 0, 50_000), ("train", 50_000, 60_000), ("t10k", 0, 10_000)}
    assert mechanism_digits._MNIST["test"] == ("train", slice(50_000, 60_000))


def test_other_textures_are_other_data(root):
    before = repr(official("wildlife_mnist", root, "train"))
    path = next((root / "textures" / "object").iterdir())
    Image.new("RGB", (200, 200)).save(path)
    assert repr(official("wildlife_mnist", root, "train")) != before


def texture_refusal(root):
    with pytest.raises(InputError) as refused:
        official("wildlife_mnist", root, "train")
    assert re.fullmatch(r"[^\n]+; [^\n]+", str(refused.value))
    return str(refused.value)


def test_textures_that_cannot_be_used(root):
    path = root / "textures" / "object" / "4_some_95.jpg"
    Image.new("RGB", (300, 149)).save(path)
    assert texture_refusal(root) == (
        f"{path} has mode RGB and 300 × 149 pixels; give an RGB JPEG of at least 150 × 150 pixels"
    )
    Image.new("L", (300, 300)).save(path)
    assert "has mode L and 300 × 300 pixels" in texture_refusal(root)
    path.write_bytes(b"no image")
    assert "cannot be read as an image" in texture_refusal(root)
    path.unlink()
    assert "has files for 0 1 2 3 5 6 7 8 9, wanted one for each digit" in texture_refusal(root)
    for file in path.parent.iterdir():
        file.unlink()
    assert "has no .jpg files" in texture_refusal(root)


def test_wrong_arguments(root):
    for name in EMBEDDED + OFFICIAL:
        with pytest.raises(InputError, match=f"{name}: split 'tests' does not exist; use one of train, val"):
            opened(name, "tests", root)
        with pytest.raises(InputError, match=f"{name}: seed -1 is negative"):
            opened(name, "train", root, seed=-1)


def write_recorded(root, **changes):
    """The coloured file of the small data: ink in one colour for each image."""
    arrays = mnist_files.write_mnist(root)
    content = {}
    for part, key in (("train", "train"), ("t10k", "test")):
        ink, classes = arrays[part]
        colours = (255 * digit_looks.MEAN_COLOURS[classes]).astype(np.uint8)
        content[f"{key}_image"] = np.where(ink[..., None] > 99, colours[:, None, None], 0).astype(np.uint8)
        content[f"{key}_label"] = classes
    content.update(changes)
    np.save(root / colored_mnist_file.NAME, np.array(content), allow_pickle=True)
    return content


def test_recorded_colours_are_used_as_they_are(root):
    painted = official("colored_mnist", root, "train")
    content = write_recorded(root)
    places = np.ix_(digit_looks.BY_CENTRE, digit_looks.BY_CENTRE)
    for split, images in (
        ("train", content["train_image"][:40]),
        ("val", content["train_image"][40:]),
        ("test", content["test_image"]),
    ):
        source = official("colored_mnist", root, split)
        assert repr(source) != repr(painted)
        for index, image in enumerate(images):
            np.testing.assert_array_equal(source[index]["image"], image[places])
            np.testing.assert_array_equal(source.mask(index), image[places].any(axis=-1))
    # Here the test images have the colours of their digits, which is found out.
    test = official("colored_mnist", root, "test")
    np.testing.assert_array_equal(test.mechanisms[:, TEXTURE], test.mechanisms[:, SHAPE])
    # The other splits are painted, with the recorded shapes.
    anew = official("colored_mnist", root, "train_decorrelated")
    train = official("colored_mnist", root, "train")
    np.testing.assert_array_equal(anew.mask(0), train.mask(0))
    assert (anew.mechanisms[:, TEXTURE] != anew.mechanisms[:, SHAPE]).any()
    assert (anew[0]["image"][anew.mask(0)] == anew[0]["image"][anew.mask(0)][0]).all()


def recorded_refusal(root):
    with pytest.raises(InputError) as refused:
        official("colored_mnist", root, "train")
    assert re.fullmatch(r"[^\n]+; [^\n]+", str(refused.value))
    return str(refused.value)


def test_recorded_colours_that_cannot_be_used(root):
    content = write_recorded(root, train_image=np.zeros((60, 32, 32, 3), np.uint8))
    assert "uint8 images [60, 32, 32, 3] and 60 labels, wanted uint8 images [60, 28, 28, 3]" in (
        recorded_refusal(root)
    )
    write_recorded(root, train_label=content["train_label"] / 2)
    assert "labels are float64" in recorded_refusal(root)
    write_recorded(root, train_label=np.ones(60, int))
    assert "no label is 0, 2, 3" in recorded_refusal(root)
    path = root / colored_mnist_file.NAME
    np.save(path, np.array({"test_image": 0}), allow_pickle=True)
    assert "KeyError: 'train_image'" in recorded_refusal(root)
    np.save(path, np.zeros(3))
    assert "cannot be read" in recorded_refusal(root)
    for content in (b"", b"\x93NUMPY", b"PK\x03\x04"):
        path.write_bytes(content)
        assert "cannot be read" in recorded_refusal(root)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_code_in_recorded_colours_is_not_run(root, capsys):
    np.save(root / colored_mnist_file.NAME, np.array({"train_image": Evil()}), allow_pickle=True)
    assert "builtins.print is neither an array nor a plain value" in recorded_refusal(root)
    assert "run" not in capsys.readouterr().out


def test_the_official_number_of_recorded_colours_is_asked_for(root, monkeypatch):
    write_recorded(root)
    monkeypatch.setattr(idx_files, "PARTS", {"train": 60_000, "t10k": 10_000})
    assert "wanted uint8 images [60000, 28, 28, 3]" in recorded_refusal(root)


@pytest.mark.parametrize("name", EMBEDDED + OFFICIAL)
def test_other_labels_change_nothing_but_their_mechanism(name, root):
    source = opened(name, "test", root)
    shapes = source.mechanisms[:, SHAPE]
    other = (shapes + 1) % 10
    agreeing, texture, background = (
        source.painted_with(*labels) for labels in ((shapes, shapes), (other, shapes), (shapes, other))
    )
    assert len({repr(each) for each in (source, agreeing, texture, background)}) == 4
    np.testing.assert_array_equal(texture.mechanisms, np.column_stack([shapes, other, shapes]))
    for index in (0, 7):
        inside = source.mask(index)
        image, painted, behind = (each[index]["image"] for each in (agreeing, texture, background))
        np.testing.assert_array_equal(painted[~inside], image[~inside])
        np.testing.assert_array_equal(behind[inside], image[inside])
        assert (painted[inside] != image[inside]).any()
        assert (behind[~inside] != image[~inside]).any() == source.shows_background
    again = source.painted_with(*source.mechanisms[:, 1:].T)
    np.testing.assert_array_equal(again[3]["image"], source[3]["image"])


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_larger_canvas_has_the_digit_in_its_middle(name):
    source = embedded(name, "test")
    large = source.painted_with(*source.mechanisms[:, 1:].T, side=64)
    assert "side=64" in repr(large)
    assert large[5]["image"].shape == (64, 64, 3)
    np.testing.assert_array_equal(large.mask(5)[16:48, 16:48], source.mask(5))
    assert large.mask(5).sum() == source.mask(5).sum()
    if name != "wildlife_digits":  # one colour each, whatever the size
        np.testing.assert_array_equal(large[5]["image"][16:48, 16:48], source[5]["image"])
