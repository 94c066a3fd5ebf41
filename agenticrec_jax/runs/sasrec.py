"""SASRec of a run: artifacts with the evaluation of their model, and a model fitted on shards.

Both jobs print their results and write them to a working directory.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flax import nnx

from agenticrec_jax import strict_json
from agenticrec_jax.data.candidates import draw_split_candidates, write_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.loader import TRAIN, read_manifest, train_range
from agenticrec_jax.data.prepared import sampled_items
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.evaluation.baselines.popularity import popularity_scores
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores, serving_model
from agenticrec_jax.metrics.ranking import expected_metrics, ndcg_at_k, rank_of_target
from agenticrec_jax.paths import make_directory
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.shard_training import ShardTraining, catalog_ndcg, train_on_shards
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.tools.artifacts import Artifacts, fit_artifacts

SPLITS = ("policy", "valid", "test")
EVALUATED_ON = {"a": ("policy",), "b": ("valid", "test")}  # splits of each artifacts' evaluation

Rows = dict[str, dict[str, float]]  # NDCG@10 by method and split


def fit_and_evaluate_artifacts(
    log: InteractionLog,
    workdir: Path,
    *,
    training: SequentialTraining,
    negatives: int,
    candidate_seed: int,
) -> dict:
    """Fits artifacts A and B and evaluates the SASRec of both on the splits that they serve.

    Writes ``artifacts_a``, ``artifacts_b``, ``candidates.jsonl.gz`` and ``sasrec.json`` to
    ``workdir``, and prints NDCG@10 among the candidates and among all items.

    Args:
      log: the users' events.
      workdir: directory of the results; it is made.
      training: schedule and loss of SASRec.
      negatives: drawn candidates of an example.
      candidate_seed: seed of the candidates.

    Returns:
      The content of ``sasrec.json``.
    """
    workdir = make_directory(workdir, "flag --workdir")
    splits = chronological_splits(prediction_samples(log))
    examples = draw_split_candidates(log, splits, negatives, seed=candidate_seed)
    path = workdir / "candidates.jsonl.gz"
    digest = write_candidates(path, log, examples, seed=candidate_seed)
    print(f"{len(log)} events, {log.num_users} users, {log.num_items} items; candidates {digest}")
    chance = expected_metrics(negatives + 1)["ndcg@10"]
    candidate_rows: Rows = {"chance": dict.fromkeys(SPLITS, chance)}
    catalog_rows: Rows = {}
    for name, fit_range in (("a", splits.fit_range_a), ("b", splits.fit_range_b)):
        with phase(f"artifacts {name.upper()} on {fit_range.events} events"):
            artifacts = _fit(log, fit_range, training)
        artifacts.save(workdir / f"artifacts_{name}", log)
        for split in EVALUATED_ON[name]:
            split_examples = [example for example in examples if example.split == split]
            for row, ndcg in candidate_ndcg(log, artifacts, split_examples).items():
                candidate_rows.setdefault(row, {})[split] = ndcg
            for row, ndcg in all_items_ndcg(log, artifacts, split_examples).items():
                catalog_rows.setdefault(row, {})[split] = ndcg
    _print_rows(f"among {negatives + 1} candidates", candidate_rows)
    _print_rows(f"among all {log.num_items} items", catalog_rows)
    record = {
        "ndcg@10": candidate_rows,
        "catalog_ndcg@10": catalog_rows,
        "candidates": digest,
        "training": asdict(training),
        "phases": phase_records(),
    }
    (workdir / "sasrec.json").write_text(strict_json.dumps(record, indent=1) + "\n")
    return record


def _fit(log: InteractionLog, fit_range: FitRange, training: SequentialTraining) -> Artifacts:
    with Progress("sasrec", training.epochs, unit="epochs") as progress:
        return fit_artifacts(
            log,
            fit_range,
            config=SasrecConfig(items=log.num_items),
            training=training,
            on_epoch=lambda epoch, loss, model: progress.advance(note=f"loss {loss:.3f}"),
        )


def candidate_ndcg(
    log: InteractionLog, artifacts: Artifacts, examples: Sequence[RankingExample]
) -> dict[str, float]:
    """Returns NDCG@10 of popularity and of SASRec among the candidates of ``examples``."""
    target = np.array([example.target_number - 1 for example in examples])
    scores = {
        "popularity": popularity_scores(log, artifacts.fit_range, examples),
        "sasrec": sasrec_scores(artifacts, examples),
    }
    return {name: ndcg_at_k(rank_of_target(s, target), 10) for name, s in scores.items()}


def all_items_ndcg(
    log: InteractionLog, artifacts: Artifacts, examples: Sequence[RankingExample]
) -> dict[str, float]:
    """Returns NDCG@10 of SASRec among all items, with the items seen before kept and masked."""
    model = serving_model(artifacts, examples)
    states = user_states(model, [example.history for example in examples])
    targets = np.array([example.target for example in examples])
    seen = [log.item[log.events_before(e.user, e.position)] for e in examples]
    kept_ranks = catalog_ranks(states, model.item_embeddings, targets)
    masked_ranks = catalog_ranks(states, model.item_embeddings, targets, seen)
    return {
        "sasrec, seen kept": ndcg_at_k(kept_ranks, 10),
        "sasrec, seen masked": ndcg_at_k(masked_ranks, 10),
    }


def _print_rows(among: str, rows: Rows) -> None:
    print(f"NDCG@10 {among}")
    print(f"{'':<20}{'policy (A)':>12}{'valid (B)':>12}{'test (B)':>12}")
    for name, row in rows.items():
        print(f"{name:<20}" + "".join(f"{row[split]:>12.4f}" for split in SPLITS))


def fit_on_shards(
    prepared: Path, workdir: Path, *, training: ShardTraining, evaluated: int
) -> dict[str, float]:
    """Fits SASRec on the samples of a prepared log and evaluates it among all items.

    A stopped job resumes from its last checkpoint. Writes ``sasrec.safetensors`` and
    ``sasrec.json`` (for ``Recommender.load``) and ``metrics.json`` to ``workdir``.

    Args:
      prepared: directory that ``prepare_data --samples`` wrote.
      workdir: directory of checkpoints and results.
      training: schedule and loss.
      evaluated: most samples of valid and of test that are ranked.

    Returns:
      NDCG@10 of valid and test.

    Raises:
      InputError: ``prepared`` has no samples, or those of another log.
    """
    samples, item_ids = sampled_items(prepared)
    workdir = make_directory(workdir, "flag --workdir")
    manifest = read_manifest(samples)
    fit_range = train_range(samples)
    counts = manifest["counts"]
    config = SasrecConfig(len(item_ids), max_length=manifest["max_history"], embedding_norm=True)
    print(f"{len(item_ids)} items; samples {counts}; learned from before time {fit_range.end_time}")
    record = asdict(training) | asdict(config) | {"samples": counts}
    steps = training.num_steps(counts["fit"] + counts["policy"])
    with (
        phase(TRAIN),
        Checkpoints(workdir / "checkpoints", record) as checkpoints,
        Progress("sasrec", steps, done=max(checkpoints.steps, default=0)) as progress,
    ):
        model = train_on_shards(
            Sasrec(config, rngs=nnx.Rngs(training.seed)),
            samples,
            training,
            checkpoints,
            on_step=lambda step, loss: progress.advance(note=f"loss {loss:.3f}"),
        )
    Recommender(model, item_ids, fit_range).save(workdir)
    with phase("judge"):
        ndcg = {split: catalog_ndcg(model, samples, split, evaluated) for split in SPLITS[1:]}
    for split, value in ndcg.items():
        ranked = min(counts[split], evaluated)
        among = f"among {len(item_ids)} items, seen ones kept"
        print(f"{split}: NDCG@10 {value:.4f} of {ranked} samples {among}")
    metrics = {"ndcg@10": ndcg, "training": record, "phases": phase_records()}
    (workdir / "metrics.json").write_text(strict_json.dumps(metrics, indent=1) + "\n")
    return ndcg
