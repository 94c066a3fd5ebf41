"""Search of one or two settings with which the programs of a stage fit a chip."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from agenticrec_jax.errors import InputError
from agenticrec_jax.runs.config import RunConfig

Change = tuple[str, Any]  # a setting such as engine.slots, and its value


def search(
    config: RunConfig, stage: str, shards: int, fits: Callable[[RunConfig], bool]
) -> list[tuple[Change, ...]]:
    """Returns changes with which a stage fits: of one setting each, or else of two.

    Of each setting the value is the one nearest to the config's. Settings that change what is
    trained (adapters, dtypes, lengths) are not tried. Empty if nothing was found.

    Args:
      config: that does not fit.
      stage: ``rta`` or ``ppr``.
      shards: over which an engine splits its slots.
      fits: whether a config fits; an InputError of it counts as no.
    """

    @functools.cache  # each takes minutes, and pairs begin with one that was tried
    def works(changes: tuple[Change, ...]) -> bool:
        try:
            return fits(changed(config, changes))
        except InputError:
            return False

    def nearest(values: list[tuple[Change, ...]]) -> tuple[Change, ...] | None:
        """Returns the first that works, by bisection: if one works, so do those behind it."""
        if not values or not works(values[-1]):
            return None
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if works(values[middle]):
                high = middle
            else:
                low = middle + 1
        return values[high]

    options = alternatives(config, stage, shards)
    singles = [[((name, value),) for value in values] for name, values in options.items()]
    if alone := [changes for values in singles if (changes := nearest(values))]:
        return alone
    for changes in meshes(config):
        if works(changes):
            return [changes]
    for first, second in itertools.combinations(options, 2):
        last = changed(config, [(first, options[first][-1])])
        if seconds := alternatives(last, stage, shards).get(second):
            pair = nearest([((first, value), (second, seconds[-1])) for value in options[first]])
            if pair:
                return [nearest([(pair[0], (second, value)) for value in seconds])]
    return []


def alternatives(config: RunConfig, stage: str, shards: int) -> dict[str, list[Any]]:
    """Returns the values of each setting that take less memory, from the nearest on."""
    settings = getattr(config, stage)
    members = settings.members_at_once or settings.members
    fewer = [n for n in range(members - 1, 0, -1) if settings.members % n == 0]
    slots = config.engine.slots
    halves = [slots >> n for n in range(1, slots.bit_length()) if slots % (shards << n) == 0]
    # One part of one group in a micro-batch of a process, or as many as it has shards.
    completion = config.engine.max_tokens
    least = config.engine.prompt_buckets[-1] + members * completion
    values = {
        "engine.slots": halves,
        "policy.remat": ["full"] if config.policy.remat != "full" else [],
        f"{stage}.members_at_once": fewer,
        f"{stage}.token_budget": [least] if least < settings.token_budget else [],
    }
    return {name: tried for name, tried in values.items() if tried}


def meshes(config: RunConfig) -> list[tuple[Change, ...]]:
    """Returns meshes of the same devices that split the state or the engine's weights further."""
    data, fsdp, tensor = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    others = []
    if data > 1:
        others.append((("mesh.data", 1), ("mesh.fsdp", data * fsdp)))
    if fsdp % 2 == 0:
        others.append((("mesh.fsdp", fsdp // 2), ("mesh.tensor", 2 * tensor)))
    return others


def changed(config: RunConfig, changes: Iterable[Change]) -> RunConfig:
    """Returns the config with other values of some settings.

    Raises:
      InputError: a value does not go with the others.
    """
    for name, value in changes:
        section_name, setting = name.split(".")
        section = dataclasses.replace(getattr(config, section_name), **{setting: value})
        config = dataclasses.replace(config, **{section_name: section})
    return config
