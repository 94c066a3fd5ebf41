"""YAML as people write it: keys in the order of their meaning, scripts as blocks."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Dumps strings of several lines as blocks, where YAML can."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def dump(document: dict) -> str:
    """Returns a document as YAML that every reader reads alike."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=2**16)
