"""The recipes of docs/fork.md: what a line in a registry is enough for, and that lists of names agree."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import losses
from cfmlc_jax.causal import patches
from cfmlc_jax.classify import build, pat
from cfmlc_jax.classify.patching import HostViews, Whole
from cfmlc_jax.config import classifier
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views import transforms
from cfmlc_jax.data.views.crops import PaddedCrop
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Outputs
from cfmlc_jax.models.heads import linear
from cfmlc_jax.optim import build as optim

ROOT = Path(__file__).parents[1]


def add_block(package, block):
    """Add a block of docs/fork.md to the file of its first line; "in _loss": before that function's return."""
    where, code = block.split("\n", 1)
    name, function = re.fullmatch(r"# (\S+\.py)(?:, in (\w+))?", where).groups()
    path = package / name
    text = path.read_text() if path.exists() else ""
    if function:
        start = text.index(f"def {function}(")
        end = text.index("    return ", start)
        path.write_text(f"{text[:end]}    {code}{text[end:]}")
    else:
        path.write_text(f"{text}\n\n{code}")


def test_examples_of_the_document_train_together(tmp_path):
    """A pooling, a head, a loss, a data set and a metric writer are added to a copy of the package as docs/fork.md says."""
    document = (ROOT / "docs" / "fork.md").read_text()
    shutil.copytree(ROOT / "cfmlc_jax", tmp_path / "cfmlc_jax", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```python\n(.*?)```", document, re.S)
    assert len(blocks) == 11
    for block in blocks:
        add_block(tmp_path, block)
    commands = re.findall(r"^python -m cfmlc_jax\.main --config=tests/configs/tiny\.py (.*)$", document, re.M)
    flags = [flag for command in commands for flag in shlex.split(command)]
    assert [flag.split("=")[1] for flag in flags] == [
        "mean",
        "hidden",
        "squared_hinge",
        "squares",
        '("test",)',
        '("ours:Lines",)',
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cfmlc_jax.main", f"--config={ROOT}/tests/configs/tiny.py", "--workdir=run", *flags],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train: 160 images, 4 classes" in done.stdout
    assert "\nrun 3 train/loss " in done.stdout
    score = re.search(r"^\| combined +\| +([\d.]+) \|", done.stdout, re.M)[1]
    assert float(score) > 90


def small(**patches):
    config = configs.default()
    config.views.image_size = 32
    config.model.name = "resnet_small"
    config.patches.update(patches)
    return config


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("source", ["host", "map"])
def test_a_new_pooling_is_a_function_and_a_line(monkeypatch, rng, background, source):
    def mean_logits(attention, scores):
        return scores.mean(axis=1)

    pooling = patches.Pooling(mean_logits, lambda attention, scores: 0 * scores, background)
    monkeypatch.setitem(patches.POOLINGS, "mean", pooling)
    config = small(pooling="mean", source=source)
    config.effect.kinds, config.patches.weight = ("whole",), 0.75
    parts = build.create(configs.validate(config), 3)
    if source == "map":
        assert parts.model.cells.background == background
    attention, score, whole = jnp.asarray(rng.normal(size=(3, 2, 5, 3)), jnp.float32)
    outputs = Outputs(whole, attention, score, None, {})
    expected = score[:, 1:].mean(axis=1)
    logits = pat.predict(outputs, HostViews(2), parts.pooling)
    np.testing.assert_allclose(logits["patch"], expected, rtol=1e-6)
    np.testing.assert_allclose(logits["combined"], 0.25 * whole[:, 0] + 0.75 * expected, rtol=1e-6)


def test_an_unknown_pooling_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setitem(patches.POOLINGS, "mean", patches.POOLINGS["pivot"])
    with pytest.raises(InputError, match="'men' is not one of pivot, exclusive, mean; did you mean 'mean'"):
        configs.validate(small(pooling="men"))


class Middle(Whole):
    """One patch: the middle of the whole view, enlarged."""

    def inputs(self, images):
        whole = images[:, 0]
        edge = whole.shape[1] // 4
        middle = jax.image.resize(whole[:, edge:-edge, edge:-edge], whole.shape, "bilinear")
        return jnp.stack([whole, middle], axis=1)

    def evidence(self, outputs):
        return outputs.attention[:, 1:], outputs.score[:, 1:]

    def boxes(self, size):
        return [(size // 4, size // 4, size - size // 4, size - size // 4)]

    def null_inputs(self, blank):
        return self.inputs(blank[:, None])


def test_a_new_source_of_patches_is_a_class_its_name_and_its_making(monkeypatch, rng):
    monkeypatch.setattr(classifier, "PATCH_SOURCES", (*classifier.PATCH_SOURCES, "middle"))
    monkeypatch.setattr(build, "_patching", lambda config, model, used: Middle(tuple(config.patches.grids)))
    config = small(source="middle")
    config.effect.kinds = ("whole",)
    parts = build.create(configs.validate(config), 3)
    assert parts.boxes() == [(8, 8, 24, 24)]
    patching, images = parts.patching["evaluate"], jnp.asarray(rng.random((2, 1, 32, 32, 3)), jnp.float32)
    variables = parts.model.init(jax.random.key(0), patching.inputs(images), train=False)
    apply = jax.jit(functools.partial(parts.model.apply, variables, train=False))
    outputs, null = apply(patching.inputs(images)), jnp.zeros((1, 32, 32, 3))
    logits = pat.predict(outputs, patching, parts.pooling)
    np.testing.assert_allclose(logits["patch"], outputs.score[:, 1], rtol=1e-6)
    counterfactual = pat.counterfactuals(
        apply, images, outputs, null, ("whole",), patching=patching, pooling=parts.pooling
    )
    black = pat.predict(apply(patching.inputs(null[:, None])), patching, parts.pooling)
    np.testing.assert_allclose(counterfactual["whole"], black["combined"], rtol=1e-5)


def test_every_method_has_its_implementation():
    assert set(classifier.METHODS) == set(pat.METHODS)


def test_a_new_head_is_a_module_and_a_line(monkeypatch):
    def create(num_classes, attention, *, dtype, queries):
        return ScaledHead(linear.LinearHead(num_classes, attention, dtype), queries)

    head = catalogue.Head(create, None, section="ml_decoder", options=("queries",), has_mean=True)
    monkeypatch.setitem(catalogue.HEADS, "scaled", head)
    config = small()
    config.model.head, config.model.ml_decoder.queries, config.effect.kinds = "scaled", 7, ("feature",)
    checked = configs.validate(config)
    assert configs.unused(checked) == []
    model = build.create(checked, 3).model
    assert isinstance(model.head, ScaledHead)
    assert model.head.factor == 7


class ScaledHead(nn.Module):
    """A head times a number."""

    head: nn.Module
    factor: int


def test_a_new_backbone_is_a_module_and_a_line(monkeypatch):
    entry = catalogue.BACKBONES["resnet_small"]
    monkeypatch.setitem(catalogue.BACKBONES, "resnet_mine", entry._replace(stride=32))
    for name, head in (("resnet_mine", "linear"), ("q2l_resnet_mine", "query2label")):
        config = small()
        config.model.name = name
        checked = configs.validate(config)
        assert checked.model.head == head
        assert isinstance(build.create(checked, 3).model.backbone, resnet.ResNet)
    config.views.image_size = 48
    with pytest.raises(InputError, match="48 is not divisible by 32"):
        build.create(configs.validate(config), 3)


@pytest.mark.parametrize(
    ("task", "shape", "expected"), [("multi_label", (2, 3), 12.0), ("single_label", (2,), 2.0)]
)
def test_a_new_loss_is_a_function_and_a_line(monkeypatch, task, shape, expected):
    def constant(logits, labels, *, level):
        return jnp.full(shape, level)

    entry = losses.catalogue.Loss(constant, task, {"focal_gamma": "level"})
    monkeypatch.setitem(losses.LOSSES, "constant", entry)
    config = small()
    config.task, config.loss.name, config.method, config.effect.kinds = task, "constant", "whole", ()
    config.loss.focal_gamma = 2.5
    checked = configs.validate(config)
    assert configs.unused(checked) == []
    config.loss.gamma_neg, config.loss.focal_gamma = 1.0, 2.0
    checked = configs.validate(config)
    assert configs.unused(checked) == ["loss.gamma_neg"]
    # Summed over entries, or the mean over images.
    assert build.loss(checked, None)(jnp.zeros((2, 3)), jnp.ones((2, 3))) == expected


def test_a_new_data_set_is_a_class_and_a_line(monkeypatch):
    def opened(section, split):
        return Scenes(split, num_scenes=section.longtail.largest)

    monkeypatch.setitem(data.SOURCES, "mine", data.Opening(opened, ("longtail.largest",)))
    config = small()
    config.data.source, config.data.longtail.largest, config.data.longtail.num_test = "mine", 7, 3
    checked = configs.validate(config)
    assert len(data.source(checked.data, "train")) == 7
    assert configs.unused(checked) == ["data.longtail.num_test"]


@pytest.mark.parametrize("cuts_patches", [False, True])
def test_a_new_transform_is_a_class_and_a_line(monkeypatch, cuts_patches):
    kind = ToViews if cuts_patches else PaddedCrop
    monkeypatch.setitem(transforms.TRANSFORMS, "mine", transforms.Entry(kind, cuts_patches))
    config = small()
    config.views.transform = "mine"
    if not cuts_patches:
        with pytest.raises(InputError, match="'mine' is for whole images"):
            configs.validate(config)
        config.method, config.effect.kinds = "whole", ()
    parts = build.create(configs.validate(config), 3)
    assert {name: (type(view), view.augment, view.num_views) for name, view in parts.transforms.items()} == {
        "train": (kind, True, 5 if cuts_patches else 1),
        "evaluate": (kind, False, 5 if cuts_patches else 1),
    }


def test_a_new_optimizer_or_schedule_is_a_function_and_a_line(monkeypatch):
    plain = optim.Optimizer(
        lambda fields, length, trainable_mask: optax.sgd(fields.learning_rate), ("pct_start",)
    )
    monkeypatch.setitem(optim.OPTIMIZERS, "plain", plain)
    constant = optim.Schedule(lambda peak, epochs, fields: np.full(epochs, peak * fields.drop), ("drop",))
    monkeypatch.setitem(optim.SCHEDULES, "constant", constant)
    config = small()
    config.optim.name, config.optim.pct_start, config.optim.sgd.drop = "plain", 0.5, 0.25
    checked = configs.validate(config)
    assert configs.unused(checked) == ["optim.sgd.drop"]
    assert len(jax.tree.leaves(build.optimizer(checked, 100).init({"w": jnp.zeros(3)}))) == 0
    config.optim.name, config.optim.sgd.schedule, config.optim.learning_rate = "sgd", "constant", 0.5
    checked = configs.validate(config)
    assert configs.unused(checked) == ["optim.pct_start"]
    configs.require_trainable(checked)
    state = build.optimizer(checked, 160).init({"w": jnp.zeros(3)})
    assert optim.hyperparameters(state)["lr"] == 0.125


WITHOUT_FILES = {
    "scenes", "photo_scenes", "scene_objects", "long_tailed_digits", "colored_digits", "double_colored_digits",
    "wildlife_digits",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(data.SOURCES.keys() - WITHOUT_FILES - {"tfds"}))
def test_every_source_is_opened_by_its_name(name, tmp_path):
    """Its own files are what is missing."""
    config = configs.default()
    config.data.source, config.data.root = name, str(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        data.source(config.data, "train")
