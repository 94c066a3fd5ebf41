"""Recommendation: the requests that a run makes of ids, the rankings, and their text."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.recommendation import describe, recommend, requests
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from tests.small_log import small_config

NUMBERS = (7, 3, 12, 1, 20, 5, 9, 11, 2, 14)
ANSWER = "<answer>\\boxed{[" + ",".join(map(str, NUMBERS)) + "]}</answer>"
BEGUN = ANSWER[: ANSWER.index("7")]


def save_writer(directory, text):
    """A random policy, but that its weights begin with ``text``: the head reads the last token's
    own dimension for the next one, and of the other tokens random ones."""
    tokenizer = tiny_world().tokenizer
    size = tokenizer.vocab_size
    model = tiny_qwen3(3, num_layers=1, vocab_size=size, tie_word_embeddings=False)
    for kernel in (model.layers[0].attention.o.kernel, model.layers[0].mlp.down.kernel):
        kernel[...] = 0 * kernel[...]
    chain = jnp.array(tokenizer.encode_markup(f"<assistant>{text}"))
    place = jnp.arange(len(chain))
    assert len(set(chain.tolist())) == len(chain) < 24
    noise = np.random.default_rng(5).normal(size=(2, size, 32))
    embedding = jnp.array(noise[0]).at[:, :24].set(0).at[chain].set(0).at[chain, place].set(1)
    head = jnp.array(noise[1].T).at[place[:-1]].set(0).at[place[:-1], chain[1:]].set(9)
    model.embedding[...], model.head.kernel[...] = embedding, head
    save_policy(model, directory)
    tokenizer.save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run of the smoke preset on a small log, and two users."""
    directory = tmp_path_factory.mktemp("served")
    config = small_config(directory)
    config.engine.update({"slots": 2, "row_buckets": (2,), "window_buckets": (), "max_tokens": 64})
    config.policy.directory = save_writer(directory / "ranks", ANSWER)
    run = Run(run_config(config), directory / "run")
    users = list(dict.fromkeys(run.data.log.user_ids[e.user] for e in run.data.examples["test"]))
    return run, users[:2]


def given(ids):
    return dict.fromkeys(ids, "here")


def requests_of(run, users, candidates):
    return requests(run.data, users, candidates, run.config.dataset.max_history)


@pytest.mark.slow
def test_free_greedy_rankings_are_those_of_evaluation(served):
    run, users = served
    log = run.data.log
    records = recommend(run, given(users), constrained=False)
    tests = [e for e in run.data.examples["test"] if log.user_ids[e.user] in users]
    evaluated = evaluate(run.evaluation_agent, run.engine, run.policy.params, tests)
    assert [record["user"] for record in records] == users
    for record in records:
        example, trajectory = [
            (e, t)
            for e, t in zip(tests, evaluated, strict=True)
            if log.user_ids[e.user] == record["user"]
        ][-1]
        assert record["time"] == example.time and record["finish"] == trajectory.finish == "stop"
        chosen = [example.candidates[number - 1] for number in NUMBERS]
        assert trajectory.ranking == NUMBERS
        assert [(p["rank"], p["item_id"], p["title"]) for p in record["ranking"]] == [
            (rank, log.items.item_id[item], log.items.title[item])
            for rank, item in enumerate(chosen, 1)
        ]
        text = describe(record)
        assert f"   1  {record['ranking'][0]['item_id']}  {record['ranking'][0]['title']}" in text


@pytest.mark.parametrize(
    "count", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, None))]
)
def test_an_answer_that_a_random_policy_begins_becomes_a_valid_ranking(served, tmp_path, count):
    """Of four candidates, of twelve, and of the test examples' twenty; left free, none does."""
    run, users = served
    policy = save_writer(tmp_path / "begins", BEGUN)
    begins = Run(run.config, run.workdir, policy_directory=policy, data=run.data)
    items = given(run.data.log.items.item_id[3 : 3 + count]) if count else None
    for record in recommend(begins, given(users), items):
        ids = [place["item_id"] for place in record["ranking"]]
        assert record["invalid_reason"] is None and record["finish"] == "stop"
        assert len(set(ids)) == len(ids) == min(10, count or 20)
        assert set(ids) <= set(record["candidates"])
    for record in recommend(begins, given(users), items, constrained=False):
        assert record["invalid_reason"] and not record["ranking"]
        assert f"no ranking: {record['invalid_reason']}" in describe(record)


def test_a_request_with_candidates_is_made_now(served):
    run, users = served
    log, items = run.data.log, run.data.log.items.item_id[5:9]
    examples = requests_of(run, given(users), given(items))
    for user, example in zip(users, examples, strict=True):
        own = log.item[log.events_of(log.user_code[user])].tolist()
        assert example.history == tuple(own[-10:]) and example.target_number is None
        assert example.time > log.time.max() and example.position == len(log)
        assert example.candidates == (5, 6, 7, 8)
    later = FitRange(int(log.time.max()) + 2, len(log))  # artifacts fitted beyond now refuse it
    assert_names(refused(later.check, example.time, "artifacts"), "artifacts")


@pytest.mark.parametrize(
    ("users", "items", "named"),
    [
        (["nobody"], None, ("here: found 'nobody'", "a user of the log")),
        ([], ["nothing", "else"], ("here: found 'nothing'", "an item of the catalog")),
        ([], ["one"], ("flag --candidates: found 1", "2 to 31")),
        ([], [str(i) for i in range(32)], ("flag --candidates: found 32", "2 to 31")),
    ],
)
def test_a_request_that_cannot_be_made_is_refused(served, users, items, named):
    run, known = served
    ids = given(users or known[:1]), items and given(items)
    assert_names(refused(requests_of, run, *ids), *named)


def test_a_user_without_a_test_example_needs_candidates(served):
    run, _ = served
    log = run.data.log
    tested = {e.user for e in run.data.examples["test"]}
    user = next(u for code, u in enumerate(log.user_ids) if code not in tested)
    sentence = refused(requests_of, run, {user: "flag --user"}, None)
    assert_names(sentence, f"flag --user: found {user!r}", "--candidates")
    assert requests_of(run, given([user]), given(log.items.item_id[:2]))


def test_the_text_has_the_first_line_of_each_observation():
    call = {"name": "look", "arguments": {"item": "é"}, "observation": "first\nsecond"}
    record = {"user": "u", "time": 86400, "events": 3, "candidates": ["a"] * 4, "ranking": []}
    record |= {"calls": [call], "finish": "token_budget", "invalid_reason": "token_budget"}
    lines = describe(record).splitlines()
    assert lines[0] == "user u, asked at 1970-01-02 00:00:00 UTC, 3 events before, 4 candidates"
    assert '    look {"item": "é"} -> first' in lines and "  ended: token_budget" in lines
