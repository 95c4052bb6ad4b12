"""Products of arrays with a kernel, with a faster implementation for CPUs, where XLA is slow.

`product` is y = x·kernel for the layers; a `Contraction` defines the meaning of the dot. It is linear in x and
in the kernel, so <y, x·kernel> is a number linear in each of x, kernel and y. Every derivative of a product is
the gradient of that number with respect to one of the three, computed from the other two. One JAX primitive
computes these three gradients, and its derivatives are the same primitive: forward and reverse mode work, to
any order. The implementation is chosen when a program is lowered, for the platform it is lowered for, which
need not be the platform that traces it. The precision (`jax.default_matmul_precision`) is that of the tracing, as
for JAX's own products.

On CPUs the rows of all images form one matrix (depthwise convolutions are no such products; see `Depthwise`). This saves a fifth or more of a ResNet-101's training step, for
two reasons:

- JAX's own rule for the kernel's gradient multiplies the transposed gradient by x and transposes the
  result; XLA:CPU then first writes the transposed gradient to memory, value by value.
- JAX's own rule under a map over images computes the kernel's gradient as one product per image and sums them.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# The three arrays of a product, in the order in which any two are the operands of the gradient by the third.
_PARTS = ("x", "kernel", "y")


class Contraction(Protocol):
    """The meaning of x·kernel in `product`. Hashable: equal contractions share compiled programs."""

    def plain(self, x, kernel):
        """x·kernel computed by JAX's own operations."""

    def on_cpus(self, part, shape, arrays):
        """The gradient with respect to one part, of this shape, from the other two arrays by name, for CPUs."""


class Rows(NamedTuple):
    """x @ kernel: [..., c], [c, d] -> [..., d]."""

    def gather(self, x):
        """Return x unchanged."""
        return x

    def plain(self, x, kernel):
        """Return x @ kernel."""
        return x @ kernel

    def on_cpus(self, part, shape, arrays):
        """The gradient with respect to one part."""
        return _as_matrices(self.gather, part, shape, arrays)


class Windows(NamedTuple):
    """A convolution: [..., h, w, c], [side, side, c, d] -> [..., h/stride, w/stride, d]."""

    side: int
    stride: int
    padding: int

    def gather(self, x):
        """The pixels under the kernel at every place, row by row: -> [..., h/stride, w/stride, side²·c]."""
        padding = [(0, 0)] * (x.ndim - 3) + [(self.padding, self.padding)] * 2 + [(0, 0)]
        x = jnp.pad(x, padding)
        # Length of the range of the windows' upper left corners, along each axis.
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

    def on_cpus(self, part, shape, arrays):
        """The gradient with respect to one part."""
        return _as_matrices(self.gather, part, shape, arrays)


class Tiles(NamedTuple):
    """A convolution by windows that tile the map: [..., h, w, c], [side, side, c, d] -> [..., h/side, w/side, d]."""

    side: int

    def gather(self, x):
        """The pixels of every tile, row by row: -> [..., h/side, w/side, side²·c]."""
        *leading, h, w, c = x.shape
        side, outer = self.side, len(leading)
        x = x.reshape(*leading, h // side, side, w // side, side, c)
        return x.swapaxes(outer + 1, outer + 2).reshape(*leading, h // side, w // side, side * side * c)

    def plain(self, x, kernel):
        """XLA's convolution."""
        return Windows(self.side, self.side, 0).plain(x, kernel)

    def on_cpus(self, part, shape, arrays):
        """The gradient with respect to one part."""
        return _as_matrices(self.gather, part, shape, arrays)


class Depthwise(NamedTuple):
    """A convolution of each channel by itself at stride 1: [..., h, w, c], [side, side, 1, c] -> [..., h, w, c].

    The side is odd, and zeros are padded so that the map keeps its size. XLA:CPU's convolution takes up to a hundred
    times as long as what `on_cpus` does.
    """

    side: int

    def plain(self, x, kernel):
        """XLA's convolution in groups of one channel."""
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-3:]),
            kernel,
            window_strides=(1, 1),
            padding=[(self.side // 2, self.side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
        return y.reshape(x.shape)

    def on_cpus(self, part, shape, arrays):
        """Of x and y a sum of shifted maps, which XLA fuses into one loop; of the kernel a sum of pixels for each tap.

        Sums are at least float32, as in a convolution.
        """
        if part == "kernel":
            return self._kernel(arrays["x"], arrays["y"])
        if part == "y":
            return self._sum(arrays["x"], arrays["kernel"])
        return self._sum(arrays["y"], arrays["kernel"][::-1, ::-1])

    def _sum(self, x, kernel):
        h, w, c = x.shape[-3:]
        padded, wide = self._padded(x), jnp.promote_types(x.dtype, jnp.float32)
        taps = (
            padded[..., i : i + h, j : j + w, :]
            * kernel[i, j].astype(wide).reshape((1,) * (x.ndim - 1) + (c,))
            for i in range(self.side)
            for j in range(self.side)
        )
        return functools.reduce(jnp.add, taps).astype(x.dtype)

    def _kernel(self, x, y):
        padded = self._padded(x).reshape(
            -1, *(size + 2 * (self.side // 2) for size in x.shape[-3:-1]), x.shape[-1]
        )
        y = y.reshape(-1, *y.shape[-3:]).astype(padded.dtype)

        # In a loop, because all taps at once take ten times as long to compile, and do not run faster.
        def tap(place):
            corner = (0, place // self.side, place % self.side, 0)
            return (jax.lax.dynamic_slice(padded, corner, y.shape) * y).sum(axis=(0, 1, 2))

        taps = jax.lax.map(tap, jnp.arange(self.side**2))
        return taps.reshape(self.side, self.side, 1, -1).astype(x.dtype)

    def _padded(self, x):
        margin = (self.side // 2, self.side // 2)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.pad(wide, [(0, 0)] * (x.ndim - 3) + [margin, margin, (0, 0)])


def product(contraction: Contraction, x, kernel):
    """x·kernel, of arrays of the same type; differentiable in both modes, to any order."""
    y = jax.eval_shape(contraction.plain, x, kernel)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # defined at run time
    return _bind(contraction, "y", y.shape, precision, {"x": x, "kernel": kernel})


_gradient_p = Primitive("matrix_product")


def _bind(contraction, part, shape, precision, operands):
    """The gradient with respect to one part, of this shape, from the other two, given by name."""
    first, second = (operands[name] for name in _others(part))
    return _gradient_p.bind(
        first, second, contraction=contraction, part=part, shape=tuple(shape), precision=precision
    )


def _others(part):
    return tuple(name for name in _PARTS if name != part)


def _in_precision(compute):
    """The computation with its products in the precision that it is given."""

    def computed(*operands, precision, **params):
        with jax.default_matmul_precision(precision):
            return compute(*operands, **params)

    return computed


@_in_precision
def _on_cpus(*operands, contraction, part, shape):
    """The gradient with respect to one part, as CPUs compute it fast."""
    return contraction.on_cpus(part, shape, dict(zip(_others(part), operands)))


def _as_matrices(gather, part, shape, arrays):
    """The gradient with respect to one part, as one product of matrices.

    Args:
        gather: the inputs of each place of y: x -> [..., n], so that y is gather(x) @ kernel as [n, d].
        part: "x", "kernel" or "y".
        shape: of that part.
        arrays: the other two, by name.
    """
    if part == "kernel":
        gathered = gather(arrays["x"])
        rows = gathered.reshape(-1, gathered.shape[-1])
        y = arrays["y"].reshape(-1, shape[-1])
        return jax.lax.dot_general(rows, y, (((0,), (0,)), ((), ()))).reshape(shape)

    def multiply(x):
        gathered, kernel = gather(x), arrays["kernel"]
        rows = gathered.reshape(-1, gathered.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
        return rows.reshape(*gathered.shape[:-1], kernel.shape[-1])

    if part == "y":
        return multiply(arrays["x"])
    return _transposed(multiply, shape, arrays["y"])


@_in_precision
def _elsewhere(*operands, contraction, part, shape):
    """The gradient with respect to one part, by JAX's own operations."""
    arrays = dict(zip(_others(part), operands))
    if part == "y":
        return contraction.plain(**arrays)
    y = arrays.pop("y")
    return _transposed(lambda array: contraction.plain(**arrays, **{part: array}), shape, y)


def _transposed(linear, shape, y):
    """The transpose of a linear map, applied to y; the map takes arrays of this shape."""
    (result,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return result


mlir.register_lowering(_gradient_p, mlir.lower_fun(_elsewhere, multiple_results=False))
mlir.register_lowering(_gradient_p, mlir.lower_fun(_on_cpus, multiple_results=False), platform="cpu")


@_gradient_p.def_abstract_eval
def _abstract(first, second, *, contraction, part, shape, precision):
    if first.dtype != second.dtype:
        raise TypeError(f"a product of {first.dtype} and {second.dtype}; both must have the same type")
    return jax.core.ShapedArray(shape, first.dtype)


@functools.partial(jax.jit, static_argnames=("contraction", "part", "shape", "precision"))
def _compiled(*operands, **params):
    return _gradient_p.bind(*operands, **params)


@_gradient_p.def_impl
def _outside_of_programs(*operands, **params):
    with jax.disable_jit(False):  # with jit disabled this function would call itself
        return _compiled(*operands, **params)


def _transpose(place, cotangent, *operands, contraction, part, shape, precision):
    """The gradient of the operand at this place, from the other operand and the cotangent of the result."""
    names = _others(part)
    known = {names[1 - place]: operands[1 - place], part: cotangent}
    return _bind(contraction, names[place], operands[place].aval.shape, precision, known)


ad.defbilinear(_gradient_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _map(operands, axes, *, contraction, part, shape, precision):
    """Batching rule: x and y get one more leading axis; a mapped kernel gives a separate product per element."""
    mapped = dict(zip(_others(part), axes))
    if part == "kernel" or mapped["kernel"] is not None:
        gradient = functools.partial(
            _on_cpus, contraction=contraction, part=part, shape=shape, precision=precision
        )
        return jax.vmap(gradient, axes)(*operands), 0
    arrays = dict(zip(mapped, operands))
    (name,) = (name for name in mapped if name != "kernel")
    arrays[name] = jnp.moveaxis(arrays[name], mapped[name], 0)
    return _bind(contraction, part, (arrays[name].shape[0], *shape), precision, arrays), 0


batching.primitive_batchers[_gradient_p] = _map
