"""The table of public weights: its facts are those of the publishers' own registries."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import mlc_pat, strict
from cfmlc_jax.weights import fetch, read
from cfmlc_jax.weights.table import TABLE, nearest, public

DOCUMENT = Path(__file__).parents[2] / "docs" / "weights.md"


def of(publisher):
    return [pytest.param(entry, id=entry.name) for name, entry in TABLE.items() if name.startswith(publisher)]


@pytest.mark.parametrize("entry", of(""))
def test_an_entry_is_whole(entry):
    catalogue.parts(entry.model)
    assert entry.page.startswith("https://")
    assert re.fullmatch("[0-9a-f]*", entry.sha256)
    assert not (entry.url and entry.hub)
    assert fetch.named(entry.name).entry is entry
    if entry.hub:
        assert fetch.named(f"hf:{entry.hub}").entry is entry


@pytest.mark.parametrize("entry", of("torchvision:"))
def test_facts_are_torchvisions(entry):
    models = pytest.importorskip("torchvision").models
    architecture, _, weights = entry.name.removeprefix("torchvision:").partition(".")
    theirs = models.get_model_weights(architecture)[weights]
    transforms, score = theirs.transforms(), theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    normalisation = entry.preprocessing.normalisation
    assert theirs.url == entry.url
    assert theirs.url.endswith(f"-{entry.sha256}.pth")
    assert entry.megabytes == round(theirs.meta["_file_size"] * 2**20 / 1e6, 1)
    assert entry.score == f"{score} top-1 on ImageNet-1k"
    assert (transforms.mean, transforms.std) == tuple(map(list, normalisation))
    assert ([entry.preprocessing.size], [entry.preprocessing.resize]) == (
        transforms.crop_size,
        transforms.resize_size,
    )
    assert transforms.interpolation.value == entry.preprocessing.interpolation


@pytest.mark.parametrize("entry", of("timm:"))
def test_facts_are_timms(entry):
    timm = pytest.importorskip("timm")
    theirs = timm.models.get_pretrained_cfg(entry.name.removeprefix("timm:"))
    size, preprocessing = theirs.input_size[-1], entry.preprocessing
    assert theirs.hf_hub_id == entry.hub
    assert theirs.license == entry.licence.lower()
    assert (preprocessing.normalisation or ((0, 0, 0), (1, 1, 1))) == (theirs.mean, theirs.std)
    assert preprocessing.interpolation == theirs.interpolation
    assert (preprocessing.size, preprocessing.resize) == (size, math.floor(size / theirs.crop_pct))


@pytest.mark.slow  # two minutes, for the shapes of 20 models
@pytest.mark.parametrize("entry", [*of("torchvision:"), *of("timm:")])
def test_the_publishers_model_is_ours(entry):
    torch = pytest.importorskip("torch")
    publisher, _, name = entry.name.partition(":")
    library = pytest.importorskip(publisher)
    with torch.device("meta"):
        if publisher == "timm":
            theirs = library.create_model(name, pretrained=False)
        else:
            theirs = library.models.get_model(name.partition(".")[0])
    weights = {key: np.broadcast_to(np.float32(0), leaf.shape) for key, leaf in theirs.state_dict().items()}
    assert mlc_pat.fits(entry.model, weights)


def test_torchvisions_weights_are_those_of_its_model(tmp_path):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    pretrained = read.read(tmp_path / "resnet18.pth", "q2l_resnet18")
    assert pretrained.model == "resnet18"
    assert pretrained[2:] == ("none", 1000, None, "imagenet")
    kernel = strict.leaves(pretrained.variables)["params", "backbone", "conv1", "kernel"]
    np.testing.assert_array_equal(kernel, theirs.conv1.weight.detach().numpy().transpose(2, 3, 1, 0))


def test_a_query2label_is_read_as_such(tmp_path, rng):
    weights = {
        key: np.zeros(entry.torch_shape, np.float32) for key, entry in _entries("q2l_resnet18").items()
    }
    assert mlc_pat.fits("q2l_resnet18", weights)
    assert not mlc_pat.fits("resnet18", weights)
    assert not mlc_pat.fits("q2l_resnet34", weights)


def _entries(name):
    arch = mlc_pat.Architecture(7, "cross", "query2label", 0)
    return {entry.key: entry for entry in mlc_pat._entries(name, arch)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "torchvision:resnet101",
            "did you mean 'torchvision:resnet101.IMAGENET1K_V1' or 'torchvision:resnet101.IMAGENET1K_V2'?",
        ),
        ("torchvison:resnet18.IMAGENET1K_V1", "did you mean 'torchvision:resnet18.IMAGENET1K_V1'?"),
        ("timm:resnet26.bt_in1k", "or give hf:timm/NAME for another model of timm"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name, words):
    with pytest.raises(InputError, match="is not among the known weights") as error:
        fetch.named(name)
    assert words in str(error.value)


def test_names_and_paths(tmp_path):
    for path in ("runs/coco", "a.pth", "C", str(tmp_path), "/a:b/c"):
        assert fetch.named(path) is None
    (tmp_path / "foo:bar").mkdir()
    assert fetch.named(str(tmp_path / "foo:bar")) is None
    with pytest.raises(InputError, match="begins with 'ftp', which is not one of torchvision, timm, miil"):
        fetch.named("ftp:file")
    assert nearest("zzz") == ""
    # Longer than a file's name can be.
    with pytest.raises(InputError, match="begins with 'x'"):
        fetch.named("x:" + "a" * 300)
    repository = fetch.named("hf:owner/" + "a" * 300)
    assert repository is not None
    assert repository.present() is None
    assert public("cvt:w24_384_in22k").model == "cvt_w24"


def test_folders_of_the_hub_and_of_this_package(tmp_path):
    assert fetch.file_in(tmp_path) == tmp_path
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert fetch.file_in(tmp_path) == tmp_path / name
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    assert fetch.file_in(tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text('{"config": {}, "class_names": ["a"]}')
    assert fetch.file_in(tmp_path) == tmp_path


def test_the_document_has_the_table():
    text = DOCUMENT.read_text(encoding="utf-8")
    for entry in TABLE.values():
        row = f"| `{entry.name}` | `{entry.model}` | {entry.preprocessing} | {entry.licence or '–'} | {entry.score or '–'} |"
        assert row in text.splitlines(), row
