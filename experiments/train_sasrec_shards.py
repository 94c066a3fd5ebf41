"""Fits SASRec on the sample shards of a log that is too large for ``train_sasrec``.

    python -m experiments.prepare_data --interactions=FILE --items=FILE --output=LOG --samples
    python -m experiments.train_sasrec_shards --prepared=LOG --workdir=DIR

Samples are read by grain in random order, never all at once. A stopped run resumes from its last
checkpoint, within an epoch, when the same command is given again. The workdir gets
``sasrec.safetensors`` and ``sasrec.json`` (for ``Recommender.load``) and ``metrics.json``: NDCG@10
of the first valid and test samples among all items.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.sasrec import fit_on_shards
from agenticrec_jax.sequential.objective import LOSSES, Objective
from agenticrec_jax.sequential.shard_training import ShardTraining

_PREPARED = flags.DEFINE_string("prepared", None, "Output of prepare_data.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the results.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", ShardTraining.epochs, "Passes.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", ShardTraining.batch_size, "Samples a step.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialization, order, dropout and negatives.")
_LOSS = flags.DEFINE_enum("loss", "sampled_softmax", LOSSES, "Loss of the next item.")
_SAVE = flags.DEFINE_integer(
    "save_every", ShardTraining.save_every, "Steps between checkpoints.", lower_bound=1
)
_JUDGED = flags.DEFINE_integer("judged", 5000, "Samples of valid and test ranked.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    del argv
    training = ShardTraining(
        epochs=_EPOCHS.value,
        batch_size=_BATCH.value,
        seed=_SEED.value,
        objective=Objective(_LOSS.value),
        save_every=_SAVE.value,
    )
    app.print_devices()
    fit_on_shards(
        Path(_PREPARED.value), Path(_WORKDIR.value), training=training, evaluated=_JUDGED.value
    )


if __name__ == "__main__":
    app.run(main)
