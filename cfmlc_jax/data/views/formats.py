"""Kinds of image files: which are read, and how they are told by their first bytes and by their names."""

import re

from PIL import features

# From version 11.3 on, and where it was built with libavif; an older one warns of a feature that it does not know.
_AVIF = "avif" in features.modules and features.check("avif")
# By Pillow's names. Not all that it knows: its EPS reader, for one, hands the file to an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", *(["AVIF"] if _AVIF else []))

_AVIF_SUFFIXES = (".avif", ".avifs")
# What counts as an image in a folder.
SUFFIXES = (
    ".apng", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", *(_AVIF_SUFFIXES if _AVIF else ()),
)  # fmt: skip
# Pictures, too, but none that are read: what cameras and drawing programs keep for themselves, and newer formats.
UNREAD_SUFFIXES = (
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".crw", ".cur", ".dcm", ".dcr", ".dds", ".djvu", ".dng", ".emf", ".eps",
    ".erf", ".exr", ".fff", ".fits", ".hdp", ".hdr", ".heic", ".heics", ".heif", ".heifs", ".hif", ".icns", ".ico",
    ".iiq", ".jls", ".jxl", ".jxr", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pcx", ".pef", ".pfm",
    ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".rwl", ".sgi", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".tga",
    ".wdp", ".wmf", ".x3f", ".xcf", *(() if _AVIF else _AVIF_SUFFIXES),
)  # fmt: skip

# More than the longest signature.
HEAD_BYTES = 512
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    # Paths may begin with these letters, but have no zero bytes, or digits in lines of their own.
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
    """The kind of image that a file's first `HEAD_BYTES` begin, read or not; None if none that is known."""
    return next((kind for kind, signature in _KINDS if signature.match(head)), None)


def refusal(name: str, head: bytes) -> str | None:
    """Why a file of this name and these first `HEAD_BYTES` is an image that is not read; None if it may be read.

    A file is judged by its content, whatever it is called. But camera raw files begin as TIFF files do, and
    Pillow would take the thumbnail in them for the picture.
    """
    kind = kind_of(head)
    if name.lower().endswith(UNREAD_SUFFIXES) and kind in (None, "TIFF"):
        kind = name[name.rindex(".") :]
    if kind is None or kind in FORMATS:
        return None
    return (
        f"an image of a kind that is not read, {kind} ({', '.join(FORMATS)} are); convert it to JPEG or PNG"
    )
