"""Requests of many clients, answered together by one thread that has the engine."""

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import InputError
from agenticrec_jax.serving.recommendations import Recommendation
from agenticrec_jax.serving.recommender import Recommender
from agenticrec_jax.serving.requests import Question

GATHERED = 0.005  # seconds that the first request of a batch waits for others
OnBatch = Callable[[int], None]
OnTrajectory = Callable[[str, Trajectory], None]
_LOG = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many requests wait as may."""


@dataclasses.dataclass(eq=False)
class Job:
    """A question that somebody waits for.

    Attributes:
      question: the question.
      deadline: until when its answer is wanted, by ``time.monotonic``.
      trace_id: of the request.
      answer: of the question: a `Recommendation`, or the error in its place.
    """

    question: Question
    deadline: float
    trace_id: str
    answer: "Future[Recommendation]" = dataclasses.field(default_factory=Future)

    def abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.done() or time.monotonic() >= self.deadline


class Batches:
    """Answers jobs in a thread of its own: those that wait are one call of the recommender.

    The call gives them to the engine's slots; jobs beyond the slots take those that become free.
    Each answer is delivered as its rollout ends. Jobs that come meanwhile are the next call.

    A job whose answer nobody waits for is dropped if it has not begun. Otherwise its rollout ends
    at its next tool call, so that no slot stays taken.

    Args:
      recommender: answers the questions.
      most: jobs that may wait.
      on_batch: called with the number of jobs of each call.
      on_trajectory: called with the trace id and the trajectory of each answer.
    """

    def __init__(
        self,
        recommender: Recommender,
        most: int,
        *,
        on_batch: OnBatch,
        on_trajectory: OnTrajectory,
    ):
        self._recommender = recommender
        self._most = most
        self._on_batch = on_batch
        self._on_trajectory = on_trajectory
        self._changed = threading.Condition()  # guards the two below
        self._jobs: collections.deque[Job] = collections.deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that have not begun."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the thread is there that answers."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Puts a job behind the others.

        Raises:
          QueueFull: as many jobs wait as may.
        """
        with self._changed:
            if len(self._jobs) >= self._most:
                raise QueueFull
            self._jobs.append(job)
            self._changed.notify_all()

    def abandon(self, job: Job) -> None:
        """Ends a job without an answer."""
        job.answer.cancel()
        with self._changed, contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def close(self, timeout: float) -> None:
        """Ends the thread after the jobs that wait, or leaves it behind after ``timeout`` s."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _work(self) -> None:
        while jobs := self._take():
            self._on_batch(len(jobs))
            try:
                self._answer(jobs)
            except Exception as error:  # whatever it is: the next requests need this thread
                _LOG.exception("a batch of %d requests failed", len(jobs))
                for job in jobs:
                    _fail(job, error)

    def _take(self) -> list[Job]:
        """Returns the jobs that wait, once there are some; none when there will be none."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            time.sleep(GATHERED)
            with self._changed:
                jobs = [job for job in self._jobs if not job.abandoned()]
                self._jobs.clear()
                if jobs or self._closed:  # the only ones may have been abandoned
                    return jobs

    def _answer(self, jobs: list[Job]) -> None:
        by_question = {id(job.question): job for job in jobs}

        def answered(question: Question, answer: Recommendation, trajectory: Trajectory) -> None:
            job = by_question[id(question)]
            self._on_trajectory(job.trace_id, trajectory)
            with contextlib.suppress(InvalidStateError):  # abandoned
                job.answer.set_result(answer)

        def refused(question: Question, error: InputError) -> None:
            _fail(by_question[id(question)], error)

        self._recommender.answer(
            [job.question for job in jobs],
            on_refused=refused,
            on_answer=answered,
            abandoned=lambda question: by_question[id(question)].abandoned(),
        )


def _fail(job: Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # answered, or abandoned
        job.answer.set_exception(error)
