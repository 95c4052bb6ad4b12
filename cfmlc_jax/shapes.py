"""Declared shapes of a function's arrays, checked at every call.

Under `jax.jit` the check runs while the function is traced, so compiled programs pay nothing.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable)


def shaped(specification: str) -> Callable[[Function], Function]:
    """Decorator that checks shapes: "b p k, b p k -> b k" declares the first two arguments and the result.

    A letter stands for the same size everywhere, a number for that size, "_" for one axis of any size, and
    "..." for any axes, the same everywhere. An argument declared "*" is not checked, nor is None. Several
    results are separated by commas; without an arrow the result is not checked. Arrays may be NumPy's,
    JAX's, traced, or nested lists.

    The decorated function raises ValueError if a shape does not fit; the message names the function, the
    argument and both shapes.
    """
    before, _, after = specification.partition("->")
    terms, results = _terms(before), _terms(after)

    def decorate(function: Function) -> Function:
        names = list(inspect.signature(function).parameters)[: len(terms)]

        @functools.wraps(function)
        def checked(*args, **kwargs):
            sizes: dict[str, object] = {}
            values = [*args[: len(names)], *(kwargs.get(name) for name in names[len(args) :])]
            for name, term, value in zip(names, terms, values):
                _check(function.__name__, name, term, value, sizes)
            result = function(*args, **kwargs)
            for term, value in zip(results, result if len(results) > 1 else [result]):
                _check(function.__name__, "result", term, value, sizes)
            return result

        return checked  # type: ignore[return-value]

    return decorate


def _terms(text: str) -> list[list[str]]:
    return [term.split() for term in text.split(",")] if text.strip() else []


def _check(function: str, name: str, term: list[str], value, sizes: dict[str, object]) -> None:
    if value is None or term == ["*"]:
        return
    shape = np.shape(value)
    known = dict(sizes)
    if not _fits(term, shape, sizes):
        beside = ", ".join(f"{axis} = {size}" for axis, size in known.items() if axis in term)
        raise ValueError(
            f"{function}: {name} has shape {shape}, not [{', '.join(term)}]{' with ' * bool(beside)}{beside}"
        )


def _fits(term: list[str], shape: tuple, sizes: dict[str, object]) -> bool:
    """Whether a shape fits a term and the sizes known so far; sizes of new letters are added to `sizes`."""
    if "..." in term:
        rest = len(shape) - (len(term) - 1)
        if rest < 0:
            return False
        place = term.index("...")
        if sizes.setdefault("...", shape[place : place + rest]) != shape[place : place + rest]:
            return False
        term, shape = term[:place] + term[place + 1 :], shape[:place] + shape[place + rest :]
    if len(term) != len(shape):
        return False
    return all(
        axis == "_" or (size == int(axis) if axis.isdigit() else sizes.setdefault(axis, size) == size)
        for axis, size in zip(term, shape)
    )
