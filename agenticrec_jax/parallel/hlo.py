"""Reads the text of an optimised XLA program: computations, instructions, shapes, trip counts.

The text is that of ``compiled.as_text()``; XLA documents its grammar at
https://openxla.org/xla/operation_semantics. Only what an estimate of cost needs is read.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TRANSPARENT = ("copy", "bitcast", "reshape", "convert", "copy-start", "copy-done")


@dataclass(frozen=True)
class Array:
    """One array of a shape: its element type and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of a layout."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype).group())
        return math.ceil(self.size * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """``name = arrays opcode(operands), attributes``; a tuple's arrays are listed flat."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """A bare attribute such as ``direction`` or ``index``."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found and found.group(1)

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list, such as ``lhs_contracting_dims={1}``."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()

    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, other than a loop's."""
        found = re.search(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes)
        if found:
            return tuple(name.strip().lstrip("%") for name in found.group(1).split(","))
        names = [self.attribute(name) for name in ("true_computation", "false_computation")]
        names += [self.attribute(name) for name in ("calls", "to_apply")]
        return tuple(name for name in names if name)


@dataclass
class Computation:
    """Instructions in order, by name; ``root`` is the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by their number."""
        return {int(i.literal): i for i in self if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read ``name``."""
        return [i for i in self if name in i.operands]

    def source(self, name: str) -> Instruction:
        """The instruction behind ``name``, past copies and the like."""
        found = self.instructions[name]
        while found.opcode in _TRANSPARENT and found.operands:
            found = self.instructions[found.operands[0]]
        return found


@dataclass(frozen=True)
class Program:
    """All computations by name, the entry's name, and how many devices share the work."""

    computations: dict[str, Computation]
    entry: str
    devices: int

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """How often the body of a ``while`` runs, or at most runs; None if that is not in the text.

        Either XLA has written it down, or the condition holds only while a counter, which starts
        at a constant and grows by a constant, is below a constant.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition")]
        bounds = [
            self._bound(computation, loop, condition, test)
            for test in self._conjuncts(condition, condition.root)
        ]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _conjuncts(self, inside: Computation, test: Instruction) -> Iterator[Instruction]:
        if test.opcode == "and":
            for name in test.operands:
                yield from self._conjuncts(inside, inside.source(name))
        else:
            yield test

    def _bound(self, computation, loop, condition: Computation, test: Instruction) -> int | None:
        compare = self._unwrapped(condition, test)
        if compare is None or compare[0].opcode != "compare":
            return None
        (less, (left, right)) = compare
        if less.attribute("direction") == "GT":
            left, right = right, left
        elif less.attribute("direction") != "LT":
            return None
        index = left.attribute("index") if left.opcode == "get-tuple-element" else None
        if index is None or right.opcode != "constant":
            return None
        start = self._start(computation, loop, int(index))
        step = self._step(self.computations[loop.attribute("body")], int(index))
        if start is None or not step:
            return None
        return max(0, math.ceil((_constant(right) - start) / step))

    def _unwrapped(self, inside: Computation, test: Instruction):
        """A binary instruction with its operands as ``inside`` knows them, out of its fusion."""
        operands = [inside.source(name) for name in test.operands]
        if test.opcode == "fusion":
            fused = self.computations[test.attribute("calls")]
            test = fused.root
            sources = [fused.source(name) for name in test.operands]
            operands = [
                operands[int(s.literal)] if s.opcode == "parameter" else s for s in sources
            ]
        return (test, operands) if len(operands) == 2 else None

    def _start(self, computation: Computation, loop: Instruction, index: int) -> int | None:
        state = computation.source(loop.operands[0])
        if state.opcode != "tuple":
            return None
        start = computation.source(state.operands[index])
        return _constant(start) if start.opcode == "constant" else None

    def _step(self, body: Computation, index: int) -> int | None:
        if body.root.opcode != "tuple":
            return None
        add = self._unwrapped(body, body.source(body.root.operands[index]))
        if add is None or add[0].opcode != "add":
            return None
        for one, other in (add[1], add[1][::-1]):
            if other.opcode == "constant" and one.attribute("index") == str(index):
                return _constant(other)
        return None


def parse(text: str) -> Program:
    """Reads the text of a compiled program."""
    computations, current, entry = {}, None, ""
    for line in _logical_lines(text):
        if found := _INSTRUCTION.match(line):
            instruction = _instruction(found.group(2), line[found.end() :])
            current.instructions[instruction.name] = instruction
            if found.group(1):
                current.root = instruction
        elif found := _COMPUTATION.match(line):
            current = computations[found.group(2)] = Computation(found.group(2))
            entry = current.name if found.group(1) else entry
    head = text.partition("\n")[0]
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)
    devices = math.prod(int(count) for count in counts)
    return Program(computations, entry, devices)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, each with those that continue it (attributes of kernels hold line breaks)."""
    line = ""
    for piece in text.splitlines():
        starts = not piece.strip() or piece == "}" or _INSTRUCTION.match(piece)
        if starts or _COMPUTATION.match(piece):
            yield line
            line = piece
        else:
            line += piece
    yield line


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _bracketed(text) if text.startswith("(") else text.split(" ", 1)
    opcode, rest = rest.lstrip().split("(", 1)
    inside, attributes = _bracketed("(" + rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, arrays(shape), operands, inside[1:-1], attributes)


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape's text, such as ``(f32[2,3]{1,0}, s32[])``."""
    return tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n))
        for dtype, dims in _ARRAY.findall(shape)
    )


def _bracketed(text: str) -> tuple[str, str]:
    """The leading ``(...)``, nested brackets included, and what follows it."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return text[: found.end()], text[found.end() :]
    return text, ""


def _constant(instruction: Instruction) -> int:
    return int(instruction.literal)
