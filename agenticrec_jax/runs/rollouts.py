"""Trajectories that are sampled once, stored as JSON lines, and read by a resumed run."""

from collections.abc import Sequence

from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.progress import episode_progress
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.training.mining import write_lines
from agenticrec_jax.training.self_augmentation import read_groups


def stored_episodes(
    path: Path,
    agent: Agent,
    engine: Engine,
    policy: Policy,
    tasks: Sequence[Task],
    *,
    members: int,
    temperature: float,
    seed: int,
    name: str,
    step: int = 0,
    forced_calls: int = 0,
    forced_tools: Sequence[str] = (),
) -> list[list[Trajectory]]:
    """Returns [tasks][members] trajectories of a file; without it they are sampled and written.

    Each process samples its own share of the tasks.

    Args:
      path: of the file of JSON lines.
      agent: tools and prompts.
      engine: samples.
      policy: that is sampled.
      tasks: of all processes.
      members: trajectories of each task.
      temperature: of sampling; 0 is greedy.
      seed: of sampling.
      name: of the phase in which they are sampled.
      step: which is folded into the sampling keys, and decides whose calls are forced.
      forced_calls: members of each group whose first call is forced, see `agent.openings`.
      forced_tools: names of the tools that are called so; none: all of the agent's.
    """
    # Process 0 decides for all: the others may not see its new files yet.
    if not multihost.allgather(path.exists())[0]:
        share = multihost.local_items(tasks)
        with phase(name), episode_progress(name, len(share) * members) as on_trajectory:
            groups = run_episodes(
                agent,
                engine,
                policy.params,
                share,
                members=members,
                temperature=temperature,
                seed=seed,
                step=step,
                forced_calls=forced_calls,
                forced_tools=forced_tools,
                on_trajectory=on_trajectory,
            )
        shares = multihost.allgather([[t.to_json() for t in group] for group in groups])
        with multihost.main_writes(path.name) as writes:
            if writes:
                lines = (line for group in multihost.interleaved(shares) for line in group)
                write_lines(path, lines)
    return read_groups(path, members)
