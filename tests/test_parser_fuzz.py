"""What a user can give, damaged at random: there is a value, or an error of one line.

See also test_json_fuzz.py, test_files.py and test_archives.py; in data test_source_fuzz.py, test_pickles.py,
test_idx_files.py and test_metadata.py; in torch_weights test_torch_files.py and test_mlc_pat.py; config/test_older.py,
predict/test_inputs.py and results/test_csv_lines.py.
"""

import io
import json
import socket

import numpy as np
import pytest
from fuzzing import cases, mutated, spoiled, value_or_line
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from cfmlc_jax import cli, lock
from cfmlc_jax.cgn import __main__ as cgn
from cfmlc_jax.cgn import counterfactuals
from cfmlc_jax.check import __main__ as check
from cfmlc_jax.context import __main__ as context
from cfmlc_jax.data import __main__ as data
from cfmlc_jax.data.regions import lvis
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.regions.records import INDEX, RegionRecords, Writer
from cfmlc_jax.data.sources.instances import Instances
from cfmlc_jax.data.sources.nus_wide import NusWide
from cfmlc_jax.data.sources.open_images import OpenImages
from cfmlc_jax.decisions import __main__ as decisions
from cfmlc_jax.engine import units
from cfmlc_jax.engine.follower import Record
from cfmlc_jax.engine.writers import JsonlWriter, read_lines
from cfmlc_jax.export import __main__ as export
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.regions import __main__ as regions
from cfmlc_jax.regions.files import read_detections
from cfmlc_jax.report import __main__ as report
from cfmlc_jax.results import thresholds
from cfmlc_jax.torch_weights import __main__ as convert
from cfmlc_jax.torch_weights import files as torch_files
from cfmlc_jax.weights import __main__ as weights
from cfmlc_jax.weights import cache, fetch
from cfmlc_jax.weights import read as weights_read

ODD_WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "1e999",
        "\u0663",
        "\u00b2",
        "9" * 5000,
        "0,0,0",
        "1:2",
    ),
    *(
        "[",
        "a{99999999999}",
        "(" * 500,
        "\ud800",
        "\x00",
        "a\nb",
        "s3://",
        "hf:",
        "~nobody-at-all/x",
        "x" * 5000,
        "timm:",
        "cpu:0",
    ),
)
words = st.sampled_from(ODD_WORDS) | st.text(st.characters(codec=None), max_size=8)
COMMANDS = {
    "report": (report, "RUN --out=x.html --alphas=0,0.3 --prediction=whole"),
    "export": (export, "RUN out.onnx --alpha=0.3 --opset=17 --weights=weights"),
    "cgn": (cgn, "generate --checkpoint=RUN --out=OUT --records=3 --truncation=0.5 --shard-size=2 --seed=1"),
    "predict": (
        predict,
        "a.jpg --checkpoint=RUN --top=3 --threshold=.5 --output=x.csv --prediction=tde_pivot_1 --batch_size=2",
    ),
    "thresholds": (decisions, "thresholds RUN --rule=precision --precision=0.8 --root=DIR --batch_size=2"),
    "scores": (decisions, "scores RUN --out=x.csv --prediction=whole --weights=weights"),
    "check": (check, "DIR --output=x --rare=3 --smallest=4 --threads=2"),
    "context": (context, "--checkpoint=RUN --pairs=3 --largest=.2 --out=x --removals=0 --effective_share=.5"),
    "convert": (convert, "in.pth out --normalise=none --allow=x --classes=c --image_size=3"),
    "weights": (weights, "fetch timm:resnet50"),
    "data": (data, "coco --root=DIR --vocabulary=x.json"),
    "regions": (regions, "score d.json --annotations=a.json --most=3 --release=v1"),
}


class Parsed(Exception):
    """The flags were accepted; the command does not begin."""


@st.composite
def lines(draw, line):
    """A command line with some of its words replaced, given another value, left out, or repeated."""
    arguments = line.split()
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(arguments) - 1))
        word = draw(words)
        flag = arguments[place].partition("=")[0]
        kind = draw(st.sampled_from(("value", "word", "none", "again")))
        new = {"value": [f"{flag}={word}"], "word": [word], "none": [], "again": [arguments[place], flag]}[
            kind
        ]
        arguments[place : place + 1] = new or (["x"] if len(arguments) == 1 else [])
    return arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_any_command_line_is_parsed_or_refused(name, monkeypatch, capsys):
    module, line = COMMANDS[name]

    def then_stop(parse):
        def parsed(*arguments):
            parse(*arguments)
            raise Parsed

        return parsed

    for method in ("parse_args", "parse_intermixed_args"):
        # `parse_args` calls the other one's parts, never the other one.
        monkeypatch.setattr(cli.Parser, method, then_stop(getattr(cli.Parser, method)))

    def outcome(arguments):
        try:
            code = module.main(arguments)
        except Parsed:
            capsys.readouterr()
            return True
        except SystemExit as error:  # --help
            code = error.code
        out, err = capsys.readouterr()
        assert (code == 0 and out) or (code == 1 and len(err.splitlines()) == 1), (code, out, err)
        return False

    @cases(40)
    @given(lines(line))
    def try_all(arguments):
        outcome(arguments)

    assert outcome(line.split())
    try_all()


@cases(100)
@given(words | st.from_regex(r"(hf|timm|torchvision|mlc_pat|[a-z]\w*):[^\n]*", fullmatch=True))
def test_any_name_of_weights(text):
    name = value_or_line(fetch.named, text)
    if name is not None:
        name.present()
        root = cache.folder().resolve()
        assert name.path.resolve().is_relative_to(root)


@cases(100)
@given(words | st.from_regex(r"[0-9]*\.?[0-9]* ?[KMGT]?i?B?", fullmatch=True))
def test_any_size_of_memory(text):
    number = value_or_line(units.parsed_bytes, text, "--memory")
    assert number is None or 1 <= number < 2**60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder that the tests of this file share, each with files of its own."""
    return tmp_path_factory.mktemp("fuzz")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    return path


LVIS = {
    "categories": [
        {"id": 3, "name": "cat", "frequency": "r", "image_count": 1},
        {"id": 5, "name": "dog", "frequency": "c", "image_count": 11},
    ],
    "images": [
        {"id": 1, "neg_category_ids": [5], "not_exhaustive_category_ids": [], "file_name": "a.jpg"},
        {
            "id": 2,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [3],
            "coco_url": "http://x/val2017/b.jpg",
        },
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4.5]},
        {"id": 2, "image_id": 2, "category_id": 5, "bbox": [0, 0, 9, 9]},
    ],
}
DETECTIONS = [
    {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4.5], "score": 0.5},
    {"image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 1},
]


@pytest.mark.parametrize("training", [False, True])
def test_any_annotations_of_lvis(root, training):
    @cases(100)
    @given(mutated(LVIS).map(json.dumps) | spoiled(json.dumps(LVIS)))
    def try_all(text):
        path = write(root / "lvis.json", text)
        annotations = value_or_line(lambda: lvis.read(path, training=training))
        assert annotations is None or annotations.truth.corners.dtype == np.float64

    try_all()


@cases(100)
@given(mutated(DETECTIONS).map(json.dumps) | spoiled(json.dumps(DETECTIONS)))
def test_any_detections(root, text):
    annotations = lvis.read(write(root / "truth.json", json.dumps(LVIS)))
    found = value_or_line(read_detections, write(root / "found.json", text), annotations)
    assert found is None or found.scores.dtype == np.float64


@pytest.fixture(scope="module")
def nus_wide(root):
    folder = root / "nus"
    for name in ("a.jpg", "b.jpg"):
        write(folder / "Flickr" / "sub" / name, b"x")
    return folder


NUS_WIDE = {
    "ImageList/TrainImagelist.txt": "sub\\a.jpg\nsub\\b.jpg\n",
    "ConceptsList/Concepts81.txt": "cat\ndog\n",
    "Groundtruth/TrainTestLabels/Labels_cat_Train.txt": "0\n1\n",
    "Groundtruth/TrainTestLabels/Labels_dog_Train.txt": "1\n1\n",
}


@st.composite
def one_spoiled(draw, contents):
    """Files by name, one of them spoiled."""
    name = draw(st.sampled_from(sorted(contents)))
    return contents | {name: draw(spoiled(contents[name]))}


def opens(contents, folder, make):
    for name, content in contents.items():
        write(folder / name, content)
    source = value_or_line(make)
    if source is not None:
        assert source.labels.shape == (len(source), len(source.class_names))
        assert len(source) > 0
    return source


@cases(80)
@given(one_spoiled(NUS_WIDE))
def test_any_lists_of_nus_wide(nus_wide, contents):
    opens(contents, nus_wide, lambda: NusWide(nus_wide, "train"))


OPEN_IMAGES = {
    "train-annotations-human-imagelabels-boxable.csv": "ImageID,Source,LabelName,Confidence\na,v,/m/1,1\nb,v,/m/2,0\nb,v,/m/1,1.0\n",
    "class-descriptions-boxable.csv": '/m/1,Cat\n/m/2,"Dog, wild"\n',
    "classes.txt": "Cat\n/m/2\n",
}


@pytest.fixture(scope="module")
def open_images(root):
    folder = root / "open"
    for name in ("a.jpg", "b.jpg"):
        write(folder / "train" / name, b"x")
    return folder


@cases(80)
@given(one_spoiled(OPEN_IMAGES))
def test_any_tables_of_open_images(open_images, contents):
    opens(contents, open_images, lambda: OpenImages(open_images, "train"))


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
    "categories": [{"id": 1, "name": "cat"}],
}


@pytest.fixture(scope="module")
def instances(root):
    folder = root / "own"
    for name in ("a.jpg", "b.jpg"):
        write(folder / name, b"x")
    return folder


@cases(100)
@given(one_spoiled({"x.json": json.dumps(COCO), "listed.txt": "1\nb.jpg\n"}))
def test_any_list_of_images(instances, contents):
    opens(contents, instances, lambda: Instances(instances, "train", json="x.json", listed="listed.txt"))


@pytest.fixture(scope="module")
def records(root):
    folder = root / "regions"
    writer = Writer(folder, shape=(2,), categories=[Category(3, "cat", "r"), Category(5, "dog", "f")])
    writer.add(1, np.ones((2, 1, 2)), np.ones((2, 4)), np.zeros((2, 1)))
    writer.add(2, np.ones((1, 1, 2)), np.ones((1, 4)), np.ones((1, 1)))
    writer.close()
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def opened_records(folder):
    opened = RegionRecords(folder)
    if opened.labelled:
        opened.class_counts()
    for image in range(len(opened)):
        regions = opened[image]
        assert regions.features.shape == (opened.counts[image], opened.stages, *opened.shape)
    assert all(type(category.id) is int for category in opened.categories)
    return opened


def test_any_index_of_region_records(records):
    folder, contents = records

    @cases(100)
    @given(mutated(json.loads(contents[INDEX])).map(json.dumps) | spoiled(contents[INDEX].decode()))
    def try_all(text):
        write(folder / INDEX, text)
        value_or_line(opened_records, folder)

    try_all()
    write(folder / INDEX, contents[INDEX])
    assert len(opened_records(folder)) == 2


# NumPy takes some damaged headers for those of Python 2.
@pytest.mark.filterwarnings(
    "ignore:Reading `.npy` or `.npz` file required additional header parsing:UserWarning"
)
@cases(100)
@given(data=st.data())
def test_any_bytes_in_region_records(records, data):
    folder, contents = records
    name = data.draw(st.sampled_from(sorted(contents.keys() - {INDEX})))
    damaged = bytearray(contents[name])
    place = data.draw(st.integers(0, len(damaged)))
    damaged[place : place + data.draw(st.integers(0, 60))] = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"PK\x03\x04", b"\x80\x04", b"{[]:1}", b"(" * 50, b"'O'"])
    )
    write(folder / name, bytes(damaged))
    value_or_line(opened_records, folder)
    write(folder / name, contents[name])


THRESHOLDS = {
    "format": 1,
    "version": "0.1.0",
    "rule": "f1",
    "precision": None,
    "split": "val",
    "images": 3,
    "class_names": ["a", "b"],
    "thresholds": {"average": {"whole": [0.5, 0.25]}},
}


@cases(100)
@given(mutated(THRESHOLDS).map(json.dumps) | spoiled(json.dumps(THRESHOLDS)))
def test_any_thresholds(root, text):
    fitted = value_or_line(thresholds.read_file, write(root / "thresholds.json", text), ("a", "b"))
    assert fitted is None or fitted.class_names == ["a", "b"]


METRICS = '{"step": 1, "loss": 0.5}\n{"step": 2, "epoch": 1, "mAP": null}\n{"step": 3, "loss": NaN}\n'


@cases(100)
@given(spoiled(METRICS))
def test_any_metrics(root, text):
    path = write(root / "metrics.jsonl", text)
    log = value_or_line(read_lines, path)
    writer = value_or_line(JsonlWriter, path, 2)
    if writer is None:
        assert log is None
        assert path.read_bytes() == text  # nothing is lost
    else:
        assert json.dumps(writer.kept) == json.dumps([record for _, record in log if record["step"] <= 2])


HOLDER = {"host": socket.gethostname(), "pid": 1, "started": 2, "since": "now", "doing": "train", "job": None}


@cases(100)
@given(mutated(HOLDER).map(json.dumps) | spoiled(json.dumps(HOLDER)))
def test_any_content_of_small_files(root, text):
    """Files in which this package keeps its own notes: what is damaged counts as absent."""
    folder = root / "notes"
    write(folder / lock.FILE, text)

    def take():
        with lock.held(folder, "training"):
            pass

    value_or_line(take)
    tracker = Record(write(folder / "run.json", text))
    assert tracker.id is None or isinstance(tracker.id, str)
    value_or_line(counterfactuals._read, write(folder / "arguments.json", text))
    weights_file = write(folder / "model.bin", text)
    write(folder / "config.json", text)
    write(folder / f"model.bin{cache.RECORD}", text)
    cache.recorded(weights_file)
    fetch.file_in(folder)
    weights_read.expected(weights_file, None)


@cases(30)
@given(mutated({"id": "a", "sent": [3, 1]}).map(json.dumps))
def test_any_record_of_a_tracker(root, text):
    tracker = Record(write(root / "tracker.json", text))
    assert all(type(number) is int for number in tracker.sent)


STATE_DICT = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}


@cases(80)
@given(data=st.data())
def test_any_bytes_of_safetensors(root, data):
    content = save(STATE_DICT)
    damaged = bytearray(content)
    place = data.draw(st.integers(0, len(damaged)))
    damaged[place : place + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    path = write(root / "x.safetensors", bytes(damaged))
    stored = value_or_line(torch_files.load, path)
    assert stored is None or all(isinstance(array, np.ndarray) for array in stored.values())


@cases(40)
@given(data=st.data())
def test_any_bytes_of_a_file_of_pytorch(root, data):
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    tensors = {name: torch.from_numpy(array) for name, array in STATE_DICT.items()}
    legacy = data.draw(st.booleans())
    torch.save(tensors, stream, _use_new_zipfile_serialization=not legacy)
    damaged = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    stored = value_or_line(torch_files.read_torch, write(root / "x.pth", bytes(damaged)))
    assert stored is None or all(isinstance(array, np.ndarray) for array in stored.weights.values())
