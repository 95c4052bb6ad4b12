"""Prediction as a user meets it: formats, odd and broken files, overlays, ends."""

import csv
import functools
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build, examples, opening, scoring
from cfmlc_jax.classify.predictor import Predictor
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views import formats
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.predict import overlay
from cfmlc_jax.results.predictions import WHOLE, Prediction
from cfmlc_jax.results.scores import probabilities
from scripts import load

NAMES = [f"digit {i}" for i in range(10)]


def tiny_config(**fields):
    path = Path(__file__).parents[1] / "configs" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(fields)
    return configs.validate(config)


def write_checkpoint(path, *, class_names=NAMES, **fields):
    """A checkpoint that was not trained, but whose patches and classes differ in what they say."""
    config = tiny_config(**fields)
    parts = build.create(config, len(NAMES))
    model = build.initial(config, parts)
    rng = np.random.default_rng(0)

    def larger(place, leaf):
        if "head" not in jax.tree_util.keystr(place):
            return leaf
        return jax.device_put(rng.normal(0, 0.5, leaf.shape).astype(np.float32), leaf.sharding)

    model = jax.tree_util.tree_map_with_path(larger, model)
    meta = {"config": configs.to_json(config), "class_names": class_names, "num_classes": len(NAMES)}
    checkpoints.write(path, model=model, meta=meta)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("pat_t") / "model")


@functools.cache
def compiled(path, **how):
    return Predictor(path, **how)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def from_cache(path, *, batch_size, **how):
        # With eight devices a batch of one is one of eight.
        return compiled(path, batch_size=-(-batch_size // 8) * 8, **how)

    monkeypatch.setattr(predict, "Predictor", from_cache)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = predict.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def picture(seed=0, size=(50, 40)):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Three photos in a folder and one below it."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i, name in enumerate(["a.jpg", "b.png", "c.webp", "below/a.jpg"]):
        picture(i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image")
    return folder


def lines_of(out):
    return [json.loads(line) for line in out.splitlines()]


def assert_error(result, *words):
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


# What is predicted


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Ten scenes as files, and their source."""
    folder = tmp_path_factory.mktemp("scenes")
    source = Scenes("test_iid", num_scenes=10, size=64)
    for i in range(10):
        Image.fromarray(source[i]["image"]).save(folder / f"{i}.png")
    return folder, source


@pytest.fixture(scope="module")
def evaluated(checkpoint, scenes):
    """What the evaluation makes of the scenes."""
    opened = opening.open(checkpoint)
    kinds = ("whole", "pivot", "owner")
    score = scoring.score_step(opened.config, opened.parts, kinds, attention=np.float16)
    return scoring.score_split(opened.parts, score, opened.model, scenes[1], batch_size=16)["average"]


@pytest.mark.parametrize(
    "prediction", ["combined", "whole", "patch", "tde_whole_0.7", "tde_pivot_0.7", "tde_owner_0.7"]
)
def test_scores_are_those_of_the_evaluation(command, checkpoint, scenes, evaluated, prediction):
    expected = probabilities(evaluated.predictions((0.7,))[Prediction.parse(prediction)])
    assert evaluated.attention.dtype == np.float16
    weights = np.exp(evaluated.attention.astype(np.float32))
    weights /= weights.sum(axis=1, keepdims=True)
    code, out, err = command(
        f"--checkpoint={checkpoint}", "--format=jsonl", "--threshold=0", f"--prediction={prediction}", scenes[0]
    )  # fmt: skip
    assert code == 0
    assert err.startswith("10 predicted, 0 skipped")
    for line in lines_of(out):
        i = int(Path(line["file"]).stem)
        assert len(line["labels"]) == 10
        for label in line["labels"]:
            k = label["index"]
            assert label["class"] == NAMES[k]
            assert label["probability"] == pytest.approx(expected[i, k], abs=1e-5)
            patch = 2 * label["pivot"]["column"] + label["pivot"]["row"]
            assert weights[i, patch, k] > weights[i, :, k].max() - 1e-3
            assert label["pivot"]["weight"] == pytest.approx(weights[i, patch, k], abs=2e-3)
            left, top = 32 * label["pivot"]["column"], 32 * label["pivot"]["row"]
            assert label["pivot"]["box"] == [left, top, left + 32, top + 32]


def test_classes_are_listed_by_threshold_and_top(command, checkpoint, photos):
    def listed(*flags):
        out = command(f"--checkpoint={checkpoint}", "--format=jsonl", *flags, photos / "a.jpg")[1]
        return [(label["index"], label["probability"]) for label in lines_of(out)[0]["labels"]]

    everything = listed("--threshold=0")
    assert [p for _, p in everything] == sorted([p for _, p in everything], reverse=True)
    assert len(everything) == 10
    assert listed() == [item for item in everything if item[1] > 0.5]
    assert 0 < len(listed()) < 10
    assert listed("--top=3") == everything[:3]
    assert listed("--top=10") == everything
    third = everything[2][1]
    assert listed("--top=9", f"--threshold={third + 1e-6}") == everything[:2]
    assert listed("--threshold=1") == []


def test_all_formats_have_the_same_content(command, checkpoint, photos):
    def run(form, *more):
        return command(f"--checkpoint={checkpoint}", f"--format={form}", *more, photos)[1]

    objects = lines_of(run("jsonl"))
    assert [Path(line["file"]).name for line in objects] == ["a.jpg", "b.png", "c.webp", "a.jpg"]
    rows = list(csv.DictReader(io.StringIO(run("csv"))))
    expected = [(line["file"], label) for line in objects for label in line["labels"]]
    assert len(rows) == len(expected)
    for row, (file, label) in zip(rows, expected):
        assert (row["file"], row["class"]) == (file, label["class"])
        assert float(row["probability"]) == label["probability"]
        assert int(row["pivot_column"]) == label["pivot"]["column"]
        assert int(row["pivot_row"]) == label["pivot"]["row"]
        assert float(row["pivot_weight"]) == label["pivot"]["weight"]
    table = run("table").splitlines()
    assert table[0].split() == ["file", "class", "probability", "pivot", "weight"]
    assert len(table) == 1 + len(expected)
    for line, (file, label) in zip(table[1:], expected):
        assert line.startswith(f"{file}  ")
        assert f"{label['class']}  " in line
        assert (
            f"{label['probability']:.3f}  column {label['pivot']['column']}, row {label['pivot']['row']} of 2 x 2"
            in line
        )
    # An image of which nothing is listed is there too.
    assert run("csv", "--threshold=1").splitlines()[1].endswith("a.jpg" + "," * 6)
    assert run("table", "--threshold=1").splitlines()[1].split()[1:] == ["–"] * 4


def test_pivot_boxes_are_in_pixels_of_the_photo(command, checkpoint, photos):
    picture(size=(300, 100)).save(photos / "wide.png")
    out = command(f"--checkpoint={checkpoint}", "--format=jsonl", "--top=1", photos / "wide.png")[1]
    pivot = lines_of(out)[0]["labels"][0]["pivot"]
    left, top = 150 * pivot["column"], 50 * pivot["row"]
    assert pivot["box"] == [left, top, left + 150, top + 50]


def test_both_sets_of_weights(tmp_path, checkpoint, photos):
    opened = opening.open(checkpoint)
    parts, model = opened.parts, opened.model
    how = {"prediction": WHOLE, "with_effect": False, "batch_size": 1}
    views = np.full((1, 5, 32, 32, 3), 90, np.uint8)
    for weights, key in (("weights", "variables"), ("average", "average")):
        outputs = parts.model.apply(model[key], views / np.float32(255), train=False)
        actual = Predictor(checkpoint, weights=weights, **how)(views)[0].probabilities
        np.testing.assert_allclose(actual, jax.nn.sigmoid(outputs.whole[0, 0]), atol=1e-5)


def test_exif_orientation_is_honoured(command, checkpoint, tmp_path):
    upright = picture(size=(60, 40))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    out = command(f"--checkpoint={checkpoint}", "--format=jsonl", "upright.png", "turned.png")[1]
    first, second = lines_of(out)
    assert first["labels"] == second["labels"] != []


def test_a_method_without_patches(command, tmp_path, photos):
    whole = {"method": "whole", "effect.kinds": ("whole",)}
    flag = f"--checkpoint={write_checkpoint(tmp_path / 'whole', **whole)}"
    code, out, _ = command(flag, "--format=jsonl", "--threshold=0", photos)
    assert code == 0
    assert all(label["pivot"] is None for line in lines_of(out) for label in line["labels"])
    rows = list(csv.DictReader(io.StringIO(command(flag, "--format=csv", "--top=1", photos)[1])))
    assert len(rows) == 4
    assert {(row["pivot_column"], row["pivot_row"], row["pivot_weight"]) for row in rows} == {("", "", "")}
    assert command(flag, "--top=1", photos)[1].splitlines()[1].split()[-2:] == ["–", "–"]
    for wish in (
        "--prediction=patch",
        "--prediction=tde_pivot_1",
        "--prediction=tde_owner_1",
        "--overlay=shown",
    ):
        assert_error(command(flag, wish, photos), "was trained as 'whole', without patches")
    assert not (tmp_path / "shown").exists()


def test_a_checkpoint_that_does_not_know_its_classes(command, tmp_path, photos):
    one_head = {"method": "pat_i"}
    path = write_checkpoint(tmp_path / "converted", class_names=None, **one_head)
    code, out, _ = command(f"--checkpoint={path}", "--format=jsonl", "--threshold=0", photos / "a.jpg")
    assert code == 0
    labels = lines_of(out)[0]["labels"]
    assert {label["class"] for label in labels} == {f"class {i}" for i in range(10)}
    assert all(label["pivot"] is not None for label in labels)


# What is read


def test_folders_globs_and_a_list_on_stdin(command, checkpoint, photos):
    def files(*arguments, stdin=b""):
        code, out, err = command(f"--checkpoint={checkpoint}", "--format=jsonl", *arguments, stdin=stdin)
        assert code == 0, err
        return [os.path.relpath(line["file"], photos) for line in lines_of(out)]

    assert files("photos") == ["a.jpg", "b.png", "c.webp", "below/a.jpg"]
    assert files("photos/*.jpg") == ["a.jpg"]
    assert files("photos/**/*.jpg") == ["a.jpg", "below/a.jpg"]
    assert files("-", stdin=b"photos/c.webp\n\nphotos/below\r\n") == ["c.webp", "below/a.jpg"]
    # Each once, wherever it is named.
    everything = ["a.jpg", "b.png", "c.webp", "below/a.jpg"]
    (photos.parent / "link").symlink_to(photos)
    (photos / "below" / "round").symlink_to(photos)
    assert files("photos", "link", photos, "photos/../photos/a.jpg", "photos/[abc]*", "-", stdin=b"photos/b.png") == everything  # fmt: skip
    # A file with a glob's characters is itself.
    picture().save(photos / "x[1].png")
    assert files("photos/x[1].png") == ["x[1].png"]


def test_an_image_on_stdin(command, checkpoint, photos):
    arguments = (f"--checkpoint={checkpoint}", "--format=jsonl")
    code, out, err = command(
        *arguments, "photos/b.png", "-", "--overlay=shown", stdin=(photos / "a.jpg").read_bytes()
    )
    assert code == 0, err
    file, stdin = lines_of(out)
    assert (file["file"], stdin["file"], stdin["overlay"]) == ("photos/b.png", "stdin", "shown/stdin.png")
    assert Path("shown/stdin.png").is_file()
    (same,) = lines_of(command(*arguments, "photos/a.jpg")[1])
    assert [label["probability"] for label in stdin["labels"]] == pytest.approx(
        [label["probability"] for label in same["labels"]], abs=1e-5
    )
    assert not Path("stdin").exists()


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (lambda: JPEG[:200], "skipped: stdin: the image cannot be decoded"),
        (
            lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "skipped: stdin: an image of an unsupported kind, HEIF",
        ),
        (lambda: png_of_size(100_000, 100_000), "scale the image down"),
    ],
)
def test_a_broken_image_on_stdin(command, checkpoint, stdin, words):
    code, _, err = command(f"--checkpoint={checkpoint}", "-", stdin=stdin())
    assert code == 1
    line, summary = err.splitlines()
    assert words in line
    assert summary.startswith("0 predicted, 1 skipped")


def test_pictures_of_kinds_that_are_not_read(command, checkpoint, photos):
    for name in ("x.HEIC", "below/y.jxl", "z.dng"):
        (photos / name).write_bytes(encoded(picture(), "TIFF"))
    code, out, err = command(f"--checkpoint={checkpoint}", "--format=jsonl", photos)
    assert code == 1
    assert len(lines_of(out)) == 4
    line, summary = err.splitlines()
    assert line.startswith(
        f"skipped: folder '{photos}': 3 files of kinds that are not read ('x.HEIC', 'z.dng', 'y.jxl')"
    )
    assert summary.startswith("4 predicted, 3 skipped")
    # Files that are named explicitly are recognised by content, except the thumbnail in a raw file.
    (photos / "x.HEIC").write_bytes(JPEG)
    code, out, err = command(
        f"--checkpoint={checkpoint}", "--format=jsonl", photos / "x.HEIC", photos / "z.dng"
    )
    assert code == 1
    assert [line["file"] for line in lines_of(out)] == [str(photos / "x.HEIC")]
    assert "z.dng: an image of an unsupported kind, .dng (JPEG," in err


@pytest.mark.skipif("AVIF" not in formats.FORMATS, reason="Pillow without AVIF")
def test_avif_is_read_in_a_folder(command, checkpoint, photos):
    picture().save(photos / "d.avif")
    code, out, err = command(f"--checkpoint={checkpoint}", "--format=jsonl", photos)
    assert code == 0, err
    assert [Path(line["file"]).name for line in lines_of(out)] == [
        "a.jpg",
        "b.png",
        "c.webp",
        "d.avif",
        "a.jpg",
    ]


def test_odd_exif_does_not_end_a_run(command, checkpoint, tmp_path):
    """A GPS reference, which is a text, stored as a rational number: a photo that is to be turned all the same."""
    upright = picture(size=(60, 40))
    turn, pointer = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHLL", 0x8825, 4, 1, 38)
    gps = struct.pack("<HHHLLLLL", 1, 12, 5, 1, 56, 0, 3, 1)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + turn + pointer + bytes(4) + gps
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    code, out, err = command(
        f"--checkpoint={checkpoint}", "--format=jsonl", "upright.png", "turned.png", "turned.jpg"
    )
    assert code == 0, err
    first, second, _ = lines_of(out)
    assert first["labels"] == second["labels"] != []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg"], ["'nowhere.jpg' does not exist"]),
        (["empty"], ["folder 'empty' has no file ending in .jpg"]),
        (["photos/*.tiff"], ["nothing matches 'photos/*.tiff'"]),
        (["-"], ["stdin is empty"]),
        (["two\nlines"], [r"'two\nlines' does not exist"]),
        (["photos", "--top=0"], ["--top", "'0' is not a whole number of 1 or more"]),
        (["photos", "--threshold=50"], ["--threshold", "'50' is not a probability"]),
        (["photos", "--threshold=half"], ["--threshold", "'half' is not a probability"]),
        (["photos", "--prediction=tde_pivot"], ["'tde_pivot' needs a strength, such as tde_pivot_0.5"]),
        (
            ["photos", "--prediction=tde_pivot_-1"],
            ["'tde_pivot_-1' is not the name of a prediction", "tde_pivot_<strength>"],
        ),
        (["photos", "--format=xml"], ["--format", "'xml'", "table"]),
        (["photos", "--batchsize=1"], ["--batchsize=1", "--help"]),
        ([], ["INPUT", "--help"]),
        (["photos", "--output=photos"], ["--output=photos cannot be written (Is a directory)"]),
        (["photos", "--output=nowhere/x.csv"], ["--output=nowhere/x.csv cannot be written (No such file"]),
        (["photos", "--overlay=photos/a.jpg"], ["--overlay=photos/a.jpg cannot be written (File exists)"]),
        (["photos", "--checkpoint=nowhere"], ["nowhere is not a checkpoint"]),
    ],
)
def test_a_user_error_is_one_line(command, checkpoint, photos, arguments, words):
    (photos.parent / "empty").mkdir()
    assert_error(command(f"--checkpoint={checkpoint}", *arguments), *words)


def test_a_missing_checkpoint_flag_is_an_error(command):
    assert_error(command("x.jpg"), "--checkpoint", "required")


def test_help_describes_methods_without_patches(capsys):
    with pytest.raises(SystemExit) as end:
        predict.main(["--help"])
    assert end.value.code == 0
    assert "whole has no patches" in capsys.readouterr().out


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def png_of_size(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000))]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation(form, **options):
    frames = [picture(i) for i in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 8
    return encoded(picture(), "JPEG", exif=exif)


def with_text(size):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * size, zip=True)
    return info


JPEG, PNG = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
GREY = np.arange(2000, dtype=np.uint16).reshape(40, 50)

GOOD = {
    b"animated.gif": animation("GIF"),
    b"animated.png": animation("PNG"),
    b"animated.webp": animation("WEBP"),
    b"one_pixel.png": encoded(picture(size=(1, 1)), "PNG"),
    b"slim.png": encoded(picture(size=(1, 5000)), "PNG"),
    b"flat.png": encoded(picture(size=(5000, 1)), "PNG"),
    b"16_bits.png": encoded(Image.fromarray(30 * GREY), "PNG"),
    b"16_bits.tif": encoded(Image.fromarray(30 * GREY), "TIFF"),
    b"float.tif": encoded(Image.fromarray(GREY.astype(np.float32) / 2000), "TIFF"),
    b"cmyk.jpg": encoded(picture().convert("CMYK"), "JPEG"),
    b"grey.jpg": encoded(picture().convert("L"), "JPEG"),
    b"one_bit.png": encoded(picture().convert("1"), "PNG"),
    b"palette.png": encoded(picture().quantize(8), "PNG", transparency=3),
    b"palette_bytes.png": encoded(picture().quantize(4), "PNG", transparency=b"\x00\x80\xff\x10"),
    b"la.png": encoded(picture().convert("LA"), "PNG"),
    b"rgba.png": encoded(picture().convert("RGBA"), "PNG"),
    b"turned.jpg": turned(),
    b"broken_exif.jpg": encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\xff\xff"),
    b"in_truth_a_png.jpg": PNG,
    b"in_truth_a_jpeg.txt": JPEG,
    b"no_suffix": JPEG,
    b"CAPITALS.JPG": JPEG,
    b"bitmap.bmp": encoded(picture(), "BMP"),
    b"grey.pgm": encoded(picture().convert("L"), "PPM"),
    b"a comma, a \"quote\", 'another' and a | bar.png": PNG,
    b"two\nlines\tand \x1b[31m.png": PNG,
    b"not utf-8 \xff\xfe.png": PNG,
    "Ünïcödé 图 🐈.png".encode(): PNG,
    b"pages_of_text.png": encoded(picture(), "PNG", pnginfo=with_text(3_000_000)),
    b"trailing bytes.jpg": JPEG + b"more" * 100,
    b"x" * 251 + b".png": PNG,
}
BROKEN = {
    b"empty.jpg": (b"", "the file is empty (0 bytes)"),
    b"cut_at_10.jpg": (JPEG[:10], "cannot be decoded"),
    b"cut_at_200.jpg": (JPEG[:200], "cannot be decoded"),
    b"cut_in_half.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    b"cut_at_40.png": (PNG[:40], "40 bytes that are not an image"),
    b"cut_in_half.png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    b"cut_in_half.gif": (encoded(picture(), "GIF")[:-300], "cannot be decoded"),
    b"cut_in_half.webp": (encoded(picture(), "WEBP")[:100], "cannot be decoded"),
    b"text.jpg": (b"hello\n", "6 bytes that are not an image"),
    b"page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "that are not an image"),
    b"drawing.png": (
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "an image of an unsupported kind, SVG",
    ),
    b"of_a_phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an image of an unsupported kind, HEIF"),
    b"thumbnail_of.dng.tif.cr2.jpg": (
        b"II*\0\x10\0\0\0CR\2\0",
        "an image of an unsupported kind, camera raw",
    ),
    b"paper.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "that are not an image"),
    b"noise.jpg": (np.random.default_rng(0).bytes(3000), "that are not an image"),
    b"zeros.png": (bytes(1000), "that are not an image"),
    b"bomb.png": (png_of_size(100_000, 100_000), "scale the image down"),
    b"large.png": (png_of_size(10_000, 10_000), "scale the image down"),
    b"beyond.tif": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "are outside 0 to 1"),
    b"two\nlines.jpg": (b"", "two\\nlines.jpg: the file is empty"),
    b"not utf-8 \xff.jpg": (b"", "not utf-8 \\udcff.jpg: the file is empty"),
}


def test_odd_files_are_read(command, checkpoint, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    paths = [os.path.join(os.fsencode(folder), name) for name in GOOD]
    for path, data in zip(paths, GOOD.values()):
        Path(os.fsdecode(path)).write_bytes(data)
    arguments = [os.fsdecode(path) for path in paths]

    def run(form):
        flags = (f"--checkpoint={checkpoint}", f"--format={form}", "--top=1", "--overlay=shown")
        code, out, err = command(*flags, *arguments)
        assert code == 0, err
        assert len(err.splitlines()) == 1
        return out

    objects = lines_of(run("jsonl"))
    assert [line["file"] for line in objects] == arguments
    assert all(len(line["labels"]) == 1 for line in objects)
    assert len(set(os.listdir("shown"))) == len(GOOD)
    assert all(os.path.isfile(line["overlay"]) for line in objects)
    rows = list(csv.DictReader(io.StringIO(run("csv"))))
    escaped = [name.encode("utf-8", "backslashreplace").decode() for name in arguments]
    assert [row["file"] for row in rows] == escaped
    assert len(run("table").splitlines()) == 1 + len(GOOD)


def test_broken_files_are_reported_and_skipped(command, checkpoint, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, (data, _) in BROKEN.items():
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(data)
    picture().save(folder / "fine.png")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    words = [word for _, word in BROKEN.values()] + [
        "dangling.jpg: cannot be read (No such file or directory)",
        "circle.jpg: cannot be read (Too many levels of symbolic links)",
        "pipe.jpg: not a regular file",
    ]
    code, out, err = command(f"--checkpoint={checkpoint}", "--format=csv", "--top=1", folder)
    assert code == 1
    assert [row["file"] for row in csv.DictReader(io.StringIO(out))] == [str(folder / "fine.png")]
    *skipped, last = err.splitlines()
    assert last.startswith(f"1 predicted, {len(words)} skipped")
    assert len(skipped) == len(words)
    assert all(line.startswith("skipped: ") for line in skipped)
    for word in words:
        assert any(word in line for line in skipped), word
    for name, (_, word) in BROKEN.items():
        (line,) = [line for line in skipped if f"/{predict.printable(os.fsdecode(name))}: " in line]
        assert word in line
    # Without a single good one there is nothing to compile, and nothing to write but a header.
    code, out, err = command(f"--checkpoint={checkpoint}", folder / "empty.jpg", folder / "folder.jpg", "nowhere.jpg")  # fmt: skip
    assert code == 1
    assert len(out.splitlines()) == 1
    assert err.splitlines()[-1].startswith("0 predicted, 3 skipped")


def test_hundreds_of_pictures_of_all_kinds(command, checkpoint, tmp_path):
    load.write_pictures(tmp_path / "many", 300, 10, 32)
    code, out, err = command(
        f"--checkpoint={checkpoint}", "--format=jsonl", "--batch_size=64", tmp_path / "many"
    )
    assert code == 1
    assert len({line["file"] for line in lines_of(out)}) == 290
    assert len([line for line in err.splitlines() if line.startswith("skipped: ")]) == 10
    assert "290 predicted, 10 skipped" in err.splitlines()[-1]


def test_files_that_may_not_be_read(command, checkpoint, photos):
    (photos / "a.jpg").chmod(0)
    if os.access(photos / "a.jpg", os.R_OK):
        pytest.skip(
            "this user may read every file; without the right: setpriv --bounding-set=-dac_override,-dac_read_search"
        )
    (photos / "below").chmod(0)
    code, out, err = command(f"--checkpoint={checkpoint}", "--format=jsonl", photos)
    (photos / "below").chmod(0o700)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "a.jpg: cannot be read (Permission denied)" in err
    assert "below' cannot be read (Permission denied)" in err


# What is written


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def test_overlays(command, checkpoint, photos):
    arguments = (f"--checkpoint={checkpoint}", "--format=jsonl", "--overlay=shown")
    code, out, _ = command(*arguments, photos)
    assert code == 0
    assert sorted(os.listdir("shown")) == ["a-2.png", "a.png", "b.png", "c.png"]
    objects = lines_of(out)
    assert [line["overlay"] for line in objects] == [f"shown/{name}.png" for name in ("a", "b", "c", "a-2")]
    assert all("effect" in label for line in objects for label in line["labels"])
    # The photos of 50 x 40 pixels are shown with a longer side of SIDE.
    width, height = examples.SIDE, examples.SIDE * 4 // 5
    expected = (
        2 * overlay.MARGIN + 4 * width + 3 * overlay.GAP,
        2 * overlay.MARGIN + overlay.HEADER + height + overlay.FOOTER,
    )
    pictures = {name: opened(Path("shown") / name) for name in os.listdir("shown")}
    assert {shown.size for shown in pictures.values()} == {expected}
    assert pictures["a.png"].tobytes() != pictures["a-2.png"].tobytes()
    # The panels of an image's classes differ from each other and from the photo itself.
    starts = [overlay.MARGIN + i * (width + overlay.GAP) for i in range(4)]
    panels = {pictures["a.png"].crop((x, 0, x + width, expected[1])).tobytes() for x in starts}
    assert len(panels) == 4
    # With one class there is one panel.
    command(*arguments, "--top=1", photos / "b.png")
    assert opened("shown/b.png").width == 2 * overlay.MARGIN + 2 * width + overlay.GAP


def test_an_overlay_does_not_replace_a_photo(command, checkpoint, photos):
    before = (photos / "b.png").read_bytes()
    assert command(f"--checkpoint={checkpoint}", f"--overlay={photos}", photos)[0] == 0
    assert (photos / "b.png").read_bytes() == before
    assert (photos / "b-2.png").exists()


def test_output_is_written_in_full_or_not_at_all(command, checkpoint, photos, monkeypatch):
    arguments = (f"--checkpoint={checkpoint}", "--format=csv")
    to_stdout = command(*arguments, photos)[1]
    code, out, _ = command(*arguments, "--output=found.csv", photos)
    assert (code, out) == (0, "")
    assert Path("found.csv").read_text() == to_stdout
    monkeypatch.setattr(predict.photos, "read", interrupted)
    assert command(*arguments, "--output=found.csv", photos)[0] == 130
    assert Path("found.csv").read_text() == to_stdout
    assert {path for path in os.listdir() if "found" in path} == {"found.csv"}


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_a_device_file_is_not_replaced(command, checkpoint, photos):
    assert command(f"--checkpoint={checkpoint}", "--output=/dev/null", photos)[0] == 0
    assert Path("/dev/null").is_char_device()


def test_progress_of_many_images(command, checkpoint, photos, monkeypatch):
    monkeypatch.setattr(predict, "SECONDS_BETWEEN_REPORTS", 0)
    for i in range(30):
        picture(i).save(photos / f"more{i}.png")
    (photos / "more7.png").write_bytes(b"")
    code, out, err = command(f"--checkpoint={checkpoint}", "--batch_size=3", "--format=jsonl", photos)
    assert code == 1
    assert len(out.splitlines()) == 33
    lines = err.splitlines()
    reports = [line for line in lines if line.startswith("step ")]
    assert reports[0].startswith("step 2/5  16 of 34 images  ")
    assert all("ETA" in line for line in reports)
    assert next(line for line in lines if line not in reports).startswith("skipped: ")
    assert lines[-1].startswith("33 predicted, 1 skipped")


def test_a_closed_pipe_ends_the_command(checkpoint, photos):
    process = subprocess.Popen(
        [sys.executable, "-m", "cfmlc_jax.predict", f"--checkpoint={checkpoint}", "--threshold=0", "photos"],
        cwd=photos.parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process:
        err = process.stderr.read().decode()
    assert (process.returncode, err) == (141, "")
