"""The files and columns that the flags of prepare_data name, and the flags that are refused."""

import pytest

from agenticrec_jax.ingest.layouts import EVENT_COLUMNS, ITEM_COLUMNS, find_raw_log
from agenticrec_jax.testing.errors import assert_names, refused

COLUMNS = {name: name for name in EVENT_COLUMNS + ITEM_COLUMNS}


def find(layout="columns", given=(), columns=COLUMNS, **files):
    names = ("interactions", "items", "category")
    files = dict.fromkeys(names) | {"downloads": "downloads"} | files
    return find_raw_log(layout, columns=columns, given=given, **files)


def test_columns_of_tables_are_those_of_the_flags(tmp_path):
    events, items = tmp_path / "e.csv", tmp_path / "i.csv"
    events.write_text("who,item,time\na,x,1\n")
    items.write_text("item,title,cost\nx,X,1\n")
    columns = COLUMNS | {"user": "who", "price": "cost"}
    given = ("user", "price")
    log = find(interactions=str(events), items=str(items), columns=columns, given=given)
    assert log.event_columns.names == ["who", "item", "time", "rating"]
    assert log.item_columns.item == "item" and log.item_columns.price == ("cost",)
    assert (log.interactions.path, log.items.path) == (events, items)


@pytest.mark.parametrize("layout", ["movielens1m", "amazon2018"])
def test_a_column_flag_of_a_known_layout_is_refused(layout):
    sentence = refused(find, layout, given=["brand"], columns=COLUMNS | {"brand": "maker"})
    assert_names(sentence, "flag --brand_col", "'maker'", layout)


@pytest.mark.parametrize("column", ["*", "^u.*$", "#time", "#rating"])
@pytest.mark.parametrize("name", ["user", "time", "rating", "price"])
def test_a_column_that_polars_takes_for_another_is_refused(tmp_path, column, name):
    events = tmp_path / "e.csv"
    columns = COLUMNS | {name: column}
    events.write_text(",".join(columns[name] for name in EVENT_COLUMNS) + "\na,x,1,2\n")
    sentence = refused(find, interactions=str(events), columns=columns, given=[name])
    assert_names(sentence, f"flag --{name}_col", repr(column))


def test_flags_that_are_missing_are_named(tmp_path):
    assert_names(refused(find), "flag --interactions", "table of events")
    sentence = refused(find, "amazon2023")
    assert_names(sentence, "flag --category", "amazon2023", "CDs_and_Vinyl", "--interactions")
    sentence = refused(find, "amazon2023", category="Toys", downloads=str(tmp_path))
    assert_names(sentence, tmp_path, "'Toys'")


def test_given_columns_have_to_be_in_the_file(tmp_path):
    events = tmp_path / "e.csv"
    events.write_text("user,item,time\na,x,1\n")
    columns = COLUMNS | {"rating": "stars"}
    assert find(interactions=str(events), columns=columns).items is None
    sentence = refused(find, interactions=str(events), columns=columns, given=["rating"])
    assert_names(sentence, "flag --rating_col", "'stars'", events, "user, item, time")
    sentence = refused(find, interactions=str(events), given=["title"])
    assert_names(sentence, "flag --title_col", "'title'", "--items")
