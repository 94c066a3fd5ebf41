"""States and scores of any number of histories."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
from flax import nnx

from agenticrec_jax.sequential.model import candidate_scores, user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.sequences import pad_histories


def test_states_do_not_depend_on_the_batch(model):
    histories = [tuple(range(n % 6 + 1)) for n in range(11)]
    together = user_states(model, histories, batch=4)
    alone = np.concatenate([user_states(model, [h], batch=1) for h in histories])
    assert together.shape == (11, 12)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_last_state_alone_is_that_of_a_forward_pass_of_all_positions(model):
    rng = np.random.default_rng(8)
    histories = [rng.integers(0, model.config.items, n).tolist() for n in (1, 2, 5, 6, 9)]
    last = user_states(model, histories, batch=2)
    of_all = user_states(model, histories, batch=2, all_positions=True)
    np.testing.assert_allclose(last, of_all, rtol=1e-5, atol=1e-5)
    windows = jnp.asarray(pad_histories(histories, model.config.max_length))
    np.testing.assert_allclose(last, model(windows)[:, -1], rtol=1e-5, atol=1e-5)


def test_scores_of_candidates_are_those_of_the_whole_catalog(model):
    rng = np.random.default_rng(4)
    histories = [rng.integers(0, model.config.items, n).tolist() for n in (1, 3, 9, 6, 2)]
    candidates = rng.integers(0, model.config.items, (5, 4))
    scores = candidate_scores(model, histories, candidates, chunk=2)
    catalog_scores = model.scores(jnp.asarray(user_states(model, histories)))
    expected = np.take_along_axis(np.asarray(catalog_scores), candidates, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_threads_can_compute_states_at_once():
    model = Sasrec(SasrecConfig(items=30, width=8, blocks=1), rngs=nnx.Rngs(0))
    histories = [[i, i + 1, i + 2] for i in range(20)] * 10
    alone = [user_states(model, [history], batch=1) for history in histories]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda history: user_states(model, [history], batch=1), histories))
    np.testing.assert_array_equal(alone, together)
