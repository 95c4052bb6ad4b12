"""python -m cfmlc_jax.weights as a user meets it."""

import hashlib

import pytest

from cfmlc_jax.weights import cache, table

NAME = "torchvision:resnet18.IMAGENET1K_V1"
PATH = "/download.pytorch.org/models/resnet18-f37072fd.pth"
DATA = b"weights" * 1000


@pytest.fixture(autouse=True)
def small(monkeypatch):
    entry = table.TABLE[NAME]._replace(sha256=hashlib.sha256(DATA).hexdigest()[:8])
    monkeypatch.setitem(table.TABLE, NAME, entry)


def test_list(weights, cache_folder):
    code, out, err = weights("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "model", "MB", "pixels", "licence", "score", "here"]
    assert len(lines) == len(table.TABLE) + 3
    assert lines[-1] == f"files in {cache_folder}"
    assert lines[1].startswith(f"{NAME}  ")
    facts = "imagenet, 224 of 256 px, bilinear BSD-3-Clause 69.758 top-1 on ImageNet-1k"
    assert facts in " ".join(lines[1].split())
    code, out, _ = weights("list", "TRESNET_L_v2")
    assert [line.split()[0] for line in out.splitlines()[1:-2]] == [
        "timm:tresnet_v2_l.miil_in21k",
        "miil:tresnet_l_v2_miil_21k",
        "miil:tresnet_l_pretrain_ml_decoder",
        "mlc_pat:q2l_tresnet_l_v2",
    ]
    code, _, err = weights("list", "resnet101.IMAGENET1K_V3")
    assert code == 1
    assert (
        "no weights match 'resnet101.IMAGENET1K_V3'; did you mean 'torchvision:resnet101.IMAGENET1K_V" in err
    )


def test_fetch_and_check(weights, server, cache_folder):
    server.files[PATH] = DATA
    code, out, err = weights("fetch", NAME)
    path = cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    assert (code, out) == (0, f"{path}\n")
    assert err.splitlines() == [
        f"downloading {server.url}{PATH} to {path}",
        f"{NAME}: resnet18, pixels imagenet, 224 of 256 px, bilinear, licence BSD-3-Clause",
    ]
    assert weights("list")[1].splitlines()[1].endswith("  yes")
    digest = hashlib.sha256(DATA).hexdigest()
    for arguments in ((), (NAME,)):
        code, out, _ = weights("check", *arguments)
        assert (code, out) == (0, f"{NAME}: as downloaded, SHA-256 {digest}, as published ({path})\n")
    cache.set_aside(path)
    path.write_bytes(DATA)
    assert weights("check")[1] == f"{NAME}: as published, SHA-256 {digest} ({path})\n"
    path.write_bytes(b"?")
    code, out, _ = weights("check")
    assert code == 1
    assert out.startswith(f"{NAME}: WRONG, SHA-256 ")
    code, _, err = weights("fetch", NAME)
    assert code == 1
    assert "was renamed to resnet18-f37072fd.pth.wrong-digest.2 and is not used" in err


def test_check_of_an_empty_cache(weights, cache_folder):
    assert weights("check") == (0, f"no weights in {cache_folder}\n", "")
    code, _, err = weights("check", NAME)
    assert code == 1
    assert err == f"error: {NAME} is not in the cache; python -m cfmlc_jax.weights fetch {NAME}\n"


def test_check_of_files_that_the_table_does_not_know(weights, cache_folder):
    folder = cache_folder / "hf" / "me" / "mine@v1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    code, out, _ = weights("check")
    assert code == 0
    assert out.startswith("hf:me/mine@v1: no digest is published; SHA-256 ")
    cache.record(folder / "model.safetensors", "0" * 64)
    assert weights("check")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required: list|fetch|check"),
        (("fetsch",), "invalid choice: 'fetsch'"),
        (("fetch",), "the following arguments are required: NAME"),
        (("fetch", "resnet18.IMAGENET1K_V1"), f"is not a name of weights; did you mean '{NAME}'?"),
        (("fetch", NAME, "torchvision:resnet19.IMAGENET1K_V1"), f"did you mean '{NAME}'?"),
        (("fetch", "mlc_pat:q2l_tresnet_l_v2"), "download it in a browser from https://drive.google.com/"),
    ],
)
def test_bad_input_is_told_in_one_line(weights, server, arguments, words):
    code, _, err = weights(*arguments)
    assert code == 1
    assert words in err
    assert err.count("\n") == 1
    assert server.requests == []
