"""Makes a paper's results tables: every method and seed on the same frozen candidates.

    python -m experiments.reproduce --paper=agenticrec|recthinker --workdir=DIR
        [--logs=LOG,...] [--methods=ROW,...] [--seeds=0,1,2] [--preset=tiny|paper] [--figures]
        [--dry_run]

A log is ``office`` or ``synthetic`` (embedded), a directory that ``prepare_data`` wrote, or one of
the papers', whose download lies in ``--downloads``: CDs_and_Vinyl, Musical_Instruments,
Office_Products, Video_Games; cds_sparse, cds_dense, movielens_sparse, movielens_dense. ``tiny``
takes minutes on a laptop with the embedded policy; ``paper`` needs ``--policy``. ``--config`` is a
configuration in place of the preset's.

The work is a graph of steps: prepared log, candidates, fits, stages of training, a ranking for
each method and seed, table. A step's folder in ``DIR/steps`` is named by a hash of its settings and
inputs, so the same command resumes, and another method or seed computes only that. A step that
fails stops those that need it and no others; the table says what is missing and why, and the exit
status is 2. ``--dry_run`` lists the steps and estimates the time left.

``DIR/PAPER_LOG`` leads to the folder of each table: ``table.md``, ``table.tex``, ``table.html``,
``results.json`` and the rankings of all rows, which ``verify DIR/PAPER_LOG`` checks. ``--figures``
also makes ``DIR/PAPER_LOG_figures``: the papers' figures as PNG and SVG, with their numbers as JSON
and CSV. They train further policies, with other group sizes, histories and ``--policies``.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.evaluation.paper_cells import PAPERS
from agenticrec_jax.language.endpoint import Endpoint
from agenticrec_jax.paths import is_bucket
from agenticrec_jax.reproduction.figures import figures_step
from agenticrec_jax.reproduction.logs import find_logs
from agenticrec_jax.reproduction.methods import TINY_SECONDS, methods_of
from agenticrec_jax.reproduction.plan import Plan
from agenticrec_jax.reproduction.presets import PRESETS, TINY, Preset, find_preset
from agenticrec_jax.reproduction.rows import Server
from agenticrec_jax.reproduction.steps import describe, in_order
from agenticrec_jax.reproduction.tables import make_tables
from agenticrec_jax.runs import RunConfig, run_config
from agenticrec_jax.runs.data import workdir_path

_PAPER = flags.DEFINE_enum("paper", "agenticrec", list(PAPERS), "Whose tables.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of all steps.", required=True)
_PRESET = flags.DEFINE_enum("preset", TINY, PRESETS, "Configuration and logs.")
_CONFIG = define_config(None)  # in place of the preset's configuration
_LOGS = flags.DEFINE_list("logs", None, "Logs, a table each; the preset's if not given.")
_METHODS = flags.DEFINE_list("methods", None, "Rows; all of the paper's if not given.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, separated by commas.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List the steps and the time left, and end.")
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the configuration's if not given.")
_DOWNLOADS = flags.DEFINE_string("downloads", "downloads", "Directory of the downloaded logs.")
_FIGURES = flags.DEFINE_bool("figures", False, "Also make the paper's figures.")
_POLICIES = flags.DEFINE_list(
    "policies", [], "Policy directories of other sizes, for the figure of policy sizes."
)
_ENDPOINT = flags.DEFINE_string(
    "endpoint", None, "Address of a server in place of the policy, for rows without training."
)
_MODEL = flags.DEFINE_string("model", None, "Name of the endpoint's model.")


def main(argv: Sequence[str]) -> None:
    del argv
    workdir = workdir_path(_WORKDIR.value)
    linked = "a directory on this machine, since the steps link each other's files"
    expect(not is_bucket(workdir), "flag --workdir", str(workdir), linked)
    preset = find_preset(_PAPER.value, _PRESET.value)
    logs = find_logs(preset.logs if _LOGS.value is None else _LOGS.value, _DOWNLOADS.value)
    plan = make_plan(preset)
    tables = [plan.table(log) for log in logs]
    expect(_FIGURES.value or not _POLICIES.value, "flag --policies", _POLICIES.value, "--figures")
    figures = [figures_step(plan, log, _POLICIES.value) for log in logs if _FIGURES.value]
    expected = TINY_SECONDS if _CONFIG.value is None and plan.tiny else {}
    if _DRY_RUN.value:
        print("\n".join(describe(in_order([*tables, *figures]), workdir, expected)))
        return
    app.print_devices()
    make_tables(tables, workdir, expected, figures)


def make_plan(preset: Preset) -> Plan:
    """Returns the plan of the flags; InputError for one that would be ignored."""
    config, epochs = preset.config, preset.epochs
    if _CONFIG.value is not None:
        if _PRESET.present:
            raise InputError("flag --preset: found it beside --config, expected one of both")
        config, epochs = run_config(_CONFIG.value), {}
    if _POLICY.value:
        policy = dataclasses.replace(config.policy, directory=_POLICY.value)
        config = dataclasses.replace(config, policy=policy)
    known = methods_of(_PAPER.value)
    methods = app.some_of("methods", known if _METHODS.value is None else _METHODS.value, known)
    return Plan(
        _PAPER.value,
        config,
        [row for row in known if row in methods],
        app.whole_numbers("seeds", _SEEDS.value),
        server=make_server(),
        epochs=epochs,
        tiny=config.policy.directory == RunConfig().policy.directory,
    )


def make_server() -> Server | None:
    """Returns the endpoint of the flags, whose address and model are checked; None for none."""
    if _ENDPOINT.value is None:
        if _MODEL.value is not None:
            raise InputError(f"flag --model: found {_MODEL.value!r}, expected --endpoint beside it")
        return None
    server = Server(_ENDPOINT.value, _MODEL.value or "")
    Endpoint(server.address, server.model)
    return server


if __name__ == "__main__":
    app.run(main)
