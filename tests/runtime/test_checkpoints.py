"""Checkpoints: bit-equal round trips, exact resumption, damage recognized, strangers refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.runtime.checkpoints import Checkpoints, fingerprint
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.training.learner import TrainState, init_state, make_optimizer

CONFIG = {"learning_rate": 0.1, "stages": ("sft", "rta"), "group": {"size": 8}}
HOST = {"seed": 7, "cursor": {"epoch": 1, "index": 42}, "pairs": "pairs.jsonl", "best": 0.31}
OPTIMIZER = make_optimizer(0.1, warmup_steps=3)


def fresh(seed=0):
    keys = jax.random.split(jax.random.key(seed))
    params = {"w": jax.random.normal(keys[0], (16, 8)), "b": [jax.random.normal(keys[1], (8,))]}
    return init_state(params, OPTIMIZER)


@jax.jit
def gradients(params, step):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(9), step), (4, 16))
    return jax.grad(lambda p: ((jnp.tanh(x @ p["w"] + p["b"][0]) - 0.3) ** 2).sum())(params)


def update(state):
    """One step that takes its state over, as the learner's does."""

    def apply(state, grads):
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)

    return jax.jit(apply, donate_argnums=0)(state, gradients(state.params, state.step))


def assert_bit_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_round_trip_is_bit_equal(tmp_path):
    state = {
        "train": update(fresh()),
        "half": jnp.arange(7.0, dtype="bfloat16") / 3,
        "flags": jnp.array([True, False]),
        "bytes": jnp.arange(5, dtype="uint8"),
    }
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(5, state, HOST)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert restored.step == 5 and restored.host == HOST
    assert_bit_equal(restored.state, state)


def test_a_resumed_run_goes_on_bit_equally(tmp_path):
    state, expected = fresh(), []
    for _ in range(6):
        state = update(state)
        expected.append(jax.device_get(state))
    state = fresh()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in range(1, 4):
            state = update(state)
            checkpoints.save(step, state)  # still being written while the next update takes over
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(fresh(seed=1))
        assert restored.step == 3
        state = restored.state
        for step in range(4, 7):
            state = update(state)
            assert_bit_equal(state, expected[step - 1])
            checkpoints.save(step, state)
        assert checkpoints.steps == [5, 6]


def test_only_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, CONFIG, max_to_keep=3) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"x": jnp.full(3, float(step))})
        checkpoints.save(4, {"x": jnp.full(3, 99.0)})
        checkpoints.wait()
        assert checkpoints.steps == [2, 3, 4]
        assert checkpoints.restore({"x": jnp.zeros(3)}).state["x"].tolist() == [4.0] * 3


def two_checkpoints(directory):
    state = {"x": jnp.arange(4096.0).reshape(64, 64), "step": jnp.int32(2)}
    with Checkpoints(directory, CONFIG) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(lambda x, by=step: x * by, state), {"at": step})
    return state


def data_file(directory):
    """The file that holds most of the arrays."""
    files = [f for f in (directory / "arrays").rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def flip(directory):
    content = bytearray(data_file(directory).read_bytes())
    content[len(content) // 2] ^= 0x10
    data_file(directory).write_bytes(content)


def cut(directory):
    (directory / "arrays" / "_METADATA").write_bytes(b"{")


def lose(directory):
    (directory / "record" / "metadata").unlink()


def empty(directory):
    (directory / "record" / "metadata").write_bytes(b"{}")


@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
def test_a_damaged_newest_falls_back_with_a_sentence(tmp_path, caplog, damage):
    state = two_checkpoints(tmp_path)
    damage(tmp_path / "2")
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        restored = checkpoints.restore(state)
        assert restored.step == 1 and restored.host == {"at": 1}
        assert_bit_equal(restored.state, state)
        assert "checkpoint 2 is damaged" in caplog.text
        assert "going on from checkpoint 1" in caplog.text
        assert (tmp_path / "2.damaged").is_dir()
        checkpoints.save(2, state, {"at": "again"})
        checkpoints.wait()
        assert checkpoints.restore(state).host == {"at": "again"}


@pytest.mark.parametrize("damage", [lose, empty])
def test_a_record_that_cannot_be_read_is_put_aside(tmp_path, caplog, damage):
    state = two_checkpoints(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.newest_host() == {"at": 2}
        damage(tmp_path / "2")
        assert checkpoints.newest_host() == {"at": 1}
        assert "checkpoint 2 is damaged" in caplog.text
        damage(tmp_path / "1")
        assert checkpoints.newest_host() is None and checkpoints.steps == []
        checkpoints.save(2, state, {"at": "again"})
        assert checkpoints.newest_host() == {"at": "again"}


def test_damage_everywhere_is_said_in_a_sentence(tmp_path):
    state = two_checkpoints(tmp_path)
    for step in (1, 2):
        flip(tmp_path / str(step))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_names(refused(checkpoints.restore, state), tmp_path, "[2, 1]")


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
    state = two_checkpoints(tmp_path)
    (tmp_path / "3.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.restore(state).step == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.2}, "learning_rate: found 0.1, expected 0.2"),
        ({"group": {"size": 4}}, "group.size: found 8, expected 4"),
        ({"seed": 3}, "seed: found 'absent', expected 3"),
    ],
)
def test_another_config_is_refused(tmp_path, change, named):
    state = two_checkpoints(tmp_path)
    with Checkpoints(tmp_path, CONFIG | change) as checkpoints:
        assert_names(refused(checkpoints.restore, state), tmp_path, "checkpoint 2", named)
    assert (tmp_path / "2").is_dir()


def test_other_shapes_names_and_types_are_refused(tmp_path):
    state = two_checkpoints(tmp_path)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for other, named in [
            ({"x": jnp.zeros((64, 32))}, "x: found [[64, 64], 'float32'], expected [[64, 32]"),
            ({"x": state["x"].astype(jnp.bfloat16)}, "expected [[64, 64], 'bfloat16']"),
            ({"y": jnp.zeros(2)}, "y: found 'no such array', expected [[2]"),
        ]:
            assert_names(refused(checkpoints.restore, state | other), "checkpoint 2", named)


def test_another_format_is_refused(tmp_path, monkeypatch):
    state = two_checkpoints(tmp_path)
    monkeypatch.setattr("agenticrec_jax.runtime.checkpoints.FORMAT_VERSION", 2)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert_names(refused(checkpoints.restore, state), "format version: found 1, expected 2")


def test_arrays_come_back_where_the_target_lies(tmp_path):
    """Saved on 8 devices, read on 4 others ways, and on one; the same bytes each time."""
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

    def on(mesh, *spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    eight = on(make_mesh(data=2, fsdp=2, tensor=2), ("data", "fsdp"), "tensor")
    four = on(make_mesh(fsdp=4, devices=jax.devices()[:4]), None, "fsdp")
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, {"x": jax.device_put(x, eight)})
        checkpoints.wait()
        for sharding in (eight, four, one):
            target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
            actual = checkpoints.restore(target).state["x"]
            assert actual.sharding.is_equivalent_to(sharding, 2)
            np.testing.assert_array_equal(np.asarray(actual), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_fingerprint_sees_every_place(dtype):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (3, 5)).astype(jnp.dtype(dtype))
    prints = {int(fingerprint(jnp.asarray(x)))}
    for placement in np.ndindex(x.shape):
        other = x.copy()
        other[placement] = 1 - other[placement].astype(np.float32)
        prints.add(int(fingerprint(jnp.asarray(other))))
    swapped = x[::-1].copy()
    assert not (swapped == x).all()
    prints.add(int(fingerprint(jnp.asarray(swapped))))
    assert len(prints) == x.size + 2
