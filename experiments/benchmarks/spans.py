"""Times a decode step on a CPU that reads spans of columns beside one that reads a window.

``python -m experiments.benchmarks.spans --json=FILE`` decodes with the embedded tiny policy and the
engine sizes of ``runs.RunConfig``. The rows have lengths of its rollouts, spread evenly from
``SHORTEST`` to ``LONGEST``. In some works a share of the rows is padding, as between two sizes of
``row_buckets``. ``ours`` reads spans (``generation.span_rows``), ``peer`` a window of all rows
(``generation.rows.ColumnRows``), each in the smallest window by its own rule. The sides take turns;
times are medians of ``--repeats`` dispatches of ``decode_steps`` steps, after one that compiles.
``machine: reading`` is the rate at which this processor sums an array that no cache holds.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import app
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.inputs import DecodeInputs
from agenticrec_jax.generation.placement import Placement
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.generation.sampling import NO_FILTERS
from agenticrec_jax.generation.state import RUNNING, State
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.runs import RunConfig
from experiments.benchmarks import rollout_limit
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peer_loop import Stopwatch
from experiments.benchmarks.turns import Turns, median, one_turn

TINY = ROOT / "tools_data" / "tiny_policy"
ROWS = (1, 4, 8, 16, 32)
SHORTEST = 170  # tokens of a row
LONGEST = 450
PADDED = 3 / 8  # of the rows, in the works with padding
NEVER = 2**30  # an id that is never sampled
WINDOW = "a window of every row"


class Side:
    """Decode dispatches of rows that never end, each from the same lengths."""

    def __init__(self, policy: tuple, rows: int, padding: int, sizes: EngineConfig, spans: bool):
        graphdef, params = policy
        placement = Placement(None, graphdef)
        programs = Programs(graphdef, NEVER, (NEVER,), slots=rows, shards=1, spans=spans)
        lengths = np.linspace(SHORTEST, LONGEST, rows - padding).astype(np.int32)
        slots = np.full(rows, rows, np.int32)  # padding is no slot
        slots[: len(lengths)] = np.arange(len(lengths))
        self.window = programs.window(lengths.tolist(), rows, sizes)
        self._steps = sizes.decode_steps
        self._lengths = jnp.asarray(np.pad(lengths, (0, padding)))
        self._state = programs.empty_state(params, sizes.columns)
        self._dispatch = functools.partial(
            programs.decode,
            placement.decode_params(params, rows),
            inputs=DecodeInputs(slots, np.int32(rows), NO_FILTERS.draw(0.0)),
            window=self.window,
            steps=self._steps,
            least_steps=self._steps,
        )

    def run(self) -> dict[str, float]:
        """Times one dispatch."""
        state = self._begun()
        with Stopwatch() as watch:
            self._state, report = self._dispatch(state=state)
            jax.block_until_ready(self._state)
        assert int(report.steps) == self._steps
        return watch.took

    def _begun(self) -> State:
        ones = jnp.ones_like(self._lengths)
        return self._state._replace(
            length=self._lengths + 0,  # a copy, since the state is donated
            token=ones,
            limit=NEVER * ones,
            status=RUNNING * ones,
        )


def measure(policy: tuple, rows: Sequence[int], sizes: EngineConfig, repeats: int) -> list[dict]:
    """Returns the rows of each number of rows, without and with padding."""
    _, bandwidth = rollout_limit.rates()
    table = [figure("machine: reading", "GB a CPU-s", bandwidth / 1e9)]
    for count in rows:
        for padding in sorted({0, int(PADDED * count)}):
            of_rows = dataclasses.replace(sizes, slots=count, row_buckets=(count,))
            sides = [Side(policy, count, padding, of_rows, spans) for spans in (True, False)]
            turns = [one_turn([side.run for side in sides], turn) for turn in range(1 + repeats)]
            name = f"{count} rows" + (f", {padding} of them padding" if padding else "")
            table += figures(name, turns, sizes.decode_steps, [side.window for side in sides])
    return table


def figures(name: str, turns: Turns, steps: int, windows: Sequence[int]) -> list[dict]:
    """Returns the windows, a step's CPU and wall milliseconds, and the ratio of the sides."""
    rows = [figure(f"{name}: window", "columns", windows[0], windows[1], WINDOW)]
    for what, unit, key in (("CPU", "CPU-ms", "cpu"), ("wall", "ms", "seconds")):
        spans, window = (1e3 * median(turns, side, key) / steps for side in range(2))
        rows.append(figure(f"{name}: {what}", f"{unit} a step", spans, window, WINDOW))
    ratio = median(turns, 1, "cpu") / median(turns, 0, "cpu")
    return [*rows, figure(f"{name}: CPU of {WINDOW}", "times ours", ratio)]


def main(argv) -> None:
    del argv
    sizes = RunConfig().engine
    publish(
        lambda: measure(nnx.split(load_policy(TINY, dtype="float32")), ROWS, sizes, _REPEATS.value),
        _JSON.value,
        settings={"shortest": SHORTEST, "longest": LONGEST, "repeats": _REPEATS.value},
    )


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _REPEATS = flags.DEFINE_integer("repeats", 9, "Timed dispatches of each side.", lower_bound=1)
    app.run(main)
