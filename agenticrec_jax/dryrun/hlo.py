"""Parser of an optimized XLA program: computations, instructions, shapes, trip counts.

The text is that of ``compiled.as_text()``. XLA documents its grammar at
https://openxla.org/xla/operation_semantics. Only what an estimate of cost needs is parsed.
"""

import collections
import functools
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TRANSPARENT = ("copy", "bitcast", "reshape", "convert", "copy-start", "copy-done")


@dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: type of its elements, such as ``f32``.
      dims: its dimensions.
      space: memory that it lies in: 0 is the chip's main memory. (On a TPU 1 is the vector unit's.)
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes, without the padding of a layout."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype).group())
        return math.ceil(self.size * bits / 8)

    @property
    def main_bytes(self) -> int:
        """Size in the chip's main memory: 0 for an array in another memory."""
        return 0 if self.space else self.bytes


@dataclass(frozen=True)
class Instruction:
    """An instruction ``name = arrays opcode(operands), attributes``.

    Attributes:
      name: unique in its computation.
      opcode: such as ``dot`` or ``fusion``.
      arrays: of the result; those of a tuple are listed flat.
      operands: names of instructions.
      literal: text in the brackets, such as a constant's value or a parameter's number.
      attributes: text after the brackets.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def bytes(self) -> int:
        """Size of the result in bytes."""
        return sum(array.bytes for array in self.arrays)

    @property
    def main_bytes(self) -> int:
        """Size of the result in the chip's main memory."""
        return sum(array.main_bytes for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """Returns a bare attribute such as ``direction`` or ``index``, None if it is not there."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return match and match.group(1)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns an attribute that is a list, such as ``lhs_contracting_dims={1}``."""
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in match.group(1).split(",") if n) if match else ()

    def called(self) -> tuple[str, ...]:
        """Returns the names of the computations that it runs, other than a loop's."""
        match = re.search(r"\b(?:branch|called)_computations=\{([^}]*)\}", self.attributes)
        if match:
            return tuple(name.strip().lstrip("%") for name in match.group(1).split(","))
        names = [self.attribute(name) for name in ("true_computation", "false_computation")]
        names += [self.attribute(name) for name in ("calls", "to_apply")]
        return tuple(name for name in names if name)


@dataclass
class Computation:
    """Instructions of a computation in order, by name; ``root`` is its result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by their number."""
        return {int(i.literal): i for i in self if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """Returns the instructions that read ``name``."""
        return [i for i in self if name in i.operands]

    def source(self, name: str) -> Instruction:
        """Returns the instruction that computes the numbers of ``name``, behind copies of them."""
        instruction = self.instructions[name]
        while instruction.opcode in _TRANSPARENT and instruction.operands:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs first.
      devices: number of devices that share the work.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns the largest number of times that a ``while`` runs, None if the text lacks it.

        Either XLA has written the number down, or the condition bounds a counter: one that starts
        at a constant, grows by a constant and must be below a constant. A counter from 2 by steps
        of 3 runs 3 times below 10 (2, 5, 8).
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition")]
        test = self._follow(_Node(condition, condition.root))
        loop_node = _Node(computation, loop)
        bounds = [self._bound(loop_node, conjunct) for conjunct in self._conjuncts(test)]
        # All conjuncts must hold, so the smallest bound ends the loop.
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
        start = self._start(loop, index)
        step = self._step(loop.instruction, index)
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

    def _call_arguments(self, computation: str) -> tuple["_Node", ...] | None:
        """Returns the arguments of a computation's only ``call``, None without exactly one."""
        calls = self._calls.get(computation, [])
        return calls[0].operands if len(calls) == 1 else None

    @functools.cached_property
    def _calls(self) -> dict[str, list["_Node"]]:
        calls = collections.defaultdict(list)
        for computation in self.computations.values():
            for instruction in computation:
                if instruction.opcode == "call":
                    calls[instruction.called()[0]].append(_Node(computation, instruction))
        return calls

    def _follow(self, node: "_Node") -> "_Node":
        """Returns the instruction that computes a value, through copies, fusions and calls."""
        while True:
            instruction = node.instruction
            if instruction.opcode in _TRANSPARENT and instruction.operands:
                node = node.operands[0]
            elif instruction.opcode in ("fusion", "call"):
                inner = self.computations[instruction.called()[0]]
                node = _Node(inner, inner.root, node.operands)
            elif instruction.opcode == "parameter":
                arguments = node.arguments or self._call_arguments(node.inside.name)
                if arguments is None:
                    return node
                node = arguments[int(instruction.literal)]
            elif instruction.opcode == "get-tuple-element":
                whole = self._follow(node.operands[0])
                if whole.instruction.opcode != "tuple":
                    return node
                node = whole.operands[int(instruction.attribute("index"))]
            else:
                return node


@dataclass(frozen=True)
class _Node:
    """An instruction in its computation; inside a fusion, with the fusion's arguments."""

    inside: Computation
    instruction: Instruction
    arguments: tuple["_Node", ...] | None = None

    @property
    def operands(self) -> tuple["_Node", ...]:
        """Its operands in the same computation."""
        inside = self.inside.instructions
        names = self.instruction.operands
        return tuple(_Node(self.inside, inside[name], self.arguments) for name in names)


def parse(text: str) -> Program:
    """Parses the text of a compiled program."""
    computations = {}
    current = None
    entry = ""
    for line in _logical_lines(text):
        if match := _INSTRUCTION.match(line):
            instruction = _instruction(match.group(2), line[match.end() :])
            current.instructions[instruction.name] = instruction
            if match.group(1):
                current.root = instruction
        elif match := _COMPUTATION.match(line):
            current = computations[match.group(2)] = Computation(match.group(2))
            entry = current.name if match.group(1) else entry
    head = text.partition("\n")[0]
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)
    devices = math.prod(int(count) for count in counts)
    return Program(computations, entry, devices)


def _logical_lines(text: str) -> Iterator[str]:
    """Yields lines joined with those that continue them: attributes of kernels hold line breaks."""
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
    """Returns the arrays of a shape's text, such as ``(f32[2,3]{1,0:S(1)}, s32[])``."""
    result = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        result.append(Array(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(result)


def _bracketed(text: str) -> tuple[str, str]:
    """Splits text after its leading ``(...)``, with nested brackets inside."""
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return text[: bracket.end()], text[bracket.end() :]
    return text, ""
