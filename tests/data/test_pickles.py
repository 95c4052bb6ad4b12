"""Pickles of data sets: numbers come out as they went in; code, objects and crafted arrays do not."""

import io
import os
import pickle

import numpy as np
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax.data.sources import pickles


def loaded(value, protocol=4):
    return pickles.load(io.BytesIO(pickle.dumps(value, protocol=protocol)), "latin1")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.arange(4, dtype=">i4"),
        np.array([True, False]),
        np.array(2.5, np.float32),
        np.zeros((0, 3), np.float64),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_are_read_as_they_were_written(array, protocol):
    result = np.asarray(loaded({"x": array}, protocol=protocol)["x"])
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_an_array_of_one_object_holds_it():
    content = loaded(np.array({"labels": np.arange(3), "names": ["a"]}))
    assert content.item()["names"] == ["a"]
    np.testing.assert_array_equal(content.item()["labels"], [0, 1, 2])


def test_an_array_of_objects_is_not_numbers():
    objects = loaded(np.array([{}, {}]))
    for use in (np.asarray, lambda array: array.item()):
        with pytest.raises(pickle.UnpicklingError, match="object"):
            use(objects)
    with pytest.raises(pickle.UnpicklingError, match="not an array of one object"):
        loaded(np.arange(1)).item()


class Reduced:
    """A pickle of a call, its arguments and a state."""

    def __init__(self, function, arguments, state=None):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts


def reconstructed(shape, dtype, data):
    """The pickle of an array with this state, whatever numpy would think of it."""
    function, arguments, _ = np.zeros(1).__reduce__()
    return Reduced(function, arguments, (1, shape, dtype, False, data))


ADDRESS = b"\x41" * 8


def test_bytes_are_never_taken_for_addresses():
    # numpy itself takes these bytes for the address of an object, and crashes when it is looked at.
    unmarked = Reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    with pytest.raises(pickle.UnpicklingError, match="not an array of"):
        loaded(reconstructed((1,), unmarked, ADDRESS)).item()
    with pytest.raises(pickle.UnpicklingError):
        np.asarray(loaded(reconstructed((1,), unmarked, ADDRESS)))
    with pytest.raises(pickle.UnpicklingError):
        np.asarray(loaded(Reduced(np.ndarray, ((1,), "O", ADDRESS))))


@pytest.mark.parametrize(
    ("shape", "kind", "data"),
    [
        ((10**12,), "u1", b"\x00"),  # a terabyte
        ((2**62, 4), "i8", b""),  # more than there can be
        ((-1,), "u1", b"\x00"),
        ((1,), "V8", ADDRESS),
        ((1,), "i8,O", 2 * ADDRESS),
        ((1,), "no type", ADDRESS),
        ((1,), "u1", 7),
        ("a", "u1", b"\x00"),
    ],
)
def test_crafted_arrays_are_refused(shape, kind, data):
    crafted = Reduced(np.dtype, (kind, False, True), (3, "<", None, None, None, -1, -1, 0))
    if kind == "no type":  # numpy makes no such pickle
        text = pickle.dumps(reconstructed(shape, np.dtype("u1"), data), protocol=4).replace(b"u1", b"zz")
        with pytest.raises(pickle.UnpicklingError):
            pickles.load(io.BytesIO(text), "latin1")
        return
    with pytest.raises(pickle.UnpicklingError, match="cannot be read"):
        loaded(reconstructed(shape, crafted, data))


@pytest.mark.parametrize(
    "call",
    [(os.system, ("true",)), (eval, ("1",)), (np.load, ("x",)), (getattr, ("x", "format"))],
    ids=lambda call: call[0].__name__,
)
def test_no_function_is_called(call):
    with pytest.raises(pickle.UnpicklingError, match="neither an array nor a plain value"):
        loaded(Reduced(*call))


VALID = pickle.dumps({"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 3]}, protocol=3)


@cases(150)
@given(place=st.integers(0, len(VALID) - 1), junk=st.binary(max_size=4))
def test_damaged_pickles_give_an_ordinary_error(place, junk):
    data = VALID[:place] + junk + VALID[place + len(junk) :]
    try:
        content = pickles.load(io.BytesIO(data), "latin1")
        np.asarray(content["data"])
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        MemoryError,
    ):
        pass  # what the readers of such files turn into one line
