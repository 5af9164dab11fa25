"""The page of a job shows what the job told, also of a kind that this version does not know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.events import HealthEvent
from tests.service.serving import Serving
from tests.web.visitor import Visitor
from worker.ids import new_id
from worker.jobs.event import data_of
from worker.jobs.kinds import JobKind
from worker.jobs.record import Lease, Progress
from worker.jobs.records import RecordStore
from worker.storage.shards import Manifest, Shard, put_manifest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


@pytest.fixture
def visitor(environment: dict[str, str], browser: Browser, tmp_path: Path) -> Iterator[Visitor]:
    """Somebody at a service without workers."""
    with Serving(environment, tmp_path / "log") as serving:
        found = Visitor(browser, serving.url)
        found.page.goto(serving.url)
        yield found
        found.leave()


def taken(store: RecordStore, job_id: str) -> Lease:
    """The job as a worker has it."""
    lease = store.acquire_lease(job_id, "a worker")
    assert lease is not None
    return lease


def test_a_bulk_sampling_shows_its_files_once_all_are_there(store: RecordStore, visitor: Visitor) -> None:
    job = store.create(JobKind.sample, {"seed": 7, "step": 20}, model_id=new_id())
    lease = taken(store, job.id)
    store.append_event(job.id, "shard", {"index": 0, "num_images": 90}, lease.token)
    visitor.go(f"/jobs/{job.id}")
    visitor.page.get_by_text("seed 7").wait_for()
    assert visitor.page.get_by_role("heading", name="Files").count() == 0
    manifest = Manifest(
        model=f"{job.model_id}@20",
        seed=7,
        num_images=90,
        event_shape=(2,),
        num_steps=None,
        noise_scale=None,
        gradient_evaluations=3,
        shards=(Shard(name="00000.npy", num_images=90),),
    )
    put_manifest(store.artifacts, job.id, manifest)
    store.succeed(lease)

    visitor.button("00000.npy (90)").wait_for()
    visitor.page.reload()
    visitor.button("00000.npy (90)").wait_for()


def test_a_training_shows_its_verdict_in_one_line_and_in_its_log(store: RecordStore, visitor: Visitor) -> None:
    job = store.create(JobKind.train, {"config": {}}, name="watched")
    lease = taken(store, job.id)
    verdict = HealthEvent(step=100, level="amber", reason="0.30 (level 2)", remedy="a shorter step")
    store.append_event(job.id, "health", data_of(verdict), lease.token)
    store.report_health(lease, verdict)
    visitor.go(f"/jobs/{job.id}")

    line = "amber: 0.30 (level 2) — a shorter step"
    shown = visitor.page.locator("p.health.amber")
    shown.wait_for()
    assert f"Health {line}" in shown.inner_text()
    visitor.page.get_by_text("What happened").click()
    logged = visitor.page.locator(".log li", has_text="health")
    logged.wait_for()
    assert f"health {line}" in logged.inner_text()


def test_a_kind_that_the_page_does_not_know_has_a_name_a_progress_and_events(
    store: RecordStore, visitor: Visitor
) -> None:
    job = store.create("distill", {"teacher": "x"})
    lease = taken(store, job.id)
    store.append_event(job.id, "epoch", {"number": 3}, lease.token)
    store.report_progress(lease, Progress(step=3, total_steps=8, percent=37.5))
    visitor.go("/jobs")
    visitor.page.locator(".job", has_text=f"distill {job.id[-6:]}").wait_for()
    visitor.go(f"/jobs/{job.id}")

    visitor.page.get_by_text("3 of 8", exact=True).wait_for()
    visitor.page.get_by_text("What happened").click()
    logged = visitor.page.locator(".log li", has_text="epoch")
    logged.wait_for()
    assert logged.count() == 1
