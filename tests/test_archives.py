"""Archives of arrays from elsewhere: what they declare is checked before memory is asked for."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax import files
from cfmlc_jax.data.sources import annotations, counterfactuals
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import read

# What the readers of these files turn into one line, or into "not there".
ORDINARY = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def npy(shape, kind="'|u1'", content=b"", version=b"\x01\x00"):
    """A file that declares an array of this shape."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def test_what_was_written_is_read(tmp_path, rng):
    arrays = {
        "a": rng.random((3, 4)),
        "b": np.zeros((0, 2), np.uint8),
        "c": np.asfortranarray(rng.random((2, 3))),
    }
    files.write_npz(tmp_path / "x.npz", **arrays)
    with (tmp_path / "x.npz").open("rb") as file:
        stored = files.read_npz(file)
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)
    files.write_npy(tmp_path / "x.npy", arrays["a"])
    np.testing.assert_array_equal(files.read_npy(tmp_path / "x.npy"), arrays["a"])


HOSTILE = {
    "a terabyte that is not there": npy("(1_000_000_000_000,)"),
    "more than there can be": npy("(4_611_686_018_427_387_904, 4)", "'<i8'"),
    "a negative side": npy("(-1,)", content=b"x"),
    "objects": npy("(1,)", "'|O'", b"\x80\x04N."),
    "objects in a record": npy("(1,)", "[('a', '|O')]", b"\x80\x04N."),
    "no shape": npy("'x'"),
    "a call": npy("__import__('os').getpid()"),
    "an unclosed bracket": npy("(1"),
    "a list as a name": npy("{[]: 1}"),
    "a literal too deep": npy("-" * 9000 + "1"),
    "a type without parts": npy("(1,)", "('<f4',)"),
    "a type of a comma": npy("(1,)", "','"),
    "an unknown format": npy("(1,)", content=b"x", version=b"\x09\x00"),
    "a short one": b"\x93NUM",
    "an empty one": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays_are_refused(tmp_path, case):
    content = HOSTILE[case]
    with pytest.raises(ORDINARY):
        files.read_npz(io.BytesIO(npz(a=content)))
    path = tmp_path / "records-00000-of-00001.npy"
    path.write_bytes(content)
    with pytest.raises(ORDINARY):
        files.read_npy(path)
    with pytest.raises(InputError, match="cannot be read"):
        counterfactuals._read_npy(path)
    (tmp_path / "cache.npz").write_bytes(npz(texts=content))
    assert annotations._read(tmp_path / "cache.npz") is None
    (tmp_path / "scores.npz").write_bytes(npz(whole=content))
    with pytest.raises(InputError, match="damaged"):
        read._arrays(tmp_path / "scores.npz")


def test_a_bomb_is_refused_before_it_is_expanded():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            member.write(npy("(2_000_000_000,)"))
        archive.infolist()[0].file_size = 2_000_000_070
    with pytest.raises(ValueError, match="would expand to 2,000,000,0"):
        files.read_npz(file)


def test_a_member_that_hides_its_length_is_cut_off():
    data = bytearray(npz(a=npy("(100_000,)", content=bytes(100_000))))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(mark) + place
        data[at : at + 4] = struct.pack("<I", 80)
    with pytest.raises(ORDINARY):
        files.read_npz(io.BytesIO(bytes(data)))


def test_encrypted_members_are_refused():
    data = bytearray(npz(a=npy("(1,)", content=b"x")))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    with pytest.raises(ValueError, match="encrypted"):
        files.read_npz(io.BytesIO(bytes(data)))


def test_names_of_members_are_not_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = files.read_npz(io.BytesIO(npz(**{"../out": npy("(1,)", content=b"x"), "/etc/x": npy("(0,)")})))
    assert set(stored) == {"../out", "/etc/x"}
    assert list(tmp_path.iterdir()) == []


VALID = npz(texts=npy("(2,)", content=b"{}"), labels=npy("(1, 2)", content=b"ab"))


@cases(150)
@given(place=st.integers(0, len(VALID) - 1), junk=st.binary(min_size=1, max_size=6))
def test_damaged_archives_give_an_ordinary_error(place, junk):
    data = VALID[:place] + junk + VALID[place + len(junk) :]
    try:
        stored = files.read_npz(io.BytesIO(data))
    except ORDINARY:
        return
    assert all(isinstance(array, np.ndarray) for array in stored.values())


def test_a_damaged_cache_is_made_anew(tmp_path):
    for content in (b"", b"PK", VALID, npz(texts=npy("(2,)", content=json.dumps([]).encode()))):
        (tmp_path / "cache.npz").write_bytes(content)
        assert annotations._read(tmp_path / "cache.npz") is None
