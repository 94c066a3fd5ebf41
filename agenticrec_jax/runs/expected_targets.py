"""Probabilities of the targets, given the orders that an agent can read."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from agenticrec_jax import strict_json
from agenticrec_jax.agent.scripted import DRAFT, labels_of
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.evaluation.baselines import scripted
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.rollouts import stored_episodes
from agenticrec_jax.runs.run import Run, rollout_record

MOST_FITTED = 1000  # policy examples: the error of two weights an order is far below their size


def target_probabilities(
    run: Run, policy: Policy, directory: Path, needed: Collection[int]
) -> Mapping[int, Mapping[int, float]]:
    """Returns the probability of each candidate as the target, by example id and item code.

    A conditional logit (McFadden, 1974) of the targets on the candidates' places in the orders of
    all tools and in the policy's own ranking without tools. It is fitted on the needed policy
    examples and on ``config.evaluation.fitting_examples`` evenly spread ones, of which
    `MOST_FITTED` are enough. These may be held out by stage ``ppr``: two weights for each order
    tell nothing of a single target.

    The rankings without tools are stored in the directory, for a resumed run.

    Args:
      run: log, tools and engine.
      policy: that ranks without tools.
      directory: of the stage, which starts from the policy.
      needed: ids of the policy examples that tasks are about.
    """
    policy_examples = run.data.examples["policy"]
    count = min(run.config.evaluation.fitting_examples or MOST_FITTED, MOST_FITTED)
    fitted = evenly_spread(policy_examples, count)
    ids = {example.example_id for example in fitted}.union(needed)
    examples = [example for example in policy_examples if example.example_id in ids]
    # The name tells other examples, candidates, tools and policy directories apart.
    content = [rollout_record(run), str(run.policy_directory), sorted(ids)]
    digest = hashlib.sha256(strict_json.dumps(content).encode()).hexdigest()
    with multihost.main_writes("directory of the stage") as writes:
        if writes:
            directory.mkdir(parents=True, exist_ok=True)
    groups = stored_episodes(
        directory / f"rankings_without_tools_{digest[:12]}.jsonl",
        replace(run.training_agent, use_tools=False),
        run.engine,
        policy,
        [Task(example) for example in examples],
        members=1,
        temperature=0.0,
        seed=0,  # which greedy rankings do not depend on
        name="rankings without tools",
    )
    artifacts, toolbox = run.artifacts_a, run.training_agent.toolbox
    evidence = scripted.gather_evidence(run.data.log, toolbox, artifacts, examples)
    for orders, (trajectory,) in zip(evidence, groups, strict=True):
        orders[DRAFT] = trajectory.ranking or ()
    labels = (*labels_of(toolbox.names), DRAFT)
    features = scripted.evidence_features(evidence, len(examples[0].candidates), labels)
    targets = np.array([example.target_number - 1 for example in examples])
    scores = scripted.linear_scores(features, scripted.fit_linear(features, targets))
    probabilities = softmax(scores, axis=1)
    return {
        example.example_id: dict(zip(example.candidates, row.tolist(), strict=True))
        for example, row in zip(examples, probabilities, strict=True)
    }
