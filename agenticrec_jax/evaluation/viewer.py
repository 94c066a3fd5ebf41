"""Trajectories packed for a page that shows them in a browser, without a network.

The page holds an index, which every filter reads, and chunks with the turns, which are unpacked
when they are looked at. Both are JSON, compressed by gzip and written in base64, in which no text
of data or of a policy can end a tag. The script of the page (``templates/viewer.js``) turns them
into text nodes, never into HTML, and the page's Content-Security-Policy allows that script alone.
"""

import base64
import contextlib
import gzip
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from agenticrec_jax import strict_json
from agenticrec_jax.evaluation.turns import outcome, tool_of, turns_of
from agenticrec_jax.paths import Path, glob, is_bucket, make_directory, write_whole

LARGEST_PAGE = 30_000_000  # bytes of packed trajectories in one file
CHUNK = 256  # trajectories, or groups, of a chunk
_CHUNK_NAME = re.compile(r"\d+-[0-9a-f]{16}\.js(\.part)?")

SCRIPT = (
    resources.files("agenticrec_jax.evaluation")
    .joinpath("templates", "viewer.js")
    .read_text(encoding="utf-8")
)


def viewer_blocks(
    path: str | os.PathLike,
    trajectories: Sequence[Mapping],
    groups: Sequence[Mapping] = (),
    pairs: Sequence[tuple[int, int, str]] = (),
    *,
    largest_page: int = LARGEST_PAGE,
) -> dict[str, Any]:
    """Returns what the template ``viewer.html`` needs to show trajectories on a page.

    Chunks that are larger than ``largest_page`` together belong into a folder beside the page,
    ``<name of the page>_data``, from which the page loads them one by one. They are the text by the
    file's name under ``files``, for `write_page`. Their names have a digest of all of them, so the
    chunks of an earlier page remain until the new page is there.

    Args:
      path: of the page.
      trajectories: lines of ``trajectories.jsonl``, see `agent.transcripts.transcript`.
      groups: lines of ``rollouts.jsonl``, see `training.rollout_log`.
      pairs: of trajectories that are compared, by their index, and how the second differs.
      largest_page: bytes of packed chunks that the page itself may hold.
    """
    index, details = _index(trajectories, groups)
    index |= {"pairs": list(pairs), "chunk": CHUNK, "folder": None}
    chunks = [_packed(details[i : i + CHUNK]) for i in range(0, len(details), CHUNK)]
    beside = sum(map(len, chunks)) > largest_page
    files = {}
    if beside:
        digest = hashlib.sha256("\n".join(chunks).encode()).hexdigest()[:16]
        index |= {"folder": _folder(path).name, "digest": digest}
        files = {
            f"{number}-{digest}.js": f'viewerChunk({number}, "{chunk}");\n'
            for number, chunk in enumerate(chunks)
        }
    return {
        "index": _packed(index),
        "chunks": [] if beside else chunks,
        "files": files,
        "script": SCRIPT,
        "policy": _policy(beside),
    }


def write_page(path: str | os.PathLike, page: str, files: Mapping[str, str]) -> None:
    """Writes a page with the chunks beside it, then deletes those of an earlier page.

    Nothing else in the folder is deleted, and the folder only if it is empty then. A process that
    is killed leaves the old page or the new one, with its chunks.

    Args:
      path: of the page.
      page: its text.
      files: of its folder, see `viewer_blocks`.
    """
    folder = _folder(path)
    if files:
        make_directory(folder)
    for name, text in files.items():
        write_whole(folder / name, text)
    write_whole(path, page)
    stale = [
        file
        for file in glob(folder, "*")
        if _CHUNK_NAME.fullmatch(file.name) and file.name not in files
    ]
    with contextlib.suppress(OSError):  # as for a folder that also holds other files
        for file in stale:
            file.unlink()
        if stale and not is_bucket(folder):
            os.rmdir(folder)


def _folder(path: str | os.PathLike) -> Path:
    return Path(path).parent / f"{Path(path).stem}_data"


def _policy(beside: bool) -> str:
    """Returns the Content-Security-Policy: this one script, or also the files of the folder."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    sources = f"'sha256-{digest}'" + (" 'self'" if beside else "")
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _packed(value: Any) -> str:
    text = strict_json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


class _Numbers(dict):
    """Numbers of values in the order in which they were first asked for."""

    def __missing__(self, value: Any) -> int:
        self[value] = len(self)
        return self[value]

    def of(self, values: Iterable[Any]) -> list[int]:
        return [self[value] for value in values]


def _index(
    trajectories: Sequence[Mapping], groups: Sequence[Mapping]
) -> tuple[dict[str, Any], list[dict]]:
    """Returns the index, and the details of all trajectories and, behind them, of all groups."""
    titles, tools, rows = _Numbers(), _Numbers(), _Numbers()
    examples: dict[str, int] = {}
    listed: list[list] = []

    def example_of(record: Mapping) -> int:
        history = titles.of(record.get("history", ()))
        candidates = titles.of(record.get("candidates", ()))
        facts = [record["example_id"], record["split"], record["user"], history, candidates]
        facts += [record.get("target_number"), record.get("target_popularity")]
        key = repr(facts)
        if key not in examples:
            examples[key] = len(listed)
            listed.append(facts)
        return examples[key]

    indexed = [
        [
            rows[t["stage"]],
            t.get("seed"),
            example_of(t),
            outcome(t),
            t["rank"],
            tools.of(map(tool_of, t["calls"])),
            t["reward"]["total"],
        ]
        for t in trajectories
    ]
    indexed_groups = [
        [
            *(rows[g["stage"]], g.get("seed"), example_of(g), g["step"], g["group"], g["task"]),
            [m["reward"]["total"] for m in g["members"]],
            [m["advantage"] for m in g["members"]],
            tools.of(dict.fromkeys(tool_of(call) for m in g["members"] for call in m["calls"])),
        ]
        for g in groups
    ]
    details = [_detail(t) for t in trajectories]
    details += [
        {"prompt": g["prompt"], "members": [_detail(m) for m in g["members"]]} for g in groups
    ]
    index = {
        "titles": list(titles),
        "tools": list(tools),
        "rows": list(rows),
        "examples": listed,
        "trajectories": indexed,
        "groups": indexed_groups,
    }
    return index, details


def _detail(trajectory: Mapping) -> dict[str, Any]:
    """Returns what the card of a trajectory shows beside its example."""
    reward = trajectory["reward"]
    return {
        "turns": [_turn(turn) for turn in turns_of(trajectory)],
        "ranking": trajectory["ranking"],
        "choice": trajectory.get("choice"),
        "outcome": outcome(trajectory),
        "rank": trajectory["rank"],
        "reason": trajectory["invalid_reason"],
        "finish": trajectory["finish"],
        "reward": [reward[name] for name in ("ranking", "format", "tool_bonus", "total")],
    }


def _turn(turn: Mapping) -> list:
    """Returns kind and text of a turn; of a call also whether a tool answered, and its ms."""
    call = turn["call"]
    if call is None:
        return [turn["kind"], turn["text"].strip()]
    is_shown = call["shown"] is not None and turn["kind"] == "tool_call"
    text = call["shown"] if is_shown else turn["text"].strip()
    return [turn["kind"], text, bool(call["ok"]), round(call["seconds"] * 1000, 1)]
