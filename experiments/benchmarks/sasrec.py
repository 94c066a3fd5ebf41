"""Measures quality and speed of SASRec on ml-100k beside RecBole and one file of PyTorch.

``python -m experiments.benchmarks.sasrec --recbole_python=A --torch_python=B --json=FILE`` takes
interpreters with recbole 1.2.1 and with torch; without one, its figures are left out. The data is
the example in RecBole's package: ``--data=ml-100k.inter``, or that of the interpreter.

The last event of each of the 943 users is the test, and the one before it the validation. A pass
goes once over one window of each user, the newest 51 events before these two: 38,762 targets. All
sides have windows of 50 items, width 64, two layers and a softmax over the catalog of 1,682.

- ``trained``: the mean of ``--seeds`` seeds, in percent. Ours learns from all 97,171 targets before
  the two events (those of RecBole's epoch) in ``EPOCHS`` epochs, which take less than a minute with
  compilation. Dropout, rate, heads and the norm of embeddings were chosen by hand by NDCG@10 of the
  validation event, seen items kept and masked, with seed 0 and seeds from 11 on. The test's figures
  were visible in these searches, so the seeds here are others, from 1 on. PyTorch's makes
  ``TORCH_PASSES`` passes over the windows. Figures are NDCG@10 of the test among all items, with
  the seen ones (all events before) kept and masked, and HR@10 and NDCG@10 among 100 drawn items
  that the user never took.
- ``pass``: one compiled pass over the windows. RecBole's is an epoch of its trainer over its 97,171
  samples, timed once.
- ``full ranking``: states and ranks of 943 users, seen items kept.

Processes take turns; the waiting one is asleep. Times are medians of ``--repeats`` turns after a
warm-up; bounds are required of ours.
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
from agenticrec_jax.errors import expect
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

LENGTH = 50
WIDTH = 64
BLOCKS = 2
NEGATIVES = 100
TARGETS = 38_762
EPOCHS = 42
BATCH = 64
DROPOUT = 0.35
RATE = 2e-3
TORCH_PASSES = 40
TIMES = {"seconds": ("wall", "s"), "cpu": ("CPU", "CPU-s")}
BOUNDS = {
    "NDCG@10, seen kept": 6.4,
    "NDCG@10, seen masked": 10.6,
    "HR@10 of 1 + 100": 73.0,
    "NDCG@10 of 1 + 100": 45.5,
}


def read_sequences(path: str) -> tuple[list[np.ndarray], int]:
    """Returns each user's item codes in ml-100k's ``.inter`` file, and the number of items.

    Codes are in time order; events of one time are in the order of the file.
    """
    expect(pathlib.Path(path).is_file(), "flag --data", path, "the file ml-100k.inter")
    columns = np.loadtxt(path, np.int64, skiprows=1, usecols=(0, 1, 3))
    user, item, _ = columns[np.lexsort((columns[:, 2], columns[:, 0]))].T
    _, codes = np.unique(item, return_inverse=True)
    starts = np.unique(user, return_index=True)[1]
    return np.split(codes, starts[1:]), int(codes.max()) + 1


class Protocol:
    """Training data and test of all sides.

    Attributes:
      items: I of the catalog.
      train: item codes of each user, without the last two events.
      windows: [U, T + 1] the newest of them, the data of a pass.
      num_targets: targets of a pass.
      histories: item codes of each user before the test event.
      targets: [U] item codes of the test events.
      negatives: [U, 100] drawn items that the user never took.
    """

    def __init__(self, sequences: list[np.ndarray], items: int):
        self.items = items
        self.train = [s[:-2] for s in sequences]
        self.windows = user_windows([s[-LENGTH - 1 :] for s in self.train], LENGTH)
        self.num_targets = int((self.windows[:, :-1] != PAD).sum())
        self.histories = [s[:-1] for s in sequences]
        self.targets = np.array([s[-1] for s in sequences])
        self.negatives = draw_unseen(sequences, items, NEGATIVES, seed=0)

    def quality(self, ranks: dict) -> dict[str, float]:
        """Returns the figures of ``BOUNDS`` in percent."""
        return {
            "NDCG@10, seen kept": 100 * ndcg_at_k(ranks["kept"], 10),
            "NDCG@10, seen masked": 100 * ndcg_at_k(ranks["masked"], 10),
            "HR@10 of 1 + 100": 100 * hr_at_k(ranks["sampled"], 10),
            "NDCG@10 of 1 + 100": 100 * ndcg_at_k(ranks["sampled"], 10),
        }


class Ours:
    """Our SASRec; works answer like a peer's."""

    def __init__(self, protocol: Protocol):
        self.protocol = protocol
        self.config = config_of(protocol.items)
        self.model = Sasrec(self.config, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(Sasrec(self.config, rngs=nnx.Rngs(0)))
        optimizer, self._epoch = epoch_for(protocol.windows, graphdef, training_of(0))
        self._carry = params, optimizer.init(params)
        self._shuffle = np.random.default_rng(0)

    def train(self) -> dict:
        """Runs one pass of a training that goes on from call to call."""
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
            self.model = train_on_sequences(model, self.protocol.train, training)
        return watch.took

    def ranks(self) -> dict:
        """Ranks the test events by the present model."""
        protocol = self.protocol
        table = self.model.item_embeddings
        with Stopwatch() as watch:
            states = user_states(self.model, protocol.histories, batch=64)
            kept_ranks = catalog_ranks(states, table, protocol.targets)
        masked = catalog_ranks(states, table, protocol.targets, protocol.histories)
        sampled = sampled_ranks(states, table, protocol.targets, protocol.negatives)
        return watch.took | {"kept": kept_ranks, "masked": masked, "sampled": sampled}


def config_of(items: int) -> SasrecConfig:
    """Returns the sizes of our model for a catalog."""
    return SasrecConfig(
        items,
        max_length=LENGTH,
        width=WIDTH,
        blocks=BLOCKS,
        heads=1,
        dropout=DROPOUT,
        embedding_norm=True,
    )


def training_of(seed: int) -> SequentialTraining:
    """Returns our schedule."""
    return SequentialTraining(
        EPOCHS, BATCH, learning_rate=RATE, rate_decay=True, seed=seed, packed=True
    )


class Torch:
    """The works of ``sasrec_torch`` in its process."""

    def __init__(self, peer: Peer, protocol: Protocol):
        self._peer = peer
        self.protocol = protocol
        self.name = "torch {torch}".format(**peer.ask(work="versions"))
        self.train = functools.partial(peer.ask, work="train", passes=1)

    def fit(self, seed: int) -> dict:
        """Trains a new network."""
        self._peer.ask(
            work="start",
            windows=self.protocol.windows.tolist(),
            items=self.protocol.items,
            width=WIDTH,
            blocks=BLOCKS,
            seed=seed,
        )
        return self._peer.ask(work="train", passes=TORCH_PASSES)

    def ranks(self) -> dict:
        """Ranks the test events."""
        seen = [history.tolist() for history in self.protocol.histories]
        return self._peer.ask(
            work="ranks",
            histories=pad_histories(seen, LENGTH).tolist(),
            targets=self.protocol.targets.tolist(),
            seen=seen,
            negatives=self.protocol.negatives.tolist(),
        )


def quality(side: Ours | Torch, seeds: int) -> dict[str, float]:
    """Returns a side's mean figures over seeds, and the median wall and CPU seconds of a fit."""
    fits = []
    for seed in range(1, 1 + seeds):
        times = side.fit(seed)
        ranks = side.ranks()
        fits.append(side.protocol.quality(ranks) | {k: times[k] for k in TIMES})
    means = {name: statistics.mean(x[name] for x in fits) for name in BOUNDS}
    return means | {k: statistics.median(x[k] for x in fits) for k in TIMES}


def take_turns(sides: list[Ours | Torch], work: str, repeats: int) -> list[dict[str, float]]:
    """Returns each side's median times of a work, after a warm-up."""
    turns: Turns = [
        one_turn([getattr(side, work) for side in sides], turn) for turn in range(1 + repeats)
    ]
    return [{k: median(turns, side, k) for k in TIMES} for side in range(len(sides))]


def rows_of(name: str, sides: list[dict], peer: str | None, bounds: dict) -> list[dict]:
    """Returns a row for each figure of ours, beside that of a peer if there is one."""
    theirs = sides[1] if peer else {}
    rows = []
    for key, value in sides[0].items():
        label, unit = TIMES.get(key, (key, "%"))
        rows.append(figure(f"{name}: {label}", unit, value, theirs.get(key), peer, bounds.get(key)))
    return rows


def recbole_rows(peer: Peer, ours: dict[str, float], epochs: int) -> list[dict]:
    """Returns our pass beside an epoch of RecBole, and RecBole's quality after ``epochs``."""
    name = "recbole {recbole} on torch {torch}".format(**peer.ask(work="versions"))
    samples = peer.ask(work="start", length=LENGTH, width=WIDTH, blocks=BLOCKS, seed=0)["samples"]
    times = [peer.ask(work="train", passes=1) for _ in range(epochs)]
    theirs = {k: statistics.median(x[k] for x in times) for k in TIMES}
    ndcg = peer.ask(work="evaluate")["ndcg@10"]
    return [
        *rows_of("pass", [ours, theirs], name, {}),
        figure(f"targets of an epoch of {name}", "", samples),
        figure(f"NDCG@10, seen kept, after {epochs} epochs of {name}", "%", 100 * ndcg),
    ]


def measure(
    protocol: Protocol,
    torch: Peer | None,
    recbole: Peer | None,
    *,
    seeds: int,
    repeats: int,
    epochs: int,
) -> list[dict]:
    """Returns all rows.

    Args:
      protocol: training data and test.
      torch: the process of ``sasrec_torch``.
      recbole: the process of ``sasrec_recbole``.
      seeds: trained models of each side.
      repeats: timed turns of each work.
      epochs: epochs of RecBole.
    """
    sides: list[Ours | Torch] = [Ours(protocol)] + ([Torch(torch, protocol)] if torch else [])
    name = sides[1].name if torch else None
    rows = [figure("targets of a pass", "", protocol.num_targets, bound=TARGETS)]
    trained = [quality(side, seeds) for side in sides]
    rows += rows_of("trained", trained, name, BOUNDS | {"seconds": 60.0})
    passes = take_turns(sides, "train", repeats)
    rows += rows_of("pass", passes, name, {"seconds": 0.6})
    ranking = take_turns(sides, "ranks", repeats)
    rows += rows_of("full ranking", ranking, name, {"seconds": 0.1})
    return rows + (recbole_rows(recbole, passes[0], epochs) if recbole else [])


def main(argv) -> None:
    del argv
    data_exists = bool(_DATA.value or _RECBOLE.value)
    expect(data_exists, "flag --data", _DATA.value, "ml-100k.inter, or a --recbole_python")
    sizes = {"seeds": _SEEDS.value, "repeats": _REPEATS.value, "epochs": _RECBOLE_EPOCHS.value}
    threads = str(os.cpu_count())
    with contextlib.ExitStack() as stack:
        torch, recbole = (
            stack.enter_context(Peer(flag.name, flag.value, script, threads))
            if flag.value
            else None
            for flag, script in ((_TORCH, "sasrec_torch.py"), (_RECBOLE, "sasrec_recbole.py"))
        )
        sequences, items = read_sequences(_DATA.value or recbole.ask(work="dataset")["path"])
        protocol = Protocol(sequences, items)
        settings = sizes | {
            "config": dataclasses.asdict(config_of(items)),
            "training": dataclasses.asdict(training_of(1)),
        }
        publish(lambda: measure(protocol, torch, recbole, **sizes), _JSON.value, settings=settings)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", "", "ml-100k.inter; empty for that of RecBole's package.")
    _TORCH = flags.DEFINE_string("torch_python", "", "Interpreter with torch; empty for none.")
    _RECBOLE = flags.DEFINE_string(
        "recbole_python", "", "Interpreter with recbole 1.2.1; empty for none."
    )
    _RECBOLE_EPOCHS = flags.DEFINE_integer("recbole_epochs", 1, "Epochs of RecBole.", lower_bound=1)
    _SEEDS = flags.DEFINE_integer("seeds", 3, "Trained models of each side.", lower_bound=1)
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns of each work.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
