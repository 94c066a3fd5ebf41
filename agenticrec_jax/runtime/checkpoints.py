"""Checkpoints: everything a killed run needs to go on, committed whole or not at all.

One orbax directory per step holds the arrays of a pytree (parameters, optimizer state, step) and a
JSON record of the host's side (seed, data cursor, mined pairs, best so far, whatever the caller
gives), the run's config, the format's version, and for every array its shape, dtype and a
fingerprint. Storage does not check its bytes; the fingerprint does, the same for any sharding, so a
damaged checkpoint is recognized and the one before is used.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Int

from agenticrec_jax.errors import InputError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back: its step, the arrays as the target pytree, the host's record."""

    step: int
    state: Any
    host: dict


class Damaged(Exception):
    """The bytes of a checkpoint are not those that were written."""


class Checkpoints:
    """The checkpoints of one run in one directory; use it as a context manager or call `close`.

    Saving returns once the arrays are copied; writing goes on behind and is committed by a rename,
    so a kill at any moment leaves whole checkpoints only.
    """

    def __init__(
        self,
        directory: str | epath.Path,
        config: Mapping[str, Any],
        *,
        max_to_keep: int | None = 2,
    ):
        """Opens or creates the directory.

        Args:
          directory: local path or bucket.
          config: what a resumed run must have in common with the one that wrote; JSON values.
          max_to_keep: newest checkpoints kept; None for all that nobody drops.
        """
        self._directory = epath.Path(directory).resolve()
        self._config = json.loads(json.dumps(dict(config)))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending; the newest may be not committed yet."""
        return sorted(self._manager.all_steps())

    def newest_host(self) -> dict | None:
        """The host's record of the newest checkpoint that has a readable one, None if none has.

        Damaged ones are put aside, as `restore` does.
        """
        self.wait()
        host, damaged = self._newest(lambda step: self._read_record(step)["host"])
        if host is None:
            self._put_aside(damaged)
        return host

    def save(self, step: int, state: Any, host: Mapping[str, Any] | None = None) -> None:
        """Saves a pytree of arrays and a JSON record under a step; a step already there is kept."""
        if step in self._manager.all_steps():
            return
        arrays = named_leaves(state)
        record = {
            "format_version": FORMAT_VERSION,
            "config": self._config,
            "host": dict(host or {}),
            "arrays": _describe(arrays),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
            ),
        )

    def drop(self, steps: Iterable[int]) -> None:
        """Deletes checkpoints; on several processes all must ask for the same."""
        for step in steps:
            self._manager.delete(step)

    def restore(self, target: Any) -> Restored | None:
        """Returns the newest checkpoint that is whole, or None where nothing was ever saved.

        A damaged checkpoint is put aside as ``<step>.damaged`` with a warning, and the one before
        is tried.

        Args:
          target: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings, of the form that
            was saved; the arrays come back in its structure and placed as it is.

        Raises:
          InputError: if a checkpoint was written by another format, another config or for other
            shapes, or if there are checkpoints but none is whole.
        """

        def read(step: int) -> Restored:
            record = self._read_record(step)
            self._check(step, record, target)
            return Restored(step, self._read_arrays(step, record, target), record["host"])

        found, damaged = self._newest(read)
        if found is None and damaged:
            raise InputError(
                f"{self._directory}: none of the checkpoints {damaged} is whole, "
                "expected at least one; name another directory to start anew"
            )
        return found

    def _newest(self, read: Callable[[int], Any]) -> tuple[Any, list[int]]:
        """What is read of the newest step that can be, or None, and the damaged steps behind it.

        They are put aside if there is a whole one.
        """
        damaged = []
        for step in reversed(self.steps):
            try:
                found = read(step)
            except Damaged as error:
                damaged.append(step)
                logging.warning("%s: checkpoint %d is damaged (%s)", self._directory, step, error)
                continue
            self._put_aside(damaged)
            if damaged:
                logging.warning("%s: going on from checkpoint %d instead", self._directory, step)
            return found, damaged
        return None, damaged

    def wait(self) -> None:
        """Returns when everything saved so far is committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Commits what is under way and lets go of the directory."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read_record(self, step: int) -> dict:
        try:
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._manager.restore(step, args=args).record
            return {key: record[key] for key in ("format_version", "config", "host", "arrays")}
        except Exception as error:  # orbax raises what its layers raise: OS, JSON, key errors
            raise Damaged(f"its record cannot be read: {_first_line(error)}") from error

    def _check(self, step: int, record: dict, target: Any) -> None:
        """Raises InputError where a whole checkpoint is not one of this run."""
        where = f"{self._directory}: checkpoint {step}"
        if (version := record["format_version"]) != FORMAT_VERSION:
            raise InputError(f"{where} has format version {version}, expected {FORMAT_VERSION}")
        for key in sorted(set(self._config) | set(record["config"])):
            written, given = (c.get(key, "absent") for c in (record["config"], self._config))
            if written != given:
                raise InputError(
                    f"{where} was written with {key}={written!r} and this run has {given!r}; "
                    "expected the same config, or another directory"
                )
        shapes = {n: [list(x.shape), str(x.dtype)] for n, x in named_leaves(target).items()}
        saved = {n: [d["shape"], d["dtype"]] for n, d in record["arrays"].items()}
        for name in sorted(set(shapes) | set(saved)):
            if shapes.get(name) != saved.get(name):
                raise InputError(
                    f"{where} holds {saved.get(name, 'nothing')} under {name}, "
                    f"expected {shapes.get(name, 'nothing')}"
                )

    def _read_arrays(self, step: int, record: dict, target: Any) -> Any:
        abstract = {name: _abstract(leaf) for name, leaf in named_leaves(target).items()}
        try:
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
            arrays = self._manager.restore(step, args=args).arrays
        except Exception as error:  # as above
            raise Damaged(f"its arrays cannot be read: {_first_line(error)}") from error
        found = _describe(arrays)
        for name, description in record["arrays"].items():
            if found[name] != description:
                raise Damaged(f"the bytes of {name} are not those that were saved")
        structure = jax.tree.structure(target)
        return jax.tree.unflatten(structure, [arrays[name] for name in named_leaves(target)])

    def _put_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory / f"{step}.damaged"
                if aside.exists():
                    aside.rmtree()
                (self._directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their path, such as ``params.layers.0.mlp.up``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _describe(arrays: Mapping[str, Any]) -> dict[str, dict]:
    prints = jax.device_get(_fingerprints(dict(arrays)))
    return {
        name: {
            "shape": list(np.shape(array)),
            "dtype": str(array.dtype),
            "fingerprint": int(prints[name]),
        }
        for name, array in arrays.items()
    }


@jax.jit
def _fingerprints(arrays: dict[str, Array]) -> dict[str, Int[Array, ""]]:
    return {name: fingerprint(array) for name, array in arrays.items()}


def fingerprint(array: Array) -> Int[Array, ""]:
    """Returns a 32-bit sum of the array's bit patterns, each scrambled with its position.

    Sums modulo 2^32 do not depend on their order, so neither does this on the sharding.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = _scramble(place + index + jnp.uint32(0x9E3779B9))
    return _scramble(bits ^ place).sum(dtype=jnp.uint32)


def _scramble(x: Array) -> Array:
    """The finaliser of MurmurHash3: one-to-one on 32 bits, every bit of x moving all others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
