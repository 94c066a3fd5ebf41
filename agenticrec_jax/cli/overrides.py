"""Settings on a command line: ``--config.KEY=VALUE``, read by the declared types of `RunConfig`.

- A value follows an equals sign or a blank: ``--config.seed=9``, ``--config.seed 9``.
- A switch may stand alone, ``--config.policy.scan_layers``; ``--noconfig.policy.scan_layers`` turns
  it off.
- A sequence is a Python literal, ``--config.rta.prompt_buckets=(32,64)``, words between commas,
  ``--config.policy.lora.targets=q_proj,v_proj``, or the setting repeated for each element.
- ``None`` stands for no value where a setting may have none.

A text that its type does not read stays text, and `runs.run_config` refuses it by its key.
"""

import ast
import dataclasses
import difflib
import re
import types
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from ml_collections import ConfigDict

from agenticrec_jax.errors import InputError

_SETTING = re.compile(r"--?(no)?config\.([^=]*)(=(?s:.*))?")
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Override(NamedTuple):
    """One setting that a command line changes.

    Attributes:
      key: such as ``rta.steps``.
      texts: its values as they were typed, one for each time that it was given.
    """

    key: str
    texts: tuple[str, ...]


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits a command line into its other arguments and its settings.

    >>> split_settings(["train", "--config.rta.steps", "9", "--stage=rta"])
    (['train', '--stage=rta'], [Override(key='rta.steps', texts=('9',))])

    Raises:
      InputError: names a setting that does not exist or has no value.
    """
    rest: list[str] = []
    texts: dict[str, list[str]] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":  # flags end here
            rest += [argument, *arguments]
            break
        match = _SETTING.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        negated, key, value = match.groups()
        is_switch = setting_type(key) is bool
        if negated and (not is_switch or value):
            raise InputError(f"flag {argument}: found --no before it, expected it before a switch")
        if value is None and is_switch:
            text = "false" if negated else "true"
        elif value is None:
            if not arguments:
                raise InputError(f"flag --config.{key}: found no value, expected one")
            text = arguments.pop(0)
        else:
            text = value[1:]
        texts.setdefault(key, []).append(text)
    return rest, [Override(key, tuple(given)) for key, given in texts.items()]


def apply_settings(config: ConfigDict, settings: Sequence[Override]) -> None:
    """Changes settings of a configuration in place.

    Raises:
      InputError: names the flag of a setting for which the configuration has no section.
    """
    for key, texts in settings:
        *sections, name = key.split(".")
        section = config
        for depth, word in enumerate(sections):
            section = section.get(word)
            if not isinstance(section, ConfigDict):
                path = ".".join(sections[: depth + 1])
                raise InputError(
                    f"flag --config.{key}: found no settings {path} in the configuration, "
                    "expected a section"
                )
        # The types are those of RunConfig, which run_config checks with a sentence for each.
        with section.unlocked(), section.ignore_type():
            section[name] = read_value(texts, setting_type(key))


def setting_type(key: str) -> Any:
    """Returns the declared type of a setting such as ``rta.steps``.

    Raises:
      InputError: names the setting if there is none of that name.
    """
    from agenticrec_jax.runs import RunConfig  # imports JAX, which some programs do not

    declared: Any = RunConfig
    path = "config"
    for name in key.split("."):
        if not dataclasses.is_dataclass(declared):
            # Settings of prepare_data, which checks them itself.
            if path.startswith("config.preparation"):
                return Any
            raise InputError(f"flag --config.{key}: found a setting inside {path}, expected none")
        fields = {field.name: field.type for field in dataclasses.fields(declared)}
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1) or fields
            raise InputError(
                f"flag --config.{key}: found a setting that does not exist, expected in {path} "
                f"one of {', '.join(close)}"
            )
        declared = fields[name]
        path = f"{path}.{name}"
    if dataclasses.is_dataclass(declared):
        names = ", ".join(field.name for field in dataclasses.fields(declared))
        raise InputError(f"flag --config.{key}: found a section, expected one of its: {names}")
    return declared


def read_value(texts: Sequence[str], declared: Any) -> Any:
    """Returns the value of a setting's texts, or the last text if its type does not read it.

    >>> read_value(["9"], int), read_value(["1e-3"], float), read_value(["9"], str)
    (9, 0.001, '9')
    >>> read_value(["16"], int | tuple[int, ...]), read_value(["16"], tuple[int, ...])
    (16, (16,))
    >>> read_value(["q_proj", "v_proj"], tuple[str, ...]), read_value(["None"], float | None)
    (('q_proj', 'v_proj'), None)
    >>> read_value(["q_proj,v_proj"], tuple[str, ...])
    ('q_proj', 'v_proj')
    >>> read_value([""], tuple[str, ...]), read_value(["a, b"], tuple[str, ...])
    ((), ('a', 'b'))
    """
    union = get_origin(declared) in (Union, types.UnionType)
    members = get_args(declared) if union else (declared,)
    is_sequence = any(get_origin(member) is tuple for member in members)
    if is_sequence and len(texts) > 1:
        return tuple(map(_literal, texts))
    text = texts[-1]
    if declared is Any:
        return _literal(text)
    if type(None) in members and text == "None":
        return None
    if bool in members:
        return _BOOLEANS.get(text.lower(), text)
    if str in members or any(get_origin(member) is Literal for member in members):
        return text
    for number in (int, float):
        if number in members:
            try:
                value = number(text)
            except ValueError:
                continue
            # 1e-400 is no float: the text is refused by its name, in place of a 0.
            return text if value == 0 and re.search("[1-9]", text.lower().split("e")[0]) else value
    value = _literal(text)
    if isinstance(value, bool):  # of a number: Python takes True for 1
        return text
    if is_sequence and value == text:  # no literal: words
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if is_sequence and not isinstance(value, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
