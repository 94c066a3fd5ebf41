"""One mask test over every form of running the policy, and the effect of its options."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.models import attention
from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import by_layer, segment_positions
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

T = 12

# Every form of running the model is a function (model, ids [B, T]) -> logits [B, T, V].


def dense(model, ids):
    return model(ids)


def padded(model, ids):
    """Right-padded by three tokens without meaning."""
    wide = jnp.pad(ids, ((0, 0), (0, 3)), constant_values=7)
    valid = jnp.arange(wide.shape[1]) < jnp.full((len(ids), 1), ids.shape[1])
    hidden, _ = model.forward(wide, segment_positions(wide), valid)
    return model.logits(hidden)[:, : ids.shape[1]]


def packed(model, ids):
    """Each row as the second segment of three."""
    other = ids[:, ::-1][:, :5]
    joined = jnp.concatenate([other, ids, other], axis=1)
    sizes = (5, ids.shape[1], 5)
    segments = jnp.broadcast_to(np.repeat(np.arange(3), sizes), joined.shape)
    return model(joined, segments)[:, 5:-5]


def cached(model, ids):
    """Token by token through a cache that is longer than needed and full of nines."""
    return _in_chunks(model, ids, [1] * ids.shape[1])


def spliced(model, ids):
    """A prompt, then chunks of several tokens and single ones."""
    return _in_chunks(model, ids, [5, 3, 1, ids.shape[1] - 9])


def _in_chunks(model, ids, sizes):
    rows = len(ids)
    columns = ids.shape[1] + 2
    wide = jnp.zeros((rows, columns), jnp.int32)
    _, kv = jax.eval_shape(lambda x: model.forward(x, x, x == 0), wide)
    kv = jax.tree.map(lambda x: jnp.full(x.shape, 9.0), kv)
    logits = []
    start = 0
    for size in sizes:
        chunk = ids[:, start : start + size]
        valid = jnp.ones(chunk.shape, bool)
        context = Context(kv, jnp.arange(columns) < jnp.full((rows, 1), start))
        hidden, new = model.forward(chunk, segment_positions(chunk) + start, valid, context)
        kv = jax.tree.map(
            lambda a, b, s=start: jax.lax.dynamic_update_slice_in_dim(a, b, s, -3), kv, new
        )
        logits.append(model.logits(hidden))
        start += size
    return jnp.concatenate(logits, axis=1)


def shared(model, ids):
    """Rows 2p and 2p+1 are completions of one right-padded prompt (so must begin alike)."""
    prompts = jnp.pad(ids[::2, :5], ((0, 0), (0, 2)), constant_values=7)
    valid = jnp.arange(7) < jnp.full((len(prompts), 1), 5)
    first, kv = model.forward(prompts, segment_positions(prompts), valid)
    rest = ids[:, 5:]
    positions = segment_positions(rest) + 5
    hidden, _ = model.forward(rest, positions, jnp.ones(rest.shape, bool), Context(kv, valid))
    first = jnp.repeat(first[:, :5], 2, axis=0)
    return model.logits(jnp.concatenate([first, hidden], axis=1))


FORMS = (dense, padded, packed, cached, spliced, shared)


def rows():
    """Four rows in pairs that begin with the same five tokens."""
    ids = np.random.default_rng(3).integers(0, 96, (4, T))
    ids[1::2, :5] = ids[::2, :5]
    return jnp.asarray(ids)


@pytest.fixture(params=["unrolled", "scanned"])
def model(request):
    return tiny_qwen3(
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        tie_word_embeddings=False,
        scan_layers=request.param == "scanned",
    )


@pytest.fixture(params=["splash", "blocks"])
def kernel(request, monkeypatch):
    """A model, the logits of plain attention, and a list of the kernel's uses.

    The model has the TPU kernel, interpreted, or blocks of rows, however few tokens there are.
    """
    changes = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 10, "tie_word_embeddings": False}
    want = nnx.jit(dense)(tiny_qwen3(**changes, attention="xla"), rows())
    used = []
    if request.param == "splash":

        def fits(q, masks, context):
            used.append(q.shape)
            return context is None or masks.segments is None

        monkeypatch.setattr(attention, "splash_fits", fits)
        return tiny_qwen3(**changes, scan_layers=True, attention="splash"), want, used
    attend = attention._attend_in_blocks
    monkeypatch.setattr(attention, "_BLOCK_SCORES", 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def watched(q, k, v, masks, context):
        used.append(q.shape)
        return attend(q, k, v, masks, context)

    monkeypatch.setattr(attention, "_attend_in_blocks", watched)
    return tiny_qwen3(**changes), want, used


@pytest.mark.parametrize("form", FORMS)
def test_changing_a_token_changes_nothing_before_it(form, model):
    check_causality(form, model, nnx.jit(dense)(model, rows()))


@pytest.mark.parametrize("form", [dense, padded, packed, spliced, shared])
def test_other_kernels_pass_the_mask_test(form, kernel):
    model, want, used = kernel
    check_causality(form, model, want)
    assert used


def check_causality(form, model, want):
    run = nnx.jit(form)
    ids = rows()
    before = run(model, ids)
    np.testing.assert_allclose(before, want, atol=1e-5)
    for j in (0, 5, T - 2):
        changed = ids.at[:, j].set((ids[:, j] + 31) % 96)
        after = run(model, changed)
        np.testing.assert_allclose(after[:, :j], before[:, :j], atol=1e-6)
        moved = jnp.abs(after[:, j:] - before[:, j:]).max(-1)
        assert (moved > 1e-3).all(), "the change must reach the token and all after it"


def test_changing_a_token_changes_nothing_in_another_segment(model):
    check_segments(model)


def test_other_kernels_keep_segments_apart(kernel):
    check_segments(kernel[0])
    assert kernel[2]


def check_segments(model):
    segments = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]] * 4)
    run = nnx.jit(lambda model, ids: model(ids, segments))
    ids = rows()
    before = run(model, ids)
    for j in (0, 3, 5, 8):
        after = run(model, ids.at[:, j].add(1))
        moved = np.asarray(jnp.abs(after - before).max((0, 2)) > 1e-6)
        expected = (np.arange(T) >= j) & (np.asarray(segments[0]) == int(segments[0, j]))
        np.testing.assert_array_equal(moved, expected)


def test_padding_in_the_middle_of_a_context_is_not_seen(model):
    ids = rows()
    valid = jnp.ones(ids.shape, bool).at[:, 3:6].set(False)
    positions = jnp.where(jnp.arange(T) < 3, jnp.arange(T), jnp.arange(T) - 3)[None].repeat(4, 0)

    def run(model, ids):
        _, kv = model.forward(ids, positions, valid)
        one = jnp.ones((4, 1), jnp.int32)
        return model.forward(one, one * (T - 3), one == 1, Context(kv, valid))[0][:, 0]

    run = nnx.jit(run)
    np.testing.assert_array_equal(run(model, ids), run(model, ids.at[:, 3:6].set(0)))
    short = jnp.concatenate([ids[:, :3], ids[:, 6:], jnp.ones((4, 1), ids.dtype)], axis=1)
    logits = nnx.jit(lambda model, hidden: model.logits(hidden))(model, run(model, ids))
    np.testing.assert_allclose(logits, nnx.jit(dense)(model, short)[:, -1], atol=1e-5)


def gradient(form, graphdef, params):
    """Returns the compiled gradient of the mean log-prob of every next token."""
    ids = rows()

    def loss(params):
        scores = jax.nn.log_softmax(form(nnx.merge(graphdef, params), ids)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], 2).mean()

    return jax.jit(jax.grad(loss)).lower(params).compile()


@cache
def gradient_of_separate_rows():
    graphdef, params = nnx.split(tiny_qwen3(qkv_bias=True))
    return dict(by_layer(gradient(dense, graphdef, params)(params)))


@pytest.mark.parametrize(
    "remat,scan", [("full", False), ("none", True), ("full", True), ("dots", True)]
)
def test_gradients_through_a_shared_context_equal_those_of_separate_rows(remat, scan):
    """With every block recomputed in the backward pass or not, stacked or not."""
    want = gradient_of_separate_rows()
    model = tiny_qwen3(qkv_bias=True, remat=remat, scan_layers=scan)
    graphdef, params = nnx.split(model)
    got = gradient(shared, graphdef, params)(params)
    got = dict(by_layer(got))
    assert got.keys() == want.keys()
    for path, value in want.items():
        limit = 1e-5 * np.abs(value[...]).max()
        np.testing.assert_allclose(got[path][...], value[...], atol=limit, err_msg=str(path))


def test_the_same_seed_gives_the_same_weights_stacked_or_not():
    plain, scanned = (tiny_qwen3(7, qkv_bias=True, scan_layers=s) for s in (False, True))
    assert scanned.layers.attention.q.kernel[...].shape == (2, 32, 4, 12)
    plain, scanned = (dict(by_layer(nnx.state(model))) for model in (plain, scanned))
    assert plain.keys() == scanned.keys()
    for path, variable in plain.items():
        np.testing.assert_array_equal(scanned[path][...], variable[...])
        assert scanned[path].get_metadata() == variable.get_metadata()


@pytest.mark.parametrize("form", [dense, packed, spliced, shared])
def test_scanned_layers_give_the_numbers_of_unrolled_ones(form):
    plain, scanned = (tiny_qwen3(num_layers=3, scan_layers=s) for s in (False, True))
    want, got = (nnx.jit(form)(model, rows()) for model in (plain, scanned))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_decides_what_the_backward_pass_recomputes(scan):
    """Matrix products of the gradient: with full remat each is done again, with dots only the two
    of attention, whose results have batch axes. Honest in the program given to the compiler."""

    def products(remat):
        model = tiny_qwen3(remat=remat, scan_layers=scan)
        graphdef, params = nnx.split(model)

        def loss(params):
            return nnx.merge(graphdef, params)(rows()).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    blocks = 1 if scan else 2
    assert products("dots") - products("none") == 2 * blocks
    assert products("full") - products("none") >= 8 * blocks


def test_an_unknown_remat_is_refused():
    assert_names(refused(tiny_qwen3, remat="half"), "remat", "half", "none", "full", "dots")


def test_remat_of_scanned_layers_saves_memory_on_a_cpu_too():
    def temporaries(remat):
        graphdef, params = nnx.split(tiny_qwen3(num_layers=12, remat=remat, scan_layers=True))
        return gradient(dense, graphdef, params).memory_analysis().temp_size_in_bytes

    sizes = {remat: temporaries(remat) for remat in ("none", "full", "dots")}
    assert sizes["full"] < sizes["dots"] < sizes["none"], sizes
    assert sizes["full"] < 0.4 * sizes["none"], sizes


def test_the_program_of_scanned_layers_does_not_grow_with_depth():
    def program(layers, scan):
        graphdef, params = nnx.split(tiny_qwen3(num_layers=layers, scan_layers=scan))
        return gradient(dense, graphdef, params).as_text()

    shallow = program(4, True)
    deep = program(12, True)
    unrolled = program(4, False)
    # A scatter may be a loop too; the scanned layers add one forward and one backward.
    assert deep.count(" while(") == shallow.count(" while(") == unrolled.count(" while(") + 2
    assert len(deep.splitlines()) <= 1.02 * len(shallow.splitlines())
    assert len(shallow.splitlines()) < len(unrolled.splitlines())


def test_theta_eps_and_qk_norm_reach_the_computation():
    ids = rows()
    run = nnx.jit(dense)
    plain = run(tiny_qwen3(), ids)
    for change in ({"rope_theta": 4000.0}, {"rms_norm_eps": 1e-4}, {"qk_norm": False}):
        assert jnp.abs(run(tiny_qwen3(**change), ids) - plain).max() > 1e-4, change


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_cancels_the_scale_of_queries_only_when_on(qk_norm):
    model = tiny_qwen3(qk_norm=qk_norm, rms_norm_eps=1e-9)
    ids = rows()
    run = nnx.jit(dense)
    before = run(model, ids)
    for layer in model.layers:
        layer.attention.q.kernel[...] = 20 * layer.attention.q.kernel[...]
    moved = jnp.abs(run(model, ids) - before).max()
    assert moved < 1e-4 if qk_norm else moved > 1e-2
    assert (model.layers[0].attention.q_norm is None) is (not qk_norm)


def test_activations_in_bfloat16_stay_close_and_logits_are_float32():
    ids = rows()
    wide = tiny_qwen3()
    narrow = tiny_qwen3(dtype="bfloat16", param_dtype="bfloat16")
    logits = nnx.jit(dense)(narrow, ids)
    _, kv = jax.eval_shape(lambda: narrow.forward(ids, ids, ids >= 0))
    assert narrow.embedding[...].dtype == kv.k[0].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, nnx.jit(dense)(wide, ids), atol=0.03)


def test_new_keys_and_values_have_the_documented_shape():
    model = tiny_qwen3(num_heads=6, num_kv_heads=3)
    ids = rows()
    hidden, kv = jax.eval_shape(lambda: model.forward(ids, ids, ids >= 0))
    assert hidden.shape == (4, T, 32)
    assert [x.shape for x in (*kv.k, *kv.v)] == [(4, T, 3, 12)] * 4
    scanned = tiny_qwen3(num_heads=6, num_kv_heads=3, scan_layers=True)
    _, kv = jax.eval_shape(lambda: scanned.forward(ids, ids, ids >= 0))
    assert kv.k.shape == kv.v.shape == (2, 4, T, 3, 12)


def test_positions_start_anew_in_every_segment():
    ids = jnp.zeros((2, 6), jnp.int32)
    segments = jnp.array([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(
        segment_positions(ids, segments), [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    )


@pytest.mark.parametrize("scan", [False, True])
def test_the_hidden_state_of_one_token_a_row_is_that_of_all(scan):
    """Beside a context and padding; keys and values are of all tokens all the same."""
    model = tiny_qwen3(3, scan_layers=scan)
    ids = jax.random.randint(jax.random.key(0), (3, 2 * T), 0, model.config.vocab_size)
    positions = segment_positions(ids)
    last = jnp.array([0, 7, T - 1])
    valid = jnp.arange(T) <= last[:, None]
    _, kv = model.forward(ids[:, :T], positions[:, :T], valid)
    forward = partial(model.forward, ids[:, T:], positions[:, T:], valid, Context(kv, valid))
    every, new = forward()
    one, same = forward(query_index=last)
    assert one.shape == (3, 1, model.config.hidden_size)
    np.testing.assert_allclose(one[:, 0], every[jnp.arange(3), last], atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), same, new)


def test_the_last_layer_is_computed_for_one_token_a_row():
    model = tiny_qwen3(3, num_layers=3)
    ids = jnp.zeros((2, T), jnp.int32)

    def products(query_index):
        run = jax.jit(lambda x: model.forward(x, x, x == 0, query_index=query_index)[0])
        text = run.lower(ids).as_text()  # gate and up, of all tokens and of one
        return [text.count(f"32x48xf32>) -> tensor<2x{tokens}x48xf32>") for tokens in (T, 1)]

    assert (products(None), products(jnp.array([3, 5]))) == ([6, 0], [4, 2])
