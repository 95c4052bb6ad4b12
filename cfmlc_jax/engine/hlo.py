"""Reads the text of a compiled program (HLO): its collectives, its loops, the bytes that its instructions move."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Collectives by the names of HLO. Asynchronous ones are a pair of instructions, -start and -done.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that move no bytes themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
    *("while", "conditional", "call", "async-start", "async-done", "async-update"),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Collective:
    """How often a kind of collective is executed in one call of a program, and how many bytes it exchanges.

    bytes: of the whole arrays on one device: the one that is reduced, the one that was gathered, the one before it is
        scattered.
    """

    count: int
    bytes: int


class Instruction(NamedTuple):
    """One line of a computation.

    shape: the text of its result's shape.
    operands: names of instructions of the same computation.
    called: names of the computations that it executes.
    trips: how often it executes them; 1 for a loop of unknown length.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    trips: int


class Program:
    """A compiled program's computations, parsed from its text.

    Args:
        text: of `jax.stages.Compiled.as_text`.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        for name, is_entry, lines in _computations(text):
            self._computations[name] = list(_instructions(lines))
            self._entry = name if is_entry else self._entry

    def collectives(self) -> dict[str, Collective]:
        """Every kind of collective that one call executes, by name; those in a loop count once for each trip."""
        totals = self._total(_collectives, into_fusions=True)
        return {
            kind: Collective(totals[kind, "count"], totals[kind, "bytes"])
            for kind in COLLECTIVES
            if totals[kind, "count"]
        }

    def repeated_bytes(self) -> float:
        """Bytes moved by one call, divided by the bytes moved if the body of every loop were executed once.

        XLA's own count of bytes is the latter. Both are sums over instructions of the sizes of operands and results.
        """
        once = self._total(_moved, into_fusions=False, loops_once=True)["bytes"]
        return self._total(_moved, into_fusions=False)["bytes"] / once if once else 1.0

    def _total(
        self,
        measure: Callable[[Instruction, dict[str, str]], Counter],
        *,
        into_fusions: bool,
        loops_once=False,
    ) -> Counter:
        """The sum of a measure of all executed instructions, each as often as it is executed."""
        totals: dict[str, Counter] = {}

        def total_of(name):
            if name not in totals:
                instructions = self._computations.get(name, [])
                shapes = {each.name: each.shape for each in instructions}
                total: Counter = Counter()
                for each in instructions:
                    total.update(measure(each, shapes))
                    if each.opcode != "fusion" or into_fusions:
                        trips = 1 if loops_once else each.trips
                        for called in each.called:
                            total.update({key: trips * value for key, value in total_of(called).items()})
                totals[name] = total
            return totals[name]

        return total_of(self._entry)


def shape_bytes(shape: str) -> int:
    """The bytes of an array or of a tuple of arrays, from the text of its shape such as "(f32[8,4]{1,0}, s32[])"."""
    return sum(
        math.ceil(_width(dtype) * math.prod(int(side.lstrip("<=")) for side in sides.split(",") if side))
        for dtype, sides in _ARRAY.findall(shape)
    )


def _width(dtype):
    """Bytes of a number; 0 for a token."""
    if dtype == "pred":
        return 1
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0


def _computations(text) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is the entry, lines) of each computation."""
    name, is_entry = "", False
    lines: list[str] = []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start and not line.startswith("HloModule"):
            name, is_entry, lines = start[2], bool(start[1]), []
        elif line.startswith("}") and name:
            yield name, is_entry, lines
            name = ""
        elif name:
            lines.append(line)


def _instructions(lines) -> Iterator[Instruction]:
    for line in lines:
        parts = _INSTRUCTION.match(line)
        if not parts:
            continue
        shape, rest = _split_shape(parts[2])
        opcode = _OPCODE.match(rest)
        if not opcode:
            continue
        operands, attributes = _split_operands(rest[opcode.end() :])
        trips = _TRIPS.search(attributes)
        # Quoted text, such as the names of source lines, may look like anything.
        called = _CALLED.findall(_QUOTED.sub('""', attributes))
        yield Instruction(
            name=parts[1],
            opcode=opcode[1],
            shape=shape,
            operands=tuple(_NAME.findall(operands)),
            called=tuple(name for text in called for name in re.findall(r"[\w.\-]+", text)),
            trips=int(trips[1]) if trips and opcode[1] == "while" else 1,
        )


def _split_shape(text):
    """The shape at the start of a text, which may be a tuple of tuples, and the rest."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    end = _closing(text, 0)
    return text[:end], text[end:]


def _split_operands(text):
    """The operands up to the closing parenthesis, and the attributes after it."""
    end = _closing("(" + text, 0) - 1
    return text[: end - 1], text[end:]


def _closing(text, start):
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    return len(text)


def _collectives(instruction, shapes) -> Counter:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return Counter()
    operands = sum(shape_bytes(shapes.get(name, "")) for name in instruction.operands)
    result = shape_bytes(instruction.shape)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        result -= operands  # the result of the start is a tuple of operands and results
    return Counter({(kind, "count"): 1, (kind, "bytes"): max(operands, result)})


def _moved(instruction, shapes) -> Counter:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return Counter()
    result = shape_bytes(instruction.shape)
    if instruction.opcode == "dynamic-slice":
        return Counter({"bytes": 2 * result})
    operands = [shape_bytes(shapes.get(name, "")) for name in instruction.operands]
    if instruction.opcode == "dynamic-update-slice":
        return Counter({"bytes": 2 * operands[1]})
    return Counter({"bytes": result + sum(operands)})
