"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), in Flax NNX.

A window of item codes passes through causal self-attention; the state at each position can be
scored against every item embedding. The losses are those of `losses.next_item`.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError

PAD = -1  # marks an empty place in a window of item codes; windows are filled from the right


@dataclass(frozen=True)
class SasrecConfig:
    """Size of the model: ``items`` in the catalog, windows of ``max_length`` item codes.

    ``embedding_norm`` puts a LayerNorm over the sum of an item's and its place's embedding, as
    BERT4Rec's code does; without it the item's is scaled by the root of ``width``, as in the
    paper's own.
    """

    items: int
    max_length: int = 10
    width: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.5
    embedding_norm: bool = False


class Block(nnx.Module):
    """Pre-norm causal self-attention and a two-layer feed-forward, both with dropout."""

    def __init__(self, config: SasrecConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.feed_norm = nnx.LayerNorm(width, rngs=rngs)
        self.feed_in = nnx.Linear(width, width, rngs=rngs)
        self.feed_out = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        key: Array | None,
        newest: bool = False,
    ) -> Float[Array, "B A D"]:
        """The states of all places (A is T), or with ``newest`` of the last alone (A is 1)."""
        keys = (None, None) if key is None else jax.random.split(key)
        asked = slice(-1 if newest else None, None)
        heard = self._attend(self.attention_norm(x), mask[:, :, asked], asked)
        x = x[:, asked] + self._drop(heard, keys[0])
        hidden = nnx.gelu(self.feed_in(self.feed_norm(x)))
        return x + self._drop(self.feed_out(hidden), keys[1])

    def _attend(self, x: Array, mask: Array, asked: slice) -> Array:
        split = x.shape[:2] + (self.heads, x.shape[-1] // self.heads)
        q, k, v = (part.reshape(split) for part in jnp.split(self.qkv(x), 3, axis=-1))
        heard = jax.nn.dot_product_attention(q[:, asked], k, v, mask=mask)
        return self.out(heard.reshape(*heard.shape[:2], -1))

    def _drop(self, x: Array, key: Array | None) -> Array:
        return self.dropout(x, deterministic=key is None, rngs=key)


class Sasrec(nnx.Module):
    """The model: item and position embeddings, causal blocks, scores by the item embeddings."""

    def __init__(self, config: SasrecConfig, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(0.02)
        self.items = nnx.Embed(config.items, config.width, embedding_init=normal, rngs=rngs)
        self.places = nnx.Embed(config.max_length, config.width, embedding_init=normal, rngs=rngs)
        normed = config.embedding_norm
        self.embedding_norm = nnx.LayerNorm(config.width, rngs=rngs) if normed else None
        self.dropout = nnx.Dropout(config.dropout)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)

    def __call__(
        self, windows: Int[Array, "B T"], key: Array | None = None, newest: bool = False
    ) -> Float[Array, "B A D"]:
        """State after each position; the state at t depends on positions <= t only.

        ``windows`` holds item codes with ``PAD`` before the first; T is at most ``max_length`` and
        the last place is always the newest event. ``key`` switches dropout on. With ``newest`` the
        last block spares all places but the last (A is 1, otherwise T): its state is the same but
        for rounding.
        """
        length = windows.shape[1]
        valid = windows != PAD
        keys = [None] * (len(self.blocks) + 1)
        if key is not None:
            keys = list(jax.random.split(key, len(self.blocks) + 1))
        x = self.items(jnp.where(valid, windows, 0)) * valid[..., None]
        if self.embedding_norm is None:
            x = x * self.config.width**0.5 + self.places.embedding[-length:]
        else:
            x = self.embedding_norm(x + self.places.embedding[-length:])
        x = self.dropout(x, deterministic=key is None, rngs=keys[0])
        causal = jnp.tril(jnp.ones((length, length), bool))
        mask = (causal & valid[:, None, :])[:, None]
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, mask, block_key, newest and block is self.blocks[-1])
        return self.norm(x)

    def user_state(self, history: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """State after the newest event of each history (right-aligned, ``PAD`` before)."""
        return self(history, newest=True)[:, -1]

    def scores(self, states: Float[Array, "*B D"]) -> Float[Array, "*B I"]:
        """Inner product of each state with every item embedding."""
        return states @ self.items.embedding[...].T

    @property
    def item_embeddings(self) -> Float[Array, "I D"]:
        """The table that states are scored against."""
        return self.items.embedding[...]


def fitted_sequences(log: InteractionLog, fit_range: FitRange) -> dict[int, np.ndarray]:
    """Item codes of each user's events inside the fit range, oldest first, by user code.

    Raises:
      InputError: if the log has another number of events before the range's end than the range
        says, so that a model is never labeled with a range it was not fitted on.
    """
    fitted = log.before(fit_range.end_time)
    if len(fitted) != fit_range.events:
        raise InputError(
            f"fit range: found {len(fitted)} events before time {fit_range.end_time} in the log, "
            f"expected {fit_range.events}"
        )
    users = log.user[fitted]
    order = np.argsort(users, kind="stable")
    present, starts = np.unique(users[order], return_index=True)
    pieces = np.split(log.item[fitted][order], starts[1:])
    return {int(user): piece for user, piece in zip(present, pieces, strict=True)}


def pad_histories(histories: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "B T"]:
    """The last ``length`` codes of each history, right-aligned, ``PAD`` before them."""
    windows = np.full((len(histories), length), PAD, np.int32)
    for row, history in zip(windows, histories, strict=True):
        kept = history[-length:]
        if len(kept):
            row[length - len(kept) :] = kept
    return windows


@functools.partial(jax.jit, static_argnums=(0, 3))
def _states(graphdef, params, windows: Int[Array, "B T"], whole: bool) -> Float[Array, "B D"]:
    model = nnx.merge(graphdef, params)
    return model(windows)[:, -1] if whole else model.user_state(windows)


def user_states(
    model: Sasrec, histories: Sequence[Sequence[int]], batch: int = 256, *, whole: bool = False
) -> Float[np.ndarray, "U D"]:
    """States of any number of histories, in batches of one compiled shape.

    ``whole`` computes the states of all places on the way, as training does: the same but for
    rounding, and slower. The artifacts of tools are made so, since policies were taught by them.

    Safe in several threads at once, which ``nnx.jit`` is not: it takes the model apart in place.
    """
    graphdef, params = nnx.split(model)
    windows = pad_histories(histories, model.config.max_length)
    parts = []
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        filled = np.pad(part, ((0, batch - len(part)), (0, 0)), constant_values=PAD)
        parts.append(np.asarray(_states(graphdef, params, filled, whole))[: len(part)])
    return np.concatenate(parts) if parts else np.zeros((0, model.config.width), np.float32)


def candidate_scores(
    model: Sasrec,
    histories: Sequence[Sequence[int]],
    candidates: Int[np.ndarray, "U C"],
    chunk: int = 4096,
) -> Float[np.ndarray, "U C"]:
    """The model's score of each history's own candidates, and of no other item.

    ``chunk`` is how many histories' candidates are gathered at once.
    """
    states, table = user_states(model, histories), np.asarray(model.item_embeddings)
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(scores), chunk):
        rows = slice(start, start + chunk)
        scores[rows] = np.einsum("ud,ucd->uc", states[rows], table[candidates[rows]])
    return scores


def save_sasrec(
    directory: str | Path, model: Sasrec, item_ids: Sequence[str], fit_range: FitRange
) -> None:
    """Writes ``sasrec.safetensors`` and ``sasrec.json`` (sizes, item ids, fit range)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_named_arrays(model), directory / "sasrec.safetensors")
    record = {
        "config": asdict(model.config),
        "fit_range": asdict(fit_range),
        "item_ids": list(item_ids),
    }
    text = json.dumps(record, ensure_ascii=False)
    (directory / "sasrec.json").write_text(text, encoding="utf-8")


def load_sasrec(directory: str | Path, item_ids: Sequence[str]) -> tuple[Sasrec, FitRange]:
    """Reads what ``save_sasrec`` wrote.

    Raises:
      InputError: if a file is missing, or the model was fitted on another catalog: item codes
        index its embeddings, so the ids must be the same in the same order.
    """
    model, saved, fit_range = load_with_items(directory)
    _check_catalog(Path(directory) / "sasrec.json", saved, item_ids)
    return model, fit_range


def load_with_items(directory: str | Path) -> tuple[Sasrec, list[str], FitRange]:
    """`load_sasrec` for somebody who has no catalog: the item ids are those saved."""
    record, arrays = read_saved(directory, "sasrec", ("config", "fit_range", "item_ids"))
    model = Sasrec(SasrecConfig(**record["config"]), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    flat = [(path, leaf.replace(jnp.asarray(arrays[_name(path)]))) for path, leaf in _flat(state)]
    model = nnx.merge(graphdef, nnx.from_flat_state(flat))
    return model, record["item_ids"], FitRange(**record["fit_range"])


def read_saved(
    directory: str | Path, stem: str, fields: Sequence[str]
) -> tuple[dict, dict[str, np.ndarray]]:
    """The record of ``stem.json`` and the arrays of ``stem.safetensors``.

    Raises:
      InputError: if one is missing or unreadable, or the record lacks one of ``fields``.
    """
    directory = Path(directory)
    for name in (f"{stem}.json", f"{stem}.safetensors"):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: found no {name}, expected a saved {stem}")
    try:
        record = json.loads((directory / f"{stem}.json").read_text(encoding="utf-8"))
        arrays = load_file(directory / f"{stem}.safetensors")
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{directory}: found an unreadable {stem} ({error})") from error
    for field in fields:
        if not isinstance(record, dict) or field not in record:
            raise InputError(f"{directory}/{stem}.json: found no field {field!r}, expected one")
    return record, arrays


def _check_catalog(path: Path, saved: list[str], given: Sequence[str]) -> None:
    if len(saved) != len(given):
        raise InputError(
            f"{path}: found a model of {len(saved)} items, expected the catalog's {len(given)}"
        )
    for code, (old, new) in enumerate(zip(saved, given, strict=True)):
        if old != new:
            raise InputError(f"{path}: found item {old!r} at place {code}, expected {new!r}")


def _flat(state: nnx.State):
    return nnx.to_flat_state(state)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _named_arrays(model: Sasrec) -> dict[str, np.ndarray]:
    _, state = nnx.split(model)
    return {_name(path): np.asarray(leaf.get_value()) for path, leaf in _flat(state)}
