"""A peer's process: it answers requests in turn, and the flag of one that cannot run is named."""

import sys

import pytest

from agenticrec_jax.errors import InputError
from experiments.benchmarks import peers

SCRIPT = """
import sys
from peer_loop import Stopwatch, serve

class Adder:
    def add(self, a, b):
        print("said aside")
        with Stopwatch() as watch:
            total = sum([a, b] * 100_000) // 100_000
        return watch.took | {"total": total, "argument": sys.argv[1]}

serve(Adder)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A peer's script beside ``peer_loop``."""
    loop = (peers.DIRECTORY / "peer_loop.py").read_text()
    (tmp_path / "peer_loop.py").write_text(loop)
    monkeypatch.setattr(peers, "DIRECTORY", tmp_path)
    return tmp_path / "adder.py"


def test_works_are_answered_in_turn_with_their_seconds(script):
    script.write_text(SCRIPT)
    with peers.Peer("peer_python", sys.executable, "adder.py", "x") as peer:
        for b in (2, 40):
            answer = peer.ask(work="add", a=1, b=b)
            assert (answer["total"], answer["argument"]) == (1 + b, "x")
            assert 0 < answer["cpu"] and 0 < answer["seconds"] < 10


def test_an_interpreter_that_cannot_run_the_peer_is_named(script):
    with pytest.raises(InputError, match="--peer_python.*/no/python"):
        peers.Peer("peer_python", "/no/python", "adder.py")
    script.write_text("import a_module_that_is_not_there")
    with (
        peers.Peer("peer_python", sys.executable, "adder.py") as peer,
        pytest.raises(InputError, match="--peer_python.*adder.py"),
    ):
        peer.ask(work="add", a=1, b=2)
