"""Commands that measure: which cue a classifier follows, its shape bias and background gap, a generator's masks."""

import contextlib
import json
import types

import jax
import numpy as np
import photo_folders
import pytest

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import __main__ as command
from cfmlc_jax.cgn import commands, cues, probing
from cfmlc_jax.cgn.system import initial_model
from cfmlc_jax.classify import build, opening
from cfmlc_jax.data.sources import scenes
from cfmlc_jax.data.sources.digit_looks import BACKGROUND_COLOURS
from cfmlc_jax.data.sources.mechanism_digits import MechanismDigits, embedded
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.imagenet_groups import CATEGORIES
from cfmlc_jax.models.generators import mnist

DIGITS = list(MechanismDigits.class_names)


def write_classifier(path, num_classes, *, names=None, favourites=None, **fields):
    """A checkpoint of weights 0; of method invariant each head favours a class, whatever the image."""
    config = configs.default()
    config.task, config.loss.name, config.method = "single_label", "cross_entropy", "whole"
    config.data.source, config.data.test_splits = "double_colored_digits", ("test",)
    config.data.normalise, config.data.threads = "imagenet", 2
    config.views.image_size, config.views.transform = 32, "padded_crop"
    config.model.name, config.effect.kinds = "cnn_mnist", ()
    if favourites:
        config.method, config.data.counterfactuals.path = "invariant", "records"
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (configs.field(config, section) if section else config)[field] = value
    config = configs.validate(config)
    abstract = build.model_item(config, build.create(config, num_classes))
    model = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    for name, favourite in (favourites or {}).items():
        for weights in ("variables", "average"):
            model[weights]["params"]["head"][name]["bias"][favourite] = 1e3
    meta = {"config": configs.to_json(config), "class_names": names, "num_classes": num_classes}
    checkpoints.write(path, model=model, meta=meta)
    return path


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    return write_classifier(
        tmp_path_factory.mktemp("digits") / "digits",
        10,
        names=DIGITS,
        favourites={"shape": 3, "texture": 4, "background": 5},
    )


@pytest.fixture(scope="module")
def of_imagenet(tmp_path_factory):
    favourites = {"shape": "cat", "texture": "dog", "background": "boat"}
    return write_classifier(
        tmp_path_factory.mktemp("imagenet") / "imagenet",
        1000,
        favourites={head: CATEGORIES[name][0] for head, name in favourites.items()},
    )


@pytest.fixture(scope="module")
def a_generator(tmp_path_factory):
    config = configs.default("cgn")
    config.generator.latent = config.generator.ngf = 2
    config = configs.validate(config)
    generator = mnist.create(10, config.generator)
    path = tmp_path_factory.mktemp("generator") / "generator"
    abstract = jax.eval_shape(lambda: initial_model(generator, jax.random.key(0)))
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda leaf: np.abs(rng.normal(size=leaf.shape)).astype(leaf.dtype), abstract)
    meta = {"config": configs.to_json(config), "class_names": DIGITS}
    checkpoints.write(path, model=model, meta=meta)
    return path


@pytest.fixture
def few_digits(monkeypatch):
    """Six handwritings of each digit in each part of the data."""
    instances = scenes.instances
    monkeypatch.setattr(scenes, "instances", lambda part: [rows[:6] for rows in instances(part)])


class Follows:
    """A classifier without weights: it reads the label of one mechanism, or the background's colour in a corner."""

    def __init__(self, cue):
        self._cue = cue

    def logits(self, source):
        if self._cue == "corner":
            corners = np.stack([source[i]["image"][0, 0] for i in range(len(source))]) / 255
            distances = ((corners[:, None] - BACKGROUND_COLOURS) ** 2).sum(axis=-1)
            return {"combined": -distances}
        return {"combined": np.eye(10)[source.mechanisms[:, self._cue]]}


def follow(cue, name="double_colored_digits", side=32):
    results = cues.measure(Follows(cue), embedded(name, "test"), side=side)
    return results, results["predictions"]["combined"]


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("side", [32, 64])
def test_a_classifier_of_backgrounds_is_found_out_by_its_images(side):
    results, answers = follow("corner", side=side)
    assert (results["images"], results["chance"], results["side"]) == (60, 10, side)
    assert answers["follows"]["background"] == [100, 100, 100]
    shapes, _, backgrounds = embedded("double_colored_digits", "test").mechanisms.T
    value, low, high = answers["follows"]["shape"]
    assert value == pytest.approx(100 * (shapes == backgrounds).mean())
    assert 0 <= low < value < high < 40
    assert answers["errors_follow"]["background"] == [100, 100, 100]
    assert answers["errors"] == (shapes != backgrounds).sum()
    exchanged = answers["exchanged"]
    assert list(exchanged) == ["nothing", "shape", "texture", "background"]
    assert [each["accuracy"][0] for each in exchanged.values()] == [100, 0, 100, 0]
    assert [each["change"][0] for each in exchanged.values()] == [0, -100, 0, -100]
    assert [each["misled"][0] for each in exchanged.values()] == [0, 100, 0, 100]


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(("cue", "accuracies"), [(0, [100, 100, 100, 100]), (1, [100, 0, 0, 100])])
def test_classifiers_of_shapes_and_of_textures(cue, accuracies):
    _, answers = follow(cue)
    assert answers["follows"][("shape", "texture")[cue]][0] == 100
    assert [each["accuracy"][0] for each in answers["exchanged"].values()] == accuracies
    assert np.isnan(answers["errors_follow"]["texture"][0]) == (cue == 0)


@pytest.mark.usefixtures("few_digits")
def test_mechanisms_that_do_not_show_are_left_out():
    results, answers = follow(1, "colored_digits")
    assert results["mechanisms"] == ["shape", "texture"]
    assert list(answers["follows"]) == ["shape", "texture", "none"]
    assert list(answers["exchanged"]) == ["nothing", "shape", "texture"]
    assert "background" not in cues.table(results)


@pytest.mark.usefixtures("few_digits")
def test_each_head_is_asked(of_digits, tmp_path, capsys):
    out = tmp_path / "cues.json"
    assert command.main(["cues", f"--checkpoint={of_digits}", f"--out={out}"]) == 0
    results = json.loads(out.read_text())
    follows = {kind: each["follows"] for kind, each in results["predictions"].items()}
    assert list(follows) == ["combined", "shape", "texture", "background", "shape_texture"]
    # A head that favours a class whatever the image is right by chance.
    labels = embedded("double_colored_digits", "test").mechanisms
    for kind, favourite in (("shape", 3), ("texture", 4), ("background", 5)):
        expected = 100 * (labels == favourite).mean(axis=0)
        assert [follows[kind][name][0] for name in ("shape", "texture", "background")] == pytest.approx(
            expected
        )
    assert results["predictions"]["shape"]["errors"] == 54
    printed = capsys.readouterr().out
    assert "of method invariant, averaged weights, on 60 images of double_colored_digits" in printed
    assert cues.table(results) in printed
    assert "| shape and texture heads " in printed


@pytest.mark.usefixtures("few_digits")
def test_a_multi_label_classifier_of_scenes_is_asked_with_larger_images(tmp_path, capsys):
    path = write_classifier(
        tmp_path / "scenes", 10, names=DIGITS, task="multi_label", loss__name="asymmetric", data__source="scenes",
        data__test_splits=("test_iid",), views__transform="squeeze",
    )  # fmt: skip
    out = tmp_path / "cues.json"
    flags = [f"--checkpoint={path}", "--source=colored_digits", "--weights=weights", f"--out={out}"]
    assert command.main(["cues", *flags]) == 0
    results = json.loads(out.read_text())
    assert (results["side"], list(results["predictions"])) == (64, ["combined"])
    assert "raw weights, on 60 images of colored_digits" in capsys.readouterr().out


def test_shape_bias_of_each_head(of_imagenet, tmp_path, capsys):
    folder, out = photo_folders.write_cue_conflict(tmp_path / "conflict"), tmp_path / "bias.json"
    flags = [f"--checkpoint={of_imagenet}", f"--data={folder}", "--batch-size=16", f"--out={out}"]
    assert command.main(["shape_bias", *flags]) == 0
    results = json.loads(out.read_text())
    assert (results["images"], results["image_size"], results["transform"]) == (16, 32, "area_crop")
    # Of 16 images one has the shape of the favourite category, and one its texture.
    for kind in ("shape", "texture", "background"):
        values = results["predictions"][kind]
        assert (values["shape"][0], values["texture"][0]) == (100 / 16, 100 / 16)
        assert values["shape_bias"][0] == 50
        assert values["shape_bias"][1] is None  # some resamples have no such decision
    assert "| shape head " in capsys.readouterr().out


@pytest.mark.parametrize(("divisor", "images"), [("images", (9, 10, 9)), ("batches", (16, 16, 16))])
def test_background_gap_of_each_head(of_imagenet, tmp_path, capsys, divisor, images):
    folder, out = photo_folders.write_in9(tmp_path / "in9"), tmp_path / "gap.json"
    flags = [f"--checkpoint={of_imagenet}", f"--data={folder}", "--batch-size=8", f"--divisor={divisor}"]
    assert command.main(["background_gap", *flags, f"--out={out}"]) == 0
    results = json.loads(out.read_text())
    assert (results["normalise"], results["batch_size"]) == ("imagenet9", 8)
    # Dogs are of the nine; so are no cats, and no boats.
    assert results["predictions"]["texture"] == pytest.approx(
        {
            "original": 100 / images[0],
            "mixed_same": 200 / images[1],
            "mixed_rand": 100 / images[2],
            "gap": 200 / images[1] - 100 / images[2],
        }
    )
    assert results["predictions"]["shape"] == {"original": 0, "mixed_same": 0, "mixed_rand": 0, "gap": 0}
    assert f"accuracies divided by {divisor}" in capsys.readouterr().out


def test_pixels_are_standardised_as_they_are_for_imagenet9(of_imagenet):
    opened = opening.open(of_imagenet, batch_size=8)
    fields = {"data.normalise": "imagenet9", "views.image_size": 64}
    probed = probing.Probed(opened, fields=fields)
    assert probed.config.views.image_size == 64
    assert probed.config.data.normalise == "imagenet9"
    assert opened.config.data.normalise == "imagenet"


@pytest.mark.usefixtures("few_digits")
def test_masks_and_colours_of_a_generator(a_generator, tmp_path, capsys):
    out = tmp_path / "masks.json"
    flags = [f"--checkpoint={a_generator}", "--images=40", "--seed=3", f"--out={out}"]
    assert command.main(["masks", *flags]) == 0
    results = json.loads(out.read_text())
    drawn, real = results["masks"]["drawn"], results["masks"]["real"]
    assert drawn["shape_accuracy"] < 40 < 60 < real["shape_accuracy"]
    assert drawn["mask_iou_class"] <= drawn["mask_iou"] < real["mask_iou"]
    assert real["mask_binary"] == 100
    assert (
        results["colours"]["real"]["colour_histogram"] < 30 < results["colours"]["drawn"]["colour_histogram"]
    )
    assert set(results["classes"]) <= set(DIGITS)
    printed = capsys.readouterr().out
    assert "40 images, real ones of double_colored_digits" in printed
    assert "| drawn " in printed


DATA = "https://github.com/"


@pytest.mark.parametrize(
    ("checkpoint", "flags", "message"),
    [
        ("of_imagenet", ["cues"], "has other classes (1000 without names) than the digits"),
        ("a_generator", ["cues"], "is of a generator, not of a classifier"),
        ("of_digits", ["cues", "--source=scenes"], "invalid choice: 'scenes'"),
        ("of_digits", ["cues", "--source=double_colored_mnist", "--root=nowhere"], "nowhere"),
        ("of_digits", ["cues", "--out=nowhere/cues.json"], "would be in nowhere, which is not a folder"),
        ("of_digits", ["cues", "--out=."], "--out . is a folder"),
        ("of_digits", ["shape_bias", "--data=x"], "has 10 classes, wanted ImageNet's 1000"),
        (
            "of_imagenet",
            ["shape_bias", "--data=x"],
            f"stimuli/style-transfer-preprocessed-512 of {DATA}rgeirhos",
        ),
        ("of_imagenet", ["shape_bias"], "the following arguments are required: --data"),
        ("a_generator", ["shape_bias", "--data=x"], "is of a generator, not of a classifier"),
        (
            "of_digits",
            ["background_gap", "--data=x"],
            "wanted ImageNet's 1000 in their usual order, or the 9 of",
        ),
        (
            "of_imagenet",
            ["background_gap", "--data=x"],
            f"the release of {DATA}MadryLab/backgrounds_challenge",
        ),
        ("of_imagenet", ["background_gap", "--data=x", "--divisor=2"], "invalid choice: '2'"),
        ("of_digits", ["masks"], "is of a classifier, which draws nothing"),
        ("a_generator", ["masks", "--images=0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    tmp_path, monkeypatch, capsys, request, checkpoint, flags, message
):
    path = request.getfixturevalue(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert command.main([flags[0], f"--checkpoint={path}", *flags[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_classes_without_names_are_assumed_and_other_names_refused(tmp_path, capsys):
    path = write_classifier(tmp_path / "other", 10, names=DIGITS[::-1])
    assert command.main(["cues", f"--checkpoint={path}"]) == 1
    assert "has other classes (digit 9, digit 8, digit 7, …)" in capsys.readouterr().err
    unnamed = types.SimpleNamespace(path="pretrained", class_names=None, num_classes=10)
    commands.cues.require_digits(unnamed)
    assert "does not name its classes: assuming the digits" in capsys.readouterr().out


def test_a_background_gap_is_of_a_thousand_or_of_the_nine_classes():
    accepted = []
    for k in (8, 9, 10, 1000):
        with contextlib.suppress(InputError):
            probing.require_imagenet(types.SimpleNamespace(path="run", num_classes=k), also=(9, "nine"))
            accepted.append(k)
    assert accepted == [9, 1000]


def test_masks_are_compared_with_known_ones_alone():
    with pytest.raises(InputError, match="masks of scenes are not compared"):
        commands.masks.measure(None, types.SimpleNamespace(source="scenes"), 4, 0)


def test_a_reader_that_leaves_is_no_error(monkeypatch, of_digits, capsys):
    def leave(results):
        raise BrokenPipeError

    monkeypatch.setattr(cues, "measure", lambda *arguments, **options: {})
    monkeypatch.setattr(cues, "table", leave)
    assert command.main(["cues", f"--checkpoint={of_digits}"]) == 141
    assert capsys.readouterr().err == ""
