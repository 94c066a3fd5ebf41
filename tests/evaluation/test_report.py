"""The report page and the table, on invented results."""

import base64
import hashlib
import html
import html.parser
import io
import json
import re

import pytest
from rich.console import Console

from agenticrec_jax.evaluation import report
from agenticrec_jax.evaluation.dynamics import dynamics_figures
from agenticrec_jax.evaluation.viewer import SCRIPT
from agenticrec_jax.testing.errors import assert_names
from tests.evaluation.invented import (
    HOSTILE,
    ROWS,
    TOOLS,
    comparison,
    example_curves,
    example_results,
    example_trajectories,
    example_trajectory,
)


class Page(html.parser.HTMLParser):
    """Tags (``open``: not closed), attributes, and scripts of code and of packed data."""

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.open = []
        self.code = []
        self.packed = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            (self.packed if ("type", "application/gzip;base64") in attrs else self.code).append("")
            self.script = self.packed if dict(attrs) else self.code

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script[-1] += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    curves = {0: example_curves(), 7: example_curves(7)}
    report.write_report(path, example_results(), curves, example_trajectories(), seed=3)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_complete_and_loads_no_other_file(page):
    parsed = Page(page)
    assert parsed.open == []
    assert not {"link", "img", "iframe", "object"} & set(parsed.tags)
    outside = [(k, v) for k, v in parsed.attributes if k in ("src", "href", "xlink:href")]
    assert outside == []
    assert "://" not in page and "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page


def runs_its_own_script_alone(text):
    """Returns whether the viewer is all that a page runs and lets run."""
    parsed = Page(text)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (policy,) = (v for k, v in parsed.attributes if k == "content" and "default-src" in v)
    return (
        parsed.code == [SCRIPT]
        and all(re.fullmatch(r"[A-Za-z0-9+/=\s]*", packed) for packed in parsed.packed)
        and not [name for name, _ in parsed.attributes if name.startswith("on")]
        and policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    )


def test_the_page_runs_the_viewer_alone(page):
    assert runs_its_own_script_alone(page)
    assert not runs_its_own_script_alone(page.replace("</main>", "<script>x</script></main>"))
    assert not runs_its_own_script_alone(page.replace("</main>", "<b onclick='x'></b></main>"))


def test_the_table_shows_each_row_with_its_interval(page):
    for name, value in ROWS.items():
        row = page[page.index(f"<code>{name}</code>") :]
        row = row[: row.index("</tr>")]
        assert f"{value:.3f}" in row and f"{value - 0.028:.3f}–{value + 0.027:.3f}" in row
    assert page.count('class="best"') == 5
    assert "9f2c6b0a41d7e835" in page and "0.981" in page


def test_the_interval_decides_what_a_comparison_says(page):
    table = page[page.index("Paired differences") : page.index("<h2>Training")]
    rows = [re.sub("<[^>]+>", "", row) for row in re.findall(r'<td class="words">.*?</td>', table)]
    assert rows == [
        "rta is above warm_start",
        "rta_ppr is not told apart from rta",
        "rta_ppr is below scripted_agent",
    ]


@pytest.mark.parametrize(
    ("interval", "relation"),
    [((0.004, 0.02), "above"), ((-0.02, -0.001), "below"), ((0.0, 0.02), "not told apart from")],
)
def test_a_comparison_in_words_has_its_numbers(interval, relation):
    sentence = report.comparison_sentence(comparison("rta", "sasrec", 0.012, interval))
    assert f"rta is {relation} sasrec" in sentence
    low, high = interval
    assert_names(sentence, "ndcg@10", "+0.0120", f"{low:+.4f}", f"{high:+.4f}")


def test_the_dynamics_stand_before_the_stages_of_the_first_seed(page):
    start = page.index("<h3>Dynamics</h3>")
    dynamics = page[start : page.index("Stage <code>rta</code>")]
    figures = len(dynamics_figures({seed: example_curves(seed) for seed in (0, 7)}))
    assert dynamics.count("<figure>") == figures and ">seed 7</text>" in dynamics
    assert "seed 7" not in page[page.index("Stage <code>rta</code>") :]


def test_accuracy_on_held_out_pairs_stands_with_its_intervals(page):
    table = page.split("Preference accuracy on held-out pairs")[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr>")[2:]]
    before, after = ["0.200", "0.150–0.250"], ["0.400", "0.340–0.460"]
    difference = ["+0.200", "+0.110", "to", "+0.290"]
    assert rows[0] == ["all", *before, *after, *difference, "above", "74"]
    assert rows[1][0] == "undecidable" and "told" in rows[1] and rows[1][-1] == "74"


def test_rows_curves_and_trajectories_say_their_seeds(tmp_path):
    results = example_results()
    results["rows"][-1]["seeds"] = [7, 12]
    curves = {7: example_curves(7), 12: example_curves(12)}
    report.write_report(tmp_path / "page.html", results, curves, example_trajectories(2))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>\s*<td><code>(\w+)</code>.*?<td>([^<]*)</td>\s*</tr>", text, re.S)
    assert dict(rows) == dict.fromkeys(ROWS, "–") | {"rta_ppr": "7, 12"}
    assert re.findall(r"<h3>Stage <code>(\w+)</code>, \d+ steps?, seed (\d+)</h3>", text) == [
        ("rta", "7"),
        ("ppr", "7"),
    ]
    assert {"seed 7", "seed 12"} <= set(re.findall(r">(seed \d+)</text>", text))
    assert text.count("policy <code>rta_ppr</code>, seed 12</span>") == 4


def test_curves_of_every_stage_are_drawn_with_all_steps(page):
    assert "Stage <code>rta</code>, 15 steps" in page and "Stage <code>ppr</code>, 8 steps" in page
    start = page.index("Stage <code>rta</code>")
    rta = page[start : page.index("Stage <code>ppr</code>")]
    reward = rta[rta.index("Mean reward") :]
    assert len(re.search(r'points="([^"]+)"', reward)[1].split()) == 15
    by_tool = rta[rta.index("Calls of each tool") : rta.index("All other metrics")]
    assert len(re.findall("<polyline", by_tool)) == len(TOOLS)
    assert all(len(p.split()) == 15 for p in re.findall(r'points="([^"]+)"', by_tool))


def test_a_trajectory_reads_in_the_order_it_happened(page):
    card = page[page.index('<article class="hit">') :]
    card = card[: card.index("</article>")]
    kinds = re.findall(r'<div class="turn (\w+)">', card)
    assert kinds == ["think", "tool_call", "observation", "think", "answer"]
    assert "get_similar_items(item_name=&#34;h3&#34;)" in card and "2.1 ms" in card
    assert "hit at rank 3" in card and "+0.500" in card
    assert card.count(">target</span>") == 2  # among the candidates and in the final ranking


def test_the_miss_and_the_invalid_one_are_labeled(page):
    miss = page[page.index('<article class="miss">') :].split("</article>")[0]
    assert "the target is not in the list" in miss and miss.count(">target</span>") == 1
    assert 'class="failed"' in miss and "-0.500" in miss
    invalid = page[page.index('<article class="invalid">') :].split("</article>")[0]
    assert "invalid: malformed_answer" in invalid and "ended by token_budget" in invalid


def test_one_trajectory_is_a_page_of_its_own():
    """It is what the report shows of it, and text from data stays text there too."""
    record = example_trajectory(7, "miss")
    record["history"] = [HOSTILE]
    text = report.trajectory_page(record)
    assert not Page(text).open and text.count("<article") == 1 and "<script>" not in text
    assert HOSTILE in html.unescape(text)
    for title in record["candidates"]:
        assert title in html.unescape(text)
    assert f"number {record['target_number']}, is not in the list" in text


@pytest.mark.parametrize("field", ["title", "history", "thought", "observation", "argument", "row"])
def test_text_from_data_stays_text(tmp_path, field):
    results = example_results()
    bad = example_trajectory(5)
    if field == "title":
        bad["candidates"][bad["target_number"] - 1] = HOSTILE
    elif field == "history":
        bad["history"][0] = HOSTILE
    elif field == "thought":
        bad["segments"][0]["text"] = f"<think>{HOSTILE}</think>"
    elif field == "observation":
        bad["segments"][1]["text"] = HOSTILE
    elif field == "argument":
        bad["calls"][0]["arguments"] = {"item_name": HOSTILE}
    else:
        results["rows"][0]["name"] = HOSTILE
    report.write_report(tmp_path / "page.html", results, {0: example_curves()}, [bad])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert runs_its_own_script_alone(text)
    assert text.count("&lt;script&gt;alert(") >= 2  # the configuration and the field


def test_an_observation_cannot_look_like_a_turn():
    trajectory = example_trajectory(1)
    trajectory["segments"][1]["text"] = "</observation><answer>\\boxed{[1,2,]}</answer>"
    kinds = [turn["kind"] for turn in report.turns_of(trajectory)]
    assert kinds == ["think", "tool_call", "observation", "think", "answer"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<observation>", "</observation>"),
        ("\n<observation>\n", "\n</observation>\n"),
        (
            "<|im_end|>\n<|im_start|>user\n<tool_response>\n",
            "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "\n<|im_start|>user\n<tool_response>\n",
            "\n</tool_response></s>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_frame_of_an_observation_and_the_end_of_a_turn_are_not_shown(before, after):
    trajectory = example_trajectory(1)
    said = "near h3; ‹/tool_response› similar:7,3,"
    trajectory["segments"][1]["text"] = f"{before}{said}{after}"
    trajectory["segments"][2]["text"] += "<|im_end|>"
    turns = report.turns_of(trajectory)
    assert [turn["kind"] for turn in turns] == ["think", "tool_call", "observation"] + [
        "think",
        "answer",
    ]
    assert turns[2]["text"].strip() == said


def test_an_unfinished_turn_and_stray_text_are_shown_too():
    trajectory = example_trajectory(1) | {"calls": []}
    trajectory["segments"] = [
        {"origin": "sampled", "text": "so <think>a</think> b <tool_call>{broken"}
    ]
    turns = report.turns_of(trajectory)
    assert [(turn["kind"], turn["text"].strip()) for turn in turns] == [
        ("text", "so"),
        ("think", "a"),
        ("text", "b"),
        ("tool_call", "{broken"),
    ]
    assert turns[-1]["call"] is None


def test_calls_go_with_their_segments_when_one_did_not_parse():
    trajectory = example_trajectory(1)
    good = trajectory["calls"][0]
    broken = good | {"name": "<think>a</think>{", "arguments": {}, "ok": False}
    trajectory["calls"] = [broken, good]
    trajectory["segments"][:0] = [
        {"origin": "sampled", "text": "<think>a</think>{</tool_call>"},
        {"origin": "observation", "text": "error: malformed_call"},
    ]
    turns = report.turns_of(trajectory)
    called = [(turn["kind"], turn["call"]["shown"]) for turn in turns if turn["call"]]
    assert called == [("text", None), ("tool_call", 'get_similar_items(item_name="h3")')]


def test_the_target_is_marked_in_orders_only():
    marked = report.mark_order("7 of 17; rating:7.5; near:17,7,3, <i>; [7, 1,]", target=7)
    assert marked == (
        '7 of 17; rating:7.5; near:17,<b class="target">7</b>,3, &lt;i&gt;; '
        '[<b class="target">7</b>, 1,]'
    )


def test_the_choice_is_fixed_by_the_seed_and_includes_a_miss_and_an_invalid_one():
    known = example_trajectories()
    first = report.choose_trajectories(known, seed=3, n=6)
    assert report.choose_trajectories(known[::-1], seed=3, n=6) == first
    assert report.choose_trajectories(known, seed=4, n=6) != first
    assert sorted(map(report.outcome, first)) == ["hit"] * 4 + ["invalid", "miss"]
    assert len({t["example_id"] for t in first}) == 6
    hits = [t for t in known if report.outcome(t) == "hit"]
    assert len(report.choose_trajectories(hits, seed=0, n=6)) == 6
    assert len(report.choose_trajectories(known[-3:], seed=0, n=6)) == 3
    assert report.choose_trajectories([], seed=0, n=6) == []
    with pytest.raises(ValueError, match="found 1"):
        report.choose_trajectories(known, seed=0, n=1)


def test_a_run_without_training_or_trajectories_still_has_a_page(tmp_path):
    results = example_results()
    results["rows"][0]["ndcg@10_interval"] = None
    bare = {"rows": results["rows"], "protocol": results["protocol"]}
    report.write_report(tmp_path / "page.html", bare, {}, [])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no training stage" in text and "No trajectories" in text and Page(text).open == []


def test_a_stage_of_one_line_shows_its_numbers_and_no_figure(tmp_path):
    mined = {"stage": "ppr_mining", "step": 1, "violated": 0.676, "pairs": 173.0, "share": None}
    curves = {0: [*example_curves(), mined]}
    report.write_report(tmp_path / "page.html", example_results(), curves, [])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = text.split("Stage <code>ppr_mining</code>, 1 step, seed 0</h3>")[1].split("<h2")[0]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in section.split("<tr>")[2:]]
    assert [row[:2] for row in rows] == [
        ["violated", "0.676"],
        ["pairs", "173.000"],
        ["share", "–"],
    ]
    assert "<figure>" not in section
    assert "Metric</th><th>value" not in text.split("Stage <code>rta</code>")[1].split("<h3>")[0]


def test_a_failing_page_leaves_the_old_one(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    broken = example_trajectory(1)
    del broken["reward"]["format"]
    with pytest.raises(Exception, match="format"):
        report.write_report(path, example_results(), {0: example_curves()}, [broken])
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_results_survive_their_json_file(tmp_path):
    loaded = json.loads(json.dumps(example_results()))
    curves = {0: example_curves()}
    report.write_report(tmp_path / "a.html", loaded, curves, example_trajectories())
    report.write_report(tmp_path / "b.html", example_results(), curves, example_trajectories())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_table_on_a_terminal():
    console = Console(file=io.StringIO(), width=140)
    report.print_table(example_results(), console)
    printed = console.file.getvalue()
    for name, value in ROWS.items():
        line = next(line for line in printed.splitlines() if f" {name} " in line)
        assert f"{value:.3f}" in line and f"{value - 0.028:.3f}–" in line and "500" in line
    assert "office_sample, test split, 1 of 20 candidates (hash 9f2c6b0a41d7e835)" in printed


@pytest.mark.parametrize("terminal", [False, True])
def test_a_narrow_table_keeps_its_numbers_whole(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    results = example_results()
    results["rows"] = [dict(row, n=1806) for row in results["rows"]]
    results["rows"][-1]["seeds"] = [3, 14]
    report.print_table(results, console)
    printed = console.file.getvalue()
    said, *blocks = re.split("^┏", printed, flags=re.M)
    assert len(blocks) == (2 if terminal else 1) and ("2 blocks" in said) == terminal
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= (80 if terminal else 120)
    headers = [line for line in printed.splitlines() if line.startswith("┃ method")]
    names = [name for header in headers for name in header.strip("┃").split("┃")[1:]]
    labels = [report.LABELS.get(name, name) for name in report.METRICS]
    assert [name.strip() for name in names] == [*labels, "ndcg@10 95%", "n", "seeds"]
    for name, value in ROWS.items():
        lines = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
        assert len(lines) == len(blocks)
        assert f"{value:.3f}" in "".join(lines) and f"{value - 0.028:.3f}–" in "".join(lines)
    assert "3, 14 │" in lines[-1]


@pytest.mark.parametrize(
    ("width", "terminal", "blocks", "short"),
    [(80, True, 2, False), (105, True, 2, False), (110, True, 1, True), (116, True, 1, True)]
    + [(117, True, 1, False), (200, True, 1, False), (110, False, 1, False)],
)
def test_the_usual_table_is_one_block_at_110_columns(width, terminal, blocks, short):
    """The longest names, three seeds of 1806 examples each: 117 columns, 106 in short form."""
    results = example_results()
    rows = [dict(row, n=1806) for row in results["rows"]]
    rows[5] |= {"name": "scripted:brand bought", "mean_tool_calls": 1.0}
    rows[-1] |= {"n": 5418, "seeds": [0, 1, 2]}
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    report.print_table(results | {"rows": rows}, console)
    printed = console.file.getvalue()
    assert printed.count("┏") == blocks and max(map(len, printed.splitlines())) <= max(width, 117)
    assert "…" not in printed
    heads = set(re.split(r"[┃\s]+", "".join(re.findall("^┃.*", printed, re.M)))) - {""}
    metrics = [report.LABELS.get(name, name) for name in report.METRICS]
    if short:
        metrics = [piece for name in metrics for piece in name.replace("ndcg@", "ndcg @").split()]
    assert heads == {"method", *metrics, "ndcg@10", "95%", "n", "seeds"}
    last = [re.findall(r"[^│\s]+", line) for line in printed.splitlines() if "rta_ppr" in line]
    numbers = [".293", ".613", ".773", ".423", ".493", ".012", "2.400", ".465–.520", "5418"]
    if short:
        assert last == [["rta_ppr", *numbers, "0,1,2"]]
    else:
        numbers = [re.sub(r"(?<!\d)\.", "0.", number) for number in numbers]
        expected = [*numbers, "0,", "1,", "2"]
        assert [cell for line in last for cell in line[1:]] == expected
