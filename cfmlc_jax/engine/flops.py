"""The floating-point operations of a traced function: those of its matrix products and convolutions."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core


def count(jaxpr: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of one call, over all devices.

    A multiplication and its addition are two. Products with the zeros of padding and of dilation are not counted. The
    body of a `scan` counts once for each of its trips, that of a `while_loop` of unknown length once, and of the
    branches of a `cond` the most expensive one. What rematerialisation computes again counts again; what no output depends
    on does not count, because compilers leave it out.

    Args:
        jaxpr: of `jax.jit(...).trace(...).jaxpr` or `jax.make_jaxpr`.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    needed, flops = _variables(jaxpr.outvars), 0
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            needed |= _variables(equation.invars)
            flops += _of_equation(equation)
    return flops


def _variables(atoms) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def _of_equation(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "matrix_product":
        return _of_layer_product(equation)
    inner = [count(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner(params) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, kinds):
                yield each


def _of_product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _of_layer_product(equation) -> int:
    """Of `models.layers.matrix_products`: x·kernel, or its gradient by either, from the two others of x, kernel and y."""
    part = equation.params["part"]
    given = [name for name in ("x", "kernel", "y") if name != part]
    shapes = {name: var.aval.shape for name, var in zip(given, equation.invars)}
    shapes[part] = equation.outvars[0].aval.shape
    return 2 * math.prod(shapes["y"]) * math.prod(shapes["kernel"][:-1])


def _of_convolution(equation) -> int:
    params = equation.params
    axes = params["dimension_numbers"]
    (left, right), out = (var.aval.shape for var in equation.invars), equation.outvars[0].aval.shape
    taps = 1
    for place, axis in enumerate(axes.lhs_spec[2:]):
        taps *= _valid_taps(
            left[axis],
            right[axes.rhs_spec[2 + place]],
            out[axes.out_spec[2 + place]],
            stride=params["window_strides"][place],
            before=params["padding"][place][0],
            spread=params["lhs_dilation"][place],
            kernel_spread=params["rhs_dilation"][place],
        )
    # The kernel's input features are already those of one group; of several batch groups, each output has one.
    images, features = out[axes.out_spec[0]], out[axes.out_spec[1]]
    return 2 * images * features * right[axes.rhs_spec[1]] * taps


def _valid_taps(size, kernel, outputs, *, stride, before, spread, kernel_spread) -> int:
    """How many (output, kernel element) pairs along one axis meet an input, and neither padding nor a gap."""
    places = np.arange(outputs)[:, None] * stride + np.arange(kernel) * kernel_spread - before
    inside = (places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)
    return int(inside.sum())
