"""Fits the artifacts that tools read, or another sequential recommender, and evaluates the model.

    python -m experiments.train_sasrec --interactions=FILE [--items=FILE] --workdir=DIR

Artifacts A are fitted before the first policy sample and evaluated on the policy samples. Artifacts
B are fitted before the first valid sample and evaluated on valid and test. The workdir gets both,
the frozen candidates, ``sasrec.json`` with the results, and ``sasrec.parquet`` with the rankings,
from which ``verify`` recomputes them. If the three NDCG@10 of SASRec differ
much more than those of popularity, an artifact was fitted on samples that it is evaluated on. Two
more rows rank each target among all items: with the items that the user took before kept, and with
them masked.

``--model`` fits another model on the two ranges, in place of the artifacts: ``METHOD_a`` and
``METHOD_b`` in the workdir have it, and ``METHOD.json`` has the results on the same candidates,
``METHOD.parquet`` the rankings.

``--loss`` selects the loss, by default the model's. With ``--patience`` each user's last event
before the end of the range is held out, and training stops by its rank.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.prepared import prepared_tables
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.sasrec import fit_and_evaluate_artifacts
from agenticrec_jax.sequential.methods import METHODS
from agenticrec_jax.sequential.objective import LOSSES, SAMPLED_LOSSES, Objective
from agenticrec_jax.sequential.training import SequentialTraining

_INTERACTIONS = flags.DEFINE_string("interactions", None, "Table of events.")
_ITEMS = flags.DEFINE_string("items", None, "Table of items; without one those of the events.")
_PREPARED = flags.DEFINE_string("prepared", None, "Output of prepare_data, in place of the tables.")
flags.mark_flags_as_mutual_exclusive(["interactions", "prepared"], required=True)
flags.mark_flags_as_mutual_exclusive(["items", "prepared"])
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the results.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", SequentialTraining.epochs, "Passes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialization, order and dropout.")
_MODEL = flags.DEFINE_enum("model", "sasrec", list(METHODS), "Sequential recommender.")
_LOSS = flags.DEFINE_enum("loss", None, LOSSES, "Loss of the next item; None: the model's.")
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
_CANDIDATE_SEED = flags.DEFINE_integer(
    "candidate_seed", 0, "Seed of the candidates.", lower_bound=0
)


def main(argv: Sequence[str]) -> None:
    del argv
    training = SequentialTraining(
        epochs=_EPOCHS.value,
        seed=_SEED.value,
        objective=objective(),
        patience=_PATIENCE.value,
    )
    tables = (_INTERACTIONS.value, _ITEMS.value)
    if _PREPARED.value:
        tables = prepared_tables(_PREPARED.value)
    interactions, items = tables
    log = read_log(interactions, items)
    app.print_devices()
    fit_and_evaluate_artifacts(
        log,
        Path(_WORKDIR.value),
        training=training,
        negatives=_NEGATIVES.value,
        candidate_seed=_CANDIDATE_SEED.value,
        method=_MODEL.value,
    )


def objective() -> Objective:
    """Returns the loss of the flags. InputError for a flag that the loss would ignore."""
    default = METHODS[_MODEL.value].objective
    loss = _LOSS.value or default.loss
    for flag in (_LOSS, _LOSS_NEGATIVES):
        if flag.present and _MODEL.value == "bpr":
            raise InputError(
                f"flag --{flag.name}: found it with --model=bpr, which has its own loss, "
                "expected it with another model"
            )
    options = {"negatives": default.negatives} if loss == default.loss else {}
    for field, flag, losses in (
        ("negatives", _LOSS_NEGATIVES, SAMPLED_LOSSES),
        ("calibration", _CALIBRATION, ("gbce",)),
    ):
        if flag.present and loss not in losses:
            raise InputError(
                f"flag --{flag.name}: found it with --loss={loss}, "
                f"expected it with --loss={' or '.join(losses)} only"
            )
        if flag.present:
            options[field] = flag.value
    return Objective(loss, **options)


if __name__ == "__main__":
    app.run(main)
