"""Chromium on the real stack. Only `make test-web` collects these tests: plain `make test` needs no browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.client import Recovery
from tests.stack import UpCommand
from tests.web.visitor import STEPS, Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# https://playwright.dev/python/docs/ci: a root user has no sandbox. The others keep a browser from calling home.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless `-m web` asks for it."""
    asked_for = "web" in config.getoption("markexpr").split()
    return None if asked_for or collection_path.name == "conftest.py" else True


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or that of RECOVERY_CHROMIUM."""
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("RECOVERY_CHROMIUM") or shutil.which("chromium")
    assert executable, "there is no chromium; install Debian's package, or name one in RECOVERY_CHROMIUM"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def _tab(browser: Browser, command: UpCommand) -> Iterator[Visitor]:
    found = Visitor(browser, command.url)
    yield found
    found.leave()


@pytest.fixture
def visitor(_tab: Visitor) -> Iterator[Visitor]:
    """The same person in every test; the browser must not have complained, nor called elsewhere."""
    yield _tab
    complaints, requests = list(_tab.complaints), list(_tab.foreign_requests)
    _tab.complaints.clear()
    _tab.foreign_requests.clear()
    assert complaints == []
    assert requests == []


@pytest.fixture(scope="session")
def training(_tab: Visitor, recovery: Recovery) -> str:
    """The job that the form starts; the page shows it."""
    page = _tab.page
    _tab.open("/#/train")
    page.get_by_text("density-digits", exact=True).click()
    page.get_by_label("Name", exact=True).fill("my digits")
    page.get_by_label("Steps", exact=True).fill(str(STEPS))
    page.get_by_label("Seed", exact=True).fill("0")
    page.get_by_text("More settings").click()
    page.get_by_label("Sample every", exact=True).fill("40")
    page.get_by_label("Checkpoint every", exact=True).fill("80")
    page.get_by_label("Calibrate", exact=True).select_option("no")
    page.locator(".summary", has_text=f"{STEPS} steps").wait_for()
    _tab.look("train")
    _tab.button("Start training").click()
    page.wait_for_url(re.compile("#/jobs/"))
    [job] = recovery.jobs()
    assert page.url.endswith(job["id"])
    return str(job["id"])


@pytest.fixture(scope="session")
def trained(training: str, recovery: Recovery) -> str:
    """That job at its end."""
    for _ in recovery.events(training):
        pass
    assert recovery.job(training)["status"] == "succeeded"
    return training
