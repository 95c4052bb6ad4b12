"""Products of arrays with a kernel that XLA's CPU compiler is slow at, written anew for CPUs alone.

`product` is y = x·kernel for the layers; what the dot means, a `Contraction` says. Both are linear,
so <y, x·kernel> is a number linear in each of x, kernel and y, and every derivative of a product is
the gradient of that number by one of the three: y by x and kernel, x by kernel and y, the kernel by
x and y. One JAX primitive computes these three gradients, and differentiates into itself: forward
and reverse mode work, to any order. How each is computed is chosen when a program is lowered, by the
platform it is lowered for, which need not be the one that traces it.

On CPUs all images' rows are one matrix. Two things matter there, by a fifth of a ResNet-101's training
step and more:

- JAX's own rule for the kernel's gradient multiplies the transposed gradient by x and transposes the
  result; XLA:CPU then writes the transposed gradient to memory first, value by value.
- Mapped over images, the kernel's gradient is by JAX's own rule a product per image and then their sum.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# What a product is made of, in the order in which two of them are the operands of the third's gradient.
_PARTS = ("x", "kernel", "y")


class Contraction(Protocol):
    """What `product` means. Hashable: equal ones share compiled programs."""

    def gather(self, x):
        """The values that each place of y is of: x -> [..., n], so that y is gathered @ rows [n, d]."""

    def plain(self, x, kernel):
        """x·kernel by JAX's own operations."""


class Rows(NamedTuple):
    """x @ kernel: [..., c], [c, d] -> [..., d]."""

    def gather(self, x):
        """X itself."""
        return x

    def plain(self, x, kernel):
        """X @ kernel."""
        return x @ kernel


class Windows(NamedTuple):
    """A convolution: [..., h, w, c], [side, side, c, d] -> [..., h/stride, w/stride, d]."""

    side: int
    stride: int
    padding: int

    def gather(self, x):
        """The pixels under the kernel at every place: -> [..., h/stride, w/stride, side²·c], row by row."""
        padding = [(0, 0)] * (x.ndim - 3) + [(self.padding, self.padding)] * 2 + [(0, 0)]
        x = jnp.pad(x, padding)
        # Of the corners of all windows, the last one's is the last.
        height, width = ((pixels - self.side) // self.stride * self.stride + 1 for pixels in x.shape[-3:-1])
        corners = [(i, j) for i in range(self.side) for j in range(self.side)]
        shifted = [x[..., i : i + height : self.stride, j : j + width : self.stride, :] for i, j in corners]
        return jnp.concatenate(shifted, axis=-1)

    def plain(self, x, kernel):
        """XLA's convolution."""
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-3:]),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=[(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(*x.shape[:-3], *y.shape[1:])


def product(contraction: Contraction, x, kernel):
    """The contraction of x and a kernel of the same type; differentiable in both modes, to any order."""
    y = jax.eval_shape(contraction.plain, x, kernel)
    return _bind(contraction, "y", y.shape, {"x": x, "kernel": kernel})


_gradient_p = Primitive("matrix_product")


def _bind(contraction, part, shape, operands):
    """The gradient by one part, of this shape, from the other two by name."""
    first, second = (operands[name] for name in _others(part))
    return _gradient_p.bind(first, second, contraction=contraction, part=part, shape=tuple(shape))


def _others(part):
    return tuple(name for name in _PARTS if name != part)


def _on_cpus(*operands, contraction, part, shape):
    """The gradient by one part as one product of matrices."""
    arrays = dict(zip(_others(part), operands))
    if part == "kernel":
        gathered = contraction.gather(arrays["x"])
        rows = gathered.reshape(-1, gathered.shape[-1])
        y = arrays["y"].reshape(-1, shape[-1])
        return jax.lax.dot_general(rows, y, (((0,), (0,)), ((), ()))).reshape(shape)

    def multiply(x):
        gathered, kernel = contraction.gather(x), arrays["kernel"]
        rows = gathered.reshape(-1, gathered.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
        return rows.reshape(*gathered.shape[:-1], kernel.shape[-1])

    if part == "y":
        return multiply(arrays["x"])
    return _transposed(multiply, shape, arrays["y"])


def _elsewhere(*operands, contraction, part, shape):
    """The gradient by one part by JAX's own operations."""
    arrays = dict(zip(_others(part), operands))
    if part == "y":
        return contraction.plain(**arrays)
    y = arrays.pop("y")
    return _transposed(lambda array: contraction.plain(**arrays, **{part: array}), shape, y)


def _transposed(linear, shape, y):
    """The transpose of a linear map from arrays of this shape, at y."""
    (result,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return result


mlir.register_lowering(_gradient_p, mlir.lower_fun(_elsewhere, multiple_results=False))
mlir.register_lowering(_gradient_p, mlir.lower_fun(_on_cpus, multiple_results=False), platform="cpu")


@_gradient_p.def_abstract_eval
def _abstract(first, second, *, contraction, part, shape):
    if first.dtype != second.dtype:
        raise TypeError(f"a product of {first.dtype} and {second.dtype}; both must be of one type")
    return jax.core.ShapedArray(shape, first.dtype)


@functools.partial(jax.jit, static_argnames=("contraction", "part", "shape"))
def _compiled(*operands, contraction, part, shape):
    return _gradient_p.bind(*operands, contraction=contraction, part=part, shape=shape)


@_gradient_p.def_impl
def _outside_of_programs(*operands, **params):
    with jax.disable_jit(False):  # with jit disabled it would call itself
        return _compiled(*operands, **params)


def _transpose(place, cotangent, *operands, contraction, part, shape):
    """The operand at this place: its gradient, from the other and the cotangent of the result."""
    names = _others(part)
    known = {names[1 - place]: operands[1 - place], part: cotangent}
    return _bind(contraction, names[place], operands[place].aval.shape, known)


ad.defbilinear(_gradient_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _map(operands, axes, *, contraction, part, shape):
    """Mapped, x and y have one more leading axis. What the map gives each a kernel of is many products."""
    mapped = dict(zip(_others(part), axes))
    if part == "kernel" or mapped["kernel"] is not None:
        gradient = functools.partial(_on_cpus, contraction=contraction, part=part, shape=shape)
        return jax.vmap(gradient, axes)(*operands), 0
    arrays = dict(zip(mapped, operands))
    (name,) = (name for name in mapped if name != "kernel")
    arrays[name] = jnp.moveaxis(arrays[name], mapped[name], 0)
    return _bind(contraction, part, (arrays[name].shape[0], *shape), arrays), 0


batching.primitive_batchers[_gradient_p] = _map
