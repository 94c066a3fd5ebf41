"""The check of a tool for its author: it finds every planted fault, and none in our own tools."""

import doctest
import itertools
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.testing import tools as checked_module
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.tools import check_tool
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import object_schema
from agenticrec_jax.tools.knowledge_graph import knowledge_graph
from agenticrec_jax.tools.recthinker import SearchKnowledgeGraph
from agenticrec_jax.tools.registry import TOOLS
from agenticrec_jax.tools.text import ToolOptions


class Tool:
    """A tool without arguments."""

    name = "mine"
    description = "Something about the user."
    parameters = object_schema()


class CountBrands(Tool):
    def __call__(self, view):
        return f"brands bought: {len({view.items.brand[item] for item in view.own_items} - {None})}"


class Before(Tool):
    """Looks up other users' events in a log of its own, rightly: those strictly earlier."""

    def __init__(self, log):
        self.log = log

    def __call__(self, view):
        earlier = self.log.time < view.time
        return f"{int(earlier.sum())} events, the last item {self.log.item[earlier][-1]}"


class LooksAhead(Before):
    """Events of other users after the example."""

    def __call__(self, view):
        later = (self.log.time > view.time) & (self.log.user != view.user)
        return f"{int(later.sum())} events"


class SameInstant(Before):
    """The newest events of an instant, of which some stand behind the example."""

    def __call__(self, view):
        return f"{int((self.log.time <= view.time).sum())} events"


class Target(Before):
    def __call__(self, view):
        return f"item {self.log.item[view.position]}"


class TargetOfCheck(Tool):
    """Learns the target where the example is checked."""

    def check(self, example):
        self.target = example.target

    def __call__(self, view):
        return f"item {self.target}"


class WholeLog(Tool):
    """Counts all events once, those that are still to come too."""

    def __init__(self, log):
        self.count = np.bincount(log.item, minlength=log.num_items)

    def __call__(self, view):
        return " ".join(str(self.count[item]) for item in view.candidates)


class Snapshot(Tool):
    def __init__(self, items):
        self.items = items

    def __call__(self, view):
        return f"{self.items.average_rating[view.candidates[0]]:.2f} on average"


class Peeks(Tool):
    """Takes the fitted values as of a time of its own, not of the view's."""

    def __init__(self, artifacts):
        self.data = artifacts.as_of(SimpleNamespace(time=2**40))

    def __call__(self, view):
        return f"taken {self.data.statistics.popularity[view.candidates[3]]} times"


class PeeksAtModel(Peeks):
    def __call__(self, view):
        first, *others = view.candidates
        return f"{self.data.sasrec_index.item_similarity(first, others).sum():.3f}"


class Long(Tool):
    def __call__(self, view):
        return " ".join(["seven"] * 80)


class Lines(Tool):
    def __call__(self, view):
        return "one\ntwo"


class Raises(Tool):
    def __call__(self, view):
        return f"{1 / 0}"


class Junk(Tool):
    def __call__(self, view):
        return view.user


class Random(Tool):
    def __call__(self, view):
        return f"{np.random.default_rng().random()}"


class Counts(Tool):
    """Answers the same while it is asked alone, but counts its calls."""

    def __init__(self):
        self.calls = itertools.count()

    def __call__(self, view):
        return f"call {next(self.calls)}"


class Shared(Tool):
    """Keeps what one call needs where another call overwrites it."""

    def __call__(self, view):
        self.view = view
        time.sleep(1e-3)
        return f"user {self.view.user}"


class Prepared(Tool):
    """Mixes up the views that are prepared together."""

    def prepare(self, views):
        self.users = {view: views[0].user for view in views}

    def __call__(self, view):
        return f"user {getattr(self, 'users', {}).get(view, view.user)}"


@pytest.mark.parametrize(
    ("tool", "faults"),
    [
        (CountBrands, set()),
        (Before, set()),
        (LooksAhead, {"future"}),
        (SameInstant, {"future"}),
        (Target, {"future", "target"}),
        (TargetOfCheck, {"target"}),
        (WholeLog, {"future", "target"}),
        (Snapshot, {"snapshot"}),
        (Peeks, {"fitted"}),
        (PeeksAtModel, {"fitted"}),
        (Long, {"budget"}),
        (Lines, {"lines"}),
        (Raises, {"fails"}),
        (Junk, {"fails"}),
        (Random, {"unstable"}),
        (Counts, {"unstable"}),
        (Shared, {"unstable"}),
        (Prepared, {"unstable"}),
    ],
)
def test_each_planted_fault_is_found_and_no_other(tool, faults):
    report = check_tool(tool, budget=60)
    assert set(report.faults) == faults, str(report)
    for sentence in report.faults.values():
        assert re.match(r"mine\(\{\}\) of example \d+: found .*, expected ", sentence)


@pytest.mark.parametrize(("agent", "budget"), [("agenticrec", 128), ("recthinker", 1000)])
def test_our_own_tools_have_no_fault(agent, budget):
    """RecThinker's show several events and items; our small tokenizer spells titles in pieces."""
    for tool in TOOLS[agent]:
        arguments = None
        if "item_ids" in tool.parameters["properties"]:
            arguments = [{"item_ids": ["1"]}, {"item_ids": [3, "h2"]}]
        if tool is SearchKnowledgeGraph:

            def tool(items, artifacts, options):
                return SearchKnowledgeGraph(knowledge_graph(items, artifacts), options)

        report = check_tool(tool, arguments, examples=3, budget=budget)
        assert not report.faults, str(report)
        assert 1 < report.mean_tokens <= report.most_tokens <= budget


def test_tokens_are_those_of_the_tokenizer_and_calls_those_of_the_author():
    world = tiny_world()
    schema = object_schema(
        number={"type": "integer", "minimum": 1, "maximum": 20},
        names={"type": "array", "items": {"type": ["string", "integer"]}, "maxItems": 2},
    )
    asked = []

    class Echo(Tool):
        parameters = schema

        def __call__(self, view, number, names):
            asked.append((number, tuple(names)))
            return "seven " * number

    given = [{"number": 2, "names": ["h1"]}, {"number": 3, "names": [1, "h2"]}]
    report = check_tool(Echo, given, examples=2)
    assert set(asked) == {(2, ("h1",)), (3, (1, "h2"))} and report.calls == 4
    lengths = [len(world.tokenizer.encode_data("seven " * number)) for number in (2, 3)]
    assert report.most_tokens == lengths[1] and report.mean_tokens == np.mean(lengths)
    assert report.prompt_tokens == len(world.tokenizer.encode_markup("mine"))

    asked.clear()
    check_tool(Echo, examples=1)
    assert {number for number, _ in asked} == {1, 5, 20}
    assert all(1 <= len(names) <= 2 for _, names in asked)


def test_what_cannot_be_checked_is_refused():
    class Nameless(Tool):
        name = ""

    assert_names(refused(check_tool, Nameless), "Nameless", "name")
    assert_names(refused(check_tool, CountBrands, [{"k": 1}]), "mine", "{'k': 1}")
    assert_names(refused(check_tool, CountBrands, []), "arguments")


def test_a_full_answer_of_ours_is_over_a_small_budget():
    (tool,) = (tool for tool in TOOLS["agenticrec"] if tool.name == "candidates_analyze")
    full = check_tool(tool, examples=2, budget=80, options=ToolOptions(detail="full"))
    assert set(full.faults) == {"budget"} and full.most_tokens > 80
    assert_names(full.faults["budget"], tool.name, "80")
    assert not check_tool(tool, examples=2, budget=80).faults


def test_examples_give_what_they_print():
    failed, examples = doctest.testmod(checked_module)
    assert examples and not failed
