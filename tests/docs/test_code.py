"""The code of the documentation runs as it stands, and prints what the pages say that it prints."""

import sys

import pytest

from tests.docs.pages import ROOT, blocks, name, pages

WITH_CODE = [page for page in pages() if any(b.language == "python" for b in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    """Runs the python blocks of a page in order, in one namespace and an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    space = {"__name__": "page"}
    printed = ""
    try:
        for block in blocks(page):
            if block.mark.startswith("file: "):
                (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
            elif block.language == "python":
                code = "\n" * (block.line - 1) + block.text  # a traceback names the page's line
                exec(compile(code, name(page), "exec"), space)
                printed = capsys.readouterr().out
            elif block.mark == "output":
                assert printed == block.text, f"{name(page)}, line {block.line}"
    finally:
        for module in set(sys.modules) - before:
            if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in str(
                sys.modules[module].__file__
            ):
                del sys.modules[module]


def test_every_block_has_a_known_language_and_mark():
    known = {"python", "bash", "text", "json", "toctree", "include", "eval"}
    for page in pages():
        for block in blocks(page):
            assert block.language in known, (name(page), block)
            assert not block.mark or block.mark == "output" or block.mark.startswith("file: "), (
                name(page),
                block,
            )


def test_pages_are_found():
    assert ROOT / "docs" / "training_step.md" in WITH_CODE
