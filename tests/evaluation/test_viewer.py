"""Packing of trajectories for a page: everything is there, nothing of it is markup."""

import base64
import gzip
import json
import re

import pytest

from agenticrec_jax.evaluation import viewer
from agenticrec_jax.evaluation.turns import MALFORMED
from tests.evaluation.invented import (
    HOSTILE,
    example_group,
    example_trajectories,
    example_trajectory,
)


def unpacked(text):
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", text)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def details_of(blocks):
    return [detail for chunk in blocks["chunks"] for detail in unpacked(chunk)]


@pytest.fixture
def records():
    """More than a chunk of trajectories, some of one example, one of no seed."""
    listed = [
        trajectory | {"stage": stage, "seed": seed, "target_popularity": trajectory["example_id"]}
        for stage, seed in (("warm_start", None), ("rta", 0), ("rta", 1))
        for trajectory in example_trajectories(100)
    ]
    assert len(listed) > viewer.CHUNK
    return listed


def test_every_trajectory_is_there_once_with_what_filters_read(tmp_path, records):
    blocks = viewer.viewer_blocks(tmp_path / "page.html", records)
    index = unpacked(blocks["index"])
    assert len(index["examples"]) == 102  # each once for three rows
    assert len(index["trajectories"]) == len(details_of(blocks)) == len(records)
    for record, listed in zip(records, index["trajectories"], strict=True):
        row, seed, number, outcome, rank, calls, reward = listed
        example = index["examples"][number]
        assert index["rows"][row] == record["stage"] and seed == record["seed"]
        assert example[:3] == [record["example_id"], record["split"], record["user"]]
        assert [index["titles"][i] for i in example[3]] == record["history"]
        assert [index["titles"][i] for i in example[4]] == record["candidates"]
        assert example[5:] == [record["target_number"], record["target_popularity"]]
        assert (rank is not None) == (outcome == "hit") and rank == record["rank"]
        assert [index["tools"][i] for i in calls] == ["get_similar_items"]
        assert reward == record["reward"]["total"]
    assert not list(tmp_path.iterdir())


def test_turns_are_read_from_the_segments(tmp_path):
    (detail,) = details_of(viewer.viewer_blocks(tmp_path / "p.html", [example_trajectory(1)]))
    assert [turn[0] for turn in detail["turns"]] == [
        *("think", "tool_call", "observation", "think", "answer")
    ]
    assert detail["turns"][1] == ["tool_call", 'get_similar_items(item_name="h3")', True, 2.1]
    assert detail["reward"] == [0.5, 0.0, 0.0, 0.5] and detail["outcome"] == "hit"


def test_a_malformed_call_is_no_tool_of_its_own(tmp_path):
    bad = example_trajectory(1)
    bad["calls"][0] |= {"name": HOSTILE, "arguments": {}, "ok": False}
    blocks = viewer.viewer_blocks(tmp_path / "p.html", [bad])
    assert unpacked(blocks["index"])["tools"] == [MALFORMED]


def test_groups_stand_behind_the_trajectories_with_their_advantages(tmp_path):
    groups = [example_group(1), example_group(5, advantages=(None, None))]
    blocks = viewer.viewer_blocks(tmp_path / "p.html", [example_trajectory(1)], groups)
    index = unpacked(blocks["index"])
    _, first, second = details_of(blocks)
    assert [g[3:6] for g in index["groups"]] == [[1, 0, "rank"], [5, 0, "rank"]]
    assert [g[6:8] for g in index["groups"]] == [
        [[0.5, -0.5], [0.5, -0.5]],
        [[0.5, -0.5], [None, None]],
    ]
    assert first["prompt"] == "prompt of step 1" and len(second["members"]) == 2
    assert [m["outcome"] for m in first["members"]] == ["hit", "miss"]


def write(path, records, **options):
    """Writes a page that is its blocks, which are returned."""
    blocks = viewer.viewer_blocks(path, records, **options)
    viewer.write_page(path, json.dumps(blocks), blocks["files"])
    return blocks


def test_a_large_page_has_a_folder_and_a_small_one_deletes_it(tmp_path, records):
    path = tmp_path / "page.html"
    whole = viewer.viewer_blocks(path, records)
    large = write(path, records, largest_page=1)
    files = sorted((tmp_path / "page_data").iterdir())
    index = unpacked(large["index"])
    assert index["folder"] == "page_data" and large["chunks"] == []
    names = [f"{i}-{index['digest']}.js" for i in range(len(whole["chunks"]))]
    assert [file.name for file in files] == names
    for number, (file, chunk) in enumerate(zip(files, whole["chunks"], strict=True)):
        assert file.read_text() == f'viewerChunk({number}, "{chunk}");\n'
    assert "'self'" in large["policy"] and "'self'" not in whole["policy"]
    write(path, records)
    assert not (tmp_path / "page_data").exists()


@pytest.mark.parametrize("largest_page", [1, viewer.LARGEST_PAGE])
def test_files_of_others_in_the_folder_survive(tmp_path, records, largest_page):
    path, folder = tmp_path / "tools.html", tmp_path / "tools_data"
    (folder / "deeper").mkdir(parents=True)
    others = [folder / name for name in ("pack.py", "0.js", "1-beef.js", "deeper/0.js")]
    for file in others:
        file.write_text("another's")
    write(path, records[:10], largest_page=1)
    (stale,) = folder.glob("0-*.js")
    blocks = write(path, records, largest_page=largest_page)
    assert not stale.exists()
    assert all(file.read_text() == "another's" for file in others)
    chunks = {file for file in folder.glob("**/*.js")} - set(others)
    assert {file.name for file in chunks} == set(blocks["files"])


def test_an_empty_folder_of_another_survives(tmp_path, records):
    (tmp_path / "page_data").mkdir()
    write(tmp_path / "page.html", records)
    assert (tmp_path / "page_data").is_dir()


@pytest.mark.parametrize("largest_page", [1, viewer.LARGEST_PAGE])
def test_a_kill_before_the_page_is_written_leaves_the_old_one_whole(
    tmp_path, records, monkeypatch, largest_page
):
    path = tmp_path / "page.html"
    old = write(path, records, largest_page=1)["files"]
    write_whole = viewer.write_whole

    def killed(file, content):
        if file == path:
            raise KeyboardInterrupt
        write_whole(file, content)

    monkeypatch.setattr(viewer, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, records[::-1], largest_page=largest_page)
    assert json.loads(path.read_text())["files"] == old
    for name, text in old.items():
        assert (tmp_path / "page_data" / name).read_text() == text
    monkeypatch.undo()
    new = write(path, records[::-1], largest_page=1)["files"]
    assert {file.name for file in (tmp_path / "page_data").iterdir()} == set(new)


def test_equal_trajectories_make_equal_pages(tmp_path, records):
    first = viewer.viewer_blocks(tmp_path / "a.html", records)
    assert viewer.viewer_blocks(tmp_path / "a.html", records) == first


def test_the_script_reads_no_string_as_markup_or_code():
    """It may also not end its own element."""
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in viewer.SCRIPT
    for name in ("DOMParser", "Function(", "setHTML", "</script", "<!--", "fetch("):
        assert name not in viewer.SCRIPT
