"""The package in Python: what README shows is run, and what its names promise beyond that."""

import ast
import functools
import importlib.util
import inspect
import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cfmlc_jax
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import critics, mnist
from cfmlc_jax.torch_weights import cgn

TESTS = Path(__file__).parent
NAMES = [f"digit {i}" for i in range(10)]
SIZE = (50, 40)


def blocks_of(document):
    text = (TESTS.parent / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of tiny.py, untrained, whose head tells patches and classes apart."""
    spec = importlib.util.spec_from_file_location("tiny", TESTS / "configs" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = configs.validate(tiny.get_config())
    initial = build.initial(config, build.create(config, len(NAMES)))
    rng = np.random.default_rng(0)

    def larger(place, leaf):
        if "head" not in jax.tree_util.keystr(place):
            return leaf
        return jax.device_put(rng.normal(0, 0.5, leaf.shape).astype(np.float32), leaf.sharding)

    model = jax.tree_util.tree_map_with_path(larger, initial)
    path = tmp_path_factory.mktemp("run") / "scenes"
    meta = {"config": configs.to_json(config), "class_names": NAMES, "num_classes": len(NAMES)}
    checkpoints.write(path, model=model, meta=meta)
    return path


@pytest.fixture(scope="module")
def classifier(checkpoint):
    return cfmlc_jax.load(checkpoint, batch_size=8)


def picture(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


# What README shows


def test_readme_is_run(checkpoint, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torchvision", reason="an example is a model of torchvision's")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scenes").symlink_to(checkpoint)
    for i, name in enumerate(("a.jpg", "b.png")):
        picture(i).save(name)
    predicts, *others = blocks_of("README.md")
    exec(predicts, {})
    text = capsys.readouterr().out
    assert [len(ast.literal_eval(top)) for top in re.findall(r"\[.*?\]", text)] == [3, 3]
    assert text.count("Pivot(box=(") == 2
    for compares_a_layer in others:
        exec(compares_a_layer, {})
        assert float(capsys.readouterr().out) < 1e-5


def test_the_document_of_python_is_run(checkpoint, tmp_path, monkeypatch, capsys):
    """All of its blocks, one after the other, as a reader would."""
    pytest.importorskip("torchvision", reason="an example is a model of torchvision's")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scenes").symlink_to(checkpoint)
    for i, name in enumerate(("a.jpg", "b.png", "c.webp")):
        picture(i).save(name)
    names = {}

    def run(block):
        exec(block, names)
        return capsys.readouterr().out.splitlines()

    with pytest.warns(UserWarning, match=r"missing\.jpg: cannot be read"):
        printed = [run(block) for block in blocks_of("docs/python.md")]
    first, unreadable, prediction, effects, features, layer = printed
    assert [len(ast.literal_eval(line)) for line in first] == [3, 3, 3, 3]
    assert unreadable == ["[False, True, False]"]
    assert any(line.startswith("Pivot(box=(") for line in prediction)
    assert [line.partition(":")[0] for line in effects[:10]] == NAMES
    assert len(ast.literal_eval(effects[10])) == 3
    assert [len(shape) for shape in ast.literal_eval(f"[{features[0].replace(') (', '), (')}]")] == [2, 4]
    assert float(layer[0]) < 1e-5


# The names


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, cfmlc_jax; before = {'jax', 'flax', 'numpy'} & set(sys.modules);"
        "dir(cfmlc_jax); cfmlc_jax.create_model; after = {'jax', 'orbax', 'grain'} & set(sys.modules);"
        "print(sorted(before), sorted(after))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['jax']\n"


def test_the_package_exports_its_names_and_no_others():
    assert set(cfmlc_jax.__all__) <= set(dir(cfmlc_jax))
    for name in cfmlc_jax.__all__:
        assert inspect.getdoc(getattr(cfmlc_jax, name))
    with pytest.raises(AttributeError, match="module 'cfmlc_jax' has no attribute 'loads'"):
        cfmlc_jax.loads  # noqa: B018 - the access is the test


# Prediction


def same(one, other):
    assert one.class_names == other.class_names
    np.testing.assert_array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.boxes, other.boxes)


def test_images_can_be_paths_bytes_pictures_or_arrays(classifier, tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    pixels = np.asarray(image)
    expected, *others = classifier.predict(
        [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image, "PNG"), image, pixels]
    )
    for other in others:
        same(expected, other)
    for one in (tmp_path / "a.png", encoded(image, "PNG"), image, pixels):
        (alone,) = classifier.predict(one)
        same(expected, alone)
    two = classifier.predict(np.stack([pixels, 255 - pixels]))
    same(expected, two[0])
    assert (two[1].logits != two[0].logits).any()
    assert classifier.predict([]) == []


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
def test_pillow_images_are_rotated_by_exif_like_files(classifier, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), form, exif=exif)
    of_file, of_image = classifier.predict([data, Image.open(io.BytesIO(data))])
    same(of_file, of_image)
    assert of_file.boxes[:, [0, 2]].max() == SIZE[1]


def test_several_batches_keep_the_order_of_images(classifier):
    pictures = [picture(i) for i in range(19)]
    together = classifier.predict(pictures)
    assert len(together) == 19
    for i in (0, 7, 8, 18):
        np.testing.assert_allclose(
            together[i].logits, classifier.predict(pictures[i])[0].logits, rtol=1e-5, atol=1e-5
        )


def test_what_is_predicted(classifier):
    assert classifier.class_names == tuple(NAMES)
    (prediction,) = classifier.predict(picture())
    np.testing.assert_allclose(prediction.probabilities, 1 / (1 + np.exp(-prediction.logits)), rtol=1e-5)
    top = prediction.top(3)
    assert [name for name, _ in top] == [NAMES[k] for k in np.argsort(-prediction.logits)[:3]]
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert len(prediction.top(100)) == 10
    assert prediction.present(top[1][1]) == top[:1]
    assert prediction.patch_weights.shape == (4, 10)
    np.testing.assert_allclose(prediction.patch_weights.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(prediction.boxes[0], [0, 0, 25, 20])
    pivot = prediction.pivot("digit 3")
    patch = prediction.patch_weights[:, 3].argmax()
    assert pivot.box == tuple(prediction.boxes[patch])
    assert pivot.weight == pytest.approx(prediction.patch_weights[patch, 3])


def test_invalid_arguments_are_named(classifier, tmp_path):
    for images, message in (
        ([picture(), tmp_path / "no.jpg"], r"no\.jpg: cannot be read"),
        ([picture(), b"text"], r"images\[1\]: 4 bytes that are not an image"),
        ([3], r"images\[0\] is a int; give a path, bytes"),
        (3, "images is a int; give a path, bytes"),
        (tmp_path, "a folder, not an image; give the files in it"),
        (
            np.zeros((4, 4, 3)),
            r"images\[0\]: an array float64 \[4, 4, 3\] is not an image \(values from 0 to 0\); give uint8 \[h, w, 3\], for "
            r"example \(255 \* array\)\.round\(\)\.astype\('uint8'\)$",
        ),
        (
            np.full((2, 4, 4, 3), 200),
            r"images\[0\]: an array int64 .* \(values from 200 to 200\).* array\.round\(\)\.astype",
        ),
        (np.linspace(-2, 2, 48).reshape(4, 4, 3), r"from -2 to 2.* with values from 0 to 255$"),
        (np.full((4, 4, 3), 300), r"from 300 to 300.* with values from 0 to 255$"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"uint8 \[3, 8, 8\] is .* for example by array\.transpose\(1, 2, 0\)$",
        ),
        (np.zeros((4, 4, 5), np.uint8), r"uint8 \[4, 4, 5\] is not an image; give uint8 \[h, w, 3\]$"),
        (
            np.zeros((1, 2, 4, 4, 3), np.uint8),
            r"uint8 \[2, 4, 4, 3\] is not an image; give uint8 \[h, w, 3\]$",
        ),
        (np.zeros((0, 4, 3)), r"float64 \[0, 4, 3\] is not an image; give uint8 \[h, w, 3\]$"),
        (
            np.array(["a.jpg", "b.jpg"]),
            r"images\[0\]: an array <U5 \[2\] is not an image; give uint8 \[h, w, 3\]$",
        ),
        (jnp.zeros((4, 4, 3)), r"images\[0\] is a ArrayImpl; give .* a NumPy array uint8 \[h, w, 3\]$"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            classifier.predict(images)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"'digit' is not one of the 10 classes; did you mean 'digit "):
        classifier.predict(picture())[0].pivot("digit")
    with pytest.raises(InputError, match="is not a checkpoint"):
        cfmlc_jax.load(tmp_path)


def test_unreadable_images_among_good_ones(classifier, tmp_path):
    good = [picture(i) for i in range(9)]
    images = [*good[:8], tmp_path / "no.jpg", b"text", good[8]]
    with pytest.warns(UserWarning, match="cannot be read|not an image") as warned:
        predictions = classifier.predict(images, on_error="none")
    assert [str(warning.message).partition(" (")[0] for warning in warned] == [
        f"{tmp_path / 'no.jpg'}: cannot be read",
        "images[9]: 4 bytes that are not an image",
    ]
    assert predictions[8:10] == [None, None]
    expected = classifier.predict(good)
    for prediction, other in zip([*predictions[:8], predictions[10]], expected, strict=True):
        same(prediction, other)
    with pytest.raises(InputError, match="on_error 'skip' is not one of raise, none"):
        classifier.predict(images, on_error="skip")


def test_an_error_that_is_kept_keeps_no_threads(classifier, tmp_path):
    before = threading.active_count()
    with pytest.raises(InputError, match="cannot be read") as raised:
        classifier.predict([picture(0), tmp_path / "no.jpg", picture(1)])
    assert threading.active_count() == before, raised.value


def test_thresholds_of_each_class(classifier):
    (prediction,) = classifier.predict(picture())
    order = [name for name, _ in prediction.top(10)]
    middle = (prediction.probabilities.min() + prediction.probabilities.max()) / 2
    above = [name for name, p in prediction.top(10) if p > middle]
    assert [name for name, _ in prediction.present(middle)] == above
    assert [name for name, _ in prediction.present([middle] * 10)] == above
    assert [name for name, _ in prediction.present(np.full(10, middle))] == above
    by_name = {name: 0.0 if name == order[-1] else 1.0 for name in order}
    assert [name for name, _ in prediction.present(by_name)] == [order[-1]]
    assert prediction.present({order[0]: 1.0}) == [
        each for each in prediction.present() if each[0] != order[0]
    ]
    for threshold, message in (
        ({"digit": 0.5}, "'digit' is not one of the 10 classes; did you mean 'digit "),
        ([0.5, 0.5], r"threshold has the shape \[2\]; give one number, 10 \(one for each class\), or a dict"),
        (1.5, "threshold 1.5 is not a probability from 0 to 1"),
        ([float("nan")] * 10, "is not a probability from 0 to 1"),
        ("high", "threshold 'high' is not a number; give one"),
    ):
        with pytest.raises(InputError, match=message):
            prediction.present(threshold)


def test_direct_effects(classifier, checkpoint):
    assert classifier.predict(picture())[0].effects is None
    (prediction,) = cfmlc_jax.load(checkpoint, effects=True, batch_size=8).predict(picture())
    (tde,) = cfmlc_jax.load(checkpoint, prediction="tde_pivot_1", batch_size=8).predict(picture())
    np.testing.assert_allclose(prediction.effects, tde.logits, rtol=1e-5, atol=1e-5)
    assert tde.effects is None
    assert np.ptp(prediction.effects) > 0.01


def test_features(classifier):
    pictures = [picture(i) for i in range(9)]
    pooled, maps = classifier.features(pictures), classifier.features(pictures[0], "map")
    assert pooled.dtype == maps.dtype == np.float32
    assert pooled.shape == (9, maps.shape[-1])
    np.testing.assert_allclose(maps.mean((1, 2)), pooled[:1], rtol=1e-4, atol=1e-5)
    assert classifier.features([]).shape == (0, pooled.shape[1])
    with pytest.raises(InputError, match=r"features 'layer9' are not one of .*; did you mean 'layer\d'\?"):
        classifier.features(pictures[0], "layer9")


def test_unknown_choices_are_named(checkpoint):
    for options, message in (
        ({"weights": "ema"}, "weights 'ema' is not one of weights, average"),
        ({"prediction": "tde"}, "prediction: 'tde' is not the name of a prediction, which are whole, patch"),
    ):
        with pytest.raises(InputError, match=message):
            cfmlc_jax.load(checkpoint, **options)


# Models and weights


def test_a_model_takes_what_it_gives(rng):
    model = cfmlc_jax.create_model("resnet_small", 7, attention="cross", image_size=32, dtype=jnp.bfloat16)
    views = rng.random((2, 5, 32, 32, 3), np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), views)
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, views)
    assert outputs.whole.shape == outputs.attention.shape == outputs.score.shape == (2, 5, 7)
    state_dict = cfmlc_jax.to_torch("resnet_small", variables)
    wrapped = {f"module.{key}": array for key, array in state_dict.items()}
    for weights in (state_dict, wrapped):
        back = cfmlc_jax.from_torch("resnet_small", weights)
        jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(variables))


def test_tensors_are_taken_as_they_are(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional extra")
    module = cgn.MODULES["cgn_mnist_conv_critic"]
    arrays = {e.key: rng.standard_normal(e.torch_shape, np.float32) for e in cgn.entries(module)}
    tensors = {key: torch.nn.Parameter(torch.from_numpy(array)) for key, array in arrays.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        cfmlc_jax.from_torch("cgn_mnist_conv_critic", tensors),
        cfmlc_jax.from_torch("cgn_mnist_conv_critic", arrays),
    )


@pytest.mark.parametrize(
    "name", ["cgn_mnist", "cgn_mnist_linear_critic", mnist.MnistGenerator(latent=5, ngf=3), critics.LinearCritic(ndf=4)]
)  # fmt: skip
def test_generators_and_critics(rng, name):
    module = name if isinstance(name, nn.Module) else cgn.MODULES[name]
    arrays = {entry.key: rng.standard_normal(entry.torch_shape, np.float32) for entry in cgn.entries(module)}
    back = cfmlc_jax.to_torch(name, cfmlc_jax.from_torch(name, arrays))
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)


def test_mismatched_weights_are_named():
    with pytest.raises(
        InputError, match=r"model 'cgn_mnst' is not one of resnet18, .*did you mean 'cgn_mnist'"
    ):
        cfmlc_jax.from_torch("cgn_mnst", {})
    with pytest.raises(InputError, match=r"not the weights of this LinearCritic: \d+ missing: "):
        cfmlc_jax.from_torch("cgn_mnist_linear_critic", {"a": np.zeros(3)})
    with pytest.raises(InputError, match=r"not the weights of resnet18: \d+ missing: .*1 left over: a$"):
        cfmlc_jax.from_torch("resnet18", {"a": np.zeros(3)})
    with pytest.raises(InputError, match="in_place_norms does not apply to MnistGenerator; omit it"):
        cfmlc_jax.to_torch("cgn_mnist", {}, in_place_norms=True)
    with pytest.raises(InputError, match="'epoch' is a int among tensors"):
        cfmlc_jax.from_torch("resnet18", {"epoch": 3})
