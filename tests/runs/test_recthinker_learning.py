"""Self-augmented fine-tuning learns: the policy imitates the best of its own trajectories.

The log is synthetic and the tools are planted: all orders that they show are drawn at random, but
those of one tool have the target first. The embedded policy chooses tools and orders at random, so
what the stage learns comes from outcomes alone. The policy has learned AgenticRec's tools, which
stand in for RecThinker's.
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
    return run_config(config)


def measured(run):
    """NDCG@10 and calls on held-out examples."""
    examples = run.data.examples["test"][:HELD_OUT]
    done = evaluate(run.evaluation_agent, run.engine, run.policy.params, examples)
    return {
        "ndcg": ndcg_at_k(np.array([each.rank or 0 for each in done]), 10),
        "calls": float(np.mean([len(each.calls) for each in done])),
    }


@pytest.mark.slow
def test_imitation_of_its_own_best_ranks_better_with_fewer_calls(tmp_path):
    config = planted_config()
    run = PlantedRun(config, tmp_path)
    frozen = measured(run)
    train(run, "self_sft")
    trained = PlantedRun(
        config, tmp_path, policy_directory=tmp_path / "self_sft" / "policy", data=run.data
    )
    trained.engine = run.engine  # its programs are compiled
    imitated = measured(trained)
    print(f"frozen {frozen}, imitated {imitated}")
    assert imitated["ndcg"] > frozen["ndcg"] + 0.02 and imitated["calls"] < frozen["calls"]
