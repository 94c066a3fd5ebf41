"""The sequential recommenders by name, each with the loss that it is trained with by default."""

from dataclasses import fields
from typing import NamedTuple

from flax import nnx

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import expect
from agenticrec_jax.sequential.bpr import Bpr
from agenticrec_jax.sequential.caser import Caser
from agenticrec_jax.sequential.gru4rec import Gru4Rec
from agenticrec_jax.sequential.model import SequentialModel
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.rearec import ReaRecErl, ReaRecPrl
from agenticrec_jax.sequential.sasrec import Sasrec


class Method(NamedTuple):
    """A row of a results table: a type of model, and its loss.

    Attributes:
      model_type: class of the model.
      objective: the loss with its negatives, unless another is asked for.
    """

    model_type: type[SequentialModel]
    objective: Objective = Objective()


METHODS = {
    "sasrec": Method(Sasrec),
    # Kang and McAuley (ICDM 2018) draw one negative of each position.
    "sasrec_bce": Method(Sasrec, Objective("bce", negatives=1)),
    "gru4rec": Method(Gru4Rec),
    "caser": Method(Caser),
    "rearec_erl": Method(ReaRecErl),
    "rearec_prl": Method(ReaRecPrl),
    "bpr": Method(Bpr, Objective("bpr", negatives=1)),  # its loss, whatever the training's is
}


def make_model(name: str, log: InteractionLog, *, seed: int = 0, **sizes) -> SequentialModel:
    """Returns an initialized model for the items of a log.

    Args:
      name: key of `METHODS`.
      log: the log that it will be fitted on.
      seed: seed of the initialization.
      **sizes: fields of the model's configuration that differ from their defaults.

    Raises:
      InputError: there is no such method, or its configuration has no such field.
    """
    expect(name in METHODS, "model", name, f"one of {', '.join(METHODS)}")
    model_type = METHODS[name].model_type
    known = [field.name for field in fields(model_type.config_type)]
    for size in sizes:
        expect(size in known, f"sizes of {name}", size, f"one of {', '.join(known)}")
    of_log = {"items": log.num_items, "user_ids": log.user_ids}
    of_log = {field: value for field, value in of_log.items() if field in known}
    return model_type(model_type.config_type(**(of_log | sizes)), rngs=nnx.Rngs(seed))
