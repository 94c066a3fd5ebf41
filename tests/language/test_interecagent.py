"""InteRecAgent: its tools beside values by hand, the order of a plan, good and bad models."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.language.answers import UNREADABLE, shown_titles
from agenticrec_jax.language.completion import Decoding
from agenticrec_jax.language.interec_tools import TOOLS, Buffer, ToolError
from agenticrec_jax.language.interecagent import InteRecAgent, read_plan
from agenticrec_jax.sequential.model import candidate_scores
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from tests.language.completers import Fake, planned

WORLD = tiny_world()
EXAMPLE = WORLD.examples[3]
EVERYTHING = planned(
    ("map", 20),
    ("rank", {"schema": "preference", "prefer": ["h1"], "unwanted": []}),
    ("look_up", "SELECT number FROM candidates WHERE number < 3"),
)


def agent(**options):
    return InteRecAgent(WORLD.log, WORLD.artifacts, **options)


def buffer():
    view = AsOfView(WORLD.log, EXAMPLE)
    titles = shown_titles(WORLD.log.items, EXAMPLE.candidates, 20)
    return Buffer(view, WORLD.artifacts.as_of(view), titles, list(range(1, 21)))


def order_by(scores):
    """Numbers by descending score, ties by popularity, then by number."""
    popularity = buffer().data.statistics.popularity[list(EXAMPLE.candidates)]
    return sorted(range(1, 21), key=lambda n: (-scores[n - 1], -popularity[n - 1], n))


def test_ranking_by_each_schema():
    candidates = list(EXAMPLE.candidates)
    data = buffer().data
    used = buffer()
    TOOLS["rank"](used, {"schema": "popularity"})
    assert used.numbers == order_by(data.statistics.popularity[candidates])
    used = buffer()
    newest = EXAMPLE.history[-1]
    TOOLS["rank"](used, {"schema": "popularity", "prefer": [f"h{len(EXAMPLE.history)}"]})
    (scores,) = candidate_scores(data.sasrec_index.model, [[newest]], np.array([candidates]))
    assert used.numbers == order_by(np.round(scores, 6))
    used = buffer()
    TOOLS["soft_filter"](used, ["h1"])
    similarity = data.sasrec_index.item_similarity(EXAMPLE.history[0], candidates)
    assert used.numbers == [n for n in range(1, 21) if similarity[n - 1] > 0]
    assert 0 < len(used.numbers) < 20
    remaining = set(used.numbers)
    TOOLS["rank"](used, json.dumps({"schema": "similarity"}))
    assert used.numbers == [n for n in order_by(similarity) if n in remaining]


def test_a_schema_without_what_it_needs_is_popularity():
    for request in ({"schema": "similarity"}, {"schema": "preference", "prefer": []}, {}):
        used = buffer()
        TOOLS["rank"](used, request)
        popular = buffer().data.statistics.popularity[list(EXAMPLE.candidates)]
        assert used.numbers == order_by(popular)


def test_unwanted_items_leave_the_buffer():
    used = buffer()
    TOOLS["rank"](used, {"unwanted": ["3", 5, WORLD.log.items.title[EXAMPLE.candidates[6]]]})
    title = WORLD.log.items.title
    gone = [n for n in range(1, 21) if n not in used.numbers]
    assert {3, 5} < set(gone) and len(gone) == 3
    assert title[EXAMPLE.candidates[6]] in [title[EXAMPLE.candidates[n - 1]] for n in gone]


def test_queries_read_the_candidates():
    items = WORLD.log.items
    used = buffer()
    brand = items.brand[EXAMPLE.candidates[4]]
    TOOLS["hard_filter"](used, f"SELECT number FROM candidates WHERE brand LIKE '%{brand}%'")
    codes = EXAMPLE.candidates
    expected = [
        n for n in range(1, 21) if brand.lower() in (items.brand[codes[n - 1]] or "").lower()
    ]
    assert used.numbers == expected and 5 in expected
    query = (
        "SELECT title, brand, category, price, rating, popularity FROM candidates LIMIT 1 OFFSET 4"
    )
    line = TOOLS["look_up"](buffer(), query)
    count = buffer().data.statistics.popularity[codes[4]]
    assert line.startswith(f"{used.titles[4]}; {brand}; ") and line.endswith(f"; {count}")
    assert TOOLS["look_up"](buffer(), "SELECT NULL FROM candidates WHERE number = 1") == "unknown"
    assert TOOLS["look_up"](buffer(), "SELECT 1 FROM candidates WHERE 0") == "no rows"
    many = TOOLS["look_up"](buffer(), "SELECT a.number FROM candidates a, candidates b")
    assert len(many.splitlines()) == 21 and many.endswith("380 more")


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE candidates",
        "DELETE FROM candidates",
        "ATTACH DATABASE 'planted.db' AS x",
        "PRAGMA table_info(candidates)",
        "SELECT load_extension('x')",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
        "SELECT count(*) FROM candidates a, candidates b, candidates c, candidates d, candidates e",
        "SELECT hex(randomblob(99999999))",
        "SELECT 1; SELECT 2",
        "SELECT",
        "SELECT nothing FROM candidates",
        "SELECT '\0' FROM candidates",
        "SELECT '\ud800'",
        None,
        {"sql": "SELECT 1"},
    ],
)
def test_nothing_but_a_short_reading_query_runs(query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("look_up", "hard_filter"):
        with pytest.raises(ToolError):
            TOOLS[name](buffer(), query)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        (
            planned(("rank", {"schema": "popularity"}), ("map", 3)),
            {"rank": {"schema": "popularity"}, "map": 3},
        ),
        ("[{'tool': 'map', 'input': 5}]", {"map": 5}),
        ('Plan:\n```json\n[{"tool": "map"}]\n```', {"map": None}),
        ("<think>[1]</think>[{'tool': 'map', 'input': '5'}]", {"map": "5"}),
        ("[]", None),
        ("[3, 1]", None),
        ('[{"name": "map"}]', None),
        ('[{"tool": 3}]', None),
        ("[" * 5000 + "]" * 5000, None),
        ("no plan", None),
    ],
)
def test_a_plan_is_read(text, plan):
    assert read_plan(text) == plan


def answers_of(texts, example=EXAMPLE, **options):
    """The answer to an example of a model that writes these texts, and its chats."""
    left = list(texts)
    fake = Fake(lambda chat: left.pop(0))
    (answer,) = agent(**options).rank(fake, [example])
    assert not left
    return answer, fake.chats


def test_tools_run_in_their_own_order_and_the_answer_is_read():
    answer, chats = answers_of([EVERYTHING, '{"4": 2, "9": 1}'])
    assert answer.ranking == (9, 4) and answer.calls == 3 and answer.invalid_reason is None
    assert answer.texts == (EVERYTHING, '{"4": 2, "9": 1}')
    first, second = chats
    assert [role for role, _ in first.turns] == ["system", "user"]
    question = first.turns[1][1]
    titles = shown_titles(WORLD.log.items, EXAMPLE.candidates, 20)
    assert all(f"\n{n}. {title}\n" in question for n, title in enumerate(titles, 1))
    newest = shown_titles(WORLD.log.items, EXAMPLE.history, 20)[-1]
    assert f"\nh{len(EXAMPLE.history)}. {newest}\n" in question
    assert second.turns[:2] == first.turns and second.turns[2] == ("assistant", EVERYTHING)
    used = buffer()
    TOOLS["rank"](used, {"prefer": ["h1"]})
    observed = "\n".join(f"{n}. {titles[n - 1]}" for n in used.numbers)
    assert second.turns[3][1].startswith(f"look_up:\n1\n2\nmap:\n{observed}\n\n")
    assert len({first.key, second.key}) == 2


def test_a_model_that_follows_the_tools_ranks_as_they_do():
    """A plan by preference after the whole history: the answer is SASRec's own order."""
    examples = WORLD.examples[:6]

    def follow(chat):
        if len(chat.turns) == 2:
            history = [f"h{n + 1}" for n in range(chat.turns[1][1].count("\nh"))]
            return planned(("rank", {"schema": "preference", "prefer": history}))
        listed = [line.split(".")[0] for line in chat.turns[3][1].splitlines() if ". " in line]
        return json.dumps({number: rank for rank, number in enumerate(listed[:20], 1)})

    fake = Fake(follow)
    answers = agent().rank(fake, examples)
    model = WORLD.artifacts.as_of(EXAMPLE).sasrec_index.model
    codes = np.array([example.candidates for example in examples])
    scores = candidate_scores(model, [example.history for example in examples], codes)
    for answer, example, row in zip(answers, examples, scores, strict=True):
        assert len(answer.ranking) == 20 and answer.calls == 2
        ordered = [row[number - 1] for number in answer.ranking]
        assert all(a >= b - 1e-5 for a, b in zip(ordered, ordered[1:], strict=False))
        assert answer.rank(example) == answer.ranking.index(example.target_number) + 1
    assert fake.decoding == Decoding(0.0, 512)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("I would rather not.", "no plan"),
        (planned(("browse", "www")), "browse"),
        (planned(("hard_filter", "DROP TABLE candidates")), "query"),
        (planned(("rank", "by taste")), "rank"),
        (planned(("soft_filter", ["no such thing at all"])), "seeds"),
        (planned(("soft_filter", {"a": 1})), "list"),
    ],
)
def test_a_faulty_plan_is_answered_by_its_fault(plan, words):
    answer, chats = answers_of([plan, EVERYTHING, '{"9": 1}'])
    assert answer.ranking == (9,) and answer.invalid_reason is None
    assert_names(chats[1].turns[-1][1], words, "plan again")


def test_junk_is_a_miss_that_is_counted():
    answer, _ = answers_of(["junk"] * 3)
    assert answer.ranking == () and answer.invalid_reason == UNREADABLE and answer.calls == 0
    assert answer.rank(EXAMPLE) == 0 and answer.unreadable == 1
    answer, _ = answers_of([EVERYTHING, "I like them all."])
    assert answer.ranking == () and answer.invalid_reason == UNREADABLE and answer.calls == 3
    answer, _ = answers_of(["junk"], plans=1)
    assert answer.invalid_reason == UNREADABLE


def test_an_answer_without_a_plan_has_called_no_tool():
    answer, _ = answers_of(['I know: {"4": 1}'])
    assert answer.ranking == (4,) and answer.calls == 0


def test_examples_end_at_their_own_pace():
    examples = WORLD.examples[:3]
    slow = examples[1].example_id

    def text(chat):
        """The slow one writes junk in its first turn, and its plan in the second."""
        example, turn = chat.key
        if example == slow:
            return ["junk", EVERYTHING, '{"2": 1}'][turn]
        return [EVERYTHING, '{"2": 1}'][turn]

    answers = agent().rank(Fake(text), examples)
    assert [answer.example_id for answer in answers] == [e.example_id for e in examples]
    assert [len(answer.texts) for answer in answers] == [2, 3, 2]
    assert all(answer.ranking == (2,) for answer in answers)


PIECES = st.sampled_from(
    [
        *TOOLS,
        "[",
        "]",
        "{",
        "}",
        '"tool":',
        '"input":',
        '"prefer":',
        "h1",
        ",",
        '"',
        "1",
        ":",
        "SELECT",
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(PIECES.map(str), st.text(max_size=3)), max_size=30).map("".join))
def test_no_text_crashes(text):
    (answer,) = agent().rank(Fake(lambda chat: text), [EXAMPLE])
    assert bool(answer.ranking) == (answer.invalid_reason is None)


CELLS = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5))
NAMES = st.sampled_from(["schema", "prefer", "unwanted", "a"])
VALUES = st.recursive(
    CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(TOOLS)), VALUES)
def test_no_input_crashes_a_tool(name, value):
    try:
        TOOLS[name](buffer(), value)
    except ToolError:
        pass


def test_an_example_inside_the_fit_range_is_refused():
    early = WORLD.artifacts.fit_range.end_time - 1
    example = RankingExample(
        *(EXAMPLE.example_id, EXAMPLE.user, EXAMPLE.position, early),
        *(EXAMPLE.history, EXAMPLE.candidates, EXAMPLE.target, "policy"),
    )
    fake = Fake(lambda chat: "{}")
    refused(agent().rank, fake, [WORLD.examples[0], example])
    assert fake.chats == []


def test_options_are_checked():
    assert_names(refused(agent, plans=0), "plans", 0)
    assert_names(refused(agent, title_words=0), "title_words", 0)
