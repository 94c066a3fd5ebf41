"""Serving: whom and what a policy is asked, what it ranks, and how it is told."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.testing.errors import refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.testing.world import tiny_world
from experiments import recommend
from experiments.configs import office

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
    """The smoke preset on a small log with few epochs of everything, its workdir and two users."""
    directory = tmp_path_factory.mktemp("served")
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = write_log(log, directory / "log")
    config = office.get_config("smoke")
    config.dataset.update({"interactions": str(interactions), "items": str(items)})
    config.engine.update({"slots": 2, "row_buckets": (2,), "window_buckets": (), "max_tokens": 64})
    config.policy.directory = save_writer(directory / "ranks", ANSWER)
    world = pipeline.prepare(config, directory / "run")
    users = list(dict.fromkeys(world.log.user_ids[e.user] for e in world.examples["test"]))[:2]
    return config, world, users


def given(ids):
    return dict.fromkeys(ids, "here")


@pytest.mark.slow
def test_free_greedy_rankings_are_evaluates(served):
    config, world, users = served
    found = recommend.run(config, world.workdir, None, given(users), constrained=False)
    policy = policies.load(config.policy.directory)
    artifacts = pipeline.artifacts_b(world)
    agent = pipeline.agent(world, artifacts, policy.tokenizer)
    tests = [e for e in world.examples["test"] if world.log.user_ids[e.user] in users]
    judged = evaluate(agent, pipeline.engine(config, policy), policy.params, tests)
    assert [record["user"] for record in found] == users
    for record in found:
        example, trajectory = [
            (e, t)
            for e, t in zip(tests, judged, strict=True)
            if world.log.user_ids[e.user] == record["user"]
        ][-1]
        assert record["time"] == example.time and record["finish"] == trajectory.finish == "stop"
        chosen = [example.candidates[number - 1] for number in NUMBERS]
        assert trajectory.ranking == NUMBERS
        assert [(p["rank"], p["item_id"], p["title"]) for p in record["ranking"]] == [
            (rank, world.log.items.item_id[item], world.log.items.title[item])
            for rank, item in enumerate(chosen, 1)
        ]
        told = recommend.described(record)
        assert f"   1  {record['ranking'][0]['item_id']}  {record['ranking'][0]['title']}" in told


@pytest.mark.parametrize(
    "count", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, None))]
)
def test_what_a_random_policy_begins_becomes_a_valid_ranking(served, tmp_path, count):
    """Of four candidates, of twelve, and of the test examples' twenty; left free, none does."""
    config, world, users = served
    policy = save_writer(tmp_path / "begins", BEGUN)
    items = given(world.log.items.item_id[3 : 3 + count]) if count else None
    for record in recommend.run(config, world.workdir, policy, given(users), items):
        ids = [place["item_id"] for place in record["ranking"]]
        assert record["invalid_reason"] is None and record["finish"] == "stop"
        assert len(set(ids)) == len(ids) == min(10, count or 20)
        assert set(ids) <= set(record["candidates"])
    for record in recommend.run(config, world.workdir, policy, given(users), items, False):
        assert record["invalid_reason"] and not record["ranking"]
        assert f"no ranking: {record['invalid_reason']}" in recommend.described(record)


def test_given_candidates_are_asked_about_now(served):
    config, world, users = served
    log, items = world.log, world.log.items.item_id[5:9]
    for user, example in zip(
        users, recommend.questions(world, given(users), given(items)), strict=True
    ):
        own = log.item[log.events_of(log.user_code[user])].tolist()
        assert example.history == tuple(own[-10:]) and example.target_number is None
        assert example.time > log.time.max() and example.position == len(log)
        assert example.candidates == (5, 6, 7, 8)
    later = FitRange(int(log.time.max()) + 2, len(log))  # what was fitted beyond now refuses it
    assert "inside the range" in refused(later.check, example.time, "artifacts")


@pytest.mark.parametrize(
    ("users", "items", "said"),
    [
        (["nobody"], None, "here: found 'nobody', expected a user of the log"),
        ([], ["nothing", "else"], "here: found 'nothing', expected an item of the catalog"),
        ([], ["one"], "flag --candidates: found 1, expected 2 to 31 items"),
        ([], [str(i) for i in range(32)], "flag --candidates: found 32, expected 2 to 31 items"),
    ],
)
def test_what_cannot_be_asked_is_named(served, users, items, said):
    _, world, known = served
    ids = given(users or known[:1]), items and given(items)
    assert refused(recommend.questions, world, *ids) == said


def test_a_user_without_a_test_example_needs_candidates(served):
    _, world, _ = served
    tested = {e.user for e in world.examples["test"]}
    user = next(u for code, u in enumerate(world.log.user_ids) if code not in tested)
    said = refused(recommend.questions, world, {user: "flag --user"}, None)
    assert said == f"flag --user: found {user!r} without a test example, expected --candidates"
    assert recommend.questions(world, given([user]), given(world.log.items.item_id[:2]))


def test_ids_are_listed_by_commas_or_lines(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("a\n\n b \n")
    places = {"a": f"{path}, line 1", "b": f"{path}, line 3"}
    assert recommend.listed("candidates", str(path)) == recommend.lines("users", path) == places
    assert recommend.listed("candidates", "a, b") == dict.fromkeys("ab", "flag --candidates")
    said = refused(recommend.listed, "candidates", "a,b,a")
    assert said == "flag --candidates: found 'a' again, expected each id once"
    assert "no file 'nowhere'" in refused(recommend.lines, "users", "nowhere")
    path.write_text("\n")
    assert f"{path}: found no ids" in refused(recommend.lines, "users", path)


@pytest.mark.parametrize(("user", "file"), [(None, None), ("a", "b")])
def test_whom_to_answer_is_said_once(user, file):
    assert "flags --user and --users" in refused(recommend.asked_users, user, file)


def test_evidence_is_told_by_its_first_line():
    call = {"name": "look", "arguments": {"item": "é"}, "observation": "first\nsecond"}
    record = {"user": "u", "time": 86400, "events": 3, "candidates": ["a"] * 4, "ranking": []}
    record |= {"calls": [call], "finish": "token_budget", "invalid_reason": "token_budget"}
    told = recommend.described(record).splitlines()
    assert told[0] == "user u, asked at 1970-01-02 00:00:00 UTC, 3 events before, 4 candidates"
    assert '    look {"item": "é"} -> first' in told and "  ended: token_budget" in told
