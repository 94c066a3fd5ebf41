"""Configuration files by name: ``office``, ``qwen3:v5e_16``, or a path to a file of your own.

A file defines ``get_config(preset)`` and returns an ``ml_collections.ConfigDict``. Those that ship
with the package lie in ``experiments/configs``.
"""

import importlib.machinery
import importlib.util
import os
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from agenticrec_jax.bundled import ROOT, resolve
from agenticrec_jax.cli.overrides import Override, apply_settings, split_settings
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import local_path

flags.disclaim_key_flags()  # --config belongs to the program that defines it, and to its --help

DIRECTORY = ROOT / "experiments" / "configs"


def names() -> list[str]:
    """Returns the names of the bundled configurations."""
    return sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem != "__init__")


def config_path(name: str) -> str:
    """Returns the file of a bundled configuration; any other name as it is.

    Args:
      name: such as ``qwen3``, ``qwen3:v5e_16`` (with a preset), or a path; a file wins over a name.
        ``experiments/configs/qwen3.py`` is found from any directory.
    """
    stem, colon, preset = name.partition(":")
    if stem in names() and not Path(stem).is_file():
        return f"{DIRECTORY / stem}.py{colon}{preset}"
    if stem.startswith("experiments/configs/") and resolve(stem).is_file():
        return f"{resolve(stem)}{colon}{preset}"
    return name


def load_config(name: str) -> ConfigDict:
    """Returns the configuration of a name such as ``office:smoke``, or of a file.

    Settings that the file leaves out have their defaults.

    Raises:
      InputError: names the file that is missing, cannot be run, has no such preset or returns no
        ``ConfigDict``.
    """
    local_path(name, "configuration")  # an address has a colon, as a preset has
    path, _, preset = config_path(name).partition(":")
    path = os.path.expanduser(path)
    if not Path(path).is_file():
        raise InputError(
            f"configuration: found no file {path!r}, expected a Python file with get_config(), or "
            f"one of {', '.join(names())}"
        )
    loader = importlib.machinery.SourceFileLoader(f"config_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    # A configuration is a program of the user's, which may raise anything.
    try:
        loader.exec_module(module)
        values = module.get_config(preset) if preset else module.get_config()
    except InputError as error:
        raise InputError(f"configuration {name}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"configuration {name}: found a file that cannot be run ({reason}), expected "
            "get_config() to return a ConfigDict"
        ) from error
    expected = "a ConfigDict that get_config() returns"
    expect(isinstance(values, ConfigDict), f"configuration {name}", values, expected)
    return values


def define_config(
    default: str | None = "office", flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines the flag ``--config`` of a program.

    ``--config=NAME`` or ``--config=FILE``, each with ``:PRESET``, chooses the configuration;
    ``--config.KEY=VALUE`` changes a setting, see `cli.overrides`.

    Args:
      default: name of the configuration without the flag, which `complete` adds; None for none.
      flag_values: registry of flags.
    """
    default_text = f" (default: {default})" if default else ""
    flag = ConfigFlag(
        default,
        f"Configuration: a file or one of {', '.join(names())}, with :PRESET{default_text}.",
    )
    return flags.DEFINE_flag(flag, flag_values)


def chosen_config(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> str | None:
    """Returns the value of the last ``--config`` of a command line, or else the default's name.

    None for a program without the flag, or without a default.
    """
    if "config" not in flag_values:
        return None
    chosen = getattr(flag_values["config"], "default_name", None)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            chosen = value if equals else (argv[i + 1] if i + 1 < len(argv) else chosen)
    return chosen


class ConfigFlag(flags.Flag):
    """The flag ``--config``, whose value is a ``ConfigDict``.

    Attributes:
      default_name: of the configuration without the flag, None for none.
      chosen: name of the configuration, once it is parsed.
      settings: changed by ``--config.KEY=VALUE``.
    """

    def __init__(self, default_name: str | None, help_string: str):
        self.default_name = default_name
        self.chosen = default_name
        self.settings: list[Override] = []
        parser = flags.ArgumentParser()
        super().__init__(parser, flags.ArgumentSerializer(), "config", None, help_string)

    def _parse(self, argument: str) -> ConfigDict:
        from agenticrec_jax.runs import default_config  # imports JAX, which some programs do not

        try:
            config = load_config(argument)
        except InputError as error:
            raise InputError(f"flag --config: {error}") from error
        self.chosen = argument
        _add_defaults(config, default_config())
        apply_settings(config, self.settings)
        return config

    def with_preset(self, flag: flags.FlagHolder) -> ConfigDict:
        """Returns the default configuration with the preset of a flag, and with all settings.

        Raises:
          InputError: the command line names another configuration too.
        """
        if self.chosen != self.default_name:
            raise InputError(
                f"flag --{flag.name}: found it beside --config={self.chosen}, expected one of them"
            )
        return self._parse(f"{self.default_name}:{flag.value}")


def _add_defaults(config: ConfigDict, defaults: ConfigDict) -> None:
    """Adds the settings that a configuration leaves out, in place."""
    with config.unlocked():
        for name, value in defaults.items():
            if name not in config:
                config[name] = value
            elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
                _add_defaults(config[name], value)


def complete(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Prepares a command line for absl: ``--config`` stands on it, its settings do not.

    The settings are stored in the flag, which applies them to its configuration.

    Raises:
      InputError: names a setting that does not exist, has no value or has no configuration.
    """
    flag = flag_values["config"] if "config" in flag_values else None
    if not isinstance(flag, ConfigFlag):
        return list(argv)
    expanded = flag_values.read_flags_from_files(argv[1:], force_gnu=False)
    rest, flag.settings = split_settings(expanded)
    options = rest[: rest.index("--")] if "--" in rest else rest
    if any(argument.partition("=")[0] in ("--config", "-config") for argument in options):
        return [*argv[:1], *rest]
    if flag.default_name is not None:
        return [*argv[:1], f"--config={flag.default_name}", *rest]
    for key, _ in flag.settings:
        raise InputError(f"flag --config.{key}: found no --config beside it, expected one")
    return [*argv[:1], *rest]
