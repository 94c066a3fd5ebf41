"""Groups of devices in which collectives run, in each of XLA's notations."""

import math
import re

import numpy as np

_TILED = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # such as [2,2,2]T(0,2,1)
_IOTA = re.compile(rf"replica_groups=\[([\d,]+)\]<={_TILED}")
_MESH = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_TILED}\))? ?\{{([^}}]*)\}}"
)
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}")


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """Returns the devices of each group of a collective, by their numbers in the program.

    ``[2,4]<=[8]``, ``mesh['a'=2,'b'=4] {'b'}`` and ``{{0,1,2,3},{4,5,6,7}}`` all are two groups of
    4. ``[4,2]<=[2,4]T(1,0)`` numbers the devices in a 2 x 4 table row by row and reads them column
    by column: the groups are (0, 4), (1, 5), (2, 6) and (3, 7). The pairs of a collective-permute
    are groups of 2. Listed groups may differ in size.

    Args:
      attributes: text of the instruction after its brackets.
      devices: of the program; without groups they are all one.
    """
    if match := _IOTA.search(attributes):
        groups, dims, order = match.groups()
        return _tiled(dims, order).reshape(_numbers(groups)).tolist()
    if match := _MESH.search(attributes):
        return _mesh_groups(*match.groups())
    if match := _LISTED.search(attributes):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match.group(1))]
    return [list(range(devices))]


def _mesh_groups(mesh: str, dims: str | None, order: str | None, axes: str) -> list[list[int]]:
    """Returns the groups along axes of a mesh, or along factors of axes.

    ``'a':(2)4`` is the factor of size 4 of an axis, with 2 before it and the rest behind it.
    """
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    ids = _tiled(dims, order) if dims else np.arange(math.prod(sizes.values()))
    shape: list[int] = []
    dimension = {}  # of an axis, or of a factor of it, in the shape
    factors = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    for axis, size in sizes.items():
        cuts = sorted((int(b), int(f)) for name, b, f in factors if name == axis and f)
        done = 1
        for before, factor in cuts:
            if before > done:
                shape.append(before // done)
            dimension[axis, before] = len(shape)
            shape.append(factor)
            done = before * factor
        if not cuts:
            dimension[axis, None] = len(shape)
        if size > done or not cuts:
            shape.append(size // done)
    chosen = [dimension[axis, int(before) if factor else None] for axis, before, factor in factors]
    table = np.moveaxis(ids.reshape(shape), chosen, range(-len(chosen), 0))
    return table.reshape(-1, math.prod(shape[axis] for axis in chosen)).tolist()


def _tiled(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
