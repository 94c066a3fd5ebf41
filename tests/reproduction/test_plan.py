"""The steps of the papers' tables: what they depend on, and what a further method or seed adds."""

import dataclasses

import pytest

from agenticrec_jax.evaluation.paper_cells import AGENTICREC, PAPERS, RECTHINKER
from agenticrec_jax.evaluation.rankings import CHANCE
from agenticrec_jax.reproduction.logs import find_log, find_logs
from agenticrec_jax.reproduction.methods import METHODS, TABLE, TINY_SECONDS, methods_of
from agenticrec_jax.reproduction.plan import Plan
from agenticrec_jax.reproduction.presets import CONFIGS, PAPER, TINY, find_preset
from agenticrec_jax.reproduction.rows import Server
from agenticrec_jax.reproduction.steps import in_order
from agenticrec_jax.runs import STAGES, RunConfig
from agenticrec_jax.testing.errors import assert_names, refused

LOG = find_log("synthetic", "downloads")
OFFICE = find_log("office", "downloads")
FIELDS = {field.name for field in dataclasses.fields(RunConfig)}


def keys(config=None, methods=None, seeds=(0,), log=LOG, paper=AGENTICREC, **options):
    """Names of all steps of a table by their keys."""
    plan = Plan(paper, config or RunConfig(), methods or methods_of(paper), seeds, **options)
    return {step.key: step.name for step in in_order([plan.table(log)])}


def new(before, after):
    """The names of the steps that are not in a graph, but for the table."""
    return {name for key, name in after.items() if key not in before and "table" not in name}


def changed(config, **sections):
    for name, values in sections.items():
        section = dataclasses.replace(getattr(config, name), **values)
        config = dataclasses.replace(config, **{name: section})
    return config


def test_every_row_of_the_issue_that_exists_is_a_method_once():
    assert len(METHODS) == len(TABLE) and TABLE[0].row == CHANCE
    rows = methods_of(AGENTICREC)
    assert rows[0] == CHANCE and set(rows) >= {
        *("popularity", "cooccurrence", "bpr", "gru4rec", "caser", "sasrec", "sasrec_bce"),
        *("rearec_erl", "rearec_prl", "llmrank", "interecagent", "tallrec"),
        *("frozen_no_tools", "frozen", "trained_no_tools", "rta", "rta_ppr"),
    }
    recthinker = methods_of("recthinker")
    assert set(recthinker) >= {"bpr", "sasrec", "llmrank", "recthinker_frozen", "recthinker"}
    assert "rta" not in recthinker and "recthinker" not in rows


@pytest.mark.parametrize("row", METHODS)
def test_a_method_names_sections_and_stages_that_exist(row):
    method = METHODS[row]
    assert method.note and set(method.reads) <= FIELDS and set(method.artifacts) <= {"a", "b"}
    assert not method.stages or method.seeded
    for stage in method.stages:
        assert stage.name in STAGES and {*stage.reads, stage.name} <= FIELDS
        assert TINY_SECONDS[stage.kind] > 0
    assert TINY_SECONDS[method.together or row] > 0
    assert not method.fits or TINY_SECONDS[f"fit_{row}"] > 0


def test_a_further_method_or_seed_adds_its_own_steps_alone():
    before = keys(methods=["popularity", "sasrec", "rta"])
    more = keys(methods=["popularity", "sasrec", "rta", "gru4rec", "rta_ppr"])
    assert new(before, more) == {
        *("fit of gru4rec, seed 0, synthetic", "gru4rec, seed 0, synthetic"),
        *("stage ppr after rta, seed 0, synthetic", "rta_ppr, seed 0, synthetic"),
    }
    seeds = keys(methods=["popularity", "sasrec", "rta"], seeds=(0, 1))
    assert new(before, seeds) == {
        *("artifacts b, seed 1, synthetic", "sasrec, seed 1, synthetic"),
        *("stage rta, seed 1, synthetic", "rta, seed 1, synthetic"),
    }
    assert before.keys() <= seeds.keys() | {key for key, name in before.items() if "table" in name}


def test_a_setting_renews_what_depends_on_it_and_nothing_else():
    config = RunConfig()
    before = keys(config)
    stage = new(before, keys(changed(config, ppr={"steps": 3})))
    assert stage == {"stage ppr after rta, seed 0, synthetic", "rta_ppr, seed 0, synthetic"}
    agent = new(before, keys(changed(config, tools={"neighbors": 9})))
    assert {name.split(",")[0] for name in agent} == {
        *("evidence", "frozen", "frozen_no_tools", "rta", "rta_ppr", "trained_no_tools"),
        *("stage rta", "stage ppr after rta", "stage rta without tools"),
    }
    lists = new(before, keys(changed(config, dataset={"candidate_seed": 1})))
    fitted = {name for name in before.values() if name.startswith(("fit of", "artifacts"))}
    assert len(fitted) == 8 and lists == {
        name for name in before.values() if "table" not in name and name not in fitted
    }
    assert new(before, keys(changed(config, pairs={"beta": 0.5, "objective": "dpo"}))) == set()
    one_more = new(before, keys(changed(config, evaluation={"examples": 10})))
    assert {name.split(",")[0] for name in one_more} == {
        METHODS[row].together or row for row in methods_of(AGENTICREC) if row != CHANCE
    }


def test_two_tables_share_what_they_have_in_common():
    first = keys(methods=["popularity", "frozen"])
    second = keys(methods=["frozen_no_tools", "frozen"])
    shared = {first[key] for key in first.keys() & second.keys()}
    assert shared == {
        "candidates, synthetic",
        "artifacts b, seed 0, synthetic",
        "frozen, synthetic",
    }
    assert not keys(log=OFFICE).keys() & keys().keys()
    # RecThinker's lists are shorter, on the same log.
    config = dataclasses.replace(RunConfig(), agent="recthinker")
    config = changed(config, dataset={"negatives": 9})
    rows = ["popularity", "sasrec", "gru4rec"]
    first = keys(methods=rows)
    second = keys(config, methods=rows, paper="recthinker")
    shared = {first[key] for key in first.keys() & second.keys()}
    assert shared == {"artifacts b, seed 0, synthetic", "fit of gru4rec, seed 0, synthetic"}


def test_the_policy_counts_by_its_weights_not_by_its_place(tmp_path):
    config = RunConfig()
    (tmp_path / "copy").symlink_to(find_weights().resolve())
    moved = changed(config, policy={"directory": str(tmp_path / "copy")})
    assert keys(config) == keys(moved)
    (tmp_path / "empty").mkdir()
    other = changed(config, policy={"directory": str(tmp_path / "empty")})
    assert_names(refused(keys, other), tmp_path / "empty", "safetensors")
    assert keys(other, methods=["popularity", "sasrec"])  # they need no policy


def find_weights():
    from agenticrec_jax.bundled import resolve

    return resolve(RunConfig().policy.directory)


def test_a_server_takes_the_place_of_the_policy_where_nothing_is_trained():
    before = keys()
    served = new(before, keys(server=Server("http://localhost:1/v1", "large")))
    assert {name.split(",")[0] for name in served} == {"llmrank", "interecagent"}


def test_a_configuration_of_the_other_agent_is_refused():
    assert_names(refused(keys, paper="recthinker"), "config.agent", "agenticrec", "recthinker")


def test_the_embedded_policy_gets_one_warm_start_for_recthinkers_rows():
    config = find_preset(RECTHINKER, TINY).config
    rows = ["recthinker_frozen", "recthinker_sft", "tallrec"]
    tiny = Plan(RECTHINKER, config, rows, (0, 1), tiny=True)
    steps = {step.name: step for step in in_order([tiny.table(LOG)])}
    (warm,) = (step for name, step in steps.items() if name.startswith("stage sft"))
    assert warm.settings["warm_start"]["lessons"] == config.warm_start.lessons
    assert steps["recthinker_frozen, synthetic"].inputs["stage"] is not None
    for seed in (0, 1):
        imitation = steps[f"stage self_sft after sft, seed {seed}, synthetic"]
        assert imitation.inputs["stage"].key == warm.key
        assert "stage" not in steps[f"stage tallrec, seed {seed}, synthetic"].inputs
    before = {step.key: step.name for step in in_order([tiny.table(LOG)])}
    longer = changed(config, warm_start={"lessons": (((8,), 7),)})
    renewed = new(before, keys(longer, rows, (0, 1), paper=RECTHINKER, tiny=True))
    assert {name.split(",")[0] for name in renewed} == {
        *("stage sft", "stage self_sft after sft", "recthinker_frozen", "recthinker_sft")
    }
    for other in (keys(config, rows, paper=RECTHINKER), keys(tiny=True)):
        assert not any(name.startswith("stage sft") for name in other.values())


def test_passes_renew_their_stage():
    assert {name.split(",")[0] for name in new(keys(), keys(epochs={"ppr": 1.0}))} == {
        *("stage ppr after rta", "rta_ppr")
    }


def test_a_validated_stage_reads_the_artifacts_of_evaluation():
    config = changed(RunConfig(), rta={"validate_every": 2})
    plan = Plan(AGENTICREC, config, ["rta"], (0,))
    step = plan.stage(LOG, METHODS["rta"].stages, 0)
    assert {"artifacts_a", "artifacts_b"} <= set(step.inputs)
    assert set(step.outputs) == {"artifacts_a", "artifacts_b"}


@pytest.mark.parametrize("paper", PAPERS)
def test_presets_are_configurations_of_their_paper(paper):
    for preset in (TINY, PAPER):
        config, logs, epochs = find_preset(paper, preset)
        assert config.agent == paper and logs and (paper, preset) in CONFIGS
        assert config.dataset.negatives == (19 if paper == AGENTICREC else 9)
        assert bool(epochs) == ((paper, preset) == (AGENTICREC, PAPER))
    assert config.evaluation.examples == 0


def test_logs_are_known_by_name_or_directory(tmp_path):
    assert_names(refused(find_log, "nowhere", "downloads"), "--logs", "nowhere", "office")
    assert_names(refused(find_log, "CDs_and_Vinyl", str(tmp_path)), tmp_path, "CDs_and_Vinyl")
    assert_names(refused(find_log, "movielens_dense", str(tmp_path)), "ml-1m.zip")
    assert_names(refused(find_log, str(tmp_path), "downloads"), tmp_path, "prepare_data")
    assert_names(refused(find_logs, ["office", "office"], "downloads"), "--logs")
    assert_names(refused(find_logs, [], "downloads"), "--logs")
    assert find_log("office", "downloads").identity != LOG.identity
