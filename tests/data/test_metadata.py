"""Metadata that is odd, damaged or large: pixels are read as if it were not there, but for the orientation."""

import functools
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import numpy as np
import pytest
from fuzzing import cases
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from cfmlc_jax.data.views import formats, metadata
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.views.patches import ToViews

ORIENTATION, XMP, EXIF_IFD, GPS_IFD = 0x0112, 700, 0x8769, 0x8825
SHORT, LONG, RATIONAL, ASCII = 3, 4, 5, 2
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
# What has to be done to the stored pixels, from the standard's table of first row and column.
TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}
needs_avif = pytest.mark.skipif("AVIF" not in formats.FORMATS, reason="Pillow without AVIF")


def encoded(kind, **options):
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, kind, **options)
    return data.getvalue()


def upright(data):
    return np.asarray(decode(data, "x", exif=True))


PLAIN = {kind: encoded(kind) for kind in ("JPEG", "PNG")}


# Files with the given EXIF


def entry(order, tag, kind, count, value):
    return struct.pack(f"{order}HHL", tag, kind, count) + value


def tiff(order, entries, rest=b""):
    """A TIFF header with one directory, as EXIF has it."""
    head = b"II" if order == "<" else b"MM"
    return head + struct.pack(f"{order}HLH", 42, 8, len(entries)) + b"".join(entries) + bytes(4) + rest


def in_jpeg(exif, *, jfif=True):
    data = PLAIN["JPEG"]
    start = 2 if jfif else 4 + int.from_bytes(data[4:6])
    body = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[start:]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_png(*chunks, at=33):
    """A PNG file with chunks behind its header, or elsewhere."""
    data = PLAIN["PNG"]
    return data[:at] + b"".join(chunks) + data[at:]


def in_webp(exif):
    return encoded("WEBP", lossless=True, exif=exif or b"\0")


def in_tiff(entries, compression="raw"):
    """A TIFF file whose directory, at its end, has further entries; a directory that is damaged comes after it."""
    data = encoded("TIFF", compression=compression)
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    own = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    every = sorted([*own, *entries], key=lambda entry: int.from_bytes(entry[:2], "little"))
    directory = struct.pack("<H", len(every)) + b"".join(every) + b"\xff" * 4
    return data[:4] + struct.pack("<L", len(data)) + data[8:] + directory


METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# JPEG is not lossless: its own pixels are turned.
JPEG = decode(encoded("JPEG"), "x")
TURNED_JPEG = {1: np.asarray(JPEG)} | {o: np.asarray(JPEG.transpose(method)) for o, method in METHODS.items()}


# Sound EXIF


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", pytest.param("AVIF", marks=needs_avif)]
)
def test_sound_exif_turns_as_pillow_turns(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a maker with a long name"
    exif[ORIENTATION] = orientation
    exif.get_ifd(GPS_IFD)[1] = "N"
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind, exif=exif, **lossless)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(upright(data), np.asarray(expected))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_and_xmp_in_texts_of_a_png(orientation, zipped):
    """As ImageMagick and Photoshop write them."""
    hexadecimal = tiff("<", [entry("<", ORIENTATION, SHORT, 1, struct.pack("<HH", orientation, 0))]).hex()
    profile = f"\nexif\n{len(hexadecimal) // 2:8}\n{hexadecimal[:40]}\n{hexadecimal[40:]}\n"
    for key, text in (
        ("Raw profile type exif", profile),
        ("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>'),
        ("XML:com.adobe.xmp", f"<tiff:Orientation>{orientation}</tiff:Orientation>" + "x" * 2_000_000),
    ):
        info = PngImagePlugin.PngInfo()
        (info.add_text if "profile" in key else info.add_itxt)(key, text, zip=zipped)
        np.testing.assert_array_equal(upright(encoded("PNG", pnginfo=info)), TURNED[orientation])


def test_xmp_has_the_second_word():
    exif = tiff(">", [entry(">", ORIENTATION, SHORT, 1, b"\0\3\0\0")])
    xmp = b'<x tiff:Orientation="6"/>'
    assert metadata.orientation(exif, xmp) == 3
    assert metadata.orientation(tiff(">", []), xmp) == 6
    assert metadata.orientation(b"", b"") == metadata.UPRIGHT
    np.testing.assert_array_equal(upright(encoded("WEBP", lossless=True, xmp=xmp)), TURNED[6])
    np.testing.assert_array_equal(upright(encoded("JPEG", xmp=xmp)), TURNED_JPEG[6])


def test_tiff_files_are_always_turned():
    """Pillow does, and so the reference; the other kinds stay as they are stored."""
    turn = [entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")]
    np.testing.assert_array_equal(np.asarray(decode(in_tiff(turn), "x")), TURNED[6])
    np.testing.assert_array_equal(np.asarray(decode(in_webp(tiff("<", turn)), "x")), PIXELS)


def test_a_bigtiff():
    big = encoded("TIFF", big_tiff=True)
    if big[2] != 43:
        pytest.skip("this Pillow writes no BigTIFF")
    np.testing.assert_array_equal(upright(big), PIXELS)
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    np.testing.assert_array_equal(upright(encoded("TIFF", big_tiff=True, exif=exif)), TURNED[8])


def test_exif_of_two_segments_and_its_name_twice():
    exif = tiff("<", [entry("<", 0x010F, ASCII, 4, b"abc\0"), entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")])
    whole = in_jpeg(b"Exif\0\0" + exif)
    np.testing.assert_array_equal(upright(whole), TURNED_JPEG[6])
    first = in_jpeg(exif[:20])
    body = b"Exif\0\0" + exif[20:]
    at = first.index(b"\xff\xe1") + 2 + 2 + 6 + 20
    both = first[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + first[at:]
    np.testing.assert_array_equal(upright(both), TURNED_JPEG[6])


# Odd EXIF


def gps(order, *tags):
    """EXIF of orientation 6 and a GPS directory."""
    at = 8 + 2 + 2 * 12 + 4
    inner = struct.pack(f"{order}H", len(tags)) + b"".join(tags) + bytes(4) + struct.pack(f"{order}LL", 3, 1)
    turn = entry(order, ORIENTATION, SHORT, 1, struct.pack(f"{order}HH", 6, 0))
    return tiff(order, [turn, entry(order, GPS_IFD, LONG, 1, struct.pack(f"{order}L", at))], inner)


ODD = {
    "speed_ref_as_rational": gps("<", entry("<", 12, RATIONAL, 1, struct.pack("<L", 56))),
    "gps_version_as_text": gps(">", entry(">", 0, ASCII, 4, b"abc\0")),
    "gps_as_text": tiff("<", [entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0"), entry("<", GPS_IFD, ASCII, 3, b"ab\0\0")]),
    # An empty text where Pillow wants a number of dots.
    "resolution_as_text": tiff(
        "<",
        [
            entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0"),
            entry("<", 0x011A, ASCII, 1, bytes(4)),
            entry("<", 0x0128, SHORT, 1, b"\2\0\0\0"),
        ],
    ),
    "make_beyond_the_end": tiff(
        "<", [entry("<", 0x010F, ASCII, 900, b"\xff" * 4), entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")]
    ),
    "orientation_as_long": tiff(">", [entry(">", ORIENTATION, LONG, 1, b"\0\0\0\6")]),
    "more_entries_than_there_are": tiff("<", [entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")]).replace(
        b"\1\0\x12", b"\xff\xff\x12"
    ),
}  # fmt: skip


@pytest.mark.parametrize("exif", ODD.values(), ids=list(ODD))
def test_odd_exif_does_not_keep_a_photo_from_being_turned(exif):
    for jfif in (True, False):
        np.testing.assert_array_equal(upright(in_jpeg(exif, jfif=jfif)), TURNED_JPEG[6])
    np.testing.assert_array_equal(upright(in_png(chunk(b"eXIf", exif))), TURNED[6])
    np.testing.assert_array_equal(upright(in_webp(exif)), TURNED[6])
    # And training reads as prediction does.
    record = {"image": in_png(chunk(b"eXIf", exif)), "labels": np.ones(1), "id": "a"}
    view = ToViews(8, exif=True)(record)["views"][0]
    expected = Image.fromarray(np.ascontiguousarray(TURNED[6])).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view, np.asarray(expected))


@pytest.mark.parametrize(
    "value", [b"\0\0\0\0", b"\x09\0\0\0", b"\xff\xff\0\0"], ids=["zero", "nine", "65535"]
)
def test_an_invalid_orientation_leaves_the_image_unchanged(value):
    exif = tiff("<", [entry("<", ORIENTATION, SHORT, 1, value)])
    np.testing.assert_array_equal(upright(in_png(chunk(b"eXIf", exif))), PIXELS)
    text = tiff("<", [entry("<", ORIENTATION, ASCII, 2, b"6\0\0\0")])
    np.testing.assert_array_equal(upright(in_png(chunk(b"eXIf", text))), PIXELS)


# Any EXIF

TAGS = (
    0x010F,
    0x0110,
    0x011A,
    0x011B,
    0x0128,
    EXIF_IFD,
    GPS_IFD,
    0x927C,
    0xA005,
    XMP,
    33723,
    34675,
    330,
    60000,
)
COUNTS = (0, 1, 2, 3, 10, 2**16, 2**31, 2**32 - 1)
# An entry each from seven bytes: few draws, and so thousands of cases a minute.
NOISE = st.binary(max_size=70)


def entries_of(order, noise):
    """Entries of any tag, type and size; none that says how pixels are stored, for TIFF files have them all together."""
    return [
        entry(order, TAGS[tag % len(TAGS)], kind % 20, COUNTS[count % len(COUNTS)], bytes(value))
        for tag, kind, count, *value in zip(*[iter(noise)] * 7)
    ]


@st.composite
def exif_blocks(draw):
    """EXIF with tags of any type, and the orientation in it: None if the block is not sound enough to know."""
    order, orientation, noise = draw(st.sampled_from("<>")), draw(st.integers(0, 9)), draw(NOISE)
    entries = entries_of(order, noise)
    turn = entry(order, ORIENTATION, SHORT, 1, struct.pack(f"{order}HH", orientation, 0))
    entries.insert(len(entries) // 2, turn)
    block = tiff(order, entries, noise[:20])
    damage = draw(st.integers(0, 5))
    if damage == 0:
        return block[: draw(st.integers(0, len(block)))], None
    if damage == 1:
        return noise, None
    return block, orientation if 1 <= orientation <= 8 else 1


def is_turned(image, turned, orientation):
    if orientation is None:
        return any(np.array_equal(image, known) for known in turned.values())
    return np.array_equal(image, turned[orientation])


@cases(700)
@hypothesis.given(exif_blocks(), st.booleans())
def test_any_exif(block, first):
    exif, orientation = block
    assert is_turned(upright(in_jpeg(exif, jfif=first)), TURNED_JPEG, orientation)
    assert is_turned(upright(in_png(chunk(b"eXIf", exif), at=33 if first else -12)), TURNED, orientation)
    assert is_turned(upright(in_webp(exif)), TURNED, orientation)


@cases(400)
@hypothesis.given(NOISE, st.integers(0, 9), st.sampled_from(["raw", "tiff_lzw", "tiff_adobe_deflate"]))
def test_any_tags_in_tiff(noise, orientation, compression):
    turn = entry("<", ORIENTATION, SHORT, 1, struct.pack("<HH", orientation, 0))
    image = upright(in_tiff([*entries_of("<", noise), turn], compression))
    assert is_turned(image, TURNED, orientation if 1 <= orientation <= 8 else 1)


@functools.cache
def avif_with_exif(orientation, size):
    """An AVIF file that is turned by its own properties, with its EXIF's place in it."""
    exif = Image.Exif()
    exif[0x010F] = "m" * size
    exif[ORIENTATION] = orientation
    data = encoded("AVIF", exif=exif, speed=10)
    start = max(data.rfind(b"II*\0"), data.rfind(b"MM\0*"))
    assert start > 0
    return data, start


@needs_avif
@cases(150)
@hypothesis.given(st.integers(1, 8), exif_blocks())
def test_any_exif_in_avif(orientation, block):
    exif, _ = block
    data, start = avif_with_exif(orientation, 200)
    plain = decode(avif_with_exif(1, 200)[0], "x")
    expected = plain if orientation == 1 else plain.transpose(METHODS[orientation])
    np.testing.assert_array_equal(
        upright(data[:start] + exif + data[start + len(exif) :]), np.asarray(expected)
    )


@cases(1000)
@hypothesis.given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0+", b"\0\0\0\x10ftypavif", b""]),
    st.binary(max_size=60),
)
def test_any_bytes_are_stripped_without_an_error(head, rest):
    data, exif, xmp = metadata.strip(head + rest)
    assert len(data) <= len(head + rest) + 16
    assert 1 <= metadata.orientation(exif, xmp) <= 8
    assert 1 <= metadata.orientation(rest, rest) <= 8


# Much of it


def text_chunks(size):
    text = b"x" * size
    return {
        "zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text)),
        "compressed_iTXt": chunk(b"iTXt", b"Comment\0\1\0en\0\0" + zlib.compress(text)),
        "iTXt": chunk(b"iTXt", b"Comment\0\0\0en\0\0" + text),
        "tEXt": chunk(b"tEXt", b"Comment\0" + text),
        "iCCP": chunk(b"iCCP", b"a profile\0\0" + zlib.compress(text)),
        "private": chunk(b"prVt", text),
    }


@pytest.mark.parametrize("at", [33, -12], ids=["before", "behind"])
@pytest.mark.parametrize("kind", list(text_chunks(0)))
def test_a_png_with_megabytes_of_metadata(kind, at):
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    turn = chunk(b"eXIf", tiff("<", [entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")]))
    large = text_chunks(3_000_000)[kind]
    np.testing.assert_array_equal(upright(in_png(large, turn, at=at)), TURNED[6])
    # Pillow's limits are those of the whole process.
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_png_with_more_text_than_pillow_takes_in_all():
    large = text_chunks(1_000_000)["zTXt"]
    np.testing.assert_array_equal(upright(in_png(*[large] * 70)), PIXELS)


def test_a_png_whose_text_is_damaged():
    text = text_chunks(100)["tEXt"]
    np.testing.assert_array_equal(upright(in_png(text[:-1] + bytes([text[-1] ^ 1]))), PIXELS)
    np.testing.assert_array_equal(
        upright(in_png(chunk(b"zTXt", b"Raw profile type exif\0\0nonsense"))), PIXELS
    )
    np.testing.assert_array_equal(
        upright(in_png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nnonsense"))), PIXELS
    )


def test_the_first_frame_of_an_animation_stays():
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    for default in (True, False):
        data = io.BytesIO()
        frames[0].save(data, "PNG", save_all=True, append_images=frames[1:] * 2, default_image=default)
        assert b"acTL" in data.getvalue()
        np.testing.assert_array_equal(upright(data.getvalue()), PIXELS)


def test_transparency_stays():
    data = io.BytesIO()
    Image.fromarray(PIXELS).quantize(4).save(data, "PNG", transparency=b"\0\0\0\0")
    assert (upright(data.getvalue()) == 255).all()


def test_threads_do_not_interfere():
    turn = chunk(b"eXIf", tiff("<", [entry("<", ORIENTATION, SHORT, 1, b"\6\0\0\0")]))
    files = [in_png(large, turn) for large in text_chunks(2_000_000).values()] * 5
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(upright, files):
            np.testing.assert_array_equal(image, TURNED[6])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_nothing_is_left_in_a_file_but_what_pixels_need(kind):
    comment = {"comment": b"secret"} if kind == "JPEG" else {}
    data = encoded(kind, exif=b"Exif\0\0" + tiff("<", []) + b"secret", icc_profile=b"secret", **comment)
    assert b"secret" in data
    stripped = metadata.strip(data)
    assert b"secret" not in stripped.data
    assert b"secret" in stripped.exif
    assert metadata.strip(stripped.data).data == stripped.data
    np.testing.assert_array_equal(np.asarray(decode(stripped.data, "x")), np.asarray(decode(data, "x")))
