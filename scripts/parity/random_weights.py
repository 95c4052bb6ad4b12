"""Random weights for the reference's models, chosen so that logits depend on the image."""

import zlib

import numpy as np
import torch
from torch import nn

from scripts.parity.reference import DISPENSABLE
from scripts.parity.stand_ins import InPlaceABN


def fill(model: nn.Module, *, seed: int) -> dict[str, np.ndarray]:
    """Random float32 weights for every entry of a model, by key.

    x are normal numbers from a generator seeded by `seed` and the key. Scales of norms and running variances are
    1 + 0.1·|x| (half of the in-place norms' weights are negative, which must make no difference); biases and
    running means are 0.1·x, queries 0.5·x, and all other entries x / √inputs. Convolutions are multiplied by √3,
    and the last norm of every residual branch by 1/5, so that maps neither vanish nor explode over a hundred
    layers.
    """
    entries = {key: tensor for key, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    weights = {
        key: _random_entry(key, tuple(tensor.shape), np.random.default_rng([seed, zlib.crc32(key.encode())]))
        for key, tensor in entries.items()
        if not key.endswith(DISPENSABLE)
    }
    for name, module in model.named_modules():
        if isinstance(module, InPlaceABN):
            weights[f"{name}.weight"][1::2] *= -1
        if hasattr(module, "downsample"):
            weights[f"{name}.{_last_norm(module)}.weight"] *= np.float32(0.2)
    return weights


def _random_entry(key, shape, generator):
    x = generator.standard_normal(shape, np.float32)
    leaf = key.rpartition(".")[2]
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * np.abs(x)
    if leaf in ("running_mean", "b") or leaf.endswith("bias"):
        return np.float32(0.1) * x
    if "query_embed" in key:
        return np.float32(0.5) * x
    inputs = shape[2] if leaf == "W" else int(np.prod(shape[1:]))
    return x * np.float32(((3 if len(shape) == 4 else 1) / inputs) ** 0.5)


def _last_norm(block):
    last = "3" if hasattr(block, "conv3") else "2"
    return f"bn{last}" if hasattr(block, "bn1") else f"conv{last}.1"
