"""The training program with a policy directory in Qwen3's format: tokenizer.json, chat prompts."""

import json
import os

import pytest
from transformers import AutoTokenizer

from agenticrec_jax.agent.episodes import run_episodes
from agenticrec_jax.agent.prompts import ChatPrompts
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.runs import Run, RunConfig, run_config
from agenticrec_jax.runs.config import PolicyConfig
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.policy import load_policy as load_run_policy
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer

CONFIG = """
from agenticrec_jax.cli.configs import load_config

def get_config():
    config = load_config("office:smoke")
    config.policy.directory = {directory!r}
    config.engine.update({{"prompt_buckets": (1536,), "splice_buckets": (96,), "slots": 4}})
    config.engine.update({{"max_tokens": 64, "row_buckets": (4,), "window_buckets": (1664,)}})
    shapes = {{"prompt_buckets": (1536,), "completion_buckets": (64,), "token_budget": 4096}}
    config.rta.update({{"steps": 1, "members": 2}} | shapes)
    config.warm_start.update({{"lessons": ((("short",), 1), ((6,), 1)), "token_budget": 8192}})
    return config
"""


def write_policy(directory, rows=5):
    """A random policy with ``rows`` more than the small chat tokenizer has ids."""
    model = tiny_qwen3(1, num_layers=1, vocab_size=chat_tokenizer().vocab_size + rows)
    save_policy(model, directory)
    chat_tokenizer().save(directory)
    return directory


def load(directory) -> Policy:
    return load_run_policy(PolicyConfig(directory=str(directory)))


def run_of(config: RunConfig, policy: Policy, workdir) -> Run:
    """A run on the tiny world's log with a policy in memory."""
    return Run(config, workdir, data=RunData(tiny_world().log, None, {}, ""), policy=policy)


def test_a_policy_with_more_rows_than_ids_loads_and_gets_the_chat_style(tmp_path):
    policy = load(write_policy(tmp_path / "policy"))
    config = load_config("office:smoke")
    config.policy.update({"title_tokens": 9, "observation_style": "observation"})
    run = run_of(run_config(config), policy, tmp_path)
    prompts = run.agent(tiny_world().artifacts).prompts
    assert type(prompts) is ChatPrompts
    assert (prompts.title_tokens, prompts.observation_style) == (9, "observation")
    engine = run.engine
    marker = policy.tokenizer.marker
    assert engine.pause_id == marker("</tool_call>")
    assert engine.stop_ids == (marker("<|im_end|>"), marker("<|endoftext|>"))


def test_a_tokenizer_json_larger_than_the_embedding_is_refused(tmp_path):
    directory = write_policy(tmp_path / "policy", rows=-3)
    size = chat_tokenizer().vocab_size
    sentence = refused(load, directory)
    assert_names(sentence, f"{directory}/tokenizer.json", size, size - 3)
    assert_names(sentence, "tensor model.embed_tokens.weight")


@pytest.mark.parametrize("content", ["", '{"model": {"type": "Unigram"}}'])
def test_a_tokenizer_json_that_is_none_is_named(tmp_path, content):
    directory = write_policy(tmp_path / "policy")
    (directory / "tokenizer.json").write_text(content)
    assert_names(refused(load, directory), "policy/tokenizer.json")


@pytest.mark.peer
def test_qwen3s_vocabulary_with_its_padded_rows(tmp_path):
    """The published tokenizer, in the directory that AGENTICREC_QWEN3_TOKENIZER names."""
    save_policy(tiny_qwen3(1, num_layers=1, vocab_size=151936), tmp_path)
    read_hf_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"]).save(tmp_path)
    policy = load(tmp_path)
    assert policy.tokenizer.vocab_size == 151669
    world, config = tiny_world(), load_config("office:smoke")
    config.engine.update({"prompt_buckets": (1536,), "splice_buckets": (96,), "slots": 4})
    config.engine.update({"max_tokens": 24, "row_buckets": (4,), "window_buckets": (1600,)})
    run = run_of(run_config(config), policy, tmp_path)
    (group,) = run_episodes(
        run.agent(world.artifacts),
        run.engine,
        policy.params,
        [Task(world.examples[0])],
        members=4,
        temperature=1.0,
        seed=0,
    )
    for played in group:
        assert (played.prompt[0], played.prompt[-3]) == (151644, 151644)
        assert played.ids.max() < 151936 and len(played.ids) == 24
        assert policy.tokenizer.decode(played.ids)


@pytest.mark.slow
def test_stages_train_such_a_policy_and_write_one(program, tmp_path):
    start = write_policy(tmp_path / "policy")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(directory=str(start)))
    for stage in ("sft", "rta"):
        flags = [f"--stage={stage}", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
        ended = program("train_policy", *flags)
        assert ended.returncode == 0, ended.stderr
        written = tmp_path / "run" / stage / "policy"
        assert (written / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
        said = json.loads((written / "generation_config.json").read_text())
        ends = [chat_tokenizer().marker(name) for name in ("<|im_end|>", "<|endoftext|>")]
        assert (said["eos_token_id"], said["pad_token_id"]) == (ends, ends[1])
    peer = AutoTokenizer.from_pretrained(written)
    text = "<|im_start|>user\nPen</tool_call><|im_end|>"
    assert peer(text)["input_ids"] == chat_tokenizer().encode_markup(text)
    learned, before = load_policy(tmp_path / "run" / "sft" / "policy"), load_policy(start)
    assert (learned.embedding[...] != before.embedding[...]).any()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["sft", "sft", "rta"]
    assert json.loads(lines[-1])["tokens"] > 1
