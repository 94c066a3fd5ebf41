"""Trains a policy, stage by stage.

    python -m experiments.train_policy --config=NAME|FILE --workdir=DIR
        --stage=sft|self_sft|rta|ppr|pairs|tallrec|llara|title_sft|s_dpo|rere
        [--config.mesh.data=N --config.mesh.fsdp=N --config.mesh.tensor=N]
        [--distributed]

``sft`` continues the warm start of the config's policy directory, ``self_sft`` imitates the best of
the policy's own trajectories, ``rta`` is list-wise GRPO on NDCG, ``ppr`` mines hard pairs with the
``rta`` policy and refines it on them. ``pairs`` trains on pairs without rollouts, mined ones or
those of ``--config.pairs.file``, by PPR's bidirectional logistic loss, DPO or S-DPO
(``--config.pairs.objective=logistic|dpo|sdpo``).

The others train rows of their own, without the agent. ``tallrec`` answers yes or no to single
candidates, ``llara`` by the target's title, from titles and SASRec embeddings, ``title_sft`` from
titles alone. From there ``s_dpo`` learns to prefer that title to others, and ``rere`` is GRPO on
the beams of a search over titles.

Each stage resumes from its newest checkpoint in the workdir and writes a policy directory,
``<workdir>/<stage>/policy``, from which the next one starts. With ``--config.rta.validate_every=N``
the policy with the highest NDCG@10 on valid examples is stored too, in ``<workdir>/<stage>/best``.
SIGTERM saves the state and ends the run; the same command resumes it.

The learner lies on the config's mesh over all devices. With ``--distributed`` the program is one of
several processes with the same flags, and a workdir that all of them see; each samples its own
share of every step. TPU pods and Slurm are recognized; elsewhere ``AGENTICREC_COORDINATOR``
(host:port of process 0), ``AGENTICREC_PROCESSES`` and ``AGENTICREC_PROCESS`` name the processes.

``--profile_steps=3-5`` writes a profiler trace of these steps for TensorBoard.

With ``--dry_run`` the programs of ``rta`` or ``ppr`` are only compiled, for this machine's devices
or for a TPU slice or GPUs that need not be there (``--dry_run_topology=v5e:4x4``, ``h100:8``), and
a table of their memory is printed. Only the policy's ``config.json`` is read, and nothing is
written. If a program does not fit, settings with which all do are searched and printed, and the
status is 3.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.dryrun.topology import slice_devices
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runs import STAGES, Run, run_config, train
from agenticrec_jax.runs.data import workdir_path
from agenticrec_jax.runs.dry_run import compile_stage
from agenticrec_jax.runs.plugins import load_plugins
from agenticrec_jax.runs.stages import starting_directory
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.runtime.profiling import request_trace

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_STAGE = flags.DEFINE_enum("stage", "rta", STAGES, "Which stage to run.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Compile the stage's programs, print their memory on a chip, and end."
)
_DRY_RUN_TOPOLOGY = flags.DEFINE_string(
    "dry_run_topology",
    "",
    "TPU slice or GPUs to compile for, as v5e:4x4 or h100:8; empty for this machine's devices.",
)
_ROLLOUT_TOKENS = flags.DEFINE_integer(
    "rollout_tokens",
    0,
    "Mean tokens of a rollout behind its prompt, for the time of --dry_run; 0: the most.",
    lower_bound=0,
)
_PRICE = flags.DEFINE_float(
    "price_per_chip_hour", 0.0, "Dollars, for the price in --dry_run.", lower_bound=0.0
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "Steps of the stage to trace, such as 3-5; empty for none."
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one of several processes.")


def main(argv: Sequence[str]) -> None:
    del argv
    stage = _STAGE.value
    request_trace(_PROFILE_STEPS.value)
    workdir = workdir_path(_WORKDIR.value)
    # JAX has to know of the other processes, or of the slice, before it is asked for devices.
    if _DRY_RUN.value and _DRY_RUN_TOPOLOGY.value:
        slice_devices(_DRY_RUN_TOPOLOGY.value)
    elif _DISTRIBUTED.value and not _DRY_RUN.value:
        multihost.initialize(os.environ.get(multihost.COORDINATOR, "auto"))
    config = run_config(_CONFIG.value)
    start = starting_directory(workdir, stage, config.policy.directory)
    if _DRY_RUN.value:
        load_plugins(config)
        with phase("compiling"):
            rows = compile_stage(
                config,
                stage,
                start,
                _DRY_RUN_TOPOLOGY.value,
                tokens=_ROLLOUT_TOKENS.value,
                price=_PRICE.value,
            )
        if not all(row["fits"] for row in rows):
            sys.exit(app.TOO_LARGE)
        return
    run = Run(config, workdir, policy_directory=start)
    settings = {"config": dataclasses.asdict(config), "stage": stage}
    multihost.check_same(settings, "the configuration")
    app.print_devices(dataclasses.asdict(config.mesh))
    with phase("policy, data and tools"):
        _ = run.policy, run.data, run.artifacts_a
    with phase(stage):
        train(run, stage)
    print(f"policy written to {workdir / stage / 'policy'}")


if __name__ == "__main__":
    app.run(main)
