"""A frozen language model in the results table: all rows by the one command of the README."""

import json
import re

import jax.numpy as jnp
import pytest

from agenticrec_jax.agent.chat import function_schemas, instructions, question, tools_section
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.data.candidates import candidate_hash, read_candidates
from agenticrec_jax.data.export import write_log
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs.evaluations import read_trajectories
from agenticrec_jax.testing.chat import write_chat_tokenizer
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from agenticrec_jax.tools.profiles import Profile, read_profiles, write_profiles

COUNT = 3
DISABLED = (
    *("candidates_analyze", "get_session_behavior", "get_rating_behavior"),
    *("get_similar_items", "get_similar_users"),
)
ROWS = {  # what the policy reads at each of its calls of the profile, and the tools of its prompt
    "frozen_no_tools": ("error: no tool of that name; tools: none", ()),
    "frozen": ("profile: No {}.", ("get_user_profile", "item_info_search")),
    "frozen_without_get_user_profile": (
        "error: no tool of that name; tools: item_info_search",
        ("item_info_search",),
    ),
    "frozen_without_item_info_search": ("profile: No {}.", ("get_user_profile",)),
}
CALL = '<tool_call>{"name":"get_user_profile","arguments":{}}</tool_call>'
CONFIG = """
from agenticrec_jax.cli.configs import load_config

def get_config():
    config = load_config("office:smoke")
    config.dataset.update({{"interactions": {interactions!r}, "items": {items!r}}})
    config.engine.update({{"prompt_buckets": (384, 1536), "splice_buckets": (96,), "slots": 4}})
    config.engine.update({{"max_tokens": 1200, "row_buckets": (4,), "window_buckets": ()}})
    return config
"""


def save_caller(directory, log):
    """A policy that writes ``CALL`` at the beginning of each turn, by its weights alone.

    What follows depends on the token before and nothing else: each token of the call has a
    dimension of its own, which the head reads for the next one.
    """
    directory.mkdir()
    tools = tools_section(function_schemas(tiny_world().toolbox.schemas()))
    lines = [*log.items.title, *[instructions(RANK, 20, True), question(RANK), tools] * 4]
    write_chat_tokenizer(directory, [*lines, *[CALL] * 200], 1200)
    tokenizer = read_hf_tokenizer(directory)
    chain = tokenizer.encode_markup(f"<|im_start|>assistant\n{CALL}")[2:]
    assert len(set(chain)) == len(chain) < 31
    size = tokenizer.vocab_size
    model = tiny_qwen3(num_layers=1, vocab_size=size, tie_word_embeddings=False)
    for kernel in (model.layers[0].attention.o.kernel, model.layers[0].mlp.down.kernel):
        kernel[...] = 0 * kernel[...]
    dimension = jnp.arange(len(chain))
    model.embedding[...] = jnp.zeros((size, 32)).at[:, 31].set(1).at[chain, 31].set(0)
    model.embedding[...] = model.embedding[...].at[jnp.array(chain), dimension].set(1)
    follows = jnp.zeros((32, size)).at[dimension[:-1], jnp.array(chain[1:])].set(9)
    model.head.kernel[...] = follows
    save_policy(model, directory)


@pytest.fixture(scope="module")
def evaluated(program, tmp_path_factory):
    """Profiles (with other words in them) and all rows of that policy, as a person makes them."""

    def printed(name, *flags):
        ended = program(name, *flags)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    directory = tmp_path_factory.mktemp("frozen")
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = map(str, write_log(log, directory / "log"))
    save_caller(directory / "policy", log)
    config = directory / "config.py"
    config.write_text(CONFIG.format(interactions=interactions, items=items))
    workdir = directory / "run"
    policy = f"{directory / 'policy'}"
    shared = [f"--config={config}", f"--workdir={workdir}", f"--examples={COUNT}"]
    shared += [f"--compilation_cache={directory / 'xla'}"]
    writer = f"--config.policy.directory={policy}"
    text = printed("make_profiles", *shared, writer, "--parts=valid")
    profiles = read_profiles(workdir / "profiles.jsonl")
    assert {(p.text, p.finish) for p in profiles.by_id.values()} == {("", "called_a_tool")}
    assert f"{COUNT} profiles written to {profiles.path}" in text and "3 called_a_tool" in text
    texts = [
        Profile(p.example_id, p.position, "c", f"No {p.position}.", "stop")
        for p in profiles.by_id.values()
    ]
    write_profiles(profiles.path, profiles.header, texts)
    rows = [
        "--observations=none,as_they_are,without_each",
        f"--config.tools.disabled={','.join(DISABLED)}",
        "--name=frozen",
        "--split=valid",
        f"--policy={policy}",
    ]
    table = printed("evaluate", *shared, writer, *rows, f"--config.profiles.file={profiles.path}")
    return workdir, table, read_log(interactions, items)


def test_all_rows_hold_against_their_rankings_and_trajectories(evaluated, program):
    ended = program("verify", str(evaluated[0]))
    assert ended.returncode == 0 and "0 differs" in ended.stdout, ended.stdout + ended.stderr
    for name in ROWS:
        assert f"evaluation_{name}_valid.json: row {name} (" in ended.stdout
        assert f"evaluation_{name}_valid.jsonl: ranks" in ended.stdout


def test_all_rows_are_judged_alike(evaluated):
    workdir, table, log = evaluated
    frozen = read_candidates(workdir / "candidates.jsonl.gz", log)
    for name in ROWS:
        results = json.loads((workdir / f"evaluation_{name}_valid.json").read_text())
        (row,) = results["rows"]
        assert row["name"] == name and row["n"] == COUNT
        assert row["invalid_rate"] == 1 and row["ndcg@10"] == row["hr@10"] == 0
        assert row["invalid_reasons"] == {"too_many_calls": COUNT}
        assert row["mean_tool_calls"] == 10
        counted = {tool: 10.0 * (tool == "get_user_profile") for tool in ROWS[name][1]}
        assert row["calls_by_tool"] == counted
        said = ", ".join(f"{tool} {calls:.2f}" for tool, calls in counted.items())
        assert f"{name}: calls an episode: {said or 'no tool is offered'}" in table
        protocol = results["protocol"]
        assert protocol["dataset"] == "log" and row["seeds"] == [0]
        assert protocol["candidate_hash"] == candidate_hash(workdir / "candidates.jsonl.gz")
        assert protocol["policy"]["directory"].endswith("policy") and protocol["split"] == "valid"
        assert re.search(rf"^│ {name} +│", table, re.M), table
        path = workdir / f"evaluation_{name}_valid.jsonl"
        trajectories = read_trajectories(path)
        examples = {e.example_id: e for e in frozen if e.split == "valid"}
        ids = log.items.item_id
        for line in map(json.loads, path.read_text().splitlines()):
            example = examples[line["example_id"]]
            assert line["seed"] == 0 and line["user"] == log.user_ids[example.user]
            assert line["candidate_ids"] == [ids[item] for item in example.candidates]
            assert line["history_ids"] == [ids[item] for item in example.history]
        assert {t.example_id for t in trajectories} <= {
            e.example_id for e in frozen if e.split == "valid"
        }
    assert table.count("candidates (hash") == 1  # one table
    assert len(re.findall("^devices: 1 x cpu", table, re.M)) == 1
    assert re.search(
        rf"^evaluation: {COUNT}/{COUNT} episodes, .* valid 0.000 calls 10.00$", table, re.M
    )


def test_each_row_is_offered_its_tools_and_given_no_other(evaluated):
    """Where it has the profile, what the policy reads is that of the example."""
    workdir = evaluated[0]
    tokenizer = read_hf_tokenizer(workdir.parent / "policy")
    known = {name for _, tools in ROWS.values() for name in tools} | set(DISABLED)
    for name, (said, tools) in ROWS.items():
        for t in read_trajectories(workdir / f"evaluation_{name}_valid.jsonl"):
            prompt = tokenizer.decode(t.prompt)
            assert {tool for tool in known if tool in prompt} == set(tools)
            assert ("<tools>" in prompt) == bool(tools)
            read = (said.format(t.example_id), "get_user_profile" in tools)
            assert [(call.observation, call.ok) for call in t.calls] == [read] * 10
            assert tokenizer.decode(t.ids).count(CALL) == 11


NAMES = ["", "a/b", "two words", "Qwen3-1.7B_a"]
CALLS = f"""
from absl import flags
from agenticrec_jax.errors import InputError
from experiments import evaluate

for name in {NAMES!r}:
    arguments = ["--config=experiments/configs/office.py", "--workdir=none", "--policy=nowhere"]
    flags.FLAGS(["evaluate", *arguments, f"--name={{name}}"])
    try:
        evaluate.main([])
    except InputError as error:
        print(error)
"""


def test_a_name_is_one_of_a_file(python):
    """The others are refused before the policy is looked for."""
    ended = python("-c", CALLS)
    assert ended.returncode == 0, ended.stderr
    *bad, good = ended.stdout.splitlines()
    for name, sentence in zip(NAMES, bad, strict=False):
        assert_names(sentence, "flag --name", repr(name))
    assert len(bad) == len(NAMES) - 1
    assert_names(good, "nowhere")
