import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.data.interactions import read_items
from agenticrec_jax.ingest.catalog import (
    ItemColumns,
    items_of_events,
    read_catalog,
    unpriced,
    unusable_title,
)
from agenticrec_jax.ingest.events import IdCodes
from agenticrec_jax.ingest.row_errors import RowErrors

COLUMNS = ItemColumns(
    item="id",
    title=("title", "name"),
    categories=("categories",),
    price=("price",),
    description=("text",),
    clean=True,
    title_year=True,
)


def test_items_are_the_first_of_each_id_and_cells_are_read_by_their_columns(tmp_path):
    text = (
        "id,title,name,categories,price,text\n"
        'x,  A &amp; <i>B</i> (1999) ,,Toys| Games,"$1,200.50",d\n'
        "y,,Fallback,,nan,\n"
        " x ,Again,,,1,\n"
        ",Nameless,,,1,\n"
        "z,Z,,,-3,\n"
    )
    (tmp_path / "i.csv").write_text(text)
    codes, errors = IdCodes(), RowErrors()
    known = codes.encode(pl.Series(["z", "x"])).tolist()
    file = table_file(tmp_path / "i.csv")
    table = read_catalog(file, COLUMNS, codes, errors)
    items = table.items
    assert table.rows == 5 and table.listed[items["code"]].all() and table.listed.sum() == 3
    assert items["item_id"].to_list() == ["x", "y", "z"]
    assert [items["code"][2], items["code"][0]] == known
    assert items["title"].to_list() == ["A & B (1999)", "Fallback", "Z"]
    assert items["year"].to_list() == [1999, None, None]
    assert items["categories"].to_list() == [["Toys", "Games"], [], []]
    assert items["price"].to_list() == [1200.5, None, None]
    assert {error["reason"]: error["first"] for error in errors.records()} == {
        "an item without an id": [{"place": "line 5", "found": "nothing"}],
        "an item id that is listed again": [{"place": "line 4", "found": "'x'"}],
    }
    requested = read_catalog(
        file, COLUMNS, codes, RowErrors(), lambda code: np.isin(code, known[:1])
    )
    assert requested.items["item_id"].to_list() == ["z"]
    assert requested.rows == 5 and requested.listed.sum() == 3  # also those that are not wanted


def test_a_year_is_the_columns_and_else_the_titles_if_that_is_asked(tmp_path):
    years = ("1995", "2003.0", "", "199x", "1995.5", "0", "-4", "19950302", " 1986 ")
    rows = [f"{n},Title (1900),{year}" for n, year in enumerate(years)]
    (tmp_path / "i.csv").write_text("\n".join(["id,title,since", *rows]) + "\n")
    known = {0: 1995, 1: 2003, 8: 1986}
    for title_year, other in ((False, None), (True, 1900)):
        columns = ItemColumns("id", ("title",), year=("since",), title_year=title_year)
        table = read_catalog(table_file(tmp_path / "i.csv"), columns, IdCodes(), RowErrors())
        assert table.items["year"].to_list() == [known.get(n, other) for n in range(len(years))]


def test_years_are_those_that_a_log_may_have(tmp_path):
    """The other programs read what is prepared."""
    years = ("0", "1", "9999", "10000")
    table = "".join(f"{n},T (0000),{year}\n" for n, year in enumerate(years))
    (tmp_path / "i.csv").write_text("item_id,title,year\n" + table)
    columns = ItemColumns("item_id", ("title",), year=("year",), title_year=True)
    items = read_catalog(table_file(tmp_path / "i.csv"), columns, IdCodes(), RowErrors()).items
    assert items["year"].to_list() == [None, 1, 9999, None]
    items.write_parquet(tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet").year == (None, 1, 9999, None)


def test_items_without_a_usable_title_or_a_price():
    titles = ["one two three", "one two", None, '<span id="t">x</span>']
    items = pl.DataFrame({"title": titles, "price": [None, 0.0, 2.5, None]})
    assert unusable_title(items, 2).tolist() == [True, False, True, True]
    assert unusable_title(items, 3).tolist() == [False, False, True, True]
    assert unpriced(items).tolist() == [True, False, False, True]


def test_without_a_table_an_item_is_called_by_its_id():
    items = items_of_events(pl.Series(["b", "a"]), np.array([4, 2], np.uint32))
    (first, _) = items.to_dicts()
    assert (first["code"], first["item_id"], first["title"]) == (4, "b", "b")
    assert first["price"] is None
