"""Writes the tables of all settings of a configuration: ``python docs/settings.py``.

Keys, values and explanations are those of ``agenticrec_jax.runs.RunConfig`` and of the dataclasses
inside it: the description of a field, or else its text in the class's docstring.
"""

import dataclasses
import inspect
import pathlib
import re
import sys
from typing import Any, Literal, get_args, get_origin

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "settings.md"
BEGIN = "<!-- tables: python docs/settings.py -->"
END = "<!-- end of the tables -->"


def tables() -> str:
    """Returns a table for each section, in the order of the configuration."""
    from agenticrec_jax.runs import RunConfig

    config = RunConfig()
    top = [f for f in dataclasses.fields(config) if not is_section(getattr(config, f.name))]
    text = ["## `config`", "", *table(config, "", top)]
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if is_section(section):
            key = f"config.{field.name}"
            text += ["", f"## `{key}`", "", explanation(type(section)), ""]
            text += table(section, "", dataclasses.fields(section))
    return "\n".join(text)


def table(section: Any, prefix: str, fields: Any) -> list[str]:
    """Returns the rows of a section; those of the sections inside it follow, with a prefix."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    inner = []
    for field in fields:
        value = getattr(section, field.name)
        if is_section(value):
            inner += table(value, f"{prefix}{field.name}.", dataclasses.fields(value))[2:]
            continue
        meaning = f"{choices(field.type)} {described(section, field)}".strip()
        rows.append(f"| `{prefix}{field.name}` | `{value!r}` | {meaning} |")
    return rows + inner


def is_section(value: Any) -> bool:
    """Whether a value is a group of settings."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def choices(annotation: Any) -> str:
    """Returns the values that a setting can have, if they are listed; else nothing."""
    if get_origin(annotation) is not Literal:
        return ""
    return ", ".join(f"`{choice}`" for choice in get_args(annotation)) + "."


def described(section: Any, field: dataclasses.Field) -> str:
    """Returns the description of a field, or its text in the class's docstring."""
    info = getattr(type(section), "__pydantic_fields__", {}).get(field.name)
    if info and info.description:
        return markdown(info.description)
    text = attribute_text(type(section), field.name)
    return markdown(text[:1].upper() + text[1:])


def attribute_text(cls: type, name: str) -> str:
    """Returns the text of a field in the ``Attributes:`` of a docstring; empty without one."""
    lines = (inspect.getdoc(cls) or "").partition("Attributes:")[2].splitlines()
    text: list[str] = []
    inside = False
    for line in lines:
        head = re.match(r"\s+([\w, ]+): (.*)", line)
        if head:
            inside = name in [word.strip() for word in head[1].split(",")]
            text += [head[2]] if inside else []
        elif inside:
            text.append(line.strip())
    return " ".join(text).strip()


def explanation(cls: type) -> str:
    """Returns the first paragraph of a docstring."""
    return markdown(" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()))


def markdown(text: str) -> str:
    """Returns the text of a docstring as a cell of a table."""
    return text.replace("``", "`").replace("|", "\\|")


def page() -> str:
    """Returns the page with the tables as the code has them now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
