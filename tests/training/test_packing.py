"""Packing of rollouts: nothing lost, nothing padded into meaning, few shapes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.groups import Rollout
from agenticrec_jax.training.groups import (
    split_groups,
)
from agenticrec_jax.training.packing import (
    Packing,
    abstract_batch,
    bucket_length,
    group_shapes,
    pack_groups,
)
from agenticrec_jax.training.types import Group
from agenticrec_jax.types import OBSERVATION, SAMPLED


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
    actual = []
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
            actual.append((tuple(b.prompts[p][b.prompt_valid[p]].tolist()), members))
    return actual


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
    with pytest.raises(ValueError, match="prompt.* 21 .* 20"):
        bucket_length(21, (8, 20), "prompt")


def test_odd_groups_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"\[2, 3\] members"):
        pack_groups([group(rng, 4, [1, 2]), group(rng, 4, [1, 2, 3])], Packing(100))
    with pytest.raises(ValueError, match="prompt"):
        pack_groups([group(rng, 0, [1, 2])], Packing(100))


def test_processes_make_batches_of_the_same_shapes_from_different_groups():
    """Unequal shares, one of them empty: nothing is lost, and what is missing weighs nothing."""
    rng = np.random.default_rng(6)
    lengths = [[(9, 30), (5, 7), (8, 60), (3, 2), (4, 12)], [(40, 6), (2, 17)], []]
    shares = [[group(rng, p, (n, 1, 2)) for p, n in share] for share in lengths]
    packing = Packing(300, prompt_buckets=8, completion_buckets=16, group_multiple=2)
    shapes = [group_shapes(share) for share in shares]
    packed = [pack_groups(share, packing, shapes) for share in shares]
    actual = [[(b.prompts.shape, b.completions.shape) for b in batches] for batches in packed]
    assert actual[0] == actual[1] == actual[2] and len(actual[0]) > 1
    for share, batches in zip(shares, packed, strict=True):
        assert sorted(unpack(batches)) == sorted(plain(share))
    whole = pack_groups(shares[0], packing, [shapes[0]])
    assert unpack(whole) == unpack(pack_groups(shares[0], packing))


def test_an_abstract_batch_has_the_shapes_of_a_packed_one():
    (batch,) = pack_groups([group(np.random.default_rng(1), 5, [3, 7])], Packing(100, 8, 16))
    actual = abstract_batch(*batch.prompts.shape[:1], *batch.completions.shape[1:2], 8, 16)
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(actual)]
    scored = abstract_batch(1, 2, 8, 16, reference=True).reference_logprobs
    assert scored == actual.behavior_logprobs and actual.reference_logprobs is None
    assert shapes == [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]


def test_split_groups_keep_every_member_and_put_like_lengths_together():
    rng = np.random.default_rng(0)
    groups = [group(rng, 5, [3, 40, 7, 33]), group(rng, 9, [8, 2, 6, 4])]
    smaller = split_groups(groups, 2)
    assert [[len(c.ids) for c in split.completions] for split in smaller] == [
        *([40, 33], [7, 3], [8, 6], [4, 2])
    ]

    def members(groups):
        batches = unpack(pack_groups(groups, Packing(400, 8, 8)))
        return sorted((prompt, member) for prompt, rows in batches for member in rows)

    assert members(smaller) == members(groups)
    assert split_groups(groups, 0) == groups and len(split_groups(groups, 8)) == 2
    assert_names(refused(split_groups, groups, 3), "members_at_once: found 3", "4 members")


def test_advantages_of_tokens_stand_at_their_tokens_whole_or_split():
    """Of a group of 3, 9, 5 and 4 tokens, and of one whose advantages are those of members."""
    rng = np.random.default_rng(5)
    whole = group(rng, 4, [3, 9, 5, 4])
    of_tokens = rng.normal(size=(4, 9)).astype(np.float32)
    groups = [dataclasses.replace(whole, advantages=of_tokens), group(rng, 4, [2, 2, 2, 2])]
    packing = Packing(1000, 8, 4, token_advantages=True)
    for members in (0, 2):
        rows = {}
        for batch in pack_groups(split_groups(groups, members), packing):
            assert batch.advantages.shape == batch.completions.shape
            for p, g in np.argwhere(batch.weights > 0):
                ids = tuple(batch.completions[p, g][batch.valid[p, g]].tolist())
                rows[ids] = batch.advantages[p, g][batch.valid[p, g]].tolist()
        for index, expected in enumerate(of_tokens):
            ids = tuple(whole.completions[index].ids.tolist())
            assert rows[ids] == expected[: len(ids)].tolist()
        for completion, advantage in zip(groups[1].completions, groups[1].advantages, strict=True):
            assert rows[tuple(completion.ids.tolist())] == [advantage] * 2
    assert pack_groups(groups[1:], Packing(1000))[0].advantages.shape == (1, 4)


def test_shapes_of_batches_with_advantages_of_tokens_are_those_of_packed_groups():
    rng = np.random.default_rng(5)
    packed = pack_groups([group(rng, 4, [3, 4])], Packing(1000, 8, 4, token_advantages=True))
    shapes = abstract_batch(1, 2, 8, 4, token_advantages=True)
    assert jax.tree.map(np.shape, packed[0]) == jax.tree.map(lambda x: x.shape, shapes)
