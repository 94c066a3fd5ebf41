import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rapidfuzz import fuzz

from agenticrec_jax.data.samples import load_sample
from agenticrec_jax.tools import titles as titles_module
from agenticrec_jax.tools.titles import TitleIndex, most_similar, title_index


@pytest.fixture(scope="module")
def titles():
    return load_sample("office").items.title_key


def misspelled(title, rng):
    """With a letter left out, two changed, or half of the words in another order."""
    letters, words = list(title), title.split()
    kind = rng.integers(3)
    if kind == 0:
        del letters[rng.integers(len(letters))]
    elif kind == 1:
        for position in rng.integers(len(letters), size=2):
            letters[position] = "x"
    else:
        letters = " ".join(rng.permutation(words)[: len(words) // 2 + 1])
    return "".join(letters)


def test_the_nearest_titles_are_nearly_always_as_near_as_those_of_a_full_comparison(titles):
    """By their scores: many titles have the same one, and which of them are told is no matter."""
    index, rng = TitleIndex(titles), np.random.default_rng(4)
    pool, equal = dict(enumerate(titles)), []
    for row in rng.integers(len(titles), size=120):
        text = misspelled(titles[row], rng)
        full = most_similar(text, pool, 3, 50)
        actual = index.nearest(text, 3, 50)
        assert actual[0][0] == full[0][0] == pytest.approx(fuzz.WRatio(text, titles[actual[0][1]]))
        equal.append([score for score, _ in actual] == [score for score, _ in full])
    assert np.mean(equal) > 0.95


def test_few_titles_are_scored(titles):
    index = title_index(load_sample("office").items)
    assert 0 < len(index.proposed("avery labels white")) <= 96 < len(titles)


def test_what_shares_no_run_of_characters_is_not_proposed():
    index = TitleIndex(["red pen", "blue pen", "tape", ""])
    assert [index.titles[row] for row in index.proposed("a tape")] == ["tape"]
    assert index.nearest("qqqq", 3, 0) == [] == index.nearest("", 3, 0)
    assert TitleIndex([]).nearest("pen", 3, 0) == []


def test_threads_that_ask_together_make_one_index(monkeypatch):
    items, indexed = load_sample("office").items, []

    def making(keys):
        indexed.append(keys)
        time.sleep(0.05)  # so that the others ask meanwhile
        return TitleIndex(keys)

    monkeypatch.setattr(titles_module, "TitleIndex", making)
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(title_index, [items] * 8))
    assert len(indexed) == 1 and all(index is actual[0] for index in actual)
