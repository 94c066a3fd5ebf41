"""The thread that has the engine, and the queue of requests before it."""

import collections
import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from agenticrec_jax.agent.arrivals import Arrival, PromptedEpisode
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.serving.recommender import Recommender

OnTrajectory = Callable[[str, Trajectory], None]
_LOG = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may."""


@dataclasses.dataclass(eq=False)
class Job:
    """An episode whose trajectory somebody waits for.

    Attributes:
      prompted: the episode.
      deadline: until when its trajectory is wanted, by ``time.monotonic``.
      trace_id: of the request.
      trajectory: the trajectory, or the error in its place.
    """

    prompted: PromptedEpisode
    deadline: float
    trace_id: str
    trajectory: "Future[Trajectory]" = dataclasses.field(default_factory=Future)

    def abandoned(self) -> bool:
        """Whether nobody waits for the trajectory any more."""
        return self.trajectory.done() or time.monotonic() >= self.deadline

    def fail(self, error: Exception) -> None:
        """Ends the job with an error."""
        with contextlib.suppress(InvalidStateError):  # ended, or abandoned
            self.trajectory.set_exception(error)


class EngineThread:
    """Lets the policy play jobs in a thread of its own.

    A job takes the next free slot of the engine, whatever runs in the others. Its trajectory is
    delivered as it ends. A job that nobody waits for is dropped if it has not begun. Otherwise it
    ends at its next tool call, so that no slot stays taken.

    Args:
      recommender: has the engine.
      most: jobs that may wait for a slot.
      on_trajectory: called with trace id and trajectory of each job as it ends.
    """

    def __init__(self, recommender: Recommender, most: int, on_trajectory: OnTrajectory):
        self._recommender = recommender
        self._most = most
        self._on_trajectory = on_trajectory
        self._changed = threading.Condition()  # guards jobs, closed and counters
        self._jobs: collections.deque[Job] = collections.deque()
        self._closed = False
        self._counters: collections.Counter[str] = collections.Counter()  # of calls before
        self._called = False  # whether a call of the engine goes on
        self._running: set[Job] = set()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that have not begun."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether as many jobs wait as may."""
        return self.waiting >= self._most

    @property
    def running(self) -> int:
        """Number of jobs that have a slot."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def counters(self) -> dict[str, float]:
        """Returns the sums of `COUNTERS` over all calls of the engine, the one that runs too."""
        with self._changed:
            counters = self._counters.copy()
            if self._called:
                counters.update(self._recommender.telemetry)
        return counters

    def submit(self, job: Job) -> None:
        """Puts a job behind the others.

        Raises:
          QueueFull: as many jobs wait as may.
        """
        with self._changed:
            if self.full:
                raise QueueFull
            self._jobs.append(job)
            self._changed.notify_all()

    def abandon(self, job: Job) -> None:
        """Ends a job without a trajectory."""
        job.trajectory.cancel()
        with self._changed, contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def close(self, timeout: float) -> None:
        """Ends the thread after the jobs that wait, or leaves it behind after ``timeout`` s."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _work(self) -> None:
        while self._wait():
            try:
                self._recommender.serve(self._arrivals)
            except Exception as error:  # whatever it is: the next requests need this thread
                # If it took none it would fail again with those that wait.
                failed = [*self._running] or self._take(self.waiting)
                _LOG.exception("the engine failed, and with it %d requests", len(failed))
                for job in failed:
                    job.fail(error)
                self._running.clear()
            with self._changed:
                self._counters.update(self._recommender.telemetry if self._called else {})
                self._called = False

    def _wait(self) -> bool:
        """Returns once a job waits; false when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return bool(self._jobs)

    def _arrivals(self, free: int) -> list[Arrival]:
        """Gives the first jobs that wait to the engine, as many as slots are free."""
        self._called = True
        jobs = self._take(free)
        self._running.update(jobs)
        return [
            Arrival(
                job.prompted,
                on_trajectory=functools.partial(self._ended, job),
                on_error=functools.partial(self._failed, job),
                abandoned=job.abandoned,
            )
            for job in jobs
        ]

    def _take(self, most: int) -> list[Job]:
        """Takes the first jobs from the queue, without those that nobody waits for."""
        jobs = []
        with self._changed:
            while self._jobs and len(jobs) < most:
                job = self._jobs.popleft()
                if not job.abandoned():
                    jobs.append(job)
        return jobs

    def _ended(self, job: Job, trajectory: Trajectory) -> None:
        self._running.discard(job)
        self._on_trajectory(job.trace_id, trajectory)
        with contextlib.suppress(InvalidStateError):  # abandoned
            job.trajectory.set_result(trajectory)

    def _failed(self, job: Job, error: Exception) -> None:
        self._running.discard(job)
        job.fail(error)
