"""Packing of rollouts: nothing lost, nothing padded into meaning, few shapes."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.training.batches import (
    Demonstration,
    Group,
    Packing,
    abstract_batch,
    bucket_length,
    cut_groups,
    demonstration_groups,
    group_shapes,
    pack_groups,
    rollout_groups,
    sampled_tokens,
)
from agenticrec_jax.types import OBSERVATION, SAMPLED


@dataclass
class Rollout:
    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray


def rollout(rng, length):
    origin = rng.choice([SAMPLED, OBSERVATION], size=length).astype(np.uint8)
    logprobs = -rng.random(length).astype(np.float32) - 0.1
    return Rollout(rng.integers(5, 99, length).astype(np.int32), logprobs, origin)


def group(rng, prompt_length, lengths):
    members = len(lengths)
    prompt = tuple(int(i) for i in rng.integers(5, 99, prompt_length))
    advantages = rng.normal(size=members).astype(np.float32)
    weights = np.full(members, 0.1, np.float32)
    return Group(prompt, [rollout(rng, n) for n in lengths], advantages, weights)


def unpack(batches):
    """Every group of weight above 0 as plain tuples, read back from the padded arrays."""
    found = []
    for b in batches:
        for p in np.flatnonzero(b.weights.sum(axis=1)):
            members = [
                (
                    tuple(b.completions[p, g][b.valid[p, g]].tolist()),
                    tuple(b.sampled[p, g][b.valid[p, g]].tolist()),
                    tuple(b.behavior_logprobs[p, g][b.valid[p, g]].tolist()),
                    float(b.advantages[p, g]),
                    float(b.weights[p, g]),
                )
                for g in range(b.completions.shape[1])
            ]
            found.append((tuple(b.prompts[p][b.prompt_valid[p]].tolist()), members))
    return found


def plain(groups):
    return [
        (
            g.prompt,
            [
                (
                    tuple(c.ids.tolist()),
                    tuple((c.origin == SAMPLED).tolist()),
                    tuple(np.where(c.origin == SAMPLED, c.logprobs, np.float32(0)).tolist()),
                    float(a),
                    float(w),
                )
                for c, a, w in zip(g.completions, g.advantages, g.weights, strict=True)
            ],
        )
        for g in groups
    ]


@settings(deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 50), min_size=3, max_size=3)),
        min_size=1,
        max_size=9,
    ),
    budget=st.integers(1, 2000),
    multiple=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 9),
)
def test_packing_loses_and_invents_nothing(lengths, budget, multiple, seed):
    rng = np.random.default_rng(seed)
    groups = [group(rng, n, members) for n, members in lengths]
    packing = Packing(
        budget, prompt_buckets=16, completion_buckets=(8, 24, 56), group_multiple=multiple, pad_id=1
    )
    batches = pack_groups(groups, packing)
    assert sorted(unpack(batches)) == sorted(plain(groups))
    for b in batches:
        count, members, completion = b.completions.shape
        prompt = b.prompts.shape[1]
        assert completion in (8, 24, 56) and prompt % 16 == 0 and count % multiple == 0
        padded = count * (prompt + members * completion)
        assert padded <= budget or count == multiple
        assert b.prompt_valid[:, 0].all()
        assert (b.prompts[~b.prompt_valid] == 1).sum() == (~b.prompt_valid).sum()
        assert (b.completions[~b.valid] == 1).all()
        assert not b.sampled[~b.valid].any()
        assert (b.behavior_logprobs[~b.sampled] == 0).all()
        for mask in (b.prompt_valid, b.valid):  # right padding
            assert (mask[..., :-1] >= mask[..., 1:]).all()


def test_groups_of_like_length_share_a_micro_batch():
    rng = np.random.default_rng(0)
    groups = [group(rng, 10, [n, 3]) for n in (60, 5, 61, 6, 62, 7, 63, 8)]
    batches = pack_groups(groups, Packing(4 * (32 + 2 * 64)))
    assert [b.completions.shape for b in batches] == [(4, 2, 64), (4, 2, 32)]


def test_the_rest_is_not_filled_up_with_much_padding():
    rng = np.random.default_rng(0)
    packing = Packing(8 * (32 + 2 * 32))
    counts = {
        n: [b.prompts.shape[0] for b in pack_groups([group(rng, 9, [4, 4])] * n, packing)]
        for n in (1, 3, 5, 6, 8, 11)
    }
    assert counts == {1: [1], 3: [4], 5: [4, 1], 6: [8], 8: [8], 11: [8, 4]}


def test_no_groups_no_batches():
    assert pack_groups([], Packing(100)) == []


def test_buckets():
    assert [bucket_length(n, 32) for n in (0, 1, 32, 33)] == [32, 32, 32, 64]
    assert [bucket_length(n, (8, 20)) for n in (0, 8, 9, 20)] == [8, 8, 20, 20]
    with pytest.raises(ValueError, match="prompt has 21 tokens, the largest bucket holds 20"):
        bucket_length(21, (8, 20), "prompt")


def test_odd_groups_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\[2, 3\] members"):
        pack_groups([group(rng, 4, [1, 2]), group(rng, 4, [1, 2, 3])], Packing(100))
    with pytest.raises(ValueError, match="no tokens"):
        pack_groups([group(rng, 0, [1, 2])], Packing(100))


def test_dropped_groups_keep_their_share_of_the_denominator():
    rng = np.random.default_rng(1)
    rewards = [[1.0, 0.0], [-1.0, -0.5], [0.5, 0.5], [-0.5, 0.63]]
    prompts = [(7,), (8,), (9,), (10,)]
    rollouts = [[rollout(rng, 3), rollout(rng, 4)] for _ in prompts]
    groups, metrics = rollout_groups(prompts, rollouts, rewards)
    assert [g.prompt for g in groups] == [(7,), (10,)]
    assert groups[1].completions is rollouts[3]
    np.testing.assert_allclose(groups[0].advantages, [0.5, -0.5])
    np.testing.assert_allclose(groups[1].advantages, [-0.565, 0.565], rtol=1e-6)
    for g in groups:
        np.testing.assert_allclose(g.weights, 1 / 8)  # of the 8 nominal members, not of the 4 left
    assert [int(x) for x in metrics["groups_dropped"]] == [2, 4]
    assert [int(x) for x in metrics["groups_all_negative"]] == [1, 4]
    kept, _ = rollout_groups(prompts, rollouts, rewards, drop_negative=False, drop_equal=False)
    assert len(kept) == 4


def test_advantage_options_reach_the_groups():
    rng = np.random.default_rng(1)
    rollouts = [[rollout(rng, 3), rollout(rng, 4)]]
    groups, _ = rollout_groups([(7,)], rollouts, [[1.0, 0.0]], baseline="leave_one_out")
    np.testing.assert_allclose(groups[0].advantages, [1.0, -1.0])
    groups, _ = rollout_groups([(7,)], rollouts, [[1.0, 0.0]], scale="std")
    np.testing.assert_allclose(groups[0].advantages, [2**-0.5, -(2**-0.5)], rtol=1e-3)


def test_aggregations_weigh_by_the_tokens_of_the_batch_dropped_groups_included():
    rng = np.random.default_rng(3)
    lengths = [(6, 8), (7, 9), (5, 12)]
    rollouts = [[rollout(rng, n) for n in members] for members in lengths]
    tokens = sampled_tokens(rollouts)
    by_hand = [[sum(o == SAMPLED for o in r.origin) for r in members] for members in rollouts]
    assert tokens.tolist() == by_hand and tokens.min() > 0
    rewards, prompts = [[1.0, 0.0], [0.5, 0.5], [0.3, 0.2]], [(1,), (2,), (3,)]
    expected = {
        "constant": np.full((3, 2), 1 / 6),
        "token_mean": np.full((3, 2), 1 / tokens.sum()),
        "sequence_mean": 1 / (6 * tokens),
    }
    for aggregation, weights in expected.items():
        groups, _ = rollout_groups(prompts, rollouts, rewards, aggregation=aggregation)
        for group, row in zip(groups, (0, 2), strict=True):
            np.testing.assert_allclose(group.weights, weights[row], rtol=1e-6)
    share, _ = rollout_groups(
        prompts, rollouts, rewards, aggregation="token_mean", total_prompts=9, total_tokens=400
    )
    np.testing.assert_allclose(share[0].weights, 1 / 400)


def test_demonstrations_weigh_by_the_tokens_to_imitate():
    origins = [[SAMPLED, OBSERVATION, SAMPLED], [SAMPLED, SAMPLED]]
    demonstrations = [
        Demonstration(np.array([4, 5, 6]), np.array(origins[0], np.uint8)),
        Demonstration(np.array([4, 5]), np.array(origins[1], np.uint8)),
    ]
    groups = demonstration_groups([(1, 2), (3,)], demonstrations)
    (batch,) = pack_groups(groups, Packing(1000))
    assert batch.completions.shape == (2, 1, 32)
    np.testing.assert_allclose(batch.weights, 1 / 4)
    assert batch.sampled.sum() == 4
    np.testing.assert_array_equal(batch.advantages, 1.0)


def test_processes_make_batches_of_the_same_shapes_from_different_groups():
    """Unequal shares, one of them empty: nothing is lost, and what is missing weighs nothing."""
    rng = np.random.default_rng(6)
    lengths = [[(9, 30), (5, 7), (8, 60), (3, 2), (4, 12)], [(40, 6), (2, 17)], []]
    shares = [[group(rng, p, (n, 1, 2)) for p, n in share] for share in lengths]
    packing = Packing(300, prompt_buckets=8, completion_buckets=16, group_multiple=2)
    shapes = [group_shapes(share) for share in shares]
    packed = [pack_groups(share, packing, shapes) for share in shares]
    found = [[(b.prompts.shape, b.completions.shape) for b in batches] for batches in packed]
    assert found[0] == found[1] == found[2] and len(found[0]) > 1
    for share, batches in zip(shares, packed, strict=True):
        assert sorted(unpack(batches)) == sorted(plain(share))
    whole = pack_groups(shares[0], packing, [shapes[0]])
    assert unpack(whole) == unpack(pack_groups(shares[0], packing))


def test_weights_count_the_prompts_of_other_processes():
    rng = np.random.default_rng(7)
    rollouts = [[rollout(rng, 3), rollout(rng, 4)] for _ in range(3)]
    rewards = np.array([[0.0, 1.0]] * 3)
    groups, _ = rollout_groups([(1,)] * 3, rollouts, rewards, total_prompts=12)
    assert {float(w) for g in groups for w in g.weights} == {np.float32(1 / 24)}


def test_cut_groups_keep_every_member_and_put_like_lengths_together():
    rng = np.random.default_rng(0)
    groups = [group(rng, 5, [3, 40, 7, 33]), group(rng, 9, [8, 2, 6, 4])]
    parts = cut_groups(groups, 2)
    assert [[len(c.ids) for c in part.completions] for part in parts] == [
        *([40, 33], [7, 3], [8, 6], [4, 2])
    ]

    def members(groups):
        batches = unpack(pack_groups(groups, Packing(400, 8, 8)))
        return sorted((prompt, member) for prompt, found in batches for member in found)

    assert members(parts) == members(groups)
    assert cut_groups(groups, 0) == groups and len(cut_groups(groups, 8)) == 2
    with pytest.raises(InputError, match="members_at_once is 3, expected a divisor of 4 members"):
        cut_groups(groups, 3)


def test_an_abstract_batch_has_the_shapes_of_a_packed_one():
    (batch,) = pack_groups([group(np.random.default_rng(1), 5, [3, 7])], Packing(100, 8, 16))
    found = abstract_batch(*batch.prompts.shape[:1], *batch.completions.shape[1:2], 8, 16)
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(found)]
    scored = abstract_batch(1, 2, 8, 16, reference=True).reference_logprobs
    assert scored == found.behavior_logprobs and found.reference_logprobs is None
    assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]
