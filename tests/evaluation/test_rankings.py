"""Rankings of rows: of numbers and of scores, their metrics, and the file."""

import numpy as np
import polars as pl
import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.rankings import (
    SCHEMA,
    number_rankings,
    read_rankings,
    score_rankings,
    summarize_rankings,
    target_ranks,
    targets_of,
    write_rankings,
)
from agenticrec_jax.metrics.ranking import rank_of_target, summarize
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.testing.world import tiny_world

WORLD = tiny_world()
EXAMPLES = WORLD.examples[:5]
TARGETS = targets_of(EXAMPLES, WORLD.log)


def policy_rankings():
    """The targets at rank 1, 3 and 10, a list without the target, and an invalid output."""
    numbers = []
    for example, rank in zip(EXAMPLES, (1, 3, 10, 0, 0), strict=True):
        others = [n for n in range(1, 21) if n != example.target_number]
        numbers.append([*others[: rank - 1], example.target_number, *others][:10] if rank else [])
    numbers[3] = [n for n in range(1, 21) if n != EXAMPLES[3].target_number][:10]
    valid = [True] * 4 + [False]
    calls = [1, 0, 2, 3, 0]
    return number_rankings("rta", numbers, EXAMPLES, WORLD.log, valid=valid, calls=calls, seed=7)


def test_rankings_name_items_and_have_the_metrics_of_their_ranks():
    rankings = policy_rankings()
    ids = WORLD.log.items.item_id
    assert rankings[0].items[0] == ids[EXAMPLES[0].target] == TARGETS[rankings[0].example].item
    assert len(rankings[3].items) == 10 and rankings[4].items == ()
    assert {ranking.seed for ranking in rankings} == {7}
    assert target_ranks(rankings, TARGETS).tolist() == [1, 3, 10, 0, 0]
    assert summarize_rankings(rankings, TARGETS) == summarize(
        [1, 3, 10, 0, 0],
        invalid=[False] * 4 + [True],
        tool_calls=[1, 0, 2, 3, 0],
        users=[example.user for example in EXAMPLES],
    )


def test_rankings_of_scores_have_the_targets_at_their_ranks():
    scores = np.random.default_rng(0).integers(0, 4, (len(EXAMPLES), 20)).astype(float)
    rankings = score_rankings("popularity", scores, EXAMPLES, WORLD.log, calls=3)
    expected = rank_of_target(scores, np.array([e.target_number - 1 for e in EXAMPLES]))
    assert target_ranks(rankings, TARGETS).tolist() == expected.tolist()
    for ranking, example in zip(rankings, EXAMPLES, strict=True):
        ids = {WORLD.log.items.item_id[item] for item in example.candidates}
        assert set(ranking.items) == ids and len(ranking.items) == 20
        assert ranking.calls == 3 and ranking.seed is None


def test_an_invalid_output_is_a_miss_whatever_it_lists():
    ranking = policy_rankings()[0]._replace(valid=False)
    assert target_ranks([ranking], TARGETS).tolist() == [0]


def test_a_file_has_the_rankings_that_were_written(tmp_path):
    rankings = policy_rankings() + score_rankings(
        "popularity", np.zeros((5, 20)), EXAMPLES, WORLD.log
    )
    write_rankings(tmp_path / "rankings.parquet", rankings)
    assert read_rankings(tmp_path / "rankings.parquet") == rankings
    assert [path.name for path in tmp_path.iterdir()] == ["rankings.parquet"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "rankings.parquet"
    with pytest.raises(InputError) as error:
        read_rankings(path)
    assert_names(str(error.value), path)
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(InputError) as error:
        read_rankings(path)
    assert_names(str(error.value), path)
    write_rankings(path, policy_rankings())
    table = pl.read_parquet(path)
    table.drop("calls").write_parquet(path)
    with pytest.raises(InputError) as error:
        read_rankings(path)
    assert_names(str(error.value), path, "columns", *SCHEMA)
    table.with_columns(calls=pl.lit(None, pl.Int64)).write_parquet(path)
    with pytest.raises(InputError) as error:
        read_rankings(path)
    assert_names(str(error.value), path, "column calls", 5)
