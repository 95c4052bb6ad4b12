"""Frozen parameters, chosen by regular expressions that match whole paths, such as "backbone/conv1/kernel"."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from cfmlc_jax.errors import InputError


def trainable_mask(params, frozen: Sequence[str]) -> Any:
    """Mask of the trained parameters: a tree of booleans like `params`.

    Raises:
        InputError: no parameter matches one of the expressions.
    """
    paths = [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in frozen:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise InputError(
                f"no parameter matches {pattern!r}; frozen parameters are given as regular expressions of whole "
                f"paths such as {paths[0]!r}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: not any(re.fullmatch(pattern, _path(keys)) for pattern in frozen), params
    )


def stop_frozen_gradients(params, frozen: Sequence[str]) -> Any:
    """The same parameters, with the gradients of the frozen ones stopped.

    The backward pass then also skips the layers before the first trained one.

    Raises:
        InputError: as `trainable_mask`.
    """
    return jax.tree.map(
        lambda leaf, trained: leaf if trained else jax.lax.stop_gradient(leaf),
        params,
        trainable_mask(params, frozen),
    )


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
