"""The page of settings has every setting of a configuration, with its default."""

import importlib.util
import re

from tests.docs.pages import ROOT

_spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "settings.py")
settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(settings)

ROW = re.compile(r"^(?:## `([\w.]+)`|\| `([\w.]+)` \| `(.*?)` \|)", re.M)


def test_the_page_has_the_settings_of_the_code():
    page = settings.PAGE.read_text(encoding="utf-8").split(settings.BEGIN)[1]
    assert ROW.findall(page) == ROW.findall(settings.tables()), "run: python docs/settings.py"


def test_settings_are_explained_by_their_field_or_docstring():
    rows = settings.tables()
    assert "| `loss.clip_low` | `None` | Clip of the ratio below 1" in rows
    assert "## `config.engine`" in rows and "| `slots` | `128` | " in rows
    assert "`chronological`, `leave_one_out`." in rows
