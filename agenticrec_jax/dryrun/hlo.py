"""Reads the text of an optimized XLA program: computations, instructions, shapes, trip counts.

The text is that of ``compiled.as_text()``; XLA documents its grammar at
https://openxla.org/xla/operation_semantics. Only what an estimate of cost needs is read.
"""

import collections
import functools
import itertools
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
        found = re.search(r"\b(?:branch|called)_computations=\{([^}]*)\}", self.attributes)
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
        test, here = self._follow(_Node(condition, condition.root)), _Node(computation, loop)
        bounds = [self._bound(here, part) for part in self._conjuncts(test)]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _conjuncts(self, test: "_Node") -> Iterator["_Node"]:
        if test.instruction.opcode == "and":
            for operand in self._operands(test):
                yield from self._conjuncts(operand)
        else:
            yield test

    def _bound(self, loop: "_Node", test: "_Node") -> int | None:
        direction = test.instruction.attribute("direction")
        if test.instruction.opcode != "compare" or direction not in ("LT", "GT"):
            return None
        low, high = (x.instruction for x in self._operands(test)[:: 1 if direction == "LT" else -1])
        if low.opcode != "get-tuple-element" or high.opcode != "constant":
            return None
        index = int(low.attribute("index"))
        start, step = self._start(loop, index), self._step(loop.instruction, index)
        if start is None or not step:
            return None
        return max(0, math.ceil((int(high.literal) - start) / step))

    def _start(self, loop: "_Node", index: int) -> int | None:
        (state,) = self._operands(loop)
        if state.instruction.opcode != "tuple":
            return None
        start = self._follow(state.operands[index]).instruction
        return int(start.literal) if start.opcode == "constant" else None

    def _step(self, loop: Instruction, index: int) -> int | None:
        body = self.computations[loop.attribute("body")]
        result = self._follow(_Node(body, body.root))
        if result.instruction.opcode != "tuple":
            return None
        add = self._follow(result.operands[index])
        if add.instruction.opcode != "add":
            return None
        for one, other in itertools.permutations(x.instruction for x in self._operands(add)):
            if other.opcode == "constant" and one.attribute("index") == str(index):
                return int(other.literal)
        return None

    def _operands(self, node: "_Node") -> list["_Node"]:
        return [self._follow(operand) for operand in node.operands]

    def _given(self, computation: str) -> tuple["_Node", ...] | None:
        """What the one ``call`` of a computation gives it."""
        found = self._calls.get(computation, [])
        return found[0].operands if len(found) == 1 else None

    @functools.cached_property
    def _calls(self) -> dict[str, list["_Node"]]:
        calls = collections.defaultdict(list)
        for computation in self.computations.values():
            for instruction in computation:
                if instruction.opcode == "call":
                    calls[instruction.called()[0]].append(_Node(computation, instruction))
        return calls

    def _follow(self, node: "_Node") -> "_Node":
        """What a value comes from, past copies, into fusions and out of them."""
        while True:
            instruction = node.instruction
            if instruction.opcode in _TRANSPARENT and instruction.operands:
                node = node.operands[0]
            elif instruction.opcode in ("fusion", "call"):
                inner = self.computations[instruction.called()[0]]
                node = _Node(inner, inner.root, node.operands)
            elif instruction.opcode == "parameter":
                given = node.arguments or self._given(node.inside.name)
                if given is None:
                    return node
                node = given[int(instruction.literal)]
            elif instruction.opcode == "get-tuple-element":
                whole = self._follow(node.operands[0])
                if whole.instruction.opcode != "tuple":
                    return node
                node = whole.operands[int(instruction.attribute("index"))]
            else:
                return node


@dataclass(frozen=True)
class _Node:
    """An instruction where it stands; inside a fusion, with what the fusion was given."""

    inside: Computation
    instruction: Instruction
    arguments: tuple["_Node", ...] | None = None

    @property
    def operands(self) -> tuple["_Node", ...]:
        """Its operands where they stand."""
        inside = self.inside.instructions
        names = self.instruction.operands
        return tuple(_Node(self.inside, inside[name], self.arguments) for name in names)


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
