"""Writes the tables of all settings of a configuration: ``python docs/settings.py``.

Keys, values and explanations are those of ``agenticrec_jax.runs.RunConfig``, as ``--help`` of the
programs lists them.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "settings.md"
BEGIN = "<!-- tables: python docs/settings.py -->"
END = "<!-- end of the tables -->"


def tables() -> str:
    """Returns a table for each section, in the order of the configuration."""
    from agenticrec_jax.cli.settings import sections
    from agenticrec_jax.runs import RunConfig

    text = []
    for name, explanation, settings in sections(RunConfig()):
        text += ["", f"## `{name}`", ""]
        text += [markdown(explanation), ""] if explanation else []
        text += ["| setting | default | meaning |", "|---|---|---|"]
        for setting in settings:
            meaning = markdown(setting.meaning)
            text.append(f"| `{setting.key}` | `{setting.value!r}` | {meaning} |")
    return "\n".join(text[1:])


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
