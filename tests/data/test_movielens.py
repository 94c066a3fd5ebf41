import zipfile

import numpy as np
import pytest

from agenticrec_jax.data.events import Codes, Events
from agenticrec_jax.data.movielens import hundred_users, movielens_1m
from agenticrec_jax.data.preparation import Preparation, prepare_log
from agenticrec_jax.errors import InputError

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
MOVIES = (
    "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
    "1193::Misérables, Les (1995)::Drama\n"
)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", RATINGS)
        archive.writestr("ml-1m/movies.dat", MOVIES.encode("latin-1"))


def test_the_zip_is_read_as_it_is_downloaded(tmp_path):
    write_zip(tmp_path / "ml-1m.zip")
    prepared = prepare_log(movielens_1m(tmp_path), Preparation())
    assert prepared.faults.total == 0
    assert prepared.events.time.tolist() == [978298413, 978300760, 978302109]
    assert prepared.events.rating.tolist() == [4, 5, 3]
    items = prepared.items
    assert [items["item_id"][int(code)] for code in prepared.item] == ["1193", "1193", "661"]
    assert items["title"].to_list()[1] == "Misérables, Les (1995)"
    assert items["year"].to_list() == [1996, 1995]
    assert items["categories"].to_list() == [["Animation", "Children's", "Musical"], ["Drama"]]


def test_a_missing_zip_says_where_it_is(tmp_path):
    with pytest.raises(
        InputError, match=r"ml-1m.zip: no such file, expected https://files.grouplen"
    ):
        movielens_1m(tmp_path)


def drawn_events():
    """1,500 users of 2 to 39 events; a tenth of them like ten items, the others any of 3,000."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 40, 1500)
    user = rng.permutation(np.repeat(np.arange(1500), sizes))
    item = np.where(
        user % 10 == 0, rng.integers(0, 10, len(user)), rng.integers(0, 3000, len(user))
    )
    columns = {
        "user": user.astype(np.uint32),
        "item": item.astype(np.uint32),
        "time": np.arange(len(user), dtype=np.float64),
        "rating": np.ones(len(user), np.float32),
        "place": np.arange(1, len(user) + 1),
    }
    return Events(**columns, users=Codes(), catalogue=Codes())


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_draw_has_a_hundred_users_and_the_newest_events_of_each(kind):
    events = drawn_events()
    how = {"users": 100, "last_events": 15}
    kept = hundred_users(events, kind, **how, seed=3)
    chosen = np.unique(events.user[kept])
    assert len(chosen) == 100
    for user in chosen:
        own = np.flatnonzero(events.user == user)
        assert len(own) >= 8
        assert np.flatnonzero(kept & (events.user == user)).tolist() == own[-15:].tolist()
    assert (hundred_users(events, kind, **how, seed=3) == kept).all()
    assert (hundred_users(events, kind, **how, seed=4) != kept).any()


def test_a_dense_draw_takes_those_whose_items_others_have():
    events = drawn_events()
    shares = {}
    for kind in ("sparse", "dense"):
        kept = hundred_users(events, kind, users=100, last_events=15, seed=3)
        shares[kind] = np.mean(np.unique(events.user[kept]) % 10 == 0)
    assert shares["sparse"] < 0.25 and shares["dense"] > 0.7


def test_too_few_users_and_another_kind_are_refused():
    events = drawn_events()
    with pytest.raises(InputError, match="users of at least 8 events, expected 1490"):
        hundred_users(events, "sparse", users=1490, last_events=15, seed=0)
    with pytest.raises(InputError, match="'thin', expected sparse or dense"):
        hundred_users(events, "thin", users=10, last_events=15, seed=0)
