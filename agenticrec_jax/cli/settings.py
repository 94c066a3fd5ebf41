"""Settings of a configuration with their values and explanations, for --help and the reference."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      key: within its section, such as ``loss.clip_low``.
      value: its present one.
      meaning: the values that it can have, if they are listed, and its explanation.
    """

    key: str
    value: Any
    meaning: str


def sections(config: Any, name: str = "config") -> Iterator[tuple[str, str, list[Setting]]]:
    """Yields the name, the explanation and the settings of each section of a configuration.

    The first section has the settings outside of all others, and no explanation.

    Args:
      config: a dataclass whose fields are settings and sections; a section is a dataclass.
      name: of the whole.
    """
    fields = dataclasses.fields(config)
    outside = [field for field in fields if not is_section(getattr(config, field.name))]
    if outside:
        yield name, "", list(_settings(config, "", outside))
    for field in fields:
        section = getattr(config, field.name)
        if is_section(section):
            settings = list(_settings(section, "", dataclasses.fields(section)))
            yield f"{name}.{field.name}", explanation(type(section)), settings


def _settings(section: Any, prefix: str, fields: Any) -> Iterator[Setting]:
    """Yields the settings of a section; those of the sections inside it follow, with a prefix."""
    inner = []
    for field in fields:
        value = getattr(section, field.name)
        if is_section(value):
            inner += _settings(value, f"{prefix}{field.name}.", dataclasses.fields(value))
            continue
        meaning = f"{choices(field.type)} {described(section, field)}".strip()
        yield Setting(f"{prefix}{field.name}", value, meaning)
    yield from inner


def is_section(value: Any) -> bool:
    """Whether a value is a group of settings."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def choices(annotation: Any) -> str:
    """Returns the values that a setting can have, if they are listed; else nothing."""
    if get_origin(annotation) is not Literal:
        return ""
    return ", ".join(f"``{choice}``" for choice in get_args(annotation)) + "."


def described(section: Any, field: dataclasses.Field) -> str:
    """Returns the description of a field, or its text in the class's docstring."""
    info = getattr(type(section), "__pydantic_fields__", {}).get(field.name)
    if info and info.description:
        return info.description
    text = attribute_text(type(section), field.name)
    return text[:1].upper() + text[1:]


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
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
