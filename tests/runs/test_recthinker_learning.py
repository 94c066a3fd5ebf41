"""RecThinker's two stages learn in turn: imitation of its own best, then reinforcement.

The log is synthetic and the tools are planted: all orders that they show are drawn at random, but
those of one tool have the target first. The embedded policy chooses tools and orders at random,
so what the stages learn comes from outcomes alone. It has learned AgenticRec's tools, which stand
in for RecThinker's; the reward for few calls is RecThinker's.
"""

import numpy as np
import pytest

from agenticrec_jax.agent.scripts import AGENTICREC_SCRIPT
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runs import Run, run_config, train
from agenticrec_jax.tools.base import Toolbox
from tests.training.test_tool_learning import Scripted, order

HOLDER = "get_similar_users"
HELD_OUT = 48


class PlantedRun(Run):
    """A run whose `HOLDER` shows orders with the target first."""

    def toolbox(self, artifacts):
        targets = {
            example.example_id: example.target_number
            for examples in self.data.examples.values()
            for example in examples
        }

        def says(name):
            labels = AGENTICREC_SCRIPT.orders.get(name)
            if labels is None:
                return lambda view, arguments: "little of note"
            first = targets if name == HOLDER else {}
            return lambda view, arguments: "; ".join(
                order(view, label, first.get(view.example_id)) for label in labels
            )

        schemas = super().toolbox(artifacts).schemas()
        return Toolbox([Scripted(**schema, says=says(schema["name"])) for schema in schemas])


def planted_config():
    """Ten candidates as in RecThinker's table, and a short history, so that episodes are short."""
    config = load_config("office:smoke")
    sample = "tools_data/synthetic_sample"
    config.dataset.interactions = f"{sample}/interactions.csv.gz"
    config.dataset["items"] = f"{sample}/items.jsonl.gz"
    config.dataset.update({"max_history": 2, "negatives": 9})
    config.reward = "recthinker"
    config.policy.title_tokens = 1
    sizes = {"prompt_buckets": (64,), "splice_buckets": (48,), "window_buckets": (320,)}
    config.engine.update({"slots": 48, "row_buckets": (48,), "max_tokens": 256} | sizes)
    shapes = {"prompt_buckets": (64,), "completion_buckets": (256,), "token_budget": 8192}
    config.self_sft.update({"examples": 18, "chunk": 18, "members": 8, "batch": 8} | shapes)
    config.self_sft.update({"epochs": 3, "learning_rate": 3e-4, "warmup_steps": 1})
    config.self_sft.rules.best_rank = 1
    config.rta.update({"steps": 4, "prompts": 6, "members": 8, "learning_rate": 3e-4} | shapes)
    return run_config(config)


def measured(run):
    """NDCG@10, calls and use of the holder on held-out examples."""
    examples = run.data.examples["test"][:HELD_OUT]
    done = evaluate(run.evaluation_agent, run.engine, run.policy.params, examples)
    return {
        "ndcg": ndcg_at_k(np.array([each.rank or 0 for each in done]), 10),
        "calls": float(np.mean([len(each.calls) for each in done])),
        "holder": float(np.mean([any(c.name == HOLDER for c in each.calls) for each in done])),
    }


@pytest.mark.slow
def test_each_stage_ranks_better_with_fewer_calls(tmp_path):
    config = planted_config()
    run = PlantedRun(config, tmp_path)
    results = [measured(run)]
    print("frozen", results[-1], flush=True)
    for stage in ("self_sft", "rta"):
        train(run, stage)
        policy = tmp_path / stage / "policy"
        engine = run.engine  # its programs are compiled
        run = PlantedRun(config, tmp_path, policy_directory=policy, data=run.data)
        run.engine = engine
        results.append(measured(run))
        print(stage, results[-1], flush=True)
    frozen, imitated, reinforced = results
    assert imitated["ndcg"] > frozen["ndcg"] + 0.02 and imitated["calls"] < frozen["calls"]
    assert reinforced["ndcg"] > max(0.95, imitated["ndcg"]) and reinforced["holder"] > 0.95
    assert reinforced["calls"] < imitated["calls"]
