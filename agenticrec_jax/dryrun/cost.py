"""Memory of a compiled program on one chip, and an estimate of its work.

Memory is what the compiler reserves. The work is an **estimate**, read from the optimized program:
matrix products, bytes read and written, and collectives, each times the trip counts of the loops
around it. (``compiled.cost_analysis()`` counts the body of a loop once.) The estimate is an amount
of work, not a speed.
"""

import collections
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agenticrec_jax.dryrun.groups import replica_groups
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
_FREE = {  # opcodes that name existing data or wait for it: they access no memory
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier", "domain"),
    *("copy-done", "slice-done", "async-start", "async-done", "async-update"),
}
# Custom calls that compute: Pallas' kernels on TPU, libraries elsewhere. Others only annotate or
# move data.
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cu|__onednn|__gpu|triton)')
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = ("dynamic-slice", "slice", "gather")
_MOVES = ("copy", "transpose", "reshape", "concatenate", "dynamic-slice", "slice")


@dataclass(frozen=True)
class Memory:
    """Bytes on a chip, as the compiler reserves them.

    Attributes:
      arguments: of the program.
      outputs: of the program.
      aliased: outputs that are written into donated arguments.
      temporaries: intermediate results.
      code: machine code.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """Sum of all, with aliased bytes counted once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass
class Traffic:
    """Collectives of one kind: number of runs, and bytes that a chip sends in them."""

    count: float = 0
    bytes: float = 0


@dataclass
class Cost:
    """Estimate of one chip's work.

    Attributes:
      flops: of matrix products; a multiplication and an addition count as two.
      bytes: read from and written to the chip's main memory.
      copied: the part of ``bytes`` of instructions that only move data. (Of scanned layers XLA's
        CPU compiler copies each layer's weights out of the stack before it uses them.)
      collectives: by kind.
      between_slices: those of them that cross slices.
      uncounted: kernels of unknown work, by name, and loops whose trip count is not in the program
        (their body is counted once).
    """

    flops: float = 0
    bytes: float = 0
    copied: float = 0
    collectives: dict[str, Traffic] = field(default_factory=dict)
    between_slices: dict[str, Traffic] = field(default_factory=dict)
    uncounted: collections.Counter = field(default_factory=collections.Counter)

    def add(self, other: "Cost", times: float = 1) -> "Cost":
        """Adds ``times`` times ``other`` in place, and returns the sum."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.copied += times * other.copied
        for mine, others in (
            (self.collectives, other.collectives),
            (self.between_slices, other.between_slices),
        ):
            for kind, traffic in others.items():
                total = mine.setdefault(kind, Traffic())
                total.count += times * traffic.count
                total.bytes += times * traffic.bytes
        for name, count in other.uncounted.items():
            self.uncounted[name] += times * count
        return self


def memory(compiled: Any) -> Memory:
    """Returns the memory of a compiled program, in bytes on a chip."""
    stats = compiled.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def estimate(
    text: str, kernels: Kernels | None = None, *, slices: int = 1, devices: int | None = None
) -> Cost:
    """Estimates the cost of one run of a program on one chip.

    Of a conditional the branch with the most work is counted.

    Args:
      text: the optimized program, ``compiled.as_text()``.
      kernels: counts the operations of hand-written kernels, which XLA cannot look into: prefixes
        of their names to functions of the name and the operands' shapes.
      slices: equal runs of the devices, between which the network is slow.
      devices: of all slices; None for those of the program. (Of several TPU slices the program is
        that of one.)
    """
    program = parse(text)
    walk = _Walk(program, kernels or {}, slices, (devices or program.devices) // slices)
    return walk.cost(program.computations[program.entry])


class _Walk:
    """Adds up the costs of a program's instructions, visiting every computation once."""

    def __init__(self, program: Program, kernels: Kernels, slices: int, slice_size: int):
        self._program = program
        self._kernels = kernels
        self._slices = slices
        self._slice_size = slice_size
        self._costs: dict[str, Cost] = {}

    def cost(self, computation: Computation) -> Cost:
        if computation.name not in self._costs:
            total = Cost()
            for instruction in computation:
                total.add(self._instruction_cost(computation, instruction))
            self._costs[computation.name] = total
        return self._costs[computation.name]

    def _instruction_cost(self, inside: Computation, instruction: Instruction) -> Cost:
        opcode = instruction.opcode
        if opcode == "while":
            return self._loop(inside, instruction)
        called = [self._program.computations[name] for name in instruction.called()]
        if opcode == "conditional":
            branches = [self.cost(branch) for branch in called]
            return max(branches, key=lambda cost: (cost.flops, cost.bytes))
        accessed = self._bytes(inside, instruction)
        cost = Cost(bytes=accessed, copied=accessed if self._only_moves(instruction) else 0)
        shapes = tuple(inside.instructions[name] for name in instruction.operands)
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(kind, instruction, shapes, cost)
        elif opcode == "send":
            self._sent_between_slices(instruction, shapes, cost)
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
        for name in ("body", "condition"):
            once = self.cost(self._program.computations[loop.attribute(name)])
            cost.add(once, 1 if trips is None else trips)
        if trips is None:
            cost.uncounted["loop"] += 1
        return cost

    def _fused(self, fused: Computation, instruction: Instruction, shapes, cost: Cost) -> None:
        """Adds a fusion's products and collectives; its bytes are counted at its border."""
        within = self.cost(fused)
        cost.add(replace(within, bytes=0, copied=0))
        # XLA writes a fused reduce-scatter as an all-reduce and a slice, which would be counted as
        # twice the bytes.
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

    def _collective(self, kind: str, instruction: Instruction, shapes, cost: Cost) -> None:
        groups = replica_groups(instruction.attributes, self._program.devices)
        largest = max(map(len, groups))
        sent = _sent(kind, sum(shape.bytes for shape in shapes), largest)
        cost.collectives[kind] = Traffic(1, sent)
        if any(len({device // self._slice_size for device in group}) > 1 for group in groups):
            cost.between_slices[kind] = Traffic(1, sent)

    def _sent_between_slices(self, instruction: Instruction, shapes, cost: Cost) -> None:
        """Adds a collective of several TPU slices.

        The program is that of one slice. It hands an array to its host, which exchanges it with
        hosts of other slices: ``send(..), .. _xla_megascale_transfer_type="ALL_REDUCE"``.
        """
        if match := _BETWEEN_SLICES.search(instruction.attributes):
            kind = match.group(1).lower().replace("_", "-")
            sent = Traffic(1, _sent(kind, shapes[0].bytes, self._slices))
            cost.collectives[kind] = cost.between_slices[kind] = sent

    def _bytes(self, inside: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done") or "ConcatBitcast" in instruction.attributes:
            return 0  # (a TPU's custom call: slices that lie one behind another are one array)
        if opcode == "fusion":
            return self._border(inside, instruction)
        operands = [inside.instructions[name] for name in instruction.operands]
        if opcode.removesuffix("-start") in _SLICES:  # which read the slice, not its source
            taken = instruction.arrays[1 if opcode.endswith("-start") else 0]
            return taken.main_bytes + (taken.bytes if operands[0].main_bytes else 0)
        if opcode == "dynamic-update-slice":  # in place: the update is read and written
            update = operands[1]
            return update.main_bytes + (update.bytes if instruction.main_bytes else 0)
        if opcode == "scatter":  # updates are read, targets read and written
            updates = operands[-1]
            return updates.main_bytes + (2 * updates.bytes if instruction.main_bytes else 0)
        if opcode == "copy-start":  # its result is the copy, the source and a flag
            return sum(array.main_bytes for array in instruction.arrays[:2])
        if opcode in ("send", "recv"):
            return instruction.arrays[0].bytes
        return instruction.main_bytes + sum(operand.main_bytes for operand in operands)

    def _only_moves(self, instruction: Instruction) -> bool:
        if instruction.opcode != "fusion":
            return instruction.opcode in _MOVES
        fused = self._program.computations[instruction.attribute("calls")]
        # Scalars are positions of a slice.
        arrays = [i for i in fused if any(array.dims for array in i.arrays)]
        return all(i.opcode in (*_MOVES, *_FREE) or self._only_moves(i) for i in arrays)

    def _border(self, inside: Computation, instruction: Instruction) -> float:
        """Returns a fusion's bytes: only the slice of an array that it slices or writes into."""
        fused = self._program.computations[instruction.attribute("calls")]
        total = _written(self._program, fused, fused.root)
        for number, name in enumerate(instruction.operands):
            size = inside.instructions[name].main_bytes
            total += _read(self._program, fused, fused.parameters[number].name, size)
        return total


def _sent(kind: str, operand_bytes: float, group: int) -> float:
    """Returns the bytes that a chip sends if a collective is a ring around its group.

    In a group of 4 a chip that gathers 1 MB from each sends 3 MB (its own and two that it passes
    on), and one that reduces 1 MB sends 1.5 MB: 3/4 to reduce and 3/4 to gather.
    """
    share = (group - 1) / group
    sent = {
        "all-gather": operand_bytes * (group - 1),
        "all-reduce": 2 * operand_bytes * share,
        "collective-permute": operand_bytes,
    }
    return sent.get(kind, operand_bytes * share)


def _read(program: Program, fused: Computation, name: str, size: int) -> float:
    """Returns the bytes that a fusion reads of one operand, of which it may take slices only.

    Args:
      program: that the fusion is part of.
      fused: its computation.
      name: of the operand in it, or of a view of the operand.
      size: bytes of the operand in the chip's main memory.
    """
    if not size:
        return 0
    total = 0
    for user in fused.users(name):
        if user.opcode == "bitcast" or _is_view(program, user):
            total += _read(program, fused, user.name, size)
        elif user.opcode == "fusion":
            inner = program.computations[user.attribute("calls")]
            numbers = [i for i, operand in enumerate(user.operands) if operand == name]
            names = [inner.parameters[number].name for number in numbers]
            total += sum(_read(program, inner, parameter, size) for parameter in names)
        elif user.opcode in _SLICES:
            total += user.bytes
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return size
    return min(total, size)


def _is_view(program: Program, instruction: Instruction) -> bool:
    """Whether a fusion only views its operand in another shape."""
    if instruction.opcode != "fusion":
        return False
    inner = program.computations[instruction.attribute("calls")]
    return all(i.opcode in ("parameter", "bitcast") for i in inner)


def _written(program: Program, fused: Computation, root: Instruction) -> float:
    """Returns the bytes that a fusion writes: of an array that it updates, the update only."""
    if root.opcode == "tuple":
        return sum(_written(program, fused, fused.instructions[name]) for name in root.operands)
    source = fused.source(root.name) if root.opcode == "bitcast" else root
    if source.opcode == "fusion":
        inner = program.computations[source.attribute("calls")]
        return _written(program, inner, inner.root)
    if source.opcode == "dynamic-update-slice" and root.main_bytes:
        return fused.instructions[source.operands[1]].bytes
    return root.main_bytes


def _dot(instruction: Instruction, shapes) -> float:
    summed = instruction.numbers("lhs_contracting_dims")
    left = shapes[0].arrays[0].dims
    return 2 * instruction.arrays[0].size * math.prod(left[axis] for axis in summed)


def _convolution(instruction: Instruction, shapes) -> float:
    """Returns the operations of a convolution, which every matrix product is on TPU.

    A batch of products is written as a window over data with holes (``lhs_dilate``). So only
    positions where the window meets data are counted, as in XLA's own analysis.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    data, kernel, out = (shape.arrays[0].dims for shape in (*shapes[:2], instruction))
    window = _window(instruction.attributes, sum(label.isdigit() for label in labels[0]))
    meets = 1
    for axis, axis_window in enumerate(window):
        data_size = data[labels[0].index(str(axis))]
        out_size = out[labels[2].index(str(axis))]
        meets *= _meetings(data_size, out_size, **axis_window)
    pairs = out[labels[2].index("b")] * out[labels[2].index("f")] * kernel[labels[1].index("i")]
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return 2 * meets * pairs / (int(groups.group(1)) if groups else 1)


def _window(attributes: str, axes: int) -> list[dict[str, int]]:
    """Returns size, padding before, stride and dilations of each axis of a window.

    ``window={size=3x3 pad=1_1x0_0}`` has the sizes 3 and 3 and the paddings 1 and 0.
    """
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in text.group(1).split()) if text else {}

    def values(name: str, default: int) -> list[int]:
        numbers = [int(n.split("_")[0]) for n in fields.get(name, "").split("x") if n]
        return numbers or [default] * axes

    names = {"size": 1, "pad": 0, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1}
    by_axis = zip(*(values(name, default) for name, default in names.items()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in by_axis]


def _meetings(data, out, *, size, pad, stride, lhs_dilate, rhs_dilate) -> int:
    """Returns the number of pairs (output, element of the window) that meet data.

    Three outputs with a window of 3 and a padding of 1 over 3 elements meet 2 + 3 + 2 = 7.
    """
    count = 0
    starts = np.arange(out) * stride - pad
    for element in range(size):
        at = starts + element * rhs_dilate
        count += int(((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < data)).sum())
    return count
