"""RTA without tools: who offers tools in a stage, and what its checkpoints record."""

from dataclasses import dataclass

import pytest
from flax import nnx

from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import Run, outputs, reinforcement, run_config, stages
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world


@dataclass
class Reinforced:
    """Arguments of the loop of a stage, and the agent of its validation."""

    stage: object
    agent: object
    tasks: list
    record: dict
    validating: object = None


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Returns a function that trains ``rta`` up to its loop."""
    world = tiny_world()
    config = load_config("office:smoke")
    config.rta.validate_every = 1
    examples = {"policy": world.examples, "valid": world.examples[:2]}
    policy = Policy(*nnx.split(tiny_qwen3(vocab_size=420)), world.tokenizer, "")
    run = Run(
        run_config(config), tmp_path, data=RunData(world.log, None, examples, ""), policy=policy
    )
    run.artifacts_a = run.artifacts_b = world.artifacts
    validating = []

    def scorer(agent, engine, examples):
        validating.append(agent)
        return lambda params: 0.5

    def train(directory, **options):
        reached = []

        def reinforce(stage, state, *, agent, tasks_at, checkpoints, validation, **_):
            reached.append(Reinforced(stage, agent, tasks_at(0), checkpoints._config))
            validation(1, state)
            return state

        monkeypatch.setattr(outputs, "ndcg_scorer", scorer)
        monkeypatch.setattr(reinforcement.loop, "reinforce", reinforce)
        stages.train(run, "rta", policy.copy(), directory=directory, seed=4, **options)
        (only,) = reached
        only.validating = validating.pop()
        return only

    return train


def test_a_stage_without_tools_offers_none_and_is_else_the_same(tmp_path, trained):
    """Prompts lack the tools' names in training and validation; tasks and settings are equal."""
    plain = trained(tmp_path / "plain")
    without = trained(tmp_path / "without", use_tools=False)
    tokenizer = plain.agent.prompts.tokenizer
    for agents, offered in (((plain, True)), ((without, False))):
        for agent in (agents.agent, agents.validating):
            prompt = tokenizer.decode(agent.prompt(Task(tiny_world().examples[0])))
            assert ("get_similar_users" in prompt) is agent.use_tools is offered
    assert plain.tasks == without.tasks and plain.stage == without.stage
    assert without.record == plain.record | {"use_tools": False}
    assert (tmp_path / "without" / "rta" / "policy" / "model.safetensors").exists()


def test_only_rta_trains_without_tools(tmp_path):
    run = Run(run_config(load_config("office:smoke")), tmp_path)
    for stage in ("ppr", "pairs", "sft"):
        assert_names(refused(stages.train, run, stage, use_tools=False), "use_tools", stage)
