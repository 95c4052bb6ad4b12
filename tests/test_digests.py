"""Digests of the files of a folder: what has changed since they were written is noticed, in the digests as well."""

import json

import pytest

from cfmlc_jax import digests


@pytest.fixture
def folder(tmp_path):
    for name in ("model/a", "model/deep/b", "training/c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    digests.write(tmp_path)
    return tmp_path


def test_only_the_parts_that_are_asked_for_are_compared(folder):
    (folder / "training" / "c").write_text("x")
    (folder / "model" / "new").write_text("x")
    assert digests.difference(folder, ("model",)) == ""
    assert digests.difference(folder, ("training",)) == "training/c has changed since it was written"
    (folder / "model" / "deep" / "b").unlink()
    assert digests.difference(folder, ("model",)) == "model/deep/b is missing"


@pytest.mark.parametrize("bit", [1, 16, 128])
def test_a_flipped_bit_of_the_digests_is_noticed(folder, bit):
    """Also if it is in those of a part that is not asked for. Only the name of the digest of all may be lost: it protects no file."""
    path = folder / digests.FILE
    whole = path.read_bytes()
    others = json.loads(whole)
    del others[digests.FILE]
    for position in range(len(whole.rstrip())):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        if not digests.difference(folder, ("model",)):
            assert json.loads(path.read_bytes()).items() >= others.items(), position


def test_digests_of_an_older_version_have_none_of_their_own(folder):
    path = folder / digests.FILE
    named = json.loads(path.read_text())
    del named[digests.FILE]
    path.write_text(json.dumps(named))
    assert digests.difference(folder, ("model", "training")) == ""
    named["model/a"] = "0"
    path.write_text(json.dumps(named))
    assert digests.difference(folder, ("model",)) == "model/a has changed since it was written"
