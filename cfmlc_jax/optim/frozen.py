"""Parameters that are not trained, by regular expressions of whole paths as "backbone/conv1/kernel"."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from cfmlc_jax.errors import InputError


def trainable(params, frozen: Sequence[str]) -> Any:
    """Whether each parameter is trained: a tree of booleans like `params`.

    Raises:
        InputError: an expression that no parameter matches.
    """
    paths = [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in frozen:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise InputError(
                f"no parameter matches {pattern!r}, which is to be frozen; they are called such as {paths[0]!r}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: not any(re.fullmatch(pattern, _path(keys)) for pattern in frozen), params
    )


def hold(params, frozen: Sequence[str]) -> Any:
    """The same parameters, of which the frozen ones have no gradient.

    Nor has the backward pass any work for layers before the first that is trained.

    Raises:
        InputError: as `trainable`.
    """
    return jax.tree.map(
        lambda leaf, trained: leaf if trained else jax.lax.stop_gradient(leaf),
        params,
        trainable(params, frozen),
    )


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
