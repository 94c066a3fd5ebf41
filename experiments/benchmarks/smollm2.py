"""Compares numbers and speed of SmolLM2-135M with those of transformers.

``python -m experiments.benchmarks.smollm2 --policy=DIR --peer_python=PYTHON --json=FILE`` takes a
directory of ``experiments.convert_smollm2`` and an interpreter with torch and transformers. Without
``--peer_python`` only our figures are measured. All works run in float32, on ``--threads`` cores:

- ``perplexity`` of ``PARAGRAPH``, of the same ids;
- ``prefill``: 512 tokens of one prompt, with keys and values and the next token. Ours is the
  rollout engine with one sampled token, theirs one forward pass with logits of the last position;
- ``forward and backward``: 512 tokens of one row, mean cross-entropy, gradients of all parameters.
  Ours is the learner's loss with its log-probs, as in training; ``of the bare model`` is a loss on
  plain logits;
- ``decode``: 128 greedy tokens after a prompt of 64, in 1 row and in 8, prefill included. Ours is
  the rollout engine, theirs ``generate``.

Each model has a process. They take turns, work by work, so that drift of the machine affects both;
the waiting one is asleep. Speeds are medians of ``--repeats`` turns after a warm-up; ``bound`` is
the least speed that is required of ours.
"""

import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from transformers import AutoTokenizer

from agenticrec_jax.cli import app
from agenticrec_jax.contrib.smollm2 import NEVER, make_greedy
from agenticrec_jax.errors import expect
from agenticrec_jax.losses import for_batch, sft_loss
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.training.logprobs import policy_logprobs
from agenticrec_jax.training.types import RolloutBatch
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peers import Peer

# Data: the recorded perplexities are of these very words.
PARAGRAPH = (
    "The old library stood at the end of the street, between a bakery and a shop that repaired "
    "bicycles. On rainy afternoons the children of the neighbourhood came in to read by the tall "
    "windows, and the librarian, who had worked there for thirty years, knew what each of them "
    "liked. She kept a small notebook in which she wrote down every book that was borrowed and the "
    "one that was asked for next. After a while she noticed that people who read about the sea "
    "often came back for stories about the stars, and that those who loved gardens wanted to learn "
    "how to cook. So she began to leave a second book on the table, without saying a word, and "
    "most of the time it was taken home with the first."
)
TURN = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@dataclasses.dataclass(frozen=True)
class Work:
    """A timed work.

    Attributes:
      name: name of its row.
      tokens: tokens of its speed.
      least: required ratio of our speed to the peer's.
      ours: runs it once and returns its seconds and the values to compare.
      request: the peer's request.
    """

    name: str
    tokens: int
    least: float | None
    ours: Callable[[], dict]
    request: dict


def mean_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of every token but the first."""
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1).mean()


def perplexity(model: Qwen3, ids: list[int]) -> float:
    """Returns the exponential of the mean loss of ``ids`` after the first."""
    row = jnp.array([ids])
    return math.exp(jax.jit(lambda model: mean_loss(model(row), row))(model))


def learner_loss(model: Qwen3, ids: jax.Array) -> jax.Array:
    """Returns the learner's mean loss of one row [1, T].

    The row is a demonstration of T - 1 tokens after a prompt of one.
    """
    rest = ids[:, None, 1:]
    real = jnp.ones(rest.shape, bool)
    one = jnp.ones((1, 1))
    zeros = jnp.zeros(rest.shape)
    weights = one / rest.shape[-1]
    batch = RolloutBatch(ids[:, :1], one > 0, rest, real, real, zeros, one, weights)
    return for_batch(sft_loss)(policy_logprobs(model, batch)[0], batch)[0]


def plain_loss(model: Qwen3, ids: jax.Array) -> jax.Array:
    """Returns the mean loss of one row [1, T] on the model's logits."""
    return mean_loss(model(ids), ids)


def make_gradient(model: Qwen3, loss: Callable, ids: np.ndarray) -> Callable[[], dict]:
    """Returns a function that runs ``loss`` and its gradients of all parameters."""
    graphdef, params = nnx.split(model)
    run = jax.jit(jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), jnp.array(ids))))

    def once() -> dict:
        start = time.perf_counter()
        value, gradients = jax.block_until_ready(run(params))
        seconds = time.perf_counter() - start
        squares = [float(jnp.vdot(x, x)) for x in jax.tree.leaves(gradients)]
        return {"seconds": seconds, "loss": float(value), "norm": math.sqrt(sum(squares))}

    return once


def make_generate(model: Qwen3, prompts: np.ndarray, tokens: int) -> Callable[[], dict]:
    """Returns a function that continues prompts [rows, T] greedily in the rollout engine."""
    greedy = make_greedy(model, prompts.tolist(), tokens, NEVER)

    def once() -> dict:
        start = time.perf_counter()
        ids = greedy()
        return {"seconds": time.perf_counter() - start, "ids": ids}

    return once


def works(model: Qwen3, long: int = 512, prompt: int = 64, new: int = 128) -> list[Work]:
    """Returns the works on random ids: a row of ``long``, and 8 prompts continued by ``new``."""
    rng = np.random.default_rng(0)
    row, prompts = (
        rng.integers(20, model.config.vocab_size, shape) for shape in ((1, long), (8, prompt))
    )
    ids = row.tolist()
    timed = [
        Work("prefill", long, 0.9, make_generate(model, row, 1), {"work": "prefill", "ids": ids}),
        Work(
            "forward and backward",
            long,
            0.9,
            make_gradient(model, learner_loss, row),
            {"work": "gradient", "ids": ids},
        ),
        Work(
            "forward and backward of the bare model",
            long,
            None,
            make_gradient(model, plain_loss, row),
            {"work": "gradient", "ids": ids},
        ),
    ]
    for rows in (1, 8):
        request = {"work": "decode", "ids": prompts[:rows].tolist(), "tokens": new}
        once = make_generate(model, prompts[:rows], new)
        timed.append(Work(f"decode, batch {rows}", rows * new, 1.5, once, request))
    return timed


def take_turns(todo: list[Work], peer: Peer | None, repeats: int) -> dict[str, list[tuple]]:
    """Returns by work the answers of each turn, (ours, the peer's); the first turn warms up.

    The order of the sides alternates.
    """
    answers = {work.name: [] for work in todo}
    for turn in range(1 + repeats):
        for work in todo:
            runs = [work.ours, functools.partial(peer.ask, **work.request) if peer else dict]
            in_order = [run() for run in (runs if turn % 2 else runs[::-1])]
            answers[work.name].append(tuple(in_order if turn % 2 else in_order[::-1]))
    return answers


def measure(directory: str, python: str, threads: int, repeats: int, **sizes: int) -> list[dict]:
    """Returns the rows of a policy directory.

    Args:
      directory: the policy.
      python: the peer's interpreter; empty for none.
      threads: cores of the peer.
      repeats: timed turns of each work.
      sizes: sizes of `works`.
    """
    model = load_policy(directory, dtype="float32")
    todo = works(model, **sizes)
    if not python:
        return quality(model, directory, None) + speeds(todo, None, repeats)
    with Peer("peer_python", python, "smollm2_peer.py", directory, str(threads)) as peer:
        return quality(model, directory, peer) + speeds(todo, peer, repeats)


def quality(model: Qwen3, directory: str, peer: Peer | None) -> list[dict]:
    """Returns the rows that compare the numbers."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.encode(PARAGRAPH, add_special_tokens=False)
    ours = perplexity(model, ids)
    if peer is None:
        return [figure("perplexity of the paragraph", "", ours)]
    name = "{transformers} on torch {torch}".format(**peer.ask(work="versions"))
    theirs = math.exp(peer.ask(work="loss", ids=[ids])["loss"])
    turn = tokenizer.encode(TURN, add_special_tokens=False)
    [reply] = make_generate(model, np.array([turn]), 64)()["ids"]
    [peer_reply] = peer.ask(work="decode", ids=[turn], tokens=64)["ids"]
    other_ids = peer.ask(work="encode", text=PARAGRAPH)["ids"]
    return [
        figure("perplexity of the paragraph", "", ours, theirs, f"transformers {name}"),
        figure("perplexity: difference", "millionths", abs(ours / theirs - 1) * 1e6, bound=100),
        figure("ids of the paragraph", "equal of theirs", same(ids, other_ids), len(other_ids)),
        figure("greedy reply", "equal of theirs", same(reply, peer_reply), len(peer_reply)),
    ]


def same(ours: list[int], theirs: list[int]) -> int:
    """Counts the equal ids before the first that differs."""
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def speeds(todo: list[Work], peer: Peer | None, repeats: int) -> list[dict]:
    """Returns the rows of the timed works."""
    rows = []
    for work, turns in zip(todo, take_turns(todo, peer, repeats).values(), strict=True):
        ours, theirs = (
            [work.tokens / side["seconds"] for side in sides if side]
            for sides in zip(*turns[1:], strict=True)
        )
        peer_speed = statistics.median(theirs) if theirs else None
        bound = work.least * peer_speed if work.least and peer_speed else None
        rows.append(figure(work.name, "tokens/s", statistics.median(ours), peer_speed, bound=bound))
        rows += agreement(work, *turns[-1]) if peer else []
    return rows


def agreement(work: Work, ours: dict, theirs: dict) -> list[dict]:
    """Returns the relative differences of loss and norm from the peer's, in millionths."""
    return [
        figure(
            f"{work.name}: {key}, difference",
            "millionths",
            abs(ours[key] / theirs[key] - 1) * 1e6,
            bound=100,
        )
        for key in ("loss", "norm")
        if key in ours
    ]


def main(argv) -> None:
    del argv
    cores = sorted(os.sched_getaffinity(0))
    threads = _THREADS.value
    expect(threads <= len(cores), "flag --threads", threads, f"at most {len(cores)}")
    os.sched_setaffinity(0, cores[:threads])  # the peer's process inherits it
    publish(
        lambda: measure(_POLICY.value, _PEER_PYTHON.value, threads, _REPEATS.value), _JSON.value
    )


if __name__ == "__main__":
    _POLICY = flags.DEFINE_string("policy", None, "Policy directory to load.", required=True)
    _PEER_PYTHON = flags.DEFINE_string("peer_python", "", "Interpreter with torch; empty for none.")
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _THREADS = flags.DEFINE_integer("threads", 2, "Cores of both sides.", lower_bound=1)
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns of each work.", lower_bound=1)
    app.run(main)
