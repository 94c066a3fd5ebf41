import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.models.search import top_k, unit_rows


@pytest.mark.parametrize(("size", "k"), [(7, 7), (50, 3), (200, 64)])
def test_top_k_is_that_of_a_full_sort(size, k):
    rng = np.random.default_rng(size)
    queries, table = rng.normal(size=(5, 6)), rng.normal(size=(size, 6))
    scores, rows = top_k(jnp.asarray(queries, jnp.float32), jnp.asarray(table, jnp.float32), k)
    expected = np.argsort(-(queries @ table.T), axis=1)[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ table.T, expected, 1), rtol=1e-4, atol=1e-5
    )


def test_excluded_rows_come_last_and_negative_rows_exclude_nothing():
    table = jnp.asarray([[1.0], [4.0], [3.0], [2.0]])
    exclude = jnp.asarray([[1, 2], [-1, 99], [-4, 3]])
    scores, rows = top_k(jnp.ones((3, 1)), table, 4, exclude)
    np.testing.assert_array_equal(rows[0, :2], [3, 0])
    assert np.isneginf(scores[0, 2:]).all() and set(rows[0, 2:].tolist()) == {1, 2}
    np.testing.assert_array_equal(rows[1], [1, 2, 3, 0])
    np.testing.assert_array_equal(rows[2], [1, 2, 0, 3])


def test_equal_scores_go_to_the_lower_row():
    _, rows = top_k(jnp.ones((1, 2)), jnp.ones((5, 2)), 3)
    np.testing.assert_array_equal(rows, [[0, 1, 2]])


def test_unit_rows_have_length_one_and_zero_stays_zero():
    rows = unit_rows(jnp.asarray([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
