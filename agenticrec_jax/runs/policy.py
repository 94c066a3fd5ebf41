"""The policy that a program starts from: its directory, weights, tokenizer and adapters."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from agenticrec_jax.bundled import resolve
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.io.huggingface import load_policy, read_config
from agenticrec_jax.models.lora import LoraConfig, add_lora
from agenticrec_jax.parallel.mesh import shard_params
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tokenizers.load import load_tokenizer

COMPUTED = ("dtype", "param_dtype", "scan_layers", "remat", "attention")


def profile_model(config: ConfigDict) -> str:
    """The directory of the model whose profiles the tools give."""
    return config.profiles.model or config.policy.directory


@dataclasses.dataclass
class Policy:
    """A loaded policy: its static half, parameters, tokenizer, and the hash of its weights."""

    graphdef: nnx.GraphDef
    params: nnx.State
    tokenizer: Tokenizer
    weights_hash: str


def computed(config: ConfigDict) -> dict:
    """How the config's policy is computed: options of ``load_policy``."""
    return {name: config.policy[name] for name in COMPUTED}


def policy_config(config: ConfigDict, directory: str) -> Qwen3Config:
    """The shape of a policy directory's model, computed as the config says; nothing is loaded."""
    return dataclasses.replace(read_config(resolve(directory)), **computed(config))


def load(directory: str, mesh: Mesh | None = None, dtype: str = "float32", **options) -> Policy:
    """Loads a policy directory and checks that tokenizer and embedding fit together.

    ``options`` are those of ``load_policy``.
    """
    path = resolve(directory)
    rows = read_config(path).vocab_size
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{path / tokenizer.file}: found {tokenizer.vocab_size} pieces, expected at most the "
            f"{rows} rows of tensor model.embed_tokens.weight"
        )
    model = load_policy(path, mesh=mesh, dtype=dtype, **options)
    return Policy(*nnx.split(model), tokenizer, weights_hash(path))


def weights_hash(path: Path) -> str:
    """16 hex digits of the sha256 of a policy directory's weights.

    Raises:
      InputError: if there are none.
    """
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise InputError(f"{path}: found no *.safetensors, expected a policy directory")
    digest = hashlib.sha256()
    for shard in shards:
        with open(shard, "rb") as file:  # piece by piece: a shard may be larger than memory
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16]


def lora_config(config: ConfigDict) -> LoraConfig | None:
    """The adapters of ``config.policy.lora``; None for rank 0."""
    settings = config.policy.lora
    if settings.rank == 0:
        return None
    return LoraConfig(settings.rank, settings.alpha, tuple(settings.targets))


def with_adapters(policy: Policy, config: ConfigDict, mesh: Mesh | None = None) -> Policy:
    """The policy with fresh adapters by ``config.policy.lora``; with rank 0 as it is."""
    if (adapters := lora_config(config)) is None:
        return policy
    model = nnx.merge(policy.graphdef, policy.params)
    graphdef, params = nnx.split(add_lora(model, adapters, rngs=nnx.Rngs(config.seed)))
    params = params if mesh is None else shard_params(params, mesh)
    return dataclasses.replace(policy, graphdef=graphdef, params=params)


def copied(params):
    """A copy on device: the learner takes its parameters over, and these are needed again."""
    return jax.tree.map(jnp.copy, params)
