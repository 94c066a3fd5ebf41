"""A policy that writes a text of the test's choice: each token has one next token."""

import jax.numpy as jnp
import numpy as np

from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.compact import train_tokenizer

CALL = ('{"name":"', '","arguments":{}}')  # pieces of one id each


def call(name):
    """The text of a call without arguments."""
    return f"<tool_call>{name.join(CALL)}</tool_call>"


def save_writer(directory, answer, tool=None):
    """Saves a random policy that begins with ``answer``, after a call of ``tool`` if there is one.

    Its head reads the last token's own dimension for the next token, and of other tokens random
    ones: after the end of the texts it writes anything.
    """
    world = tiny_world()
    texts = [f" {title}" for title in world.log.items.title]
    tokenizer = train_tokenizer(texts, 420, (*world.toolbox.names, *CALL))
    chains = [f"<assistant>{answer}"]
    if tool is not None:
        chains = [f"<assistant>{call(tool)}", f"</observation>{answer}"]
    chains = [tokenizer.encode_markup(chain) for chain in chains]
    last = [token for chain in chains for token in chain[:-1]]
    following = [token for chain in chains for token in chain[1:]]
    assert len(set(last)) == len(last) <= 24
    size = tokenizer.vocab_size
    model = tiny_qwen3(3, num_layers=1, vocab_size=size, tie_word_embeddings=False)
    for kernel in (model.layers[0].attention.o.kernel, model.layers[0].mlp.down.kernel):
        kernel[...] = 0 * kernel[...]
    place = jnp.arange(len(last))
    last = jnp.array(last)
    noise = np.random.default_rng(5).normal(size=(2, size, 32))
    embedding = jnp.array(noise[0]).at[:, :24].set(0).at[last].set(0).at[last, place].set(1)
    head = jnp.array(noise[1].T).at[place].set(0).at[place, jnp.array(following)].set(9)
    model.embedding[...], model.head.kernel[...] = embedding, head
    save_policy(model, directory)
    tokenizer.save(directory)
    return str(directory)
