"""Paths, names of the code and settings that the documentation mentions exist."""

import importlib
import inspect
import re

import pytest

from agenticrec_jax.runs import default_config
from tests.docs.pages import ROOT, name, pages

PACKAGE = "agenticrec_jax"
ROOMS = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.stem.isidentifier()}
FOLDERS = ("docs", "tests", "experiments", "tools_data", "colab", ".ci")
PATH = re.compile(r"[\w.]+(?:/[\w.]+)+/?")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
SUFFIXES = ("json", "jsonl", "html", "csv", "parquet", "py", "md", "safetensors", "model", "gz")


def mentioned(page) -> list[str]:
    """The inline code of a page, without what stands in fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", text)


def resolves(dotted: str) -> bool:
    """Whether a dotted name, from a room on, is a module or something in one."""
    names = dotted.removeprefix(f"{PACKAGE}.").split(".")
    if names[0] not in ROOMS:
        return len(names) == 1 and hasattr(importlib.import_module(PACKAGE), names[0])
    target = importlib.import_module(PACKAGE)
    for attribute in names:
        if inspect.ismodule(target) and not hasattr(target, attribute):
            try:
                importlib.import_module(f"{target.__name__}.{attribute}")
            except ModuleNotFoundError:
                return False
        if not hasattr(target, attribute):
            # A field of a dataclass without a default is no attribute of its class.
            return attribute in getattr(target, "__dataclass_fields__", {})
        target = getattr(target, attribute)
    return True


def setting(dotted: str) -> bool:
    """Whether ``config.a.b`` is a setting of a run."""
    node = default_config()
    for key in dotted.split(".")[1:]:
        if key not in node:
            return False
        node = node[key]
    return True


@pytest.mark.parametrize("page", pages(), ids=name)
def test_names_of_a_page_exist(page):
    missing = []
    for text in mentioned(page):
        if flag := re.match(r"--(config\.[\w.]+\w)", text):
            text = flag[1]
        if PATH.fullmatch(text):
            first = text.split("/")[0]
            if first in FOLDERS and not (ROOT / text).exists():
                missing.append(text)
            elif first in ROOMS and not (ROOT / PACKAGE / text).exists():
                missing.append(text)
        elif DOTTED.fullmatch(text) and text.split(".")[-1] not in SUFFIXES:
            first = text.split(".")[0]
            if first == "config" and not setting(text):
                missing.append(text)
            elif (first in ROOMS or first == PACKAGE) and not resolves(text):
                missing.append(text)
            elif first == "engine" and not setting(f"config.{text}"):
                missing.append(text)
    assert not missing


def test_missing_names_are_noticed():
    assert resolves("training.learner.make_update") and resolves("losses.grpo_loss")
    assert resolves("agenticrec_jax.load_policy") and not resolves("agenticrec_jax.load_polic")
    assert not resolves("training.learner.make_updat") and not resolves("training.learned")
    assert resolves("tools.text.ToolOptions.profile_words")
    assert setting("config.rta.loss.clip_low") and not setting("config.rta.los")
    assert setting("config.engine.compile_ahead") and not setting("config.engine.compiled")
