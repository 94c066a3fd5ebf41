"""Measures how much more reward a policy earns with each tool, and how clearly rollouts show it.

``python -m experiments.benchmarks.choices --json=FILE`` samples groups of policy examples with the
config's policy at several temperatures, as a step of stage ``rta`` does. Of each tool it reports
the share of rollouts that call it, and how much more reward these have than the rest of their
group: the coefficient of a regression within groups, with its standard error. A policy gradient
learns a call from that difference. Where it is z standard errors over n rollouts, about 4 n / z**2
rollouts show it with two. It is no cause: a call comes with what the policy does after it.

The same rollouts also have their expected reward, that of ``config.rta.expected_reward``.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from jaxtyping import Float

from agenticrec_jax.agent.episodes import run_episodes
from agenticrec_jax.agent.rewards import expected_reward
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.paths import Path
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.expected_targets import target_probabilities
from agenticrec_jax.training.groups import rewards_of
from agenticrec_jax.training.tasks import ranking_tasks
from experiments.benchmarks.figures import figure, publish


def effect_within_groups(
    chosen: Float[np.ndarray, "P G"], rewards: Float[np.ndarray, "P G"]
) -> tuple[float, float]:
    """Returns the coefficient of the rewards on a choice within groups, and its standard error.

    Both are centred in each group first, as a group's mean is the baseline of its advantages.

    Args:
      chosen: 1 where a member made the choice, else 0.
      rewards: of the members.

    Returns:
      coefficient and error; NaN for both if the choice never differs within a group.

    Example: who chose has 1 more in the first group, and 3 more in the second.
      >>> chosen, rewards = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 1.0], [3.0, 0.0]])
      >>> [round(float(x), 3) for x in effect_within_groups(chosen, rewards)]
      [2.0, 1.0]
    """
    chosen, rewards = (x - x.mean(axis=1, keepdims=True) for x in (chosen, rewards))
    spread = (chosen**2).sum()
    if not spread:
        return float("nan"), float("nan")
    effect = (chosen * rewards).sum() / spread
    degrees = chosen.size - len(chosen) - 1  # a mean of each group, and the coefficient
    noise = ((rewards - effect * chosen) ** 2).sum() / max(degrees, 1)
    return float(effect), float(np.sqrt(noise / spread))


def rows_at(
    temperature: float,
    groups: Sequence[Sequence[Trajectory]],
    rewards: Mapping[str, Float[np.ndarray, "P G"]],
    tools: Sequence[str],
) -> list[dict]:
    """Returns the rows of a temperature.

    Args:
      temperature: that the groups were sampled with.
      groups: [P][G] trajectories.
      rewards: of the trajectories, by the name of the reward.
      tools: names of those that were offered.
    """
    at = f"temperature {temperature:g}"
    valid = np.array([[t.valid for t in group] for group in groups])
    rows = [figure(f"{at}: invalid outputs", "%", 100 * (~valid).mean())]
    for name, values in rewards.items():
        spread = values.var(axis=1).mean() ** 0.5
        rows.append(figure(f"{at}: {name}", "", values.mean()))
        rows.append(figure(f"{at}: standard deviation of {name} in a group", "", spread))
    for tool in tools:
        called = [[float(any(c.name == tool for c in t.calls)) for t in group] for group in groups]
        rows.append(figure(f"{at}: rollouts that call {tool}", "%", 100 * np.mean(called)))
        for name, values in rewards.items():
            effect, error = effect_within_groups(np.array(called), values)
            rows.append(figure(f"{at}: {name} of calling {tool} above the group", "", effect))
            rows.append(figure(f"{at}: standard error of {name} of calling {tool}", "", error))
    return rows


def measure(
    run: Run, temperatures: Sequence[float], prompts: int, members: int, directory: Path
) -> list[dict]:
    """Returns the rows of all temperatures; each samples the same ``prompts`` policy examples."""
    agent, seed = run.training_agent, run.config.seed
    tasks = ranking_tasks(run.data.examples["policy"], prompts, seed)(0)
    needed = [task.example.example_id for task in tasks]
    probabilities = target_probabilities(run, run.policy, directory, needed)
    expected = expected_reward(agent.reward, probabilities)
    rows = []
    for temperature in temperatures:
        groups = run_episodes(
            agent,
            run.engine,
            run.policy.params,
            tasks,
            members=members,
            temperature=temperature,
            seed=seed,
        )
        means = [
            [expected(t, task).total for t in group]
            for group, task in zip(groups, tasks, strict=True)
        ]
        rewards = {"reward": rewards_of(groups), "expected reward": np.array(means)}
        rows += rows_at(temperature, groups, rewards, agent.toolbox.names)
    return rows


def main(argv) -> None:
    del argv
    config = run_config(_CONFIG.value)
    settings = {"prompts": _PROMPTS.value, "members": _MEMBERS.value, "seed": config.seed}
    settings |= {"policy": config.policy.directory}
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = Run(config, _WORKDIR.value or temporary)
        publish(
            lambda: measure(run, _TEMPERATURES.value, _PROMPTS.value, _MEMBERS.value, temporary),
            _JSON.value,
            settings=settings,
        )


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _WORKDIR = flags.DEFINE_string(
        "workdir", "", "Directory of the artifacts; a temporary one if empty."
    )
    _TEMPERATURES = flags.DEFINE_multi_float(
        "temperature", [1.0, 0.7], "Of sampling; several one after another.", lower_bound=0.0
    )
    _PROMPTS = flags.DEFINE_integer("prompts", 192, "Policy examples.", lower_bound=1)
    _MEMBERS = flags.DEFINE_integer("members", 16, "Rollouts of an example.", lower_bound=2)
    _CONFIG = define_config()
    app.run(main)
