import numpy as np
import pytest

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.scripted import Plan
from agenticrec_jax.types import OBSERVATION, SAMPLED

SAID = {
    "candidates_analyze": "brand bought:5,17,; popular:7,3,12,1,9,5,2,4,6,8,",
    "get_similar_items": "near: pen…; similar:4,9,2,7,1,3,5,6,8,10,",
    "get_similar_users": "taken:none",
    "get_rating_behavior": "high 3: gel pen…",
}


class _View:
    history = (101, 102, 103)
    candidates = tuple(range(20))


class _Box:
    """Says what it is told to, and keeps what it was asked."""

    names = tuple(SAID)

    def __init__(self):
        self.asked = []

    def call(self, view, name, arguments):
        self.asked.append((name, arguments))
        return type("Observation", (), {"text": SAID[name], "ok": True})


def test_orders_are_read_with_their_labels():
    assert scripted.read_orders(SAID["candidates_analyze"]) == {
        "brand bought": (5, 17),
        "popular": (7, 3, 12, 1, 9, 5, 2, 4, 6, 8),
    }
    assert scripted.read_orders("taken:none; 3 pens, 12 pack") == {}


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        (("popular",), (7, 3, 12, 1, 9, 5, 2, 4, 6, 8)),
        (("brand bought", "popular"), (5, 17, 7, 3, 12, 1, 9, 2, 4, 6)),
        (("brand bought",), (5, 17, 1, 2, 3, 4, 6, 7, 8, 9)),
        (("taken", "popular"), (7, 3, 12, 1, 9, 5, 2, 4, 6, 8)),
        ((), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
    ],
)
def test_a_list_follows_its_orders_in_turn(priority, expected):
    orders = scripted.read_orders(SAID["candidates_analyze"])
    assert scripted.follow(orders, priority, 20) == expected


def test_a_demonstration_asks_the_tools_and_answers_from_what_they_say():
    box = _Box()
    plan = Plan(("candidates_analyze", "get_similar_items"), ("similar",))
    episode = scripted.demonstrate(plan, _View(), box)
    assert box.asked == [("candidates_analyze", {}), ("get_similar_items", {"item_name": "h3"})]
    assert [origin for origin, _ in episode.turns] == [SAMPLED, OBSERVATION] * 2 + [SAMPLED]
    for origin, text in episode.turns[:-1]:
        if origin == SAMPLED:
            protocol.parse_tool_call(text)
    assert protocol.parse_ranking(episode.turns[-1][1]) == (4, 9, 2, 7, 1, 3, 5, 6, 8, 10)


def test_thoughts_name_the_evidence_and_vary_with_the_observation():
    plan = Plan(("candidates_analyze", "get_similar_users"), ("popular", "taken"))
    episode = scripted.demonstrate(plan, _View(), _Box())
    assert "brand bought puts 5 first, popular puts 7 first" in episode.turns[2][1]
    assert (
        "taken is empty" in episode.turns[-1][1] and "rank by popular:7,…<" in episode.turns[-1][1]
    )


def test_blank_observations_leave_no_evidence():
    plan = Plan(("candidates_analyze",), ("popular",))
    episode = scripted.demonstrate(plan, _View(), _Box(), blank="nothing found")
    assert episode.turns[1][1] == "nothing found" and "no evidence." in episode.turns[-1][1]
    assert episode.ranking == tuple(range(1, 11))


def test_a_plan_with_weights_fuses_its_orders_and_says_how():
    """7 scores 2/2, 5 scores 3/2 + 2/7, 17 scores 3/3: 7 and 17 tie, the lower number first."""
    plan = Plan(("candidates_analyze",), ("popular", "brand bought"), (2, 3))
    episode = scripted.demonstrate(plan, _View(), _Box())
    assert plan.name == "2 popular + 3 brand bought"
    assert episode.ranking[:4] == (5, 7, 17, 3)
    thought, answer = episode.turns[-1][1].split("</think>")
    assert thought.endswith(" rank by popular:×2 brand bought:×3")
    assert tuple(protocol.parse_ranking(answer, 10, 20)) == episode.ranking


def test_a_share_of_random_plans_has_weights_and_none_by_default():
    rng = np.random.default_rng(3)
    plans = [scripted.draw_plan(rng, tuple(SAID), fused=0.4) for _ in range(500)]
    ordered = [plan for plan in plans if plan.priority]
    fused = [plan for plan in ordered if plan.weights]
    assert 0.3 < len(fused) / len(ordered) < 0.5
    assert all(len(plan.weights) == len(plan.priority) for plan in fused)
    assert {w for plan in fused for w in plan.weights} == {1, 2, 3}
    assert not any(scripted.draw_plan(rng, tuple(SAID)).weights for _ in range(100))


@pytest.mark.parametrize(("task", "number", "letter"), [("more", 2, "B"), ("less", 1, "A")])
def test_preference_questions_follow_the_first_of_the_order(task, number, letter):
    class Pair(_View):
        candidates = (11, 12)

    class Box(_Box):
        def call(self, view, name, arguments):
            return type("Observation", (), {"text": "popular:2,1,", "ok": True})

    plan = Plan(("candidates_analyze",), ("popular",))
    episode = scripted.demonstrate(plan, Pair(), Box(), task)
    assert protocol.parse_choice(episode.turns[-1][1]) == letter
    assert (
        episode.turns[-1][1]
        .split("<answer>")[0]
        .endswith(f" puts 2,1, first; more2, less1, {task}{number},</think>")
    )


def test_random_plans_call_subsets_and_follow_what_they_called():
    rng = np.random.default_rng(3)
    plans = [scripted.draw_plan(rng, tuple(SAID)) for _ in range(300)]
    assert {len(plan.tools) for plan in plans} == {1, 2, 3}
    assert {tool for plan in plans for tool in plan.tools} == set(SAID)
    for plan in plans:
        episode = {label for tool in plan.tools for label in scripted.ORDERS.get(tool, ())}
        assert set(plan.priority) <= episode
    assert scripted.draw_plan(rng, ()) == scripted.draw_plan(rng, ("count_brands",)) == Plan((), ())


def test_thorough_plans_rank_by_all_that_they_have_read():
    rng = np.random.default_rng(3)
    plans = [scripted.draw_plan(rng, tuple(SAID), draft=True, thorough=1.0) for _ in range(400)]
    for plan in plans:
        read = {label for tool in plan.tools for label in scripted.ORDERS.get(tool, ())}
        assert set(plan.priority) == read | {scripted.DRAFT} and plan.weights
        assert len(set(plan.tools)) == len(plan.tools)
    shown = [sum(tool in scripted.ORDERS for tool in plan.tools) for plan in plans]
    assert set(shown) == {2, 3} and 0.6 < np.mean(np.array(shown) == 3) < 0.8
    others = np.mean([len(plan.tools) > n for plan, n in zip(plans, shown, strict=True)])
    assert 0.1 < others < 0.3
    assert len({plan.tools for plan in plans}) > 12 and len({plan.weights for plan in plans}) > 50
    alone = scripted.draw_plan(rng, (), draft=True, thorough=1.0)
    assert (alone.tools, alone.priority) == ((), (scripted.DRAFT,))
    assert scripted.draw_plan(rng, (), thorough=1.0) == Plan((), ())


def test_an_episode_with_a_draft_begins_with_it_and_can_rank_by_it():
    draft = (9, 4, 2, 7, 1, 3, 5, 6, 8, 10)
    plan = Plan(("get_similar_items",), (scripted.DRAFT, "similar"), (1, 3))
    episode = scripted.demonstrate(plan, _View(), _Box(), draft=draft)
    assert episode.turns[0][1].startswith("<think> draft:9,4,2,7,1,3,5,6,8,10,; what is similar?")
    assert " rank by draft:×1 similar:×3</think>" in episode.turns[-1][1]
    assert episode.ranking[:2] == (4, 9)  # 3/2 + 1/3, and 3/3 + 1/2
    assert [str(episode.scores[n - 1]) for n in (4, 9)] == ["11/6", "3/2"]
    alone = scripted.demonstrate(Plan((), (scripted.DRAFT,)), _View(), _Box(), draft=draft)
    ((_, text),) = alone.turns
    assert text.startswith("<think> draft:9,4,2,7,1,3,5,6,8,10,; rank by draft:9,…</think>")
    assert alone.ranking == draft


def test_tools_that_the_script_does_not_know_leave_its_plans_as_they_are():
    names = tuple(SAID)
    for seed in range(20):
        drawn = [
            scripted.draw_plan(np.random.default_rng(seed), tools)
            for tools in (names, ("count_brands", *names))
        ]
        assert drawn[0] == drawn[1]


def test_fixed_plans_call_the_fewest_tools():
    plans = {plan.priority: plan.tools for plan in scripted.fixed_plans()}
    assert len(plans) == 5 + 20 + 60
    assert plans["brand bought", "popular"] == ("candidates_analyze",)
    assert plans["taken", "together"] == ("get_similar_users",)
    assert plans["taken", "popular"] == ("get_similar_users", "candidates_analyze")
