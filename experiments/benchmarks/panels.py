"""Times a decode step of few rows on this machine's CPU, by the width of the kernels' panels.

``python -m experiments.benchmarks.panels --json=FILE`` runs one token of each row through the
policy of 27.3M parameters, with its kernels uncut and in panels of every width
(``models.kernels.panels``). A run has every product of a decode step and no cached keys. ``ours``
is a width, ``peer`` the uncut kernels. The sides take turns; times are medians of ``--repeats``
turns of ``STEPS`` steps, after one that compiles. The width that the engine takes has a bound: up
to ``PANEL_ROWS`` rows it may take no more CPU time than the uncut kernels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.generation.placement import PANEL_ROWS, panel_width
from agenticrec_jax.models.kernels.panels import with_panels
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peer_loop import Stopwatch
from experiments.benchmarks.shapes import REFERENCE
from experiments.benchmarks.turns import Turns, median, one_turn

WIDTHS = (16, 32, 64, 128, 256)
ROWS = (1, PANEL_ROWS, 2 * PANEL_ROWS, 4 * PANEL_ROWS)
STEPS = 20
UNCUT = "kernels as they are"


def measure(
    shape: Qwen3Config, widths: Sequence[int], rows: Sequence[int], repeats: int
) -> list[dict]:
    """Returns the rows of every width beside the uncut kernels, for each number of rows."""
    graphdef, params = nnx.split(Qwen3(shape, rngs=nnx.Rngs(0)))
    cut = [with_panels(graphdef, params, width) for width in widths]
    run = jax.jit(lambda params, ids: nnx.merge(graphdef, params)(ids))
    table = []
    for count in rows:
        ids = jnp.arange(count, dtype=jnp.int32)[:, None]
        sides = [functools.partial(steps, run, side, ids) for side in (params, *cut)]
        turns: Turns = [one_turn(sides, turn) for turn in range(1 + repeats)]
        table += [
            row
            for side, width in enumerate(widths, 1)
            for row in figures(
                f"{count} rows, panels of {width}", turns, side, bounded(count, width)
            )
        ]
    return table


def steps(run: Callable, params: nnx.State, ids: jax.Array) -> dict[str, float]:
    """Times ``STEPS`` steps."""
    with Stopwatch() as watch:
        for _ in range(STEPS):
            run(params, ids).block_until_ready()
    return watch.took


def bounded(rows: int, width: int) -> bool:
    """Whether the engine decodes so many rows with panels of this width on this machine."""
    return width == panel_width() and rows <= PANEL_ROWS


def figures(name: str, turns: Turns, side: int, bounded: bool) -> list[dict]:
    """Returns a step's CPU and wall milliseconds, and the uncut kernels' CPU time over its."""
    rows = [
        figure(
            f"{name}: {what}",
            f"{unit} a step",
            1e3 * median(turns, side, key) / STEPS,
            1e3 * median(turns, 0, key) / STEPS,
            UNCUT,
        )
        for what, unit, key in (("CPU", "CPU-ms", "cpu"), ("wall", "ms", "seconds"))
    ]
    ratio = median(turns, 0, "cpu") / median(turns, side, "cpu")
    least = 1.0 if bounded else None
    return [*rows, figure(f"{name}: CPU of {UNCUT}", "times ours", ratio, bound=least)]


def main(argv) -> None:
    del argv
    settings = {"width": panel_width(), "repeats": _REPEATS.value}
    publish(
        lambda: measure(REFERENCE, WIDTHS, ROWS, _REPEATS.value), _JSON.value, settings=settings
    )


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns of each width.", lower_bound=1)
    app.run(main)
