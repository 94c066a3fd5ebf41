"""LLaRA: a language model reads each item as its title and as a recommender's embedding of it.

Liao et al., "LLaRA: Large Language-Recommendation Assistant" (SIGIR 2024, arXiv:2312.02445). Behind
each title of the question (`titles`) stands one more input: the item's embedding in a fitted
SASRec, projected to the width of the language model. Model and projector are fine-tuned on the
title of the target; the SASRec stays as it is. Training goes from questions of text alone to those
with embeddings: the share of the latter rises in a line over the steps.

Axes: B rows, T tokens, I items, E width of an item's embedding, D of the language model.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from agenticrec_jax import strict_json
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.language.titles import TitleAnswers
from agenticrec_jax.models.lora import LoraParam, lora_config
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.paths import Path, make_directory, write_whole
from agenticrec_jax.sequential.saving import (
    check_arrays,
    read_fit_range,
    read_saved,
    save_arrays,
)

_STEM = "projector"  # of the two files beside a policy's weights


class ItemProjector(nnx.Module):
    """Two layers from an item's embedding in a recommender to an input of a language model.

    Args:
      table: embeddings of all items. They are not trained.
      config: of the language model.
      rngs: of the initialization.
    """

    def __init__(self, table: Float[Array, "I E"], config: Qwen3Config, *, rngs: nnx.Rngs):
        dtypes = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        width = config.hidden_size
        self.table = nnx.Param(jnp.asarray(table))
        self.inner = nnx.Linear(table.shape[1], width, **dtypes, rngs=rngs)
        self.outer = nnx.Linear(width, width, **dtypes, rngs=rngs)

    def __call__(self, items: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the inputs that stand for items."""
        embedded = jax.lax.stop_gradient(self.table[...])[items]
        return self.outer(nnx.gelu(self.inner(embedded), approximate=False))


class ItemQwen3(Qwen3):
    """A policy whose ids from ``config.vocab_size`` on are items, read through a projector.

    It shares the parameters of the policy that it is made of. It writes none of its items: logits
    are those of the vocabulary.
    """

    def __init__(self, policy: Qwen3, projector: ItemProjector):
        self.config = policy.config
        self.embedding = policy.embedding
        self.embedding_scale = nnx.data(policy.embedding_scale)
        self.layers = policy.layers
        self.norm = policy.norm
        self.head = policy.head
        self.projector = projector

    def _embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        words = self.config.vocab_size
        text = super()._embed(jnp.minimum(ids, words - 1))
        items = self.projector(jnp.maximum(ids - words, 0))
        return jnp.where((ids >= words)[..., None], items.astype(text.dtype), text)


def with_projector(policy: Qwen3, table: Float[np.ndarray, "I E"], *, rngs: nnx.Rngs) -> ItemQwen3:
    """Returns the policy with a fresh projector of a recommender's item embeddings.

    Where the policy has adapters, the learner trains `LoraParam` alone, so the projector's layers
    become that too.
    """
    projector = ItemProjector(table, policy.config, rngs=rngs)
    if lora_config(policy):
        for layer in (projector.inner, projector.outer):
            layer.kernel = LoraParam(layer.kernel[...])
            layer.bias = LoraParam(layer.bias[...])
    return ItemQwen3(policy, projector)


def save_projector(
    projector: ItemProjector,
    directory: str | os.PathLike,
    item_ids: Sequence[str],
    fit_range: FitRange,
) -> None:
    """Writes ``projector.safetensors`` and ``projector.json``, with the item embeddings.

    Args:
      projector: a trained one.
      directory: of the policy that was trained with it.
      item_ids: ids of the catalog.
      fit_range: that of the item embeddings.
    """
    directory = make_directory(directory)
    save_arrays(
        {name: np.asarray(x[...], np.float32) for name, x in _variables(projector).items()},
        directory / f"{_STEM}.safetensors",
    )
    record = {"fit_range": dataclasses.asdict(fit_range), "item_ids": list(item_ids)}
    text = strict_json.dumps(record, ensure_ascii=False)
    write_whole(directory / f"{_STEM}.json", text)


def load_projector(
    directory: str | os.PathLike, config: Qwen3Config, item_ids: Sequence[str]
) -> tuple[ItemProjector, FitRange]:
    """Reads the files that `save_projector` wrote.

    Args:
      directory: of the policy.
      config: of the policy.
      item_ids: ids of the catalog that the projector has to be of.

    Raises:
      InputError: a file is missing or unreadable, or is of another catalog or policy.
    """
    record, arrays = read_saved(directory, _STEM, ("fit_range", "item_ids"))
    path = Path(directory) / f"{_STEM}.json"
    if record["item_ids"] != list(item_ids):
        raise InputError(f"{path}: found other items than the log's, expected those of this log")
    table = arrays.get("table", np.zeros((0, 0)))
    width = table.shape[-1] if table.ndim else 0
    projector = ItemProjector(np.zeros((len(item_ids), width)), config, rngs=nnx.Rngs(0))
    variables = _variables(projector)
    shapes = {n: jax.ShapeDtypeStruct(x[...].shape, np.float32) for n, x in variables.items()}
    check_arrays(path.with_suffix(".safetensors"), arrays, shapes)
    for name, variable in variables.items():
        variable[...] = jnp.asarray(arrays[name], variable[...].dtype)
    return projector, read_fit_range(path, record["fit_range"])


def _variables(projector: ItemProjector) -> dict[str, nnx.Variable]:
    return {".".join(path): x for path, x in nnx.to_flat_state(nnx.state(projector))}


@dataclasses.dataclass(frozen=True)
class Curriculum(TitleAnswers):
    """`TitleAnswers` of which a rising share of the steps has the items behind their titles.

    Step t of n (from 1) has them with probability t / n: in the last step for sure.

    Attributes:
      first_item_id: where item codes begin among the ids.
    """

    first_item_id: int

    def prompt(self, example: RankingExample, step: int) -> list[int]:
        """Returns the ids of the question that a step asks about an example."""
        return self.prompts.prompt(example, self.first_item_id if self.is_hybrid(step) else None)

    def is_hybrid(self, step: int) -> bool:
        """Whether the questions of a step (from 0) have items behind their titles."""
        return np.random.default_rng((self.seed, step)).random() < (step + 1) / self.steps
