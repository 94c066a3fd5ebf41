"""Invented results, curves and trajectories for the tests of the report."""

import math

import numpy as np

ROWS = {
    "chance": 0.227,
    "popularity": 0.426,
    "brand_popularity": 0.489,
    "cooccurrence": 0.470,
    "sasrec": 0.437,
    "scripted_agent": 0.512,
    "warm_start_no_tools": 0.231,
    "warm_start": 0.441,
    "rta": 0.487,
    "rta_ppr": 0.493,
}
TOOLS = ("get_user_profile", "candidates_analyze", "get_similar_items", "get_similar_users")
NOUNS = ("Binder", "Gel Pens", "Label Tape", "Toner Cartridge", "Desk Lamp", "Index Cards")
HOSTILE = "<script>alert('x')</script> & <b>Pens</b>"


def example_row(name, value):
    policy = name.startswith(("warm", "rta")) or name == "scripted_agent"
    return {
        "name": name,
        "hr@1": value - 0.2 if value > 0.23 else 0.05,
        "hr@5": value + 0.12,
        "hr@10": value + 0.28,
        "ndcg@5": value - 0.07,
        "ndcg@10": value,
        "invalid_rate": 0.012 if policy else 0.0,
        "mean_tool_calls": 2.4 if policy and "no_tools" not in name else 0.0,
        "n": 500,
        "ndcg@10_interval": [value - 0.028, value + 0.027],
    }


def comparison(a, b, difference, interval):
    values = {"metric": "ndcg@10", "difference": difference, "interval": interval}
    return {"a": a, "b": b} | values


def preference(pairs, before, after, interval):
    return {
        "pairs": pairs,
        "questions": 74,
        "before": before,
        "before_interval": [before - 0.05, before + 0.05],
        "after": after,
        "after_interval": [after - 0.06, after + 0.06],
        "difference": after - before,
        "interval": interval,
    }


def example_results():
    return {
        "rows": [example_row(name, value) for name, value in ROWS.items()],
        "protocol": {
            "dataset": "office_sample",
            "split": "test",
            "negatives": 19,
            "candidate_hash": "9f2c6b0a41d7e835",
            "seeds": [0],
        },
        "phases": [
            {"name": "sasrec", "wall_s": 41.2, "cpu_s": 77.0, "peak_mb": 1204.0},
            {"name": "rta", "wall_s": 262.4, "cpu_s": 498.1, "peak_mb": 2890.5},
        ],
        "comparisons": [
            comparison("rta", "warm_start", 0.046, [0.021, 0.07]),
            comparison("rta_ppr", "rta", 0.006, [-0.008, 0.019]),
            comparison("rta_ppr", "scripted_agent", -0.02, [-0.03, -0.01]),
        ],
        "preferences": [
            preference("all", 0.2, 0.4, [0.11, 0.29]),
            preference("undecidable", 0.31, 0.3, [-0.06, 0.04]),
        ],
        "gate": {"copy_accuracy": 0.981, "passed": True},
        "config": {"rta": {"steps": 15, "learning_rate": 1e-4}, "note": HOSTILE},
    }


def example_curves(seed=0):
    rng = np.random.default_rng(seed)
    lines = []
    for stage, steps in (("rta", 15), ("ppr", 8)):
        for step in range(1, steps + 1):
            line = {"stage": stage, "step": step, "reward": -0.2 + 0.3 * (1 - math.exp(-step / 6))}
            line["reward"] += 0.03 * rng.normal()
            line["tool_calls"] = 2.0 + 0.05 * step
            for i, tool in enumerate(TOOLS):
                if rng.random() > 0.1:  # a tool without calls has no value in that step
                    line[f"calls/{tool}"] = abs(0.2 + 0.2 * i + 0.05 * rng.normal())
            line["groups_all_equal"] = 0.05 * step
            line["positive_with_tools"] = None if step == 1 else 1 - 0.5 / step
            lines.append(line | {"loss": float(rng.normal()), "entropy": 0.4 - 0.01 * step})
    lines[3]["loss"] = None
    return lines


def example_title(rng):
    brand = rng.choice(["Avery", "Pilot", "Brother"])
    noun = rng.choice(NOUNS)
    return f"{brand} {noun}, Pack of {rng.integers(2, 40)}"


def example_trajectory(example_id, kind="hit", stage="rta_ppr"):
    rng = np.random.default_rng(example_id)
    numbers = (rng.permutation(20) + 1).tolist()
    ranking = numbers[:10]
    target = {"hit": ranking[2], "miss": numbers[15], "invalid": numbers[0]}[kind]
    order = "".join(f"{n}," for n in ranking)
    similar = "I look at what resembles the last item."
    call = '<tool_call>{"name":"get_similar_items","arguments":{"item_name":"h3"}}</tool_call>'
    answer = f"<think>The similarity order decides.</think><answer>\\boxed{{[{order}]}}</answer>"
    segments = [
        {"origin": "sampled", "text": f"<think>{similar}</think>{call}"},
        {"origin": "observation", "text": f"nearest: 3 ink cartridges; similarity:{order}"},
    ]
    if kind == "invalid":
        answer = f"<think>The similarity order decides.</think><answer>\\boxed{{[{order[:9]}"
    segments.append({"origin": "sampled", "text": answer})
    values = {"hit": (0.5, 0.0, 0.0), "miss": (-0.5, 0.0, 0.0), "invalid": (0.0, -1.0, 0.0)}[kind]
    return {
        "example_id": example_id,
        "split": "test",
        "user": f"u{example_id % 50:05d}",
        "stage": stage,
        "seed": 12,
        "history": [example_title(rng) for _ in range(3)],
        "candidates": [example_title(rng) for _ in range(20)],
        "target_number": target,
        "segments": segments,
        "calls": [
            {
                "name": "get_similar_items",
                "arguments": {"item_name": "h3"},
                "observation": segments[1]["text"],
                "ok": kind != "miss",
                "seconds": 0.0021,
            }
        ],
        "ranking": None if kind == "invalid" else ranking,
        "valid": kind != "invalid",
        "invalid_reason": "malformed_answer" if kind == "invalid" else None,
        "rank": 3 if kind == "hit" else None,
        "reward": dict(zip(("ranking", "format", "tool_bonus"), values, strict=True))
        | {"total": sum(values)},
        "finish": "token_budget" if kind == "invalid" else "stop",
    }


def example_trajectories(hits=40):
    trajectories = [example_trajectory(i) for i in range(hits)]
    return trajectories + [example_trajectory(100, "miss"), example_trajectory(101, "invalid")]


def example_group(step=1, group=0, advantages=(0.5, -0.5), stage="rta"):
    """A group of training rollouts: a hit, and misses."""
    first = example_trajectory(200 + step)
    example = ("example_id", "split", "user", "history", "candidates", "target_number")
    members = [
        example_trajectory(200 + step, "miss" if i else "hit") | {"choice": None, "advantage": a}
        for i, a in enumerate(advantages)
    ]
    return {name: first[name] for name in example} | {
        "stage": stage,
        "seed": 12,
        "step": step,
        "group": group,
        "task": "rank",
        "prompt": f"prompt of step {step}",
        "members": members,
    }
