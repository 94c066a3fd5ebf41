"""ReaRec: latent reasoning steps after SASRec's state (Tang et al., 2025, arXiv:2503.22675).

The state r_0 of SASRec at a position goes back into the network as one more input, K times:

    r_k = SASRec(history, r_0 + p_1, ..., r_(k-1) + p_k), the state of the last input,

with an embedding p_k of each step in place of an item's position. The blocks are those of SASRec. A
step attends to the history up to its position and to the steps of its own chain, so the chains of
all positions of a window are computed at once, each as if its history stood alone. There are two
ways to make use of a chain:

- `ReaRecErl`, ensemble reasoning learning: the state is the mean of r_0, ..., r_K. Training
  subtracts ``diversity`` times the mean divergence of the steps' distributions of the next item, so
  that the steps do not become equal;
- `ReaRecPrl`, progressive reasoning learning: the state is r_K. Training adds the loss of every
  earlier step at a higher temperature, ``temperature * decay ** (K - k)``, so that the distribution
  gets sharper step by step, and a contrast of each step with the same step after noise on its
  inputs.

Losses and values are those of the authors' code (github.com/TangJiakai/ReaRec, ``src/models``),
where noise begins after two epochs; here it begins at once.

Axes beside those of the room: Q positions with a chain (T, or the last one), K steps, N heads, H
head width, A packed positions.
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.sequential.fields import MOST_LAYERS, number, set_fields, whole
from agenticrec_jax.sequential.losses import chain_contrast_loss, chain_divergence
from agenticrec_jax.sequential.objective import Objective, next_items, pack
from agenticrec_jax.sequential.sasrec import Block, Sasrec, SasrecConfig


@dataclass(frozen=True)
class ErlConfig(SasrecConfig):
    """Sizes of SASRec, and values of ensemble reasoning learning.

    Attributes:
      steps: K, number of reasoning steps.
      temperature: scores are divided by it in training.
      diversity: weight of the divergence of the steps.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    steps: int = 2
    temperature: float = 0.07
    diversity: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        set_fields(
            self,
            steps=whole("steps", self.steps, most=MOST_LAYERS),
            temperature=number("temperature", self.temperature, above=0),
            diversity=number("diversity", self.diversity),
        )


@dataclass(frozen=True)
class PrlConfig(SasrecConfig):
    """Sizes of SASRec, and values of progressive reasoning learning.

    Attributes:
      steps: K, number of reasoning steps.
      temperature: scores of the last step, and similarities, are divided by it in training.
      decay: factor from the temperature of a step to that of the step before it.
      progressive: weight of the loss of the earlier steps.
      contrast: weight of the contrast with noisy steps.
      noise: standard deviation of the noise.

    Raises:
      InputError: names the field that is of another type or out of its range.
    """

    steps: int = 2
    temperature: float = 0.07
    decay: float = 5.0
    progressive: float = 1.0
    contrast: float = 1.0
    noise: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        set_fields(
            self,
            steps=whole("steps", self.steps, most=MOST_LAYERS),
            temperature=number("temperature", self.temperature, above=0),
            decay=number("decay", self.decay, above=0),
            progressive=number("progressive", self.progressive),
            contrast=number("contrast", self.contrast),
            noise=number("noise", self.noise),
        )


class Encoded(NamedTuple):
    """A window after SASRec's blocks.

    Attributes:
      state: r_0 of each position.
      keys: keys of the history in each block.
      values: values of the history in each block.
      mask: positions of the history that a position attends to.
    """

    state: Float[Array, "B Q D"]
    keys: list[Float[Array, "B T N H"]]
    values: list[Float[Array, "B T N H"]]
    mask: Bool[Array, "B 1 Q T"]


class Chains(NamedTuple):
    """Chains of the positions that have a next item.

    Attributes:
      chains: states r_0, ..., r_K.
      noisy: states r_1, ..., r_K after noise; none without a contrast.
      targets: code of the next item.
      weights: 1, or 0 for a row without a position; they are divided by the number of positions.
    """

    chains: Float[Array, "A K+1 D"]
    noisy: Float[Array, "A K D"] | None
    targets: Int[Array, "A"]
    weights: Float[Array, "A"]


class ReaRec(Sasrec):
    """SASRec with reasoning steps; a subclass says how a chain becomes a state, and its loss."""

    noise = 0.0  # of the noisy chains of a training; none at 0

    def __init__(self, config: ErlConfig | PrlConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        normal = nnx.initializers.normal(0.02)
        self.steps = nnx.Embed(config.steps, config.width, embedding_init=normal, rngs=rngs)

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None, last_only: bool = False
    ) -> Float[Array, "B Q D"]:
        """Returns the state after each position, or after the last alone; see `Sasrec`."""
        return self.combine(self.chains(windows, key, last_only))

    @abc.abstractmethod
    def combine(self, chains: Float[Array, "*A K+1 D"]) -> Float[Array, "*A D"]:
        """Returns the states of chains."""

    def chains(
        self, windows: Int[Array, "B T"], key: Array | None = None, last_only: bool = False
    ) -> Float[Array, "B Q K+1 D"]:
        """Returns the states r_0, ..., r_K of each position, or of the last alone."""
        keys = self._keys(key)
        encoded = self._encode(windows, keys, last_only)
        steps = self._reason(encoded, keys[-1])
        return jnp.concatenate([encoded.state[:, :, None], steps], axis=2)

    @property
    def num_keys(self) -> int:
        """Number of keys of a call: those of SASRec, and one of all steps."""
        return super().num_keys + 1

    def _keys(self, key: Array | None) -> list[Array | None]:
        if key is None:
            return [None] * self.num_keys
        return list(jax.random.split(key, self.num_keys))

    def _encode(self, windows: Array, keys: list[Array | None], last_only: bool) -> Encoded:
        x, mask = self.embed(windows, keys[0])
        history_keys: list[Array] = []
        history_values: list[Array] = []
        for block, block_key in zip(self.blocks, keys[1:-1], strict=True):
            _, k, v = _projections(block, x)
            history_keys.append(k)
            history_values.append(v)
            x = block(x, mask, block_key, last_only and block is self.blocks[-1])
        mask = jnp.broadcast_to(mask, (len(windows), 1, *mask.shape[2:]))
        if last_only:
            mask = mask[:, :, -1:]
        return Encoded(self.norm(x), history_keys, history_values, mask)

    def _reason(
        self,
        encoded: Encoded,
        key: Array | None,
        noise: Float[Array, "K B Q D"] | None = None,
    ) -> Float[Array, "B Q K D"]:
        """Returns the states r_1, ..., r_K, with noise added to the steps' inputs."""
        chain: list[list[tuple[Array, Array]]] = [[] for _ in self.blocks]
        state = encoded.state
        states = []
        for step in range(self.config.steps):
            step_key = None if key is None else jax.random.fold_in(key, step)
            x = state + self.steps.embedding[step]
            if noise is not None:
                x = x + noise[step]
            for layer, block in enumerate(self.blocks):
                block_key = None if key is None else jax.random.fold_in(step_key, layer)
                q, k, v = _projections(block, x)
                chain[layer].append((k, v))
                history = (encoded.keys[layer], encoded.values[layer])
                attended = _attend(q, history, chain[layer], encoded.mask)
                x = block.after_attention(x, block.out(attended), block_key)
            state = self.norm(x)
            states.append(state)
        return jnp.stack(states, axis=2)

    def training_loss(
        self,
        windows: Int[Array, "B W"],
        key: Array | None,
        objective: Objective,
        capacity: int | None = None,
    ) -> Float[Array, ""]:
        """Returns the loss of a batch; see `training.training_loss`."""
        inputs, targets, mask = next_items(windows)
        keys = self._keys(key)
        # The first key that the model does not use, as in `training.next_item_loss`.
        draw_key = jax.random.key(0) if key is None else jax.random.fold_in(key, self.num_keys)
        encoded = self._encode(inputs, keys, last_only=False)
        states = [encoded.state[:, :, None], self._reason(encoded, keys[-1])]
        if self.noise:
            noise_key = jax.random.fold_in(draw_key, 1)
            shape = (self.config.steps, *encoded.state.shape)
            noise = self.noise * jax.random.normal(noise_key, shape)
            # Another key: the noisy chain has other dropout, too.
            noisy_key = None if key is None else jax.random.fold_in(keys[-1], self.config.steps)
            states.append(self._reason(encoded, noisy_key, noise))
        states = jnp.concatenate(states, axis=2)  # [B T S D] of 1 + K or 1 + 2K states
        count = jnp.maximum(mask.sum(), 1)
        flat = states.reshape(*inputs.shape, -1)
        capacity = inputs.size if capacity is None else capacity
        flat, targets, mask = pack(flat, targets, mask, capacity)
        states = flat.reshape(capacity, *states.shape[2:])
        clean = self.config.steps + 1
        noisy = states[:, clean:] if self.noise else None
        weights = mask.astype(jnp.float32) / count
        packed = Chains(states[:, :clean], noisy, targets, weights)
        return self.chain_loss(packed, objective, draw_key)

    @abc.abstractmethod
    def chain_loss(self, packed: Chains, objective: Objective, key: Array) -> Float[Array, ""]:
        """Returns the loss of chains; ``key`` draws the negatives of the objective."""


class ReaRecErl(ReaRec):
    """ReaRec with ensemble reasoning learning; see the module.

    Example:
      >>> from agenticrec_jax.sequential.sequences import PAD
      >>> model = ReaRecErl(ErlConfig(items=50, max_length=4), rngs=nnx.Rngs(0))
      >>> model(jnp.array([[PAD, 7, 3, 12]])).shape
      (1, 4, 64)
    """

    name = "rearec_erl"
    config_type = ErlConfig

    def combine(self, chains: Float[Array, "*A K+1 D"]) -> Float[Array, "*A D"]:
        """Returns the mean of a chain."""
        return chains.mean(axis=-2)

    def chain_loss(self, packed: Chains, objective: Objective, key: Array) -> Float[Array, ""]:
        """Returns the loss of the mean state less the weighted divergence of the steps."""
        table = self.item_embeddings
        scaled = packed.chains / self.config.temperature
        loss, _ = objective(table, self.combine(scaled), packed.targets, packed.weights, key)
        divergence = chain_divergence(scaled @ table.T, packed.weights)
        return loss - self.config.diversity * divergence


class ReaRecPrl(ReaRec):
    """ReaRec with progressive reasoning learning; see the module.

    Example:
      >>> from agenticrec_jax.sequential.sequences import PAD
      >>> model = ReaRecPrl(PrlConfig(items=50, max_length=4), rngs=nnx.Rngs(0))
      >>> model(jnp.array([[PAD, 7, 3, 12]])).shape
      (1, 4, 64)
    """

    name = "rearec_prl"
    config_type = PrlConfig

    def combine(self, chains: Float[Array, "*A K+1 D"]) -> Float[Array, "*A D"]:
        """Returns the last state of a chain."""
        return chains[..., -1, :]

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on a step's input; 0 without a contrast."""
        return self.config.noise if self.config.contrast else 0.0

    def chain_loss(self, packed: Chains, objective: Objective, key: Array) -> Float[Array, ""]:
        """Returns the losses of all steps at their temperatures, and the contrast."""
        config = self.config

        def step_loss(step: int) -> Array:
            temperature = config.temperature * config.decay ** (config.steps - step)
            states = packed.chains[:, step] / temperature
            table = self.item_embeddings
            return objective(table, states, packed.targets, packed.weights, key)[0]

        earlier = sum(step_loss(step) for step in range(config.steps)) / config.steps
        loss = step_loss(config.steps) + config.progressive * earlier
        if packed.noisy is None:
            return loss
        contrast = chain_contrast_loss(
            packed.noisy, packed.chains[:, 1:], packed.weights, config.temperature
        )
        return loss + config.contrast * contrast


def _projections(block: Block, x: Float[Array, "B Q D"]) -> tuple[Array, Array, Array]:
    """Returns a block's queries, keys and values of its inputs, [B Q N H] each."""
    shape = (*x.shape[:2], block.heads, x.shape[-1] // block.heads)
    projected = block.qkv(block.attention_norm(x))
    return tuple(heads.reshape(shape) for heads in jnp.split(projected, 3, axis=-1))


def _attend(
    q: Float[Array, "B Q N H"],
    history: tuple[Float[Array, "B T N H"], Float[Array, "B T N H"]],
    chain: list[tuple[Float[Array, "B Q N H"], Float[Array, "B Q N H"]]],
    mask: Bool[Array, "B 1 Q T"],
) -> Float[Array, "B Q D"]:
    """Returns what queries get from the history under the mask and from their own chain's steps."""
    keys, values = history
    length = keys.shape[1]
    q = q / q.shape[-1] ** 0.5
    of_history = jnp.einsum("bqnh,btnh->bnqt", q, keys)
    of_history = jnp.where(mask, of_history, jnp.finfo(of_history.dtype).min)
    of_chain = [jnp.einsum("bqnh,bqnh->bnq", q, k)[..., None] for k, _ in chain]
    weights = jax.nn.softmax(jnp.concatenate([of_history, *of_chain], axis=-1), axis=-1)
    attended = jnp.einsum("bnqt,btnh->bqnh", weights[..., :length], values)
    for step, (_, v) in enumerate(chain):
        attended += weights[..., length + step].swapaxes(1, 2)[..., None] * v
    return attended.reshape(*attended.shape[:2], -1)
