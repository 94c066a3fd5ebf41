"""Fits the artifacts that tools read, and says how well their SASRec ranks.

    python -m experiments.train_sasrec --interactions=FILE --items=FILE --workdir=DIR

Artifacts A are fitted before the first policy sample and judged on the policy samples, artifacts B
before the first valid sample and judged on valid and test; the workdir gets both, the frozen
candidates and ``sasrec.json`` with the numbers. If the three NDCG@10 of SASRec differ much more
than those of popularity, an artifact has seen what it is asked about. Two more rows rank each
target among all items: with those that the user took before kept, and with them masked.

``--loss`` chooses what SASRec is trained by. With ``--patience`` each user's last event before the
end of the range is held out, and training stops by how it is ranked.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.data.candidates import draw_split_candidates, write_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.popularity import popularity_scores
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores, serving_model
from agenticrec_jax.ingest.prepare import prepared_tables
from agenticrec_jax.metrics.ranking import expected_metrics, ndcg_at_k, rank_of_target
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.objective import LOSSES, SAMPLED_LOSSES, Objective
from agenticrec_jax.sequential.sasrec import SasrecConfig
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.tools.artifacts import Artifacts, fit_artifacts

_INTERACTIONS = flags.DEFINE_string("interactions", None, "Table of events.")
_ITEMS = flags.DEFINE_string("items", None, "Table of items.")
_PREPARED = flags.DEFINE_string("prepared", None, "Output of prepare_data, in place of the tables.")
flags.mark_flags_as_mutual_exclusive(["interactions", "prepared"], required=True)
flags.mark_flags_as_mutual_exclusive(["items", "prepared"], required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results are written.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", SequentialTraining.epochs, "Passes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialization, order and dropout.")
_LOSS = flags.DEFINE_enum("loss", Objective.loss, LOSSES, "Loss of the next item.")
_LOSS_NEGATIVES = flags.DEFINE_integer(
    "loss_negatives", None, "Items that a loss other than softmax draws.", lower_bound=1
)
_CALIBRATION = flags.DEFINE_float(
    "calibration", None, "Of gbce: 0 is bce, 1 calibrates.", lower_bound=0.0, upper_bound=1.0
)
_PATIENCE = flags.DEFINE_integer(
    "patience", 0, "Epochs without a better NDCG@10 to stop after; 0 for none.", lower_bound=0
)
_NEGATIVES = flags.DEFINE_integer("negatives", 19, "Drawn candidates.", lower_bound=1)
_CANDIDATE_SEED = flags.DEFINE_integer("candidate_seed", 0, "Seed of the candidates.")

PARTS = ("policy", "valid", "test")
SERVED = {"a": ("policy",), "b": ("valid", "test")}  # artifacts and the parts they are judged on


def main(argv: Sequence[str]) -> None:
    del argv
    training = schedule()
    given = (_INTERACTIONS.value, _ITEMS.value)
    log = read_log(*(prepared_tables(_PREPARED.value) if _PREPARED.value else given))
    splits = chronological_splits(prediction_samples(log))
    seed = _CANDIDATE_SEED.value
    examples = draw_split_candidates(log, splits, _NEGATIVES.value, seed=seed)
    workdir = Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    digest = write_candidates(workdir / "candidates.jsonl.gz", log, examples, seed=seed)
    print(f"{len(log)} events, {log.num_users} users, {log.num_items} items; candidates {digest}")
    chance = expected_metrics(_NEGATIVES.value + 1)["ndcg@10"]
    rows, catalog = {"chance": dict.fromkeys(PARTS, chance)}, {}
    for name, fit_range in (("a", splits.fit_range_a), ("b", splits.fit_range_b)):
        with phase(f"artifacts {name.upper()} on {fit_range.events} events"):
            artifacts = fit(log, fit_range, training)
        artifacts.save(workdir / f"artifacts_{name}", log)
        for part in SERVED[name]:
            judged = [example for example in examples if example.split == part]
            for table, judges in ((rows, judge), (catalog, judge_in_catalog)):
                for row, value in judges(log, artifacts, judged).items():
                    table.setdefault(row, {})[part] = value
    print_rows(f"among {_NEGATIVES.value + 1} candidates", rows)
    print_rows(f"among all {log.num_items} items", catalog)
    record = {"ndcg@10": rows, "catalog_ndcg@10": catalog}
    record |= {"candidates": digest, "training": asdict(training)}
    record["phases"] = phase_records()
    (workdir / "sasrec.json").write_text(json.dumps(record, indent=1) + "\n")


def schedule() -> SequentialTraining:
    """What the flags say. InputError for one that the loss would ignore."""
    options = {}
    needing = (
        ("negatives", _LOSS_NEGATIVES, SAMPLED_LOSSES),
        ("calibration", _CALIBRATION, ("gbce",)),
    )
    for field, flag, losses in needing:
        if flag.present and _LOSS.value not in losses:
            raise InputError(
                f"flag --{flag.name}: found it with --loss={_LOSS.value}, "
                f"expected it with --loss={' or '.join(losses)} only"
            )
        if flag.present:
            options[field] = flag.value
    objective = Objective(_LOSS.value, **options)
    return SequentialTraining(
        epochs=_EPOCHS.value, seed=_SEED.value, objective=objective, patience=_PATIENCE.value
    )


def fit(log: InteractionLog, fit_range: FitRange, training: SequentialTraining) -> Artifacts:
    """Artifacts of one fit range, with a progress bar over the epochs."""
    with Progress("sasrec", training.epochs, unit="epochs") as progress:
        return fit_artifacts(
            log,
            fit_range,
            config=SasrecConfig(items=log.num_items),
            training=training,
            on_epoch=lambda epoch, loss, model: progress.advance(note=f"loss {loss:.3f}"),
        )


def judge(
    log: InteractionLog, artifacts: Artifacts, examples: Sequence[RankingExample]
) -> dict[str, float]:
    """NDCG@10 of popularity and of SASRec on ``examples``."""
    target = np.array([example.target_number - 1 for example in examples])
    scores = {
        "popularity": popularity_scores(log, artifacts.fit_range, examples),
        "sasrec": sasrec_scores(artifacts, examples),
    }
    return {name: ndcg_at_k(rank_of_target(s, target), 10) for name, s in scores.items()}


def judge_in_catalog(
    log: InteractionLog, artifacts: Artifacts, examples: Sequence[RankingExample]
) -> dict[str, float]:
    """NDCG@10 of SASRec among all items, those that the user took before kept, and masked."""
    model = serving_model(artifacts, examples)
    states = user_states(model, [example.history for example in examples])
    targets = np.array([example.target for example in examples])
    taken = [log.item[log.events_before(e.user, e.position)] for e in examples]
    found = {}
    for name, seen in (("seen kept", None), ("seen masked", taken)):
        ranks = catalog_ranks(states, model.item_embeddings, targets, seen)
        found[f"sasrec, {name}"] = ndcg_at_k(ranks, 10)
    return found


def print_rows(among: str, rows: dict[str, dict[str, float]]) -> None:
    """A table: one row a method, the parts side by side."""
    print(f"NDCG@10 {among}")
    print(f"{'':<20}{'policy (A)':>12}{'valid (B)':>12}{'test (B)':>12}")
    for name, row in rows.items():
        print(f"{name:<20}" + "".join(f"{row[part]:>12.4f}" for part in PARTS))


if __name__ == "__main__":
    app.run(main)
