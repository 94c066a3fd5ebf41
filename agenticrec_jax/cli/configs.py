"""Configuration files by name: ``office``, ``qwen3:v5e_16``, or a path to a file of your own.

A file defines ``get_config(preset)`` and returns an ``ml_collections.ConfigDict``. Those that ship
with the package lie in ``experiments/configs``.
"""

import importlib.util
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.errors import InputError

flags.disclaim_key_flags()  # --config belongs to the program that defines it, and to its --help

DIRECTORY = ROOT / "experiments" / "configs"


def names() -> list[str]:
    """Returns the names of the bundled configurations."""
    return sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem != "__init__")


def config_path(name: str) -> str:
    """Returns the file of a bundled configuration; any other name as it is.

    Args:
      name: such as ``qwen3``, ``qwen3:v5e_16`` (with a preset), or a path; a file wins over a name.
    """
    stem, colon, preset = name.partition(":")
    if stem in names() and not Path(stem).is_file():
        return f"{DIRECTORY / stem}.py{colon}{preset}"
    return name


def load_config(name: str) -> ConfigDict:
    """Returns the configuration of a name such as ``office:smoke``, or of a file.

    Raises:
      InputError: there is no such file, or it has no such preset.
    """
    path, _, preset = config_path(name).partition(":")
    if not Path(path).is_file():
        raise InputError(f"configuration: found {name!r}, expected a file or one of {names()}")
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(preset) if preset else module.get_config()
    except ValueError as error:
        raise InputError(f"configuration {name}: {error}") from error


def define_config(
    default: str | None = "office", flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines the flag ``--config`` of a program.

    ``--config=NAME`` or ``--config=FILE``, each with ``:PRESET``, chooses the configuration;
    ``--config.KEY=VALUE`` changes a setting.

    Args:
      default: name of the configuration without the flag, which `complete` adds; None for none.
      flag_values: registry of flags.
    """
    default_text = f" (default: {default})" if default else ""
    # A default of the flag itself would be read, and changed settings looked up in it, as the flag
    # is defined: a misspelled setting would end the import of the program in a traceback.
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        f"Configuration: a file or one of {', '.join(names())}, with :PRESET{default_text}.",
        flag_values=flag_values,
    )
    _DEFAULTS[id(flag_values)] = default
    return holder


def chosen_config(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> str | None:
    """Returns the value of the last ``--config`` of a command line, or else the default's name.

    None for a program without the flag, or without a default.
    """
    if "config" not in flag_values:
        return None
    chosen = _DEFAULTS.get(id(flag_values))
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            chosen = value if equals else (argv[i + 1] if i + 1 < len(argv) else chosen)
    return chosen


_DEFAULTS: dict[int, str | None] = {}  # configuration of a registry without the flag


def complete(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns a command line whose ``--config`` is a file: the one of its name, or the default."""
    completed = list(argv)
    given = False
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            given = True
            if equals:
                completed[i] = f"{flag}={config_path(value)}"
            elif i + 1 < len(argv):
                completed[i + 1] = config_path(argv[i + 1])
    default = _DEFAULTS.get(id(flag_values))
    if default and not given:
        completed.insert(1, f"--config={config_path(default)}")
    return completed
