"""The recommender: a run's policy with its log, tools and engine, loaded once and used often."""

import contextlib
import copy
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from agenticrec_jax.agent.arrivals import Arrival, prepare_episode, prepare_tools, run_prepared
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.protocol import RANKED
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import workdir_path
from agenticrec_jax.runs.remembered import remembered, trained_policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.serving.answers import PreparedQuestion, policys_answer
from agenticrec_jax.serving.recommendations import Recommendation
from agenticrec_jax.serving.requests import (
    FEWEST,
    NewItem,
    Question,
    Request,
    example_of,
    log_of,
    read_question,
    with_new_items,
)
from agenticrec_jax.serving.retrieval import catalog_scores, retrieve
from agenticrec_jax.tools.artifacts import Artifacts

SLOTS = 32  # most requests in the engine at once
ROWS = (1, 4, 10, 16)  # rows that a dispatch computes, where the config names none
OnRefused = Callable[[Question, InputError], None]


class Recommender:
    """Recommendations of a run's policy for users now, with evidence and reasons.

    A request is made a second after the newest event of the log, or of the history that comes with
    it, and sees all events of its user. What the tools know of other users was fitted before the
    valid split, as in the evaluation; `refit` fits it on the whole log.

    The policy is greedy, so that equal requests give equal answers. (In another batch floating
    point differs in the last bits, which can decide between two tokens that are equally likely.)
    Safe in several threads; the calls that need the policy wait for each other.

    Example::

        from agenticrec_jax import Recommender

        recommender = Recommender.load("workdir/run")  # the workdir of quickstart or train_policy
        ann, bob = recommender.recommend(["ann", "bob"], k=5)  # of 20 items that are retrieved
        print(ann.item_ids, ann.reason)

        history = ["B00006IE7F", {"item_id": "B0017OD1TK", "rating": 4.0}]  # an unseen user's
        pen = {"item_id": "new", "title": "Fountain Pen", "brand": "Pilot"}  # not in the catalog
        (answer,) = recommender.recommend(
            histories=[history], candidates=["B00006IE8J", "B000J07BRQ", pen]
        )

    Args:
      run: log, artifacts and policy.
      constrained: whether an answer that is begun can only become a valid ranking.
      retrieved: candidates of a request that names none, 20 to 30.
      tool_timeout: seconds that a tool may take; requests whose tools have answered then go on
        without those that still wait. None for the order and the time of the run's configuration.
    """

    def __init__(
        self,
        run: Run,
        *,
        constrained: bool = True,
        retrieved: int = 20,
        tool_timeout: float | None = None,
    ):
        expect(20 <= retrieved <= 30, "retrieved", retrieved, "20 to 30 candidates")
        self.run = run
        self._retrieved = retrieved
        sizes = serving_sizes(run.config.engine, tool_timeout)
        self._engine = run.make_engine(constrained=constrained, sizes=sizes)
        self._longest_prompt = self._engine.longest_prompt(run.policy.params)
        self._lock = threading.Lock()
        self._use(run.artifacts_b)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike,
        *,
        policy: str | os.PathLike | None = None,
        config: RunConfig | None = None,
        constrained: bool = True,
        retrieved: int = 20,
        tool_timeout: float | None = None,
        warm_up: bool = True,
    ) -> Self:
        """Returns the recommender of a run's workdir.

        The workdir remembers log and configuration of its newest run, and has its policies.

        Args:
          directory: workdir of the run.
          policy: policy directory; None for the one that was trained furthest in the workdir, and
            without any for the one that the run started from.
          config: of the run; None for that of the newest run.
          constrained: whether an answer that is begun can only become a valid ranking.
          retrieved: candidates of a request that names none, 20 to 30.
          tool_timeout: seconds that a tool may take; None for those of the configuration.
          warm_up: whether the programs of few and of many requests are compiled now, not by the
            first requests.

        Raises:
          InputError: the workdir has no run, or a file of it cannot be used.
        """
        workdir = workdir_path(directory)
        start = None
        if config is None:
            config, start = remembered(workdir)
        policy = policy or trained_policy(workdir) or start
        run = Run(config, workdir, policy_directory=policy)
        recommender = cls(
            run, constrained=constrained, retrieved=retrieved, tool_timeout=tool_timeout
        )
        if warm_up:
            recommender.warm_up()
        return recommender

    def refit(self) -> None:
        """Fits SASRec and the statistics on the whole log, and uses them from now on.

        The tools then know the newest events of all users, which no evaluation may see. The fit is
        stored in ``artifacts_whole`` of the workdir; if it is there, it is only read.
        """
        with self._lock:
            self._use(self.run.artifacts_whole)

    def warm_up(self) -> None:
        """Answers for few and for many users of the log, so that the programs are compiled."""
        for count in ROWS:
            questions = [Question(user=user) for user in self.run.data.log.user_ids[:count]]
            self.answer(questions, on_refused=lambda question, error: None)

    def recommend(
        self,
        users: Sequence[str] | None = None,
        *,
        histories: Sequence[Sequence[str | Mapping[str, Any]]] | None = None,
        candidates: Sequence[Any] | None = None,
        k: int = RANKED,
    ) -> list[Recommendation]:
        """Returns a recommendation for each user, or for each history of an unseen user.

        Args:
          users: ids of users of the log.
          histories: what each unseen user took, oldest first: item ids, or mappings with
            ``item_id``, ``timestamp`` (unix seconds; all or none of a history) and ``rating``.
          candidates: items to rank, for all or a list for each: ids, or mappings of items that the
            catalog lacks, with ``item_id``, ``title``, ``brand``, ``categories``, ``price``,
            ``description`` and ``year``. Without (None for all, or for one of them) the candidates
            are retrieved from the whole catalog, without the user's own items.
          k: length of the lists, 1 to 10. A list of fewer candidates is shorter.

        Raises:
          InputError: names the first user, history or candidate that cannot be used.
        """
        one = (users is None) != (histories is None)
        expect(one, "users and histories", [users, histories], "one of the two")
        subjects = users if histories is None else histories
        name = "users" if histories is None else "histories"
        expect(not isinstance(subjects, str), name, subjects, "a list")
        each = [candidates] * len(subjects)
        if candidates is not None and not all(isinstance(c, str | Mapping) for c in candidates):
            each = list(candidates)
            expect(len(each) == len(subjects), "candidates", len(each), f"a list of each of {name}")
        questions = [
            Question(
                user=None if users is None else users[i],
                history=None if histories is None else histories[i],
                candidates=each[i],
                k=k,
                where=f"{name}[{i}]",
            )
            for i in range(len(subjects))
        ]
        return self.answer(questions)

    def answer(
        self, questions: Sequence[Question], *, on_refused: OnRefused | None = None
    ) -> list[Recommendation]:
        """Returns the recommendations of questions, all of which are computed together.

        Args:
          questions: users and histories, with candidates or without.
          on_refused: called with each question that cannot be answered; the others are. None raises
            the error of the first.

        Raises:
          InputError: without ``on_refused``: names the question and what cannot be used.
        """
        start = time.perf_counter()
        prepared: list[PreparedQuestion] = []
        for question in questions:
            with _refusing(question, on_refused):
                prepared.append(self._prepared(question))
        prepare_tools([one.prompted for one in prepared])
        answers: dict[PreparedQuestion, Recommendation] = {}

        def end(one: PreparedQuestion, trajectory: Trajectory) -> None:
            answers[one] = self.finish(one, trajectory, seconds=time.perf_counter() - start)

        if prepared:
            self._run([Arrival(one.prompted, functools.partial(end, one)) for one in prepared])
        return [answers[one] for one in prepared]

    def prepare(self, question: Question) -> PreparedQuestion:
        """Returns a question that `serve` can take: checked, with its candidates and its prompt.

        It waits for no call of other threads.

        Raises:
          InputError: names what cannot be used.
        """
        prepared = self._prepared(question)
        prepare_tools([prepared.prompted])
        return prepared

    def serve(self, arrivals: Callable[[int], Sequence[Arrival]]) -> None:
        """Lets the policy answer prepared questions that arrive, until there are none.

        Needs a ``tool_timeout``: the order of answers is that of time.

        Args:
          arrivals: called in this thread with the number of free slots whenever there are some;
            returns at most so many episodes, which join those that run.
        """
        self._run([], arrivals)

    def finish(
        self, question: PreparedQuestion, trajectory: Trajectory, *, seconds: float
    ) -> Recommendation:
        """Returns the answer of a question's trajectory.

        Args:
          question: the question.
          trajectory: its trajectory.
          seconds: since the question was asked.
        """
        words = self.run.config.tools.title_words
        return policys_answer(question, trajectory, words=words, seconds=seconds)

    @property
    def telemetry(self) -> Mapping[str, float]:
        """Counters of the engine's newest call, which grow as it runs; see `COUNTERS`."""
        return self._engine.telemetry

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the tools that the policy can call."""
        return self._agent.toolbox.names

    def sasrec_scores(self, question: Question) -> Float[np.ndarray, "I"]:
        """Returns SASRec's score of each item of the catalog, by code; candidates do not matter.

        Raises:
          InputError: names the user or the history that cannot be used.
        """
        request = read_question(question, self.run.data.log)
        return catalog_scores(self._agent.artifacts, request, request.items.tolist())

    def _use(self, artifacts: Artifacts) -> None:
        self._agent = self.run.agent(artifacts, stop_on_illegal=False)
        # The newest agent with new items: the agent that it was made of, the items, itself.
        self._extended: tuple[Agent, tuple[NewItem, ...], Agent] = (self._agent, (), self._agent)

    def _run(
        self,
        first: Sequence[Arrival],
        arrivals: Callable[[int], Sequence[Arrival]] | None = None,
    ) -> None:
        with self._lock:
            run_prepared(
                self._engine,
                self.run.policy.params,
                first,
                temperature=0.0,
                seed=self.run.config.seed,
                arrivals=arrivals,
            )

    def _prepared(self, question: Question) -> PreparedQuestion:
        """Returns a question for which no tool has prepared anything yet.

        The agent's catalog has the question's new items behind its own, its log the user's events
        alone: no question sees what belongs to another.
        """
        log = self.run.data.log
        base = self._agent
        request = self._with_candidates(read_question(question, log), base.artifacts)
        new = tuple(item for item in request.candidates if isinstance(item, NewItem))
        codes = {item: log.num_items + i for i, item in enumerate(new)}
        agent = self._with_new_items(base, new)
        agent = dataclasses.replace(agent, log=log_of(request, agent.log))
        example = example_of(
            request,
            [codes.get(item, item) for item in request.candidates],
            example_id=len(log),
            position=len(agent.log),
            max_history=self.run.config.dataset.max_history,
        )
        prompted = prepare_episode(agent, Task(example))
        tokens, longest = len(prompted.prompt), self._longest_prompt
        expect(
            tokens <= longest, f"{question.where}, prompt", f"{tokens} tokens", f"at most {longest}"
        )
        return PreparedQuestion(request, prompted)

    def _with_candidates(self, request: Request, artifacts: Artifacts) -> Request:
        """Returns the request with candidates, retrieved if it has none.

        Retrieved ones are shuffled, as those that the policy was trained on: the prompt does not
        say which method found which item.
        """
        if request.candidates is not None:
            return request
        history = request.items.tolist()
        items = retrieve(artifacts, request, history, self._retrieved)
        where = f"{request.question.where}, retrieved candidates"
        expect(len(items) >= FEWEST, where, len(items), f"at least {FEWEST}")
        shuffled = np.random.default_rng([self.run.config.seed, *history]).permutation(items)
        return dataclasses.replace(request, candidates=tuple(shuffled.tolist()))

    def _with_new_items(self, base: Agent, new: tuple[NewItem, ...]) -> Agent:
        """Returns an agent with new items behind those of its catalog."""
        if not new:
            return base
        made_of, items, agent = self._extended
        if made_of is not base or items != new:
            data = self.run.data
            log = dataclasses.replace(data.log, items=with_new_items(data.log.items, new))
            extended = copy.copy(self.run)  # with what it has loaded, for its tools and prompts
            extended.data = dataclasses.replace(data, log=log)
            artifacts = base.artifacts.extended(len(new))
            agent = extended.agent(artifacts, stop_on_illegal=False)
            self._extended = (base, new, agent)
        return agent


def serving_sizes(config: EngineConfig, tool_timeout: float | None = None) -> EngineConfig:
    """Returns the sizes of an engine that answers few requests at once as well as many.

    With a ``tool_timeout`` rows do not wait for the tools of other rows.
    """
    rows = config.row_buckets or ROWS
    config = dataclasses.replace(config, slots=min(config.slots, SLOTS), row_buckets=rows)
    if tool_timeout is None:
        return config
    return dataclasses.replace(config, tool_timeout=tool_timeout, deterministic=False)


@contextlib.contextmanager
def _refusing(question: Question, on_refused: OnRefused | None) -> Iterator[None]:
    """Passes an InputError of the block to ``on_refused``, if there is one."""
    try:
        yield
    except InputError as error:
        if on_refused is None:
            raise
        on_refused(question, error)
