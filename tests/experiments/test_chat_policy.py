"""The training program with a policy directory in Qwen3's format: tokenizer.json, chat prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agenticrec_jax.agent.episodes import run_episodes
from agenticrec_jax.agent.prompts import ChatPrompts
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from experiments.configs import office

ROOT = Path(__file__).parents[2]
CONFIG = """
from experiments.configs import office

def get_config():
    config = office.get_config("smoke")
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


def test_a_policy_with_more_rows_than_ids_loads_and_gets_the_chat_style(tmp_path):
    policy = policies.load(str(write_policy(tmp_path / "policy")))
    world = tiny_world()
    config = office.get_config("smoke")
    config.policy.update({"title_tokens": 9, "observation_style": "observation"})
    made = pipeline.World(config, tmp_path, world.log, None, {}, "")
    prompts = pipeline.agent(made, world.artifacts, policy.tokenizer).prompts
    assert type(prompts) is ChatPrompts
    assert (prompts.title_tokens, prompts.observation_style) == (9, "observation")
    engine = pipeline.engine(config, policy)
    marker = policy.tokenizer.marker
    assert engine.programs._pause == marker("</tool_call>")
    assert engine.programs._stops.tolist() == [marker("<|im_end|>"), marker("<|endoftext|>")]


def test_a_tokenizer_json_larger_than_the_embedding_is_refused(tmp_path):
    directory = write_policy(tmp_path / "policy", rows=-3)
    size = chat_tokenizer().vocab_size
    with pytest.raises(InputError) as error:
        policies.load(str(directory))
    for word in (f"{directory}/tokenizer.json: found {size} ", f"the {size - 3} rows of tensor"):
        assert word in str(error.value)


@pytest.mark.parametrize("content", ["", '{"model": {"type": "Unigram"}}'])
def test_a_tokenizer_json_that_is_none_is_named(tmp_path, content):
    directory = write_policy(tmp_path / "policy")
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="policy/tokenizer.json"):
        policies.load(str(directory))


@pytest.mark.peer
def test_qwen3s_vocabulary_with_its_padded_rows(tmp_path):
    """The published tokenizer, in the directory that AGENTICREC_QWEN3_TOKENIZER names."""
    save_policy(tiny_qwen3(1, num_layers=1, vocab_size=151936), tmp_path)
    read_hf_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"]).save(tmp_path)
    policy = policies.load(str(tmp_path))
    assert policy.tokenizer.vocab_size == 151669
    world, config = tiny_world(), office.get_config("smoke")
    config.engine.update({"prompt_buckets": (1536,), "splice_buckets": (96,), "slots": 4})
    config.engine.update({"max_tokens": 24, "row_buckets": (4,), "window_buckets": (1600,)})
    made = pipeline.World(config, tmp_path, world.log, None, {}, "")
    agent = pipeline.agent(made, world.artifacts, policy.tokenizer)
    engine = pipeline.engine(config, policy)
    (group,) = run_episodes(
        agent, engine, policy.params, [Task(world.examples[0])], members=4, temperature=1.0, seed=0
    )
    for played in group:
        assert (played.prompt[0], played.prompt[-3]) == (151644, 151644)
        assert played.ids.max() < 151936 and len(played.ids) == 24
        assert policy.tokenizer.decode(played.ids)


@pytest.mark.slow
def test_stages_train_such_a_policy_and_write_one(tmp_path):
    start = write_policy(tmp_path / "policy")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(directory=str(start)))
    for stage in ("sft", "rta"):
        command = [sys.executable, "-m", "experiments.train_policy", f"--stage={stage}"]
        command += [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
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
