"""Help of a program: its docstring, its flags, and every setting of its configuration.

``--help`` replaces that of absl, which knows nothing of the settings. ``--helpfull`` adds the
flags of absl, without those that other imported libraries define.
"""

import re
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli.configs import chosen_config, load_config
from agenticrec_jax.cli.settings import sections

HELP = ("-h", "-help", "--help", "-?", "-helpshort", "--helpshort")
HELP_FULL = ("-helpfull", "--helpfull")
SHARED = "agenticrec_jax.cli.app"  # whose flags every program has
ABSL = ("absl.app", "absl.flags", "absl.logging")


def requested_help(argv: Sequence[str]) -> str | None:
    """Returns ``help`` or ``helpfull`` if the command line asks for it before a ``--``."""
    for argument in argv[1:]:
        if argument == "--":
            break
        if argument in HELP:
            return "help"
        if argument in HELP_FULL:
            return "helpfull"
    return None


def help_text(argv: Sequence[str], full: bool) -> str:
    """Returns the help of the program that runs.

    Args:
      argv: the command line; the settings are those of its ``--config``, or of the default one.
      full: whether absl's own flags follow.

    Raises:
      InputError: there is no such configuration.
    """
    blocks = [_docstring((sys.modules["__main__"].__doc__ or "").strip())]
    blocks.append("flags:\n" + _without_heading(flags.FLAGS.main_module_help()))
    blocks.append("flags of every program:\n" + _without_heading(flags.FLAGS.module_help(SHARED)))
    if config := chosen_config(argv):
        blocks.append(_settings(config))
    if full:
        everything = flags.FLAGS.get_help()
        for module in ABSL:
            section = re.search(rf"^{module}:\n(.*?)(?=^\S|\Z)", everything, re.M | re.S)
            blocks.append(f"flags of {module}:\n{section[1].rstrip()}")
    else:
        blocks.append("--helpfull also lists the flags of absl.")
    return "\n\n".join(blocks)


def _docstring(text: str) -> str:
    """Returns a docstring, on a terminal wrapped to its width."""
    if not sys.stdout.isatty():
        return text
    return "\n\n".join(
        "\n".join(map(_command, paragraph.split("\n")))
        if paragraph.startswith(" ")
        else flags.text_wrap(" ".join(paragraph.split()))
        for paragraph in text.split("\n\n")
    )


def _command(line: str) -> str:
    """Returns a command of a docstring, in lines that a shell reads as one."""
    width = flags.get_help_width() - len(" \\")
    lines = textwrap.wrap(
        line, width, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _without_heading(text: str) -> str:
    """Returns absl's explanation of a module's flags without the first line, the module."""
    return text.strip("\n").partition("\n")[2].replace("\n    (default: 'None')", "")


def _settings(config: str) -> str:
    """Returns every setting of a configuration with its value and meaning, one below the other."""
    from agenticrec_jax.runs import run_config

    blocks = [f"settings of --config={config}; --config.rta.steps=30 changes one:"]
    for name, explanation, settings in sections(run_config(load_config(config))):
        lines = [_wrapped(f"{name}: {explanation}" if explanation else f"{name}:", "")]
        for setting in settings:
            lines.append(_wrapped(f"--{name}.{setting.key}: {setting.meaning}", "  "))
            lines.append(_wrapped(f"(default: {setting.value!r})", "    "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(text: str, indent: str) -> str:
    plain = text.replace("``", "")
    return flags.text_wrap(plain, indent=f"{indent}  " if indent else "  ", firstline_indent=indent)
