import zipfile

from agenticrec_jax.ingest.movielens import ADDRESS, movielens_1m
from agenticrec_jax.ingest.prepare import Preparation, prepare_log
from agenticrec_jax.testing.errors import assert_names, refused

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
    assert prepared.row_errors.total == 0
    assert prepared.events.time.tolist() == [978298413, 978300760, 978302109]
    assert prepared.events.rating.tolist() == [4, 5, 3]
    items = prepared.items
    assert [items["item_id"][int(code)] for code in prepared.item] == ["1193", "1193", "661"]
    assert items["title"].to_list()[1] == "Misérables, Les (1995)"
    assert items["year"].to_list() == [1996, 1995]
    assert items["categories"].to_list() == [["Animation", "Children's", "Musical"], ["Drama"]]


def test_bad_lines_are_said_to_be_of_the_file_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", RATINGS + "2::661::4\n")
        archive.writestr("ml-1m/movies.dat", MOVIES.encode("latin-1") + b"7::Sabrina (1995)\n")
    prepared = prepare_log(movielens_1m(tmp_path), Preparation())
    for errors, name in (
        (prepared.row_errors, "ml-1m/ratings.dat"),
        (prepared.item_rows.row_errors, "ml-1m/movies.dat"),
    ):
        (error,) = errors.records()
        assert error["file"] == f"{tmp_path}/ml-1m.zip/{name}" and error["count"] == 1
        assert "another number of cells" in error["reason"]


def test_a_missing_zip_says_where_it_is(tmp_path):
    assert_names(refused(movielens_1m, tmp_path), tmp_path / "ml-1m.zip", ADDRESS)
