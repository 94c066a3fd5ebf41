"""The optimizer's schedule and clipping, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agenticrec_jax.training.learner import make_optimizer


def test_warm_up_and_clip_by_hand():
    """A gradient of norm 50 is clipped to 2; Adam's first steps are then the rate itself."""
    optimizer = make_optimizer(0.3, warmup_steps=3, clip_norm=2.0, weight_decay=0.1)
    params = {"w": jnp.array([4.0, -2.0])}
    opt_state = optimizer.init(params)
    rates = []
    for _ in range(4):
        updates, opt_state = optimizer.update({"w": jnp.array([30.0, -40.0])}, opt_state, params)
        rates.append(float(updates["w"][1]) / (1.0 + 0.1 * 2.0))
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.3], rtol=1e-4)
    mean = [s.mu for s in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(s)][0]
    np.testing.assert_allclose(mean["w"], np.array([1.2, -1.6]) * (1 - 0.9**4), rtol=1e-5)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)
