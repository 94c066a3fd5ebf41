"""Files in the layouts of the three releases, as their pages show them; expected events by hand."""

import gzip
import json

import pytest

from agenticrec_jax.ingest.amazon import PAPER_COUNTS, RELEASES, amazon_log, find_amazon
from agenticrec_jax.ingest.events import sparsity
from agenticrec_jax.ingest.prepare import PRESETS, Preparation, prepare_log
from agenticrec_jax.testing.errors import assert_names, refused

EVERYTHING = Preparation()
CATEGORY = "Video_Games"


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def events(prepared):
    """(user, item, seconds, rating) in the log's order."""
    log_events, names = prepared.events, prepared.items["item_id"]
    users = log_events.user_ids.decode(log_events.user).to_list()
    items = [names[int(code)] for code in prepared.item]
    return list(
        zip(users, items, log_events.time.tolist(), log_events.rating.tolist(), strict=True)
    )


META_2023 = [
    {
        "main_category": "Video Games",
        "title": "Zelda &amp; <b>Link</b>",
        "average_rating": 4.9,
        "features": ["A feature"],
        "description": ["First.", "Second."],
        "price": 19.99,
        "store": "Nintendo",
        "categories": ["Video Games", "Switch"],
        "details": {"Rated": "Everyone"},
        "parent_asin": "B01",
    },
    {
        "main_category": "Video Games",
        "title": "Pad",
        "features": ["Only a feature"],
        "description": [],
        "price": None,
        "store": None,
        "categories": [],
        "parent_asin": "B02",
    },
]


def review_2023(user, item, milliseconds, rating):
    return {
        "rating": rating,
        "title": "a review's title",
        "text": 'says "much",\nin two lines',
        "images": [],
        "asin": f"{item}-red",
        "parent_asin": item,
        "user_id": user,
        "timestamp": milliseconds,
        "verified_purchase": True,
    }


def test_reviews_and_metadata_of_2023(tmp_path):
    reviews = [
        review_2023("AE2", "B02", 1_664_600_000_500, 2.0),
        review_2023("AE1", "B01", 1_664_582_400_000, 5.0),
    ]
    write(tmp_path / "Video_Games.jsonl.gz", lines(reviews))
    write(tmp_path / "meta_Video_Games.jsonl.gz", lines(META_2023))
    prepared = prepare_log(find_amazon("amazon2023", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [
        ("AE1", "B01", 1_664_582_400, 5),
        ("AE2", "B02", 1_664_600_000.5, 2),
    ]
    assert any("milliseconds" in note for note in prepared.notes)
    first, second = prepared.items.drop("code").to_dicts()
    assert first == {
        "item_id": "B01",
        "title": "Zelda & Link",
        "categories": ["Video Games", "Switch"],
        "price": 19.99,
        "brand": "Nintendo",
        "average_rating": None,  # of the day of the crawl
        "description": "First. Second.",
        "year": None,
    }
    assert second["categories"] == ["Video Games"] and second["description"] == "Only a feature"
    assert second["price"] is None and second["brand"] is None


def test_the_five_core_ratings_of_2023_come_before_its_reviews(tmp_path):
    rows = "user_id,parent_asin,rating,timestamp\nAE1,B01,4.0,1664582400000\n"
    write(tmp_path / "Video_Games.csv.gz", rows)
    write(tmp_path / "Video_Games.jsonl.gz", lines([review_2023("AE2", "B02", 1, 1.0)]))
    write(tmp_path / "meta_Video_Games.jsonl.gz", lines(META_2023))
    prepared = prepare_log(find_amazon("amazon2023", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [("AE1", "B01", 1_664_582_400, 4)]


REVIEW_2018 = {
    "overall": 3.0,
    "vote": "2",
    "verified": True,
    "reviewTime": "09 13, 2009",
    "reviewerID": "A1",
    "asin": "0700",
    "style": {"Format:": " Hardcover"},
    "reviewerName": "J. M.",
    "reviewText": "text",
    "summary": "s",
    "unixReviewTime": 1_252_800_000,
}
META_2018 = {
    "category": ["Video Games", "PC"],
    "description": ["A", "B"],
    "title": "Sim",
    "brand": "Maxis",
    "feature": [],
    "rank": [">#2,010 in Games"],
    "main_cat": "Video Games",
    "price": "$1,024.50",
    "asin": "0700",
}


def test_reviews_and_headerless_ratings_of_2018(tmp_path):
    write(tmp_path / "Video_Games.csv", "0700,A9,4.0,1252800001\n0700,A8,1.0,1252700000\n")
    write(tmp_path / "meta_Video_Games.json.gz", lines([META_2018]))
    prepared = prepare_log(find_amazon("amazon2018", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [
        ("A8", "0700", 1_252_700_000, 1),
        ("A9", "0700", 1_252_800_001, 4),
    ]
    (item,) = prepared.items.to_dicts()
    assert (item["price"], item["brand"], item["description"]) == (1024.5, "Maxis", "A B")
    assert item["categories"] == ["Video Games", "PC"]

    write(tmp_path / "Video_Games_5.json.gz", lines([REVIEW_2018]))  # comes before ratings alone
    prepared = prepare_log(find_amazon("amazon2018", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [("A1", "0700", 1_252_800_000, 3)]


META_2014 = (
    "{'asin': '0007', 'description': \"It's here\", 'title': 'Girl\\'s \"Ballet\"', 'price': 3.17, "
    "'imUrl': 'http://x', 'related': {'also_bought': ['B00']}, 'salesRank': {'Toys': 211836}, "
    "'brand': 'Coxlures', 'categories': [['Sports', 'Dance'], ['Toys', 'Games']]}\n"
)


def test_reviews_and_ratings_of_2014_with_metadata_in_python_literals(tmp_path):
    write(tmp_path / "meta_Video_Games.json.gz", META_2014)
    write(tmp_path / "ratings_Video_Games.csv", "A2,0007,5.0,1355616000\n")
    prepared = prepare_log(find_amazon("amazon2014", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [("A2", "0007", 1_355_616_000, 5)]
    (item,) = prepared.items.to_dicts()
    assert (item["title"], item["description"]) == ('Girl\'s "Ballet"', "It's here")
    assert (item["price"], item["brand"], item["categories"]) == (
        *(3.17, "Coxlures"),
        ["Sports", "Dance"],
    )

    review = {
        "reviewerID": "A3",
        "asin": "0007",
        "helpful": [2, 3],
        "overall": 2.0,
        "unixReviewTime": 1_252_800_000,
        "reviewTime": "09 13, 2009",
    }
    write(tmp_path / "reviews_Video_Games_5.json.gz", lines([review]))
    prepared = prepare_log(find_amazon("amazon2014", CATEGORY, tmp_path), EVERYTHING)
    assert events(prepared) == [("A3", "0007", 1_252_800_000, 2)]


SEPTEMBER_END = 1_664_582_399_999  # the last millisecond before October 2022, in UTC
OCTOBER = SEPTEMBER_END + 1
OCTOBER_NEXT = 1_696_118_400_000


def test_the_rules_of_2023_by_hand(tmp_path):
    """Each filter's rule drops what was planted for it and nothing else."""
    rows = ["user_id,parent_asin,rating,timestamp"]
    items = [f"G{n}" for n in range(6)] + ["LONG", "FREE", "SPAN"]
    for user in range(6):
        rows += [f"u{user},{item},5,{OCTOBER + 1000 * user}" for item in items]
    rows += [
        f"u0,G0,5,{OCTOBER}",  # an exact duplicate of the first row
        f"u1,G1,3,{OCTOBER + 9000}",  # the same pair later
        f"few,G1,5,{OCTOBER}",  # a user of one event: not in the 5-core
        *(f"early,G{n},5,{SEPTEMBER_END}" for n in range(5)),
        *(f"late,G{n},5,{OCTOBER_NEXT}" for n in range(5)),
        *(f"edge,G{n},5,{OCTOBER_NEXT - 1}" for n in range(5)),
    ]
    write(tmp_path / "Video_Games.csv", "\n".join(rows) + "\n")
    metadata = [{"parent_asin": f"G{n}", "title": "w " * 19 + "w", "price": n} for n in range(6)]
    metadata += [
        {"parent_asin": "LONG", "title": "w " * 20 + "w", "price": 1.0},
        {"parent_asin": "FREE", "title": "No price", "price": "from 3 to 4"},
        {"parent_asin": "SPAN", "title": '<span id="x">Title</span>', "price": 1.0},
        {"parent_asin": "UNUSED", "title": "Nobody's", "price": 1.0},
    ]
    write(tmp_path / "meta_Video_Games.jsonl", lines(metadata))
    raw = find_amazon("amazon2023", CATEGORY, tmp_path)
    prepared = prepare_log(raw, PRESETS["amazon2023"])
    left = [(step.name, step.events, step.users, step.items) for step in prepared.filter_log.steps]
    assert left == [
        ("readable rows", 72, 10, 9),
        ("exact duplicates dropped", 71, 10, 9),
        ("first event of each user and item", 70, 10, 9),
        ("5-core of the whole log", 69, 9, 9),
        ("window 2022-10 to 2023-10", 59, 7, 9),
        ("interactions with unknown items dropped", 59, 7, 9),
        ("items without a title or with more than 20 words in it dropped", 47, 7, 7),
        ("items without a price dropped", 41, 7, 6),
    ]
    assert prepared.items["item_id"].to_list() == [f"G{n}" for n in range(6)]


@pytest.mark.parametrize("release", RELEASES)
def test_a_missing_download_is_one_sentence_that_says_where_it_is(tmp_path, release):
    sentence = refused(find_amazon, release, CATEGORY, tmp_path)
    addresses = [address.format(CATEGORY) for address in RELEASES[release].fetch]
    assert_names(sentence, tmp_path, CATEGORY, RELEASES[release].page, *addresses)
    sentence = refused(amazon_log, release, tmp_path / "reviews.json", None)
    assert_names(sentence, tmp_path / "reviews.json", "no such file")


def test_the_counts_of_the_paper_give_its_sparsities():
    """Of which the paper prints fewer digits."""
    shares = {name: sparsity(c.interactions, c.users, c.items) for name, c in PAPER_COUNTS.items()}
    assert {name: f"{share:.3%}" for name, share in shares.items()} == {
        "CDs_and_Vinyl": "99.971%",
        "Musical_Instruments": "99.961%",
        "Office_Products": "99.985%",
        "Video_Games": "99.939%",
    }
