"""Policies whose text is known, by their weights."""

import jax.numpy as jnp
from flax import nnx

from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.tokenizers.base import ChatTokenizer


def writer_of(tokenizer: ChatTokenizer, text: str, **changes) -> nnx.Module:
    """A policy that greedily writes ``text`` and ends its turn, whatever the chat is.

    What follows depends on the id before alone: each id of the text has a dimension of its own,
    which the head reads for the next one. So no id may occur twice in the text.
    """
    markup = tokenizer.encode_markup
    chain = [markup("<|im_start|>assistant\n")[-1], *markup(f"{text}<|im_end|>")]
    assert len(set(chain)) == len(chain) < 31
    size = tokenizer.vocab_size
    changes = {"num_layers": 1, "tie_word_embeddings": False} | changes
    model = tiny_qwen3(vocab_size=size, **changes)
    for kernel in (model.layers[0].attention.o.kernel, model.layers[0].mlp.down.kernel):
        kernel[...] = 0 * kernel[...]
    dimension = jnp.arange(len(chain))
    model.embedding[...] = jnp.zeros((size, 32)).at[:, 31].set(1).at[jnp.array(chain), 31].set(0)
    model.embedding[...] = model.embedding[...].at[jnp.array(chain), dimension].set(1)
    follows = jnp.zeros((32, size)).at[dimension[:-1], jnp.array(chain[1:])].set(9)
    model.head.kernel[...] = follows
    return model
