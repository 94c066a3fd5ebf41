"""SASRec beside popularity and co-occurrence on real logs, each target among 19 drawn items.

``python -m experiments.benchmarks.sasrec_logs --data=DIR --json=FILE`` takes a directory with a
folder for each log of ``--logs``: ``interactions.csv.gz`` and ``items.jsonl.gz``.

A log with timestamps is split in time, 8:1:1, and its test samples are judged. One that keeps only
the ``position`` of each event in its user's order has no time that users share: of each user the
last event is judged, and all but the last two are fitted on. Histories are the ten events before,
candidates those of ``data.candidates``; of more samples than ``--examples`` a seed draws some.

All three are fitted on the same events. SASRec chooses nothing on what it is judged by. With each
user's last event among those held out it stops early at every weight decay of ``WEIGHT_DECAYS``;
the one that ranks these events best among 19 items that the user did not take, and its number of
epochs, are those of the fit on all events. Its loss is the softmax over the catalog, or with more
than ``FULL`` items over 512 drawn ones. Counts tie, most of all at 0 where nobody took an item, and
SASRec's scores do not: so ties are broken by chance here. Against the target, as everywhere else,
SASRec would gain by every target that nobody knows.

A difference is SASRec's to the better of the other two, with its 95% interval by bootstrap over
users; ``above`` says that the interval is above 0. Beside it stands how much there was to learn
from.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np
from absl import flags
from rich.table import Table

from agenticrec_jax.cli import app
from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, make_log, read_items, read_log
from agenticrec_jax.data.splits import FitRange, Sample, chronological_splits, prediction_samples
from agenticrec_jax.data.tables import read_table
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import candidate_codes, popularity_scores
from agenticrec_jax.metrics.ranking import ndcg_at_k, ndcg_values, rank_of_target
from agenticrec_jax.metrics.significance import paired_difference
from agenticrec_jax.runtime.console import print_wide
from agenticrec_jax.sequential.evaluation import draw_unseen, sampled_ranks
from agenticrec_jax.sequential.fit import train_sasrec
from agenticrec_jax.sequential.model import candidate_scores, user_states
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import fitted_sequences
from agenticrec_jax.sequential.training import SequentialTraining
from experiments.benchmarks.figures import publish

LOGS = (
    "office_products_2018",
    "musical_instruments_2014",
    "video_games_2018_order_only",
    "cds_vinyl_order_only",
    "ml-1m_late",
)
FULL = 10_000
EPOCHS, PATIENCE, WEIGHT_DECAYS = 200, 15, (0.1, 1.0, 3.0)
HELD_OUT = 5000  # users whose last events decide, at most: the first that the log names
VALID, TEST = 10**6, 10**6 + 1  # the times of a user's last two events where there are only orders


def read_ordered(directory: pathlib.Path) -> InteractionLog:
    """A log of positions alone: their order is the time, and each user's last two events are last.

    So events before ``VALID`` are those to fit on, and the events at ``TEST`` are to be judged.
    """
    items = read_items(directory / "items.jsonl.gz")
    kinds = {"user_id": "text", "item_id": "text", "position": "number"}
    table = read_table(directory / "interactions.csv.gz", tuple(kinds), kinds)
    users, ids = table.text("user_id", "a user id"), table.text("item_id", "an item id")
    position = table.numbers("position", "a position", required=True).astype(np.int64)
    left = dict(zip(*np.unique(users, return_counts=True), strict=True))
    times = position.copy()
    for row in np.argsort(position, kind="stable"):
        left[users[row]] -= 1
        if left[users[row]] < 2:
            times[row] = TEST - left[users[row]]
    return make_log(users, [items.code[i] for i in ids], times, items=items)


def prepare(directory: pathlib.Path) -> tuple[InteractionLog, list[Sample], FitRange]:
    """A log, its samples to judge and the range to fit on before them."""
    text = read_table(directory / "interactions.csv.gz", ("timestamp",), {"timestamp": "text"})
    if any(text.optional_text("timestamp")):
        log = read_log(directory / "interactions.csv.gz", directory / "items.jsonl.gz")
        splits = chronological_splits(prediction_samples(log))
        return log, list(splits.test), splits.fit_range_b
    log = read_ordered(directory)
    test = [sample for sample in prediction_samples(log) if sample.time == TEST]
    return log, test, FitRange(VALID, log.count_before(VALID))


def draw(log: InteractionLog, samples: list[Sample], most: int) -> list[RankingExample]:
    """Candidates of at most ``most`` samples."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(samples))[:most])
    return draw_candidates(log, [samples[i] for i in chosen], seed=0, split="test")


def fit(log: InteractionLog, fit_range: FitRange, seed: int) -> tuple[Sasrec, SequentialTraining]:
    """SASRec and how it was trained: as is best with last events held out, with those learned."""
    objective = Objective()
    if log.num_items > FULL:
        objective = Objective("sampled_softmax", negatives=512)
    config = SasrecConfig(log.num_items, heads=1, dropout=0.5, embedding_norm=True)
    training = SequentialTraining(epochs=EPOCHS, packed=True, objective=objective, seed=seed)
    tried = [
        stopped_early(log, fit_range, config, dataclasses.replace(training, weight_decay=decay))
        for decay in WEIGHT_DECAYS
    ]
    _, best = max(tried, key=lambda one: one[0])
    return train_sasrec(log, fit_range, config=config, training=best), best


def stopped_early(
    log: InteractionLog, fit_range: FitRange, config: SasrecConfig, training: SequentialTraining
) -> tuple[float, SequentialTraining]:
    """How a training ranks held-out last events, and it with as many epochs as were best."""
    patient, ended = dataclasses.replace(training, patience=PATIENCE), []
    model = train_sasrec(
        log,
        fit_range,
        config=config,
        training=patient,
        on_epoch=lambda epoch, *_: ended.append(epoch),
    )
    epochs = ended[-1]
    if epochs < training.epochs:  # it ended PATIENCE epochs after the best, not at the last
        epochs = max(1, epochs - PATIENCE)
    return held_out_ndcg(model, log, fit_range), dataclasses.replace(training, epochs=epochs)


def held_out_ndcg(model: Sasrec, log: InteractionLog, fit_range: FitRange) -> float:
    """NDCG@10 of users' last events in the range, each among 19 items that they did not take."""
    sequences = [s for s in fitted_sequences(log, fit_range).values() if len(s) > 2][:HELD_OUT]
    negatives = draw_unseen(sequences, log.num_items, 19, seed=0)
    states = user_states(model, [s[:-1] for s in sequences])
    targets = np.array([s[-1] for s in sequences])
    return ndcg_at_k(sampled_ranks(states, model.item_embeddings, targets, negatives), 10)


def ranks_by_chance(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ranks of the targets where equal scores are ordered by a seed."""
    dense = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    return rank_of_target(dense + np.random.default_rng(0).random(scores.shape), target)


def row_of(directory: pathlib.Path, most: int, seed: int) -> dict:
    """What a log shows."""
    log, samples, fit_range = prepare(directory)
    examples = draw(log, samples, most)
    start, cpu = time.perf_counter(), time.process_time()
    model, training = fit(log, fit_range, seed)
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
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
        "difference": [round(float(x), 4) for x in difference],
        "above": difference.low > 0,
        "epochs": training.epochs,
        "weight_decay": training.weight_decay,
        "fit": {name: round(x, 1) for name, x in took.items()},
    }


def show(rows: list[dict]) -> None:
    """Prints a row a log."""
    names = ("popularity", "cooccurrence", "sasrec")
    table = Table("log", "fitted", "an item", "unseen", *names, "difference", "above", "seconds")
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
    print_wide(table)


def measure(data: str, logs: list[str], most: int, seed: int) -> list[dict]:
    """A row for each log; InputError, before anything is fitted, if one is not there."""
    for name in logs:
        if not (pathlib.Path(data) / name).is_dir():
            raise InputError(f"flag --logs: found no folder {name!r} in {data}, expected one a log")
    rows = []
    for name in logs:
        rows.append(row_of(pathlib.Path(data) / name, most, seed))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv) -> None:
    del argv
    arguments = _DATA.value, _LOGS.value, _EXAMPLES.value, _SEED.value
    settings = {"examples": _EXAMPLES.value, "seed": _SEED.value, "weight_decays": WEIGHT_DECAYS}
    publish(lambda: measure(*arguments), _JSON.value, show, settings=settings)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Directory of the logs' folders.", required=True)
    _LOGS = flags.DEFINE_list("logs", list(LOGS), "Folders to take.")
    _EXAMPLES = flags.DEFINE_integer("examples", 5000, "Judged samples at most.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of SASRec.")
    _JSON = flags.DEFINE_string("json", "", "File to write the rows to; empty for none.")
    app.run(main)
