"""Every test runs on 8 simulated CPU devices, set before JAX starts; hypothesis has no deadline.

Most of the default tests' time is compilation, so XLA is told to spend little on it. Where slow
proofs or those against peers are chosen, programs are compiled as users have them; so they are by
``JAX_DISABLE_MOST_OPTIMIZATIONS=0`` in the environment.
"""

import os
from importlib import metadata

import pytest
from hypothesis import settings

from tests.emulator import BUCKET, emulator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

# The first call of a jitted function compiles it, which says nothing about its speed.
settings.register_profile("compiling", deadline=None)
settings.load_profile("compiling")


def _version(package: str) -> tuple[int, ...]:
    return tuple(map(int, metadata.version(package).split(".")[:2]))


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow and not peer":  # before anything imports JAX
        os.environ.setdefault(_QUICK, "1")
        # Of the options tried, the one that compiled the learner's tests faster (18 s, not 23).
        # jaxlib 0.12 ends the process over it, as over any option that it does not know.
        if _version("jaxlib") < (0, 11):
            os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="session")
def emulated():
    """Environment in which a bucket on loopback is used in place of Google's."""
    with emulator() as environment:
        yield environment


@pytest.fixture
def bucket(emulated, monkeypatch):
    """Address of a bucket on loopback."""
    for name, value in emulated.items():
        monkeypatch.setenv(name, value)
    return BUCKET


@pytest.fixture
def optimized():
    """Programs are compiled as users have them."""
    import jax

    jax.config.update(_QUICK.lower(), False)
    yield
    jax.config.update(_QUICK.lower(), os.environ.get(_QUICK) == "1")
