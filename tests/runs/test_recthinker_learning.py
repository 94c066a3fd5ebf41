"""RecThinker's stages learn in turn: the warm start, imitation of its own best, reinforcement.

The log is synthetic and the tools are planted: all orders that they show are drawn at random, but
those of one tool have the target first. Demonstrations call tools and follow orders at random, so
what the stages after them learn comes from outcomes alone.
"""

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
HELD_OUT = 64


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
    """Few candidates and a short history, so that an episode is short."""
    config = load_config("recthinker:smoke")
    sample = "tools_data/synthetic_sample"
    config.dataset.interactions = f"{sample}/interactions.csv.gz"
    config.dataset["items"] = f"{sample}/items.jsonl.gz"
    config.dataset.update({"max_history": 2, "negatives": 4})
    config.policy.title_tokens = 1
    sizes = {"prompt_buckets": (80,), "splice_buckets": (48,), "window_buckets": (336,)}
    config.engine.update({"slots": 64, "row_buckets": (64,), "max_tokens": 256} | sizes)
    shapes = {"prompt_buckets": (80,), "completion_buckets": (256,), "token_budget": 8192}
    config.warm_start.update({"lessons": (((1,), 60),), "prompts": 8, "members": 2})
    config.warm_start.update({"learning_rate": 1e-3, "warmup_steps": 5, "save_every": 60})
    config.self_sft.update({"examples": 24, "chunk": 24, "members": 8, "batch": 8} | shapes)
    config.self_sft.update({"epochs": 2, "learning_rate": 3e-4})
    config.self_sft.rules.best_rank = 1
    config.rta.update({"steps": 4, "prompts": 8, "members": 8, "learning_rate": 3e-4} | shapes)
    return run_config(config)


@pytest.mark.slow
def test_each_stage_ranks_better_and_calls_fewer_tools(tmp_path):
    config = planted_config()
    run = PlantedRun(config, tmp_path)
    results = {}
    for stage in ("sft", "self_sft", "rta"):
        train(run, stage)
        policy = tmp_path / stage / "policy"
        engine, data = run.engine, run.data
        run = PlantedRun(config, tmp_path, policy_directory=policy, data=data)
        run.engine = engine  # its programs are compiled
        examples = data.examples["test"][:HELD_OUT]
        done = evaluate(run.evaluation_agent, engine, run.policy.params, examples)
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
