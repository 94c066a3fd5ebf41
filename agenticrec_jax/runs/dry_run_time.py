"""Least time of a step and a stage, by the rooflines of their programs, and its price."""

import math
from collections.abc import Mapping

from agenticrec_jax.generation.shapes import Shapes
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.stage_config import GrpoConfig
from agenticrec_jax.runtime.console import print_sentence


def rollout_runs(
    config: RunConfig, stage: str, hosts: int, shards: int, tokens: int
) -> dict[str, int]:
    """Returns how often the engine of a host runs its programs in a step, by their names.

    512 rollouts of 3,000 tokens on 4 hosts with 16 slots and 64 decoding steps a run are
    128 x 3,000 / (16 x 64) = 375 runs of ``decode``. Pauses decide how often ``join`` and
    ``splice`` run: they are left out, and the tokens of observations are counted as decoded.

    Args:
      config: of the run.
      stage: of reinforcement.
      hosts: that share the prompts.
      shards: of a host's slots.
      tokens: mean number of tokens of a rollout behind its prompt.
    """
    settings = getattr(config, stage)
    engine = config.engine
    prompts = math.ceil(settings.prompts / hosts)
    at_once = shards * Shapes(engine, shards).prompts_at_once(settings.members)[-1]
    decoded = prompts * settings.members * tokens
    return {
        "prefill": math.ceil(prompts / at_once),
        "decode": math.ceil(decoded / (engine.slots * engine.decode_steps)),
    }


def step_seconds(rows: list[dict], rollouts: Mapping[str, int]) -> tuple[float, float] | None:
    """Returns the least seconds of a step's rollouts and of its learning.

    None where the peak rates of the chip are not known, or a program does not fit.

    Args:
      rows: of the dry run, one for each program of a stage.
      rollouts: runs in a step of the programs that sample.
    """
    if any(row["seconds"] is None for row in rows):
        return None
    sampling = sum(rollouts.get(_program(row), 0) * row["seconds"] for row in rows)
    learning = sum(row["runs"] * row["seconds"] for row in rows)
    return sampling, learning


def print_time(
    rows: list[dict],
    settings: GrpoConfig,
    rollouts: Mapping[str, int],
    tokens: int,
    chips: int,
    price: float = 0,
) -> None:
    """Prints the least time of a step and of the stage, in one sentence.

    Args:
      rows: of the dry run, one for each program of the stage.
      settings: of the stage.
      rollouts: runs in a step of the programs that sample.
      tokens: mean number of tokens of a rollout behind its prompt.
      chips: that the stage runs on.
      price: of a chip for an hour, in dollars; 0 if it is not known.
    """
    if (seconds := step_seconds(rows, rollouts)) is None:
        return
    sampling, learning = seconds
    count = settings.prompts * settings.members
    hours = settings.steps * (sampling + learning) * chips / 3600
    dollars = f", {hours * price:,.2f} dollars" if price else ""
    print_sentence(
        f"roofline, not a measurement: a step of {count:,} rollouts of {tokens:,} tokens takes at "
        f"least {sampling + learning:,.3g} s ({sampling:.3g} s of sampling, {learning:.3g} s of "
        f"learning), and {settings.steps} steps at least {hours:,.3g} chip-hours{dollars}; "
        "splices, joins and the time of tools come to this"
    )


def _program(row: dict) -> str:
    return row["name"].rsplit(": ", 1)[-1]
