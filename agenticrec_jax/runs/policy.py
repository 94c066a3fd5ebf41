"""The policy of a run: its directory, weights, tokenizer and adapters."""

import dataclasses
import hashlib
import os

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.bundled import resolve
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.io.huggingface import load_policy as load_model
from agenticrec_jax.models.io.huggingface import read_config
from agenticrec_jax.models.io.huggingface import save_policy as save_model
from agenticrec_jax.models.io.peft import save_adapters
from agenticrec_jax.models.lora import LoraConfig, add_lora, lora_config
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.parallel.mesh import shard_params
from agenticrec_jax.parallel.multihost import main_writes
from agenticrec_jax.paths import Path, glob, make_directory
from agenticrec_jax.runs.config import PolicyConfig
from agenticrec_jax.runtime.finite import expect_finite
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tokenizers.load import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded policy.

    Attributes:
      graphdef: the model's static half, of ``nnx.split(model)``.
      params: its parameters; of a policy with adapters both the base and the adapters.
      tokenizer: of the policy directory.
      weights_hash: `weights_hash` of the directory that was loaded.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    tokenizer: Tokenizer
    weights_hash: str

    def copy(self) -> "Policy":
        """Returns a policy with copied parameters: a stage of training consumes its policy's."""
        return dataclasses.replace(self, params=jax.tree.map(jnp.copy, self.params))


def model_config(config: PolicyConfig, directory: str | os.PathLike | None = None) -> Qwen3Config:
    """Returns the shape of a policy directory's model, computed as ``config`` says.

    Only ``config.json`` is read.

    Args:
      config: of the policy.
      directory: None for the config's own.
    """
    shape = read_config(resolve(directory or config.directory))
    return dataclasses.replace(shape, **config.computation())


def load_policy(
    config: PolicyConfig,
    directory: str | os.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Policy:
    """Loads a policy directory; adds fresh adapters if ``config.lora`` has a rank.

    Args:
      config: of the policy.
      directory: None for the config's own.
      mesh: where parameters are placed; None for one device.
      seed: of the adapters' initialization.

    Raises:
      InputError: a file is missing or bad, or the tokenizer has more pieces than the embedding has
        rows.
    """
    path = resolve(directory or config.directory)
    rows = read_config(path).vocab_size
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{path / tokenizer.file}: found {tokenizer.vocab_size} pieces, expected at most the "
            f"{rows} rows of tensor model.embed_tokens.weight"
        )
    model = load_model(path, mesh=mesh, **config.computation())
    policy = Policy(*nnx.split(model), tokenizer, weights_hash(path))
    adapters = config.lora.adapters()
    return policy if adapters is None else _with_adapters(policy, adapters, mesh=mesh, seed=seed)


def _with_adapters(policy: Policy, adapters: LoraConfig, *, mesh: Mesh | None, seed: int) -> Policy:
    model = nnx.merge(policy.graphdef, policy.params)
    graphdef, params = nnx.split(add_lora(model, adapters, rngs=nnx.Rngs(seed)))
    params = params if mesh is None else shard_params(params, mesh)
    return dataclasses.replace(policy, graphdef=graphdef, params=params)


def save_policy(policy: Policy, directory: str | os.PathLike) -> None:
    """Writes a policy directory: configuration, weights and tokenizer.

    Adapters are merged into the weights, and written alone in ``adapter`` beside them.

    Raises:
      Diverged: a parameter is not finite; nothing is written.
    """
    expect_finite(policy.params, f"policy directory {directory}")
    model = nnx.merge(policy.graphdef, policy.params)
    tokenizer = policy.tokenizer
    ends = {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}
    with main_writes("tokenizer") as writes:
        if writes:
            tokenizer.save(make_directory(directory, "policy directory"))
    if lora_config(model):
        save_adapters(model, Path(directory) / "adapter")
    save_model(model, directory, generation=ends)  # last its configuration: see `trained_policy`


def weights_hash(path: str | os.PathLike) -> str:
    """Returns 16 hex digits of the sha256 of a policy directory's weights.

    Raises:
      InputError: the directory has no weights.
    """
    files = glob(path, "*.safetensors")
    if not files:
        raise InputError(f"{path}: found no *.safetensors, expected a policy directory")
    digest = hashlib.sha256()
    for name in files:
        with name.open("rb") as file:
            # Piece by piece, since a file may be larger than memory.
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16]


def count_parameters(directory: str | os.PathLike) -> int:
    """Returns the number of a policy directory's parameters; only ``config.json`` is read."""
    shape = read_config(resolve(directory))
    model = nnx.eval_shape(lambda: Qwen3(shape, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
