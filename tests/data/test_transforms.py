import hashlib
import io
import json
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageFile

from cfmlc_jax.causal.views import patch_boxes
from cfmlc_jax.data.views import decode as decoding
from cfmlc_jax.data.views import formats, patches, transforms
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.views.patches import ToViews, cover, cutout, split_views
from cfmlc_jax.data.views.resample import double
from cfmlc_jax.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "transforms"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
SIZE = EXPECTED["size"]


@pytest.fixture(scope="module")
def source():
    with Image.open(GOLDEN / "source.png") as image:
        return image.convert("RGB")


def digest(view):
    return hashlib.sha256(view.tobytes()).hexdigest()


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def png(width, height, *, pixels=b""):
    """A PNG file that claims a size; its pixels may be missing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def refusal(image, **options):
    with pytest.raises(InputError) as info:
        decode(image, "shelf/photo.jpg", **options)
    message = str(info.value)
    assert message.startswith("shelf/photo.jpg: ")
    assert "\n" not in message
    return message


# Views


@pytest.mark.parametrize("grid", [2, 3])
def test_views_are_the_references_bit_for_bit(source, grid):
    assert [digest(view) for view in split_views(source, SIZE, grid)] == EXPECTED["views"][str(grid)]


def test_a_full_golden_patch(source):
    with Image.open(GOLDEN / "val_ngrid3_5.png") as image:
        np.testing.assert_array_equal(np.asarray(split_views(source, SIZE, 3)[5]), np.asarray(image))


def test_patches_are_cut_from_the_golden_bicubic_copy(source):
    base = source.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert digest(base) == EXPECTED["bicubic"]
    patches = split_views(source, SIZE, 4, 0.25)[1:]
    for patch, box in zip(patches, patch_boxes(SIZE, 4, 0.25), strict=True):
        assert digest(patch) == digest(base.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def test_no_grid_gives_the_whole_view_only(source):
    (whole,) = split_views(source, SIZE, None)
    assert digest(whole) == EXPECTED["views"]["2"][0]


def test_an_image_of_the_views_size_is_not_shared_by_them(rng):
    image = Image.fromarray(noise(rng, 32, 32, 3))
    before = digest(image)
    views = split_views(image, 32, 2)
    expected = [digest(view) for view in split_views(image, 32, 2)]
    views[0].paste((1, 2, 3), (0, 0, 32, 32))
    assert digest(image) == before
    assert [digest(view) for view in views[1:]] == expected[1:]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 2), (31, 17), (64, 64), (65, 33)])
def test_double_is_pillows_bilinear(rng, shape):
    image = Image.fromarray(noise(rng, *shape, 3))
    expected = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(double(image)), np.asarray(expected))


def test_double_meets_every_pair_of_neighbours():
    # Both rounding steps depend on pairs of bytes only: these are all 65536 of them.
    near, far = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for pair in (np.stack([near.ravel(), far.ravel()]), np.stack([near.ravel(), far.ravel()], axis=1)):
        image = Image.fromarray(np.repeat(pair[..., None], 3, axis=2))
        expected = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(double(image)), np.asarray(expected))


# Cutout


@pytest.mark.parametrize("case", EXPECTED["cutout"].values(), ids=list(EXPECTED["cutout"]))
def test_cutout_is_the_references_bit_for_bit(source, case):
    if case["input"].endswith(".png"):
        with Image.open(GOLDEN / case["input"]) as image:
            view = image.convert("RGB")
    else:
        view = split_views(source, SIZE, None)[0]
    before = digest(view)
    assert digest(cover(view, tuple(case["centre_xy"]), tuple(case["colour"]), 0.5)) == case["sha256"]
    assert digest(view) == before


def test_cutout_box_includes_its_far_edge():
    covered = np.asarray(cover(Image.new("RGB", (112, 112)), (56, 56), (9, 8, 7), 0.5))
    rows, columns = np.nonzero((covered == (9, 8, 7)).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 84, 28, 84)


def test_cutout_draws_centre_and_colour_uniformly():
    generator = np.random.default_rng(3)
    view = Image.new("RGB", (8, 8), (0, 0, 0))
    # A fraction of 0 covers the centre pixel alone.
    drawn = [np.asarray(cutout(view, 0.0, generator)) for _ in range(3200)]
    hits = sum(image.any(axis=2) for image in drawn)
    assert (abs(hits - 50) < 6 * 50**0.5).all()
    colours = np.stack([image.reshape(-1, 3).max(axis=0) for image in drawn])
    assert (colours.min(axis=0) < 3).all()
    assert (colours.max(axis=0) > 252).all()
    np.testing.assert_allclose(colours.mean(axis=0), 127.5, atol=5 * 73.9 / 3200**0.5)


# Decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_come_back_exactly(rng, kind):
    pixels = noise(rng, 9, 13, 3)
    lossless = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}
    image = decode(encoded(Image.fromarray(pixels), kind, **lossless.get(kind, {})), "x")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_jpeg_is_decoded_at_full_quality(source):
    data = encoded(source, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as expected:
        assert digest(decode(data, "x")) == digest(expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image = decode(encoded(cyan, kind), "x")
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[8, 8], (0, 255, 255), atol=3)


def test_grey_palette_and_one_bit(rng):
    grey = Image.fromarray(noise(rng, 6, 5))
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(grey, "PNG"), "x")), np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    )
    colour = Image.fromarray(noise(rng, 4, 4, 3))
    palette = colour.quantize(16)
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(
            np.asarray(decode(encoded(palette, kind), "x")), np.asarray(palette.convert("RGB"))
        )
    bits = Image.fromarray(noise(rng, 6, 5)).convert("1")
    assert digest(decode(encoded(bits, "PNG"), "x")) == digest(bits.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_composited_on_white(mode):
    # alpha 0 is white, 255 the colour itself, 51 a fifth of it: 255 + (55 - 255) / 5 = 215
    image = Image.new("RGBA", (3, 1), (55, 55, 55, 255))
    image.putalpha(Image.fromarray(np.array([[0, 255, 51]], np.uint8)))
    if mode == "PA":
        palette = Image.new("P", (3, 1), 7)
        palette.putpalette([55] * 768)
        rgb = decoding._to_rgb(_with_alpha(palette, image.getchannel("A")), "x")
    else:
        rgb = decode(encoded(image.convert(mode), "PNG"), "x")
    assert rgb.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(rgb)[0, :, 1], (255, 55, 215))


def _with_alpha(palette, alpha):
    # No file format that is read here keeps PA, so this one is handed in as it is.
    both = palette.convert("PA")
    both.putalpha(alpha)
    assert both.mode == "PA"
    return both


@pytest.mark.parametrize(
    ("mode", "clear"), [("L", 20), ("RGB", (20, 20, 20)), ("P", 20), ("P", bytes([255] * 20 + [0]))]
)
def test_transparent_values_become_white(mode, clear):
    image = Image.fromarray(np.array([[20, 30]], np.uint8))
    if mode == "P":
        palette = Image.new("P", (2, 1))
        palette.putpalette([value for value in range(256) for _ in range(3)])
        palette.putdata([20, 30])
        image = palette
    rgb = decode(encoded(image.convert(mode), "PNG", transparency=clear), "x")
    np.testing.assert_array_equal(np.asarray(rgb)[0, :, 2], (255, 30))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<i4")]
)
def test_sixteen_bits_are_scaled_not_clipped(kind, dtype):
    values = np.array([[0, 257, 32768, 65535, 128, 129]])
    image = decode(encoded(Image.fromarray(values.astype(dtype)), kind), "x")
    # 65535 / 255 = 257 steps to one of ours, halves to the nearest.
    np.testing.assert_array_equal(np.asarray(image)[0], np.repeat([[0, 1, 128, 255, 0, 1]], 3, axis=0).T)


def test_sixteen_bit_transparency():
    image = Image.fromarray(np.array([[1000, 0]], np.uint16))
    rgb = decode(encoded(image, "PNG", transparency=1000), "x")
    np.testing.assert_array_equal(np.asarray(rgb)[0, :, 0], (255, 0))


def test_floats_are_fractions_of_white():
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    rgb = decode(encoded(Image.fromarray(values), "TIFF"), "x")
    np.testing.assert_array_equal(np.asarray(rgb)[0, :, 0], (0, 128, 255))


@pytest.mark.parametrize(
    "values", [np.float32([[0, 200]]), np.float32([[0, np.nan]]), np.int32([[-1, 5]]), np.int32([[0, 70000]])]
)
def test_values_without_a_meaning_in_eight_bits_are_refused(values):
    assert "save the image with 8 or 16 bits" in refusal(encoded(Image.fromarray(values), "TIFF"))


def test_arrays(rng):
    rgb, grey = noise(rng, 4, 6, 3), noise(rng, 4, 6)
    np.testing.assert_array_equal(np.asarray(decode(rgb, "x")), rgb)
    for pixels in (grey, grey[..., None]):
        np.testing.assert_array_equal(np.asarray(decode(pixels, "x")), np.repeat(grey[..., None], 3, axis=2))
    clear = np.concatenate([rgb, np.zeros((4, 6, 1), np.uint8)], axis=2)
    assert (np.asarray(decode(clear, "x")) == 255).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(pixels):
    assert f"an array {pixels.dtype} {list(pixels.shape)} is not an image" in refusal(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(rng, orientation):
    pixels = noise(rng, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(data, "x")), pixels)
    # What has to be done to the stored pixels, from the standard's table of first row and column.
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    np.testing.assert_array_equal(np.asarray(decode(data, "x", exif=True)), upright[orientation])


def test_empty_bytes():
    assert "empty (0 bytes)" in refusal(b"")


@pytest.mark.parametrize("data", [b"no image at all", b"\x00" * 4096, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_not_an_image(data):
    message = refusal(data)
    assert f"{len(data)} bytes that are not an image" in message
    assert "convert the file" in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_truncated(rng, kind, part):
    data = encoded(Image.fromarray(noise(rng, 64, 64, 3)), kind)
    message = refusal(data[: int(len(data) * part)])
    assert "cannot be decoded" in message or "not an image" in message
    assert "remove it from the data set" in message


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", *(["AVIF"] if "AVIF" in formats.FORMATS else [])]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on damaged metadata
def test_damaged_bytes_decode_or_are_refused_never_anything_else(kind):
    generator = np.random.default_rng(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(generator, 24, 24, 3))
    data = np.frombuffer(encoded(image, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif})), np.uint8)
    refused = 0
    for _ in range(150):
        damaged = data.copy()
        damaged[generator.integers(0, min(len(data), 400), 6)] = generator.integers(0, 256, 6)
        try:
            assert decode(damaged.tobytes(), "x", exif=True).mode == "RGB"
        except InputError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second
@pytest.mark.parametrize("strict", [True, False])
def test_decompression_bombs(side, strict):
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        message = refusal(png(side, side))
    assert "pixels" in message
    assert "scale the image down" in message


SMALL = {
    "JPEG": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "TIFF": {},
    "WEBP": {"exif": b"x"},
    "JPEG2000": {"no_jp2": True},
}
SMALL |= {"AVIF": {}} if "AVIF" in formats.FORMATS else {}


def of_size(kind, side):
    """A file of 16 x 16 pixels that claims a larger size."""
    data = bytearray(encoded(Image.fromarray(np.zeros((16, 16, 3), np.uint8)), kind, **SMALL[kind]))
    wide, little = struct.pack(">I", side), struct.pack("<I", side)
    if kind == "PPM":
        return bytes(data).replace(b"16 16", b"%d %d" % (side, side))
    at = {
        "JPEG": lambda: [(data.index(b"\xff\xc0") + 5, wide[2:] * 2)],
        "GIF": lambda: [(6, little[:2] * 2), (data.index(b",") + 5, little[:2] * 2)],
        "BMP": lambda: [(18, little * 2)],
        "TIFF": lambda: [(data.index(struct.pack("<HHL", tag, 4, 1)) + 8, little) for tag in (256, 257)],
        "WEBP": lambda: [(24, struct.pack("<I", side - 1)[:3] * 2)],
        "JPEG2000": lambda: [(8, wide * 2), (24, wide * 2)],
        "AVIF": lambda: [(data.index(b"ispe") + 8, wide * 2)],
    }[kind]()
    for place, value in at:
        data[place : place + len(value)] = value
    return bytes(data)


# Pillow warns of the first and refuses the second; libwebp refuses the first, for what is behind its header.
@pytest.mark.parametrize(
    ("kind", "side"),
    [(kind, side) for kind in SMALL for side in (10_000, 16_000) if (kind, side) != ("WEBP", 10_000)],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_of_every_format(kind, side):
    assert decode(of_size(kind, 16), "x").size == (16, 16)
    message = refusal(of_size(kind, side))
    if kind == "WEBP" and "cannot be decoded" in message:
        return  # an older Pillow asks libwebp first
    assert f"{side} x {side} pixels are more than" in message or f"Image size ({side**2} pixels)" in message
    assert "scale the image down" in message


def test_a_bomb_is_refused_whatever_text_it_has():
    text = b"Comment\0\0" + zlib.compress(bytes(3_000_000))
    text = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    bomb = png(10_000, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "10000 x 10000 pixels are more than" in refusal(bomb[:33] + text + bomb[33:])


def test_the_pixel_limit_is_ours(rng, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    assert decode(noise(rng, 10, 10, 3), "x").size == (10, 10)
    assert "11 x 10 pixels are more than 100" in refusal(noise(rng, 10, 11, 3))
    assert "11 x 10 pixels" in refusal(encoded(Image.fromarray(noise(rng, 10, 11, 3)), "PNG"))


def test_pillows_globals_are_left_alone(rng):
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    data = encoded(Image.fromarray(noise(rng, 32, 32, 3)), "PNG")
    decode(data, "x")
    refusal(data[:200])
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


# The whole transform


def record_of(source, **more):
    return {"image": encoded(source, "PNG"), "labels": np.array([0, 1, 1], np.uint8), "id": "china", **more}


def test_to_views(source):
    out = ToViews(SIZE, grid=2)(record_of(source))
    assert set(out) == {"views", "labels", "id"}
    assert out["views"].shape == (5, SIZE, SIZE, 3)
    assert out["views"].dtype == np.uint8
    assert [hashlib.sha256(view.tobytes()).hexdigest() for view in out["views"]] == EXPECTED["views"]["2"]
    np.testing.assert_array_equal(out["labels"], np.float32([0, 1, 1]))
    assert out["labels"].dtype == np.float32
    assert out["id"] == "china"


def test_to_views_without_grid_and_with_overlap(source):
    assert ToViews(64)(record_of(source))["views"].shape == (1, 64, 64, 3)
    assert ToViews(64, grid=3, overlap=0.3)(record_of(source))["views"].shape == (10, 64, 64, 3)


def test_augmentation_covers_each_view_by_itself(source, monkeypatch):
    monkeypatch.setattr(patches, "augment", lambda view, generator: view)
    plain = ToViews(SIZE, grid=2)(record_of(source))["views"]
    covered = ToViews(SIZE, grid=2, augment=True)(record_of(source), np.random.default_rng(0))["views"]
    changed = (plain != covered).any(axis=3)
    assert (changed.sum(axis=(1, 2)) > SIZE**2 // 20).all()
    assert (changed.sum(axis=(1, 2)) <= 57 * 57).all()
    assert len({view.tobytes() for view in changed}) == 5


def test_augmentation_is_cutout_and_then_randaugment(source):
    record = record_of(source)
    views = ToViews(SIZE, grid=2, augment=True)(record, np.random.default_rng(4))["views"]
    generator = np.random.default_rng(4)
    for view, plain in zip(views, split_views(source, SIZE, 2), strict=True):
        expected = patches.augment(cutout(plain, 0.5, generator), generator)
        np.testing.assert_array_equal(view, np.asarray(expected))


def test_augmentation_follows_the_generator(source):
    transform, record = ToViews(48, grid=2, augment=True), record_of(source)
    one, same, other = (transform(record, np.random.default_rng(seed))["views"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    with pytest.raises(TypeError, match="needs a generator"):
        transform(record)


def test_evaluation_uses_no_random_numbers(source):
    generator = np.random.default_rng(1)
    ToViews(48, grid=2)(record_of(source), generator)
    assert generator.random() == np.random.default_rng(1).random()


def test_errors_name_the_place_or_else_the_id(source):
    bad = record_of(source) | {"image": b""}
    with pytest.raises(InputError, match=r"^china: "):
        ToViews(48)(bad)
    with pytest.raises(InputError, match=r"^val/china\.png: "):
        ToViews(48)(bad | {"where": "val/china.png"})


def test_exif_reaches_the_views():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4] = 255
    record = {"image": encoded(Image.fromarray(halves), "PNG", exif=exif), "labels": np.ones(1), "id": "a"}
    assert ToViews(8)(record)["views"][0, 0].max() == 255
    assert ToViews(8, exif=True)(record)["views"][0, 0].max() == 0


def test_it_pickles_for_worker_processes(source):
    transform = ToViews(32, grid=2, overlap=0.1, augment=True, exif=True)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    record = record_of(source)
    np.testing.assert_array_equal(
        copy(record, np.random.default_rng(0))["views"], transform(record, np.random.default_rng(0))["views"]
    )


@pytest.mark.parametrize(
    "fields", [{"size": 0}, {"size": 32, "grid": 1}, {"size": 32, "grid": 2, "overlap": 1.0}]
)
def test_invalid_fields_are_refused_when_created(fields):
    with pytest.raises(ValueError, match=r"size 0|grid 1|overlap 1"):
        ToViews(**fields)


def test_images_are_shifted_and_coloured_before_they_are_cut():
    """The patches show what the whole view shows, at another place and in other colours."""
    image = Image.fromarray(noise(np.random.default_rng(0), 64, 64, 3))
    record = {"image": encoded(image, "png"), "id": "noise", "labels": [1]}
    plain = ToViews(64, 2)(record)["views"]
    transform = ToViews(64, 2, shift=0.125, gain=0.5)
    places, factors = set(), []
    for seed in range(40):
        views = transform(record, np.random.default_rng(seed))["views"]
        np.testing.assert_array_equal(views, transform(record, np.random.default_rng(seed))["views"])
        whole = Image.fromarray(views[0])
        for view, expected in zip(views[1:], split_views(whole, 64, 2)[1:]):
            np.testing.assert_array_equal(view, np.asarray(expected))
        pixels = views[0].astype(float)
        # The centre is a part of the image, shifted by up to 8 pixels, times a factor for each channel.
        errors = {
            (i, j): np.abs(_scaled(pixels[16:48, 16:48], plain[0][16 + i : 48 + i, 16 + j : 48 + j])).max()
            for i in range(-8, 9)
            for j in range(-8, 9)
        }
        place = min(errors, key=errors.get)
        assert errors[place] <= 1
        places.add(place)
        factors.append(
            pixels[16:48, 16:48].mean()
            / plain[0][16 + place[0] : 48 + place[0], 16 + place[1] : 48 + place[1]].mean()
        )
    assert len(places) > 30
    assert {-8, 8} & {i for i, _ in places}
    assert 0.5 < min(factors) < 0.85
    assert 1.1 < max(factors) < 1.5


def _scaled(shown, original):
    """What is shown minus the original times the best factor of each channel, where that is below white."""
    original = original.astype(float)
    dark = shown < 255
    factors = (shown * original * dark).sum((0, 1)) / (original**2 * dark).sum((0, 1))
    return (shown - original * factors) * dark


def test_variation_needs_a_generator_and_is_of_training_alone():
    image = Image.fromarray(noise(np.random.default_rng(0), 16, 16, 3))
    record = {"image": encoded(image, "png"), "id": "noise", "labels": [1]}
    with pytest.raises(TypeError, match="augmentation needs a generator"):
        ToViews(16, shift=0.1)(record)
    section = ConfigDict(
        {"image_size": 16, "transform": "squeeze", "squeeze": {"augment": False, "shift": 0.25, "gain": 0.5}}
    )
    assert transforms.create(section, training=True, exif=False) == ToViews(16, shift=0.25, gain=0.5)
    assert transforms.create(section, training=False, exif=False) == ToViews(16)
