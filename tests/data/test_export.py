"""A written log reads back the same, and the same log gives the same bytes."""

import numpy as np

from agenticrec_jax.data.export import log_files, write_log
from agenticrec_jax.data.interactions import make_items, make_log, read_log


def test_a_written_log_reads_back(tmp_path):
    items = make_items(
        ["01", "b,2", "c"],
        ['A "quoted" title', "Café", "plain"],
        brand=["X", None, "Y"],
        categories=[("a", "b c"), (), ("d",)],
        price=[1.25, np.nan, 3.0],
        average_rating=[np.nan, 4.5, np.nan],
        description=[None, "words", None],
        year=[1995, None, 2003],
    )
    log = make_log(["u", "v", "u"], [0, 1, 2], np.array([5, 5, 3]), [4.5, np.nan, 1], items=items)
    back = read_log(*write_log(log, tmp_path / "new" / "folder"))
    # Users are coded by first mention in the file, and the file is in log order.
    assert [log.user_ids[u] for u in log.user] == [back.user_ids[u] for u in back.user]
    for name in ("item", "time", "rating"):
        np.testing.assert_array_equal(getattr(back, name), getattr(log, name))
    for name in ("item_id", "title", "brand", "categories", "description", "year"):
        assert getattr(back.items, name) == getattr(items, name)
    np.testing.assert_array_equal(back.items.price, items.price)
    np.testing.assert_array_equal(back.items.average_rating, items.average_rating)
    assert log_files(log) == log_files(log)
    assert back.fingerprint == read_log(*write_log(back, tmp_path / "again")).fingerprint
