"""Samples by quality: the settings that were measured for it, the model's own, or the request's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.frontier import Frontier, Point, choose
from tests.service.conftest import StandInSampler
from tests.service.test_sample import draw, reply
from worker.jobs.kinds import TuneSpec
from worker.jobs.records import RecordStore
from worker.queue.tasks import SampleRequest
from worker.storage.artifacts import Artifacts


@pytest.fixture
def sampler(redis: Redis) -> Iterator[StandInSampler]:
    """A sampler of flat images."""
    with StandInSampler(redis, reply).serving() as found:
        yield found


def _frontier(s3: Artifacts, model_id: str, **changes: Any) -> Frontier:
    """A stored frontier of the checkpoint: three settings, one for each quality."""
    points = [
        Point(
            start=start,  # type: ignore[arg-type]
            num_steps=num_steps,
            evaluations=evaluations,
            frechet=frechet,
            frechet_error=0.001,
            one_nn=0.6,
            one_nn_error=0.01,
        )
        for start, num_steps, evaluations, frechet in (
            ("multistep", 0, 14, 0.7),
            ("multistep", 2, 56, 0.501),
            ("neighbour", 20, 295, 0.5),
        )
    ]
    found = Frontier(
        step=100,
        points=tuple(points),
        **choose(points),
        features="data",
        num_features=64,
        num_samples=1000,
        num_held_out=897,
        seed=0,
        created_at="2026-11-28T00:00:00+00:00",
    )
    s3.put_frontier(model_id, 100, found.to_dict() | changes)
    return found


def _settings(request: SampleRequest) -> tuple[str | None, int | None]:
    return request.start, request.num_steps


def test_a_quality_is_drawn_by_the_setting_that_was_measured_for_it(
    client: TestClient, model_id: str, s3: Artifacts, sampler: StandInSampler
) -> None:
    _frontier(s3, model_id)
    answers = [draw(client, model_id, "application/json", quality=one) for one in ("draft", "standard", "best")]
    answers.append(draw(client, model_id, "application/json"))  # asks for nothing

    assert [_settings(one) for one in sampler.requests] == [
        ("multistep", 0),
        ("multistep", 2),
        ("neighbour", 20),
        ("multistep", 2),
    ]
    assert [one.headers["X-Quality"] for one in answers] == ["draft", "standard", "best", "standard"]
    told = answers[0].json()
    assert (told["quality"], told["start"], told["steps"], told["gradient_evaluations"]) == (
        "draft",
        "multistep",
        0,
        200,
    )


def test_chains_of_another_kernel_are_not_what_was_measured(
    client: TestClient, model_id: str, s3: Artifacts, sampler: StandInSampler
) -> None:
    _frontier(s3, model_id)
    assert draw(client, model_id, quality="best", adjusted=True).headers["X-Quality"] == "own"
    assert _settings(sampler.requests[-1]) == (None, None)


def test_steps_override_the_quality_and_both_together_are_refused(
    client: TestClient, model_id: str, s3: Artifacts, sampler: StandInSampler
) -> None:
    _frontier(s3, model_id)
    answer = draw(client, model_id, steps=3)
    assert answer.headers["X-Quality"] == "own"
    assert _settings(sampler.requests[-1]) == (None, 3)

    refused = client.post("/sample", json={"model": model_id, "quality": "best", "steps": 3})
    assert refused.status_code == 422
    assert "quality 'best' decides the steps, but steps is 3 too; give one of them" in refused.text


@pytest.mark.parametrize("version", [None, 2], ids=["not tuned", "of a later version"])
def test_a_quality_of_a_checkpoint_that_was_not_tuned_is_the_models_own_and_the_answer_says_so(
    client: TestClient, model_id: str, s3: Artifacts, sampler: StandInSampler, version: int | None
) -> None:
    if version is not None:
        _frontier(s3, model_id, version=version)
    answer = draw(client, model_id, "application/json", quality="best")
    assert answer.headers["X-Quality"] == "own"
    assert (answer.json()["quality"], "steps" in answer.json()) == ("own", False)
    assert _settings(sampler.requests[-1]) == (None, None)


@pytest.mark.usefixtures("sampler")
def test_a_stream_says_by_which_quality_it_draws(client: TestClient, model_id: str, s3: Artifacts) -> None:
    _frontier(s3, model_id)
    answer = draw(client, model_id, "text/event-stream", quality="draft")
    assert answer.headers["X-Quality"] == "draft"
    assert '"quality":"draft"' in answer.text.split("event: result")[-1]


def test_a_frontier_is_shown_with_its_checkpoint(client: TestClient, model_id: str, s3: Artifacts) -> None:
    assert client.get(f"/models/{model_id}").json()["checkpoints"][0]["frontier"] is None
    frontier = _frontier(s3, model_id)
    shown = client.get(f"/models/{model_id}").json()["checkpoints"][0]["frontier"]
    assert [point["evaluations"] for point in shown["points"]] == [14, 56, 295]
    assert shown["standard"] == {"start": "multistep", "num_steps": 2} == vars(frontier.standard)
    _frontier(s3, model_id, points="none")
    assert client.get(f"/models/{model_id}").json()["checkpoints"][0]["frontier"] is None


def test_a_bulk_sampling_keeps_the_setting_of_its_quality_whatever_is_measured_later(
    client: TestClient, model_id: str, s3: Artifacts, store: RecordStore
) -> None:
    _frontier(s3, model_id)
    asked: list[dict[str, Any]] = [{"quality": "draft"}, {}, {"steps": 5}]
    specs = []
    for one in asked:
        answer = client.post("/jobs/sample", json={"model": model_id, "num_images": 10, **one})
        assert answer.status_code == 202, answer.text
        specs.append(store.get(answer.json()["id"]).spec)
    assert [(spec["start"], spec["num_steps"]) for spec in specs] == [("multistep", 0), ("multistep", 2), (None, 5)]
    both = client.post("/jobs/sample", json={"model": model_id, "num_images": 10, "quality": "best", "steps": 5})
    assert both.status_code == 422


def test_a_tuning_is_a_job_about_a_checkpoint(client: TestClient, model_id: str, store: RecordStore) -> None:
    answer = client.post("/jobs/tune", json={"model": model_id, "num_samples": 200, "max_seconds": 30.0})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["kind"], body["model_id"], body["model_step"]) == ("tune", model_id, 100)
    spec = TuneSpec.of(store.get(body["id"]).spec)
    assert (spec.config.num_samples, spec.config.max_steps, spec.config.max_seconds) == (200, 16, 30.0)
    assert client.post("/jobs/tune", json={"model": model_id, "num_samples": 1}).status_code == 422
    assert client.post("/jobs/tune", json={"model": f"{model_id}@7"}).status_code == 404
