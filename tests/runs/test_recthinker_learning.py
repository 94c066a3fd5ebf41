"""RecThinker's stages learn in turn: the warm start, imitation of its own best, reinforcement.

The log is synthetic and the tools are planted: all orders that they show are drawn at random, but
those of one tool have the target first. Demonstrations call tools and follow orders at random, so
what the stages after them learn comes from outcomes alone.
"""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.scripts import RECTHINKER_SCRIPT
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runs import Run, run_config, train
from agenticrec_jax.tools.base import Toolbox
from tests.training.test_tool_learning import Scripted, order

HOLDER = "search_similar_users"
HELD_OUT = 96


class PlantedRun(Run):
    """A run whose `HOLDER` shows orders with the target first."""

    def toolbox(self, artifacts):
        real = super().toolbox(artifacts)
        targets = {
            example.example_id: example.target_number
            for examples in self.data.examples.values()
            for example in examples
        }

        def says(name):
            labels = RECTHINKER_SCRIPT.orders.get(name)
            if labels is None:
                return lambda view, arguments: "nothing of note"
            first = targets if name == HOLDER else {}
            return lambda view, arguments: "; ".join(
                order(view, label, first.get(view.example_id)) for label in labels
            )

        tools = [Scripted(**schema, says=says(schema["name"])) for schema in real.schemas()]
        return Toolbox(tools)


def planted_config():
    config = load_config("recthinker:smoke")
    sample = "tools_data/synthetic_sample"
    config.dataset.interactions = f"{sample}/interactions.csv.gz"
    config.dataset["items"] = f"{sample}/items.jsonl.gz"
    config.policy.title_tokens = 1
    sizes = {"prompt_buckets": (128,), "splice_buckets": (48,), "window_buckets": (512,)}
    config.engine.update({"slots": 64, "row_buckets": (64,), "max_tokens": 384} | sizes)
    shapes = {"prompt_buckets": (128,), "completion_buckets": (192, 384), "token_budget": 16384}
    lessons = (((1,), 90),)
    config.warm_start.update({"lessons": lessons, "prompts": 8, "members": 4, "fused": 0.0})
    config.warm_start.learning_rate = 1e-3
    config.self_sft.update({"examples": 48, "chunk": 48, "members": 8, "batch": 16} | shapes)
    config.self_sft.update({"epochs": 2, "learning_rate": 3e-4})
    config.self_sft.rules.best_rank = 2
    config.rta.update({"steps": 6, "prompts": 8, "members": 8, "learning_rate": 3e-4} | shapes)
    return run_config(config)


@pytest.mark.slow
def test_each_stage_ranks_better_and_calls_fewer_tools(tmp_path):
    config = planted_config()
    directory, data, results = None, None, {}
    for stage in ("sft", "self_sft", "rta"):
        run = PlantedRun(config, tmp_path, policy_directory=directory, data=data)
        data = run.data
        train(run, stage)
        directory = tmp_path / stage / "policy"
        trained = PlantedRun(config, tmp_path, policy_directory=directory, data=data)
        agent = dataclasses.replace(trained.evaluation_agent, stop_on_illegal=False)
        examples = data.examples["test"][:HELD_OUT]
        done = evaluate(agent, trained.engine, trained.policy.params, examples)
        results[stage] = {
            "ndcg": ndcg_at_k(np.array([each.rank or 0 for each in done]), 10),
            "calls": float(np.mean([len(each.calls) for each in done])),
            "valid": float(np.mean([each.valid for each in done])),
            "holder": float(np.mean([any(c.name == HOLDER for c in t.calls) for t in done])),
        }
        print(stage, results[stage], flush=True)
    frozen, imitated, reinforced = results.values()
    assert frozen["valid"] > 0.7 and frozen["ndcg"] < 0.85
    assert imitated["ndcg"] > frozen["ndcg"] + 0.05 and imitated["holder"] > frozen["holder"]
    assert reinforced["ndcg"] > max(0.9, imitated["ndcg"]) and reinforced["holder"] > 0.95
    assert reinforced["calls"] <= imitated["calls"] < frozen["calls"]
