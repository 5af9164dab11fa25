"""The files of the web page: served to everybody, closed to foreign scripts, and whole. No browser is needed here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.door.security import FILES_PREFIX
from service.routes.pages import FOLDER
from worker.jobs.event import EVENTS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(FOLDER.glob("*.js"))
TEXTS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".js", ".html", ".css"))
ANY_FILE = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
MAX_WEIGHT_BYTES = 200_000
"""All files together, uncompressed."""


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_its_own_files_only(client: TestClient, path: str) -> None:
    answer = client.get(path)
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["Content-Security-Policy"].split(";"))

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_the_files_of_a_page_are_kept_by_browsers_and_asked_for_again(client: TestClient) -> None:
    first = client.get("/web/main.js")
    again = client.get("/web/main.js", headers={"If-None-Match": first.headers["ETag"]})

    assert "javascript" in first.headers["Content-Type"]
    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/web/nothing.js", "/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/"]
)
def test_nothing_but_the_files_of_the_page_is_served_beside_them(client: TestClient, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/docs", "/web/main.js"])
def test_a_page_takes_no_orders(client: TestClient, path: str) -> None:
    answer = client.post(path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_the_pages_of_the_framework_which_load_from_a_cdn_are_gone(client: TestClient) -> None:
    assert client.get("/redoc").status_code == 404
    assert "cdn" not in client.get("/docs").text


@ANY_FILE
def test_no_file_loads_anything_from_elsewhere(path: Path) -> None:
    """Links that a person may follow, and names of namespaces, are no loads."""
    text = re.sub(r'<a href="https://[^"]*"', "", path.read_text()).replace('"http://www.w3.org/2000/svg"', "")

    assert not re.search(r"https?://|//cdn|url\(", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_markup_or_code(path: Path) -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    code = r"\beval\b|new Function|setTimeout\(\s*[\"'`]"
    text = path.read_text()

    assert not re.search(f"{markup}|{code}", text)
    assert "localStorage" not in text  # a key would outlive the tab


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.html")), ids=lambda path: path.name)
def test_a_page_has_no_inline_script_or_style(path: Path) -> None:
    text = path.read_text()

    assert re.findall(r"<script[^>]*>", text) == [f'<script type="module" src="/web/{_script(text)}">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert '<html lang="en">' in text
    assert 'name="viewport"' in text


def _script(page: str) -> str:
    found = re.search(r'src="/web/(\w+\.js)"', page)
    assert found
    return found[1]


@ANY_FILE
def test_what_a_file_asks_for_is_there(path: Path, client: TestClient) -> None:
    text = path.read_text()
    modules = [f"{FILES_PREFIX}/{name}" for name in re.findall(r"(?:from|import\()\s*\"\./([\w.]+)\"", text)]
    files = re.findall(rf'(?:src|href)="({FILES_PREFIX}/[^"]+)"', text)

    for wanted in modules + files:
        assert client.get(wanted).status_code == 200, wanted


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_exported(path: Path) -> None:
    for names, module in re.findall(r"import \{([^}]*)\} from \"\./([\w.]+)\"", path.read_text()):
        exported = set(
            re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", (FOLDER / module).read_text(), re.M)
        )
        assert {name.split(" as ")[0].strip() for name in names.split(",") if name.strip()} <= exported, module


@pytest.mark.parametrize("name", EVENTS)
def test_the_page_of_a_job_knows_every_type_of_event(name: str) -> None:
    assert f'"{name}"' in (FOLDER / "job.js").read_text()


def test_the_page_is_light() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_WEIGHT_BYTES


def test_the_package_carries_the_page() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

    assert tools["package-data"]["service"] == ["web/*"]
    assert all(path.is_file() for path in FOLDER.iterdir())  # the pattern takes no folders
