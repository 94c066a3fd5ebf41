"""Progress of episodes that take long: evaluation, validation, mining."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.runtime.progress import Progress


@contextlib.contextmanager
def episode_progress(name: str, total: int) -> Iterator[Callable[[Trajectory], None]]:
    """Shows how many of ``total`` episodes have ended, and three means over them.

    The means are NDCG@10 (of preference questions: the tokens), the share of valid outputs and the
    calls of an episode.

    Args:
      name: stands before the count.
      total: episodes of this process; only process 0 prints.

    Yields:
      A function that takes each trajectory as it ends.
    """
    sums = {"value": 0.0, "valid": 0, "calls": 0}
    ended = 0
    with Progress(name, total, unit="episodes", process_index=jax.process_index()) as progress:

        def count(trajectory: Trajectory) -> None:
            nonlocal ended
            ended += 1
            ranked = trajectory.task == RANK
            sums["value"] += ndcg_at_k([trajectory.rank], 10) if ranked else len(trajectory.ids)
            sums["valid"] += trajectory.valid
            sums["calls"] += len(trajectory.calls)
            value, valid, calls = (added / ended for added in sums.values())
            first = f"ndcg@10 {value:.3f}" if ranked else f"tokens {value:.0f}"
            progress.advance(note=f"{first} valid {valid:.3f} calls {calls:.2f}")

        yield count
