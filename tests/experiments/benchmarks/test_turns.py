"""Sides that take turns, and the rows of their seconds."""

from experiments.benchmarks.turns import median, one_turn, saving, timings


def test_the_first_side_alternates_and_answers_stay_in_order():
    called = []

    def side(name):
        return lambda: called.append(name) or {"name": name}

    sides = [side(name) for name in "abc"]
    for turn in range(2):
        assert [answer["name"] for answer in one_turn(sides, turn)] == ["a", "b", "c"]
    assert called == [*"cba", *"abc"]


def test_medians_and_savings_leave_the_first_turn_out():
    turns = [[{"cpu": x}, {"cpu": 2 * x + 1}] for x in (99.0, 3.0, 1.0, 2.0)]
    assert median(turns, 0, "cpu") == 2.0
    saved = saving("w", turns, 0, 1, "them", 1.5)
    assert (saved["ours"], saved["bound"], saved["unit"]) == (2.5, 1.5, "times ours")


def test_a_side_stands_beside_each_peer():
    one = {"cpu": 1.0, "seconds": 2.0, "sampled": 3}
    turns = [[one | {"compilations": 4}, one, one]] * 2
    rows = timings("w", turns, 0, {1: "they", 2: "others"})
    assert [row["peer_name"] for row in rows] == ["they"] * 5 + ["others"] * 5
    last = rows[-1]
    assert last["name"] == "w: compilations of the first turn"
    assert (last["ours"], last["peer"]) == (4.0, None)  # a peer that compiles nothing
