"""The version of the package stands in the changelog and in the citation."""

import re

from agenticrec_jax import __version__
from tests.docs.pages import ROOT


def test_the_newest_entry_of_the_changelog_is_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+?),? ", text, re.M)[1] == __version__


def test_the_citation_has_the_version_and_both_papers():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in text
    assert "arXiv:2603.21613" in text and "arXiv:2603.09843" in text
