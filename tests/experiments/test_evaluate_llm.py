"""A language model behind an endpoint in the results table, by the command of the guide."""

import json
import os
import signal
import subprocess
import sys

import pytest

from agenticrec_jax.data.candidates import candidate_hash
from agenticrec_jax.data.export import write_log
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from tests.experiments.conftest import ROOT
from tests.language.servers import completion, serving

COUNT = 4
CONFIG = """
from agenticrec_jax.cli.configs import load_config

def get_config():
    config = load_config("office:smoke")
    config.dataset.update({{"interactions": {interactions!r}, "items": {items!r}}})
    return config
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of every command: a small log, a workdir, and a few valid examples."""
    directory = tmp_path_factory.mktemp("endpoint")
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = map(str, write_log(log, directory / "log"))
    config = directory / "config.py"
    config.write_text(CONFIG.format(interactions=interactions, items=items))
    return [
        *(f"--config={config}", f"--workdir={directory / 'run'}", "--split=valid"),
        *("--method=llmrank", "--model=m", f"--examples={COUNT}", "--parallel=1"),
        f"--compilation_cache={directory / 'xla'}",
    ]


def test_a_killed_run_continues_and_a_dead_endpoint_is_one_sentence(flags, program, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    workdir = next(flag for flag in flags if flag.startswith("--workdir=")).partition("=")[2]
    started = []

    def answer(body):
        if len(server.requests) == 6:
            os.kill(started[0].pid, signal.SIGKILL)
        return completion("Ranking:\n" + "\n".join(map(str, range(1, 21))))

    with serving(answer) as server:
        flags = [*flags, f"--endpoint={server.url}"]
        command = [sys.executable, "-m", "experiments.evaluate_llm", *flags]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        assert started[0].wait() == -signal.SIGKILL
        # The sixth request ends the process, perhaps before the fifth is in the file.
        kept = len(lines(f"{workdir}/completions.jsonl"))
        assert 4 <= kept <= 5
        ended = program("evaluate_llm", *flags)
        assert ended.returncode == 0, ended.stderr
        assert len(server.requests) == 6 + 3 * COUNT - kept
        assert server.requests[0][1]["Authorization"] == "Bearer sk-secret"
    results = json.loads("".join(lines(f"{workdir}/evaluation_llmrank_valid.json")))
    (row,) = results["rows"]
    assert row["n"] == COUNT and row["invalid_rate"] == 0 and "llmrank" in ended.stdout
    assert results["protocol"]["candidate_hash"] == candidate_hash(f"{workdir}/candidates.jsonl.gz")
    provenance = lines(f"{workdir}/provenance.jsonl")
    assert "evaluate_llm" in json.loads(provenance[-1])["command"]
    assert "sk-secret" not in json.dumps(results) + "".join(provenance)
    assert "sk-secret" not in ended.stdout + ended.stderr
    verified = program("verify", workdir)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "evaluation_llmrank_valid.jsonl: ranks and rankings of llmrank" in verified.stdout
    # The server is gone: what it has not answered yet is one sentence.
    down = program("evaluate_llm", *flags, "--rounds=4", "--name=more")
    assert down.returncode == 2
    assert len(down.stderr.strip().splitlines()) == 1
    assert_names(down.stderr, server.url)
    assert not os.path.exists(f"{workdir}/evaluation_more_valid.json")


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


CALLS = """
from absl import flags
from agenticrec_jax.errors import InputError
from experiments import evaluate_llm

COMMON = ["--config=experiments/configs/office.py", "--workdir=none", "--method=interecagent"]
for given in {flags!r}:
    flags.FLAGS.unparse_flags()
    for name in ("endpoint", "model", "policy", "name", "rounds", "title_words"):
        flags.FLAGS[name].value = None
    flags.FLAGS(["evaluate_llm", *COMMON, *given])
    try:
        evaluate_llm.main([])
    except InputError as error:
        print(error)
"""
BAD = [
    (["--name=a/b"], ["--name", "'a/b'"]),
    (["--endpoint=localhost:80"], ["--endpoint", "localhost:80"]),
    (["--endpoint=http://localhost/v1"], ["--model"]),
    (["--model=m"], ["--model", "--endpoint"]),
    (["--endpoint=http://localhost/v1", "--model=m", "--policy=here"], ["--policy", "--endpoint"]),
    (["--policy=nowhere"], ["nowhere"]),
    (["--method=tallrec", "--policy=nowhere", "--rounds=2"], ["--rounds", "tallrec"]),
    (["--method=llara", "--title_words=9"], ["--title_words", "llara"]),
    (["--method=rere", "--model=m"], ["--model", "rere"]),
    (["--method=tallrec", "--endpoint=http://localhost/v1"], ["--endpoint", "tallrec"]),
]


def test_bad_flags_are_named_before_anything_is_loaded(python):
    ended = python("-c", CALLS.format(flags=[given for given, _ in BAD]))
    assert ended.returncode == 0, ended.stderr
    sentences = ended.stdout.splitlines()
    assert len(sentences) == len(BAD), ended.stdout
    for sentence, (_, named) in zip(sentences, BAD, strict=True):
        assert_names(sentence, *named)
