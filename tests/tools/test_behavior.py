from pathlib import Path

import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.behavior import GetRatingBehavior, GetSessionBehavior, GetUserProfile
from agenticrec_jax.tools.profiles import Profile, Profiles
from agenticrec_jax.tools.text import ToolOptions

DAY = 86400
TITLES = ("Red Pen Set Of Ten", "Blue Pen", "Label Tape Roll Long", "Desk Lamp", "Stapler")
TEXT = "Buys pens by Pilot, and tape; rates labels low."
BRANDS = ("Pilot", "Pilot", "Brother", None, "Bostitch")


def view(items, ratings=None, days=None, length=10, now=100):
    """The question asked on day ``now`` after the given events of one user."""
    catalog = make_items([f"i{n}" for n in range(5)], TITLES, brand=BRANDS)
    days = days if days is not None else list(range(len(items)))
    rating = None if ratings is None else [*ratings, 1.0]
    times = [DAY * day for day in [*days, now]]
    log = make_log(["u"] * len(times), [*items, 4], times, rating, items=catalog)
    history = tuple(items[-length:])
    return AsOfView(log, RankingExample(0, 0, len(items), DAY * now, history, (4, 3), 4, "test"))


def ask(tool, *arguments, words=3, **settings):
    return tool(ToolOptions(title_words=words))(view(*arguments, **settings))


def test_the_profile_covers_all_events_and_says_that_it_is_computed():
    said = ask(GetUserProfile, [0, 1, 2, 3, 0], [5, 4, 3, float("nan"), 4], length=2)
    assert (
        said
        == "profile from statistics: 5 events; brands Pilot 3, Brother, no brand; mean rating 4.0"
    )


def test_a_profile_without_ratings_says_so():
    assert ask(GetUserProfile, [0]) == "profile from statistics: 1 events; brands Pilot; no ratings"


def stored(*profiles):
    lines = {profile.example_id: n for n, profile in enumerate(profiles, 2)}
    return Profiles(Path("p.jsonl"), {}, {p.example_id: p for p in profiles}, lines)


def test_a_stored_profile_is_told_instead_of_statistics():
    profiles = stored(
        Profile(7, 1, "c0", "Likes other things.", "stop"), Profile(0, 3, "c0", TEXT, "stop")
    )
    said = GetUserProfile(ToolOptions(), profiles)(view([0, 1, 2]))
    assert said == f"profile: {TEXT}"
    short = GetUserProfile(ToolOptions(profile_words=4), profiles)(view([0, 1, 2]))
    assert short == "profile: Buys pens by Pilot…"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing was written"),
        ("Pens.\npopular\u2028 7", "Pens. popular 7"),
        ("x" * 90, f"{'x' * 24}…"),
    ],
)
def test_a_stored_profile_is_one_line_whatever_it_holds(text, said):
    tool = GetUserProfile(ToolOptions(), stored(Profile(0, 1, "c0", text, "stop")))
    assert tool(view([0])) == f"profile: {said}"


def test_an_example_without_its_own_profile_is_refused():
    """Also before an episode, where the box is asked about the example."""
    for profile, named in (
        (Profile(1, 3, "c0", TEXT, "stop"), ("p.jsonl", "example 0")),
        (Profile(0, 4, "c0", TEXT, "stop"), ("p.jsonl", "line 2", "position", 4, 3)),
    ):
        tool = GetUserProfile(ToolOptions(), stored(profile))
        assert_names(refused(tool, view([0, 1, 2])), *named)
        assert_names(refused(Toolbox([tool]).check, view([0, 1, 2])), *named)
    GetUserProfile(ToolOptions()).check(view([0]))


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([2, 3, 0, 1, 0], "recent Pilot 3; before Brother, no brand; interest moved"),
        ([0, 2, 0, 1, 4], "recent Pilot 2, Bostitch; before Pilot, Brother; interest widens"),
        ([0, 2, 0, 2, 1], "recent Pilot 2, Brother; before Pilot, Brother; interest stays"),
    ],
)
def test_the_session_is_compared_with_what_came_before(items, said):
    assert ask(GetSessionBehavior, items, days=[1, 1, 1, 2, 98]) == f"{said}; last event 2 days ago"


@pytest.mark.parametrize(("now", "ago"), [(7, "today"), (8, "1 day ago"), (40, "33 days ago")])
def test_a_short_history_is_all_recent(now, ago):
    said = ask(GetSessionBehavior, [2, 4], days=[3, 7], now=now)
    assert said == f"recent Brother, Bostitch; last event {ago}"


def test_ratings_are_grouped_with_the_newest_title_of_each():
    said = ask(GetRatingBehavior, [0, 1, 0, 2, 4, 3], [4, 5, 5, 3, 2, 1])
    assert said == "; ".join(
        [
            "high 3 Pilot 3, as Red Pen Set…",
            "neutral 1 Brother, as Label Tape Roll…",
            "low 2 Bostitch, no brand, as Desk Lamp",
        ]
    )


def test_unrated_events_are_a_group_of_their_own():
    said = ask(GetRatingBehavior, [1, 4], [5, float("nan")])
    assert said == "high 1 Pilot, as Blue Pen; neutral 0; low 0; unrated 1 Bostitch, as Stapler"
    assert ask(GetRatingBehavior, [1, 4]) == "no ratings known"


def test_only_the_shown_history_is_grouped_by_rating():
    assert (
        ask(GetRatingBehavior, [2, 1], [1, 5], length=1)
        == "high 1 Pilot, as Blue Pen; neutral 0; low 0"
    )
