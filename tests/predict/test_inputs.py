"""What the arguments of a command mean, whatever stdin brings."""

import contextlib
import io
import os
import tempfile

import hypothesis
import pytest
from fuzzing import cases
from hypothesis import strategies as st
from PIL import Image

from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.views import formats
from cfmlc_jax.errors import InputError
from cfmlc_jax.predict import inputs

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
fuzz = cases(300)


def encoded(kind, **options):
    data = io.BytesIO()
    Image.new("RGB", (8, 6), (90, 80, 70)).save(data, kind, **options)
    return data.getvalue()


def find(*arguments, stdin=b""):
    return inputs.find(arguments, io.BytesIO(stdin))


# Kinds


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_every_kind_that_is_read_is_known_by_its_first_bytes(kind):
    head = encoded(kind)[: formats.HEAD_BYTES]
    assert formats.kind_of(head) == kind
    assert formats.refusal("a.heic", head) is None or kind == "TIFF"
    assert formats.refusal("a.jpg", head) is None


def test_variants_of_kinds():
    assert formats.kind_of(encoded("TIFF", big_tiff=True)) == "TIFF"
    assert formats.kind_of(encoded("JPEG2000", no_jp2=True)) == "JPEG2000"
    assert formats.kind_of(encoded("MPO")) == "JPEG"
    assert formats.kind_of(b"P2 # a comment\n# and another\n3 4\n255\n") == "PPM"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (HEIC, "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0", "HEIF"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">', "SVG"),
    ],
)
def test_kinds_that_are_not_read(head, kind):
    assert formats.kind_of(head) == kind
    assert formats.refusal("a.jpg", head).startswith(f"an image of an unsupported kind, {kind} (JPEG, PNG")


@pytest.mark.parametrize(
    "text", [b"", b"a.jpg\n", b"BMW/a.jpg\n", b"P5 old/a.jpg\n", b"RIFF.txt", b"GIFs/a.gif"]
)
def test_paths_are_not_mistaken_for_images(text):
    assert formats.kind_of(text) is None


def test_no_suffix_is_both_supported_and_unsupported():
    assert set(formats.SUFFIXES).isdisjoint(formats.UNREAD_SUFFIXES)
    both = {*formats.SUFFIXES, *formats.UNREAD_SUFFIXES}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in both)
    assert {".avif", ".heic", ".jxl", ".dng", ".psd", ".svg"} <= both


# Folders


def test_pictures_in_a_folder_that_are_not_read_are_named_and_counted(tmp_path):
    for name in ("b.HEIC", "below/c.jxl", "d.cr2", "e.svg", ".hidden.heic", ".hidden/f.heic", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.jpg").touch()
    inputs_read = find(str(tmp_path))
    assert inputs_read.paths == [str(tmp_path / "a.jpg")]
    (problem,) = inputs_read.problems
    assert problem == (
        f"folder {str(tmp_path)!r}: 4 files of kinds that are not read ('b.HEIC', 'd.cr2', 'e.svg', …); convert to JPEG or PNG",
        4,
    )
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(
        InputError, match=r"there is no image to predict \(folder .*: 4 files of kinds that are not"
    ):
        find(str(tmp_path))
    only = tmp_path / "only"
    only.mkdir()
    (only / "g.NEF").touch()
    with pytest.raises(InputError, match=r"1 file of a kind that is not read \('g.NEF'\)"):
        find(str(only))


# stdin


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_an_image_on_stdin(tmp_path, kind):
    (tmp_path / "a.jpg").touch()
    data = encoded(kind)
    inputs_read = find(str(tmp_path), "-", "-", stdin=data)
    assert inputs_read == ([str(tmp_path / "a.jpg"), "stdin"], {"stdin": data}, [])
    # Its end is looked for where it is decoded.
    assert find("-", stdin=data[:40]).contents == {"stdin": data[:40]}


def test_a_file_that_is_called_as_the_image_on_stdin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stdin").touch()
    (tmp_path / "-").touch()
    inputs_read = find("stdin", "./-", "-", stdin=encoded("PNG"))
    assert inputs_read.paths == ["./stdin", "./-", "stdin"]
    assert list(inputs_read.contents) == ["stdin"]


def test_lists_on_stdin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.jpg", "P5 old.png", "two\nlines.jpg", "BMW.jpg", "Ünïcödé.jpg"]
    for name in names:
        (tmp_path / name).touch()
    lines = [name for name in names if "\n" not in name]
    assert find("-", stdin="\n".join(lines).encode()).paths == lines
    assert find("-", stdin=b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode()).paths == lines
    assert find("-", stdin="".join(f"{name}\0" for name in names).encode()).paths == names
    gone = find("-", stdin=b"gone.jpg\0a.jpg\0BMW.jpg\0")
    assert gone.paths == ["a.jpg", "BMW.jpg"]
    assert gone.problems == [("'gone.jpg' does not exist", 1)]
    # No UTF-8, but a path.
    os.close(os.open(b"latin-1 \xe9.jpg", os.O_CREAT))
    assert find("-", stdin=b"latin-1 \xe9.jpg\n").paths == [os.fsdecode(b"latin-1 \xe9.jpg")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "stdin is empty"),
        (b"\n\r\n", "stdin is empty"),
        (
            b"\x1f\x8b\x08\0" + bytes(range(256)),
            "stdin: 260 bytes that are neither an image nor a list of paths",
        ),
        (b"\x89\xff\xfe", "stdin: 3 bytes that are neither"),
        ("a.jpg\n".encode("utf-16"), "stdin: 14 bytes that are neither"),
        (bytes(1000), "stdin: 1000 bytes that are neither"),
        (b"gone.jpg\n", "'gone.jpg' does not exist"),
        (b"x" * 100_000, "x'… does not exist"),
        (b"<!DOCTYPE html>\n", "'<!DOCTYPE html>' does not exist"),
    ],
)
def test_invalid_stdin_is_refused(data, words):
    with pytest.raises(InputError, match=r"^there is no image to predict \(") as error:
        find("-", stdin=data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_stdin_above_the_size_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="stdin: more than 100 bytes"):
        find("-", stdin=bytes(101))


@fuzz
@hypothesis.given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text(alphabet="*?[]!{}~$/.\\\n\r\0ab", max_size=30).map(str.encode),
    )
)
def test_any_stdin_is_an_image_a_list_or_one_line(data):
    with tempfile.TemporaryDirectory() as folder:
        empty = os.path.join(folder, "empty")
        os.mkdir(empty)
        with contextlib.chdir(empty):
            # Nothing is looked for elsewhere.
            inputs_read, message = outcome(data.replace(b"/", b"_"))
    assert inputs_read is None or inputs_read.paths
    assert len(message.splitlines()) == (inputs_read is None)


def outcome(data):
    try:
        return find("-", stdin=data), ""
    except InputError as error:
        return None, str(error)


# Data sets


def test_a_data_set_of_a_kind_that_is_not_read_is_refused_when_it_is_opened(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    # A photo is one whatever it is called.
    (tmp_path / "b.HEIC").write_bytes(encoded("JPEG"))
    (tmp_path / "train.csv").write_text("a.jpg,dog\nb.HEIC,cat\n")
    assert len(Table(tmp_path, "train")) == 2
    (tmp_path / "b.HEIC").write_bytes(HEIC)
    with pytest.raises(
        InputError, match=r"b\.HEIC: an image of an unsupported kind, HEIF .*; convert it to JPEG"
    ):
        Table(tmp_path, "train")
    # Pillow would read its thumbnail.
    (tmp_path / "c.dng").write_bytes(encoded("TIFF"))
    (tmp_path / "d.nef").write_bytes(encoded("TIFF"))
    (tmp_path / "x_train.txt").write_text("a.jpg 0\nc.dng 1\nd.nef 1\n")
    with pytest.raises(
        InputError, match=r"c\.dng: an image of an unsupported kind, \.dng .*\(1 more have such names\)"
    ):
        ImageList(tmp_path, "train", stem="x")
