"""LLaRA: the inputs that stand for items, what training changes, and the curriculum."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.language.llara import (
    Curriculum,
    ItemQwen3,
    load_projector,
    save_projector,
    with_projector,
)
from agenticrec_jax.language.titles import TitlePrompts, candidate_group
from agenticrec_jax.losses import for_batch, sft_loss
from agenticrec_jax.models.lora import LoraConfig, add_lora
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.packing import Packing, pack_groups

WORLD = tiny_world()
EXAMPLE = WORLD.examples[0]
TABLE = np.random.default_rng(3).normal(size=(90, 6)).astype(np.float32)
ITEMS = WORLD.log.items.item_id


def model_of(lora=False):
    policy = tiny_qwen3(vocab_size=WORLD.tokenizer.vocab_size, num_layers=1)
    if lora:
        add_lora(policy, LoraConfig(rank=2, alpha=4.0, targets=("q_proj",)), rngs=nnx.Rngs(1))
    return with_projector(policy, TABLE, rngs=nnx.Rngs(2))


def prompts():
    return TitlePrompts(WORLD.tokenizer, WORLD.log.items)


def test_an_item_stands_behind_its_title():
    first = WORLD.tokenizer.vocab_size
    ids = prompts().prompt(EXAMPLE, first)
    items = [i - first for i in ids if i >= first]
    assert items == [*EXAMPLE.history, *EXAMPLE.candidates]
    assert [i for i in ids if i < first] == prompts().prompt(EXAMPLE)
    before = ids[: ids.index(first + EXAMPLE.candidates[0])]
    title = WORLD.log.items.title[EXAMPLE.candidates[0]].casefold()
    assert WORLD.tokenizer.decode([i for i in before if i < first]).endswith(f"1. {title}")


def test_items_are_inputs_as_more_words_of_their_projections_would_be():
    """Against a plain policy whose vocabulary has a row for each item, projected by numpy."""
    model = model_of()
    layers = [model.projector.inner, model.projector.outer]
    for layer in layers:
        layer.bias[...] = jnp.linspace(-0.5, 0.5, layer.bias[...].size)
    (w1, b1), (w2, b2) = [(np.asarray(x.kernel[...]), np.asarray(x.bias[...])) for x in layers]
    hidden = TABLE @ w1 + b1
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    words = np.concatenate([np.asarray(model.embedding[...]), hidden @ w2 + b2])
    plain = Qwen3(dataclasses.replace(model.config, vocab_size=len(words)), rngs=nnx.Rngs(9))
    nnx.update(plain.layers, nnx.state(model.layers))
    nnx.update(plain.norm, nnx.state(model.norm))
    plain.embedding[...] = jnp.asarray(words)
    ids = jnp.array([prompts().prompt(EXAMPLE, model.config.vocab_size)])
    logits = model(ids)
    assert logits.shape[-1] == model.config.vocab_size  # no item can be written
    np.testing.assert_allclose(logits, plain(ids)[..., : logits.shape[-1]], atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_training_changes_the_projector_and_not_the_item_embeddings(lora):
    graphdef, params = nnx.split(model_of(lora))
    before = {path: np.asarray(x[...]) for path, x in nnx.to_flat_state(params)}
    optimizer = make_optimizer(1e-2)
    update = make_update(graphdef, for_batch(sft_loss), optimizer)
    group = candidate_group(prompts(), EXAMPLE, WORLD.tokenizer.vocab_size)
    state, _ = update(init_state(params, optimizer), pack_groups([group], Packing(1, 128, 16)))
    changed = {
        path
        for path, x in nnx.to_flat_state(state.params)
        if not np.array_equal(before[path], x[...])
    }
    assert {path for path in before if path[0] == "projector"} - changed == {("projector", "table")}
    assert (("embedding",) in changed) != lora
    assert any("lora" in path for path in changed) == lora


def test_the_share_of_questions_with_items_rises_to_all():
    source = Curriculum(range(2000), 1, 1, 5, prompts(), first_item_id=96)
    hybrid = [source.is_hybrid(step) for step in range(source.steps)]
    assert hybrid[-1] and hybrid == [source.is_hybrid(step) for step in range(source.steps)]
    shares = np.mean(np.reshape(hybrid, (4, 500)), axis=1)
    np.testing.assert_allclose(shares, [0.125, 0.375, 0.625, 0.875], atol=0.06)
    one = Curriculum(WORLD.examples[:1], 8, 1, 5, prompts(), first_item_id=900)
    for step in range(8):
        (batch,) = one.batches(step, Packing(1, 128, 16))
        assert bool((batch.prompts >= 900).any()) == one.is_hybrid(step)


def test_a_saved_projector_is_the_same_and_a_bad_one_is_refused(tmp_path):
    model = model_of()
    fit_range = FitRange(end_time=50, events=7)
    save_projector(model.projector, tmp_path, ITEMS, fit_range)
    loaded, of_range = load_projector(tmp_path, model.config, ITEMS)
    ids = jnp.array([prompts().prompt(EXAMPLE, model.config.vocab_size)])
    assert of_range == fit_range
    np.testing.assert_array_equal(model(ids), ItemQwen3(model, loaded)(ids))
    other = ("x", *ITEMS[1:])
    assert_names(refused(load_projector, tmp_path, model.config, other), "projector.json", "items")
    wide = dataclasses.replace(model.config, hidden_size=64)
    assert_names(refused(load_projector, tmp_path, wide, ITEMS), "projector.safetensors", "inner")
    (tmp_path / "projector.safetensors").unlink()
    sentence = refused(load_projector, tmp_path, model.config, ITEMS)
    assert_names(sentence, tmp_path, "projector.safetensors")
