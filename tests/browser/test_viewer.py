"""The report in a browser: filters, links, groups, hostile text, both schemes, narrow screens."""

import re
import time

import pytest

from agenticrec_jax.evaluation import report, viewer
from agenticrec_jax.evaluation.turns import outcome
from tests.evaluation.invented import (
    example_curves,
    example_group,
    example_results,
    example_trajectory,
)

ATTACKS = (
    "</script><script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 1'>",
    "<svg/onload=window.attacked=1>",
    "</noscript><iframe srcdoc='<script>parent.attacked = 1</script>'></iframe>",
    'javascript:window.attacked=1//" onmouseover="window.attacked=1',
    "{{ 7 * 7 }} ${window.attacked = 1} &lt;b&gt; \u2028 ]]> --> <!--",
)


def records():
    """300 trajectories of 100 examples, with histories of 1 to 7 and all kinds of outcomes."""
    listed = []
    for stage, seed in (("warm_start", None), ("rta", 0), ("rta", 1)):
        for i in range(100):
            kind = "invalid" if i % 20 == 3 else "miss" if (i + len(listed)) % 3 == 0 else "hit"
            record = example_trajectory(i, kind, stage) | {"seed": seed}
            record["history"] = record["history"] * 3
            record["history"] = record["history"][: 1 + i % 7]
            record["target_popularity"] = i * 2
            if i % 10 == 0:
                record["calls"] = []
                record["segments"] = record["segments"][2:]
            elif i % 10 == 1:
                record["calls"] = record["calls"] * 2
            listed.append(record)
    listed[42]["segments"][1]["text"] = "<observation>a purple stapler</observation>"
    return listed


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("viewer") / "report.html"
    groups = [example_group(1), example_group(5, advantages=(None, None, None))]
    curves = {0: example_curves()}
    report.write_report(path, example_results(), curves, records(), groups, drawn_row="rta")
    return path


def test_every_filter_leaves_what_it_says(path, open_page):
    opened = open_page().goto(path)
    all_of = records()

    def expected(test):
        return sum(bool(test(trajectory)) for trajectory in all_of)

    opened.count(300)
    opened.choose("row", "rta")
    opened.choose("seed", "1")
    opened.count(100)
    opened.choose("outcome", "miss")
    of_seed = [t for t in all_of if t["seed"] == 1]
    summary = opened.count(sum(outcome(t) == "miss" for t in of_seed))
    assert " 0 hits" in summary
    for kind in ("hit", "invalid"):
        opened.choose("outcome", kind)
        opened.count(sum(outcome(t) == kind for t in of_seed))
    opened.page.get_by_text("clear").first.click()
    opened.count(300)
    opened.choose("tool used", "no tool")
    opened.count(expected(lambda t: not t["calls"]))
    opened.choose("tool used", "get_similar_items")
    opened.count(expected(lambda t: t["calls"]))
    opened.fill("calls", 2, 2)
    opened.count(expected(lambda t: len(t["calls"]) == 2))
    opened.choose("tool used", "any")
    opened.fill("calls", high=0)
    opened.count(expected(lambda t: not t["calls"]))
    opened.fill("calls")
    opened.fill("history length", 3, 4)
    opened.count(expected(lambda t: 3 <= len(t["history"]) <= 4))
    opened.fill("target's popularity", 100)
    opened.count(expected(lambda t: 3 <= len(t["history"]) <= 4 and t["target_popularity"] >= 100))
    opened.fill("history length")
    opened.fill("target's popularity")
    opened.fill("target's rank", 2, 3)
    opened.count(expected(lambda t: t["rank"] in (2, 3)))
    opened.fill("target's rank")
    opened.fill("target's number", 1, 5)
    opened.count(expected(lambda t: t["target_number"] <= 5))
    assert opened.faults == []


def test_the_search_reads_titles_users_and_turns(path, open_page):
    opened = open_page().goto(path)
    opened.search("purple STAPLER")
    opened.count(1)
    opened.page.locator("#trajectories table.list a").click()
    assert "a purple stapler" in opened.page.locator(".sheet .observation").text_content()
    opened.search("u00042")
    opened.count(6)  # users 42 of 0 to 49 have two examples, in three rows
    title = records()[7]["candidates"][5]
    opened.search(title)
    words = title.lower().split()
    texts = [
        "\n".join([t["user"], *t["history"], *t["candidates"]] + [s["text"] for s in t["segments"]])
        for t in records()
    ]
    opened.count(sum(all(word in text.lower() for word in words) for text in texts))
    opened.search("")
    opened.count(300)


def test_the_order_puts_the_worst_first(path, open_page):
    opened = open_page().goto(path)
    opened.choose("order", "lowest reward first")
    lowest = min(t["reward"]["total"] for t in records())
    row = opened.page.locator("#trajectories table.list tbody tr").first
    assert f"{lowest:+.3f}" in row.text_content()
    assert opened.page.locator("#trajectories table.list tbody tr").count() == 100
    opened.page.get_by_text("show 100 more of 200").click()
    assert opened.page.locator("#trajectories table.list tbody tr").count() == 200


def test_each_trajectory_has_a_link_that_opens_it(path, open_page):
    opened = open_page().goto(path)
    links = opened.page.locator("#trajectories table.list a")
    more = opened.page.locator("#trajectories > [data-view] > button")
    for _ in range(2):
        more.click()
    assert not more.is_visible()
    targets = links.evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert len(set(targets)) == 300
    for record, fragment in list(zip(records(), targets, strict=True))[::97]:
        other = open_page().goto(path, fragment)
        sheet = other.page.locator("#trajectories .sheet article")
        assert f"Example {record['example_id']}" in sheet.text_content()
        label = record["stage"] + ("" if record["seed"] is None else f", seed {record['seed']}")
        assert sheet.locator("h4").text_content().startswith(label)
        ranked = sheet.locator(".turns ol.items li").all_text_contents()
        assert len(ranked) == len(record["ranking"] or [])
        assert sheet.locator(".inputs li.target").count() == 1
    opened.page.goto(path.as_uri() + targets[5])  # the page stays, its fragment changes
    opened.page.locator(".sheet h3", has_text="Example 5").wait_for()
    opened.page.get_by_text("next →").click()
    opened.page.locator(".sheet h3", has_text="Example 6").wait_for()
    assert opened.page.url.endswith(targets[6])
    opened.page.get_by_text("close").click()
    opened.page.locator(".sheet article").wait_for(state="detached")


def test_two_rows_of_an_example_stand_side_by_side(path, open_page):
    opened = open_page().goto(path, "#trajectory=rta,0,17")
    opened.page.get_by_label("beside").select_option(index=1)
    heads = opened.page.locator(".sheet h4")
    heads.nth(1).wait_for()
    assert [head.split(" ")[0] for head in heads.all_text_contents()] == ["rta,", "warm_start"]
    again = open_page().goto(path, opened.page.url.split("report.html")[1])
    assert again.page.locator(".sheet h4").count() == 2


def test_the_members_of_a_group_stand_side_by_side_with_their_advantages(path, open_page):
    opened = open_page().goto(path)
    opened.count(2, view="groups")
    opened.page.locator("#groups table.list a").first.click()
    members = opened.page.locator("#groups .members > .turns")
    members.first.wait_for()
    assert members.locator(".advantage").all_text_contents() == [
        "advantage +0.500",
        "advantage -0.500",
    ]
    boxes = [members.nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    dropped = open_page().goto(path, "#group=rta,12,5,0")
    texts = dropped.page.locator("#groups .advantage").all_text_contents()
    assert len(texts) == 3 and all("dropped" in text for text in texts)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_hostile_text_is_shown_and_never_run(tmp_path, open_page, is_guarded):
    """Also without the policy of the page, which is a second wall and not the first."""
    listed = []
    for i, attack in enumerate(ATTACKS):
        bad = example_trajectory(i, stage=attack) | {"user": attack, "split": attack}
        bad["history"] = [attack] * 2
        bad["candidates"] = [f"{attack} {n}" for n in range(20)]
        bad["segments"][0]["text"] = f"<think>{attack}</think><tool_call>{attack}</tool_call>"
        bad["segments"][1]["text"] = f"<observation>{attack}</observation>"
        bad["calls"][0] |= {"arguments": {attack: attack}}
        if i % 2:
            bad["calls"][0] |= {"name": attack, "ok": False}
        listed.append(bad)
    group = example_group(1, stage=ATTACKS[0]) | {"prompt": ATTACKS[1], "task": ATTACKS[2]}
    page = tmp_path / "report.html"
    results = example_results()
    results["rows"][0]["name"] = ATTACKS[0]
    report.write_report(page, results, {0: example_curves()}, listed, [group])
    if not is_guarded:
        text, removed = re.subn(
            r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()
        )
        assert removed == 1
        page.write_text(text)
    opened = open_page().goto(page)
    links = opened.page.locator("table.list a").evaluate_all(
        "links => links.map((link) => link.getAttribute('href'))"
    )
    assert len(links) == len(ATTACKS) + 1
    for fragment, attack in zip(links, (*ATTACKS, ATTACKS[1]), strict=True):
        assert fragment.startswith("#")
        opened.page.goto(page.as_uri() + fragment)
        sheet = opened.page.locator(".sheet article")
        opened.page.locator(".sheet nav .link").wait_for()
        opened.page.locator(f'.sheet nav .link[href="{fragment}"]').wait_for()
        text = sheet.text_content()
        assert attack in text
        opened.page.mouse.move(300, 300)
    opened.search("onerror")
    opened.count(1)
    assert opened.page.evaluate("() => window.attacked") is None
    assert (
        opened.page.locator("main img, main iframe, main script, main [onmouseover]").count() == 0
    )
    # Without scripts the page has cards; their SVG is that of the charts alone.
    assert opened.page.locator("[data-view] svg").count() == 0
    assert opened.faults == []
    assert {url.split("#")[0] for url in opened.requests} == {page.as_uri()}


def test_a_planted_attack_would_be_seen(path, tmp_path, open_page):
    """The measure of the test above finds a page that reads a title as HTML."""
    page = tmp_path / "report.html"
    text = path.read_text().replace("element.append(", "element.innerHTML += String(")
    bad = "<img src=x onerror='window.attacked = 1'>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(text.replace('"search", search)', f'"{bad}", search)'))
    opened = open_page()
    opened.page.goto(page.as_uri())
    opened.page.wait_for_function("() => window.attacked === 1")


def test_a_folder_beside_a_large_page_is_read_from_disk(tmp_path, open_page, monkeypatch):
    monkeypatch.setattr(viewer, "CHUNK", 64)
    monkeypatch.setattr(report, "viewer_blocks", _in_a_folder)
    page = tmp_path / "my run #1.html"
    report.write_report(page, example_results(), {}, records())
    assert len(list((tmp_path / "my run #1_data").iterdir())) == 5
    opened = open_page()
    opened.goto(page, "#trajectory=rta,1,99")
    assert "Example 99" in opened.page.locator(".sheet h3").text_content()
    opened.search("purple stapler")
    opened.count(1)
    assert opened.faults == []
    (chunk,) = (tmp_path / "my run #1_data").glob("0-*.js")
    chunk.unlink()
    broken = open_page()
    broken.page.goto(page.as_uri() + "#trajectory=warm_start,,0")
    broken.page.locator(".failed", has_text=f"{chunk.name} is missing").wait_for()


def test_a_chunk_that_is_missing_later_is_said_and_asked_for_again(
    tmp_path, open_page, monkeypatch
):
    monkeypatch.setattr(viewer, "CHUNK", 64)
    monkeypatch.setattr(report, "viewer_blocks", _in_a_folder)
    page = tmp_path / "report.html"
    report.write_report(page, example_results(), {}, records())
    (chunk,) = (tmp_path / "report_data").glob("0-*.js")
    text = chunk.read_text()
    opened = open_page().goto(page)
    failed = opened.page.locator("#trajectories .count .failed", has_text=chunk.name)
    sheet = opened.page.locator("#trajectories .sheet article")

    opened.page.goto(page.as_uri() + "#trajectory=rta,1,99")
    sheet.wait_for()
    chunk.unlink()
    opened.page.goto(page.as_uri() + "#trajectory=warm_start,,0")
    failed.wait_for()
    assert sheet.count() == 0  # the one of another trajectory is not left below the address
    opened.page.goto(page.as_uri() + "#trajectory=rta,1,99")
    sheet.wait_for()
    opened.count(300)
    opened.search("purple stapler")
    failed.wait_for()
    opened.choose("row", "rta")
    failed.wait_for()

    chunk.write_text(text)
    opened.search("purple  stapler")
    opened.count(0)
    opened.page.get_by_text("clear").first.click()
    opened.search("purple stapler")
    opened.count(1)
    opened.page.goto(page.as_uri() + "#trajectory=warm_start,,0")
    opened.page.locator(".sheet h3", has_text="Example 0").wait_for()
    assert all("ERR_FILE_NOT_FOUND" in fault for fault in opened.faults), opened.faults


def _in_a_folder(path, trajectories, groups):
    return viewer.viewer_blocks(path, trajectories, groups, largest_page=1)


def test_without_scripts_a_few_trajectories_are_shown(path, open_page):
    page = open_page(java_script_enabled=False).page
    page.goto(path.as_uri())
    assert page.locator("article").count() == 8
    assert page.locator("noscript article").first.is_visible()
    assert "8 of 200 trajectories" in page.locator("noscript p").first.text_content()


@pytest.mark.parametrize("width", [1180, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_has_the_colors_of_the_scheme(path, open_page, width, scheme):
    opened = open_page(width, color_scheme=scheme).goto(path, "#trajectory=rta,0,17")
    page = opened.page
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    color = "() => getComputedStyle(document.body).backgroundColor"
    red = int(re.search(r"\d+", page.evaluate(color))[0])
    assert red < 60 if scheme == "dark" else red > 200
    for selector in ("form.filters input", "table.list td", ".sheet article .body"):
        contrast = page.locator(selector).first.evaluate(CONTRAST)
        assert contrast > 4.5, (selector, contrast)


CONTRAST = """
element => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((c) => {
      c = Number(c) / 255;
      return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ink = light(getComputedStyle(element).color);
  let under = element;
  while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") {
    under = under.parentElement;
  }
  const page = light(getComputedStyle(under).backgroundColor);
  return (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05);
}
"""


def test_the_first_column_stays_on_a_narrow_screen(path, open_page):
    page = open_page(420).goto(path).page
    for selector in ("section .scroll", "#trajectories .scroll"):
        scroll = page.locator(selector).first
        scroll.evaluate("element => { element.scrollLeft = 150; }")
        assert scroll.evaluate("element => element.scrollLeft") > 50
        left = scroll.bounding_box()["x"]
        row = scroll.locator("tbody tr").first
        assert row.locator("td").nth(0).bounding_box()["x"] == pytest.approx(left, abs=1)
        assert row.locator("td").nth(1).bounding_box()["x"] < left + 100


@pytest.mark.slow
def test_5500_trajectories_open_and_filter_fast(tmp_path, open_page):
    listed = [
        example_trajectory(i, "miss" if i % 3 else "hit", stage) | {"seed": 0}
        for stage in ("warm_start", "rta", "rta_ppr", "rta_ppr_blanked", "rta_ppr_permuted")
        for i in range(1100)
    ]
    path = tmp_path / "report.html"
    report.write_report(path, example_results(), {}, listed)
    opened = open_page()
    began = time.perf_counter()
    opened.goto(path)
    opening = time.perf_counter() - began
    began = time.perf_counter()
    opened.choose("row", "rta")
    opened.count(1100)
    filtering = time.perf_counter() - began
    began = time.perf_counter()
    opened.search("toner")
    opened.page.locator(".count").filter(has_not_text="1100 of").first.wait_for()
    searching = time.perf_counter() - began
    print(f"open {opening:.2f} s, filter {filtering:.2f} s, first search {searching:.2f} s")
    assert opening < 3 and filtering < 0.5 and searching < 3
