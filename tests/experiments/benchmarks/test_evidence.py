"""The benchmark on evidence: features by hand, the choice on valid, and the committed rows."""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.metrics.ranking import rank_of_target
from agenticrec_jax.testing.world import tiny_world
from experiments.benchmarks import evidence
from experiments.benchmarks.evidence import BASE

COMMITTED = pathlib.Path(evidence.__file__).parent / "results" / "evidence.json"


def test_raw_features_are_standardized_over_the_candidates():
    world = tiny_world()
    features = evidence.raw_features(world.log, world.artifacts, world.examples[:6])
    assert features.shape == (6, 20, 11) and np.isfinite(features).all()
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-6)
    deviation = features.std(axis=1)
    assert ((abs(deviation - 1) < 1e-3) | (deviation < 1e-6)).all()
    numbers = np.argsort(-features[:, :, 0], axis=1)
    counts = np.bincount(world.log.item[: world.artifacts.fit_range.events], minlength=99)
    for row, drawn in zip(numbers, world.examples[:6], strict=True):
        popularity = counts[np.array(drawn.candidates)[row]]
        assert (np.diff(popularity) <= 0).all()


def planted(rng, examples):
    """Features of which two decide by their product, as no linear combination can."""
    features = rng.choice([-1.0, 1.0], size=(examples, 6, 2)) + rng.normal(0, 0.1, (examples, 6, 2))
    targets = np.argmax(features[:, :, 0] * features[:, :, 1], axis=1)
    return features, targets


def test_the_size_of_the_trees_is_chosen_on_valid(monkeypatch):
    """Trees of 7 leaves rank the valid targets first after 100 rounds, and are used on test."""
    targets = {split: np.arange(4) for split in ("policy", "valid", "test")}
    features = {split: np.full((4, 6, 1), i) for i, split in enumerate(targets)}
    fitted = []

    def scores(booster, features, trees):
        good = booster == 7 and trees == 100
        return np.eye(4, 6) * (1 if good else -1) + features[0, 0, 0]

    monkeypatch.setattr(
        evidence,
        "fit_trees",
        lambda features, targets, leaves, trees: (
            fitted.append((features[0, 0, 0], trees)) or leaves
        ),
    )
    monkeypatch.setattr(evidence, "tree_scores", scores)
    result, settings = evidence.chosen_trees(features, targets)
    assert settings == {"leaves": 7, "trees": 100, "valid_ndcg@10": 1.0}
    assert result.tolist() == (np.eye(4, 6) + 2).tolist()
    assert fitted == [(0, max(evidence.TREES))] * len(evidence.LEAVES)


@pytest.mark.peer
def test_trees_learn_what_a_linear_combination_cannot():
    rng = np.random.default_rng(0)
    splits = {
        name: planted(rng, count)
        for name, count in (("policy", 800), ("valid", 100), ("test", 200))
    }
    features = {name: pair[0] for name, pair in splits.items()}
    targets = {name: pair[1] for name, pair in splits.items()}
    scores, _ = evidence.chosen_trees(features, targets)
    high = features["test"][:, :, 0] * features["test"][:, :, 1]
    best = np.take_along_axis(high, scores.argmax(axis=1)[:, None], axis=1)
    assert (best > 0.5).mean() > 0.95  # a candidate whose two features have one sign
    linear = evidence.linear_scores(features, targets)
    trees = rank_of_target(scores, targets["test"]).mean()
    assert trees < rank_of_target(linear, targets["test"]).mean() - 1
    again, _ = evidence.chosen_trees(features, targets)
    np.testing.assert_array_equal(scores, again)


def test_a_row_has_its_difference_to_the_linear_combination():
    """NDCG@10 of ranks 1 and 3 is 1 and 1 / 2, of ranks 3 and a miss 1 / 2 and 0."""
    ranks = {"boosted_trees": np.array([1, 3]), BASE: np.array([3, 11])}
    examples = [SimpleNamespace(user=user) for user in (4, 9)]
    row = evidence.result_row("boosted_trees", ranks, examples, {"leaves": 7})
    assert (row["ndcg@10"], row["hr@1"], row["n"]) == (0.75, 0.5, 2)
    assert row[f"difference to {BASE}"] == [0.5, 0.5, 0.5] and row["relation"] == "above"
    assert row["chosen_on_valid"] == {"leaves": 7}
    assert evidence.result_row(BASE, ranks, examples, None)["relation"] == ""


def test_titles_are_fused_where_they_tell_more_than_the_orders():
    """The target alone has the newest item's words; the one order of a tool puts it last."""
    label, orders = evidence.TITLES, [{"taken": (1, 2, 3)}] * 4
    items = SimpleNamespace(title=["gel pen", "tape", "gel pen red", "desk"], brand=[None] * 4)
    examples = [SimpleNamespace(history=(1, 0), candidates=(3, 1, 2), target_number=3)] * 4
    splits = ("valid", "test")
    data = SimpleNamespace(
        log=SimpleNamespace(items=items), examples={"valid": examples, "test": examples}
    )
    titles = evidence.title_orders(
        SimpleNamespace(data=data), np.array([0, 1.0, 0, 0, 0]), examples
    )
    assert titles == [[3]] * 4
    ranks, words = evidence.fusion_with(
        label, dict.fromkeys(splits, titles), dict.fromkeys(splits, orders), data.examples
    )
    assert ranks.tolist() == [1] * 4 and words == "1 titles"


def test_the_committed_rows_say_how_much_there_is_to_win():
    """The documentation states the same: trees add nothing to the orders, raw features do."""
    committed = json.loads(COMMITTED.read_text())
    assert committed["settings"]["config"] == "office:full"
    rows = {row["name"]: row for row in committed["rows"]}
    assert {row["n"] for row in rows.values()} == {1806}
    relations = {name: row["relation"] for name, row in rows.items() if name != BASE}
    assert relations.pop("boosted_trees") == "not told apart from"
    assert relations.pop("fusion_with_titles") == "above"
    assert relations.pop("linear_raw") == relations.pop("boosted_trees_raw") == "above"
    assert set(relations.values()) == {"below"} and "best_fusion" in relations
    for row in rows.values():
        mean, low, high = row[f"difference to {BASE}"]
        expected = row["ndcg@10"] - rows[BASE]["ndcg@10"]
        assert abs(mean - expected) < 2e-4 and low <= mean <= high
