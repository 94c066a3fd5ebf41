"""Runs: the configuration as frozen dataclasses, and everything that is built from it.

from agenticrec_jax.runs import Run, RunConfig, train
"""

from agenticrec_jax.runs.config import RunConfig, config_dict, default_config, run_config
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stages import STAGES, train

__all__ = [
    "STAGES",
    "Run",
    "RunConfig",
    "config_dict",
    "default_config",
    "run_config",
    "train",
]
