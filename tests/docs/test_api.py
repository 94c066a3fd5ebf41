"""The API reference: its names exist, and those that users meet first have an example."""

import importlib
import inspect
import re

import pytest

import agenticrec_jax
from tests.docs.pages import DOCS, name

PAGES = sorted((DOCS / "reference" / "api").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. auto(module|class|function):: (\S+)$", re.M)
ENTRIES = [
    (page, kind, dotted)
    for page in PAGES
    for kind, dotted in DIRECTIVE.findall(page.read_text(encoding="utf-8"))
]


def resolved(kind: str, dotted: str):
    """The object of an entry."""
    if kind == "module":
        return importlib.import_module(dotted)
    module, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_of_a_page_exist_and_are_explained(page):
    for kind, dotted in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
        target = resolved(kind, dotted)
        assert inspect.getdoc(target), dotted
        assert kind != "class" or inspect.isclass(target), dotted
        assert kind != "function" or callable(target), dotted


def test_each_name_stands_once():
    names = [dotted for _, _, dotted in ENTRIES]
    assert len(names) == len(set(names))


def test_names_of_the_package_itself_are_in_the_reference():
    names = {dotted.rpartition(".")[2] for _, _, dotted in ENTRIES}
    assert set(agenticrec_jax.__all__) <= names


def test_the_index_lists_every_page():
    index = (DOCS / "reference" / "api" / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.stem == "index" or f"\n{page.stem}\n" in index, page
        assert page.stem == "index" or f"[]({page.name})" in index, page


@pytest.mark.parametrize(
    "dotted",
    [
        "models.io.huggingface.load_policy",
        "generation.engine.Engine",
        "agent.episodes.run_episodes",
        "training.learner.make_update",
        "losses.grpo.grpo_loss",
        "rewards.ranking_reward",
        "tools.base.Tool",
        "sequential.fit.fit_sasrec",
        "runs.run.Run",
        "serving.recommender.Recommender",
    ],
)
def test_names_that_users_meet_first_have_an_example(dotted):
    target = resolved("class", f"agenticrec_jax.{dotted}")
    documented = [target, *vars(target).values()] if inspect.isclass(target) else [target]
    docs = [inspect.getdoc(each) or "" for each in documented if callable(each)]
    assert any(">>> " in doc or "Example::" in doc for doc in docs)
