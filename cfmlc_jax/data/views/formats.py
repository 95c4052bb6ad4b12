"""Kinds of image files: which are supported, and how to recognise them by their first bytes and their names."""

import re

from PIL import features

# Pillow reads AVIF since version 11.3, if built with libavif; an older version warns about the unknown feature.
_AVIF = "avif" in features.modules and features.check("avif")
# Supported formats by Pillow's names. Others are excluded: its EPS reader, for example, runs an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", *(["AVIF"] if _AVIF else []))

_AVIF_SUFFIXES = (".avif", ".avifs")
# Suffixes of the files in a folder that count as images.
SUFFIXES = (
    ".apng", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", *(_AVIF_SUFFIXES if _AVIF else ()),
)  # fmt: skip
# Suffixes of images that are not supported: formats of cameras and drawing programs, and newer formats.
UNREAD_SUFFIXES = (
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".crw", ".cur", ".dcm", ".dcr", ".dds", ".djvu", ".dng", ".emf", ".eps",
    ".erf", ".exr", ".fff", ".fits", ".hdp", ".hdr", ".heic", ".heics", ".heif", ".heifs", ".hif", ".icns", ".ico",
    ".iiq", ".jls", ".jxl", ".jxr", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pcx", ".pef", ".pfm",
    ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".rwl", ".sgi", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".tga",
    ".wdp", ".wmf", ".x3f", ".xcf", *(() if _AVIF else _AVIF_SUFFIXES),
)  # fmt: skip

# Longer than the longest signature.
HEAD_BYTES = 512
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    # Paths may begin with these letters too, but contain no zero bytes and no lines of digits.
    "BMP": rb"BM.{4}\0{4}",
    "PPM": rb"P[1-6](\s|#[^\n]*\n)+\d+(\s|#[^\n]*\n)+\d+\s",
    "camera raw": rb"II\*\0.{4}CR|IIRO|IIRS|IIU\0|MMOR|FUJIFILMCCD-RAW|.{4}ftypcrx",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "JPEG2000": rb"\0{3}\x0cjP  |\xff\x4f\xff\x51",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIF": rb".{4}ftyp(he[iv][cxms]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0{3}\x0cJXL ",
    "Photoshop": rb"8BPS",
    "OpenEXR": rb"v/1\x01",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg\s",
}
_KINDS = tuple((kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _SIGNATURES.items())


def kind_of(head: bytes) -> str | None:
    """The kind of image that begins with these `HEAD_BYTES`, supported or not; None if it is not known."""
    return next((kind for kind, signature in _KINDS if signature.match(head)), None)


def refusal(name: str, head: bytes) -> str | None:
    """Why an image file with this name and these first `HEAD_BYTES` is not supported; None if it may be read.

    The content decides, not the name. An exception are camera raw files: they begin like TIFF files, and
    Pillow would read the thumbnail in them instead of the image.
    """
    kind = kind_of(head)
    if name.lower().endswith(UNREAD_SUFFIXES) and kind in (None, "TIFF"):
        kind = name[name.rindex(".") :]
    if kind is None or kind in FORMATS:
        return None
    return f"an image of an unsupported kind, {kind} ({', '.join(FORMATS)} are supported); convert it to JPEG or PNG"
