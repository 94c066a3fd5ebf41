"""Checkpoints: everything that a killed run needs to resume, committed whole or not at all.

One orbax directory per step holds the arrays of a pytree (parameters, optimizer state, step) and a
JSON record: the caller's own values (such as a validation score), the run's config, the format's
version, and for every array its shape, dtype and fingerprint. Storage does not check its bytes. The
fingerprint does, and it is the same for any sharding: a damaged checkpoint is recognized, and the
one before is used.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Int

from agenticrec_jax import strict_json
from agenticrec_jax.errors import expect
from agenticrec_jax.paths import absolute

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read back.

    Attributes:
      step: under which it was saved.
      state: the arrays, in the structure and placement of the target.
      host: the caller's own values, as they were saved.
    """

    step: int
    state: Any
    host: dict


class Damaged(Exception):
    """The bytes of a checkpoint are not those that were written."""


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name: ``{"a": {"b": 3}}`` gives ``{"a.b": 3}``."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class Checkpoints:
    """The checkpoints of one run in one directory; use it as a context manager or call `close`.

    Saving returns once the arrays are copied. They are written in the background and committed by
    a rename, or in a bucket by a file that is written last, so a kill at any moment leaves whole
    checkpoints only.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp(), {"rate": 0.1}) as checkpoints:
      ...     checkpoints.save(3, {"w": jnp.arange(2.0)}, host={"score": 0.5})
      ...     restored = checkpoints.restore({"w": jnp.zeros(2)})
      >>> restored.step, restored.state["w"].tolist(), restored.host
      (3, [0.0, 1.0], {'score': 0.5})
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: Mapping[str, Any],
        *,
        max_to_keep: int | None = 2,
    ):
        """Opens or creates the directory.

        Args:
          directory: on this machine or in a bucket.
          config: what a resumed run must have in common with the one that wrote; JSON values.
          max_to_keep: number of newest checkpoints that stay; None for all but dropped ones.
        """
        self._directory = absolute(directory)
        self._config = json.loads(strict_json.dumps(dict(config)))
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
        """Steps of the checkpoints, ascending; the newest may not be committed yet."""
        return sorted(self._manager.all_steps())

    def newest_host(self) -> dict | None:
        """Returns the caller's values of the newest checkpoint with a readable record, else None.

        Damaged checkpoints are put aside, as `restore` does.
        """
        self.wait()
        host, damaged = self._newest(lambda step: self._read_record(step)["host"])
        if host is None:
            self._put_aside(damaged)
        return host

    def save(self, step: int, state: Any, host: Mapping[str, Any] | None = None) -> None:
        """Saves a state under a step; a step that is there already stays as it is.

        Args:
          step: updates done.
          state: pytree of arrays.
          host: the caller's own values, which JSON can hold.
        """
        # SIGTERM can come right after a step that was due: it saves that step once more.
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
        """Deletes checkpoints; on several processes all must give the same steps."""
        for step in steps:
            self._manager.delete(step)

    def restore(self, target: Any) -> Restored | None:
        """Returns the newest checkpoint that is whole, or None where nothing was ever saved.

        A damaged checkpoint is put aside as ``<step>.damaged`` with a warning, and the one before
        is tried.

        Args:
          target: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings, of the structure
            that was saved; the arrays come back in its structure and with its placement.

        Raises:
          InputError: if a checkpoint was written by another format, another config or for other
            shapes, or if there are checkpoints but none is whole.
        """

        def read(step: int) -> Restored:
            record = self._read_record(step)
            self._check(step, record, target)
            return Restored(step, self._read_arrays(step, record, target), record["host"])

        restored, damaged = self._newest(read)
        expect(
            restored is not None or not damaged,
            f"{self._directory}: damaged checkpoints",
            damaged,
            "at least one that is whole; name another directory to start anew",
        )
        return restored

    def _newest(self, read: Callable[[int], Any]) -> tuple[Any, list[int]]:
        """Returns ``read`` of the newest step that is whole, or None, and the damaged later steps.

        The damaged ones are put aside if there is a whole one.
        """
        damaged = []
        for step in reversed(self.steps):
            try:
                value = read(step)
            except Damaged as error:
                damaged.append(step)
                logging.warning("%s: checkpoint %d is damaged (%s)", self._directory, step, error)
                continue
            self._put_aside(damaged)
            if damaged:
                logging.warning("%s: going on from checkpoint %d instead", self._directory, step)
            return value, damaged
        return None, damaged

    def wait(self) -> None:
        """Returns when everything saved so far is committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Commits what is being written and closes the directory."""
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
        """Raises InputError for a whole checkpoint that is not of this run."""
        where = f"{self._directory}: checkpoint {step}"
        version = record["format_version"]
        expect(version == FORMAT_VERSION, f"{where}, format version", version, str(FORMAT_VERSION))
        stored_config = flat_settings(record["config"])
        config = flat_settings(self._config)
        for key in sorted(stored_config.keys() | config.keys()):
            written = stored_config.get(key, "absent")
            given = config.get(key, "absent")
            expected = f"{given!r} as in this run, or another directory"
            expect(written == given, f"{where}, {key}", written, expected)
        shapes = {n: [list(x.shape), str(x.dtype)] for n, x in named_leaves(target).items()}
        saved = {n: [d["shape"], d["dtype"]] for n, d in record["arrays"].items()}
        for name in sorted(set(shapes) | set(saved)):
            expected = str(shapes.get(name, "no such array"))
            written = saved.get(name, "no such array")
            expect(shapes.get(name) == saved.get(name), f"{where}, {name}", written, expected)

    def _read_arrays(self, step: int, record: dict, target: Any) -> Any:
        abstract = {name: _abstract(leaf) for name, leaf in named_leaves(target).items()}
        try:
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
            arrays = self._manager.restore(step, args=args).arrays
        except Exception as error:  # as above
            raise Damaged(f"its arrays cannot be read: {_first_line(error)}") from error
        descriptions = _describe(arrays)
        for name, description in record["arrays"].items():
            if descriptions[name] != description:
                raise Damaged(f"the bytes of {name} are not those that were saved")
        structure = jax.tree.structure(target)
        return jax.tree.unflatten(structure, [arrays[name] for name in named_leaves(target)])

    def _put_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                # Only process 0 renames; the barrier below keeps the others from reading meanwhile.
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
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        # The odd constant (2^32 over the golden ratio) keeps position 0 from being scrambled to 0.
        position = _scramble(position + index + jnp.uint32(0x9E3779B9))
    return _scramble(bits ^ position).sum(dtype=jnp.uint32)


def _scramble(x: Array) -> Array:
    """Returns MurmurHash3's finalizer of x: one-to-one on 32 bits; each bit changes all others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
