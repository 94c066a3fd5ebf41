"""The reference policy of a stage: the weights it started from, and their log-probs of a batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from agenticrec_jax.models.lora import join_learned, split_learned
from agenticrec_jax.parallel.mesh import RULES, Rules
from agenticrec_jax.parallel.multihost import global_batch, local_rows
from agenticrec_jax.training.types import RolloutBatch

Scorer = Callable[[Any, RolloutBatch], Float[Array, "P G T"]]  # (params, batch) -> log-probs


class ReferencePolicy:
    """Fills in ``reference_logprobs`` of micro-batches by weights that no update changes.

    Args:
      score: see `logprobs.make_scorer`; of the sampler's temperature.
      params: the weights, before the first update donates them.
      mesh: where weights and micro-batches lie; None for one device.
      rules: from logical axes to mesh axes.
    """

    def __init__(self, score: Scorer, params: Any, mesh: Mesh | None, rules: Rules = RULES):
        self._score = score
        self._mesh = mesh
        self._rules = rules
        # An update donates what it changes, so that is copied. The frozen base of a policy with
        # adapters is never donated: it is shared.
        learned, frozen = split_learned(params)
        self._params = join_learned(_copied(learned), frozen)

    def __call__(self, batch: RolloutBatch) -> RolloutBatch:
        """Returns this process's micro-batch with log-probs; every process must call this."""
        placed = batch if self._mesh is None else global_batch(batch, self._mesh, self._rules)
        return replace(batch, reference_logprobs=local_rows(self._score(self._params, placed)))


def _copied(params: Any) -> Any:
    """Returns a copy with the same shardings, made on the devices without a way over the host."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(params)
