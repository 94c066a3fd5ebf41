"""The rollout benchmark's works, at a size that takes seconds."""

import dataclasses

from experiments.benchmarks import rollout


def test_the_works_call_observe_and_stop_as_they_say():
    small = dataclasses.replace(
        rollout.REFERENCE, hidden_size=32, intermediate_size=48, num_layers=1, vocab_size=512
    )
    graphdef, params = rollout.policy(small)
    works = [
        dataclasses.replace(rollout.WORKS[0], prompts=4, members=4, prompt_tokens=24),
        dataclasses.replace(rollout.WORKS[1], prompts=4, prompt_tokens=24, max_tokens=40),
    ]
    buckets = {"row_buckets": (16,), "window_buckets": (400,)}
    tools, greedy = (
        {
            row["name"].split(": ")[1]: row["ours"]
            for row in rollout.run(work, graphdef, params, 1, **buckets)
        }
        for work in works
    )
    assert greedy["sampled"] == 4 * 40 and greedy["observed"] == 0 and greedy["splice"] == 0
    assert 60 < tools["sampled"] / 16 < 300 and tools["observed"] >= 16 * 20
    assert tools["steps a dispatch"] >= 16 and 0.2 < tools["occupancy"] <= 1
    assert tools["compilations"] == 3 and 0 < tools["cpu"] < tools["first run"]
