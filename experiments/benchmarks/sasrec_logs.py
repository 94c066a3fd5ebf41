"""Compares SASRec with popularity and co-occurrence on real logs, each target among 19 drawn items.

``python -m experiments.benchmarks.sasrec_logs --data=DIR --json=FILE`` takes a directory with a
folder for each log of ``--logs``: ``interactions.csv.gz`` and ``items.jsonl.gz``.

A log with timestamps is split in time, 8:1:1, and evaluated on its test samples. Some logs only
have the ``position`` of each event in its user's order, and thus no time that users share. Of these
the last event of each user is the test, and all but the last two are fitted. Histories are the ten
events before, candidates those of ``data.candidates``. Of more samples than ``--examples`` some are
drawn by a seed.

All three are fitted on the same events. No choice of SASRec depends on the test. With each user's
last fitted event held out, it stops early at every weight decay of ``WEIGHT_DECAYS``. The decay
that ranks these events best among 19 items that the user did not take, and its number of epochs,
are taken for the fit on all events. The loss is the softmax over the catalog, or with more than
``FULL`` items over 512 drawn ones. Counts have ties, most of all at 0, and SASRec's scores have
none. Ties are therefore broken at random here: decided against the target, as elsewhere, they would
favor SASRec on each target without events.

A difference is SASRec's to the better of the other two, with its 95% interval by bootstrap over
users; ``above`` states that the interval is above 0. The number of fitted events per item is
reported beside it.
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags
from rich.table import Table

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, make_log, read_items, read_log
from agenticrec_jax.data.splits import FitRange, Sample, chronological_splits, prediction_samples
from agenticrec_jax.data.tables import read_table
from agenticrec_jax.errors import expect
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import candidate_codes, popularity_scores
from agenticrec_jax.metrics.ranking import ndcg_at_k, ndcg_values, rank_of_target
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.runtime.console import print_whole
from agenticrec_jax.sequential.evaluation import draw_unseen, sampled_ranks
from agenticrec_jax.sequential.fit import train_sasrec
from agenticrec_jax.sequential.model import candidate_scores, user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import fitted_sequences
from agenticrec_jax.sequential.training import SequentialTraining
from experiments.benchmarks.figures import publish
from experiments.benchmarks.peer_loop import Stopwatch

LOGS = (
    "office_products_2018",
    "musical_instruments_2014",
    "video_games_2018_order_only",
    "cds_vinyl_order_only",
    "ml-1m_late",
)
FULL = 10_000  # most items of a softmax over the whole catalog
EPOCHS = 200
PATIENCE = 15
WEIGHT_DECAYS = (0.1, 1.0, 3.0)
HELD_OUT = 5000  # most users whose last events choose the decay: the first of the log
VALID = 10**6  # time of a user's last event but one, in a log without timestamps
TEST = VALID + 1  # time of a user's last event, in a log without timestamps


def read_ordered(directory: pathlib.Path) -> InteractionLog:
    """Reads a log without timestamps: an event's time is its position in its user's order.

    Each user's last two events get the times ``VALID`` and ``TEST``. Events before ``VALID`` are
    fitted, and those at ``TEST`` are evaluated.
    """
    items = read_items(directory / "items.jsonl.gz")
    kinds = {"user_id": "text", "item_id": "text", "position": "number"}
    table = read_table(directory / "interactions.csv.gz", tuple(kinds), kinds)
    users = table.text("user_id", "a user id")
    item_ids = table.text("item_id", "an item id")
    position = table.numbers("position", "a position", required=True).astype(np.int64)
    remaining = dict(zip(*np.unique(users, return_counts=True), strict=True))
    times = position.copy()
    for row in np.argsort(position, kind="stable"):
        remaining[users[row]] -= 1
        if remaining[users[row]] < 2:
            times[row] = TEST - remaining[users[row]]
    return make_log(users, [items.code[i] for i in item_ids], times, items=items)


def prepare(directory: pathlib.Path) -> tuple[InteractionLog, list[Sample], FitRange]:
    """Reads a log; returns it with its test samples and the fit range before them."""
    text = read_table(directory / "interactions.csv.gz", ("timestamp",), {"timestamp": "text"})
    if any(text.optional_text("timestamp")):
        log = read_log(directory / "interactions.csv.gz", directory / "items.jsonl.gz")
        splits = chronological_splits(prediction_samples(log))
        return log, list(splits.test), splits.fit_range_b
    log = read_ordered(directory)
    test = [sample for sample in prediction_samples(log) if sample.time == TEST]
    return log, test, FitRange(VALID, log.count_before(VALID))


def draw(log: InteractionLog, samples: list[Sample], most: int) -> list[RankingExample]:
    """Draws candidates of at most ``most`` samples."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(samples))[:most])
    return draw_candidates(log, [samples[i] for i in chosen], seed=0, split="test")


def fit(log: InteractionLog, fit_range: FitRange, seed: int) -> tuple[Sasrec, SequentialTraining]:
    """Fits SASRec as is best on held-out last events; returns it with its training."""
    objective = Objective()
    if log.num_items > FULL:
        objective = Objective("sampled_softmax", negatives=512)
    config = SasrecConfig(log.num_items, heads=1, dropout=0.5, embedding_norm=True)
    training = SequentialTraining(epochs=EPOCHS, packed=True, objective=objective, seed=seed)
    trials = [
        stopped_early(log, fit_range, config, dataclasses.replace(training, weight_decay=decay))
        for decay in WEIGHT_DECAYS
    ]
    _, best = max(trials, key=lambda trial: trial[0])
    return train_sasrec(log, fit_range, config=config, training=best), best


def stopped_early(
    log: InteractionLog, fit_range: FitRange, config: SasrecConfig, training: SequentialTraining
) -> tuple[float, SequentialTraining]:
    """Returns NDCG@10 of held-out last events, and the training with its best number of epochs."""
    completed = []
    model = train_sasrec(
        log,
        fit_range,
        config=config,
        training=dataclasses.replace(training, patience=PATIENCE),
        on_epoch=lambda epoch, *_: completed.append(epoch),
    )
    epochs = completed[-1]
    if epochs < training.epochs:  # stopped early, PATIENCE epochs after the best
        epochs = max(1, epochs - PATIENCE)
    return held_out_ndcg(model, log, fit_range), dataclasses.replace(training, epochs=epochs)


def held_out_ndcg(model: Sasrec, log: InteractionLog, fit_range: FitRange) -> float:
    """Returns NDCG@10 of users' last events in the range, each among 19 other untaken items."""
    sequences = [s for s in fitted_sequences(log, fit_range).values() if len(s) > 2][:HELD_OUT]
    negatives = draw_unseen(sequences, log.num_items, 19, seed=0)
    states = user_states(model, [s[:-1] for s in sequences])
    targets = np.array([s[-1] for s in sequences])
    return ndcg_at_k(sampled_ranks(states, model.item_embeddings, targets, negatives), 10)


def ranks_by_chance(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns ranks of the targets, with equal scores in a random order of a fixed seed."""
    dense = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    return rank_of_target(dense + np.random.default_rng(0).random(scores.shape), target)


def row_of(directory: pathlib.Path, most: int, seed: int) -> dict:
    """Evaluates the three methods on a log."""
    log, samples, fit_range = prepare(directory)
    examples = draw(log, samples, most)
    with Stopwatch() as watch:
        model, training = fit(log, fit_range, seed)
    histories = [example.history for example in examples]
    scores = {
        "popularity": popularity_scores(log, fit_range, examples),
        "cooccurrence": cooccurrence_scores(log, fit_range, examples),
        "sasrec": candidate_scores(model, histories, candidate_codes(examples)),
    }
    target = np.array([example.target_number - 1 for example in examples])
    values = {name: ndcg_values(ranks_by_chance(s, target), 10) for name, s in scores.items()}
    best = max(("popularity", "cooccurrence"), key=lambda name: values[name].mean())
    users = [example.user for example in examples]
    difference = paired_difference(values["sasrec"], values[best], users, seed=0)
    fitted = log.item[: fit_range.events]
    return {
        "log": directory.name,
        "users": log.num_users,
        "items": log.num_items,
        "fitted_events": fit_range.events,
        "fitted_events_per_fitted_item": round(len(fitted) / len(np.unique(fitted)), 1),
        "targets_never_fitted": round(
            1 - float(np.isin([e.target for e in examples], fitted).mean()), 3
        ),
        "judged": len(examples),
        "ndcg@10": {name: round(float(v.mean()), 4) for name, v in values.items()},
        "better_other": best,
        "difference": [round(float(x), 4) for x in difference[:3]],
        "above": difference.low > 0,
        "epochs": training.epochs,
        "weight_decay": training.weight_decay,
        "fit": {name: round(x, 1) for name, x in watch.took.items()},
    }


def show(rows: list[dict]) -> None:
    """Prints one row for each log."""
    names = ("popularity", "cooccurrence", "sasrec")
    table = Table()
    for column in ("log", "fitted", "an item", "unseen", *names, "difference", "above", "seconds"):
        table.add_column(column)
    for row in rows:
        mean, low, high = row["difference"]
        table.add_row(
            row["log"],
            str(row["fitted_events"]),
            str(row["fitted_events_per_fitted_item"]),
            f"{row['targets_never_fitted']:.1%}",
            *(f"{row['ndcg@10'][name]:.4f}" for name in names),
            f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
            "yes" if row["above"] else "no",
            str(row["fit"]["seconds"]),
        )
    print_whole(table)


def measure(data: str, logs: list[str], most: int, seed: int) -> list[dict]:
    """Returns a row for each log.

    Raises:
      InputError: a log has no folder; nothing was fitted.
    """
    for name in logs:
        expect((pathlib.Path(data) / name).is_dir(), "flag --logs", name, f"a folder in {data}")
    rows = []
    for name in logs:
        rows.append(row_of(pathlib.Path(data) / name, most, seed))
        print(strict_json.dumps(rows[-1]), flush=True)
    return rows


def main(argv) -> None:
    del argv
    settings = {"examples": _EXAMPLES.value, "seed": _SEED.value, "weight_decays": WEIGHT_DECAYS}
    publish(
        lambda: measure(_DATA.value, _LOGS.value, _EXAMPLES.value, _SEED.value),
        _JSON.value,
        show,
        settings=settings,
    )


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Directory of the logs' folders.", required=True)
    _LOGS = flags.DEFINE_list("logs", list(LOGS), "Folders of the logs.")
    _EXAMPLES = flags.DEFINE_integer("examples", 5000, "Most evaluated samples.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Seed of SASRec.")
    _JSON = flags.DEFINE_string("json", "", "File to write the rows to; empty for none.")
    app.run(main)
