"""Comparison with recorded arrays and with recorded statistics of arrays."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return dict(stored)


def numbers(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def shapes(name):
    """Shapes by key of a state_dict of the counterfactual generators, without counters of batches."""
    entries = numbers("cgn/shapes")[name].items()
    return {key: tuple(shape) for key, shape in entries if not key.endswith("num_batches_tracked")}


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), 1, -1))


def pooled(x, size=32):
    """Means of equal cells: [b, h, w, c] -> [b, c, size, size]."""
    b, h, w, c = x.shape
    return channels_first(np.asarray(x).reshape(b, size, h // size, size, w // size, c).mean(axis=(2, 4)))


def assert_near(actual, expected, tolerance, message=""):
    """Within the tolerance, absolute."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=message)


def assert_statistics(array, recorded, tolerance, message=""):
    """Shape, first values and sum of magnitudes of an array in PyTorch's layout.

    First values within the tolerance of the largest magnitude, the sums within it of the sum of magnitudes.
    """
    array = np.asarray(array, np.float64)
    assert list(array.shape) == recorded["shape"], message
    first = recorded.get("first8") or recorded["first4"]
    assert_near(array.ravel()[: len(first)], first, tolerance * np.abs(array).max(), message)
    total = recorded["sum"] if "sum" in recorded else recorded["mean"] * array.size
    scale = tolerance * max(recorded["abs_sum"], 1e-30)
    assert_near(np.abs(array).sum(), recorded["abs_sum"], scale, message)
    assert_near(array.sum(), total, scale, message)
