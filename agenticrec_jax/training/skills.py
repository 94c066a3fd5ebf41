"""Supervised learning of skills from dense, local labels, for a policy of random weights.

Whole demonstrations teach a small policy to copy an order, but not to weigh several or to judge a
title: the answer's tokens say too little about the steps that lead to them. Three things together
do it (the log of trials is in decision 0030):

- *Soft labels.* At every number of a list the label is a distribution over the candidates that are
  left, by their scores (`ranking_labels`). Candidates of nearly equal scores have nearly equal
  labels, and ties cost nothing.
- *Readouts.* Linear maps on the outputs of early layers must tell what the later ones need, such as
  the place of a number in its order. They are thrown away after training.
- *Muon* as the optimizer (`runs.pretraining.make_muon`).

Axes: P prompts, Tp prompt tokens, G completions of a prompt, T completion tokens, C candidates, D
embedding, O outputs of a readout, K its classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.losses.reductions import Metrics, masked, metric
from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import Qwen3

READOUT_WEIGHT = 0.5  # of the mean readout loss beside the tokens' cross-entropy
NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Readout:
    """A linear map that must tell a label from the output of an early layer.

    Attributes:
      name: of its labels and metrics.
      layer: number of layers below it, from 1.
      of_prompt: whether its labels are at the tokens of prompts, not of completions.
      outputs: O, labels of a token.
      classes: K of a label; 0 for a number, which should have mean 0 and variance 1.
    """

    name: str
    layer: int
    of_prompt: bool
    outputs: int = 1
    classes: int = 0

    def init(self, width: int) -> dict[str, Array]:
        """Returns its parameters for layers of ``width``, all zero."""
        size = self.outputs * max(self.classes, 1)
        return {"kernel": jnp.zeros((width, size)), "bias": jnp.zeros(size)}

    def loss(self, params: Mapping[str, Array], states: Array, labels: Array) -> tuple:
        """Returns the mean loss of the labels that are there, and a metric.

        Args:
          params: of `init`.
          states: outputs of the layer, [..., D].
          labels: [..., O]; ``NO_CLASS``, or NaN for a number, where there is none.

        Returns:
          cross-entropy with (right, labels), or squared error with (explained, labels): explained
          is the label's variance, taken as 1, less the squared error.
        """
        # Normed, as the next layer's input is.
        states = states * jax.lax.rsqrt(jnp.mean(states**2, -1, keepdims=True) + 1e-6)
        out = states @ params["kernel"] + params["bias"]
        if self.classes:
            out = out.reshape(*labels.shape, self.classes)
            given = labels != NO_CLASS
            losses = optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(labels, 0))
            score = out.argmax(axis=-1) == labels
        else:
            given = ~jnp.isnan(labels)
            losses = (out - jnp.where(given, labels, 0.0)) ** 2
            score = 1 - losses
        mean = masked(losses, given).sum() / jnp.maximum(given.sum(), 1)
        return mean, metric(score, given)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SkillBatch:
    """Prompts with their completions and labels, padded on the right.

    Attributes:
      prompts: token ids.
      prompt_valid: True for the tokens of a prompt.
      completions: token ids of demonstrations.
      valid: True for the tokens of a completion.
      sampled: True for the tokens that the policy would have written.
      labels: of each token of a list, a distribution over candidate numbers; 0 at other tokens,
        whose label is the token itself.
      readouts: labels of the readouts by name.
    """

    prompts: Int[Array, "P Tp"]
    prompt_valid: Bool[Array, "P Tp"]
    completions: Int[Array, "P G T"]
    valid: Bool[Array, "P G T"]
    sampled: Bool[Array, "P G T"]
    labels: Float[Array, "P G T C"]
    readouts: dict[str, Array]


def ranking_labels(
    log_worth: Sequence[float], ranking: Sequence[int]
) -> Float[np.ndarray, "ranked C"]:
    """Returns the label at each place of a list: the softmax of the candidates that are left.

    It is the distribution of the next choice in the model of Plackett (1975) and Luce (1959).

    Args:
      log_worth: of each candidate.
      ranking: candidate numbers from 1, as the list has them.

    Example: worths 2, 1 and 1. Without candidate 1 the others have the same chance.

      >>> ranking_labels(np.log([2.0, 1.0, 1.0]), [1, 3]).tolist()
      [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]
    """
    worth = np.exp(np.asarray(log_worth, np.float64) - np.max(log_worth))
    labels = np.zeros((len(ranking), len(worth)), np.float32)
    for place, number in enumerate(ranking):
        # Worths that vanish beside the best may be all that is left: then any of them will do.
        left = worth.sum()
        labels[place, number - 1] = 1.0
        if left > 1e-30:
            labels[place] = worth / left
        worth[number - 1] = 0.0
    return labels


def skill_loss(
    model: Qwen3,
    readout_params: Mapping[str, Any],
    batch: SkillBatch,
    readouts: Sequence[Readout],
    number_ids: Int[np.ndarray, "C"],
) -> tuple[Array, Metrics]:
    """Returns the cross-entropy of all sampled tokens, with the readouts' losses.

    Args:
      model: the policy, its layers not scanned.
      readout_params: of each readout by name.
      batch: prompts and completions.
      readouts: those whose labels the batch has.
      number_ids: token id of each candidate number in a list.

    Returns:
      the loss, and metrics: ``nll`` of a token; ``places`` and ``first``, the shares of all list
      tokens and of first ones at which the likeliest candidate has the greatest label; the metric
      of each readout.
    """
    prompt_layers, completion_layers, hidden = _layer_states(model, batch)
    logprobs = jax.nn.log_softmax(model.logits(hidden), axis=-1)  # [P, G, T, V]
    token = jnp.take_along_axis(logprobs, batch.completions[..., None], axis=-1)[..., 0]
    numbers = logprobs[..., number_ids]
    listed = batch.labels.sum(axis=-1) > 0
    nll = -jnp.where(listed, (batch.labels * numbers).sum(axis=-1), token)
    loss = masked(nll, batch.sampled).sum() / jnp.maximum(batch.sampled.sum(), 1)
    chosen = jax.nn.one_hot(numbers.argmax(axis=-1), numbers.shape[-1])
    best = (batch.labels * chosen).sum(axis=-1) >= batch.labels.max(axis=-1) - 1e-6
    first = listed & ~jnp.pad(listed[..., :-1], ((0, 0), (0, 0), (1, 0)))
    metrics = {
        "nll": metric(nll, batch.sampled),
        "places": metric(best, listed),
        "first": metric(best, first),
    }
    for readout in readouts:
        layers = prompt_layers if readout.of_prompt else completion_layers
        extra, score = readout.loss(
            readout_params[readout.name], layers[readout.layer - 1], batch.readouts[readout.name]
        )
        loss += READOUT_WEIGHT * extra
        metrics[readout.name] = score
    return loss, metrics


def _layer_states(
    model: Qwen3, batch: SkillBatch
) -> tuple[list[Array], list[Array], Float[Array, "P G T D"]]:
    """Returns the layers' outputs at prompts and completions, and the states that score tokens."""
    count, members, steps = batch.completions.shape
    positions = jnp.broadcast_to(jnp.arange(batch.prompts.shape[1]), batch.prompts.shape)
    prompt_layers, prompt_hidden, kv = model.forward_layers(
        batch.prompts, positions, batch.prompt_valid
    )
    lengths = batch.prompt_valid.sum(axis=1)
    last = jnp.take_along_axis(prompt_hidden, (lengths - 1)[:, None, None], axis=1)
    positions = jnp.repeat(lengths, members)[:, None] + jnp.arange(steps)
    layers, hidden, _ = model.forward_layers(
        batch.completions.reshape(count * members, steps),
        positions,
        batch.valid.reshape(count * members, steps),
        context=Context(kv, batch.prompt_valid),
    )

    def by_member(x: Array) -> Array:
        return x.reshape(count, members, steps, -1)

    # A token is scored from the state before it, the first one from the prompt's last.
    before = jnp.broadcast_to(last[:, None], (count, members, 1, last.shape[-1]))
    scoring = jnp.concatenate([before, by_member(hidden)[:, :, :-1]], axis=2)
    return prompt_layers, [by_member(x) for x in layers], scoring
