"""Exported files as their users meet them: what they hold and give, in which programs, and what is refused."""

import functools
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import onnx
import pytest
from PIL import Image

import cfmlc_jax
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import export, weights_folder
from cfmlc_jax.classify import build, finetune, opening
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.crops import AreaCrop
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.engine.state import State
from cfmlc_jax.errors import InputError
from cfmlc_jax.export import __main__ as command
from cfmlc_jax.export import about as documents
from cfmlc_jax.export import comparison, graph, onnx_file, target
from cfmlc_jax.export import folder as folders
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import cvt, resnet
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.results.predictions import COMBINED

NAMES = [f"digit {i}" for i in range(10)]
SIZE = 32
OUTPUTS = {"whole", "patch", "combined", "patch_weights"}
SCRIPT = "serve_onnx"
TESTS = Path(__file__).parents[1]


def write_checkpoint(path, **fields):
    """A checkpoint of tiny.py, untrained, whose head tells patches and classes apart."""
    spec = importlib.util.spec_from_file_location("tiny", TESTS / "configs" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    config.update_from_flattened_dict(fields)
    config = configs.validate(config)
    rng = np.random.default_rng(0)

    def larger(place, leaf):
        if "kernel" not in jax.tree_util.keystr(place) or "head" not in jax.tree_util.keystr(place):
            return leaf
        return jax.device_put(rng.normal(0, 0.5, leaf.shape).astype(np.float32), leaf.sharding)

    model = jax.tree_util.tree_map_with_path(larger, build.initial(config, build.create(config, len(NAMES))))
    meta = {"config": configs.to_json(config), "class_names": NAMES, "num_classes": len(NAMES)}
    checkpoints.write(path, model=model, meta=meta)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return write_checkpoint(folder / "model", **{"data.root": "/data/of/mine"})


@pytest.fixture(scope="module")
def exported(checkpoint, folder):
    """Path by suffix of the checkpoint's exports, each written once."""

    @functools.cache
    def of_suffix(suffix):
        out = folder / f"out{suffix}"
        assert command.main([str(checkpoint), str(out)]) == 0
        return out

    return of_suffix


@pytest.fixture(scope="module")
def scenes():
    """Images of the model's size: uint8 [5, SIZE, SIZE, 3]."""
    source = Scenes("test_iid", num_scenes=5, size=SIZE)
    return np.stack([source[i]["image"] for i in range(5)])


@pytest.fixture(scope="module")
def predicted(checkpoint, scenes):
    """Probabilities [5, 10] of the checkpoint by prediction, and the weights of the patches, as `load` predicts them."""
    outputs = {}
    for name in ("whole", "patch", "combined"):
        predictions = cfmlc_jax.load(checkpoint, prediction=name, batch_size=8).predict(list(scenes))
        outputs[name] = np.stack([each.probabilities for each in predictions])
    outputs["patch_weights"] = np.stack([each.patch_weights for each in predictions])
    return outputs


def refused(capsys, *arguments):
    """The one line of an error."""
    assert command.main([str(each) for each in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


def assert_as_predicted(outputs, predicted, rows=slice(None)):
    assert outputs.keys() == OUTPUTS
    for name, array in outputs.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, predicted[name][rows], atol=2e-6)


# ONNX


def test_an_onnx_file_gives_what_the_checkpoint_predicts(exported, scenes, predicted):
    session = onnx_file.Session(exported(".onnx"))
    for rows in (slice(0, 1), slice(1, 5)):
        assert_as_predicted(session(scenes[rows]), predicted, rows)


def test_an_onnx_file_names_its_classes_and_how_to_use_it(exported):
    model = onnx.load(exported(".onnx"))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "b"
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["class_names"] == NAMES
    assert about["thresholds"] == [0.5] * 10
    assert about["prediction"] == "combined"
    assert about["outputs"].keys() == OUTPUTS
    assert about["preprocessing"] == {
        "exif": True,
        "mode": "RGB",
        "shorter_side": None,
        "size": SIZE,
        "filter": "bilinear",
        "layout": "NHWC",
        "dtype": "uint8",
    }
    assert about["patch_boxes"][1] == [0, 16, 16, 32]


def test_another_opset(checkpoint, tmp_path, scenes, predicted, capsys):
    out = tmp_path / "new.onnx"
    assert command.main([str(checkpoint), str(out), f"--opset={onnx_file.NEWEST}"]) == 0
    assert f"opset {onnx_file.NEWEST}" in capsys.readouterr().out
    assert onnx.load(out).opset_import[0].version == onnx_file.NEWEST
    assert_as_predicted(onnx_file.Session(out)(scenes), predicted)


def test_the_serving_example(script, exported, tmp_path, scenes, predicted, monkeypatch, capsys):
    paths = []
    for i, image in enumerate(scenes[:2]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    monkeypatch.setattr(sys, "argv", ["serve_onnx", str(exported(".onnx")), *paths])
    capsys.readouterr()
    script.main()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    for path, probabilities, (shown, *classes) in zip(paths, predicted["combined"][:2], lines, strict=True):
        assert shown == path
        assert classes == [f"{NAMES[k]} {p:.3f}" for k, p in enumerate(probabilities) if p > 0.5]


@pytest.mark.parametrize("size", [(300, 200), (90, 250), (40, 41)])
@pytest.mark.parametrize("transform", [ToViews(56), AreaCrop(56)], ids=["squeeze", "area_crop"])
def test_the_serving_example_prepares_images_as_the_transforms_do(script, size, transform):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    (view,) = transform.cut(Image.fromarray(pixels))
    how = documents.preprocessing(transform)
    np.testing.assert_array_equal(script.prepared(Image.fromarray(pixels), how), np.asarray(view))


# StableHLO

FRESH = """
import io, json, sys, zipfile
import jax, jax.export, numpy as np
path, images, outputs = sys.argv[1:]
with zipfile.ZipFile(path) as archive:
    program = jax.export.deserialize(bytearray(archive.read("program")))
    weights = dict(np.load(archive.open("weights.npz")))
    about = json.loads(archive.read("about.json"))
images = np.load(images)
arrays = {}
for rows in (slice(0, 1), slice(1, 5)):
    for name, array in program.call(weights, images[rows]).items():
        arrays.setdefault(name, []).append(array)
np.savez(outputs, **{name: np.concatenate(parts) for name, parts in arrays.items()})
foreign = {"cfmlc_jax", "flax", "orbax", "grain"} & set(sys.modules)
print(json.dumps([about["class_names"], program.platforms, sorted(foreign)]))
"""


def test_a_fresh_process_with_jax_alone_runs_a_stablehlo_file(exported, scenes, predicted, tmp_path):
    np.save(tmp_path / "images.npy", scenes)
    arguments = [exported(".stablehlo"), tmp_path / "images.npy", tmp_path / "outputs.npz"]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout) == [NAMES, ["cpu", "cuda", "tpu"], []]
    assert_as_predicted(dict(np.load(tmp_path / "outputs.npz")), predicted)


def test_read_gives_the_program_and_its_document(exported, scenes, predicted):
    program = export.read(exported(".stablehlo"))
    assert program.about["class_names"] == NAMES
    assert program.about["thresholds"] == [0.5] * 10
    assert_as_predicted(program(scenes[:3]), predicted, slice(0, 3))


def test_a_damaged_stablehlo_file_is_refused(exported, tmp_path):
    data = exported(".stablehlo").read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"no archive")):
        path = tmp_path / f"{name}.stablehlo"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"{name}\.stablehlo is not a whole file of python -m cfmlc_jax\.export"
        ):
            export.read(path)
    with zipfile.ZipFile(tmp_path / "other.stablehlo", "w") as archive:
        archive.writestr("about.json", "{}")
    with pytest.raises(InputError, match="There is no item named 'program'"):
        export.read(tmp_path / "other.stablehlo")


# Folders


def test_a_folder_is_loaded_like_its_checkpoint(exported, checkpoint, scenes, predicted):
    out = exported("")
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    predictions = cfmlc_jax.load(out, batch_size=8).predict(list(scenes))
    np.testing.assert_array_equal(
        np.stack([each.probabilities for each in predictions]), predicted["combined"]
    )
    ours, theirs = opening.open(out), opening.open(checkpoint)
    jax.tree.map(np.testing.assert_array_equal, ours.model["average"], theirs.model["average"])
    assert ours.class_names == NAMES


def test_a_folder_keeps_no_path_of_the_machine(exported):
    meta = json.loads((exported("") / "config.json").read_text())
    assert meta["config"]["data"]["root"] == ""
    assert "/data/of/mine" not in json.dumps(meta)
    assert meta["about"]["class_names"] == NAMES
    assert meta["version"] == cfmlc_jax.__version__


def test_predict_reads_a_folder(exported, scenes, tmp_path, capsys):
    Image.fromarray(scenes[0]).save(tmp_path / "a.png")
    arguments = [f"--checkpoint={exported('')}", str(tmp_path / "a.png"), "--format=jsonl", "--top=10"]
    assert predict.main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert '"digit 3"' in line


def test_a_training_starts_from_a_folder(exported, checkpoint):
    out = exported("")
    config = opening.open(checkpoint).config
    config.unlock()
    config.init_from = str(out)
    finetune.require_start(config.lock(), print)
    parts = build.create(config, len(NAMES))
    learned = build.initial(config, parts)
    lines = []
    file = out / "model.safetensors"  # stands for its folder
    state = finetune.start_from(
        file, State(0, learned, {}), config=config, class_names=NAMES, print_line=lines.append
    )
    expected = opening.open(checkpoint).model["average"]
    jax.tree.map(np.testing.assert_array_equal, state.learned["variables"], expected)
    assert lines[0].startswith(f"initialised from {out}: backbone and head")


def test_the_card_says_what_a_reader_needs(exported):
    text = (exported("") / "README.md").read_text()
    front = text.split("---")[1]
    assert "license: unknown" in front
    assert "library_name: cfmlc_jax" in front
    for words in ("cfmlc_jax.load", "digit 0, digit 1", "data.source=scenes", "Not stored", "resnet_small"):
        assert words in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dog", "dog"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[a](javascript:x)", r"\[a\](javascript:x)"),
        ("`b`", r"\`b\`"),
        ("a\n---\nlicense: mit", r"a\\n---\\nlicense: mit"),
    ],
)
def test_a_class_in_the_card_is_text(name, text):
    assert folders.as_text(name) == text


def test_metrics_of_the_run_are_in_the_card(monkeypatch, tmp_path):
    path = tmp_path / "checkpoints" / "40"
    (tmp_path / "report").mkdir(parents=True)
    (tmp_path / "report" / "results.json").write_text("{}")
    assert folders.metrics(path) == []  # it cannot be read
    measures = SimpleNamespace(metrics={COMBINED: {"mAP_voc": 61.234}})
    results = {"test": SimpleNamespace(measures={"average": measures})}
    monkeypatch.setattr(folders.read, "results", lambda report: (results, SimpleNamespace(checkpoint="40")))
    assert folders.metrics(path) == [("test", {COMBINED: {"mAP_voc": 61.234}})]
    assert folders.metrics(tmp_path / "checkpoints" / "20") == []
    assert folders.metrics(tmp_path / "elsewhere") == []
    assert "| test | combined | 61.23 |" in folders._table(folders.metrics(path))


# Other classifiers

SMALL = {
    "small_cvt": functools.partial(cvt.CvT, widths=(8, 16), depths=(1, 1), heads=(1, 2)),
    "small_resnext": functools.partial(resnet.ResNeXt50, stage_sizes=(1, 1)),
}


@pytest.mark.parametrize(
    ("fields", "outputs"),
    [
        (
            {"patches.source": "map", "patches.map": "layer1", "patches.pooling": "exclusive",
             "effect.kinds": ("whole",)},
            OUTPUTS,
        ),
        ({"patches.source": "device", "patches.size": 16}, OUTPUTS),
        ({"patches.source": "device", "patches.size": 32}, OUTPUTS),
        (
            {"method": "whole", "task": "single_label", "loss.name": "cross_entropy", "model.head": "causal_norm",
             "effect.kinds": ("feature",)},
            {"whole", "combined", "tde_feature"},
        ),
        ({"method": "pat_i", "model.dtype": "bfloat16", "patches.grids": (2, 3)}, OUTPUTS),
        ({"method": "whole", "effect.kinds": (), "model.name": "small_cvt"}, {"whole", "combined"}),
        ({"method": "whole", "effect.kinds": (), "model.name": "small_resnext"}, {"whole", "combined"}),
    ],
    ids=["cells", "small_crops", "crops", "mean_feature", "bfloat16", "cvt", "resnext"],
)  # fmt: skip
def test_other_classifiers_agree_with_their_checkpoints(tmp_path, monkeypatch, capsys, fields, outputs):
    """The command compares them itself."""
    for name, create in SMALL.items():
        backbone = catalogue.BACKBONES[{"small_cvt": "cvt_w24", "small_resnext": "resnext50_32x4d"}[name]]
        monkeypatch.setitem(catalogue.BACKBONES, name, backbone._replace(create=create))
    write_checkpoint(tmp_path / "model", **fields)
    assert command.main([str(tmp_path / "model"), str(tmp_path / "out.onnx")]) == 0
    assert "of the checkpoint" in capsys.readouterr().out
    about = onnx_file.Session(tmp_path / "out.onnx").about
    assert about["outputs"].keys() == outputs
    assert (about["thresholds"] is None) == (about["task"] == "single_label")


# What is refused


def test_a_difference_from_the_checkpoint_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    right = graph.function

    def wrong(opened, alpha):
        def compute(variables, images):
            outputs = right(opened, alpha)(variables, images)
            return outputs | {"patch": outputs["patch"].at[:, 3].add(2e-4)}

        return compute

    monkeypatch.setattr(graph, "function", wrong)
    err = refused(capsys, checkpoint, tmp_path / "out.stablehlo")
    assert "the exported patch of class 'digit 3' is 0." in err
    assert "they differ by 0.0002, more than 0.0001" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_number_differs():
    rows = {"whole": np.full((2, 3), 0.5, np.float32)}
    broken = {"whole": np.array([[0.5, 0.5, 0.5], [0.5, np.nan, 0.5]], np.float32)}
    difference = comparison.greatest(broken, rows, ["a", "b", "c"])
    assert (difference.value, difference.image, difference.class_name) == (1.0, 1, "b")


@pytest.mark.parametrize(
    ("out", "flags", "words"),
    [
        ("out.pb", [], "has the suffix '.pb'; give a name with .onnx or .stablehlo, or a folder's"),
        (
            "out.onnx",
            ["--opset=17"],
            "--opset=17 is too old: the operators of these models are written for 18 to",
        ),
        ("out.onnx", ["--opset=99"], "--opset=99 is too new"),
        ("out", ["--opset=18"], "--opset is of ONNX files"),
        ("out.onnx", ["--alpha=0.3"], "--alpha is of heads with a mean feature"),
        ("out", ["--alpha=-1"], "'-1' is not a strength of 0 or more"),
        ("gs://bucket/out.onnx", [], "is an address, not a path on this machine"),
        ("missing/../taken", [], "exists already; remove it, choose another path, or add --overwrite"),
        ("taken", ["--overwrite"], "is a folder of other files, which --overwrite does not remove"),
    ],
)
def test_wrong_arguments_are_one_line(checkpoint, tmp_path, monkeypatch, capsys, out, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert words in refused(capsys, checkpoint, out, *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["missing", "taken"]
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


def test_a_path_that_is_no_checkpoint(tmp_path, capsys):
    assert "is not a checkpoint, nor a run with checkpoints" in refused(
        capsys, tmp_path, tmp_path / "out.onnx"
    )


def test_a_generator_is_refused(tmp_path, capsys):
    meta = {"config": configs.to_json(configs.default(configs.CGN)), "class_names": NAMES, "num_classes": 10}
    checkpoints.write(tmp_path / "model", model={"average": {"a": np.zeros(3)}}, meta=meta)
    err = refused(capsys, tmp_path / "model", tmp_path / "out.onnx")
    assert "is of a generator, not of a classifier" in err


@pytest.mark.parametrize(
    ("out", "package", "extra"),
    [("a.onnx", "onnx", "onnx"), ("a.onnx", "onnxruntime", "onnx"), ("a.stablehlo", "flatbuffers", "export")],
)
def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch, capsys, out, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    err = refused(capsys, checkpoint, tmp_path / out)
    assert f"needs the package {package}: pip install 'cfmlc_jax[{extra}]'" in err


def test_a_newer_versions_checkpoint_asks_for_an_upgrade(checkpoint, tmp_path, monkeypatch, capsys):
    meta = checkpoints.read_meta(checkpoint)
    model = checkpoints.read_part(checkpoint, checkpoints.model_shapes(checkpoint))
    newer = {
        "format": {"format": checkpoints.FORMAT + 1, "version": "9.0.0"},
        "field": {"version": "9.0.0", "config": meta["config"] | {"of_tomorrow": 1}},
    }
    for name, changes in newer.items():
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "signed", lambda meta, changes=changes: meta | changes)
            checkpoints.write(tmp_path / name, model=model, meta=meta)
        err = refused(capsys, tmp_path / name, tmp_path / "out.onnx")
        assert (
            "was written by version 9.0.0 of cfmlc_jax, this is 0.1.0, which cannot read it; upgrade: pip"
            in err
        )
    assert "config.of_tomorrow is not a field" in err


def test_an_existing_export_is_replaced_on_demand(exported, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / weights_folder.CONFIG).write_text("old")
    assert "exists already" in refused(capsys, checkpoint, out)
    assert command.main([str(checkpoint), str(out), "--overwrite"]) == 0
    assert weights_folder.read_meta(out)["class_names"] == NAMES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, checkpoint, tmp_path / "file" / "out.onnx")


def test_names_ask_for_formats():
    kinds = {
        "a.onnx": "onnx",
        "b/c.stablehlo": "stablehlo",
        "a": "folder",
        "v1.2/": "folder",
        "a.onnx/": "folder",
    }
    assert {name: target.kind(name) for name in kinds} == kinds
