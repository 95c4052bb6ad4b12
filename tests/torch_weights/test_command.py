"""Weights in and out of files as a user does it: convert, evaluate, fine-tune, convert back."""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import main
from cfmlc_jax.data import build as data
from cfmlc_jax.data.evaluation import evaluation_batches
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.torch_weights import __main__ as command
from cfmlc_jax.torch_weights import files, long_tailed, mlc_pat

TINY = f"--config={Path(__file__).parents[1] / 'configs' / 'tiny.py'}"


@pytest.fixture
def torch_files(monkeypatch):
    """Files of PyTorch, kept in memory by path: PyTorch is an optional extra."""
    contents = {}

    def write(path, weights, average=None, **beside):
        contents[path] = {"state_dict": weights, "state_dict_ema": average} | beside
        path.touch()

    def read(path):
        return contents[path]["state_dict"], contents[path]["state_dict_ema"]

    monkeypatch.setattr(files, "load", contents.__getitem__)
    monkeypatch.setattr(files, "write_torch", write)
    return write, read


@pytest.fixture
def long_tailed_files(monkeypatch, rng):
    """A file of the long-tailed reference, kept in memory: its contents by path."""
    backbone = catalogue.BACKBONES["resnet32_cifar"].create(dtype=jnp.float32, norm=BatchNorm)
    shapes = jax.eval_shape(
        functools.partial(backbone.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    variables = jax.tree.map(lambda leaf: 1 + rng.random(leaf.shape, np.float32) / 10, shapes)
    head = {"kernel": rng.standard_normal((128, 10), np.float32)}
    whole = {
        "params": {"backbone": variables["params"], "head": {"whole": head}},
        "batch_stats": {
            "backbone": variables["batch_stats"],
            "head": {"whole": {"mean_feature": rng.random(128, np.float32)}},
        },
    }
    contents = {}
    monkeypatch.setattr(files, "load", contents.__getitem__)
    monkeypatch.setattr(long_tailed, "checkpoint_in", lambda path, stored: stored)
    monkeypatch.setattr(long_tailed, "write", contents.__setitem__)
    contents[Path("final_model_checkpoint.pth")] = long_tailed.to_torch("resnet32_cifar", whole)
    return contents


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a command of this process in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def start(program, *arguments):
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code = program()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


def random_weights(rng, name, classes=10, attention="cross"):
    """A state_dict, with variances and scales around 1 so that logits stay finite."""
    model = catalogue.create_model(name, classes, attention=attention, image_size=64)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3))
    )

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key in ("var", "scale"):
            return 1 + np.abs(x) / 10
        return x / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)

    return mlc_pat.to_torch(name, jax.tree.map_with_path(draw, shapes))


def logits(weights, name, attention):
    """Whole logits of the split "test_iid" of tiny.py by the model itself, without the loop."""
    architecture = mlc_pat.architecture(name, weights)
    model = catalogue.create_model(name, architecture.num_classes, attention=attention, image_size=32)
    config = configs.default().data
    config.source, config.scenes.num_test = "scenes", 40
    views = next(
        iter(
            evaluation_batches(
                data.source(config, "test_iid"),
                ToViews(size=32, grid=2, overlap=0.0, augment=False, exif=False),
                batch_size=40,
                reading=Reading(process=0, processes=1, threads=2, workers=0),
            )
        )
    )["views"]
    apply = jax.jit(functools.partial(model.apply, train=False))
    return np.asarray(apply(mlc_pat.from_torch(name, weights), views / np.float32(255)).whole[:, 0])


def test_convert_then_evaluate_then_convert_back(run, torch_files, tmp_path, rng):
    write, contents = torch_files
    weights, average = (random_weights(rng, "resnet_small") for _ in range(2))
    write(tmp_path / "model_best.pth.tar", weights, average)
    code, out, err = run(
        command.main, str(tmp_path / "model_best.pth.tar"), "mine", "--model=resnet_small", TINY
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    columns = {line.index(" -> ") for line in lines if " -> " in line}
    assert len(columns) == 1
    assert any(
        line.split() == ["fc.fc1.weight", "[10,", "128]", "->", "params/head/whole/kernel"] for line in lines
    )
    # 7 convolutions, 7 norms of five entries, and three layers of two.
    assert "48 entries of resnet_small: 305,630 parameters, 10 classes, attention cross, head linear" in lines
    assert checkpoints.read_meta(tmp_path / "mine")["class_names"] is None

    # Groups of norms have a part in training only, so that they may differ from the checkpoint's.
    code, out, err = run(
        main.main, "--mode=evaluate", TINY, "--checkpoint=mine", "--workdir=run", "--config.effect.kinds=()",
        "--config.model.norm_groups=2", "--config.data.test_splits=('test_iid',)",
    )  # fmt: skip
    assert code == 0, err
    assert "mine does not name its classes: assuming those of the data" in out
    for name, state_dict in (("weights", weights), ("average", average)):
        with np.load(tmp_path / "run" / "report" / f"scores_test_iid_{name}.npz") as scores:
            np.testing.assert_allclose(
                scores["whole"], logits(state_dict, "resnet_small", "cross"), rtol=1e-4, atol=1e-4
            )

    code, out, err = run(command.main, "mine", "back.pth.tar", "--to_torch")
    assert (code, err) == (0, "")
    for back, state_dict in zip(contents(Path("back.pth.tar")), (weights, average)):
        assert back.keys() == state_dict.keys()
        for key, array in state_dict.items():
            np.testing.assert_array_equal(back[key], array)


def test_weights_with_one_head_without_average(run, torch_files, tmp_path, rng):
    write, _ = torch_files
    write(tmp_path / "x.pth", random_weights(rng, "resnet_small", attention="none"))
    code, out, err = run(
        command.main, str(tmp_path / "x.pth"), "mine", "--model=resnet_small", "--image_size=64", "--classes=scenes"
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "averaged weights: the same, since the file has none" in out
    meta = checkpoints.read_meta(tmp_path / "mine")
    assert (meta["class_names"][3], meta["num_classes"]) == ("digit 3", 10)
    config = configs.from_json(meta["config"])
    assert (config.method, configs.branches(config), config.views.image_size) == ("pat_i", "none", 64)
    model = checkpoints.read_part(tmp_path / "mine", checkpoints.model_shapes(tmp_path / "mine"))
    jax.tree.map(np.testing.assert_array_equal, model["variables"], model["average"])
    np.testing.assert_allclose(model["mean_colour"], [0.485, 0.456, 0.406])


def test_fine_tuning(run, torch_files, tmp_path, rng):
    """Without a learning rate, what a run ends with is what it began with."""
    write, _ = torch_files
    weights, average = (random_weights(rng, "resnet_small") for _ in range(2))
    write(tmp_path / "x.pth", weights, average)
    code, _, err = run(command.main, str(tmp_path / "x.pth"), "mine", "--model=resnet_small")
    assert code == 0, err
    arguments = [
        TINY, "--workdir=tuned", "--config.init_from=mine", "--config.optim.learning_rate=1e-30",
        "--config.train.epochs=1", "--config.data.scenes.num_train=16", "--config.effect.kinds=()",
    ]  # fmt: skip
    code, out, err = run(main.main, *arguments)
    assert code == 0, err
    assert "mine: backbone and head (resnet_small, branches cross, 10 classes)" in out
    tuned = checkpoints.find(tmp_path / "tuned")
    params = checkpoints.read_part(tuned, checkpoints.model_shapes(tuned))["variables"]["params"]
    wanted = mlc_pat.from_torch("resnet_small", average)["params"]
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    # Going on, a run asks no more for what it began with.
    (tmp_path / "mine").rename(tmp_path / "moved")
    code, out, err = run(main.main, *arguments)
    assert code == 0, err
    assert "resuming at step 2 of 2" in out
    assert "backbone and head" not in out


def test_data_with_other_classes_than_the_checkpoint(run, torch_files, tmp_path, rng):
    write, _ = torch_files
    write(tmp_path / "x.pth", random_weights(rng, "resnet_small", classes=7))
    assert run(command.main, str(tmp_path / "x.pth"), "mine", "--model=resnet_small")[0] == 0
    code, _, err = run(main.main, "--mode=evaluate", "--checkpoint=mine", TINY)
    assert code == 1
    assert "test_iid has the classes 10 (digit 0, digit 1, digit 2, …)" in err
    assert f"checkpoint {tmp_path / 'mine'} has 7; evaluate on data with the same classes" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: IN, OUT; --help lists the arguments"),
        (["strange.pth", "new"], "strange.pth: these are not the weights of resnet_small: 1 missing: bn1.bias; 1 left over: bn1.b; --allow=REGEX permits"),
        (["other_wise.pth", "new"], "other_wise.pth: the weights fit no known model: 1 entries (a.b), stages of no blocks"),
        (["two.pth", "new"], "two.pth: the entries belong to several models (a., b.); save one of them"),
        (["names.pth", "new", "--classes=scenes"], "--classes=scenes calls class 0 'digit 0', names.pth calls it 'digit 1', and class 1 'digit 0': the order differs; omit --classes to use the file's names"),
        (["x.pth", "new", "--model=resnet81"], "model 'resnet81' is not one of"),
        (["x.pth", "new", "--model=resnet50"], "; they are those of resnet_small: omit --model"),
        (["x.pth", "old", "--model=resnet_small"], "old exists already; remove it, or choose another path"),
        (["x.pth", "new", "--model=resnet_small", "--classes=coco"], "--classes=coco names 80 classes, but the weights have 10"),
        (["x.pth", "new", "--model=resnet_small", "--classes=no.txt"], "no.txt: No such file or directory"),
        (["x.pth", "new", "--model=resnet_small", "--image_size=50"], "50 is not divisible by 16"),
        (["x.pth", "new", "--model=resnet_small", "--config=no.py"], "--config cannot be read"),
        (["x.pth", "new", "--model=resnet_small", "--allow=("], "argument --allow: '(' is not a regular expression"),
        (["x.pth", "new", "--model=resnet_small", "--allow=a{99999999999}"], "argument --allow: 'a{99999999999}' is not a regular expression"),
        (["x.pth", "new", "--in_place_norms=perhaps"], "argument --in_place_norms: invalid choice: 'perhaps'"),
        (["other.pth", "new", "--model=resnet_small"], "other.pth, average: (10, 'none', 'linear', 0) instead of the weights'"),
        (["stored", "new.safetensors", "--to_torch"], "--to_torch writes PyTorch files; give a name that ends with .pth"),
        (["nowhere", "new", "--to_torch"], "nowhere is not a checkpoint"),
        (["nowhere", "new", "--to_torch", "--classes=coco"], "--classes does not go with --to_torch"),
        (["stored", "new", "--to_torch", "--model=resnet18"], "is resnet_small; omit --model"),
    ],
)  # fmt: skip
def test_a_user_error_is_one_line(run, torch_files, tmp_path, rng, arguments, message):
    write, _ = torch_files
    (tmp_path / "old").mkdir()
    weights = random_weights(rng, "resnet_small")
    write(Path("x.pth"), weights)
    write(Path("other.pth"), weights, random_weights(rng, "resnet_small", attention="none"))
    write(Path("strange.pth"), {{"bn1.bias": "bn1.b"}.get(key, key): x for key, x in weights.items()})
    write(Path("other_wise.pth"), {"a.b": np.zeros(3)})
    write(Path("two.pth"), {f"{path}.{key}": x for path in "ab" for key, x in weights.items()})
    write(Path("names.pth"), weights, classes=[f"digit {i}" for i in (1, 0, *range(2, 10))])
    if "stored" in arguments:
        assert run(command.main, "x.pth", "stored", "--model=resnet_small")[0] == 0
    code, _, err = run(command.main, *arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "new").exists()


def test_real_files_of_pytorch(run, tmp_path, rng):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is an optional extra: pip install 'cfmlc_jax[torch]'"
    )
    weights = {k: torch.from_numpy(np.array(v)) for k, v in random_weights(rng, "resnet_small").items()}
    average = {key: value * 2 for key, value in weights.items()}
    stored = {
        "epoch": 3,
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
        "state_dict_ema": average,
        "best_mAP": np.float64(85.1),
        "AP": np.arange(10.0),
    }
    torch.save(stored, tmp_path / "model_best.pth.tar")
    code, _, err = run(command.main, "model_best.pth.tar", "mine", "--model=resnet_small")
    assert (code, err) == (0, "")
    code, _, err = run(command.main, "mine", "back.pth.tar", "--to_torch")
    assert (code, err) == (0, "")
    back = torch.load(tmp_path / "back.pth.tar")
    for part, wanted in (("state_dict", weights), ("state_dict_ema", average)):
        assert back[part].keys() == wanted.keys()
        assert all(torch.equal(back[part][key], value) for key, value in wanted.items())


def test_the_model_is_recognised_without_a_flag(run, torch_files, tmp_path, rng):
    write, _ = torch_files
    write(Path("x.pth"), random_weights(rng, "resnet_small", attention="self"))
    assert run(command.main, "x.pth", "mine", "--model=resnet_small", TINY)[0] == 0
    meta = json.loads(json.dumps(checkpoints.read_meta(tmp_path / "mine")))
    config = configs.from_json(meta["config"])
    assert (config.model.name, config.patches.branches, config.model.head) == (
        "resnet_small",
        "self",
        "linear",
    )
    assert (config.method, config.data.source, config.views.image_size) == ("pat_t", "scenes", 32)


def test_long_tailed_weights_survive_a_round_trip(run, long_tailed_files):
    saved = long_tailed_files[Path("final_model_checkpoint.pth")]
    code, out, err = run(command.main, "final_model_checkpoint.pth", "mine")
    assert (code, err) == (0, "")
    assert "resnet32_cifar with head causal_norm" in out
    config = configs.from_json(checkpoints.read_meta(Path("mine").absolute())["config"])
    assert (config.model.head, config.views.transform, config.data.normalise) == (
        "causal_norm",
        "padded_crop",
        "cifar",
    )
    code, _, err = run(command.main, "mine", "back.pth", "--to_torch")
    assert (code, err) == (0, "")
    back = long_tailed_files[Path("back.pth")]
    jax.tree.map(np.testing.assert_array_equal, back, saved)


def test_long_tailed_weights_do_not_go_with_other_tasks(run, long_tailed_files):
    code, _, err = run(command.main, "final_model_checkpoint.pth", "mine", "--model=resnet32_cifar", TINY)
    assert code == 1
    assert err.startswith("error: --config=")
    assert "multi-label, but IN is single-label" in err
    code, _, err = run(command.main, "final_model_checkpoint.pth", "mine", "--model=resnet50")
    assert code == 1
    assert "these are not the weights of resnet50" in err


# --- As others save them ------------------------------------------------------------------------


def test_lightning_without_a_model_named(run, torch_files, tmp_path, rng):
    """The prefix is removed, the average is read too, and the model is recognised by its tensors."""
    write, contents = torch_files
    weights, average = (random_weights(rng, "resnet_small") for _ in range(2))
    wrapped = {f"model.{key}": x for key, x in weights.items()}
    wrapped |= {f"ema_model.module.{key}": x for key, x in average.items()}
    write(Path("last.ckpt"), wrapped, classes=[f"digit {i}" for i in range(10)])
    code, out, err = run(command.main, "last.ckpt", "mine")
    assert (code, err) == (0, "")
    assert "entries of resnet_small: 305,630 parameters, 10 classes, attention cross" in out
    assert "averaged weights: from the file" in out
    assert "class names: the file's (digit 0, digit 1, digit 2, …)" in out
    assert checkpoints.read_meta(tmp_path / "mine")["class_names"][9] == "digit 9"
    assert run(command.main, "mine", "back.pth", "--to_torch")[0] == 0
    for back, state_dict in zip(contents(Path("back.pth")), (weights, average)):
        for key, array in state_dict.items():
            np.testing.assert_array_equal(back[key], array)


def test_safetensors_from_file_to_file(run, tmp_path, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    weights = random_weights(rng, "resnet_small", attention="none")
    half = {key: x.astype(ml_dtypes.bfloat16) if x.dtype.kind == "f" else x for key, x in weights.items()}
    safetensors.numpy.save_file(half, tmp_path / "model.safetensors")
    assert run(command.main, "model.safetensors", "mine")[0] == 0
    params = checkpoints.read_part(tmp_path / "mine", checkpoints.model_shapes(tmp_path / "mine"))[
        "variables"
    ]["params"]
    rounded = {key: x.astype(np.float32) for key, x in half.items()}
    jax.tree.map(np.testing.assert_array_equal, params, mlc_pat.from_torch("resnet_small", rounded)["params"])
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    code, _, err = run(command.main, "model.safetensors", "other")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "truncated, damaged or not a safetensors file" in err


def test_a_backbone_alone_can_only_start_a_run(run, torch_files, tmp_path, rng):
    write, _ = torch_files
    weights = random_weights(rng, "resnet_small")
    write(Path("backbone.pth"), {key: x for key, x in weights.items() if not key.startswith("fc")})
    code, out, err = run(command.main, "backbone.pth", "mine", "--normalise=none")
    assert (code, err) == (0, "")
    assert "entries of resnet_small: 301,760 parameters, no head" in out
    assert "mine: a backbone, for --config.init_from" in out
    code, out, err = run(
        main.main, TINY, "--workdir=tuned", "--config.init_from=mine", "--config.optim.learning_rate=1e-30",
        "--config.train.epochs=1", "--config.data.scenes.num_train=16", "--config.effect.kinds=()",
        "--config.data.test_splits=('test_iid',)",
    )  # fmt: skip
    assert code == 0, err
    assert "backbone; new head (resnet_small, branches none, 0 classes -> " in out
    tuned = checkpoints.find(tmp_path / "tuned")
    params = checkpoints.read_part(tuned, checkpoints.model_shapes(tuned))["variables"]["params"]
    wanted = mlc_pat.from_torch("resnet_small", weights)["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], wanted)
    code, _, err = run(main.main, "--mode=evaluate", "--checkpoint=mine", TINY)
    assert code == 1
    assert (
        "mine is a backbone without a head, which cannot score images; train a head on it: --config.init_from="
        in err
    )
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "classes", "statistics", "line"),
    [
        ([], 1000, "imagenet", "pixels: standardised by imagenet's mean and deviation, as in ImageNet's plain recipes (--normalise=none"),
        (["--statistics=none"], 1000, "", "pixels: in [0, 1]"),
        ([], 7, "", "pixels: in [0, 1] (--normalise=imagenet if training standardised them)"),
        (["--normalise=cifar"], 7, "cifar", "pixels: standardised by cifar's mean and deviation; for a run initialised from these weights set --config.data.normalise=cifar"),
    ],
)  # fmt: skip
def test_the_checkpoint_normalises_pixels_as_the_weights_expect(
    run, torch_files, tmp_path, rng, arguments, classes, statistics, line
):
    write, _ = torch_files
    write(Path("x.pth"), random_weights(rng, "resnet_small", classes=classes, attention="none"))
    code, out, err = run(command.main, "x.pth", "mine", *arguments)
    assert (code, err) == (0, "")
    assert line in out
    config = configs.from_json(checkpoints.read_meta(tmp_path / "mine")["config"])
    assert config.data.normalise == statistics


@pytest.mark.parametrize(
    ("beside", "arguments", "warning"),
    [
        ({"classes": ["a"] * 10}, [], "x.pth: its 'classes' is not one name for each label from 0; its class names are ignored"),
        ({"classes": ["a", "b"]}, [], "x.pth names 2 classes, but its weights have 10"),
        (
            {"idx_to_class": {i: f"numeral {i}" for i in range(10)}},
            ["--classes=scenes"],
            "x.pth has other names for 10 classes: class 0 'numeral 0', not 'digit 0'",
        ),
    ],
)  # fmt: skip
def test_mismatched_class_names_are_reported(run, torch_files, tmp_path, rng, beside, arguments, warning):
    write, _ = torch_files
    write(Path("x.pth"), random_weights(rng, "resnet_small"), **beside)
    code, _, err = run(command.main, "x.pth", "mine", *arguments)
    assert (code, err) == (0, f"warning: {warning}\n")
    names = checkpoints.read_meta(tmp_path / "mine")["class_names"]
    assert names is None if not arguments else names[0] == "digit 0"
