"""A job is cancelled and resumed from the page."""

from __future__ import annotations

import re

import pytest

from service.client import Recovery
from tests.stack import TINY
from tests.web.visitor import HOSTILE, Visitor, finished

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


def test_a_running_job_is_cancelled_and_its_name_is_only_text(visitor: Visitor, recovery: Recovery) -> None:
    page = visitor.page
    job_id = recovery.train(preset="digits", config=TINY, steps=100_000, name=HOSTILE)["id"]
    page.once("dialog", lambda dialog: visitor.complaints.append(f"a script ran: {dialog.message}"))
    visitor.go(f"/jobs/{job_id}")
    assert page.locator("main h1").inner_text() == HOSTILE
    assert page.locator("main h1 *").count() == 0
    page.locator(".status.running").wait_for()
    page.get_by_role("img", name=re.compile("Loss of")).first.wait_for()
    visitor.button("Cancel").click()
    page.locator(".status.cancelled").wait_for()

    assert recovery.job(job_id)["status"] == "cancelled"
    done = recovery.job(job_id)["progress"]["step"]
    visitor.go("/jobs")
    row = page.locator(".job", has_text=HOSTILE)
    row.get_by_text("cancelled").wait_for()
    page.get_by_label("Show").select_option("cancelled")
    page.wait_for_function("() => document.querySelectorAll('.job').length === 1")
    row.get_by_role("link").click()
    page.get_by_label("Training steps in all").fill(str(done + 40))
    visitor.button("Resume").click()
    page.locator(".status.running, .status.succeeded").wait_for()
    finished(visitor, recovery, job_id)
    visitor.go("/models")
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert recovery.job(job_id)["progress"]["step"] == done + 40
