"""Prints where to get a data set, checks the copy on disk, and summarises both of its splits.

    python -m cfmlc_jax.data coco|voc2007|vg256|table|cifar10_lt|mnist|… [--root=DIR]

DIR is the folder that training uses: $CFMLC_DATA/<data set>, else data/<data set>. Nothing is downloaded or
changed. Exit code 0: the copy is complete and both splits can be opened; 1: missing files are listed.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfmlc_jax import cli, files
from cfmlc_jax.data import build
from cfmlc_jax.data.sources import (
    Source,
    checks,
    cifar_files,
    colored_mnist_file,
    digit_looks,
    idx_files,
    mechanism_digits,
)
from cfmlc_jax.data.sources.cifar_lt import CifarLT
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.image_list import STEMS, ImageList
from cfmlc_jax.data.sources.instances import Instances
from cfmlc_jax.data.sources.nus_wide import NUM_TEST, NUM_TRAIN, NusWide
from cfmlc_jax.data.sources.open_images import OpenImages
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.sources.visual_genome import VisualGenome
from cfmlc_jax.data.sources.voc import Voc, find_root
from cfmlc_jax.errors import InputError


@dataclass(frozen=True)
class Archive:
    """A file to download. `checksum` is "algorithm:hex digest", None if none is published."""

    url: str
    size: int | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Images:
    """Folders that together contain at least `count` images; Visual Genome has two folders."""

    folders: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class DataSet:
    """How to get a data set, what a complete copy contains, and how to open it.

    files: paths relative to the folder that `find` returns for the root.
    instead: folders that may replace all of `images`.
    split_sizes: number of images in train and in val, if published.
    check_optional: root -> problems of optional files that are there.
    """

    about: str
    layout: str
    open: Callable[[argparse.Namespace, str], Source]
    archives: tuple[Archive, ...] = ()
    files: tuple[str, ...] = ()
    images: tuple[Images, ...] = ()
    instead: tuple[Images, ...] = ()
    split_sizes: tuple[int, int] | None = None
    find: Callable[[Path], Path] = Path
    check_optional: Callable[[Path], list[str]] = lambda root: []


def long_tailed_cifar(name: str, kept: int) -> DataSet:
    """The entry of a long-tailed CIFAR, with `kept` training images at an imbalance of 100."""
    official = cifar_files.DATA_SETS[name]
    forms = (official.python, official.binary)
    return DataSet(
        about=f"{official.title} ({cifar_files.URL}cifar.html), of which a long-tailed subset is used; one of the two archives is enough",
        layout="\n".join(f"DIR/{form.archive.name}    or DIR/{form.folder}/, unpacked" for form in forms),
        open=lambda flags, split: CifarLT(name, flags.root, split),
        archives=tuple(
            Archive(cifar_files.URL + form.archive.name, form.archive.size, f"md5:{form.archive.md5}")
            for form in forms
        ),
        split_sizes=(kept, 10_000),
    )


def long_tailed_list(name: str, title: str, images: str, listed: tuple[int, int]) -> DataSet:
    """The entry of photos with the lists of Liu et al. (CVPR 2019), with `listed` images in train and val."""
    stem = STEMS[name]
    return DataSet(
        about=f"{title} with the lists of Liu et al., CVPR 2019 (https://github.com/zhmiao/OpenLongTailRecognition-OLTR)",
        layout=f"""\
DIR/{stem}_train.txt, {stem}_val.txt, {stem}_test.txt    lines `path label`; paths relative to DIR
{images}""",
        open=lambda flags, split: ImageList(flags.root, split, stem=stem),
        files=tuple(f"{stem}_{split}.txt" for split in ("train", "val", "test")),
        split_sizes=listed,
    )


def check_mnist_looks(root: Path) -> list[str]:
    """Problems of the textures and of the coloured images that go with MNIST, if they are there."""
    uses: dict[str, Callable[[], object]] = {}
    if (root / "textures").is_dir():
        uses["wildlife_mnist"] = lambda: digit_looks.read_textures(root)
    if (root / colored_mnist_file.NAME).is_file():
        uses["colored_mnist"] = lambda: [colored_mnist_file.read(root, part) for part in idx_files.PARTS]
    problems = []
    for name, use in uses.items():
        try:
            use()
        except InputError as error:
            problems.append(str(error))
        else:
            print(f"{name}: its own files can be read")
    return problems


# Sizes and SHA-256 from the checksum lists of TensorFlow Datasets, VOC's MD5 from torchvision.
DATA_SETS = {
    "coco": DataSet(
        about="MS-COCO 2014 (https://cocodataset.org)",
        layout="""\
DIR/train2014/COCO_train2014_000000000009.jpg ...
DIR/val2014/COCO_val2014_000000000042.jpg ...
DIR/annotations/instances_train2014.json
DIR/annotations/instances_val2014.json
or, in place of the first two, DIR/train2017/ and DIR/val2017/ of COCO 2017: the same pictures, found by id""",
        open=lambda flags, split: Coco(flags.root, split),
        archives=(
            Archive(
                "http://images.cocodataset.org/zips/train2014.zip",
                13_510_573_713,
                "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
            Archive(
                "http://images.cocodataset.org/zips/val2014.zip",
                6_645_013_297,
                "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            ),
            Archive(
                "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
                252_872_794,
                "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            ),
        ),
        files=("annotations/instances_train2014.json", "annotations/instances_val2014.json"),
        images=(Images(("train2014",), 82_783), Images(("val2014",), 40_504)),
        split_sizes=(82_081, 40_137),
        instead=(Images(("train2017", "val2017"), 82_783 + 40_504),),
    ),
    "coco2017": DataSet(
        about="MS-COCO 2017 (https://cocodataset.org)",
        layout="""\
DIR/train2017/000000000009.jpg ...
DIR/val2017/000000000139.jpg ...
DIR/annotations/instances_train2017.json
DIR/annotations/instances_val2017.json""",
        open=lambda flags, split: Coco(flags.root, split, year="2017"),
        archives=(
            Archive(
                "http://images.cocodataset.org/zips/train2017.zip",
                19_336_861_798,
                "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
            Archive(
                "http://images.cocodataset.org/zips/val2017.zip",
                815_585_330,
                "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            Archive(
                "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
                252_907_541,
                "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
        ),
        files=("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        images=(Images(("train2017",), 118_287), Images(("val2017",), 5_000)),
        split_sizes=(117_266, 4_952),
    ),
    "instances": DataSet(
        about="your own images, annotated in two files of COCO's form",
        layout="""\
DIR/annotations/instances_train.json    other names and lists of images: config.data.instances
DIR/annotations/instances_val.json
DIR/images/                             the folder to which file_name is relative""",
        open=lambda flags, split: Instances(
            flags.root, split, json=f"annotations/instances_{split}.json", images="images"
        ),
        files=("annotations/instances_train.json", "annotations/instances_val.json"),
    ),
    "open_images": DataSet(
        about="Open Images V4 to V7 (https://storage.googleapis.com/openimages/web/index.html), labels that people verified",
        layout="""\
DIR/train/000002b66c9c498e.jpg ...      any part of the official images; the others are left out
DIR/validation/0001eeaf4aed83f9.jpg ...
DIR/train-annotations-human-imagelabels-boxable.csv         or oidv6-train-annotations-human-imagelabels.csv ...
DIR/validation-annotations-human-imagelabels-boxable.csv    or oidv7-val-annotations-human-imagelabels.csv ...
DIR/class-descriptions-boxable.csv                          or oidv7-class-descriptions.csv ...
DIR/classes.txt                         optional: the classes to learn, a name or code a line""",
        open=lambda flags, split: OpenImages(flags.root, split),
        archives=tuple(
            Archive(f"https://storage.googleapis.com/openimages/v5/{name}.csv")
            for name in (
                "train-annotations-human-imagelabels-boxable",
                "validation-annotations-human-imagelabels-boxable",
                "class-descriptions-boxable",
            )
        ),
    ),
    "nus_wide": DataSet(
        about="NUS-WIDE (https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html)",
        layout="""\
DIR/Flickr/actor/0001_2124494179.jpg ...
DIR/ImageList/TrainImagelist.txt, TestImagelist.txt
DIR/ConceptsList/Concepts81.txt                             (or DIR/Concepts81.txt)
DIR/Groundtruth/TrainTestLabels/Labels_airport_Train.txt ... (or DIR/TrainTestLabels/)""",
        open=lambda flags, split: NusWide(flags.root, split),
        files=("ImageList/TrainImagelist.txt", "ImageList/TestImagelist.txt"),
        split_sizes=(NUM_TRAIN, NUM_TEST),
    ),
    "voc2007": DataSet(
        about="PASCAL VOC 2007 (http://host.robots.ox.ac.uk/pascal/VOC/voc2007)",
        layout="""\
DIR/VOCdevkit/VOC2007/JPEGImages/000001.jpg ...
DIR/VOCdevkit/VOC2007/ImageSets/Main/aeroplane_trainval.txt, aeroplane_test.txt ...
DIR/VOCdevkit/VOC2007/Annotations/000001.xml ...    (boxes; optional)""",
        open=lambda flags, split: Voc(flags.root, split),
        archives=(
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar",
                460_032_000,
                "md5:c52e279531787c972589f7e41ab4ae64",
            ),
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar",
                451_020_800,
                "md5:b6e924de25625d8de591ea690078ad9f",
            ),
        ),
        files=("ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt"),
        images=(Images(("JPEGImages",), 5_011 + 4_952),),
        find=find_root,
    ),
    "vg256": DataSet(
        about="Visual Genome v1.2 (https://homes.cs.washington.edu/~ranjay/visualgenome) with the categories of VG-256",
        layout="""\
DIR/VG_100K/2.jpg ...
DIR/VG_100K_2/1.jpg ...                             (or all images in one of the two)
DIR/objects.json
DIR/vg256.json                                      (or --vocabulary=FILE)
vg256.json (category -> list of object names) is data/vg256/vg256.json of https://github.com/xiemk/MLC-PAT""",
        open=lambda flags, split: VisualGenome(
            flags.root, split, flags.vocabulary or Path(flags.root) / "vg256.json"
        ),
        archives=(
            Archive(
                "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
                9_731_705_982,
                "sha256:51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646",
            ),
            Archive(
                "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
                5_471_658_058,
                "sha256:99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5",
            ),
            Archive(
                "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/objects_v1_2.json.zip"
            ),
        ),
        files=("objects.json",),
        images=(Images(("VG_100K", "VG_100K_2"), 108_077),),
    ),
    "table": DataSet(
        about="your own images, listed in two tables",
        layout="""\
DIR/train.csv, DIR/val.csv    lines `path,label;label`; paths relative to DIR; no label: `path,`
                              known to be absent: `-label`; unknown: `?label`
DIR/classes.txt               one class per line (optional: else the labels of train.csv, sorted)""",
        open=lambda flags, split: Table(flags.root, split),
        files=("train.csv", "val.csv"),
    ),
    "cifar10_lt": long_tailed_cifar("cifar10_lt", 12_406),
    "cifar100_lt": long_tailed_cifar("cifar100_lt", 10_847),
    "imagenet_lt": long_tailed_list(
        "imagenet_lt",
        "ImageNet 2012 (https://image-net.org)",
        "DIR/train/n01440764/n01440764_190.JPEG ...\nDIR/val/ILSVRC2012_val_00000001.JPEG ...",
        (115_846, 20_000),
    ),
    "places_lt": long_tailed_list(
        "places_lt",
        "Places365-Standard (http://places2.csail.mit.edu)",
        "DIR/data_256/a/airfield/00000001.jpg ...",
        (62_500, 7_300),
    ),
    "mnist": DataSet(
        about="MNIST (https://yann.lecun.com/exdb/mnist), for colored_mnist, double_colored_mnist and wildlife_mnist; files may stay packed",
        layout=f"""\
DIR/train-images-idx3-ubyte, train-labels-idx1-ubyte    each also as .gz
DIR/t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte      each also as .gz
DIR/textures/object/0_….jpg ... 9_….jpg                 for wildlife_mnist
DIR/textures/background/0_….jpg ... 9_….jpg             for wildlife_mnist
DIR/{colored_mnist_file.NAME}           optional: for colored_mnist, in place of drawn colours
textures are mnists/data/textures of https://github.com/autonomousvision/counterfactual_generative_networks,
the last file is in colored_mnist.tar.gz (link in https://github.com/feidfoe/learning-not-to-learn)""",
        open=lambda flags, split: mechanism_digits.official("double_colored_mnist", flags.root, split),
        archives=tuple(
            Archive(idx_files.URL + file.name, file.size, f"md5:{file.md5}") for file in idx_files.FILES
        ),
        split_sizes=(50_000, 10_000),
        check_optional=check_mnist_looks,
    ),
}


def explain(data_set: DataSet) -> str:
    """Text about the data set: what it is, where to download it, and the layout of the root."""
    lines = [data_set.about]
    if data_set.archives:
        lines.append("download into DIR and unpack there (unzip, tar -xf):")
        lines += [f"  {archive.url}  ({_published(archive)})" for archive in data_set.archives]
    lines.append("layout:")
    lines += [f"  {line}" for line in data_set.layout.splitlines()]
    return "\n".join(lines)


def _published(archive: Archive) -> str:
    size = "size not published" if archive.size is None else f"{archive.size:,} bytes"
    return f"{size}, {archive.checksum or 'no public checksum'}"


def check_archive(path: Path, archive: Archive) -> str | None:
    """The problem of a downloaded file; None if there is none, or nothing is published to compare with."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"{path}: {size:,} bytes, wanted {archive.size:,}; download it again"
    if archive.checksum is None:
        return None
    algorithm, _, wanted = archive.checksum.partition(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    return None if digest == wanted else f"{path}: {algorithm} {digest}, wanted {wanted}; download it again"


def check_copy(root: Path, data_set: DataSet) -> list[str]:
    """Lines about what is missing in the unpacked copy."""
    try:
        place = data_set.find(root)
    except InputError as error:
        return [str(error)]
    problems = [f"{place / file} is missing" for file in data_set.files if not (place / file).is_file()]
    replaced = any((place / folder).is_dir() for images in data_set.instead for folder in images.folders)
    replaced = replaced and not any(
        (place / folder).is_dir() for images in data_set.images for folder in images.folders
    )
    for images in data_set.instead if replaced else data_set.images:
        count = sum(count_images(place / folder) for folder in images.folders)
        if count < images.count:
            where = " and ".join(str(place / folder) for folder in images.folders)
            problems.append(f"{where}: {count:,} images, wanted {images.count:,}")
    return problems


def count_images(folder: Path) -> int:
    """Number of JPEG files in a folder; 0 if it does not exist."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.lower().endswith((".jpg", ".jpeg")) for entry in entries)


def show_splits(flags: argparse.Namespace, data_set: DataSet) -> list[str]:
    """Print summaries of both splits, and return lines about their problems."""
    sources: dict[str, Source] = {}
    problems = []
    for number, split in enumerate(("train", "val")):
        try:
            sources[split] = data_set.open(flags, split)
        except InputError as error:
            problems.append(str(error))
            continue
        print(checks.summary(split, sources[split], read_boxes=True))
        if data_set.split_sizes and len(sources[split]) != data_set.split_sizes[number]:
            problems.append(
                f"{split}: {len(sources[split]):,} images, wanted {data_set.split_sizes[number]:,}"
            )
    if len(sources) == 2:
        for require in (checks.require_same_classes, checks.require_disjoint):
            try:
                require(sources["train"], sources["val"])
            except InputError as error:
                problems.append(str(error))
    return problems


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, print the findings, and return the exit code: 0 if the copy is complete, else 1."""
    parser = cli.Parser(prog="python -m cfmlc_jax.data", description=__doc__)
    parser.add_argument("data_set", choices=DATA_SETS)
    parser.add_argument(
        "--root",
        default="",
        help=f"the folder of the data set (DIR; default: ${build.ROOT_VARIABLE}/<data set>, else data/<data set>)",
    )
    parser.add_argument(
        "--vocabulary", type=files.local_path, help="vg256: the vocabulary file (default: DIR/vg256.json)"
    )
    flags = parser.parse_args(arguments)
    flags.root = build.place(flags.data_set, flags.root)
    files.require_path(str(flags.root), "--root")
    data_set = DATA_SETS[flags.data_set]

    print(explain(data_set))
    print(f"\nchecking DIR = {flags.root}")
    if not flags.root.is_dir():
        print(
            f"  PROBLEM {flags.root} is not a folder; create it, or give another by --root or ${build.ROOT_VARIABLE}"
        )
        print("incomplete")
        return 1
    problems = []
    for archive in data_set.archives:
        path = flags.root / archive.name
        if path.is_file() and (archive.size or archive.checksum):
            print(f"  {archive.name}: comparing with {_published(archive)}", flush=True)
            problem = check_archive(path, archive)
            problems += [problem] if problem else []
    problems += check_copy(flags.root, data_set)
    problems += show_splits(flags, data_set)
    problems += data_set.check_optional(flags.root)

    for problem in dict.fromkeys(problems):
        print(f"  PROBLEM {problem}")
    print("incomplete" if problems else "complete")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
