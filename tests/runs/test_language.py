"""Rows of language models: what a row counts, what is written, and a run that was interrupted."""

import json

import pytest

from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.evaluation.rankings import read_rankings, write_rankings
from agenticrec_jax.evaluation.verification import verify_run
from agenticrec_jax.language.answers import UNREADABLE
from agenticrec_jax.language.completion import Decoding
from agenticrec_jax.language.interecagent import INSTRUCTIONS
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.language import (
    COMPLETIONS,
    evaluate_method,
    make_method,
    policy_completer,
)
from agenticrec_jax.runtime.provenance import FILE_NAME
from agenticrec_jax.testing.chat import write_chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from tests.language.completers import Fake, listed_candidates, planned
from tests.language.policies import writer_of
from tests.small_log import small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The smoke preset on a log of 40 users."""
    directory = tmp_path_factory.mktemp("language")
    return small_config(directory)


@pytest.fixture
def run(config, tmp_path):
    return Run(run_config(config), tmp_path / "run")


def ranked(run, completer, examples, method="llmrank", name="row", **options):
    made = make_method(run, method, **options)
    return evaluate_method(run, made, completer, examples, name=name, split="valid")


def knows(run):
    """A completer that ranks the target first, where its title is no other candidate's."""
    title = run.data.log.items.title
    examples = run.data.by_id("valid")

    def text(chat):
        target = title[examples[chat.key[0]].target]
        numbers = [n for n, listed in listed_candidates(chat).items() if listed == target]
        return "\n".join(map(str, [*numbers[:1], *range(1, 21)]))

    return Fake(text)


def distinct(run):
    title = run.data.log.items.title
    valid = run.data.examples["valid"]
    return [e for e in valid if len({title[item] for item in e.candidates}) == 20]


def test_a_row_says_what_it_is_made_of(run):
    examples = distinct(run)
    assert len(examples) > 3
    results = ranked(run, knows(run), examples, rounds=2, prompt="in_context", title_words=99)
    (row,) = results["rows"]
    assert row["name"] == "row" and row["n"] == len(examples)
    assert row["hr@1"] == row["ndcg@10"] == 1 and row["invalid_rate"] == 0
    assert row["mean_tool_calls"] == row["unreadable_rate"] == 0 and row["seeds"] == [0]
    protocol = results["protocol"]
    assert protocol["candidate_hash"] == run.data.candidate_hash and protocol["split"] == "valid"
    assert protocol["completer"] == "fake"
    assert protocol["method"] == {
        **{"prompt": "in_context", "rounds": 2, "title_words": 99, "seed": 0},
        **{"temperature": 0.2, "max_tokens": 1024},
    }
    path = run.workdir / "evaluation_row_valid.json"
    assert json.loads(path.read_text()) == results
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    log = run.data.log
    for line, example in zip(lines, examples, strict=True):
        assert line["example_id"] == example.example_id and line["rank"] == 1
        assert line["ranking"][0] == example.target_number and len(line["texts"]) == 2
        assert line["candidate_ids"] == [log.items.item_id[i] for i in example.candidates]
        assert line["user"] == log.user_ids[example.user] and line["seed"] == 0
    for ranking, line in zip(read_rankings(path.with_suffix(".parquet")), lines, strict=True):
        assert ranking[:3] == (line["example_id"], "row", 0) and ranking.calls == 0
        assert ranking.items == tuple(line["candidate_ids"][n - 1] for n in line["ranking"])


def test_no_failure_leaves_the_denominator(run):
    """Planted junk in half of the examples halves each metric of a model that knows the rest."""
    examples = distinct(run)[:4]
    knowing = knows(run)
    junk = {example.example_id for example in examples[:2]}
    half = Fake(lambda chat: "junk" if chat.key[0] in junk else knowing._text(chat))
    (row,) = ranked(run, half, examples, title_words=99)["rows"]
    assert row["n"] == 4 and row["hr@1"] == row["ndcg@10"] == row["invalid_rate"] == 0.5
    assert row["invalid_reasons"] == {UNREADABLE: 2} and row["unreadable_rate"] == 0.5
    rankings = read_rankings(run.workdir / "evaluation_row_valid.parquet")
    assert [ranking.valid for ranking in rankings] == [False, False, True, True]
    assert [bool(ranking.items) for ranking in rankings] == [False, False, True, True]
    empty = Fake(lambda chat: "")
    empty.identity = "empty"  # the same chats are in the file, of another model
    (row,) = ranked(run, empty, examples, name="junk")["rows"]
    assert row["n"] == 4 and row["hr@10"] == 0 and row["invalid_rate"] == 1


@pytest.fixture
def finished(run):
    """The folder of a row with an invalid answer and two rankings, of ten names and of all."""
    junk, short, _ = examples = evenly_spread(run.data.examples["valid"], 3)
    texts = {junk.example_id: "junk", short.example_id: "\n".join(map(str, range(1, 11)))}
    every = "\n".join(map(str, range(1, 21)))
    ranked(run, Fake(lambda chat: texts.get(chat.key[0], every)), examples)
    return run.workdir


def differing(directory):
    return [check.name for check in verify_run(directory) if check.holds is False]


def test_a_row_holds_against_its_rankings_and_these_against_the_answers(finished):
    checks = {check.name: check for check in verify_run(finished)}
    assert [name for name, check in checks.items() if check.holds is False] == []
    for fact in (".json: row row", ".json: rankings of row", ".jsonl: ranks and rankings of row"):
        assert checks[f"evaluation_row_valid{fact}"].holds
    assert (finished / FILE_NAME).is_file()


def swapped(answer):
    """Two candidates that are not the target change places: no metric and no rank differs."""
    numbers = answer["ranking"]
    others = [place for place in range(len(numbers)) if place + 1 != answer["rank"]]
    first, second = others[:2]
    numbers[first], numbers[second] = numbers[second], numbers[first]


@pytest.mark.parametrize(
    "fault",
    [
        lambda answers: swapped(answers[2]),
        lambda answers: answers[0].update(ranking=[3, 1], invalid_reason=None),
        lambda answers: answers[1].update(calls=1),
        lambda answers: answers[1].update(rank=20),
        lambda answers: answers[1].update(candidate_ids=answers[2]["candidate_ids"]),
        lambda answers: answers[2].update(seed=9),
        lambda answers: answers.pop(0),
        lambda answers: answers.__setitem__(2, answers[1]),
        lambda answers: answers.clear(),
    ],
    ids="swapped repaired calls rank candidates seed dropped repeated empty".split(),
)
def test_a_fault_in_the_answers_is_found(finished, fault):
    path = finished / "evaluation_row_valid.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    fault(answers)
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert differing(finished) == [f"{path.name}: ranks and rankings of row"]


def test_a_fault_in_the_rankings_or_the_row_is_found(finished):
    path = finished / "evaluation_row_valid.json"
    rankings = read_rankings(path.with_suffix(".parquet"))
    items = rankings[2].items
    changed = rankings[2]._replace(items=items[1:] + items[:1])
    write_rankings(path.with_suffix(".parquet"), [*rankings[:2], changed])
    assert f"{path.name}l: ranks and rankings of row" in differing(finished)
    write_rankings(path.with_suffix(".parquet"), rankings)
    record = json.loads(path.read_text())
    record["rows"][0]["invalid_rate"] = 0.0
    path.write_text(json.dumps(record))
    assert differing(finished) == [f"{path.name}: row row"]


@pytest.mark.parametrize("method", ["llmrank", "interecagent"])
def test_an_interrupted_run_asks_for_the_rest_alone(config, tmp_path, method):
    def text(chat):
        if method == "interecagent" and len(chat.turns) == 2:
            return planned(("rank", {"schema": "popularity"}))
        numbers = sorted(range(1, 21), key=lambda number: hash((chat.key, number)))
        listed = {str(number): rank for rank, number in enumerate(numbers)}
        return json.dumps(listed) if method == "interecagent" else "\n".join(map(str, numbers))

    class Killed(Fake):
        """Ends by Ctrl-C after five texts in all."""

        left = 5

        def complete(self, chats, decoding, on_text=None):
            for i, chat in enumerate(chats):
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
                on_text(i, self._text(chat))
            return [self._text(chat) for chat in chats]

    whole = Run(run_config(config), tmp_path / "whole")
    examples = whole.data.examples["valid"][:4]
    everything = Fake(text)
    expected = ranked(whole, everything, examples, method)
    stopped = Run(run_config(config), tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        ranked(stopped, Killed(text), examples, method)
    assert not list(stopped.workdir.glob("evaluation_*"))
    assert len((stopped.workdir / COMPLETIONS).read_text().splitlines()) == 5
    rest = Fake(text)
    assert ranked(stopped, rest, examples, method) == expected
    assert len(rest.chats) == len(everything.chats) - 5
    again = Fake(text)
    assert ranked(stopped, again, examples, method) == expected and again.chats == []


def test_a_policy_directory_is_a_row(config, tmp_path):
    """One whose weights write the same three numbers whatever the chat is."""
    run = Run(run_config(config), tmp_path / "run", policy_directory=tmp_path / "policy")
    directory = tmp_path / "policy"
    directory.mkdir()
    examples = run.data.examples["valid"][:2]
    texts = make_method(run, "llmrank").text(examples[0], list(range(1, 21)))
    write_chat_tokenizer(directory, [texts, INSTRUCTIONS] * 3, 700)
    tokenizer = read_hf_tokenizer(directory)
    save_policy(writer_of(tokenizer, "3;1,2"), directory)
    completer = policy_completer(run)
    results = ranked(run, completer, examples, temperature=0.0, max_tokens=24)
    assert results["rows"][0]["invalid_rate"] == 0
    method = make_method(run, "llmrank")
    path = run.workdir / "evaluation_row_valid.jsonl"
    for line, example in zip(path.read_text().splitlines(), examples, strict=True):
        answer = json.loads(line)
        assert answer["texts"] == ["3;1,2"] * 3
        orders = [method.order(example, number) for number in range(3)]
        assert set(answer["ranking"]) == {order[place] for order in orders for place in range(3)}
    assert run.policy.weights_hash in results["protocol"]["completer"]
    # Its turn is no plan, and it has no other: a row of misses, which the same program makes.
    (row,) = ranked(run, completer, examples, "interecagent", "agent", max_tokens=24)["rows"]
    assert row["invalid_rate"] == 1 and row["n"] == 2


def test_options_of_a_method_are_checked(run):
    assert make_method(run, "llmrank", temperature=0.5).decoding == Decoding(0.5, 1024)
    assert make_method(run, "interecagent", max_tokens=9).decoding == Decoding(0.0, 9)
    assert_names(refused(make_method, run, "gpt"), "gpt", "llmrank", "interecagent")
    sentence = refused(make_method, run, "interecagent", rounds=3)
    assert_names(sentence, "interecagent", "rounds")
    assert_names(refused(make_method, run, "llmrank", prompt="icl"), "prompt", "icl")
