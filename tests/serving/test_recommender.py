"""The recommender: answers of a run's policy, loaded once and asked often."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from agenticrec_jax import Recommender
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.interactions import make_log, read_log
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.programs import Programs
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.policy import load_policy
from agenticrec_jax.serving import Question
from agenticrec_jax.serving.retrieval import catalog_scores, retrieve
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.base import AsOfView
from tests.serving.writers import save_writer
from tests.small_log import small_config

NUMBERS = (7, 3, 12, 1, 20, 5, 9, 11, 2, 14)
ANSWER = "<answer>\\boxed{[" + ",".join(map(str, NUMBERS)) + "]}</answer>"
BEGUN = ANSWER[: ANSWER.index("7")]


LATE = 30  # users who take one item at the end of the log, which nobody took before


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A recommender whose policy reads the candidates' popularity; the log; two users.

    The last events of the log are those of 30 other users, who all take the last item.
    """
    directory = tmp_path_factory.mktemp("served")
    config = small_config(directory)
    log = read_log(config.dataset["interactions"], config.dataset["items"])
    late = log.num_items - 1
    kept_events = log.item != late
    names = [f"late{i}" for i in range(LATE)] * 2
    planted = make_log(
        [log.user_ids[user] for user in log.user[kept_events]] + names,
        np.concatenate([log.item[kept_events], np.repeat([0, late], LATE)]),
        np.concatenate([log.time[kept_events], log.time[-1] + np.arange(2 * LATE)]),
        items=log.items,
    )
    interactions, items = write_log(planted, directory / "planted")
    config.dataset.update({"interactions": str(interactions), "items": str(items)})
    config.engine.update({"slots": 2, "row_buckets": (2,), "window_buckets": (), "max_tokens": 96})
    policy = save_writer(directory / "ranks", ANSWER, "candidates_analyze")
    run = Run(run_config(config), directory / "run", policy_directory=policy)
    return Recommender(run), run.data.log, list(run.data.log.user_ids[3:5])


def timeless(answers):
    """Answers as records without what differs from call to call."""
    records = [json.loads(answer.to_json()) for answer in answers]
    for record in records:
        record.pop("seconds")
        for call in record["evidence"]:
            call.pop("seconds")
    return records


def view_now(log, user, candidates):
    """The tools' view of a question about now, made of the whole log."""
    code = log.user_code[user]
    history = tuple(log.item[log.events_of(code)][-10:].tolist())
    time = int(log.time[-1]) + 1
    return AsOfView(log, RankingExample(0, code, len(log), time, history, candidates, None, "now"))


def test_an_answer_has_items_scores_evidence_and_reasons(served):
    recommender, log, users = served
    items = tuple(range(5, 25))
    names = [log.items.item_id[item] for item in items]
    answers = recommender.recommend(users, candidates=names, k=6)
    for user, answer in zip(users, answers, strict=True):
        assert answer.user == user and answer.events == len(log.events_of(log.user_code[user]))
        assert answer.time == log.time[-1] + 1 and answer.fallback is None
        assert list(answer.candidates) == names and not answer.retrieved
        chosen = [names[number - 1] for number in NUMBERS[:6]]
        assert list(answer.item_ids) == chosen
        scores = [item.ordinal_score for item in answer.items]
        assert scores == [1 / math.log2(rank + 1) for rank in range(1, 7)]
        (call,) = answer.evidence
        toolbox = recommender.run.toolbox(recommender.run.artifacts_b)
        text = toolbox.call(view_now(log, user, items), "candidates_analyze", {}).text
        assert (call.name, call.observation, call.read) == ("candidates_analyze", text, text)
        popular = [int(n) for n in text.rpartition("popular:")[2].split(",") if n]
        for item, number in zip(answer.items, NUMBERS, strict=False):
            if item.rank > 3:
                assert item.reason is None
            elif number in popular:
                assert f"{popular.index(number) + 1} of 10 by popular" in item.reason
            else:
                assert "popular" not in item.reason
        shared = len(set(popular) & set(NUMBERS[:6]))
        assert f"popular: {shared} of 10 in the list" in answer.reason
        assert answer.tokens["sampled"] > 15 and answer.tokens["observed"] > 10
        assert 0 < answer.seconds < 600
        text = answer.describe()
        assert f"   1  {chosen[0]}  {answer.items[0].title}" in text and answer.reason in text


def test_equal_questions_have_equal_answers_alone_and_together(served):
    recommender, log, users = served
    answers = recommender.recommend(users)
    again = [*recommender.recommend(users[1:]), *recommender.recommend([users[0], users[1]])]
    assert timeless(again) == [timeless(answers)[i] for i in (1, 0, 1)]
    for user, answer in zip(users, answers, strict=True):
        history = log.item[log.events_of(log.user_code[user])].tolist()
        artifacts = recommender.run.artifacts_b
        retrieved = retrieve(artifacts, view_now(log, user, ()), history, 20)
        assert answer.retrieved and answer.candidates != tuple(
            log.items.item_id[item] for item in retrieved
        )
        assert sorted(answer.candidates) == sorted(log.items.item_id[item] for item in retrieved)


def test_candidates_are_for_all_or_for_each_and_may_be_new(served):
    recommender, log, users = served
    ids = log.items.item_id
    pen = {"item_id": "new", "title": "Glass Pen", "brand": "Nobody's"}
    first, second = recommender.recommend(users, candidates=[[*ids[:19], pen], None])
    assert second.retrieved and not first.retrieved
    assert first.items[4].item_id == "new" and first.items[4].title == "Glass Pen"
    (alone,) = recommender.recommend(users[1:])
    assert timeless([second]) == timeless([alone])
    history = [ids[item] for item in log.item[log.events_of(log.user_code[users[0]])].tolist()]
    (unseen,) = recommender.recommend(histories=[history], candidates=[*ids[:19], pen])
    assert unseen.user is None and unseen.item_ids == first.item_ids
    assert unseen.evidence[0].read == first.evidence[0].read


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, ("users and histories", "one of the two")),
        ({"users": "ann"}, ("users: found 'ann'", "a list")),
        ({"users": ["nobody"]}, ("users[0]: found 'nobody'",)),
        ({"histories": [["gone"]]}, ("histories[0], history, item 1: found 'gone'",)),
        ({"users": [], "candidates": [["a"]]}, ("candidates: found 1",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_call_that_cannot_be_answered_is_refused(served, arguments, named):
    recommender, _, _ = served
    assert_names(refused(recommender.recommend, **arguments), *named)
    assert_names(refused(Recommender, recommender.run, retrieved=31), "retrieved: found 31")


def test_questions_that_cannot_be_answered_are_skipped_and_reported(served):
    recommender, log, users = served
    long = [{"item_id": f"n{i}", "title": "a b c d e f g"} for i in range(31)]
    questions = [
        Question(user="nobody", where="line 1"),
        Question(user=users[0], where="line 2"),
        Question(user=users[1], candidates=long, where="line 3"),
    ]
    refusals = []
    (answer,) = recommender.answer(
        questions, on_refused=lambda question, error: refusals.append((question, str(error)))
    )
    assert answer.user == users[0]
    assert [question for question, _ in refusals] == [questions[0], questions[2]]
    assert_names(refusals[0][1], "line 1: found 'nobody'")
    assert_names(refusals[1][1], "line 3, prompt", "tokens")
    assert recommender.answer(questions[:1], on_refused=lambda *_: None) == []


def test_an_answer_that_is_begun_becomes_a_ranking_and_none_becomes_sasrecs(
    served, tmp_path, monkeypatch
):
    """One policy begins an answer of four candidates at once, another never does."""
    recommender, log, users = served
    run = recommender.run
    names = [*log.items.item_id[3:6], {"item_id": "new", "title": "Glass Pen"}]

    def answers_of(name, text):
        directory = save_writer(tmp_path / name, text)
        monkeypatch.setattr(run, "policy", load_policy(run.config.policy, directory))
        return recommender.recommend(users, candidates=names)

    for answer in answers_of("begins", BEGUN):
        assert answer.fallback is None and sorted(answer.item_ids) == sorted(answer.candidates)
        assert answer.reason == "no observation was read" and not answer.evidence
    for user, answer in zip(users, answers_of("mute", "<think>"), strict=True):
        history = log.item[log.events_of(log.user_code[user])].tolist()
        scores = catalog_scores(run.artifacts_b, view_now(log, user, ()), history)[3:6]
        order = [log.items.item_id[3 + i] for i in np.argsort(-scores)]
        assert list(answer.item_ids) == [*order, "new"]
        assert answer.fallback and answer.fallback in answer.reason
        assert all(item.reason is None for item in answer.items)


def test_refit_sees_the_newest_events_of_others(served, monkeypatch):
    recommender, log, users = served
    monkeypatch.setattr(recommender, "_agent", recommender._agent)  # which refit replaces
    late = log.num_items - 1
    names = log.items.item_id[late - 19 :]

    def popular():
        (answer,) = recommender.recommend(users[:1], candidates=names)
        text = answer.evidence[0].read.rpartition("popular:")[2]
        return [int(number) for number in text.split(",") if number]

    assert 20 not in popular()
    recommender.refit()
    assert popular()[0] == 20
    assert recommender.run.artifacts_whole.fit_range.events == len(log)


def test_a_workdir_remembers_its_run(served, tmp_path, monkeypatch):
    recommender, _, _ = served
    monkeypatch.chdir(tmp_path)
    loaded = Recommender.load(recommender.run.workdir, warm_up=False)
    assert loaded.run.config == recommender.run.config
    assert loaded.run.policy_directory == recommender.run.policy_directory
    trained = recommender.run.workdir / "rta" / "policy"
    shutil.copytree(recommender.run.policy_directory, trained)
    loaded = Recommender.load(recommender.run.workdir, warm_up=False)
    assert loaded.run.policy_directory == trained
    assert_names(refused(Recommender.load, tmp_path), tmp_path / "run.json")


@pytest.mark.slow
def test_rankings_of_the_embedded_policy_are_those_of_evaluation(served):
    """Without constraint, on examples that are made of the whole log."""
    recommender, log, users = served
    config = recommender.run.config
    engine = dataclasses.replace(config.engine, max_tokens=288)
    run = Run(dataclasses.replace(config, engine=engine), recommender.run.workdir)
    items = tuple(range(5, 25))
    names = [log.items.item_id[item] for item in items]
    views = [view_now(log, user, items) for user in users]
    examples = [
        RankingExample(i, view.user, len(log), view.time, view.history, items, None, "now")
        for i, view in enumerate(views)
    ]
    evaluated = evaluate(run.evaluation_agent, run.make_engine(), run.policy.params, examples)
    loaded = Recommender(run, constrained=False)
    loaded.warm_up()
    answers = loaded.recommend(users, candidates=names)
    for answer, trajectory in zip(answers, evaluated, strict=True):
        assert trajectory.calls and [call.observation for call in answer.evidence] == [
            call.observation for call in trajectory.calls
        ]
        assert answer.fallback == trajectory.invalid_reason
        if trajectory.valid:
            chosen = [names[number - 1] for number in trajectory.ranking]
            assert list(answer.item_ids) == chosen


def test_a_prompt_that_the_model_has_no_positions_for_fails_alone(served, monkeypatch):
    """The engine takes it for no request, and would end those that run beside it."""
    recommender, _, users = served
    question = Question(user=users[0], where="users[0]")
    tokens = len(recommender.prepare(question).prompted.prompt)
    monkeypatch.setattr(Programs, "context_length", lambda programs, params: tokens)
    smaller = Recommender(recommender.run)
    sentence = refused(smaller.prepare, question)
    assert_names(sentence, "users[0], prompt", f"{tokens} tokens", f"at most {tokens - 1}")
