import dataclasses
import types

import numpy as np
import pytest

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.knowledge_graph import TAKEN_WITH, knowledge_graph, year_of
from agenticrec_jax.tools.statistics import fit_statistics


@pytest.fixture(scope="module")
def graph(log, artifacts, splits):
    return knowledge_graph(log.items, artifacts).as_of(splits.valid[0])


def taken_sets(log, splits):
    end = splits.fit_range_b.end_time
    return [
        {int(log.item[e]) for e in log.events_of(user) if log.time[e] < end}
        for user in range(log.num_users)
    ]


def test_items_taken_together_are_counted_by_users_of_the_range(log, splits, graph):
    """Against a count of sets, item by item; ties go to the lower code."""
    taken = taken_sets(log, splits)
    for item in range(log.num_items):
        counts = {
            other: sum(item in of and other in of for of in taken)
            for other in range(log.num_items)
            if other != item
        }
        best = sorted((o for o in counts if counts[o]), key=lambda o: (-counts[o], o))[:20]
        assert graph.near(item, TAKEN_WITH) == best
        together = graph.together[item][graph.taken_with[item] != PAD].tolist()
        assert together == [counts[other] for other in best]


def test_two_steps_add_up_the_weaker_counts_of_their_paths(graph):
    item = 7
    first = dict(zip(graph.taken_with[item].tolist(), graph.together[item].tolist(), strict=True))
    expected = {}
    for middle, count in first.items():
        for other, more in zip(graph.taken_with[middle], graph.together[middle], strict=True):
            if other not in (*first, item, PAD):
                expected[int(other)] = expected.get(int(other), 0) + min(count, int(more))
    assert graph.further(item) == expected and expected


def test_a_value_has_its_most_taken_items(log, artifacts, splits):
    pruned = knowledge_graph(log.items, artifacts, edges=3).as_of(splits.valid[0])
    fitted = log.item[log.time < splits.fit_range_b.end_time]
    popularity = np.array([(fitted == item).sum() for item in range(90)])
    for brand in {name for name in log.items.brand if name}:
        of_brand = [i for i in range(90) if log.items.brand[i] == brand and popularity[i]]
        best = sorted(of_brand, key=lambda i: (-popularity[i], i))[:3]
        assert pruned.members["brand"][brand] == tuple(best)
        assert pruned.near(best[0], "brand") == best[1:]
    assert pruned.taken_with.shape == (90, 3)
    nameless = log.items.brand.index(None)
    assert pruned.near(nameless, "brand") == []


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Toy Story (1995)", "1995"),
        ("2001: A Space Odyssey (1968)", "1968"),
        ("Best of [2003] (Remastered) (2011)", "2011"),
        ("Blade Runner 2049", None),
        ("Pens (1200)", None),
    ],
)
def test_the_year_is_the_last_in_brackets(title, year):
    assert year_of(title) == year


def test_the_catalogs_year_goes_before_the_titles(log, artifacts, examples):
    """Some titles have a year in brackets; of some items the catalog says it, of some both."""
    titles = ["Toy Story", "Heat (1995)", "Alien (1979)", *log.items.title[3:]]
    items = make_items(log.items.item_id, titles, year=[1995, None, 1986, *[None] * 87])
    graph = knowledge_graph(items, artifacts).as_of(examples[0])
    assert graph.values["year"][:4] == ("1995", "1995", "1986", None)
    taken = artifacts.as_of(examples[0]).statistics.popularity[:2]
    assert taken.all() and graph.near(0, "year") == [1] and graph.near(2, "year") == []


def test_a_question_inside_the_range_is_refused(log, artifacts, examples):
    fitted = knowledge_graph(log.items, artifacts)
    inside = dataclasses.replace(examples[0], time=artifacts.fit_range.end_time - 1)
    with pytest.raises(InputError, match=f"knowledge graph: .*{inside.time}.*{inside.time + 1}"):
        fitted.as_of(inside)


def test_events_from_the_end_of_the_range_on_are_no_edges():
    items = make_items(["a", "b", "c"], ["A", "B", "C"])
    log = make_log([*"uuuvv"], [0, 1, 2, 0, 2], [1, 2, 9, 3, 9], items=items)
    fit_range = FitRange(9, 3)
    artifacts = Artifacts(fit_statistics(log, fit_range), None, fit_range)
    graph = knowledge_graph(items, artifacts).as_of(types.SimpleNamespace(time=9))
    assert [graph.near(item, TAKEN_WITH) for item in range(3)] == [[1], [0], []]
