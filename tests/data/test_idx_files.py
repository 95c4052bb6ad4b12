import gzip
import re

import mnist_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfmlc_jax.data.sources import idx_files
from cfmlc_jax.errors import InputError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    mnist_files.accept_small_files(monkeypatch)
    return mnist_files.write_mnist(tmp_path)


def pack(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", idx_files.PARTS)
def test_packed_or_not(tmp_path, arrays, part, packed):
    if packed:
        for path in list(tmp_path.iterdir()):
            pack(path)
    digits = idx_files.read(tmp_path, part)
    np.testing.assert_array_equal(digits.ink, arrays[part][0])
    np.testing.assert_array_equal(digits.classes, arrays[part][1])
    assert digits.ink.dtype == np.uint8
    assert digits.classes.dtype == np.int64


def test_the_official_numbers_are_asked_for(tmp_path):
    mnist_files.write_mnist(tmp_path)
    with pytest.raises(InputError, match=r"60 images, wanted 60,000; download https.*train-images.*\.gz"):
        idx_files.read(tmp_path, "train")


def refusal(root):
    with pytest.raises(InputError) as refused:
        idx_files.read(root, "train")
    message = str(refused.value)
    assert "\n" not in message
    assert str(root) in message
    assert idx_files.URL in message
    return message


def test_a_missing_file(tmp_path, arrays):
    (tmp_path / LABELS).unlink()
    assert refusal(tmp_path) == (
        f"neither {tmp_path / LABELS} nor {LABELS}.gz exists; "
        f"download {idx_files.URL}{LABELS}.gz into {tmp_path}; it may stay packed"
    )


def test_a_folder_in_place_of_a_file(tmp_path, arrays):
    (tmp_path / LABELS).unlink()
    (tmp_path / f"{LABELS}.gz").mkdir()
    assert "Is a directory" in refusal(tmp_path)


def test_the_other_kind_of_file(tmp_path, arrays):
    images, labels = ((tmp_path / name).read_bytes() for name in (IMAGES, LABELS))
    (tmp_path / IMAGES).write_bytes(labels)
    assert f"{IMAGES} has labels, wanted images" in refusal(tmp_path)
    (tmp_path / IMAGES).write_bytes(images)
    (tmp_path / LABELS).write_bytes(images)
    assert f"{LABELS} has images, wanted labels" in refusal(tmp_path)
    (tmp_path / LABELS).write_bytes(b"\0\0\x08\x02" + labels[4:])
    assert "arrays with 2 dimensions" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        (b"", "begins with nothing"),
        (b"\x1f\x8b\x08\x00", "begins with 1f8b0800"),  # packed, but named as if not
        (b"\0\0\x0d\x03", "begins with 00000d03"),  # floats
        (b"<html>", "begins with 3c68746d"),
    ],
)
def test_no_idx_file_of_bytes(tmp_path, arrays, start, shown):
    (tmp_path / IMAGES).write_bytes(start)
    assert shown in refusal(tmp_path)


def test_cut_off_and_too_long(tmp_path, arrays):
    whole = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).write_bytes(whole[:-1])
    assert "is cut off after 47,039 of the 47,040 bytes" in refusal(tmp_path)
    (tmp_path / IMAGES).write_bytes(whole[:10])
    assert "is cut off in its header" in refusal(tmp_path)
    (tmp_path / IMAGES).write_bytes(whole + b"\0")
    assert "is longer than the 47,040 bytes" in refusal(tmp_path)


def test_damaged_packed_files(tmp_path, arrays):
    pack(tmp_path / IMAGES)
    path = tmp_path / f"{IMAGES}.gz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4] + b"abcd", b"no gzip", whole[:200] + b"\xff" * 50):
        path.write_bytes(damaged)
        assert "cannot be unpacked" in refusal(tmp_path)


def test_sizes_that_no_official_file_has(tmp_path, arrays):
    _, classes = arrays["train"]
    mnist_files.write_idx(tmp_path / IMAGES, np.zeros((60, 20, 28)))
    assert "images of 20 × 28 pixels, wanted 28 × 28" in refusal(tmp_path)
    (tmp_path / IMAGES).write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)  # 2^96 bytes
    assert "size 4,294,967,295 × 4,294,967,295 × 4,294,967,295" in refusal(tmp_path)
    mnist_files.write_mnist(tmp_path)
    mnist_files.write_idx(tmp_path / LABELS, classes[:50])
    assert "60 images in train-images-idx3-ubyte and 50 labels" in refusal(tmp_path)


def test_labels(tmp_path, arrays):
    _, classes = arrays["train"]
    mnist_files.write_idx(tmp_path / LABELS, np.where(np.isin(classes, (3, 7)), 1, classes))
    assert "no label is 3, 7; training needs all ten digits" in refusal(tmp_path)
    mnist_files.write_idx(tmp_path / LABELS, np.where(np.arange(60) == 12, 10, classes))
    assert "label 12 is 10, wanted 0 to 9" in refusal(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_told_in_one_line(tmp_path, arrays, data):
    """Cut anywhere, packed or not, or with other bytes in the header: an error, or the same digits."""
    mnist_files.write_mnist(tmp_path)
    path = tmp_path / data.draw(st.sampled_from([IMAGES, LABELS]))
    header = 16 if path.name == IMAGES else 8  # bytes; of a packed file, those behind it have a checksum
    content = path.read_bytes()
    if data.draw(st.booleans(), label="packed"):
        path.unlink()
        path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, mtime=0)
    cut = data.draw(st.integers(0, len(content) - 1), label="cut")
    changed = bytearray(content if data.draw(st.booleans(), label="whole") else content[:cut])
    for place in data.draw(st.lists(st.integers(0, header - 1), max_size=3), label="changed bytes"):
        if place < len(changed):
            changed[place] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    message = ""
    try:
        digits = idx_files.read(tmp_path, "train")
    except InputError as error:
        message = str(error)
    path.unlink()
    if message:
        assert re.fullmatch(r"[^\n]+; [^\n]+", message)
    else:
        np.testing.assert_array_equal(digits.classes, arrays["train"][1])
        np.testing.assert_array_equal(digits.ink, arrays["train"][0])
