"""Metadata of image files: removed before decoding, except for the orientation, which is read.

Pillow parses all metadata when it opens a file. A tag of an unexpected type, or some megabytes of text, then
make an intact photo unreadable. Unusual metadata are ignored here; damage to the data that pixels need is left
for the decoder to report.
"""

import functools
import re
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

# The EXIF tag of the orientation, its types with their sizes in bytes, and its value for upright images.
_ORIENTATION, _SIZES, UPRIGHT = 0x0112, {3: 2, 4: 4}, 1
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# Limit of decompressed text, which may be a thousand times as long as the compressed one. EXIF has at most 64 KiB in
# JPEG, and twice that as hexadecimal digits.
_MAX_TEXT = 2**20
# Tags of a TIFF directory that describe how pixels are stored: size, bits, compression, strips, planes, fax
# options, predictor, palette, tiles, inks, samples, JPEG tables, YCbCr, LERC.
_PIXEL_TAGS = frozenset([
    *range(254, 267), 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326), *range(332, 337),
    *range(338, 342), 347, *range(512, 522), *range(529, 533), 50674,
])  # fmt: skip
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
# Widths by the number after the byte order: 42 in TIFF, 43 in BigTIFF.
_WIDTHS = {b"\0\x2a": (2, 12, 4), b"\0\x2b": (8, 20, 8)}
_PNG = b"\x89PNG\r\n\x1a\n"
_RAW_PROFILE, _XMP_TEXT = b"Raw profile type exif", b"XML:com.adobe.xmp"
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class Stripped(NamedTuple):
    """An image file without its metadata.

    data: the file without metadata, which decodes to the same pixels.
    exif: its EXIF, empty if it has none; in files other than JPEG, PNG and TIFF it stays in `data`.
    xmp: its XMP, likewise.
    """

    data: bytes
    exif: bytes = b""
    xmp: bytes = b""


def strip(data: bytes) -> Stripped:
    """The file without its metadata; unchanged if it is damaged, or if metadata do no harm in its kind of file."""
    if data.startswith(b"\xff\xd8"):
        return _strip_jpeg(data)
    if data.startswith(_PNG):
        return _strip_png(data)
    if data[:2] in (b"II", b"MM"):
        return _strip_tiff(data)
    if data[4:8] == b"ftyp":
        return Stripped(_without_exif_items(data))
    return Stripped(data)


def orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation of an image, 1 (`UPRIGHT`) to 8 as in EXIF; upright if the metadata have no valid one.

    EXIF takes precedence over XMP.
    """
    value = _exif_orientation(exif)
    if value is None:
        match = _XMP_ORIENTATION.search(xmp)
        value = int(match[1]) if match else UPRIGHT
    return value if 1 <= value <= 8 else UPRIGHT


def _exif_orientation(exif):
    # Some cameras write the name twice.
    directory = _directory(exif.removeprefix(_JPEG_EXIF).removeprefix(_JPEG_EXIF))
    if directory is None:
        return None
    for entry in directory.entries:
        if directory.number(entry[:2]) == _ORIENTATION:
            size = _SIZES.get(directory.number(entry[2:4]))
            return directory.number(directory.value(entry)[:size]) if size else UPRIGHT
    return None


class _Directory(NamedTuple):
    """The first directory of a TIFF file; EXIF has the same format.

    order: byte order of numbers.
    start: position of the directory in the file.
    widths: bytes of the count of entries, of an entry, and of an offset.
    entries: the complete entries.
    """

    order: Literal["little", "big"]
    start: int
    widths: tuple[int, int, int]
    entries: list[bytes]

    def number(self, data):
        return int.from_bytes(data, self.order)

    def value(self, entry):
        return entry[-self.widths[2] :]


def _directory(tiff) -> _Directory | None:
    order = _ORDERS.get(tiff[:2])
    widths = _WIDTHS.get(bytes(sorted(tiff[2:4])))
    if order is None or widths is None:
        return None
    number = functools.partial(int.from_bytes, byteorder=order)
    counter, size, offset = widths
    start = number(tiff[offset : 2 * offset])
    first = start + counter
    end = min(first + number(tiff[start:first]) * size, len(tiff))
    return _Directory(
        order, start, widths, [tiff[at : at + size] for at in range(first, end - size + 1, size)]
    )


def _strip_tiff(data):
    directory = _directory(data)
    if directory is None or not directory.entries:
        return Stripped(data)
    counter, _, offset = directory.widths
    kept = [entry for entry in directory.entries if directory.number(entry[:2]) in _PIXEL_TAGS]
    # Not longer than before, so that no other byte of the file moves; the zeros say that no directory follows.
    new = len(kept).to_bytes(counter, directory.order) + b"".join(kept) + bytes(offset)
    start = directory.start
    return Stripped(data[:start] + new + data[start + len(new) :], exif=data)


def _strip_jpeg(data):
    kept, exif, xmp = [], b"", b""
    view = memoryview(data)
    done = 0
    for marker, start, end in _segments(data):
        body = view[start + 4 : end]
        # Keep APP0 (JFIF) and APP14 (Adobe), on which colours depend.
        if marker != 0xFE and (not 0xE1 <= marker <= 0xEF or marker == 0xEE):
            continue
        if marker == 0xE1 and body[: len(_JPEG_EXIF)] == _JPEG_EXIF:
            exif += body[len(_JPEG_EXIF) :]  # EXIF that is too long for one segment continues in the next
        elif marker == 0xE1 and body[: len(_JPEG_XMP)] == _JPEG_XMP:
            xmp = bytes(body[len(_JPEG_XMP) :])
        kept.append(view[done:start])
        done = end
    return Stripped(b"".join([*kept, view[done:]]), exif, xmp) if kept else Stripped(data)


def _segments(data) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the segments before a JPEG file's pixels, up to the first damaged one."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        # Pixels begin, or a marker without a segment, or damage.
        if marker in (0, 1, *range(0xD0, 0xDB)) or end < at + 4 or end > len(data):
            return
        yield marker, at, end
        at = end


def _strip_png(data):
    """The PNG file without ancillary chunks except transparency, and hence without frames after the first."""
    view = memoryview(data)
    kept, exif, xmp = [view[: len(_PNG)]], b"", b""
    at = len(_PNG)
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data) or kind == b"IEND":
            break
        body = view[at + 8 : end - 4]
        if kind == b"eXIf":
            exif = bytes(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = bytes(body[:80]).partition(b"\0")[0]
            if keyword == _XMP_TEXT:
                xmp = _text(kind, bytes(body))
            elif keyword == _RAW_PROFILE and not exif:
                exif = _raw_profile(_text(kind, bytes(body)))
        elif kind == b"tRNS" or not (kind.isalpha() and kind[:1].islower()):
            kept.append(view[at:end])
        at = end
    return Stripped(b"".join([*kept, view[at:]]), exif, xmp)


def _text(kind, body):
    text = body.partition(b"\0")[2]
    if kind == b"zTXt":
        return _inflated(text[1:])
    if kind == b"iTXt":
        # Two bytes about compression, then language and translated keyword.
        compressed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]
        return _inflated(text) if compressed else text
    return text


def _inflated(data):
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT)
    except zlib.error:
        return b""


def _raw_profile(text):
    """The bytes that ImageMagick writes as hexadecimal digits after three lines: empty, a name, a length."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


def _without_exif_items(data):
    """The AVIF file with its EXIF item renamed so that readers ignore it; AVIF stores rotation as image properties."""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            for inner, first, last in _boxes(data, start + 4, end):
                if inner == b"iinf":
                    return data[:first] + data[first:last].replace(b"Exif", b"none") + data[last:]
    return data


def _boxes(data, at, end) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and start and end of the content, of the boxes in a part of an ISO media file, up to a damaged one."""
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        after = at + size if size else end
        if after < at + head or after > end:
            return
        yield data[at + 4 : at + 8], at + head, after
        at = after
