"""docs/decisions: the index and the files agree, and every decision has the same form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

FOLDER = ROOT / "docs" / "decisions"
INDEX = (FOLDER / "README.md").read_text()
FILES = sorted(FOLDER.glob("[0-9]*.md"))
ROW = re.compile(r"^\| \[(\d{4})\]\((\S+)\) \| (.+?) \| (.+) \| (.+) \|$", re.M)
LINK = r"\[\d{4}\]\(\d{4}-[a-z0-9-]+\.md\)"
STATUS = re.compile(rf"accepted|(amended|superseded) by {LINK}(, {LINK})*")
FORM = re.compile(
    r"# (?P<number>\d{4})\. (?P<title>\S.*)\n\nDate: \d{4}-\d\d-\d\d\n\nStatus: (?P<status>.+)\n"
    r"(?P<overtakes>(\n?(Amends|Supersedes) .+\n)*)(?P<text>\n(.*\n)+)"
)

every_decision = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def _parts(path: Path) -> re.Match[str]:
    found = FORM.fullmatch(path.read_text())
    assert found, f"{path.name} has to begin with its title, Date and Status"
    return found


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\[(\d{4})\]", text))


def test_the_index_has_one_line_for_each_decision() -> None:
    listed = [row[2] for row in ROW.finditer(INDEX)]
    assert sorted(listed) == [path.name for path in FILES]


@every_decision
def test_a_decision_has_its_parts_and_the_index_repeats_its_title_and_status(path: Path) -> None:
    parts = _parts(path)
    before, *sections = re.split(r"^## (.+)\n", parts["text"], flags=re.M)
    assert not before.strip()
    assert sections[::2] == ["Context", "Choice", "Consequence"]
    assert parts["number"] == path.name[:4]
    assert STATUS.fullmatch(parts["status"]), parts["status"]
    [row] = [row for row in ROW.finditer(INDEX) if row[2] == path.name]
    assert (row[1], row[3], row[5]) == (parts["number"], parts["title"], parts["status"])


@every_decision
def test_an_overtaken_decision_and_the_one_that_overtakes_it_name_each_other(path: Path) -> None:
    parts = _parts(path)
    for other in FILES:
        named = other.name[:4] in _numbers(parts["status"])
        names = parts["number"] in _numbers(_parts(other)["overtakes"] or "")
        assert named == names, f"{path.name} and {other.name}"


@every_decision
def test_links_of_a_decision_lead_to_files(path: Path) -> None:
    for number, target in re.findall(r"\[(\d{4})?[^\]]*\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
        assert (FOLDER / target).is_file(), target
        assert not number or Path(target).name.startswith(number), target
