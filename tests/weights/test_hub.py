"""Repositories of the Hugging Face Hub, on a server of this machine."""

import builtins
import hashlib
import json

import numpy as np
import pytest

from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.weights import cache, fetch, hub

hf = pytest.importorskip("huggingface_hub")
DATA = np.random.default_rng(0).bytes(300_000)
CONFIG = json.dumps({"architecture": "resnet18"}).encode()
REPOSITORY = "timm/resnet18.a1_in1k"
WEIGHTS = f"/{REPOSITORY}/resolve/{'c' * 40}/model.safetensors"


def bring(name=f"hf:{REPOSITORY}", lines=None):
    return fetch.fetch(fetch.named(name), (lines if lines is not None else []).append)


def test_a_repository_is_downloaded_once(server, cache_folder):
    server.repository(REPOSITORY, config__json=CONFIG, model__safetensors=DATA)
    lines = []
    path = bring(lines=lines)
    assert path == cache_folder / "hf" / "timm" / "resnet18.a1_in1k" / "model.safetensors"
    assert path.read_bytes() == DATA
    assert (path.parent / "config.json").read_bytes() == CONFIG
    assert lines == [f"downloading model.safetensors of {server.url}/{REPOSITORY} (0.3 MB) to {path.parent}"]
    count = len(server.requests)
    assert bring() == path
    assert len(server.requests) == count
    assert cache.recorded(path) == hashlib.sha256(DATA).hexdigest()


def test_timm_names_are_repositories(server, cache_folder):
    server.repository("timm/tresnet_l.miil_in1k", config__json=CONFIG, model__safetensors=DATA)
    assert bring("timm:tresnet_l.miil_in1k") == bring("hf:timm/tresnet_l.miil_in1k")


def test_a_revision_and_a_file(server, cache_folder):
    server.repository("me/mine", own__bin=DATA)
    path = bring(f"hf:me/mine@{'c' * 40}/own.bin")
    assert path == cache_folder / "hf" / "me" / f"mine@{'c' * 40}" / "own.bin"
    assert path.read_bytes() == DATA


def test_without_safetensors_pytorchs_file_is_taken(server):
    server.repository("me/mine", pytorch_model__bin=DATA)
    assert bring("hf:me/mine").name == "pytorch_model.bin"


def test_a_repository_without_weights(server):
    server.repository("me/mine", config__json=CONFIG)
    with pytest.raises(
        InputError, match=r"me/mine has no model\.safetensors nor pytorch_model\.bin; name its file"
    ):
        bring("hf:me/mine")


def test_a_broken_transfer_is_resumed(server, monkeypatch):
    monkeypatch.setattr(hf.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # the package keeps whole chunks
    server.repository(REPOSITORY, config__json=CONFIG, model__safetensors=DATA)
    server.broken[WEIGHTS] = [100_000]
    assert bring().read_bytes() == DATA
    assert "bytes=100000-" in [headers.get("Range") for headers in server.asked(WEIGHTS)]


def test_a_wrong_digest_is_set_aside(server):
    server.repository(REPOSITORY, config__json=CONFIG, model__safetensors=DATA)
    server.files[WEIGHTS] = DATA[:-1] + b"?"
    with pytest.raises(InputError, match=r"has SHA-256 .* renamed to model\.safetensors\.wrong-digest"):
        bring()
    server.files[WEIGHTS] = DATA
    assert bring().read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "is gated: accept its terms there, then log in by `hf auth login`"),
        (401, "GatedRepo", "is gated: accept its terms there"),
        (401, "RepoNotFound", r"does not exist, or is private; check the name, or log in"),
        (404, "RepoNotFound", r"does not exist, or is private"),
        (403, "", r"asks for a login \(HTTP 403\)"),
    ],
)
def test_a_refusal_is_told(server, status, code, words):
    for file in ("config.json", "model.safetensors"):
        path = f"/{REPOSITORY}/resolve/main/{file}"
        server.status[path] = (status, {"X-Error-Code": code} if code else {})
    with pytest.raises(InputError, match=words) as error:
        bring()
    assert f"{server.url}/{REPOSITORY}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_repository_or_a_revision_that_is_not_there(server):
    with pytest.raises(InputError, match="does not exist, or is private"):
        bring("hf:me/nothing")
    server.repository("me/mine", model__safetensors=DATA)
    for file in ("config.json", "model.safetensors"):
        server.status[f"/me/mine/resolve/v9/{file}"] = (404, {"X-Error-Code": "RevisionNotFound"})
    with pytest.raises(InputError, match="me/mine has no revision 'v9'"):
        bring("hf:me/mine@v9")


@pytest.mark.parametrize(
    "name", ["hf:mine", "hf:a/b@", "hf:a b/c", "hf:../..", "hf:a/b@..", "hf:a/b/../../../x", "hf:./b"]
)
def test_a_name_that_no_repository_can_have(name, server):
    with pytest.raises(InputError, match="write hf:owner/name"):
        bring(name)


def test_offline_is_told_with_address_and_place(monkeypatch, cache_folder):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError) as error:
        bring()
    folder = cache_folder / "hf" / "timm" / "resnet18.a1_in1k"
    message = str(error.value)
    assert message.startswith(f"http://127.0.0.1:9/{REPOSITORY} cannot be reached (")
    assert message.endswith(
        f"; check the network, or put model.safetensors and config.json of it in {folder}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(DATA)
    assert bring() == folder / "model.safetensors"


def test_the_package_is_optional(monkeypatch, cache_folder):
    normal = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return normal(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError, match=r"pip install 'cfmlc_jax\[hub\]'; or put model\.safetensors and config\.json"
    ):
        bring()


def test_the_hubs_address(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub.endpoint() == "https://huggingface.co"
