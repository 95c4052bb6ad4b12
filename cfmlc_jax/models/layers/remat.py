"""Rematerialisation: what the backward pass computes again, so that the forward pass need not store it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

NONE, BLOCKS, EVERYTHING = "none", "blocks", "everything"
# none: the results of all layers are stored. blocks: the inputs of blocks are stored, and each block is computed again
# for its gradient. everything: the inputs of stages are stored; for the gradient of a stage, its blocks' inputs are
# computed again, and then each block.
MODES = (NONE, BLOCKS, EVERYTHING)

_STATISTICS = "statistics"


def block(mode: str, run: Callable, module: nn.Module, *arrays: Any) -> Any:
    """The result of run(module, *arrays), one block: a few layers whose results are not stored unless mode is "none".

    Args:
        mode: one of `MODES`.
        run: of the module, of which it may also create submodules, and of arrays.
        module: a module in its parent's call, or the calling module itself.
        arrays: the inputs.
    """
    return run(module, *arrays) if mode == NONE else _recomputed(run)(module, *arrays)


def stage(mode: str, run: Callable, module: nn.Module, *arrays: Any) -> Any:
    """The result of run(module, *arrays), a sequence of blocks, whose inputs are not stored if mode is "everything"."""
    return _recomputed(run)(module, *arrays) if mode == EVERYTHING else run(module, *arrays)


def stored(statistics: Any) -> Any:
    """The statistics of a norm, marked as stored in any mode: to compute them again would take collectives too."""
    return checkpoint_name(statistics, _STATISTICS)


def _recomputed(run):
    return nn.remat(run, policy=jax.checkpoint_policies.save_only_these_names(_STATISTICS))
