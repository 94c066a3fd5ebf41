"""What a compiled program takes of one chip: memory, collectives, and an estimate of its work.

Memory is what the compiler reserves. The work is an **estimate**, read from the optimized program:
matrix products, bytes read and written, and collectives, each as often as the loops around it run.
(``compiled.cost_analysis()`` counts the body of a loop once, however often it runs.) It says how
much is to be done, never how fast.
"""

import collections
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agenticrec_jax.dryrun.hlo import Array, Computation, Instruction, Program, parse

Kernels = Mapping[str, Callable[[str, tuple[Array, ...]], float]]

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
_FREE = {  # names for data that is somewhere already, or waiting for it
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier", "domain"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "async-done", "async-update"),
}
# Custom calls that compute: Pallas' kernels on TPU, libraries elsewhere. Others only move data.
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cu|__onednn|__gpu|triton)')
_PART = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Memory:
    """Bytes a chip, as the compiler reserves them. ``aliased`` are outputs in donated arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """Everything at once, what is aliased counted once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass
class Traffic:
    """Collectives of one kind: how often they run, and bytes that a chip sends for them."""

    count: float = 0
    bytes: float = 0


@dataclass
class Cost:
    """An estimate of one chip's work.

    Attributes:
        flops: of matrix products, a multiplication and an addition each counted as one.
        bytes: read and written by instructions, whatever memory they lie in.
        collectives: by kind.
        uncounted: kernels whose products nobody knows, by name, and loops whose trip count is not
            in the program (their body is counted once).
    """

    flops: float = 0
    bytes: float = 0
    collectives: dict[str, Traffic] = field(default_factory=dict)
    uncounted: collections.Counter = field(default_factory=collections.Counter)

    def add(self, other: "Cost", times: float = 1) -> "Cost":
        """Adds ``other`` so many times, and returns the sum."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for kind, traffic in other.collectives.items():
            own = self.collectives.setdefault(kind, Traffic())
            own.count += times * traffic.count
            own.bytes += times * traffic.bytes
        for name, count in other.uncounted.items():
            self.uncounted[name] += times * count
        return self


def memory(compiled: Any) -> Memory:
    """The memory of a compiled program, in bytes a chip."""
    stats = compiled.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def estimate(text: str, kernels: Kernels | None = None) -> Cost:
    """The estimated cost of one run of a program on one chip.

    Of a conditional the branch with the most work is counted.

    Args:
        text: the optimized program, ``compiled.as_text()``.
        kernels: how the products of hand-written kernels are counted, which XLA cannot look into:
            prefixes of their names to functions of the name and the operands' shapes.
    """
    program = parse(text)
    return _Walk(program, kernels or {}).cost(program.computations[program.entry])


class _Walk:
    """Adds up a program's instructions; every computation is looked at once."""

    def __init__(self, program: Program, kernels: Kernels):
        self._program, self._kernels = program, kernels
        self._known: dict[str, Cost] = {}

    def cost(self, computation: Computation) -> Cost:
        if computation.name not in self._known:
            total = Cost()
            for instruction in computation:
                total.add(self._one(computation, instruction))
            self._known[computation.name] = total
        return self._known[computation.name]

    def _one(self, inside: Computation, instruction: Instruction) -> Cost:
        opcode = instruction.opcode
        if opcode == "while":
            return self._loop(inside, instruction)
        called = [self._program.computations[name] for name in instruction.called()]
        if opcode == "conditional":
            branches = [self.cost(branch) for branch in called]
            return max(branches, key=lambda cost: (cost.flops, cost.bytes))
        cost = Cost(bytes=self._bytes(inside, instruction))
        shapes = tuple(inside.instructions[name] for name in instruction.operands)
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            cost.collectives[kind] = self._traffic(kind, instruction, shapes)
        elif opcode in ("dot", "convolution"):
            cost.flops = (_dot if opcode == "dot" else _convolution)(instruction, shapes)
        elif opcode == "custom-call":
            self._kernel(instruction, shapes, cost)
        elif opcode == "fusion":
            self._fused(called[0], instruction, shapes, cost)
        elif opcode in ("call", "async-start"):
            cost.add(self.cost(called[0]))
        return cost

    def _loop(self, inside: Computation, loop: Instruction) -> Cost:
        trips = self._program.trip_count(inside, loop)
        cost = Cost()
        for part in ("body", "condition"):
            once = self.cost(self._program.computations[loop.attribute(part)])
            cost.add(once, 1 if trips is None else trips)
        if trips is None:
            cost.uncounted["loop"] += 1
        return cost

    def _fused(self, fused: Computation, instruction: Instruction, shapes, cost: Cost) -> None:
        """Products and collectives inside; bytes are those that cross its border."""
        within = self.cost(fused)
        cost.add(Cost(within.flops, 0, within.collectives, within.uncounted))
        if "all-reduce-scatter" in instruction.name + fused.name and shapes:
            sent = sum(traffic.bytes for traffic in within.collectives.values())
            cost.collectives = {"reduce-scatter": Traffic(1, sent / 2)}

    def _kernel(self, instruction: Instruction, shapes, cost: Cost) -> None:
        if not _KERNEL.search(instruction.attributes):
            return
        for prefix, count in self._kernels.items():
            if instruction.name.startswith(prefix):
                operands = tuple(array for shape in shapes for array in shape.arrays)
                cost.flops = count(instruction.name, operands)
                return
        cost.uncounted[instruction.name.split(".")[0]] += 1

    def _traffic(self, kind: str, instruction: Instruction, shapes) -> Traffic:
        """Bytes that a chip sends where the collective goes round a ring of its group."""
        group = _group_size(instruction.attributes, self._program.devices)
        given = sum(shape.bytes for shape in shapes)
        share = (group - 1) / group
        sent = {
            "all-gather": given * (group - 1),
            "all-reduce": 2 * given * share,
            "collective-permute": given,
        }
        return Traffic(1, sent.get(kind, given * share))

    def _bytes(self, inside: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        if opcode == "fusion":
            return self._border(inside, instruction)
        operands = [inside.instructions[name] for name in instruction.operands]
        if opcode in _PART:
            return 2 * instruction.bytes
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].bytes
        if opcode == "scatter":
            return 3 * operands[-1].bytes
        return instruction.bytes + sum(operand.bytes for operand in operands)

    def _border(self, inside: Computation, instruction: Instruction) -> float:
        """Bytes of a fusion: of an array that it only cuts from or writes into, those parts."""
        fused = self._program.computations[instruction.attribute("calls")]
        total = _written(fused, fused.root)
        for number, name in enumerate(instruction.operands):
            total += _read(fused, fused.parameters[number], inside.instructions[name].bytes)
        return total


def _read(fused: Computation, parameter: Instruction, size: int) -> float:
    users = fused.users(parameter.name)
    while len(users) == 1 and users[0].opcode == "bitcast":
        users = fused.users(users[0].name)
    parts = 0
    for user in users:
        if user.opcode in _PART:
            parts += user.bytes
        elif user.opcode != "dynamic-update-slice" or fused.source(user.operands[0]) != parameter:
            return size
    return min(parts, size)


def _written(fused: Computation, root: Instruction) -> float:
    if root.opcode == "tuple":
        return sum(_written(fused, fused.instructions[name]) for name in root.operands)
    source = fused.source(root.name) if root.opcode == "bitcast" else root
    if source.opcode == "dynamic-update-slice":
        return fused.instructions[source.operands[1]].bytes
    return root.bytes


def _dot(instruction: Instruction, shapes) -> float:
    summed = instruction.numbers("lhs_contracting_dims")
    left = shapes[0].arrays[0].dims
    return 2 * instruction.arrays[0].size * math.prod(left[axis] for axis in summed)


def _convolution(instruction: Instruction, shapes) -> float:
    """Products of a convolution; on TPU every matrix product is one.

    A batch of products is written as a window over holes (``lhs_dilate``), so only the places
    where the window meets data are counted, as XLA's own analysis does.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    data, kernel, out = (shape.arrays[0].dims for shape in (*shapes[:2], instruction))
    window = _window(instruction.attributes, sum(label.isdigit() for label in labels[0]))
    meets = 1
    for axis, part in enumerate(window):
        size, label = {}, str(axis)
        for what, dims, text in zip(("data", "out"), (data, out), labels[::2], strict=True):
            size[what] = dims[text.index(label)]
        meets *= _meetings(size["data"], size["out"], **part)
    pairs = out[labels[2].index("b")] * out[labels[2].index("f")] * kernel[labels[1].index("i")]
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return 2 * meets * pairs / (int(groups.group(1)) if groups else 1)


def _window(attributes: str, axes: int) -> list[dict[str, int]]:
    """Size, padding before, stride and dilations of each axis of a window."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    found = dict(part.split("=") for part in text.group(1).split()) if text else {}

    def values(name: str, default: int) -> list[int]:
        numbers = [int(n.split("_")[0]) for n in found.get(name, "").split("x") if n]
        return numbers or [default] * axes

    names = {"size": 1, "pad": 0, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1}
    columns = [values(name, default) for name, default in names.items()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _meetings(data, out, *, size, pad, stride, lhs_dilate, rhs_dilate) -> int:
    """How many (place of the result, place of the window) pairs lie on data."""
    count, starts = 0, np.arange(out) * stride - pad
    for place in range(size):
        at = starts + place * rhs_dilate
        count += int(((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < data)).sum())
    return count


def _group_size(attributes: str, devices: int) -> int:
    """Devices in each replica group, in any of XLA's three notations."""
    if found := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", attributes):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(found.group(1).split(",")) if found else devices
