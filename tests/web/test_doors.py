"""A service that has keys, has no workers, or is gone: the page says so. The real API on the session's stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.door.keys import Scope
from tests.service.serving import Serving, with_key
from tests.web.visitor import HOSTILE, Visitor
from worker.jobs.kinds import JobKind
from worker.jobs.records import RecordStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


@pytest.fixture
def guarded(environment: dict[str, str], store: RecordStore, tmp_path: Path) -> Iterator[tuple[Serving, str]]:
    """A service with a key that may read, and one job."""
    store.create(JobKind.train, {"config": {"dataset": HOSTILE}}, name=HOSTILE)
    environment, key = with_key(environment, tmp_path / "keys.json", Scope.read)
    with Serving(environment, tmp_path / "log") as serving:
        yield serving, key


def test_where_there_are_keys_the_page_asks_for_one_and_keeps_it_in_the_tab(
    guarded: tuple[Serving, str], browser: Browser
) -> None:
    serving, key = guarded
    visitor = Visitor(browser, serving.url)
    page = visitor.page
    with visitor.refused():
        page.goto(serving.url)
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("this service needs a key").wait_for()
        assert visitor.faults() == []
        visitor.look("key", full=False)
        page.get_by_label("Key", exact=True).fill("rk_wrong")
        visitor.button("Use this key").click()
        dialog.get_by_text("the key is not known here").wait_for()
        page.get_by_label("Key", exact=True).fill(key)
        visitor.button("Use this key").click()
        page.locator(".job", has_text=f"on {HOSTILE}").wait_for()
        page.reload()
        page.locator(".job").first.wait_for()
        assert dialog.count() == 0
        visitor.go("/train")
        page.get_by_text("lacks the scope `train`").first.wait_for()
    kept = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    other = Visitor(browser, serving.url)
    other.page.goto(serving.url)
    other.page.get_by_role("dialog").wait_for()

    assert kept == [[key], [], ""]
    assert visitor.foreign_requests == []
    other.leave()
    visitor.leave()


def test_missing_workers_and_a_service_that_is_gone_are_told(
    environment: dict[str, str], browser: Browser, tmp_path: Path
) -> None:
    with Serving(environment, tmp_path / "log") as serving:
        visitor = Visitor(browser, serving.url)
        visitor.page.goto(serving.url)
        visitor.page.get_by_text("no worker of queue 'train' gives signs of life").wait_for()
    visitor.go("/models")
    visitor.page.get_by_text("The service does not answer").first.wait_for()
    assert visitor.button("Try again").count() == 1
    visitor.leave()
