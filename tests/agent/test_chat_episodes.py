"""Whole episodes in Qwen3's format, through the engine, with a policy that writes a script.

The model is random and runs as ever; only the drawn tokens are scripted. So the engine itself
decides where to pause, splice and end, and its log-probs show what is in its cache.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent import chat, protocol
from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.prompts import make_prompts
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.evaluation.report import turns_of
from agenticrec_jax.generation import sampling
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.collaborative import GetSimilarItems
from agenticrec_jax.tools.items import CandidatesAnalyze
from agenticrec_jax.tools.registry import recthinker_tools
from agenticrec_jax.tools.text import ToolOptions
from agenticrec_jax.types import OBSERVATION, SAMPLED

SEED, STEP, MEMBERS, BUDGET = 9, 4, 4, 240
NEAR = '<tool_call>\n{"name": "get_similar_items", "arguments": {"item_name": "h1"}}\n</tool_call>'
LOOK = '<tool_call>{"name":"candidates_analyze","arguments":{}}</tool_call>'
QUOTE = "<think>it says </tool_response> and <observation></think>\n"  # its own words, in pieces


def ends_with_its_turn(tokenizer):
    """The same tokenizer, had it no single id for ``</tool_call>``."""
    changed = copy.copy(tokenizer)
    changed.pause_id = changed.turn_end
    return changed


def example():
    """The first one, with its last 12 candidates (the target is among them)."""
    whole = tiny_world().examples[0]
    assert whole.target in whole.candidates[8:]
    return dataclasses.replace(whole, candidates=whole.candidates[8:])


def toolbox():
    """Two of the tools, so that the prompt is short."""
    artifacts = tiny_world().artifacts
    options = ToolOptions()
    return Toolbox([GetSimilarItems(artifacts, options), CandidatesAnalyze(artifacts, options)])


def scripts(call_end=""):
    """Turns by member, and the tools that they call: two calls, none, an unknown one, no end."""
    target = example().target_number
    numbers = [target, *(n for n in range(1, 13) if n != target)]
    answer = protocol.render_ranking(numbers[:10]) + "<|im_end|>"
    unknown = NEAR.replace("get_similar_items", "buy")
    return [
        [f"<think>first</think>\n{NEAR}{call_end}", f"{QUOTE}{LOOK}{call_end}", answer],
        [f"<think>no need</think>{protocol.render_ranking(numbers[1:11])}<|im_end|>"],
        [f"{unknown}{call_end}", answer],
        ["<think>" + "and so on " * 300],
    ]


CALLED = [["get_similar_items", "candidates_analyze"], [], ["buy"], []]
ARGUMENTS = {"get_similar_items": {"item_name": "h1"}, "candidates_analyze": {}}


def expected(prompts, turns, called, budget):
    """Ids and origins of a row, put together from the script and the tools' own words."""
    view = AsOfView(tiny_world().log, example())
    ids, origin = [], []
    for i, turn in enumerate(turns):
        new_ids = prompts.tokenizer.encode_markup(turn)
        ids, origin = ids + new_ids, origin + [SAMPLED] * len(new_ids)
        if i < len(called) and called[i] in ARGUMENTS:
            seen = toolbox().call(view, called[i], ARGUMENTS[called[i]]).text
            new_ids = prompts.observation(seen)
            ids, origin = ids + new_ids, origin + [OBSERVATION] * len(new_ids)
        elif i < len(called):
            break  # an unknown tool ends a training episode
    return ids[:budget], origin[:budget]


def scripted_sample(rows, start):
    """``sampling.sample`` that draws the token a row's script has at a position."""
    key = jnp.array([[STEP, example().example_id, 0]], jnp.uint32)
    known = sampling.row_keys(jnp.uint32(SEED), key, jnp.arange(MEMBERS))[0]
    table = np.zeros((MEMBERS, 4096), np.int32)
    for member, ids in enumerate(rows):
        table[member, start : start + len(ids)] = ids
    table = jnp.array(table)

    def sample(logits, keys, positions, draw):
        member = (keys[:, None] == known).all(-1).argmax(-1)
        ids = table[member, positions]
        scores = jax.nn.log_softmax(logits / draw.temperature)
        return ids, jnp.take_along_axis(scores, ids[:, None], axis=1)[:, 0]

    return sample


def policy(tokenizer):
    """A random Qwen3 with more rows than the tokenizer has ids, as published ones have."""
    return tiny_qwen3(3, num_layers=1, vocab_size=tokenizer.vocab_size + 7)


def sizes(prompt):
    return EngineConfig(
        slots=4,
        prompt_buckets=(len(prompt),),
        splice_buckets=(16, 64),
        max_tokens=BUDGET,
        row_buckets=(4,),
        window_buckets=(len(prompt) + BUDGET + 32,),
    )


@functools.cache
def play(form):
    """The four trajectories, what they must be, and the model that they are of."""
    make, observations, call_end = FORMS[form]
    tokenizer, world = make(), tiny_world()
    prompts = make_prompts(tokenizer, world.log.items, 6, "chat", observations)
    agent = Agent(world.log, toolbox(), world.artifacts, prompts)
    task = Task(example())
    prompt, model = agent.prompt(task), policy(tokenizer)
    turns = zip(scripts(call_end), CALLED, strict=True)
    rows = [expected(prompts, *turn, budget=BUDGET) for turn in turns]
    graphdef, params = nnx.split(model)
    stop = [i for i in tokenizer.stop_ids if i != tokenizer.pause_id]
    engine = Engine(graphdef, sizes(prompt), tokenizer.pause_id, stop, tokenizer.pad_id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "sample", scripted_sample([ids for ids, _ in rows], len(prompt)))
        (group,) = run_episodes(
            agent, engine, params, [task], members=MEMBERS, temperature=1.5, seed=SEED, step=STEP
        )
    return group, rows, model


FORMS = {
    "tool_response": (lambda: chat_tokenizer(), chat.RESPONSE, ""),
    "observation": (lambda: chat_tokenizer(), chat.INLINE, ""),
    "ends its turn": (lambda: ends_with_its_turn(chat_tokenizer()), chat.RESPONSE, "<|im_end|>"),
}


@pytest.mark.parametrize("form", FORMS)
def test_episodes_are_the_scripts_with_observations_between(form):
    group, rows, model = play(form)
    for played, (ids, origin) in zip(group, rows, strict=True):
        assert played.ids.tolist() == ids
        assert played.origin.tolist() == origin
    two, none, unknown, endless = group
    assert [(call.name, call.arguments) for call in two.calls] == list(ARGUMENTS.items())
    assert two.calls[0].observation.startswith("near h1")
    assert (two.finish, two.rank, two.reward.total) == ("stop", 1, 1.1)
    assert (none.finish, none.rank, none.calls) == ("stop", None, [])
    assert (unknown.finish, unknown.invalid_reason) == ("unknown_tool", "unknown_tool")
    assert (endless.finish, len(endless.ids)) == ("token_budget", BUDGET)
    _assert_rescored(group, model)


def _assert_rescored(group, model):
    forward = nnx.jit(lambda model, ids: model(ids))
    for played in group:
        row = np.concatenate([played.prompt, played.ids])
        padded = np.pad(row, (0, len(played.prompt) + BUDGET - len(row)))
        logits = forward(model, jnp.array(padded[None]))[0, len(played.prompt) - 1 :]
        scores = jax.nn.log_softmax(logits / 1.5)[np.arange(len(played.ids)), played.ids]
        sampled = played.origin == SAMPLED
        np.testing.assert_allclose(played.logprobs[sampled], scores[sampled], atol=1e-4)
        assert (played.logprobs[~sampled] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_episodes_read_as_turns_without_the_frame_of_the_chat(form):
    (played, *_), _, _ = play(form)
    record = transcript(played, example(), tiny_world().log, chat_tokenizer(), "rta")
    turns = turns_of(record)
    kinds = ["think", "tool_call", "observation"] * 2 + ["answer"]
    assert [turn["kind"] for turn in turns] == kinds
    seen = [turn["text"].strip() for turn in turns if turn["kind"] == "observation"]
    assert seen == [call.observation for call in played.calls]
    assert turns[1]["call"]["name"] == "get_similar_items"


def test_recthinkers_tools_are_called_in_an_episode_of_ten_candidates():
    """Its five tools in one episode, one of them with a misspelled argument, and a full ranking."""
    world, tokenizer = tiny_world(), chat_tokenizer()
    nine = tuple(item for item in example().candidates if item != example().target)[:9]
    ten = dataclasses.replace(example(), candidates=(*nine, example().target))
    box = recthinker_tools(world.log.items, world.artifacts, ToolOptions(title_words=1))
    prompts = make_prompts(tokenizer, world.log.items, 2, "chat", "auto", 24, "recthinker")
    agent = Agent(world.log, box, world.artifacts, prompts, stop_on_illegal=False)
    calls = [
        protocol.ToolCall("search_user_profile", {}),
        protocol.ToolCall("search_user_history", {"k": 2}),
        protocol.ToolCall("search_similar_users", {"k": 9}),
        protocol.ToolCall("search_item_info", {"item_ids": [1, "h1"]}),
        protocol.ToolCall("search_knowledge_graph", {"item_ids": ["h1"]}),
        protocol.ToolCall("search_user_history", {"count": 2}),
    ]
    answer = protocol.render_ranking([10, *range(1, 10)]) + "<|im_end|>"
    view, ids = AsOfView(world.log, ten), []
    for call in calls:
        told_text = box.call(view, call.name, call.arguments).text
        ids += tokenizer.encode_markup(call.render()) + prompts.observation(told_text)
    ids += tokenizer.encode_markup(answer)
    task, model = Task(ten), policy(tokenizer)
    prompt = agent.prompt(task)
    engine_sizes = dataclasses.replace(
        sizes(prompt), max_tokens=len(ids) + 2, window_buckets=(), splice_buckets=(64,)
    )
    stop = [i for i in tokenizer.stop_ids if i != tokenizer.pause_id]
    engine = Engine(nnx.split(model)[0], engine_sizes, tokenizer.pause_id, stop, tokenizer.pad_id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "sample", scripted_sample([ids] * MEMBERS, len(prompt)))
        ((played, *_),) = run_episodes(
            agent,
            engine,
            nnx.split(model)[1],
            [task],
            members=1,
            temperature=1.5,
            seed=SEED,
            step=STEP,
        )
    assert played.ids.tolist() == ids
    assert [(call.name, call.arguments) for call in played.calls] == [
        (call.name, call.arguments) for call in calls
    ]
    assert [call.ok for call in played.calls] == [True] * 5 + [False]
    assert played.calls[-1].observation == "search_user_history: unknown argument; known: k"
    assert (played.rank, played.ranking) == (1, (10, *range(1, 10)))
    assert "Analyze:" in tokenizer.decode(played.prompt)
