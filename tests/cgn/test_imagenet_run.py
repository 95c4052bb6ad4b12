"""A run of the generator for ImageNet from the command line, at tiny sizes; its files of PyTorch; what is refused."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from cfmlc_jax import config as configs
from cfmlc_jax.cgn import __main__ as command
from cfmlc_jax.cgn.imagenet import build, drawing
from cfmlc_jax.classify import opening
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.optim.build import SCHEDULES
from cfmlc_jax.torch_weights import __main__ as conversion
from cfmlc_jax.torch_weights import cgn, files

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'configs' / 'cgn_imagenet.py'}:tiny"


def tiny(**changes):
    config = runpy.run_path(str(ROOT / "configs" / "cgn_imagenet.py"))["get_config"]("tiny")
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        configs.field(config, section)[field] = value
    return configs.validate(config)


def test_the_tiny_run_ends_with_records(tmp_path):
    workdir = tmp_path / "run"
    program = [sys.executable, "-m", "cfmlc_jax.main", TINY, f"--workdir={workdir}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "networks without a file start from random weights, which draw no images of objects" in output
    assert "warning: all masks are alike" in output
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if "epoch" in line] == [1, 2]
    assert log[0]["train/loss"] > log[0]["train/background"] > 0
    records = Counterfactuals(workdir / "counterfactuals")
    assert (len(records), records.image_size) == (32, 32)
    assert records.mechanisms.max() < 10
    with pytest.raises(InputError, match="is of a generator, not of a classifier"):
        opening.open(workdir)

    drawn = tmp_path / "drawn"
    flags = ["generate", f"--checkpoint={workdir}", f"--out={drawn}", "--records=4", "--shard-size=4"]
    assert command.main([*flags, "--truncation=.25", "--classes=random"]) == 0
    index = json.loads((drawn / "index.json").read_text())
    assert (index["truncation"], index["classes"], index["per_shape"]) == (0.25, "random", 1)
    for wrong in ("--truncation=1.5", "--truncation=0", "--classes=best", "--truncation=nan"):
        assert command.main([*flags, wrong]) == 1


@pytest.fixture(scope="module")
def weights():
    """A file of all networks at tiny sizes, as the reference names their entries."""
    random, generator = np.random.default_rng(0), build.create(tiny()).generator
    return {
        entry.key: random.standard_normal(entry.torch_shape).astype(np.float32)
        for entry in cgn.entries(generator)
    } | {
        entry.key.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64)
        for entry in cgn.entries(generator)
        if entry.path[-1] == "var"
    }


@pytest.fixture
def written(monkeypatch):
    """What is written to files of PyTorch, which is an optional extra, by path."""
    contents = {}
    monkeypatch.setattr(files, "import_torch", lambda purpose: None)
    monkeypatch.setattr(files, "tensors", lambda torch, state_dict: state_dict)
    monkeypatch.setattr(files, "save", lambda torch, path, content: contents.__setitem__(path, content))
    return contents


def test_a_file_of_the_reference_survives_a_round_trip(tmp_path, weights, written, capsys):
    safetensors.save_file(weights, tmp_path / "cgn.safetensors")
    folder, back = tmp_path / "converted", tmp_path / "back.pth"
    assert conversion.main([str(tmp_path / "cgn.safetensors"), str(folder), TINY]) == 0
    assert "a generator for ImageNet" in capsys.readouterr().out
    assert conversion.main([str(folder), str(back), "--to_torch"]) == 0
    np.testing.assert_equal(written[back], weights)


def test_a_run_starts_from_files(tmp_path, weights):
    """Of a BigGAN, which all four BigGANs are, of a U²-Net and of VGG-16; or of a generator."""
    parts = build.create(tiny())
    biggan, saliency = parts.generator.biggan(), parts.generator.u2net_alone()
    random = np.random.default_rng(1)
    paths = {}
    for name, module in (("biggan", biggan), ("u2net", saliency), ("vgg16", parts.features)):
        content = {
            entry.key: random.standard_normal(entry.torch_shape).astype(np.float32)
            for entry in cgn.entries(module)
        }
        paths[name] = tmp_path / f"{name}.safetensors"
        safetensors.save_file(content, paths[name])
    abstract = jax.eval_shape(build.system(tiny(train__micro_batch=8), parts).init, jax.random.key(0))
    initial = meshes.with_shardings(abstract, parts.mesh)
    config = tiny(**{f"weights__{name}": str(path) for name, path in paths.items()})
    learned = build.load(config.weights, parts, initial)
    kernels = learned["mechanisms"]["params"]["gen_z"]["raw_kernel"]
    stored = safetensors.load_file(paths["biggan"])["generator.gen_z.weight_orig"].T
    for kernel in (*kernels, learned["target"]["params"]["gen_z"]["raw_kernel"]):
        np.testing.assert_array_equal(kernel, stored)
    first = learned["features"]["params"]["conv1_1"]["bias"]
    np.testing.assert_array_equal(first, safetensors.load_file(paths["vgg16"])["features.0.bias"])

    safetensors.save_file(weights, tmp_path / "cgn.safetensors")
    config = tiny(weights__cgn=str(tmp_path / "cgn.safetensors"))
    kernels = build.load(config.weights, parts, initial)["mechanisms"]["params"]["gen_z"]["raw_kernel"]
    for kernel, name in zip(kernels, ("f_shape", "f_text", "f_bg")):
        np.testing.assert_array_equal(kernel, weights[f"{name}.generator.gen_z.weight_orig"].T)
    config = tiny(weights__cgn=str(paths["biggan"]))
    with pytest.raises(
        InputError, match=r"biggan\.safetensors: .* weights of this ImageNetGenerator: .*missing"
    ):
        build.load(config.weights, parts, initial)


def test_files_of_other_networks_are_refused(tmp_path, weights, capsys):
    def error(content, *flags):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        safetensors.save_file(content, path)
        assert conversion.main([str(path), str(tmp_path / "out"), *flags]) == 1
        return capsys.readouterr().err

    missing = {key: array for key, array in weights.items() if not key.startswith("f_bg.")}
    assert "missing: f_bg." in error(missing, TINY)
    # The published sizes, without --config.
    assert "instead of [" in error(weights)
    digits = ROOT / "configs" / "cgn_digits.py"
    assert "give configs/cgn_imagenet.py" in error(weights, f"--config={digits}")
    alone = {key.removeprefix("u2net."): array for key, array in weights.items() if key.startswith("u2net.")}
    assert "--config.weights.u2net=FILE" in error(alone)
    assert "--model does not go with" in error(weights, TINY, "--model=resnet50")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__truncation": 0.0}, "config.train.truncation is 0.0; it must be above 0 and at most 1"),
        (
            {"counterfactuals__truncation": 1.5},
            "config.counterfactuals.truncation is 1.5; it must be above 0",
        ),
        ({"counterfactuals__classes": "best"}, "'best' are lists of ImageNet's 1000 classes"),
        ({"generator__size": "tiny"}, "config.generator.size 'tiny' is not one of biggan_deep_256, tiny_32"),
        ({"generator__interpolation": "cubic"}, "is not one of reversed, linear"),
        ({"loss__text": (1.0,)}, "config.loss.text has 1 weights; give 4"),
        ({"weights__biggan": "a"}, "belong together; give both files, or neither"),
        ({"weights__cgn": "a", "weights__biggan": "b", "weights__u2net": "c"}, "leave either empty"),
        ({"evaluate__num_images": 3}, "num_images 3 is not divisible by batch_size 8"),
        ({"train__micro_batch": 1000000, "train__micro_batches": 4000}, "4000000000 images in a step"),
        ({"counterfactuals__per_shape": 5}, "per_shape 5 must divide num_records 32"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        tiny(**changes)


def test_devices_must_divide_a_micro_batch():
    config = tiny(train__micro_batch=12)
    with pytest.raises(
        InputError, match=r"config\.train\.micro_batch 12 is not divisible by the 8 devices; try 8 or 16"
    ):
        build.system(config, build.create(config))


def test_a_full_run_needs_the_published_weights():
    config = configs.default("cgn_imagenet")
    with pytest.raises(
        InputError, match=r"config\.weights\.biggan, config\.weights\.u2net, config\.weights\.vgg16: give"
    ):
        build.require_weights(config.weights)
    config.weights.cgn = "cgn.pth"
    with pytest.raises(InputError, match=r"^config\.weights\.vgg16: give"):
        build.require_weights(config.weights)


def test_class_names_come_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"n{i}\n" for i in range(10)))
    assert build.create(tiny(generator__class_names=str(path))).class_names[9] == "n9"
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="names 2 classes; the generator has 10"):
        build.create(tiny(generator__class_names=str(path)))


def test_best_classes_are_the_references():
    lists = drawing.class_lists("best", 1000)
    assert [len(each) for each in lists.values()] == [76, 75, 38]
    assert all(sorted(set(each)) == list(each) and each[-1] < 1000 for each in lists.values())


def test_mechanisms_have_their_own_classes_and_one_noise():
    class Generator:
        def draw_noise(self, key, b):
            return jax.random.normal(key, (b, 3))

    draw = drawing.inputs_of(drawing.class_lists("best", 1000))
    labels, noise = draw(jax.random.key(0), 400, 4, Generator())
    for name, each in labels.items():
        assert set(np.asarray(each).tolist()) <= set(drawing.BEST_CLASSES[name])
    shapes = np.asarray(labels["shape"]).reshape(100, 4)
    assert (shapes == shapes[:, :1]).all()
    assert (np.asarray(noise).reshape(100, 4, 3) == np.asarray(noise)[::4, None]).all()
    assert np.mean(np.asarray(labels["texture"]) == np.asarray(labels["shape"])) < 0.1


def test_the_classifier_has_the_references_schedule():
    path = ROOT / "configs" / "cgn_imagenet_classifier.py"
    config = configs.validate(runpy.run_path(str(path))["get_config"]())
    assert (config.method, config.model.head, config.model.name) == ("invariant", "mechanisms", "resnet50")
    # Half of a batch of 64 is generated: 32 real images, and a ratio of 1.
    assert (config.train.batch_size, config.data.counterfactuals.share) == (64, 0.5)
    rates = SCHEDULES[config.optim.sgd.schedule].rates(
        config.optim.learning_rate, config.train.epochs, config.optim.sgd
    )
    np.testing.assert_allclose(rates[[0, 14, 15, 29, 30, 44]], [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
