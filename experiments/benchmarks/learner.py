"""Times the learner's update beside that of a library that computes a prompt for every member.

``python -m experiments.benchmarks.learner --tunix_python=PYTHON --json=FILE`` takes an interpreter
with google-tunix; without one, its figures are left out. An update is forward, backward and AdamW
on one group of 8 completions, of sampled tokens only, of a random Qwen3 of 27.3M parameters in
float32:

- ``shared``: ours, the prompt is computed once for the group;
- ``separate``: ours, each completion is a group, so that the prompt is computed 8 times;
- the peer's: the train step of its trainer with its GRPO loss (see ``learner_tunix``).

All three recompute no layer and have entropies and the gradient's norm among their metrics. No side
computes log-probs of a reference or of the sampler. Ours also clips the gradient's norm.

Operations are those of the compiled programs' matrix products, multiplied by the trip counts of the
loops around them (``dryrun.cost``; ``cost_analysis`` counts a loop's body once). They are reported
beside the rate of one large product on this machine.

``vocabulary`` compares the temporaries of XLA (``memory_analysis``, nothing is run) in the gradient
of 8 rows of 1,024 sampled tokens with Qwen3's vocabulary: ours, with logits in chunks, and that of
a plain forward pass with ``[B, T, V]`` logits and ``log_softmax``. Both use the same policy and
recompute its layers.

Processes take turns; the waiting one is asleep. CPU seconds are those of a process with all its
threads. Figures are medians of ``--repeats`` turns, after one that compiles, which is reported
alone. No compiled program is reused between runs.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.dryrun import cost
from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.models.lora import split_learned
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.training.groups import split_groups
from agenticrec_jax.training.learner import (
    abstract_state,
    init_state,
    make_optimizer,
    make_update,
)
from agenticrec_jax.training.logprobs import CHUNK, policy_logprobs
from agenticrec_jax.training.packing import Packing, abstract_batch, pack_groups
from agenticrec_jax.training.types import Demonstration, Group, RolloutBatch
from agenticrec_jax.types import SAMPLED
from experiments.benchmarks import rollout_limit
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peer_loop import Compilations, Stopwatch
from experiments.benchmarks.peers import Peer
from experiments.benchmarks.shapes import REFERENCE, WIDE
from experiments.benchmarks.turns import Turns, median, one_turn, saving, timings

RATE = 1e-6
SHARED, SEPARATE, PEER = range(3)
FORMS = ("shared", "separate")


@dataclasses.dataclass(frozen=True)
class Work:
    """One group: a prompt and ``members`` completions of ``new`` sampled tokens each.

    Attributes:
      least: required ratios of Tunix's CPU time to that of our two forms.
    """

    prompt: int
    new: int
    members: int = 8
    least: tuple[float | None, float | None] = (None, None)

    @property
    def name(self) -> str:
        """Lengths of the work."""
        return f"{self.prompt} + {self.members} x {self.new}"

    def draw(self, vocabulary: int) -> Group:
        """Draws a random group, without ids that a peer may take for padding."""
        rng = np.random.default_rng(0)
        prompt = rng.integers(3, vocabulary, self.prompt).tolist()
        ids = rng.integers(3, vocabulary, (self.members, self.new))
        advantages = rng.normal(size=self.members).astype(np.float32)
        weights = np.full(self.members, 1 / self.members, np.float32)
        origin = np.full(self.new, SAMPLED)
        return Group(prompt, [Demonstration(row, origin) for row in ids], advantages, weights)

    def batch(self, vocabulary: int, form: str) -> RolloutBatch:
        """Returns the learner's batch: the group, or a group with the prompt for each member."""
        groups = split_groups([self.draw(vocabulary)], self.members if form == "shared" else 1)
        tokens = self.members * (self.prompt + self.new)
        (batch,) = pack_groups(groups, Packing(tokens, 1, 1, group_multiple=len(groups)))
        return batch


WORKS = (Work(256, 256, least=(1.75, 1.15)), Work(1024, 256, least=(2.7, None)))
VOCABULARY_ROWS = 8
VOCABULARY_TOKENS = 1024


class Ours:
    """Our learner on a random policy; ``step`` answers like a peer."""

    def __init__(self, config: Qwen3Config):
        self.config = config
        self._graphdef, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
        self._optimizer = make_optimizer(RATE)
        self._state = init_state(params, self._optimizer)
        self._compilations = Compilations(jax.monitoring)
        self._update = functools.cache(self._make_update)

    def _make_update(self, work: Work):
        loss = for_batch(grpo_loss, normalizer=float(work.new))
        return make_update(self._graphdef, loss, self._optimizer)

    def step(self, work: Work, batch: RolloutBatch) -> dict:
        """Runs one update."""
        before = self._compilations.count
        with Stopwatch() as watch:
            self._state, metrics = self._update(work)(self._state, [batch])
            jax.block_until_ready(self._state)
        return watch.took | {
            "sampled": int(metrics["entropy"][1]),
            "compilations": self._compilations.count - before,
        }

    def gradient(self, work: Work, batch: RolloutBatch) -> Any:
        """Returns the gradient of the loss at the present parameters."""
        update = self._update(work)
        learned, frozen = split_learned(self._state.params)
        return update.accumulate(learned, frozen, update.zeros(learned), batch)[0]

    def operations(self, work: Work, batch: RolloutBatch) -> float:
        """Returns the operations of all matrix products of a compiled update."""
        state = abstract_state(self._state.params, self._optimizer)
        groups, members, new = batch.completions.shape
        shapes = abstract_batch(groups, members, batch.prompts.shape[1], new)
        programs = self._update(work).lower(state, shapes).values()
        return sum(cost.estimate(program.compile().as_text()).flops for program in programs)


def relative_difference(actual: Any, expected: Any) -> float:
    """Returns the largest difference of two gradients, over the largest entry of each leaf."""

    def of_leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.abs(a - b).max() / jnp.abs(b).max()

    return float(max(jax.tree.leaves(jax.tree.map(of_leaf, actual, expected))))


def take_turns(work: Work, ours: Ours, peer: Peer | None, repeats: int) -> Turns:
    """Returns the answers [1 + repeats][``FORMS``, then the peer] of a work."""
    vocabulary = ours.config.vocab_size
    sides = [functools.partial(ours.step, work, work.batch(vocabulary, form)) for form in FORMS]
    if peer:
        group = work.draw(vocabulary)
        request = {
            "work": "update",
            "prompt": group.prompt,
            "advantages": group.advantages.tolist(),
            "completions": [completion.ids.tolist() for completion in group.completions],
        }
        sides.append(functools.partial(peer.ask, **request))
    return [one_turn(sides, turn) for turn in range(1 + repeats)]


def rows_of(work: Work, ours: Ours, turns: Turns, name: str | None, rate: float) -> list[dict]:
    """Returns the rows of a work.

    Args:
      work: the work.
      ours: our side.
      turns: answers of `take_turns`.
      name: name of the peer, or None.
      rate: operations in a CPU second of one large product.
    """
    rows = []
    batches = [work.batch(ours.config.vocab_size, form) for form in FORMS]
    for side, form in enumerate(FORMS):
        label = f"{work.name}, {form}"
        rows += timings(label, turns, side, {PEER: name} if name else {})
        if name:
            rows.append(saving(label, turns, side, PEER, name, work.least[side]))
        operations = ours.operations(work, batches[side])
        rows.append(figure(f"{label}: operations", "10^9", operations / 1e9))
        share = operations / median(turns, side, "cpu") / rate
        rows.append(figure(f"{label}: rate", "of a large product's", share))
    shared, separate = (ours.gradient(work, batch) for batch in batches)
    label = f"{work.name}: gradients, shared against separate"
    worst = relative_difference(shared, separate)
    return [*rows, figure(label, "millionths of a leaf's largest", worst * 1e6, bound=10)]


def vocabulary_memory(config: Qwen3Config, rows: int, tokens: int, chunk: int = CHUNK) -> list:
    """Returns the rows of the memory of log-probs with their gradient."""
    abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract)
    batch = abstract_batch(rows, 1, 1, tokens)

    def chunked(params: Any, batch: RolloutBatch) -> jax.Array:
        return policy_logprobs(nnx.merge(graphdef, params), batch, 1.0, chunk)[0].sum()

    def plain(params: Any, batch: RolloutBatch) -> jax.Array:
        ids = jnp.concatenate([batch.prompts, batch.completions[:, 0]], axis=1)
        logprobs = jax.nn.log_softmax(nnx.merge(graphdef, params)(ids[:, :-1]))
        return jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1).sum()

    def temporaries(function) -> float:
        compiled = jax.jit(jax.grad(function)).lower(params, batch).compile()
        return cost.memory(compiled).temporaries

    ours = temporaries(chunked)
    peer = temporaries(plain)
    label = f"vocabulary {config.vocab_size}, {rows} x {tokens:,}: temporaries"
    return [
        figure(label, "MB", ours / 1e6, peer / 1e6, "[B, T, V] logits"),
        figure(label, "of [B, T, V] logits'", ours / peer, bound=0.25),
    ]


def measure(tunix: str, repeats: int) -> list[dict]:
    """Returns the rows of all works; ``tunix`` is an interpreter, or empty."""
    rate, _ = rollout_limit.rates()
    with contextlib.ExitStack() as stack:
        peer = None
        if tunix:
            peer = Peer(
                "tunix_python",
                tunix,
                "learner_tunix.py",
                strict_json.dumps(dataclasses.asdict(REFERENCE)),
                strict_json.dumps(WORKS[0].members),
                strict_json.dumps(RATE),
            )
            stack.enter_context(peer)
        rows = timed(WORKS, Ours(REFERENCE), peer, repeats, rate)
    recomputed = dataclasses.replace(WIDE, remat="full", scan_layers=True)
    return rows + vocabulary_memory(recomputed, VOCABULARY_ROWS, VOCABULARY_TOKENS)


def timed(
    works: tuple[Work, ...], ours: Ours, peer: Peer | None, repeats: int, rate: float
) -> list[dict]:
    """Returns the rows of works on one policy."""
    name = peer.ask(work="versions")["name"] if peer else None
    rows = [figure("rate of a large product", "10^9 a CPU-s", rate / 1e9)]
    for work in works:
        turns = take_turns(work, ours, peer, repeats)
        rows += rows_of(work, ours, turns, name, rate)
    return rows


def main(argv) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    publish(lambda: measure(_TUNIX.value, _REPEATS.value), _JSON.value)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _TUNIX = flags.DEFINE_string("tunix_python", "", "Interpreter with google-tunix, or none.")
    _REPEATS = flags.DEFINE_integer("repeats", 3, "Timed turns of each work.", lower_bound=1)
    app.run(main)
