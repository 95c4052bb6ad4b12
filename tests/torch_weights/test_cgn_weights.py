"""Weights of counterfactual generators: the same names as the reference's files, and no loss on the way."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import numpy as safetensors

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import __main__ as draw
from cfmlc_jax.cgn import build
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.generators import biggan_deep, critics, imagenet_cgn, mnist, u2net, vgg16
from cfmlc_jax.torch_weights import __main__ as command
from cfmlc_jax.torch_weights import cgn

SHAPES = json.loads((Path(__file__).parents[1] / "golden" / "cgn" / "shapes.json").read_text())
# Everything that the real ones have, small: 32 px, 10 classes.
TINY_BIGGAN = {
    "num_classes": 10,
    "noise_size": 8,
    "class_size": 4,
    "width": 8,
    "layers": ((False, 4, 4), (True, 4, 2), (True, 2, 2), (True, 2, 1)),
    "attention": 2,
    "num_statistics": 5,
}
TINY_U2NET = {
    "encoder": (u2net.Stage(4, 2, 4), u2net.Stage(3, 2, 6), u2net.Stage(3, 2, 6, dilated=True)),
    "decoder": (u2net.Stage(3, 2, 4), u2net.Stage(4, 2, 4)),
}
FULL = {
    "mnist_cgn_l32g32": mnist.MnistGenerator(),
    "mnist_cgn_l12g12_default_cfg": mnist.MnistGenerator(latent=12, ngf=12),
    "mnist_disclin_512": critics.LinearCritic(),
    "mnist_disclin_12": critics.LinearCritic(ndf=12),
    "mnist_discconv_32": critics.ConvCritic(),
    "mnist_classifier": cgn.MODULES["cgn_mnist_classifier"],
    "biggan_deep_256": biggan_deep.BigGANDeep(),
    "u2net": u2net.U2Net(),
    "invariant_ensemble_resnet50": cgn.MODULES["cgn_invariant_ensemble"],
}
SMALL = [
    mnist.MnistGenerator(num_classes=4, latent=5, ngf=3),
    critics.LinearCritic(ndf=4),
    critics.ConvCritic(ndf=2),
    catalogue.create_model("cnn_mnist", 3, image_size=32),
    catalogue.create_model("resnet18", 3, image_size=32, head="mechanisms"),
    biggan_deep.BigGANDeep(**TINY_BIGGAN),
    u2net.U2Net(**TINY_U2NET),
    imagenet_cgn.ImageNetGenerator(
        generator=lambda **kwargs: biggan_deep.BigGANDeep(**TINY_BIGGAN, **kwargs),
        saliency=lambda **kwargs: u2net.U2Net(**TINY_U2NET, **kwargs),
    ),
]


def state_dict(module, rng):
    """Random weights with the counters that PyTorch keeps."""
    weights = {}
    for entry in cgn.entries(module):
        weights[entry.key] = rng.normal(size=entry.torch_shape).astype(np.float32)
        if entry.path[-1] == "var":
            weights[entry.key.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return weights


def shapes_by_key(module):
    shapes = {}
    for entry in cgn.entries(module):
        shapes[entry.key] = list(entry.torch_shape)
        if entry.path[-1] == "var":
            shapes[entry.key.replace("running_var", "num_batches_tracked")] = []
    return shapes


@pytest.mark.parametrize("name", FULL)
def test_the_references_entries(name):
    assert shapes_by_key(FULL[name]) == SHAPES[name]


def test_the_end_of_vgg16_is_not_read(rng):
    module = vgg16.VGG16Features()
    wanted = shapes_by_key(module)
    unused = SHAPES["vgg16"].keys() - wanted.keys()
    assert wanted == {key: shape for key, shape in SHAPES["vgg16"].items() if key not in unused}
    assert {key.split(".")[0] for key in unused} == {"classifier", "features"}
    weights = state_dict(module, rng)
    variables = cgn.from_torch(module, weights | {key: np.zeros(1) for key in unused})
    np.testing.assert_equal(cgn.to_torch(module, variables), weights)


def test_the_references_entries_of_imagenet():
    parts = ("biggan_GT", "f_shape", "f_text", "f_bg")
    expected = {f"{part}.{key}": shape for part in parts for key, shape in SHAPES["biggan_deep_256"].items()}
    expected |= {f"u2net.{key}": shape for key, shape in SHAPES["u2net"].items()}
    assert len(expected) == 3206
    assert shapes_by_key(imagenet_cgn.ImageNetGenerator()) == expected


@pytest.mark.parametrize("module", SMALL, ids=lambda module: type(module).__name__)
def test_variables_survive_a_round_trip(module, rng):
    weights = state_dict(module, rng)
    variables = cgn.from_torch(module, weights)
    back = cgn.to_torch(module, variables)
    assert back.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, back, weights)
    assert len(flatten_dict(variables)) == len(cgn.entries(module))


def test_all_problems_are_listed(rng):
    module = critics.LinearCritic(ndf=4)
    weights = state_dict(module, rng)
    del weights["model.2.bias"]
    weights |= {"model.9.weight": np.zeros(3), "model.0.bias": np.zeros(5)}
    message = (
        r"not the weights of this LinearCritic: 1 missing: model\.2\.bias; 1 left over: model\.9\.weight; "
        r"1 mis-shaped: model\.0\.bias \[5\] instead of \[4\]"
    )
    with pytest.raises(InputError, match=message):
        cgn.from_torch(module, weights)


def test_variables_of_another_module(rng):
    variables = cgn.from_torch(critics.ConvCritic(ndf=2), state_dict(critics.ConvCritic(ndf=2), rng))
    with pytest.raises(
        InputError, match=r"not the variables of this MnistCNN with LinearHead: .*missing.*left over"
    ):
        cgn.to_torch(cgn.MODULES["cgn_mnist_classifier"], variables)


def test_a_module_without_names():
    with pytest.raises(InputError, match="Dense has no table of PyTorch's names; give one of Mnist"):
        cgn.entries(nn.Dense(3))


@pytest.fixture
def generator_file(tmp_path):
    """A safetensors file of a small generator of digits, and its state_dict."""
    weights = state_dict(mnist.MnistGenerator(latent=5, ngf=3), np.random.default_rng(0))
    safetensors.save_file(weights, tmp_path / "ckp.safetensors")
    return tmp_path / "ckp.safetensors", weights


def test_the_command_makes_a_checkpoint_that_draws(tmp_path, generator_file, capsys):
    path, weights = generator_file
    assert command.main([str(path), str(tmp_path / "out")]) == 0
    assert "10 classes" in capsys.readouterr().out
    meta = checkpoints.read_meta(tmp_path / "out")
    config = configs.from_json(meta["config"])
    assert (config.system, config.generator.latent, config.generator.ngf) == ("cgn", 5, 3)
    assert meta["class_names"][3] == "digit 3"
    parts = build.create(config, 10)
    model = checkpoints.read_model(tmp_path / "out", build.model_item(config, parts))
    for item in ("generator", "average"):
        back = cgn.to_torch(parts.generator, jax.device_get(model[item]))
        assert all(np.array_equal(back[key], weights[key]) for key in weights if "num_batches" not in key)


def test_the_command_writes_the_file_again(tmp_path, generator_file):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's")
    path, weights = generator_file
    assert command.main([str(path), str(tmp_path / "out")]) == 0
    assert command.main([str(tmp_path / "out"), str(tmp_path / "ckp.pth"), "--to_torch"]) == 0
    back = torch.load(tmp_path / "ckp.pth")
    assert back.keys() == weights.keys()
    for key, tensor in back.items():
        if "num_batches" not in key:
            np.testing.assert_array_equal(tensor.numpy(), weights[key])


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({}, ["--model=resnet101"], "--model does not go with a generator of digits"),
        (
            {},
            ["--config=configs/coco.py"],
            "is of a classifier, but IN is a generator; give configs/cgn_mnist.py",
        ),
        ({"label_emb.weight": np.zeros((10, 9), np.float32)}, [], "label_emb.weight"),
        (
            {"f_shape.0.weight": np.zeros((3, 15), np.float32)},
            [],
            "are of no generator of digits: wanted [k, k]",
        ),
        ({"f_text1.3.weight": None}, [], "f_text1.3.weight"),
    ],
)
def test_the_command_refuses_in_a_line(tmp_path, generator_file, monkeypatch, capsys, change, flags, message):
    monkeypatch.chdir(Path(__file__).parents[2])
    path, weights = generator_file
    weights = {key: value for key, value in (weights | change).items() if value is not None}
    safetensors.save_file(weights, path)
    assert command.main([str(path), str(tmp_path / "out"), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_mechanisms_or_classes_does_not_draw(tmp_path, generator_file, capsys):
    path, _ = generator_file
    assert command.main([str(path), str(tmp_path / "whole")]) == 0
    meta = checkpoints.read_meta(tmp_path / "whole")
    model = checkpoints.read_part(tmp_path / "whole", checkpoints.model_shapes(tmp_path / "whole"))
    without = jax.tree.map(lambda tree: tree, model)
    for item in without.values():
        for tree in item.values():
            tree.pop("background")
    checkpoints.write(tmp_path / "mechanisms", model=without, meta=meta)
    checkpoints.write(tmp_path / "classes", model=model, meta=meta | {"class_names": meta["class_names"][:7]})
    (tmp_path / "file").touch()
    capsys.readouterr()
    for checkpoint, out, message in (
        ("mechanisms", "out", "background/block1/bn/mean missing instead of [6]"),
        (
            "classes",
            "out",
            "background/linear/kernel [15, 384] instead of [12, 384]",
        ),
        ("whole", "file", f"--out {tmp_path / 'file'} cannot be created (File exists); give another folder"),
    ):
        flags = [f"--checkpoint={tmp_path / checkpoint}", f"--out={tmp_path / out}", "--records=10"]
        assert draw.main(["generate", *flags]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (tmp_path / "out").exists()
