"""Design decisions: numbered, dated in order, with the same parts, and listed."""

import re

from tests.docs.pages import DOCS

DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
PARTS = ["Context", "Decision", "Figures", "Consequences"]


def test_decisions_are_numbered_without_gaps():
    numbers = [int(path.stem[:4]) for path in DECISIONS]
    assert numbers == list(range(1, len(DECISIONS) + 1)) and numbers


def test_each_has_its_number_its_date_and_its_parts():
    dates = []
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.stem[:4]}. "), path
        date = re.search(r"^Date: (\d{4}-\d\d-\d\d) \(commits? `[0-9a-f]{7}`", text, re.M)
        assert date, path
        dates.append(date[1])
        assert re.findall(r"^## (.*)$", text, re.M) == PARTS, path
    assert dates == sorted(dates)


def test_the_index_lists_each_with_its_date_and_title():
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for path in DECISIONS:
        title, _, date = path.read_text(encoding="utf-8").splitlines()[:3]
        row = f"| [{path.stem[:4]}]({path.name}) | {date.split()[1]} | {title[8:]} |"
        assert row in index, path
        assert f"\n{path.stem}\n" in index, path
