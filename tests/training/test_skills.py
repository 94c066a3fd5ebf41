"""Soft labels, readouts and the loss of skills, against plain recomputations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.training.skills import (
    NO_CLASS,
    READOUT_WEIGHT,
    Readout,
    SkillBatch,
    ranking_labels,
    skill_loss,
)


def test_labels_are_the_choices_that_are_left():
    worth = np.array([4.0, 2.0, 1.0, 1.0])
    labels = ranking_labels(np.log(worth), [2, 1, 4, 3])
    expected = [[4, 2, 1, 1], [4, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]]
    expected = [np.array(row) / sum(row) for row in expected]
    np.testing.assert_allclose(labels, expected, rtol=1e-6)


def test_labels_of_far_worths_are_the_list_itself():
    labels = ranking_labels([900.0, 0.0, 600.0, 300.0], [1, 3, 4, 2])
    assert labels.tolist() == np.eye(4)[[0, 2, 3, 1]].tolist()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 2, 5, 20), np.float32)
    labels[:, :, 1:4] = rng.dirichlet(np.ones(20), size=(2, 2, 3))
    sampled = np.ones((2, 2, 5), bool)
    sampled[..., 0] = False
    sampled[1, 1, 4] = False
    valid = np.ones((2, 2, 5), bool)
    valid[1, 1, 4] = False
    return SkillBatch(
        prompts=rng.integers(1, 40, size=(2, 6)),
        prompt_valid=np.arange(6) < np.array([[6], [4]]),
        completions=rng.integers(1, 40, size=(2, 2, 5)),
        valid=valid,
        sampled=sampled,
        labels=labels,
        readouts={
            "kind": rng.integers(NO_CLASS, 3, size=(2, 6, 1)),
            "score": np.where(rng.random((2, 2, 5, 4)) < 0.5, np.nan, 1.0).astype(np.float32),
        },
    )


READOUTS = (
    Readout("kind", 1, of_prompt=True, classes=3),
    Readout("score", 2, of_prompt=False, outputs=4),
)
NUMBER_IDS = np.arange(5, 25)


def test_the_loss_is_that_of_each_row_alone(batch):
    """Rows of prompt and completion without padding, a token at a time."""
    model = tiny_qwen3()
    params = {r.name: r.init(model.config.hidden_size) for r in READOUTS}
    loss, metrics = skill_loss(model, params, batch, READOUTS, NUMBER_IDS)
    total = count = 0.0
    first = []
    for p in range(2):
        prompt = batch.prompts[p][batch.prompt_valid[p]]
        for g in range(2):
            length = batch.valid[p, g].sum()
            row = np.concatenate([prompt, batch.completions[p, g, :length]])
            logprobs = jax.nn.log_softmax(model(jnp.asarray(row)[None]))[0]
            for t in np.flatnonzero(batch.sampled[p, g]):
                scored = logprobs[len(prompt) + t - 1]
                label = batch.labels[p, g, t]
                nll = (
                    -(label @ scored[NUMBER_IDS]) if label.any() else -scored[row[len(prompt) + t]]
                )
                total += float(nll)
                count += 1
                if t == 1:
                    first.append(int(scored[NUMBER_IDS].argmax()) == int(label.argmax()))
    # A readout of zeros has the loss of a guess: log 3 of three classes, 1 of the number 1.
    extra = READOUT_WEIGHT * (np.log(3) + 1.0)
    assert float(loss) == pytest.approx(total / count + extra, rel=1e-4)
    assert [float(x) for x in metrics["first"]] == [sum(first), 4.0]
    assert float(metrics["nll"][0]) == pytest.approx(total, rel=1e-4)
    given = ~np.isnan(batch.readouts["score"])
    assert [float(x) for x in metrics["score"]] == [0.0, given.sum()]


def test_readouts_learn_from_the_layer_that_they_name(batch):
    """The gradient reaches the layers up to the readout's and none behind it."""
    model = tiny_qwen3()
    graphdef, state = nnx.split(model)
    readout = Readout("kind", 1, of_prompt=True, classes=3)
    rng = np.random.default_rng(1)
    params = {"kind": jax.tree.map(lambda x: rng.normal(size=x.shape), readout.init(64))}
    params["kind"]["kernel"] = rng.normal(size=(model.config.hidden_size, 3))

    def loss(state, readouts):
        return skill_loss(nnx.merge(graphdef, state), params, batch, readouts, NUMBER_IDS)[0]

    with_it = jax.grad(loss)(state, (readout,))
    without = jax.grad(loss)(state, ())
    for path, leaf in nnx.to_flat_state(with_it):
        same = np.allclose(leaf[...], dict(nnx.to_flat_state(without))[path][...], atol=1e-7)
        if path[:2] == ("layers", 1):
            assert same, path
        if path[:2] == ("layers", 0) and path[-1] == "kernel":
            assert not same, path


def test_the_outputs_of_the_layers_end_in_what_forward_returns():
    model = tiny_qwen3()
    ids = jnp.array([[3, 1, 4, 1, 5]])
    valid = jnp.ones(ids.shape, bool)
    outputs, hidden, kv = model.forward_layers(ids, jnp.arange(5)[None], valid)
    expected, expected_kv = model.forward(ids, jnp.arange(5)[None], valid)
    assert len(outputs) == model.config.num_layers
    np.testing.assert_allclose(hidden, expected, atol=1e-6)
    np.testing.assert_allclose(model.norm(outputs[-1]), expected, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kv, expected_kv)
