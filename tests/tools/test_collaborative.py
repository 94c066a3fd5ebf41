import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.scripted import read_orders
from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sequences import PAD
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.collaborative import GetSimilarItems, GetSimilarUsers
from agenticrec_jax.tools.names import address, called, resolve
from agenticrec_jax.tools.text import ToolOptions, cut, ranked


@pytest.fixture
def view(log, examples):
    return AsOfView(log, examples[3])


def test_candidates_are_ordered_by_similarity_to_the_item_named(log, artifacts, examples, others):
    tool = GetSimilarItems(artifacts, ToolOptions(evidence_length=20))
    for example in examples[:10]:
        view = AsOfView(log, example)
        for name, item in (("h2", example.history[1]), (4, example.candidates[3])):
            similarity = others.sasrec_index.item_similarity(item, example.candidates)
            said = tool(view, name)
            order = read_orders(said)["similar"]
            assert order == tuple((np.argsort(-similarity) + 1).tolist())
            assert said.startswith(f"near {name}: ")
    assert read_orders(tool(view, 4))["similar"][0] == 4


def test_neighbors_are_told_by_title_without_the_item_itself(log, artifacts, view, others):
    item = view.history[1]
    similarity = others.sasrec_index.item_similarity(item, range(log.num_items)).copy()
    similarity[others.statistics.popularity == 0] = -2
    similarity[item] = -2
    nearest = [cut(log.items.title[i], 4) for i in np.argsort(-similarity)[:5]]
    said = GetSimilarItems(artifacts, ToolOptions())(view, "h2")
    assert f": {nearest[0]}, {nearest[1]}; similar:" in said and nearest[2] not in said
    bare = GetSimilarItems(artifacts, ToolOptions(candidate_evidence=False))(view, "h2")
    assert bare.endswith(": " + ", ".join(nearest)) and not read_orders(bare)


def test_a_name_that_is_off_gets_suggestions_from_similar_items(artifacts, view):
    said = GetSimilarItems(artifacts, ToolOptions())(view, "Pocket Stapler")
    assert said.startswith("no item named Pocket Stapler; close: ")


def test_items_that_share_a_title_are_told_apart(twins, artifacts, examples):
    """Each item told can be asked for by what stands before its title."""
    bare = ToolOptions(candidate_evidence=False, title_words=2)
    addressed = {True: 0, False: 0}
    for example in examples[:20]:
        view = AsOfView(twins, example)
        for said in (
            GetSimilarItems(artifacts, bare)(view, "h1").removeprefix("near h1: "),
            GetSimilarUsers(artifacts, bare)(view).removeprefix("similar users took "),
        ):
            for name in said.split(", "):
                item = asked_for(view, name)
                assert name == called(view, item, 2)
                addressed[address(view, item) is None] += 1
    assert all(addressed.values())


def asked_for(view, name):
    """The item whose address or id begins what it is called."""
    words = name.split()
    return resolve(view, " ".join(words[: 1 + (words[0] == "id")]), 2).item


def _taken(others, view, count):
    """Weighted counts of the candidates among the nearest users, one user at a time."""
    ((rows, cosines),) = others.sasrec_index.neighbors([view.history], [view.user], count)
    weights = dict.fromkeys(view.candidates, 0.0)
    for row, cosine in zip(rows, cosines, strict=True):
        for item in others.sasrec_index.recent[row]:
            if item != PAD and int(item) in weights:
                weights[int(item)] += max(float(cosine), 0.0) ** 2
    return [weights[item] for item in view.candidates]


@pytest.mark.parametrize("neighbors", [3, 40])
def test_candidates_are_ordered_by_what_near_users_took(
    log, artifacts, examples, neighbors, others
):
    tool = GetSimilarUsers(artifacts, ToolOptions(neighbors=neighbors, evidence_length=20))
    popularity = others.statistics.popularity
    for example in examples[:10]:
        view = AsOfView(log, example)
        taken = _taken(others, view, neighbors)
        known = [n for n in range(1, 21) if taken[n - 1] > 0]
        expected = sorted(
            known, key=lambda n: (-taken[n - 1], -popularity[view.candidates[n - 1]], n)
        )
        assert read_orders(tool(view)).get("taken", ()) == tuple(expected)


def test_no_evidence_is_said_in_a_word(artifacts, view, others):
    index = others.sasrec_index
    nobody = dataclasses.replace(index, recent=np.full_like(index.recent, PAD))
    nothing = np.zeros(0, int)
    untaken = dataclasses.replace(others.statistics, taken_user=nothing, taken_item=nothing)
    empty = Artifacts(untaken, nobody, artifacts.fit_range)
    text = GetSimilarUsers(empty, ToolOptions())(view)
    assert text == "similar users took nothing; taken:none; together:none"


def test_candidates_are_ordered_by_what_users_with_shared_items_took(
    log, artifacts, examples, others
):
    """The oracle has a vector of items for each user, and takes cosines of whole vectors."""
    statistics = others.statistics
    took = np.zeros((log.num_users, log.num_items))
    took[statistics.taken_user, statistics.taken_item] = 1
    tool = GetSimilarUsers(artifacts, ToolOptions(evidence_length=20))
    lengths = []
    for example in examples[:10]:
        view = AsOfView(log, example)
        history = np.zeros(log.num_items)
        history[list(view.history)] = 1
        cosines = took @ history / np.maximum(np.linalg.norm(took, axis=1), 1)
        cosines[view.user] = 0
        scores = (cosines @ took)[list(view.candidates)]
        ordered = ranked(scores.round(9), statistics.popularity[list(view.candidates)], True)
        assert read_orders(tool(view)).get("together", ()) == tuple(ordered)
        lengths.append(len(ordered))
    assert 0 < np.mean(lengths) < 20


def test_titles_are_what_most_of_the_nearest_took_and_the_user_has_not(
    log, artifacts, view, others
):
    ((rows, _),) = others.sasrec_index.neighbors([view.history], [view.user], 20)
    newest = others.sasrec_index.recent[rows][:, -3:].ravel().tolist()
    counts = {item: newest.count(item) for item in newest if item != PAD}
    said = GetSimilarUsers(artifacts, ToolOptions(candidate_evidence=False))(view)
    listing = said.removeprefix("similar users took ")
    titles = {
        cut(log.items.title[i], 4): count for i, count in counts.items() if i not in view.own_items
    }
    listed_titles = [title for title in titles if title in listing]
    assert len(listed_titles) >= 5 and not read_orders(said)
    assert sorted((titles[t] for t in listed_titles), reverse=True)[0] == max(titles.values())


def test_the_users_own_fitted_events_are_no_evidence(log, artifacts, examples, others):
    index = others.sasrec_index
    view = AsOfView(log, next(e for e in examples if e.user in index.users))
    own_row = int(np.flatnonzero(index.users == view.user)[0])
    recent = np.full_like(index.recent, PAD)
    recent[own_row, :] = view.candidates[:10]
    index = dataclasses.replace(index, recent=recent)
    taken = np.unique([*view.history, *view.candidates])
    statistics = dataclasses.replace(
        others.statistics, taken_user=np.full(len(taken), view.user), taken_item=taken
    )
    only_own = Artifacts(statistics, index, artifacts.fit_range)
    text = GetSimilarUsers(only_own, ToolOptions())(view)
    assert text.endswith("took nothing; taken:none; together:none")


@pytest.mark.parametrize("tool", [GetSimilarItems, GetSimilarUsers])
def test_a_question_inside_the_fit_range_is_refused(log, artifacts, examples, tool):
    inside = dataclasses.replace(examples[3], time=artifacts.fit_range.end_time - 1)
    view = AsOfView(log, inside)
    arguments = {"item_name": "1"} if tool is GetSimilarItems else {}
    with pytest.raises(InputError, match=f"artifacts: .*{inside.time}.*{inside.time + 1}"):
        tool(artifacts, ToolOptions())(view, **arguments)
