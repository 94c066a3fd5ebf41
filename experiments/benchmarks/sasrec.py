"""SASRec on ml-100k beside one file of PyTorch and RecBole: how well it ranks and how fast.

``python -m experiments.benchmarks.sasrec --recbole_python=A --torch_python=B --json=FILE`` takes
interpreters that have recbole 1.2.1 and torch; without one, its figures are left out. The data is
the example that comes with RecBole: ``--data=ml-100k.inter``, or that of the interpreter.

Of each of the 943 users the last event is the test and the one before it validates. A pass goes
once over the targets of a window of each user, the newest 51 events before those: 38,762 targets.
All sides have windows of 50 items, width 64, two layers and a softmax over the catalog of 1,682.

- ``trained``: the mean of ``--seeds`` seeds, in hundredths. Ours learns from all 97,171 targets
  before the two events (those of RecBole's epoch) in ``EPOCHS`` epochs, which a minute allows,
  compilation included. Dropout, rate, heads and the norm of embeddings come from partial searches
  by hand with seed 0 and seeds from 11 on, by NDCG@10 of the validation event, seen items kept and
  masked; they showed the test's beside it, so the seeds here are others, from 1 on. PyTorch's
  makes ``TORCH_PASSES`` passes over the windows. NDCG@10 of the test among all items, with the seen
  ones (all events before) kept and masked; HR@10 and NDCG@10 among 100 drawn items that the user
  never took.
- ``pass``: one pass over the windows, compiled before. RecBole's is an epoch of its trainer over
  its 97,171 samples, timed once.
- ``full ranking``: states and ranks of 943 users, seen items kept.

Processes take turns; the one that waits is asleep. Times are medians of ``--repeats`` turns after
one that warms up; bounds are what is asked of ours.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import statistics

import jax
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.errors import InputError
from agenticrec_jax.metrics.ranking import hr_at_k, ndcg_at_k
from agenticrec_jax.sequential.evaluation import catalog_ranks, draw_unseen, sampled_ranks
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import PAD, pad_histories, shuffled_batches, user_windows
from agenticrec_jax.sequential.training import (
    SequentialTraining,
    epoch_for,
    train_on_sequences,
)
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peer_loop import Stopwatch
from experiments.benchmarks.peers import Peer
from experiments.benchmarks.turns import Turns, median, one_turn

LENGTH, WIDTH, BLOCKS, NEGATIVES = 50, 64, 2, 100
TARGETS = 38_762
EPOCHS, BATCH, DROPOUT, RATE = 42, 64, 0.35, 2e-3
TORCH_PASSES = 40
TIMES = {"seconds": ("wall", "s"), "cpu": ("CPU", "CPU-s")}
BOUNDS = {
    "NDCG@10, seen kept": 6.4,
    "NDCG@10, seen masked": 10.6,
    "HR@10 of 1 + 100": 73.0,
    "NDCG@10 of 1 + 100": 45.5,
}


def read_sequences(path: str) -> tuple[list[np.ndarray], int]:
    """Item codes of each user in ml-100k's ``.inter`` file, oldest first, and how many items.

    Equal times keep the order of the file.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"flag --data: found no file {path!r}, expected ml-100k.inter")
    columns = np.loadtxt(path, np.int64, skiprows=1, usecols=(0, 1, 3))
    user, item, _ = columns[np.lexsort((columns[:, 2], columns[:, 0]))].T
    _, codes = np.unique(item, return_inverse=True)
    starts = np.unique(user, return_index=True)[1]
    return np.split(codes, starts[1:]), int(codes.max()) + 1


class Protocol:
    """What all sides are trained on and asked.

    Attributes:
      taught: [U] codes of what each user is taught by: all but the last two events.
      windows: [U, L + 1] the newest of them, what a pass goes over.
      places: the targets of a pass.
      histories, targets: what is judged, with ``negatives`` [U, 100] that a user never took.
    """

    def __init__(self, sequences: list[np.ndarray], items: int):
        self.items = items
        self.taught = [s[:-2] for s in sequences]
        self.windows = user_windows([s[-LENGTH - 1 :] for s in self.taught], LENGTH)
        self.places = int((self.windows[:, :-1] != PAD).sum())
        self.histories = [s[:-1] for s in sequences]
        self.targets = np.array([s[-1] for s in sequences])
        self.negatives = draw_unseen(sequences, items, NEGATIVES, seed=0)

    def quality(self, ranks: dict) -> dict[str, float]:
        """The named figures of ranks ``kept``, ``masked`` and ``sampled``."""
        sampled = ranks["sampled"]
        values = ndcg_at_k(ranks["kept"], 10), ndcg_at_k(ranks["masked"], 10)
        values += hr_at_k(sampled, 10), ndcg_at_k(sampled, 10)
        return {name: 100 * x for name, x in zip(BOUNDS, values, strict=True)}


class Ours:
    """Our SASRec; works answer as a peer's do."""

    def __init__(self, protocol: Protocol):
        self.protocol = protocol
        self.config = config_of(protocol.items)
        self.model = Sasrec(self.config, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(Sasrec(self.config, rngs=nnx.Rngs(0)))
        optimizer, self._epoch = epoch_for(protocol.windows, graphdef, training_of(0))
        self._carry = params, optimizer.init(params)
        self._shuffle = np.random.default_rng(0)

    def train(self) -> dict:
        """One pass of a training of its own."""
        with Stopwatch() as watch:
            batches = shuffled_batches(self.protocol.windows, BATCH, self._shuffle)
            *self._carry, loss = self._epoch(*self._carry, batches, jax.random.key(0))
            loss = float(loss)
        return watch.took | {"loss": loss}

    def fit(self, seed: int) -> dict:
        """Trains a model from the start, compilation included."""
        with Stopwatch() as watch:
            training = training_of(seed)
            model = Sasrec(self.config, rngs=nnx.Rngs(seed))
            self.model = train_on_sequences(model, self.protocol.taught, training)
        return watch.took

    def ranks(self) -> dict:
        """Ranks of the test events by the model as it is."""
        asked, table = self.protocol, self.model.item_embeddings
        with Stopwatch() as watch:
            states = user_states(self.model, asked.histories, batch=64)
            kept = catalog_ranks(states, table, asked.targets)
        masked = catalog_ranks(states, table, asked.targets, asked.histories)
        sampled = sampled_ranks(states, table, asked.targets, asked.negatives)
        return watch.took | {"kept": kept, "masked": masked, "sampled": sampled}


def config_of(items: int) -> SasrecConfig:
    """Our model for a catalog of so many items."""
    sizes = items, LENGTH, WIDTH, BLOCKS
    return SasrecConfig(*sizes, heads=1, dropout=DROPOUT, embedding_norm=True)


def training_of(seed: int) -> SequentialTraining:
    """The schedule of a seed."""
    return SequentialTraining(
        EPOCHS, BATCH, learning_rate=RATE, rate_decay=True, seed=seed, packed=True
    )


class Torch:
    """The works of ``sasrec_torch`` in its process."""

    def __init__(self, peer: Peer, protocol: Protocol):
        self._peer, self.protocol = peer, protocol
        self.name = "torch {torch}".format(**peer.ask(work="versions"))
        self.train = functools.partial(peer.ask, work="train", passes=1)

    def fit(self, seed: int) -> dict:
        """A new network, trained."""
        sizes = {"items": self.protocol.items, "width": WIDTH, "blocks": BLOCKS}
        self._peer.ask(work="start", windows=self.protocol.windows.tolist(), seed=seed, **sizes)
        return self._peer.ask(work="train", passes=TORCH_PASSES)

    def ranks(self) -> dict:
        """Ranks of the test events."""
        asked = self.protocol
        seen = [history.tolist() for history in asked.histories]
        histories = pad_histories(seen, LENGTH).tolist()
        lists = {"targets": asked.targets.tolist(), "negatives": asked.negatives.tolist()}
        return self._peer.ask(work="ranks", histories=histories, seen=seen, **lists)


def quality(side: Ours | Torch, seeds: int) -> dict[str, float]:
    """The figures of a side, means over seeds, and the median wall and CPU seconds of a fit."""
    found = []
    for seed in range(1, 1 + seeds):
        took = side.fit(seed)
        ranks = side.ranks()
        found.append(side.protocol.quality(ranks) | {k: took[k] for k in TIMES})
    means = {name: statistics.mean(x[name] for x in found) for name in BOUNDS}
    return means | {k: statistics.median(x[k] for x in found) for k in TIMES}


def take_turns(sides: list[Ours | Torch], work: str, repeats: int) -> list[dict[str, float]]:
    """By side, the median times of a work after a turn that warms up."""
    turns: Turns = [
        one_turn([getattr(side, work) for side in sides], turn) for turn in range(1 + repeats)
    ]
    return [{k: median(turns, side, k) for k in TIMES} for side in range(len(sides))]


def rows_of(name: str, found: list[dict], peer: str | None, bounds: dict) -> list[dict]:
    """A row for each figure of ours, beside that of a peer if there is one."""
    theirs = found[1] if peer else {}
    rows = []
    for key, value in found[0].items():
        what, unit = TIMES.get(key, (key, "%"))
        rows.append(figure(f"{name}: {what}", unit, value, theirs.get(key), peer, bounds.get(key)))
    return rows


def recbole_rows(peer: Peer, ours: dict[str, float], epochs: int) -> list[dict]:
    """Our pass beside an epoch of RecBole, and how well it ranks after ``epochs`` of them."""
    name = "recbole {recbole} on torch {torch}".format(**peer.ask(work="versions"))
    samples = peer.ask(work="start", length=LENGTH, width=WIDTH, blocks=BLOCKS, seed=0)["samples"]
    times = [peer.ask(work="train", passes=1) for _ in range(epochs)]
    theirs = {k: statistics.median(x[k] for x in times) for k in TIMES}
    found = peer.ask(work="evaluate")["ndcg@10"]
    return [
        *rows_of("pass", [ours, theirs], name, {}),
        figure(f"targets of an epoch of {name}", "", samples),
        figure(f"NDCG@10, seen kept, after {epochs} epochs of {name}", "%", 100 * found),
    ]


def measure(protocol: Protocol, torch: Peer | None, recbole: Peer | None, **sizes) -> list[dict]:
    """All figures; ``sizes`` are ``seeds``, ``repeats`` and ``epochs`` (RecBole's)."""
    sides: list[Ours | Torch] = [Ours(protocol)] + ([Torch(torch, protocol)] if torch else [])
    name = sides[1].name if torch else None
    rows = [figure("targets of a pass", "", protocol.places, bound=TARGETS)]
    found = [quality(side, sizes["seeds"]) for side in sides]
    rows += rows_of("trained", found, name, BOUNDS | {"seconds": 60.0})
    passes = take_turns(sides, "train", sizes["repeats"])
    rows += rows_of("pass", passes, name, {"seconds": 0.6})
    ranking = take_turns(sides, "ranks", sizes["repeats"])
    rows += rows_of("full ranking", ranking, name, {"seconds": 0.1})
    return rows + (recbole_rows(recbole, passes[0], sizes["epochs"]) if recbole else [])


def main(argv) -> None:
    del argv
    if not _DATA.value and not _RECBOLE.value:
        raise InputError("flag --data: found none, expected ml-100k.inter or a --recbole_python")
    sizes = {"seeds": _SEEDS.value, "repeats": _REPEATS.value, "epochs": _RECBOLE_EPOCHS.value}
    threads = str(os.cpu_count())
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer(flag.name, flag.value, script, threads))
            if flag.value
            else None
            for flag, script in ((_TORCH, "sasrec_torch.py"), (_RECBOLE, "sasrec_recbole.py"))
        ]
        data = _DATA.value or peers[1].ask(work="dataset")["path"]
        protocol = Protocol(*read_sequences(data))
        ours = {"config": config_of(protocol.items), "training": training_of(1)}
        settings = sizes | {name: dataclasses.asdict(found) for name, found in ours.items()}
        publish(lambda: measure(protocol, *peers, **sizes), _JSON.value, settings=settings)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", "", "ml-100k.inter; empty for that of RecBole's package.")
    _TORCH = flags.DEFINE_string("torch_python", "", "Interpreter with torch; empty for none.")
    _RECBOLE = flags.DEFINE_string("recbole_python", "", "The same with recbole 1.2.1.")
    _RECBOLE_EPOCHS = flags.DEFINE_integer("recbole_epochs", 1, "Epochs of RecBole.", lower_bound=1)
    _SEEDS = flags.DEFINE_integer("seeds", 3, "Trained models of each side.", lower_bound=1)
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns of each work.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
