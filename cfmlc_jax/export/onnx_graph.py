"""A traced function of JAX as an ONNX graph: the graph under construction, its values, and the walk over equations.

`onnx_rules` has one rule for each primitive of JAX that our models use. Equations of weights alone are computed here and
become constants. A primitive without a rule is an error that names it.

Broadcasting is lazy. JAX gives the operands of a sum the same shape; ONNX broadcasts them itself. So a value may keep
sizes of 1 where JAX has larger ones, and only rules that need its full shape expand it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core

from cfmlc_jax.errors import InputError

BATCH = "b"  # name of the free size
IMAGES = "images"  # name of the input
# A size of the batch, such as 5*b.
_OF_BATCH = re.compile(rf"(?:(\d+)\*)?{BATCH}")
Rule = Callable[["Graph", Any, list["Value"]], Sequence["Value"]]


@dataclass(frozen=True)
class Value:
    """A value of the graph.

    shape: its sizes in the graph, whole numbers or sizes of JAX that depend on the batch; 1 where it is to be broadcast.
    name: in the graph; empty for a constant.
    constant: its array; None if it depends on the images.
    """

    shape: tuple[Any, ...]
    name: str = ""
    constant: np.ndarray | None = None


def constant(array: Any) -> Value:
    """The value of an array that does not depend on the images."""
    array = np.asarray(array)
    return Value(array.shape, constant=array)


def is_free(size: Any) -> bool:
    """Whether a size depends on the batch."""
    return not isinstance(size, int | np.integer)


class Graph:
    """An ONNX graph under construction.

    Args:
        onnx: the package.
        rules: of the primitives, by name.

    Attributes:
        nodes: in order.
    """

    def __init__(self, onnx: Any, rules: dict[str, Rule]):
        self.nodes: list[Any] = []
        self._onnx, self._rules = onnx, rules
        self._arrays: dict[str, np.ndarray] = {}
        # Names by id; the arrays are kept, so that no other gets the same id.
        self._names: dict[int, str] = {}
        self._kept: list[np.ndarray] = []
        self._count = 0
        self._batch = ""

    @property
    def initializers(self) -> list[Any]:
        """The constants that nodes use."""
        used = {name for node in self.nodes for name in node.input}
        return [
            self._onnx.numpy_helper.from_array(array, name)
            for name, array in self._arrays.items()
            if name in used
        ]

    def add(
        self, operator: str, inputs: Sequence[str | Value], shape: Sequence[Any], **attributes: Any
    ) -> Value:
        """The value of a new node.

        Args:
            operator: of ONNX.
            inputs: names and values; an empty name is an input that is left out.
            shape: of the result.
            attributes: of the operator.
        """
        self._count += 1
        name = f"{operator.lower()}_{self._count}"
        names = [self.name(each) if isinstance(each, Value) else each for each in inputs]
        self.nodes.append(self._onnx.helper.make_node(operator, names, [name], name, **attributes))
        return Value(tuple(shape), name)

    def name(self, value: Value) -> str:
        """The name of a value; a constant is added to the graph at its first use."""
        if value.constant is None:
            return value.name
        array = value.constant
        if id(array) not in self._names:
            self._names[id(array)] = f"constant_{len(self._arrays)}"
            self._arrays[self._names[id(array)]] = np.ascontiguousarray(array).reshape(array.shape)
            self._kept.append(array)
        return self._names[id(array)]

    def integers(self, numbers: Sequence[int]) -> str:
        """The name of a constant of whole numbers."""
        return self.name(constant(np.asarray(numbers, np.int64)))

    def sizes(self, shape: Sequence[Any]) -> str:
        """The name of a shape, as the operators take it."""
        if not any(map(is_free, shape)):
            return self.integers(shape)
        parts = [self._size(size) if is_free(size) else self.integers([size]) for size in shape]
        return self.add("Concat", parts, [len(shape)], axis=0).name

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value, which has its full shape, in another shape."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.constant is not None:
            return constant(value.constant.reshape(shape))
        free = [place for place, size in enumerate(shape) if is_free(size)]
        if len(free) == 1 and 0 not in shape:
            to = self.integers([-1 if is_free(size) else size for size in shape])
        else:
            to = self.sizes(shape)
        return self.add("Reshape", [value, to], shape)

    def full(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value with all sizes that JAX gives it."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.constant is not None and not any(map(is_free, shape)):
            return constant(np.broadcast_to(value.constant, shape))
        # A size of 1 in the wanted shape keeps the value's own.
        wanted = [1 if own == size else size for own, size in zip(value.shape, shape, strict=True)]
        return self.add("Expand", [value, self.sizes(wanted)], shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        if list(order) == sorted(order):
            return value
        if value.constant is not None:
            return constant(value.constant.transpose(order))
        return self.add("Transpose", [value], [value.shape[axis] for axis in order], perm=list(order))

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """The results of a jaxpr, whose equations are added to the graph.

        Args:
            jaxpr: the function.
            constants: of its `constvars`.
            inputs: of its `invars`.

        Raises:
            InputError: a primitive has no rule.
        """
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(constant, constants), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval  # a number of Python's takes its type from here
                return constant(np.asarray(atom.val, aval.dtype))
            return known[atom]

        for equation in _needed(jaxpr):
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, inputs):
        inner = _function_in(equation)
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, inputs)
        shapes = [variable.aval.shape for variable in equation.outvars]
        fixed = not any(is_free(size) for shape in shapes for size in shape)
        if fixed and all(value.constant is not None for value in inputs):
            return self._computed(equation, inputs)
        rule = self._rules.get(equation.primitive.name)
        if rule is None:
            raise InputError(
                f"this model needs JAX's operation {equation.primitive.name!r}, which is not written as ONNX; export it "
                "as .stablehlo"
            )
        return rule(self, equation, inputs)

    def _computed(self, equation, inputs):
        """The results of an equation of constants."""
        arrays = [
            np.broadcast_to(value.constant, atom.aval.shape)
            for value, atom in zip(inputs, equation.invars, strict=True)
        ]
        results = equation.primitive.bind(*arrays, **equation.params)
        return [constant(each) for each in (results if equation.primitive.multiple_results else [results])]

    def _size(self, size) -> Value:
        """The value, int64 [1], of a size that depends on the batch."""
        match = _OF_BATCH.fullmatch(str(size))
        if match is None:
            raise InputError(
                f"this model has an axis of size {size}, which is not written as ONNX; export it as .stablehlo"
            )
        if not self._batch:
            every = self.add("Shape", [IMAGES], [4])
            self._batch = self.add("Gather", [every, self.integers([0])], [1]).name
        if match[1] is None:
            return Value((1,), self._batch)
        return self.add("Mul", [self._batch, self.integers([int(match[1])])], [1])


def _needed(jaxpr):
    """The equations on which the results depend."""
    wanted, equations = {id(atom) for atom in jaxpr.outvars}, []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in wanted for variable in equation.outvars):
            wanted |= {id(atom) for atom in equation.invars}
            equations.append(equation)
    return equations[::-1]


def _function_in(equation):
    """The function that an equation calls, as a closed jaxpr; None for an operation of its own."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if isinstance(inner, core.ClosedJaxpr):
            return inner
        if isinstance(inner, core.Jaxpr) and not inner.constvars:
            return core.ClosedJaxpr(inner, ())
    return None


def traced(function: Callable, size: int) -> tuple[Any, list[str]]:
    """The closed jaxpr of a function of images uint8 [b, size, size, 3], and the names of its results."""
    (b,) = jax.export.symbolic_shape(BATCH)
    trace = jax.jit(function).trace(jax.ShapeDtypeStruct((b, size, size, 3), np.uint8))
    return trace.jaxpr, list(trace.out_info)
