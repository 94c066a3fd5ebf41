"""SASRec of a run and the other sequential rows: fitted, saved and evaluated; SASRec on shards.

Both jobs print their results and write them to a working directory.
"""

from collections.abc import Sequence
from dataclasses import asdict

from flax import nnx

from agenticrec_jax import strict_json
from agenticrec_jax.data.candidates import draw_split_candidates, write_candidates
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.loader import TRAIN, read_manifest, train_range
from agenticrec_jax.data.prepared import sampled_items
from agenticrec_jax.data.splits import FitRange, chronological_splits, prediction_samples
from agenticrec_jax.evaluation.baselines.popularity import popularity_scores
from agenticrec_jax.evaluation.baselines.sasrec import fitted_sasrec
from agenticrec_jax.evaluation.baselines.sequential import States, example_states
from agenticrec_jax.evaluation.rankings import (
    Ranking,
    score_rankings,
    summarize_rankings,
    targets_of,
    write_rankings,
)
from agenticrec_jax.metrics.ranking import expected_metrics, ndcg_at_k
from agenticrec_jax.paths import Path, make_directory
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.console import print_sentence
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.runtime.provenance import record_provenance
from agenticrec_jax.sequential.fit import train_model
from agenticrec_jax.sequential.methods import make_model
from agenticrec_jax.sequential.model import SequentialModel
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.saving import save_model
from agenticrec_jax.sequential.shard_training import ShardTraining, catalog_ndcg, train_on_shards
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.tools.artifacts import Fitted, fit_artifacts

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
    method: str = "sasrec",
) -> dict:
    """Fits a sequential model on the ranges of artifacts A and B, and evaluates both.

    Writes ``artifacts_a`` and ``artifacts_b`` (of another method than ``sasrec``: ``METHOD_a`` and
    ``METHOD_b``, which `sequential.saving.load_model` reads), ``candidates.jsonl.gz``,
    ``METHOD.json`` and the rankings of the candidates, ``METHOD.parquet``, to ``workdir``, and
    prints NDCG@10 among the candidates and among all items.

    Args:
      log: the users' events.
      workdir: directory of the results; it is made.
      training: schedule and loss of the model.
      negatives: drawn candidates of an example.
      candidate_seed: seed of the candidates.
      method: name of the model in `sequential.methods.METHODS`. The artifacts that tools read are
        fitted with ``sasrec``.

    Returns:
      The content of ``METHOD.json``.
    """
    # A log that is too small is refused before anything is written.
    splits = chronological_splits(prediction_samples(log))
    examples = draw_split_candidates(log, splits, negatives, seed=candidate_seed)
    workdir = make_directory(workdir, "flag --workdir")
    record_provenance(workdir)
    path = workdir / "candidates.jsonl.gz"
    digest = write_candidates(path, log, examples, seed=candidate_seed)
    print_sentence(
        f"{len(log)} events, {log.num_users} users, {log.num_items} items; candidates {digest}"
    )
    chance = expected_metrics(negatives + 1)["ndcg@10"]
    candidate_rows: Rows = {"chance": dict.fromkeys(SPLITS, chance)}
    catalog_rows: Rows = {}
    summaries = {}
    rankings: list[Ranking] = []
    for name, fit_range in (("a", splits.fit_range_a), ("b", splits.fit_range_b)):
        fitted = _fit(log, fit_range, training, method, name, workdir)
        for split in EVALUATED_ON[name]:
            split_examples = [example for example in examples if example.split == split]
            states = example_states(fitted, split_examples)
            targets = targets_of(split_examples, log)
            for row, ranked in candidate_rankings(
                log, fit_range, states, method, split_examples
            ).items():
                summary = summarize_rankings(ranked, targets)
                candidate_rows.setdefault(row, {})[split] = summary["ndcg@10"]
                if row == method:
                    summaries[split] = summary
                rankings += ranked
            for row, ndcg in all_items_ndcg(log, states, method, split_examples).items():
                catalog_rows.setdefault(row, {})[split] = ndcg
    _print_rows(f"among {negatives + 1} candidates", candidate_rows)
    _print_rows(f"among all {log.num_items} items", catalog_rows)
    record = {
        "ndcg@10": candidate_rows,
        "catalog_ndcg@10": catalog_rows,
        "metrics": summaries,
        "candidates": digest,
        "training": asdict(training),
        "phases": phase_records(),
    }
    write_rankings(workdir / f"{method}.parquet", rankings)
    (workdir / f"{method}.json").write_text(strict_json.dumps(record, indent=1) + "\n")
    return record


def _fit(
    log: InteractionLog,
    fit_range: FitRange,
    training: SequentialTraining,
    method: str,
    name: str,
    workdir: Path,
) -> Fitted[SequentialModel]:
    """Fits and saves artifacts for ``sasrec``, otherwise the model alone."""
    events = f"on {fit_range.events} events"
    with Progress(method, training.epochs, unit="epochs") as progress:

        def on_epoch(epoch, loss, model):
            progress.advance(note=f"loss {loss:.3f}")

        if method == "sasrec":
            config = SasrecConfig(items=log.num_items)
            with phase(f"artifacts {name.upper()} {events}"):
                artifacts = fit_artifacts(
                    log, fit_range, config=config, training=training, on_epoch=on_epoch
                )
            artifacts.save(workdir / f"artifacts_{name}", log)
            return fitted_sasrec(artifacts)
        with phase(f"{method} {name.upper()} {events}"):
            model = make_model(method, log, seed=training.seed)
            model = train_model(model, log, fit_range, training=training, on_epoch=on_epoch)
        save_model(workdir / f"{method}_{name}", model, log.items.item_id, fit_range)
        return Fitted(model, fit_range, method)


def candidate_rankings(
    log: InteractionLog,
    fit_range: FitRange,
    states: States,
    method: str,
    examples: Sequence[RankingExample],
) -> dict[str, list[Ranking]]:
    """Returns the rankings of the candidates by popularity and by the fitted model."""
    scores = {
        "popularity": popularity_scores(log, fit_range, examples),
        method: states.candidate_scores(examples),
    }
    return {name: score_rankings(name, s, examples, log) for name, s in scores.items()}


def all_items_ndcg(
    log: InteractionLog, states: States, method: str, examples: Sequence[RankingExample]
) -> dict[str, float]:
    """Returns NDCG@10 of the model among all items, with the items seen before kept and masked."""
    seen = [log.item[log.events_before(e.user, e.position)] for e in examples]
    return {
        f"{method}, seen kept": ndcg_at_k(states.catalog_ranks(examples), 10),
        f"{method}, seen masked": ndcg_at_k(states.catalog_ranks(examples, seen), 10),
    }


def _print_rows(among: str, rows: Rows) -> None:
    print_sentence(f"NDCG@10 {among}")
    print(f"{'':<24}{'policy (A)':>12}{'valid (B)':>12}{'test (B)':>12}")
    for name, row in rows.items():
        print(f"{name:<24}" + "".join(f"{row[split]:>12.4f}" for split in SPLITS))


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
    manifest = read_manifest(samples)
    fit_range = train_range(samples)
    workdir = make_directory(workdir, "flag --workdir")
    record_provenance(workdir)
    counts = manifest["counts"]
    config = SasrecConfig(len(item_ids), max_length=manifest["max_history"], embedding_norm=True)
    print_sentence(
        f"{len(item_ids)} items; samples {counts}; learned from before time {fit_range.end_time}"
    )
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
        print_sentence(f"{split}: NDCG@10 {value:.4f} of {ranked} samples {among}")
    metrics = {"ndcg@10": ndcg, "training": record, "phases": phase_records()}
    (workdir / "metrics.json").write_text(strict_json.dumps(metrics, indent=1) + "\n")
    return ndcg
