"""Runs that start from files and from public weights, and the conversion of public weights."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import main
from cfmlc_jax.classify import build, finetune
from cfmlc_jax.engine.state import State
from cfmlc_jax.errors import InputError
from cfmlc_jax.export import __main__ as export
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import vit
from cfmlc_jax.models.layers.normalise import Normalisation
from cfmlc_jax.torch_weights import __main__ as conversion
from cfmlc_jax.torch_weights import files, mlc_pat
from cfmlc_jax.weights import table

TINY = f"--config={Path(__file__).parents[1] / 'configs' / 'tiny.py'}"
# One epoch of two steps of whole images that leave the weights as they are.
STILL = (
    TINY, "--workdir=run", "--config.method=whole", "--config.effect.kinds=()", "--config.train.epochs=1",
    "--config.optim.learning_rate=1e-30", "--config.optim.weight_decay=0.0", "--config.data.scenes.num_train=16",
    "--config.data.test_splits=('test_iid',)",
)  # fmt: skip
NAME = "torchvision:resnet18.IMAGENET1K_V1"
PATH = "/download.pytorch.org/models/resnet18-f37072fd.pth"
MIRRORED = "initialised from {}: backbone; new head (resnet_small, branches none, 1000 classes -> "


def state_dict(rng, classes=1000):
    """Random weights of a resnet_small, as torchvision would store them."""
    model = catalogue.create_model("resnet_small", classes, image_size=64)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, 1, 64, 64, 3), np.float32), train=False)
    )
    variables = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return mlc_pat.to_torch("resnet_small", variables)


@pytest.fixture
def trained(command, tmp_path):
    """Trains by STILL; (what was printed, the variables of the run)."""

    def train(*arguments):
        code, out, err = command(*STILL, *arguments)
        assert code == 0, err
        path = checkpoints.find(tmp_path / "run")
        return out, checkpoints.read_part(path, checkpoints.model_shapes(path))["variables"]

    return train


def configuration(start, **fields):
    config = main.parse(main.define_flags(), ["main", TINY])
    config.unlock()
    config.method, config.effect.kinds, config.init_from = "whole", (), start
    for name, value in fields.items():
        config.data[name] = value
    return configs.validate(config)


def names(classes=10):
    return [f"digit {k}" for k in range(classes)]


def begin(start, classes=10, **fields):
    """Where a run would begin: its configuration, the printed lines, and its variables."""
    return begin_as(configuration(start, **fields), names(classes))


def begin_as(config, class_names):
    lines = []
    config = finetune.require_start(config, lines.append)
    item = build.model_item(config, build.create(config, len(class_names)))
    zeros = jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda part: np.zeros(leaf.shape, leaf.dtype)[part]
        ),
        item,
    )
    state = finetune.start_from(
        config.init_from,
        State(np.int32(0), zeros, {}),
        config=config,
        class_names=class_names,
        print_line=lines.append,
    )
    variables = state.learned["variables"]
    assert jax.tree.map(lambda leaf: leaf.sharding, variables) == jax.tree.map(
        lambda leaf: leaf.sharding, item["variables"]
    )
    jax.tree.map(np.testing.assert_array_equal, variables, state.learned["average"])
    return config, lines, variables


def assert_backbone(variables, weights):
    wanted = mlc_pat.from_torch("resnet_small", weights)["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["backbone"], wanted)


def normalise_of(tmp_path):
    return json.loads((tmp_path / "run" / "config.json").read_text())["data"]["normalise"]


@pytest.mark.parametrize("place", ["mine.safetensors", "folder"])
def test_safetensors(tmp_path, monkeypatch, rng, place):
    """A file, and a folder as the Hub has it."""
    monkeypatch.chdir(tmp_path)
    weights = state_dict(rng)
    Path("folder").mkdir()
    for path in ("mine.safetensors", "folder/model.safetensors"):
        safetensors.numpy.save_file(weights, path)
    config, lines, variables = begin(place, normalise="auto")
    assert_backbone(variables, weights)
    assert not np.any(variables["params"]["head"]["whole"]["kernel"])
    assert config.data.normalise == "imagenet"
    assert lines[0] == f"data.normalise=auto: pixels are standardised by imagenet, as {place} expects"
    assert lines[1].startswith(MIRRORED.format(place))
    assert len(lines) == 2


def test_a_head_with_the_same_classes_is_taken(tmp_path, rng):
    path = str(tmp_path / "mine.safetensors")
    weights = state_dict(rng, classes=10)
    safetensors.numpy.save_file(weights, path)
    _, lines, variables = begin(path, normalise="imagenet")
    assert lines == [
        f"initialised from {path}: backbone and head (resnet_small, branches none, 10 classes)",
        f"warning: {path} expects pixels that are in [0, 1], in this run they are standardised by imagenet; unless "
        "that is meant, set --config.data.normalise=''",
    ]
    np.testing.assert_array_equal(variables["params"]["head"]["whole"]["kernel"], weights["fc.weight"].T)


def test_the_moving_average_is_taken(tmp_path, monkeypatch, rng):
    stored = {"state_dict": state_dict(rng), "state_dict_ema": state_dict(rng)}
    monkeypatch.setattr(files, "load", lambda path: stored)
    (tmp_path / "mine.safetensors").touch()
    _, _, variables = begin(str(tmp_path / "mine.safetensors"))
    assert_backbone(variables, stored["state_dict_ema"])


def test_a_run_starts_from_a_pytorch_file(trained, tmp_path, rng):
    torch = pytest.importorskip("torch")
    weights = state_dict(rng)
    tensors = {key: torch.from_numpy(array.copy()) for key, array in weights.items()}
    torch.save({"state_dict": tensors}, tmp_path / "mine.pth")
    out, variables = trained("--config.init_from=mine.pth", "--config.data.normalise=auto")
    assert_backbone(variables, weights)
    assert "data.normalise=auto: pixels are standardised by imagenet, as mine.pth expects" in out
    assert MIRRORED.format("mine.pth") in out
    assert "warning" not in out
    assert normalise_of(tmp_path) == "imagenet"


@pytest.fixture
def published(server, monkeypatch, rng):
    """Public weights of a resnet_small, by a name of the table; without PyTorch, in safetensors."""
    weights = state_dict(rng)
    data = safetensors.numpy.save(weights)
    url = "https://download.pytorch.org/models/resnet18-f37072fd.safetensors"
    normalisation = Normalisation((0.5, 0.4, 0.3), (0.25, 0.25, 0.2))
    preprocessing = table.TABLE[NAME].preprocessing._replace(normalisation=normalisation)
    entry = table.TABLE[NAME]._replace(
        model="resnet_small", sha256=hashlib.sha256(data).hexdigest(), url=url, preprocessing=preprocessing
    )
    monkeypatch.setitem(table.TABLE, NAME, entry)
    server.files["/download.pytorch.org/models/resnet18-f37072fd.safetensors"] = data
    return weights


def test_a_run_starts_from_public_weights_and_resumes_without_them(
    trained, command, tmp_path, server, published, cache_folder
):
    numbers = "0.5,0.4,0.3/0.25,0.25,0.2"
    out, variables = trained(f"--config.init_from={NAME}", "--config.data.normalise=auto")
    assert_backbone(variables, published)
    assert out.count("downloading") == 1
    assert f"data.normalise=auto: pixels are standardised by {numbers}, as {NAME} expects" in out
    assert MIRRORED.format(NAME) in out
    assert normalise_of(tmp_path) == numbers
    meta = checkpoints.read_meta(checkpoints.find(tmp_path / "run"))
    assert configs.from_json(meta["config"]).data.normalise == numbers
    # Neither resuming nor evaluation needs the weights; "auto" is what the run began with.
    shutil.rmtree(cache_folder)
    server.files.clear()
    out, _ = trained(f"--config.init_from={NAME}", "--config.data.normalise=auto")
    assert "resuming at step 2 of 2" in out
    # Its checkpoints know that, too.
    (tmp_path / "run" / "config.json").unlink()
    out, _ = trained(f"--config.init_from={NAME}", "--config.data.normalise=auto")
    assert "resuming at step 2 of 2" in out
    assert normalise_of(tmp_path) == numbers
    code, _, err = command(
        *STILL, "--mode=evaluate", f"--config.init_from={NAME}", "--config.data.normalise=auto"
    )
    assert code == 0, err


def test_other_pixels_than_the_weights_expect_are_told(published):
    _, lines, _ = begin(NAME)
    assert lines[-1] == (
        f"warning: {NAME} expects pixels that are standardised by 0.5,0.4,0.3/0.25,0.25,0.2, in this run they are in "
        "[0, 1]; unless that is meant, set --config.data.normalise=0.5,0.4,0.3/0.25,0.25,0.2"
    )


def test_a_repository_with_the_configuration_of_timm(server, rng):
    pytest.importorskip("huggingface_hub")
    weights = state_dict(rng)
    config = {"architecture": "resnet_small", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    server.repository(
        "me/mine",
        model__safetensors=safetensors.numpy.save(weights),
        config__json=json.dumps(config).encode(),
    )
    config, lines, variables = begin("hf:me/mine", normalise="auto")
    assert_backbone(variables, weights)
    assert config.data.normalise == "half"
    assert "data.normalise=auto: pixels are standardised by half, as hf:me/mine expects" in lines
    assert not any(line.startswith("warning") for line in lines)


@pytest.fixture(params=["resnet_small", "tiny_vit"])
def exported(request, monkeypatch, tmp_path, rng):
    """(configuration, averaged weights) of a run that was exported as a folder, "out"."""
    monkeypatch.chdir(tmp_path)
    small = functools.partial(vit.ViT, width=8, depth=4, heads=2, patch=8, grid=2)
    backbone = catalogue.Backbone(small, 8, vit.MODELS["vit_small_patch16_224"].torch, batch_norms=False)
    monkeypatch.setitem(catalogue.BACKBONES, "tiny_vit", backbone)
    config = configuration("")
    changes = {"model.name": request.param, "data.normalise": "half"}
    if request.param == "resnet_small":
        changes |= {"method": "pat_t", "model.head": "ml_decoder", "model.ml_decoder.queries": 7}
    config = configs.validate(configs.replaced(config, changes))
    item = build.model_item(config, build.create(config, 10))
    model = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), item)
    meta = {"config": configs.to_json(config), "class_names": names(), "num_classes": 10}
    checkpoints.write(tmp_path / "run", model=model, meta=meta)
    assert export.main(["run", "out"]) == 0
    return config, model["average"]


@pytest.mark.parametrize("place", ["out", "hf:me/mine"])
def test_a_run_starts_from_an_exported_folder(server, exported, place):
    """Its arrays bit for bit; the head's only for the same classes."""
    if place != "out":
        pytest.importorskip("huggingface_hub")
        contents = {path.name.replace(".", "__"): path.read_bytes() for path in Path("out").iterdir()}
        server.repository("me/mine", **contents)
    label = str(Path.cwd() / "out") if place == "out" else place
    config, weights = exported
    start = configs.replaced(config, {"init_from": place})
    _, lines, variables = begin_as(start, names())
    jax.tree.map(np.testing.assert_array_equal, variables, weights)
    assert lines[-1].startswith(
        f"initialised from {label}: backbone and head ({config.model.name}, branches "
    )
    for others in (names(7), [f"letter {k}" for k in range(10)]):
        chosen, lines, variables = begin_as(configs.replaced(start, {"data.normalise": "auto"}), others)
        jax.tree.map(
            np.testing.assert_array_equal, variables["params"]["backbone"], weights["params"]["backbone"]
        )
        assert not any(map(np.any, jax.tree.leaves(variables["params"]["head"])))  # as it was
        assert lines[-1].startswith(f"initialised from {label}: backbone; new head (")
        assert chosen.data.normalise == "half"
    with pytest.raises(
        InputError, match=f"{label} has another backbone, {config.model.name} instead of resnet18; set"
    ):
        begin_as(configs.replaced(start, {"model.name": "resnet18"}), names())


def test_without_weights_auto_is_pixels_in_0_1():
    config = configuration("", normalise="auto")
    assert finetune.require_start(config, pytest.fail).data.normalise == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config.init_from=torchvision:resnet18.IMAGENET1K_V3"],
            "config.init_from: 'torchvision:resnet18.IMAGENET1K_V3' is not among the known weights; did you mean "
            "'torchvision:resnet18.IMAGENET1K_V1'?",
        ),
        (
            ["--config.init_from=resnet18.IMAGENET1K_V1"],
            "is not a checkpoint, nor a run with checkpoints; give a workdir or the folder of one step, a file of weights, "
            "or a name that python -m cfmlc_jax.weights list names; did you mean 'torchvision:resnet18.IMAGENET1K_V1'?",
        ),
        (
            ["--config.init_from=torchvision:resnet101.IMAGENET1K_V2"],
            "config.init_from torchvision:resnet101.IMAGENET1K_V2 has another backbone, resnet101 instead of "
            "resnet_small; set --config.model.name=resnet101, or give other weights",
        ),
        (
            ["--config.init_from=mlc_pat:q2l_tresnet_l_v2", "--config.model.name=tresnet_l_v2"],
            "download it in a browser from https://drive.google.com/",
        ),
        (["--config.init_from=other.safetensors"], "config.init_from: other.safetensors: the weights fit no known"),
        (["--config.init_from=empty"], "is not a checkpoint, nor a run with checkpoints"),
        (
            ["--config.data.normalise=imagnet"],
            "config.data.normalise 'imagnet' is not one of '', auto, cifar, imagenet, imagenet9, inaturalist, half, clip, "
            "or six numbers such as",
        ),
        (["--config.data.normalise=1,2/3,4"], "config.data.normalise '1,2/3,4' is not six numbers such as"),
        (["--config.data.normalise=1,2,3/4,5,0"], "has a deviation of 0; each must be above 0"),
        (["--config.data.normalise=1,2,3/4,5,x"], "'1,2,3/4,5,x' is not six numbers such as"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line_before_data_is_read(command, tmp_path, server, arguments, words):
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    code, out, err = command(*STILL, *arguments)
    assert code == 1
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "train:" not in out
    assert not (tmp_path / "run").exists()
    assert server.requests == []


def test_public_weights_are_converted_by_name(monkeypatch, tmp_path, published, capsys):
    monkeypatch.chdir(tmp_path)
    assert conversion.main([NAME, "out"]) == 0
    out = capsys.readouterr().out
    assert "entries of resnet_small: " in out
    assert (
        "pixels: standardised by 0.5,0.4,0.3/0.25,0.25,0.2's mean and deviation, as their publisher states"
        in out
    )
    meta = checkpoints.read_meta(tmp_path / "out")
    assert configs.from_json(meta["config"]).data.normalise == "0.5,0.4,0.3/0.25,0.25,0.2"
    assert conversion.main(["out", "again"]) == 1
    assert (
        "out is a checkpoint already; use it as it is, or convert it back by --to_torch"
        in capsys.readouterr().err
    )
    assert conversion.main([NAME + "0", "again"]) == 1
    assert f"did you mean '{NAME}'?" in capsys.readouterr().err
