"""How each operation of JAX that our models use is written in ONNX: `RULES`, by the name of the primitive.

A rule gets the graph, the equation and the values of its inputs, and returns the values of its results. Operators are
those of opset 18.
"""

import functools
import string
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.export.onnx_graph import Graph, Rule, Value, constant

# Types of ONNX by NumPy's names, as numbers of TensorProto.
_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
# To the beginning of an axis, whatever its size.
_BEGINNING = np.iinfo(np.int64).min


def _elementwise(operator: str, graph: Graph, equation, inputs) -> list[Value]:
    """An operator of the same meaning, whose operands ONNX broadcasts."""
    return [graph.add(operator, inputs, _common(inputs))]


def _common(inputs: Sequence[Value]) -> tuple[Any, ...]:
    """The shape of values that are broadcast together."""
    rank = max(len(value.shape) for value in inputs)
    shape: list[Any] = [1] * rank
    for value in inputs:
        for place, size in enumerate(value.shape, rank - len(value.shape)):
            if shape[place] == 1:
                shape[place] = size
    return tuple(shape)


def _full(graph: Graph, equation, inputs: Sequence[Value]) -> list[Value]:
    """The inputs with the shapes that JAX gives them."""
    return [graph.full(value, atom.aval.shape) for value, atom in zip(inputs, equation.invars, strict=True)]


def _shape(equation) -> tuple[Any, ...]:
    return equation.outvars[0].aval.shape


def _like(value: float, equation) -> Value:
    """A number of the type of the result."""
    return constant(np.asarray(value, equation.outvars[0].aval.dtype))


def _same(graph, equation, inputs):
    return inputs


def _not_equal(graph, equation, inputs):
    equal = graph.add("Equal", inputs, _common(inputs))
    return [graph.add("Not", [equal], equal.shape)]


def _rsqrt(graph, equation, inputs):
    root = graph.add("Sqrt", inputs, inputs[0].shape)
    return [graph.add("Reciprocal", [root], root.shape)]


def _square(graph, equation, inputs):
    return [graph.add("Mul", [inputs[0], inputs[0]], inputs[0].shape)]


def _integer_pow(graph, equation, inputs):
    power = equation.params["y"]
    if power == 2:
        return _square(graph, equation, inputs)
    return [graph.add("Pow", [inputs[0], _like(power, equation)], inputs[0].shape)]


def _erfc(graph, equation, inputs):
    erf = graph.add("Erf", inputs, inputs[0].shape)
    return [graph.add("Sub", [_like(1, equation), erf], erf.shape)]


def _log1p(graph, equation, inputs):
    # log(1 + x) loses the digits of a small x; log(u)·x/(u − 1) with u = 1 + x as it is rounded does not (Kahan).
    (x,), one = inputs, _like(1, equation)
    u = graph.add("Add", [x, one], x.shape)
    unchanged = graph.add("Equal", [u, one], x.shape)
    rest = graph.add("Where", [unchanged, one, graph.add("Sub", [u, one], x.shape)], x.shape)
    quotient = graph.add(
        "Div", [graph.add("Mul", [graph.add("Log", [u], x.shape), x], x.shape), rest], x.shape
    )
    return [graph.add("Where", [unchanged, x, quotient], x.shape)]


def _expm1(graph, equation, inputs):
    # As in `_log1p`: (u − 1)·x/log(u) with u = exp(x) as it is rounded; −1 where u is 0.
    (x,), one = inputs, _like(1, equation)
    u = graph.add("Exp", [x], x.shape)
    rest = graph.add("Sub", [u, one], x.shape)
    unchanged = graph.add("Equal", [u, one], x.shape)
    far = graph.add("Equal", [rest, _like(-1, equation)], x.shape)
    logarithm = graph.add("Log", [graph.add("Where", [far, one, u], x.shape)], x.shape)
    divisor = graph.add("Where", [graph.add("Or", [unchanged, far], x.shape), one, logarithm], x.shape)
    quotient = graph.add("Div", [graph.add("Mul", [rest, x], x.shape), divisor], x.shape)
    quotient = graph.add("Where", [far, rest, quotient], x.shape)
    return [graph.add("Where", [unchanged, x, quotient], x.shape)]


def _is_finite(graph, equation, inputs):
    infinite, missing = (graph.add(operator, inputs, inputs[0].shape) for operator in ("IsInf", "IsNaN"))
    return [graph.add("Not", [graph.add("Or", [infinite, missing], infinite.shape)], infinite.shape)]


def _select(graph, equation, inputs):
    which, *cases = inputs
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise InputError(
            "this model chooses among more than two arrays, which is not written as ONNX; export it as .stablehlo"
        )
    return [graph.add("Where", [which, cases[1], cases[0]], _common(inputs))]


def _convert(graph, equation, inputs):
    to = equation.params["new_dtype"].name
    if to == equation.invars[0].aval.dtype.name:
        return inputs
    return [graph.add("Cast", inputs, inputs[0].shape, to=_TYPES[to])]


def _reshape(graph, equation, inputs):
    (x,) = _full(graph, equation, inputs)
    return [graph.reshape(x, _shape(equation))]


def _transpose(graph, equation, inputs):
    (x,) = _full(graph, equation, inputs)
    return [graph.transpose(x, equation.params["permutation"])]


def _broadcast(graph, equation, inputs):
    """Only the rank changes here; the sizes when they are needed."""
    (x,) = inputs
    shape: list[Any] = [1] * len(_shape(equation))
    for size, place in zip(x.shape, equation.params["broadcast_dimensions"], strict=True):
        shape[place] = size
    return [graph.reshape(x, shape)]


def _concatenate(graph, equation, inputs):
    inputs = _full(graph, equation, inputs)
    return [graph.add("Concat", inputs, _shape(equation), axis=equation.params["dimension"])]


def _stack(graph, equation, inputs):
    axis, shape = equation.params["axis"], _shape(equation)
    one = [1 if place == axis else size for place, size in enumerate(shape)]
    rows = [graph.reshape(x, one) for x in _full(graph, equation, inputs)]
    return [graph.add("Concat", rows, shape, axis=axis)]


def _split(graph, equation, inputs):
    (x,), axis, start = _full(graph, equation, inputs), equation.params["axis"], 0
    parts = []
    for size, variable in zip(equation.params["sizes"], equation.outvars, strict=True):
        parts.append(_sliced(graph, x, [(axis, start, start + size, 1)], variable.aval.shape))
        start += size
    return parts


def _sliced(graph, x, ranges, shape):
    """Slices of some axes: (axis, start, end, step) each."""
    if not ranges:
        return x
    axes, starts, ends, steps = zip(*ranges)
    return graph.add("Slice", [x, *map(graph.integers, (starts, ends, axes, steps))], shape)


def _slice(graph, equation, inputs):
    (x,), params = _full(graph, equation, inputs), equation.params
    steps = params["strides"] or (1,) * len(x.shape)
    ranges = [
        (axis, start, end, step)
        for axis, (start, end, step) in enumerate(
            zip(params["start_indices"], params["limit_indices"], steps)
        )
        if not (start == 0 and end == x.shape[axis] and step == 1)
    ]
    return [_sliced(graph, x, ranges, _shape(equation))]


def _gather(graph, equation, inputs):
    """A window, or places along one axis, known beforehand: how JAX writes slices of arrays with a free size."""
    (x, where), params = _full(graph, equation, inputs), equation.params
    numbers, sizes, shape = params["dimension_numbers"], params["slice_sizes"], _shape(equation)
    axes = numbers.start_index_map
    if where.constant is not None and where.constant.ndim == 1:
        ranges = [
            (axis, start, start + sizes[axis], 1)
            for axis, start in zip(axes, where.constant.tolist(), strict=True)
            if not (start == 0 and sizes[axis] == x.shape[axis])
        ]
        return [graph.reshape(_sliced(graph, x, ranges, sizes), shape)]
    along_one = (
        axes == numbers.collapsed_slice_dims
        and len(where.shape) == 2
        and numbers.offset_dims == tuple(place for place in range(len(shape)) if place not in axes)
    )
    if where.constant is None or not along_one:
        raise InputError(
            "this model looks values up by others, which is not written as ONNX; export it as .stablehlo"
        )
    places = graph.integers(where.constant[:, 0])
    return [graph.add("Gather", [x, places], shape, axis=axes[0])]


def _reverse(graph, equation, inputs):
    (x,) = _full(graph, equation, inputs)
    ranges = [(axis, -1, _BEGINNING, -1) for axis in equation.params["dimensions"]]
    return [_sliced(graph, x, ranges, _shape(equation))]


def _pad(graph, equation, inputs):
    x, filling = _full(graph, equation, inputs)
    padding = equation.params["padding_config"]
    if any(between or low < 0 or high < 0 for low, high, between in padding):
        raise InputError(
            "this model pads between pixels, which is not written as ONNX; export it as .stablehlo"
        )
    widths = [low for low, _, _ in padding] + [high for _, high, _ in padding]
    return [graph.add("Pad", [x, graph.integers(widths), filling], _shape(equation))]


def _reduce(operator, graph, equation, inputs):
    (x,) = _full(graph, equation, inputs)
    axes = graph.integers(equation.params["axes"])
    return [graph.add(operator, [x, axes], _shape(equation), keepdims=0)]


def _argmax(graph, equation, inputs):
    (x,), (axis,) = _full(graph, equation, inputs), equation.params["axes"]
    place = graph.add("ArgMax", [x], _shape(equation), axis=axis, keepdims=0)
    return [graph.add("Cast", [place], place.shape, to=_TYPES[equation.outvars[0].aval.dtype.name])]


def _clamp(graph, equation, inputs):
    least, x, most = inputs
    raised = graph.add("Max", [x, least], _common([x, least]))
    return [graph.add("Min", [raised, most], _common([raised, most]))]


def _dot(graph, equation, inputs):
    """A product of matrices where the axes allow it, else an `Einsum`."""
    left, right = _full(graph, equation, inputs)
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_free = _others(left, left_sums, left_batch)
    right_free = _others(right, right_sums, right_batch)
    if len(left_sums) == len(right_free) == 1 and not left_batch and len(right.shape) == 2:
        left = graph.transpose(left, [*left_free, *left_sums])
        right = graph.transpose(right, [*right_sums, *right_free])
        return [graph.add("MatMul", [left, right], _shape(equation))]
    if len(left_sums) == len(left_free) == len(right_free) == 1:
        left = graph.transpose(left, [*left_batch, *left_free, *left_sums])
        right = graph.transpose(right, [*right_batch, *right_sums, *right_free])
        return [graph.add("MatMul", [left, right], _shape(equation))]
    letters = iter(string.ascii_lowercase)
    of_left = {axis: next(letters) for axis in range(len(left.shape))}
    pairs = zip([*right_sums, *right_batch], [*left_sums, *left_batch])
    of_right = {axis: of_left[other] for axis, other in pairs}
    of_right |= {axis: next(letters) for axis in right_free}
    result = "".join(
        [*(of_left[axis] for axis in [*left_batch, *left_free]), *(of_right[axis] for axis in right_free)]
    )
    terms = ["".join(names[axis] for axis in range(len(names))) for names in (of_left, of_right)]
    return [graph.add("Einsum", [left, right], _shape(equation), equation=f"{','.join(terms)}->{result}")]


def _others(value, *taken):
    return [axis for axis in range(len(value.shape)) if not any(axis in axes for axes in taken)]


def _convolution(graph, equation, inputs):
    (x, kernel), params = _full(graph, equation, inputs), equation.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(each != 1 for each in params["lhs_dilation"]):
        raise InputError(
            "this model has a transposed convolution, which is not written as ONNX; export it as .stablehlo"
        )
    x, kernel = graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)
    pads = [low for low, _ in params["padding"]] + [high for _, high in params["padding"]]
    shape = _shape(equation)
    y = graph.add(
        "Conv",
        [x, kernel],
        [shape[axis] for axis in numbers.out_spec],
        strides=list(params["window_strides"]),
        pads=pads,
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return [graph.transpose(y, np.argsort(numbers.out_spec).tolist())]


def _matrix_product(graph, equation, inputs):
    """The layers' own primitive, by JAX's operations."""
    assert equation.params["part"] == "y", "a gradient in prediction"
    plain = equation.params["contraction"].plain
    shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in equation.invars]
    closed = jax.jit(plain).trace(*shapes).jaxpr
    return graph.run(closed.jaxpr, closed.consts, inputs)


_ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "abs": "Abs",
    "floor": "Floor", "sign": "Sign", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
    "ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
RULES: dict[str, Rule] = {
    **{name: functools.partial(_elementwise, operator) for name, operator in _ELEMENTWISE.items()},
    **{name: functools.partial(_reduce, operator) for name, operator in _REDUCTIONS.items()},
    **{name: _same for name in ("copy", "stop_gradient", "optimization_barrier")},
    "ne": _not_equal,
    "rsqrt": _rsqrt,
    "square": _square,
    "integer_pow": _integer_pow,
    "erfc": _erfc,
    "log1p": _log1p,
    "expm1": _expm1,
    "is_finite": _is_finite,
    "select_n": _select,
    "convert_element_type": _convert,
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "rev": _reverse,
    "pad": _pad,
    "argmax": _argmax,
    "clamp": _clamp,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "matrix_product": _matrix_product,
}
