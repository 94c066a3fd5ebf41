"""The program that serves: from its flags to SIGTERM, in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.testing.errors import assert_names
from tests.small_log import small_config

ROOT = Path(__file__).parents[2]
CHECK = """
import sys
from agenticrec_jax.errors import InputError
from experiments.serve import read_key

for file in sys.argv[1:]:
    try:
        print(read_key(file))
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_server_answers_until_sigterm_and_exits_in_order(tmp_path):
    config = small_config(tmp_path)
    log = read_log(config.dataset["interactions"], config.dataset["items"])
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    files = [f"--config.dataset.{n}={config.dataset[n]}" for n in ("interactions", "items")]
    command = [sys.executable, "-m", "experiments.serve", "--config=office:smoke", *files]
    command += [f"--workdir={tmp_path / 'run'}", "--port=0", f"--api_key_file={key}"]
    process = subprocess.Popen(
        [*command, f"--trajectories={tmp_path / 'trajectories.jsonl'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", "".join(lines[-1:]))):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        ask = {"json": {"user": log.user_ids[0], "timeout_ms": 600_000}, "timeout": 600}
        url = f"{address[0]}/v1/recommend"
        assert httpx2.post(url, **ask).status_code == 401
        answer = httpx2.post(url, **ask, headers={"Authorization": "Bearer s3cret"})
        assert answer.status_code == 200 and len(answer.json()["items"]) == 10
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "ended" in out
    logged = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in logged] == [401, 200]
    written = json.loads((tmp_path / "trajectories.jsonl").read_text())
    assert written["trace_id"] == answer.json()["trace_id"] == logged[1]["trace_id"]


def test_a_key_is_one_word_of_a_file(python, tmp_path):
    good, empty, two = (tmp_path / name for name in ("good", "empty", "two"))
    good.write_text("s3cret\n")
    empty.write_text("\n")
    two.write_text("s3cret other\n")
    ended = python("-c", CHECK, str(good), str(empty), str(two))
    first, second, third = ended.stdout.splitlines()
    assert first == "s3cret" and "other" not in third
    assert_names(second, f"{empty}, line 1", "0 characters")
    assert_names(third, f"{two}, line 1", "a key")
