"""The Python client: both kinds ask the same, ask again where that is safe, and give answers with types."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from model.event_kinds.pixels import to_bytes
from service.client import (
    AsyncRecovery,
    BrokenOffError,
    ClientError,
    Densities,
    JobFailedError,
    Recovery,
    RefusedError,
    Samples,
)
from tests.service.conftest import StandInSampler, calibration
from worker.jobs.record import JobStatus
from worker.jobs.records import RecordStore
from worker.queue.messages import Timings
from worker.queue.tasks import DensityReply, DensityRequest, SampleReply, SampleRequest
from worker.storage.artifacts import Artifacts

SMALL: dict[str, Any] = {"preset": "digits", "steps": 10, "seed": 7}
FaultFn = Callable[[httpx2.Request], httpx2.Response | None]


@dataclass
class Wire:
    """Between a client and the application: what was asked, and faults where a test wants some."""

    client: TestClient
    fault_fn: FaultFn = lambda _request: None
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """The application's answer, or the fault's."""
        # Two things are drawn anew for every request: the boundary of a form, and the key of a new job.
        boundary = request.headers.get("content-type", "").partition("boundary=")[2].encode()
        content = request.content.replace(boundary, b"") if boundary else request.content
        self.asked.append((request.method, request.url.raw_path.decode(), content))
        if (fault := self.fault_fn(request)) is not None:
            return fault
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = self.client.request(
            request.method, request.url.raw_path.decode(), content=request.content, headers=headers
        )
        return httpx2.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)


@pytest.fixture
def wire(client: TestClient) -> Wire:
    """To the application."""
    return Wire(client)


@pytest.fixture
def recovery(wire: Wire) -> Iterator[Recovery]:
    """A client on it."""
    with Recovery("http://test") as found:
        found._http = httpx2.Client(base_url="http://test", transport=httpx2.MockTransport(wire))
        yield found


def awaited(wire: Wire, use_fn: Callable[[AsyncRecovery], Awaitable[Any]]) -> Any:
    """What comes of using the asyncio client."""

    async def use() -> Any:
        async with AsyncRecovery("http://test") as client:
            client._http = httpx2.AsyncClient(base_url="http://test", transport=httpx2.MockTransport(wire))
            return await use_fn(client)

    return asyncio.run(use())


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were wanted; none is waited for."""
    wanted: list[float] = []

    async def sleep(seconds: float) -> None:
        wanted.append(seconds)

    monkeypatch.setattr("service.client.blocking.time", SimpleNamespace(sleep=wanted.append))
    monkeypatch.setattr("service.client.awaited.asyncio", SimpleNamespace(sleep=sleep))
    return wanted


@pytest.fixture
def sampler(redis: Redis, model_id: str, s3: Artifacts) -> Iterator[StandInSampler]:
    """Answers with values that tell where they belong."""
    s3.put_calibration(model_id, 100, calibration((1, 8, 8)).to_dict())

    def answer(request: SampleRequest | DensityRequest) -> SampleReply | DensityReply:
        known: dict[str, Any] = {"ok": True, "request_id": request.request_id, "model_id": model_id, "step": 100}
        known |= {"seed": request.seed, "gradient_evaluations": 12}
        known["timings"] = Timings(queue_s=0.0, load_s=0.0, compute_s=0.0)
        if isinstance(request, DensityRequest):
            values = -np.arange(len(stand_in.arrays[-1]), dtype=np.float64)
            return DensityReply(
                log_density=values, energy=-values, calibration=calibration((1, 8, 8)).to_dict(), **known
            )
        x = np.linspace(-1, 1, request.num_images * 64, dtype=np.float32).reshape(-1, 1, 8, 8)
        return SampleReply(x=x, levels={level: x * level for level in request.levels}, **known)

    stand_in = StandInSampler(redis, answer)
    with stand_in.serving():
        yield stand_in


@pytest.mark.usefixtures("sampler")
def test_both_clients_ask_the_same(wire: Wire, recovery: Recovery, model_id: str) -> None:
    job = recovery.train(**SMALL)
    job.refresh()
    recovery.jobs(status="queued")
    job.cancel()
    job.resume(steps=20)
    model = recovery.model(model_id)
    model.sample(2, seed=1, levels=[3, 1])
    model.log_density(np.zeros((2, 1, 8, 8)), path=False)
    model.calibrate(num_chains=64)
    model.tune(num_samples=200)
    recovery.tune(model_id, max_steps=2)
    recovery.checks()
    by_blocking, wire.asked = wire.asked, []

    async def use(client: AsyncRecovery) -> None:
        job = await client.train(**SMALL)
        await job.refresh()
        await client.jobs(status="queued")
        await job.cancel()
        await job.resume(steps=20)
        model = await client.model(model_id)
        await model.sample(2, seed=1, levels=[3, 1])
        await model.log_density(np.zeros((2, 1, 8, 8)), path=False)
        await model.calibrate(num_chains=64)
        await model.tune(num_samples=200)
        await client.tune(model_id, max_steps=2)
        await client.checks()

    awaited(wire, use)

    same = [(method, re.sub("/jobs/0[0-9A-Z]{25}", "/jobs/ID", path), body) for method, path, body in wire.asked]
    assert same == [
        (method, re.sub("/jobs/0[0-9A-Z]{25}", "/jobs/ID", path), body) for method, path, body in by_blocking
    ]
    assert len(same) == 12


def test_models_are_renamed_and_models_and_jobs_deleted_by_both_clients(
    wire: Wire, recovery: Recovery, model_id: str
) -> None:
    model, job = recovery.model(model_id), recovery.train(**SMALL)
    model.change(name="wide", tags=["paper"])
    assert (model.name, recovery.change_model(model_id, tags=[]).tags) == ("wide", [])
    with pytest.raises(RefusedError, match="cancel it first"):
        job.delete()
    job.cancel()
    job.delete()

    async def use(client: AsyncRecovery) -> None:
        found = await client.model(model_id)
        await found.change(name=None)
        assert (found.name, found.tags) == (None, [])
        await found.delete()

    awaited(wire, use)
    with pytest.raises(RefusedError, match="GET /models lists"):
        recovery.delete_model(model_id)
    with pytest.raises(RefusedError, match="GET /jobs lists"):
        recovery.delete_job(job.id)


def test_a_job_of_any_kind_is_started_by_the_name_of_the_kind(recovery: Recovery, model_id: str) -> None:
    job = recovery.submit("calibrate", model=model_id, num_chains=64)
    assert (job.kind, job.model_id, job.status) == ("calibrate", model_id, "queued")
    with pytest.raises(RefusedError):
        recovery.submit("distill", teacher=model_id)


@pytest.mark.usefixtures("sampler")
def test_samples_are_numbers_pictures_and_files(recovery: Recovery, model_id: str) -> None:
    model = recovery.model(model_id)
    drawn = model.sample(3, seed=5, levels=[2, 1], step=100)

    assert (drawn.model, drawn.seed, drawn.gradient_evaluations, len(drawn)) == (f"{model_id}@100", 5, 12, 3)
    assert np.asarray(drawn).shape == (3, 1, 8, 8)
    assert drawn.levels is not None
    np.testing.assert_allclose(drawn.levels[:, 0, 0, 0, 0], [-2, -1])  # noisiest first
    np.testing.assert_array_equal(np.asarray(drawn.images[1]), to_bytes(drawn.x)[1, 0])
    assert drawn.grid(scale=2).size == ((3 * 9 - 1) * 2, (3 * 9 - 1) * 2)  # a row per sample, a column per level
    assert model.sample(2, seed=5).grid().size == (17, 8)


def test_vectors_are_no_pictures() -> None:
    drawn = Samples(x=np.zeros((4, 2), np.float32), seed=0, model="m@1", gradient_evaluations=1)

    assert drawn._repr_png_() is None
    with pytest.raises(TypeError, match=r"vectors of shape \(2,\)"):
        drawn.grid()


@pytest.mark.parametrize(
    "form", ["numbers", "samples", "picture", "pictures", "file", "files", "npy", "path as text", "paths as text"]
)
def test_whatever_can_be_scored_is_sent(
    recovery: Recovery, sampler: StandInSampler, model_id: str, tmp_path: Path, form: str
) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 2
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    x = pixels[None, None].astype(np.float32) / 127.5 - 1
    np.save(tmp_path / "x.npy", x)
    forms: dict[str, Any] = {
        "numbers": x,
        "samples": Samples(x=x, seed=0, model="m@1", gradient_evaluations=1),
        "picture": picture,
        "pictures": [picture, picture],
        "file": tmp_path / "a.png",
        "files": [tmp_path / "a.png"],
        "npy": tmp_path / "x.npy",
        "path as text": str(tmp_path / "a.png"),
        "paths as text": [str(tmp_path / "a.png")],
    }

    found = recovery.model(model_id).log_density(forms[form])

    assert isinstance(found, Densities)
    assert found.log_density.tolist() == [-float(index) for index in range(len(sampler.arrays[-1]))]
    np.testing.assert_allclose(sampler.arrays[-1][0], x[0], atol=1e-6)
    assert found["items"][0]["log_density"] == 0
    assert found.log_z.estimate == pytest.approx(-10)


def break_first(times: int) -> FaultFn:
    """The connection breaks so many times before the request is answered."""
    left = [times]

    def fault(request: httpx2.Request) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise httpx2.ReadError("broken", request=request)

    return fault


def test_reads_and_new_jobs_are_asked_for_again_and_no_job_is_made_twice(
    wire: Wire, recovery: Recovery, store: RecordStore, pauses: list[float]
) -> None:
    wire.fault_fn = break_first(3)
    assert recovery.jobs() == []
    wire.fault_fn = break_first(2)
    recovery.train(**SMALL)
    recovery.train(**SMALL, idempotency_key="mine")
    recovery.train(**SMALL, idempotency_key="mine")

    assert pauses == [0.2, 1.0, 3.0, 0.2, 1.0]
    assert len(store.list().records) == 2


def test_what_would_be_done_twice_is_not_asked_for_again(wire: Wire, recovery: Recovery, pauses: list[float]) -> None:
    job = recovery.train(**SMALL)
    job.cancel()
    wire.fault_fn = break_first(1)

    with pytest.raises(BrokenOffError, match="broke off"):
        job.resume()
    assert (pauses, job.status) == ([], JobStatus.cancelled)


def _busy(seconds: str) -> FaultFn:
    left = [1]

    def fault(_request: httpx2.Request) -> httpx2.Response | None:
        left[0] -= 1
        body = {"type": "urn:recovery:problem:busy", "status": 429, "detail": "busy"}
        return httpx2.Response(429, headers={"Retry-After": seconds}, json=body) if left[0] >= 0 else None

    return fault


def test_a_busy_service_is_left_alone_as_long_as_it_wants_but_not_for_ever(
    wire: Wire, recovery: Recovery, pauses: list[float]
) -> None:
    wire.fault_fn = _busy("7")
    assert recovery.jobs() == []
    assert pauses == [7.0]

    wire.fault_fn = _busy("600")
    with pytest.raises(RefusedError) as refusal:
        recovery.jobs()
    assert (refusal.value.status, refusal.value.retry_after_s) == (429, 600.0)
    assert pauses == [7.0]


def test_waiting_ends_with_the_job_and_tells_what_became_of_it(
    wire: Wire, recovery: Recovery, store: RecordStore
) -> None:
    job = recovery.train(**SMALL)
    with pytest.raises(ClientError, match="is still queued after 0 s"):
        job.wait(timeout_s=0)
    store.request_cancel(job.id)

    with pytest.raises(JobFailedError, match=f"job {job.id} ended as cancelled"):
        job.wait()
    with pytest.raises(JobFailedError, match="cancelled"):
        awaited(wire, lambda client: _wait(client, job.id))
    assert job["status"] == job.status == "cancelled"
    assert {**job}["progress"]["total_steps"] == job.progress.total_steps


async def _wait(client: AsyncRecovery, job_id: str) -> None:
    job = await client.job(job_id)
    assert [event["type"] async for event in job.events()][-1] == "status"
    await job.wait(progress=True)


def test_an_address_that_is_none_is_one_sentence() -> None:
    for wrong in ("localhost:8000", "ftp://127.0.0.1", "nonsense"):
        with pytest.raises(ClientError, match="no address of a service"), Recovery(wrong) as client:
            client.jobs()


def test_an_older_service_is_understood_and_another_is_one_sentence(wire: Wire, recovery: Recovery) -> None:
    job = recovery.train(**SMALL)
    body = job.model_dump(mode="json")
    del body["device"], body["last_loss"]
    wire.fault_fn = lambda _request: httpx2.Response(200, json=body)
    assert recovery.job(job.id).device is None

    del body["progress"]
    with pytest.raises(ClientError, match=r"does not understand \(progress\); are they of one version"):
        recovery.job(job.id)
