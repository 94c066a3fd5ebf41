"""A server on the loopback, with a policy that reads the candidates' popularity and ranks."""

import contextlib
import dataclasses
import logging
import threading
import time

import httpx2
import pytest

from agenticrec_jax import Recommender
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.serving.http.app import Limits, make_app
from agenticrec_jax.serving.http.server import bound_socket, make_server
from agenticrec_jax.tools.base import Toolbox, object_schema
from tests.serving.writers import save_writer
from tests.small_log import small_config

NUMBERS = (7, 3, 12, 1, 20, 5, 9, 11, 2, 14)
ANSWER = "<answer>\\boxed{[" + ",".join(map(str, NUMBERS)) + "]}</answer>"
TOOL = "candidates_analyze"
TOOL_TIMEOUT = 1.0


@pytest.fixture(scope="session")
def recommender(tmp_path_factory):
    directory = tmp_path_factory.mktemp("http")
    config = small_config(directory)
    config.engine.update({"slots": 4, "row_buckets": (4,), "window_buckets": (), "max_tokens": 96})
    policy = save_writer(directory / "ranks", ANSWER, TOOL)
    run = Run(run_config(config), directory / "run", policy_directory=policy)
    loaded = Recommender(run, tool_timeout=TOOL_TIMEOUT)
    loaded.warm_up()
    return loaded


@pytest.fixture
def log(recommender):
    return recommender.run.data.log


@contextlib.contextmanager
def serving(recommender, **options):
    """Serves on a free port of the loopback; yields the server and a client of its address."""
    limits = options.pop("limits", Limits())
    server = make_server(make_app(recommender, limits, **options))
    bound = bound_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    while not server.started:
        time.sleep(0.01)
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield server, client
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def shared(recommender):
    """A server that all tests share that need no other limits."""
    with serving(recommender) as (_, client):
        yield client


class PlantedTool:
    """The policy's tool with another body."""

    name = TOOL
    description = "Planted."
    parameters = object_schema()

    def __init__(self, body):
        self.body = body

    def __call__(self, view):
        return self.body(view)


@pytest.fixture
def plant(recommender, monkeypatch):
    """Returns a function that puts a function of the view in the place of the policy's tool."""

    def planted(body):
        toolbox = Toolbox([PlantedTool(body)])
        # The prompt lists the tools that the engine has room for.
        changed = dataclasses.replace(recommender._agent, toolbox=toolbox)
        monkeypatch.setattr(recommender, "_agent", changed)

    return planted


@pytest.fixture
def lines(caplog):
    """Returns a function that gives the log lines of requests."""
    caplog.set_level(logging.INFO, "agenticrec_jax.serving.http")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("agenticrec_jax.serving.http")
    ]
