"""Every test runs on 8 simulated CPU devices, set before JAX starts; hypothesis has no deadline."""

import os

from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

# The first call of a jitted function compiles it, which says nothing about its speed.
settings.register_profile("compiling", deadline=None)
settings.load_profile("compiling")
