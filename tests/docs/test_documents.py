"""Every block of README.md and docs/*.md is run, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.docs.blocks import DATA, PAGES, REASONS, ROOT, RUN, Block, blocks_of, commands_of, pattern_of
from tests.docs.executor import Page
from tests.stack import UpCommand

MOST_NOT_RUN = 12


def _to_be_run(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in RUN and not block.not_run]


def test_every_block_is_run_or_says_why_not() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    not_run = [block for block in blocks if block.not_run]

    assert {block.language for block in blocks} <= {*RUN, *DATA}
    assert {block.not_run for block in not_run} <= set(REASONS)
    assert len(not_run) <= MOST_NOT_RUN
    assert len([block for page in PAGES for block in _to_be_run(page)]) > 2 * len(not_run)


def test_every_link_and_picture_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_an_answer_is_compared_loosely_but_not_blindly() -> None:
    shown = '{"id":"01M857P7P24BEHRPDBQE188PEW", "status": 404, "loss": 0.12, …}'
    pattern, ids = pattern_of(shown)

    assert ids == ["01M857P7P24BEHRPDBQE188PEW"]
    assert pattern.search('{"id":"01M85FTYCSAG4ME5GJF458HQJ6","status":404,"loss":3e-05,"more":1}')
    assert not pattern.search('{"id":"01M85FTYCSAG4ME5GJF458HQJ6","status":409,"loss":3e-05,"more":1}')
    assert not pattern.search('{"id":"01M85FTYCSAG4ME5GJF458HQJ6","status":404,"cost":3e-05,"more":1}')
    assert [c.text for c in commands_of("$ a \\\n  b\nanswer\n$ c\n")] == ["a \\\n  b", "c"]


@pytest.mark.docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _to_be_run(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_does_what_it_says(page: Path, command: UpCommand, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    # As beside a person's own `recovery up`: its data folder is here.
    (folder / "recovery-data").symlink_to(command.data)
    for name in ("tests", "docs"):
        (folder / name).symlink_to(ROOT / name)
    reader = Page(folder, command.url)
    try:
        for block in _to_be_run(page):
            reader.run(block)
    finally:
        reader.close()


@pytest.mark.docs
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of the notebook's own machinery
def test_the_notebook_runs(command: UpCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOVERY_URL", command.url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]

    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error"]
