"""Fits SASRec on the sample shards of a log that is too large for ``train_sasrec``.

    python -m experiments.prepare_data --interactions=FILE --items=FILE --output=LOG --samples
    python -m experiments.train_sasrec_shards --prepared=LOG --workdir=DIR

Samples are read by grain in random order, never all at once. A run that was stopped goes on from
its last checkpoint, in the middle of a pass, when the same command is given again. The workdir gets
``sasrec.safetensors`` and ``sasrec.json`` (for ``Recommender.load``) and ``metrics.json``: NDCG@10
of the first valid and test samples in the whole catalog.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.data.loader import TRAIN, read_manifest, train_range
from agenticrec_jax.ingest.prepare import sampled_items
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.phases import phase, phase_records
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.sequential.objective import LOSSES, Objective
from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.shard_training import ShardTraining, catalog_ndcg, train_on_shards

_PREPARED = flags.DEFINE_string("prepared", None, "Output of prepare_data.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results are written.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", ShardTraining.epochs, "Passes.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", ShardTraining.batch_size, "Samples a step.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialization, order, dropout and negatives.")
_LOSS = flags.DEFINE_enum("loss", "sampled_softmax", LOSSES, "Loss of the next item.")
_SAVE = flags.DEFINE_integer(
    "save_every", ShardTraining.save_every, "Steps between checkpoints.", lower_bound=1
)
_JUDGED = flags.DEFINE_integer("judged", 5000, "Samples of valid and test ranked.", lower_bound=1)

JUDGED = ("valid", "test")


def main(argv: Sequence[str]) -> None:
    del argv
    samples, item_ids = sampled_items(_PREPARED.value)
    manifest, fit_range = read_manifest(samples), train_range(samples)
    length = manifest["max_history"]
    config = SasrecConfig(len(item_ids), max_length=length, embedding_norm=True)
    training = ShardTraining(
        epochs=_EPOCHS.value,
        batch_size=_BATCH.value,
        seed=_SEED.value,
        objective=Objective(_LOSS.value),
        save_every=_SAVE.value,
    )
    counts, workdir = manifest["counts"], Path(_WORKDIR.value)
    print(f"{len(item_ids)} items; samples {counts}; learned from before time {fit_range.end_time}")
    record = dataclasses.asdict(training) | dataclasses.asdict(config) | {"samples": counts}
    steps = -(-training.epochs * (counts["fit"] + counts["policy"]) // training.batch_size)
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
        found = {part: catalog_ndcg(model, samples, part, _JUDGED.value) for part in JUDGED}
    for part, value in found.items():
        judged = min(counts[part], _JUDGED.value)
        among = f"among {len(item_ids)} items, seen ones kept"
        print(f"{part}: NDCG@10 {value:.4f} of {judged} samples {among}")
    metrics = {"ndcg@10": found, "training": record, "phases": phase_records()}
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
