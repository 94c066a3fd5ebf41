"""Times the rollout engine beside systems that do not pause, splice, refill or share a prompt.

``python -m experiments.benchmarks.rollout --tunix_python=PYTHON --torch_python=PYTHON --json=FILE``
takes interpreters with google-tunix, and with torch and transformers; without one, its figures are
left out. All sides run a random float32 Qwen3 of 27.3M parameters on rows of one length:

- ``rows``: 8 prompts of 256 tokens, 128 sampled in each, with log-probs; and with top-p .95;
- ``conversations``: 8 of 256 tokens, three turns of 32 sampled tokens with observations of 32
  tokens between them. The peers compute a conversation from its start in every turn;
- ``group``: the same with one prompt for all.

``rows, Qwen3's vocabulary`` and its top-p are the first two with 64 tokens, sampled of 151,936 ids.

``limit`` is the least time on this machine (``rollout_limit``). ``mixed lengths`` runs
conversations of prompts and observations of different lengths twice, to count compilations (ours
compiles all shapes before the first call). ``occupancy`` is described in ``rollout_occupancy``.

Processes take turns, work by work; the waiting ones are asleep. CPU seconds are those of a process
with all its threads. Figures are medians of ``--repeats`` turns, after one that compiles, which is
reported alone. No compiled program is reused between runs.
"""

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request, Rollout
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.types import SAMPLED
from experiments.benchmarks import rollout_limit, rollout_occupancy
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peer_loop import Compilations, Stopwatch
from experiments.benchmarks.peers import Peer
from experiments.benchmarks.shapes import REFERENCE, WIDE
from experiments.benchmarks.turns import Turns, median, one_turn, saving, timings

PAD = 0
NEVER = 2**30  # an id that is never sampled


@dataclasses.dataclass(frozen=True)
class Work:
    """Conversations: a prompt, then turns of sampled tokens with an observation between two.

    Attributes:
      name: name of the work.
      rows: number of conversations.
      prompt: shortest and longest length of a prompt.
      turns: turns of a conversation.
      new: sampled tokens of a turn.
      observed: shortest and longest length of an observation.
      shared: whether all rows have one prompt.
      top_p: of sampling.
      least: required ratio of Tunix's CPU time to ours.
      ahead: whether our engine compiles its shapes, of few buckets, before the first call.
    """

    name: str
    rows: int
    prompt: tuple[int, int]
    turns: int
    new: int
    observed: tuple[int, int] = (0, 0)
    shared: bool = False
    top_p: float = 1.0
    least: float | None = None
    ahead: bool = False

    def draw(self, vocabulary: int, seed: int) -> tuple[list, list]:
        """Draws prompts [rows][ids] and observations [turns - 1][rows][ids]."""
        rng = np.random.default_rng(seed)

        def ids(lengths: tuple[int, int]) -> list[int]:
            return rng.integers(3, vocabulary, rng.integers(lengths[0], lengths[1] + 1)).tolist()

        prompts = [ids(self.prompt)] * self.rows if self.shared else None
        prompts = prompts or [ids(self.prompt) for _ in range(self.rows)]
        return prompts, [[ids(self.observed) for _ in prompts] for _ in range(self.turns - 1)]

    @property
    def columns(self) -> int:
        """Least cache of a sampler that pads its prompts to powers of two, as Tunix does."""
        longest = self.prompt[1] + (self.turns - 1) * (self.new + self.observed[1])
        return 2 ** (longest - 1).bit_length() + self.new


WORKS = (
    Work("rows", 8, (256, 256), 1, 128, least=1.4),
    Work("rows, top-p .95", 8, (256, 256), 1, 128, top_p=0.95, least=1.5),
    Work("conversations", 8, (256, 256), 3, 32, (32, 32), least=3.8),
    Work("group", 8, (256, 256), 3, 32, (32, 32), shared=True, least=5.4),
)
WIDE_WORKS = (
    Work("rows, Qwen3's vocabulary", 8, (256, 256), 1, 64),
    Work("rows, Qwen3's vocabulary, top-p .95", 8, (256, 256), 1, 64, top_p=0.95),
)
MIXED = Work("mixed lengths", 8, (40, 200), 3, 32, (8, 64), ahead=True)
CALLS = 8  # calls of one run of mixed lengths


class Ours:
    """Our engine on a random policy, one for each work; ``rollout`` answers like a peer."""

    def __init__(self, config: Qwen3Config):
        self.model = Qwen3(config, rngs=nnx.Rngs(0))
        self._split = nnx.split(self.model)
        self._engines: dict[str, Engine] = {}
        self._compilations = Compilations(jax.monitoring)

    def engine(self, work: Work) -> Engine:
        """Returns the engine of a work, with a slot for each row."""
        if work.name not in self._engines:
            sizes = EngineConfig(
                slots=work.rows,
                prompt_buckets=buckets(*work.prompt),
                splice_buckets=buckets(work.observed[0] + 1, work.observed[1] + 1),
                max_tokens=work.turns * work.new + (work.turns - 1) * work.observed[1],
                turn_tokens=work.new,
                row_buckets=(work.rows,) if work.ahead else (),
                compile_ahead=work.ahead,
            )
            self._engines[work.name] = Engine(self._split[0], sizes, NEVER, (NEVER,), PAD)
        return self._engines[work.name]

    def rollout(self, work: Work, prompts: list, observations: list, seed: int) -> dict:
        """Runs a work once; the answer includes the rollouts."""
        engine = self.engine(work)
        before = self._compilations.count
        members = 1
        if work.shared:
            members = len(prompts)
            prompts = prompts[:1]
        requests = [Request(tuple(ids), members, (i,)) for i, ids in enumerate(prompts)]
        turns = collections.Counter()

        def respond(request: int, member: int, ids: list[int]) -> Reply:
            row = request * members + member
            turns[row] += 1
            if turns[row] == work.turns:
                return Reply(finish="stop")
            return Reply(tuple(observations[turns[row] - 1][row]))

        with Stopwatch() as watch:
            groups = engine.generate(
                self._split[1],
                requests,
                respond,
                temperature=1.0,
                filters=Filters(top_p=work.top_p),
                seed=seed,
            )
        rollouts = [rollout for group in groups for rollout in group]
        sampled = sum(int((rollout.origin == SAMPLED).sum()) for rollout in rollouts)
        compiled = self._compilations.count - before
        return watch.took | {"sampled": sampled, "compilations": compiled, "rollouts": rollouts}


def buckets(shortest: int, longest: int) -> tuple[int, ...]:
    """Returns ``longest`` and its halves down to ``shortest``, ascending."""
    sizes = [longest]
    while sizes[0] // 2 >= shortest:
        sizes.insert(0, sizes[0] // 2)
    return tuple(sizes)


def rescored(model: Qwen3, prompts: list, rollouts: list[Rollout]) -> float:
    """Returns the largest difference of sampled log-probs from those of a plain forward pass."""
    rows = [list(p) + r.ids.tolist() for p, r in zip(prompts, rollouts, strict=True)]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, padded in zip(rows, ids, strict=True):
        padded[: len(row)] = row
    logprobs = np.asarray(_logprobs(model, ids))
    largest = 0.0
    for i, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        plain = logprobs[i, len(prompt) - 1 : len(rows[i]) - 1]
        gaps = np.abs(plain - rollout.logprobs)[rollout.origin == SAMPLED]
        largest = max(largest, gaps.max())
    return float(largest)


@nnx.jit
def _logprobs(model: Qwen3, ids: jax.Array) -> jax.Array:
    """Returns the log-prob of each id after the first, [B, T - 1]."""
    logprobs = jax.nn.log_softmax(model(ids)[:, :-1])
    return jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1)[..., 0]


def take_turns(work: Work, ours: Ours, peers: Sequence[Peer], seeds: Sequence[int]) -> Turns:
    """Returns the answers [seeds][ours, then the peers] of a work.

    The order of the sides alternates. A work of several lengths draws them again for each seed.
    """
    turns = []
    for turn, seed in enumerate(seeds):
        draw_seed = seed if work.prompt[0] < work.prompt[1] else seeds[0]
        prompts, observations = work.draw(ours.model.config.vocab_size, draw_seed)
        request = {"prompts": prompts, "observations": observations, "seed": seed}
        sides = [functools.partial(ours.rollout, work, **request)]
        request |= {"name": work.name, "new": work.new, "columns": work.columns}
        request["top_p"] = work.top_p
        sides += [functools.partial(peer.ask, work="rollout", **request) for peer in peers]
        answers = one_turn(sides, turn)
        answers[0]["rescored"] = rescored(ours.model, prompts, answers[0].pop("rollouts"))
        turns.append(answers)
    return turns


def measure(tunix: str, torch: str, repeats: int) -> list[dict]:
    """Returns the rows of all works; ``tunix`` and ``torch`` are interpreters, or empty."""
    operations, bandwidth = rollout_limit.rates()
    rows = rollout_limit.figures(operations, bandwidth)
    for shape, works in ((REFERENCE, WORKS), (WIDE, WIDE_WORKS)):
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(peer) for peer in started(shape, tunix, torch)]
            ours = Ours(shape)
            rows += timed(ours, works, peers, bool(tunix), repeats, operations, bandwidth)
            if shape is REFERENCE:
                rows += mixed(ours, peers[:1] if tunix else [])
    return rows + rollout_occupancy.measure()


def started(shape: Qwen3Config, tunix: str, torch: str) -> list[Peer]:
    """Starts the peers whose interpreters are given, Tunix first."""
    fields = strict_json.dumps(dataclasses.asdict(shape))
    cores = str(os.cpu_count())
    peers = [Peer("tunix_python", tunix, "rollout_tunix.py", fields)] if tunix else []
    if torch:
        peers.append(Peer("torch_python", torch, "rollout_transformers.py", fields, cores))
    return peers


def timed(
    ours: Ours,
    works: Sequence[Work],
    peers: Sequence[Peer],
    tunix: bool,
    repeats: int,
    operations: float,
    bandwidth: float,
) -> list[dict]:
    """Returns the rows of works on one policy.

    Args:
      ours: our side.
      works: the works.
      peers: the other sides.
      tunix: whether the first peer is Tunix.
      repeats: turns after the one that compiles.
      operations: operations in a CPU second of this machine.
      bandwidth: bytes in a CPU second of this machine.
    """
    versions = [peer.ask(work="versions") for peer in peers]
    names = [version["name"] for version in versions]
    shape = ours.model.config
    size = sum(x.size for x in jax.tree.leaves(nnx.state(ours.model))) / 1e6
    label = f"parameters, vocabulary {shape.vocab_size}"
    rows = [figure(label, "millions", size)]
    rows += [figure(label, "millions", size, v["size"] / 1e6, v["name"]) for v in versions]
    for work in works:
        turns = take_turns(work, ours, peers, range(1 + repeats))
        rows += timings(work.name, turns, 0, dict(enumerate(names, 1)))
        rows += bounds(work, turns, limit(shape, work, operations, bandwidth))
        if tunix:
            rows.append(saving(work.name, turns, 0, 1, names[0], work.least))
    return rows


def mixed(ours: Ours, peers: Sequence[Peer]) -> list[dict]:
    """Returns the rows of the mixed lengths, beside at most one peer."""
    name = peers[0].ask(work="versions")["name"] if peers else None
    turns = take_turns(MIXED, ours, peers, range(2 * CALLS))
    return mixed_figures(turns, name, ours.engine(MIXED).shapes.buckets({1}))


def limit(shape: Qwen3Config, work: Work, operations: float, bandwidth: float) -> float:
    """Returns the least CPU seconds of this machine for a work (see ``rollout_limit``)."""
    pauses = work.turns - 1
    read = work.prompt[1] * (1 if work.shared else work.rows)
    read += work.rows * pauses * (work.observed[1] + 1)  # with the token that paused
    steps = work.turns * (work.new - 1)  # prefill or splice sample a turn's first token
    mean = work.prompt[1] + (work.turns * work.new + pauses * work.observed[1]) / 2
    return rollout_limit.least_cpu(shape, work.rows, read, steps, mean, operations, bandwidth)


def bounds(work: Work, turns: Turns, least: float) -> list[dict]:
    """Returns the CPU time over this machine's limit, and the error of the log-probs."""
    ratio = median(turns, 0, "cpu") / least
    rows = [
        figure(f"{work.name}: this machine's limit", "CPU-s", least),
        figure(f"{work.name}: beside this machine's limit", "times its CPU", ratio, bound=1),
    ]
    if work.top_p < 1:  # rounding decides the last id of the nucleus, and it changes all log-probs
        return rows
    gap = max(turn[0]["rescored"] for turn in turns) * 1e6
    return [*rows, figure(f"{work.name}: log-probs scored again", "millionths", gap, bound=100)]


def mixed_figures(turns: Turns, name: str | None, declared: dict) -> list[dict]:
    """Returns the compilations and the CPU time of two runs of ``CALLS`` calls each."""
    rows = []
    for run, calls in (("first run", turns[:CALLS]), ("second run", turns[CALLS:])):
        for what, unit, key in (("compilations", "", "compilations"), ("CPU", "CPU-s", "cpu")):
            ours, *peers = (sum(call[side][key] for call in calls) for side in range(len(calls[0])))
            peer = peers[0] if peers else None
            rows.append(figure(f"{MIXED.name}: {what}, {run}", unit, ours, peer, name))
    gap = max(turn[0]["rescored"] for turn in turns) * 1e6
    scored = figure(f"{MIXED.name}: log-probs scored again", "millionths", gap, bound=100)
    return [*rows, scored | {"declared": declared}]


def main(argv) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    publish(
        lambda: measure(_TUNIX.value, _TORCH.value, _REPEATS.value),
        _JSON.value,
        settings={"repeats": _REPEATS.value},
    )


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _TUNIX = flags.DEFINE_string("tunix_python", "", "Interpreter with google-tunix, or none.")
    _TORCH = flags.DEFINE_string("torch_python", "", "Interpreter with transformers, or none.")
    _REPEATS = flags.DEFINE_integer("repeats", 3, "Timed turns of each work.", lower_bound=1)
    app.run(main)
