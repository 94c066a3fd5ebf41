"""Tools over the user's events: profile, session and ratings."""

import math

import numpy as np

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.tools.base import AsOfView, object_schema
from agenticrec_jax.tools.profiles import Profiles
from agenticrec_jax.tools.text import ToolOptions, ago, brand_of, counted, cut

SESSION = 3  # events that count as the recent session


class GetUserProfile:
    """Long-term profile of all the user's events before the example.

    With ``profiles`` it is the text that a model wrote of them beforehand, without it a summary of
    counts. An example is refused if its stored profile is missing or has another cut.
    """

    name = "get_user_profile"
    description = "Long-term profile of the user."
    parameters = object_schema()

    def __init__(self, options: ToolOptions, profiles: Profiles | None = None):
        self.options = options
        self.profiles = profiles

    def check(self, example: RankingExample) -> None:
        """Raises InputError unless there is a stored profile of exactly this example."""
        if self.profiles is not None:
            self.profiles.of(example)

    def __call__(self, view: AsOfView) -> str:
        if self.profiles is not None:
            text = cut(self.profiles.of(view).text, self.options.profile_words)
            return f"profile: {text or 'nothing was written'}"
        brands = counted((brand_of(view.items, item) for item in view.own_items), 3)
        ratings = [rating for rating in view.own_ratings if not math.isnan(rating)]
        mean = f"mean rating {float(np.mean(ratings)):.1f}" if ratings else "no ratings"
        return f"profile from statistics: {len(view.own_items)} events; brands {brands}; {mean}"


class GetSessionBehavior:
    """Movement of interest: brands of the newest events against those before, and their age."""

    name = "get_session_behavior"
    description = "How interest moved over the recent session."
    parameters = object_schema()

    def __init__(self, options: ToolOptions):
        self.options = options

    def __call__(self, view: AsOfView) -> str:
        brands = [brand_of(view.items, item) for item in view.history]
        recent = brands[-SESSION:]
        before = brands[:-SESSION]
        facts = [f"recent {counted(recent, 3)}"]
        if before:
            facts += [f"before {counted(before, 2)}", _movement(set(recent), set(before))]
        return "; ".join([*facts, f"last event {ago(view.time - view.own_times[-1])}"])


def _movement(recent: set[str], before: set[str]) -> str:
    if recent <= before:
        return "interest stays"
    return "interest widens" if recent & before else "interest moved"


class GetRatingBehavior:
    """The history by high (4 and more), neutral and low (2 and less) rating, an example of each."""

    name = "get_rating_behavior"
    description = "History by high, neutral and low rating."
    parameters = object_schema()

    def __init__(self, options: ToolOptions):
        self.options = options

    def __call__(self, view: AsOfView) -> str:
        groups: dict[str, list[int]] = {"high": [], "neutral": [], "low": [], "unrated": []}
        for item, rating in zip(view.history, view.history_ratings, strict=True):
            groups[_level(rating)].append(item)
        if len(groups["unrated"]) == len(view.history):
            return "no ratings known"
        names = [name for name in groups if groups[name] or name != "unrated"]
        return "; ".join(self._group(view, name, groups[name]) for name in names)

    def _group(self, view: AsOfView, name: str, items: list[int]) -> str:
        if not items:
            return f"{name} 0"
        brands = counted((brand_of(view.items, item) for item in items), 2)
        title = cut(view.items.title[items[-1]], self.options.title_words)
        return f"{name} {len(items)} {brands}, as {title}"


def _level(rating: float) -> str:
    if math.isnan(rating):
        return "unrated"
    if rating >= 4:
        return "high"
    return "low" if rating <= 2 else "neutral"
