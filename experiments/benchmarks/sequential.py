"""Measures the sequential rows on ml-100k beside RecBole's GRU4Rec, Caser and SASRec.

``python -m experiments.benchmarks.sequential --recbole_python=PYTHON --json=FILE`` takes an
interpreter with recbole 1.2.1 (and numpy below 2) in an environment of its own. Without one it says
so, and needs ``--data=ml-100k.inter``, the file in RecBole's package; RecBole's figures are then
left out.

All sides predict each user's last event among all items, seen ones kept, learn from the events
before the last two, by a softmax over the catalog, and take the epoch with the best NDCG@10 of the
event between. Sizes and dropout are RecBole's defaults, with windows of 50 items and width 64.

- ``NDCG@10``, ``HR@10``: the mean of ``--seeds`` seeds. The bound is RecBole's mean less the half
  of its 95% interval over the seeds (Student's t).
- ``pass``: the median epoch without the first, which compiles ours. One goes over all 97,171
  targets. The bound is a tenth of RecBole's.
"""

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Sequence

import numpy as np
from absl import flags
from flax import nnx
from scipy.stats import t as student

from agenticrec_jax.cli import app
from agenticrec_jax.errors import expect
from agenticrec_jax.metrics.ranking import hr_at_k, ndcg_at_k
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.methods import METHODS
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.training import SequentialTraining, train_on_sequences
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.peers import Peer
from experiments.benchmarks.sasrec import LENGTH, WIDTH, config_of, read_sequences

SCRIPT = "sasrec_recbole.py"
ROWS = {"gru4rec": "GRU4Rec", "caser": "Caser", "sasrec": "SASRec"}  # and RecBole's names
SIZES = {
    "gru4rec": {"units": 128, "dropout": 0.3},
    "caser": {"vertical": 8, "horizontal": 16, "dropout": 0.4},
}
PATIENCE = 10
TIMES_FASTER = 10
QUALITY = ("NDCG@10", "HR@10")


def make_model(row: str, items: int, seed: int):
    """Returns an initialized model of a row."""
    model_type = METHODS[row].model_type
    if row == "sasrec":
        return model_type(config_of(items), rngs=nnx.Rngs(seed))
    sizes = {"items": items, "max_length": LENGTH, "width": WIDTH, **SIZES[row]}
    return model_type(model_type.config_type(**sizes), rngs=nnx.Rngs(seed))


def fit_ours(
    row: str, sequences: Sequence[np.ndarray], items: int, *, seed: int, epochs: int
) -> dict[str, float]:
    """Fits a row on all but the users' last events; returns its figures of these."""
    training = SequentialTraining(
        epochs, batch_size=64, learning_rate=2e-3, seed=seed, packed=True, patience=PATIENCE
    )
    model = train_on_sequences(make_model(row, items, seed), [s[:-1] for s in sequences], training)
    states = user_states(model, [s[:-1] for s in sequences], batch=64)
    ranks = catalog_ranks(states, model.item_embeddings, np.array([s[-1] for s in sequences]))
    return {"NDCG@10": 100 * ndcg_at_k(ranks, 10), "HR@10": 100 * hr_at_k(ranks, 10)}


def pass_of_ours(row: str, sequences: Sequence[np.ndarray], items: int, epochs: int) -> float:
    """Returns the median seconds of an epoch of ours without the first."""
    ends: list[float] = []
    training = SequentialTraining(1 + epochs, batch_size=64, packed=True)
    train_on_sequences(
        make_model(row, items, 0),
        [s[:-2] for s in sequences],
        training,
        on_epoch=lambda *epoch: ends.append(time.perf_counter()),
    )
    return statistics.median(np.diff(ends))


def fit_recbole(peer: Peer, row: str, *, seed: int, epochs: int) -> dict[str, float]:
    """Fits RecBole's model; returns its figures, and its seconds of an epoch as ``pass``."""
    shape = {"length": LENGTH, "width": WIDTH, "blocks": 2, "seed": seed}
    peer.ask(work="start", model=ROWS[row], **shape)
    fitted = peer.ask(work="fit", epochs=epochs, patience=PATIENCE)
    ranked = peer.ask(work="evaluate")
    figures = {"NDCG@10": 100 * ranked["ndcg@10"], "HR@10": 100 * ranked["hr@10"]}
    return figures | {"pass": fitted["seconds"] / fitted["epochs"]}


def half_interval(values: Sequence[float]) -> float:
    """Returns half of the 95% interval of a mean over seeds; 0 for one seed.

    >>> round(half_interval([1.0, 2.0, 3.0]), 3), half_interval([1.0])
    (2.484, 0.0)
    """
    if len(values) < 2:
        return 0.0
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(student.ppf(0.975, len(values) - 1)) * error


def measure(
    sequences: Sequence[np.ndarray],
    items: int,
    recbole: Peer | None,
    *,
    seeds: int,
    epochs: int,
    repeats: int,
) -> list[dict]:
    """Returns all rows.

    Args:
      sequences: item codes of each user, oldest first.
      items: I of the catalog.
      recbole: the process of `SCRIPT`; None for none.
      seeds: fits of each side.
      epochs: most epochs of a fit.
      repeats: timed epochs of ours.
    """
    rows = []
    name = "recbole {recbole}".format(**recbole.ask(work="versions")) if recbole else None
    of_seeds = range(1, 1 + seeds)
    for row in ROWS:
        ours = [fit_ours(row, sequences, items, seed=seed, epochs=epochs) for seed in of_seeds]
        theirs = [
            fit_recbole(recbole, row, seed=seed, epochs=epochs) for seed in of_seeds if recbole
        ]
        for metric in QUALITY:
            mean = statistics.mean(each[metric] for each in ours)
            peer = [each[metric] for each in theirs]
            bound = statistics.mean(peer) - half_interval(peer) if peer else None
            peer_mean = statistics.mean(peer) if peer else None
            rows.append(figure(f"{row}: {metric}", "%", mean, peer_mean, name, bound))
        seconds = pass_of_ours(row, sequences, items, repeats)
        slower = statistics.median(each["pass"] for each in theirs) if theirs else None
        bound = slower / TIMES_FASTER if slower else None
        rows.append(figure(f"{row}: pass", "s", seconds, slower, name, bound))
    return rows


def main(argv) -> None:
    del argv
    data_exists = bool(_DATA.value or _RECBOLE.value)
    expect(data_exists, "flag --data", _DATA.value, "ml-100k.inter, or a --recbole_python")
    if not _RECBOLE.value:
        print("RecBole is absent (no --recbole_python): its figures are left out")
    sizes = {"seeds": _SEEDS.value, "epochs": _EPOCHS.value, "repeats": _REPEATS.value}
    with contextlib.ExitStack() as stack:
        peer = None
        if _RECBOLE.value:
            process = Peer(_RECBOLE.name, _RECBOLE.value, SCRIPT, str(os.cpu_count()))
            peer = stack.enter_context(process)
        sequences, items = read_sequences(_DATA.value or peer.ask(work="dataset")["path"])
        work = functools.partial(measure, sequences, items, peer, **sizes)
        publish(work, _JSON.value, settings=sizes)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", "", "ml-100k.inter; empty for that of RecBole's package.")
    _RECBOLE = flags.DEFINE_string(
        "recbole_python", "", "Interpreter with recbole 1.2.1; empty for none."
    )
    _SEEDS = flags.DEFINE_integer("seeds", 3, "Fits of each side.", lower_bound=1)
    _EPOCHS = flags.DEFINE_integer("epochs", 300, "Most epochs of a fit.", lower_bound=1)
    _REPEATS = flags.DEFINE_integer("repeats", 5, "Timed epochs of ours.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    app.run(main)
