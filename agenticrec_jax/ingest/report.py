"""The data report of a prepared log: rows read, rows dropped by reason, the log that is left."""

import numpy as np

from agenticrec_jax.data.splits import chronological_cuts
from agenticrec_jax.ingest.events import (
    Events,
    count_events,
    equals_previous,
    is_first,
    sparsity,
)
from agenticrec_jax.ingest.prepare import PreparedLog

# What needs a column of the items, and does without it where it is absent.
COLUMN_USES = {
    "price": "prices in item_info_search and search_item_info, price bands in candidates_analyze "
    "(full detail)",
    "categories": "categories in item_info_search, search_item_info and search_knowledge_graph, "
    "groups by category in candidates_analyze (full detail)",
    "brand": "brands in get_user_profile, search_user_profile, get_session_behavior, "
    "get_rating_behavior, item_info_search, search_item_info, candidates_analyze and "
    "search_knowledge_graph, the brand_popularity row",
    "year": "years in search_knowledge_graph, where a title has none in brackets",
}
RATING_USES = (
    "get_rating_behavior, ratings in search_user_history, mean ratings in get_user_profile, "
    "search_user_profile, item_info_search and search_item_info, profiles of make_profiles"
)


def data_report(prepared: PreparedLog) -> dict:
    """Returns the report as JSON values, under the keys of ``report.json``."""
    events = prepared.events
    _, users, items, pairs = count_events(events)
    return {
        "interaction_rows": {
            "read": prepared.rows,
            "bad": prepared.row_errors.total,
            "bad_rows": prepared.row_errors.records(),
        },
        "item_rows": prepared.item_rows.record() if prepared.item_rows else None,
        "notes": [*prepared.notes, *_order_note(prepared)],
        "filters": [step.record() for step in prepared.filter_log.steps],
        "users": users,
        "items": prepared.items.height,
        "items_with_events": items,
        "interactions": len(events),
        "samples": len(events) - users,
        "sparsity": sparsity(pairs, users, items),
        "events_per_user": _distribution(_history_lengths(events)),
        "ties": ties(events),
        "repeated_pairs": len(events) - pairs,
        "cold": cold_shares(events),
        "duplicate_titles": _duplicate_titles(prepared),
        "missing": _missing(prepared),
    }


def _order_note(prepared: PreparedLog) -> list[str]:
    if not prepared.order_only:
        return []
    return [
        "times are positions in each user's order: no user's event can be said to be earlier than "
        "another's, so leave-one-out is the split that means something, not a chronological one"
    ]


def _history_lengths(events: Events) -> np.ndarray:
    sizes = np.bincount(events.user)
    return sizes[sizes > 0]


def _distribution(values: np.ndarray) -> dict:
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.9, 1])
    names = ("min", "p25", "median", "p75", "p90", "max")
    return {name: float(q) for name, q in zip(names, quantiles, strict=True)} | {
        "mean": float(values.mean())
    }


def ties(events: Events) -> int:
    """Counts events that share their second with another of the same user."""
    order = np.argsort(events.user, kind="stable")
    same = equals_previous(events.user[order]) & equals_previous(np.floor(events.time[order]))
    return int((same | np.append(same[1:], False)).sum())


def cold_shares(events: Events) -> dict:
    """Returns the shares of test samples whose item or user has no event in fit range B.

    The test samples are the last tenth of all samples in time order, and the range ends at the
    time of the first valid sample, as in `data.splits`. A log with too few samples for such a split
    has no shares.

    Args:
      events: in time order.
    """
    samples = np.flatnonzero(~is_first(events.user))
    _, valid_start, test_start = chronological_cuts(len(samples))
    test = samples[test_start:]
    if not len(test) or not valid_start:
        return {"test_samples": len(test)}
    fitted = int(np.searchsorted(events.time, events.time[samples[valid_start]], side="left"))
    return {
        "test_samples": len(test),
        "item": float(1 - np.isin(events.item[test], events.item[:fitted]).mean()),
        "user": float(1 - np.isin(events.user[test], events.user[:fitted]).mean()),
    }


def _duplicate_titles(prepared: PreparedLog) -> int:
    """Counts items that share their title, case folded, with another item."""
    title = prepared.items["title"].drop_nulls().str.to_lowercase()
    return int(title.str.replace_all(r"\s+", " ").str.strip_chars().is_duplicated().sum())


def _missing(prepared: PreparedLog) -> dict:
    """Returns the share of items without a column, of events without a rating, and their uses."""
    items = prepared.items
    missing = {}
    for name, needed in COLUMN_USES.items():
        column = items[name]
        absent = column.list.len().fill_null(0) == 0 if name == "categories" else column.is_null()
        missing[name] = {"share": float(absent.mean()), "needed_by": needed}
    missing["title"] = {
        "share": float(items["title"].is_null().mean()),
        "needed_by": "prompts and look-ups by name; such an item is called by its id",
    }
    rated = float(np.isnan(prepared.events.rating).mean())
    return missing | {"rating": {"share": rated, "needed_by": RATING_USES}}
