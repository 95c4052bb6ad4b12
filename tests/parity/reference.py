"""Weights and inputs of the golden numbers: rules that every framework can follow.

A weight is a function of its key and shape in the PyTorch state_dict, so that no weights need to be
kept: normal numbers from a generator seeded by the key, scaled by what the entry is.
"""

import re
import zlib

import numpy as np

# Not weights, though state_dicts hold them.
_DERIVED = ("num_batches_tracked", "pe", "filt", "attn_mask", "relative_position_index")
_BRANCH_END = re.compile(r"layer\d\.\d+\.(bn3|conv3\.1)\.weight$")
_BASIC_BRANCH_END = re.compile(r"layer\d\.\d+\.conv2\.1\.weight$")


def fill(key: str, shape: tuple[int, ...], *, salt: str = "") -> np.ndarray:
    """Fill A of an entry, float32. Another `salt` gives weights that no golden number has seen."""
    generator = np.random.RandomState(zlib.crc32((salt + key).encode()) % 2**32)
    x = generator.standard_normal(shape).astype(np.float32)
    leaf = key.rpartition(".")[2]
    if leaf.startswith("running_var") or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * np.abs(x)
    if leaf.startswith("running_mean") or leaf.endswith("bias") or leaf == "b":
        return np.float32(0.1) * x
    if "query_embed" in key:
        return np.float32(0.5) * x
    fan_in = shape[2] if leaf == "W" else int(np.prod(shape[1:]))
    return x * np.float32(np.sqrt(1 / fan_in))


def fill_all(shapes: dict[str, tuple[int, ...]], *, variant: str = "A", salt: str = "") -> dict:
    """A state_dict by `fill`. Variant "B" lets logits depend more on the input than "A" does.

    B multiplies convolutions by √3 and the last norm of every residual branch by 0.2.
    """
    weights = {
        key: fill(key, shape, salt=salt)
        for key, shape in shapes.items()
        if key.rpartition(".")[2] not in _DERIVED
    }
    if variant == "B":
        bottlenecks = {key.rpartition(".conv3.")[0] for key in shapes if ".conv3." in key}
        for key in weights:
            if key.endswith(".weight") and weights[key].ndim == 4:
                weights[key] *= np.float32(np.sqrt(3))
            basic = _BASIC_BRANCH_END.search(key) and key.rpartition(".conv2.")[0] not in bottlenecks
            if _BRANCH_END.search(key) or basic:
                weights[key] *= np.float32(0.2)
    return weights


def fill_spectral(shapes: dict[str, tuple[int, ...]]) -> dict:
    """As `fill_all`, where a spectral norm's vectors are those of its weight, 20 steps of the power iteration on."""
    vectors = ("weight_u", "weight_v")
    weights = fill_all({key: shape for key, shape in shapes.items() if not key.endswith(vectors)})
    for key in [key for key in weights if key.endswith("weight_orig")]:
        matrix = weights[key].reshape(len(weights[key]), -1).astype(np.float64)
        stem = key.removesuffix("orig")
        generator = np.random.RandomState(zlib.crc32((stem + "u").encode()))
        u = _unit(generator.standard_normal(len(matrix)).astype(np.float32).astype(np.float64))
        for _ in range(20):
            v = _unit(matrix.T @ u)
            u = _unit(matrix @ v)
        weights |= {stem + "u": u.astype(np.float32), stem + "v": v.astype(np.float32)}
    return weights


def _unit(x):
    return x / np.linalg.norm(x)


def uniform(batch: int, size: int, seed: int = 0) -> np.ndarray:
    """Input "u": noise [b, size, size, 3] in [0, 1]."""
    return _channels_last(np.random.RandomState(seed).uniform(0, 1, (batch, 3, size, size)))


def waves(batch: int, size: int, seed: int = 0) -> np.ndarray:
    """Input "w": a plane wave in every channel, [b, size, size, 3] in [0, 1]."""
    p = np.random.RandomState(1000 + seed).uniform(0, 1, (batch, 3, 4))[..., None, None]
    rows, columns = np.arange(size)[:, None] / size, np.arange(size)[None, :] / size
    cycles = (1 + 5 * p[:, :, 0]) * rows + (1 + 5 * p[:, :, 1]) * columns
    amplitude = 0.2 + 0.28 * p[:, :, 3]
    return _channels_last(0.5 + amplitude * np.cos(2 * np.pi * cycles + 2 * np.pi * p[:, :, 2]))


def _channels_last(x):
    return np.ascontiguousarray(x.astype(np.float32).transpose(0, 2, 3, 1))
