"""Labels and guidance of POST /sample and of the bulk job, with the test as the sampler at the end of the queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from model.composition import ANY_LABEL, Composition
from service.http.errors import Problem
from service.work.images import by_label, columns_by_label
from service.work.labels import read_labels
from tests.service.conftest import StandInSampler, store_model
from tests.service.test_sample import draw, picture, reply
from worker.jobs.kinds import SampleSpec
from worker.jobs.records import RecordStore
from worker.queue.tasks import SampleReply, SampleRequest
from worker.storage.artifacts import Artifacts

CLASSES = ["ant", "bee", "3"]


@pytest.fixture
def labelled_id(s3: Artifacts, tmp_path: Path) -> str:
    """A conditional model of three classes."""
    model_id = store_model(s3, tmp_path, "digits")
    description = s3.get_model(model_id)
    conditional = {**description["config"], "conditional": True}
    s3.put_model(model_id, {**description, "config": conditional, "classes": CLASSES})
    return model_id


def _labelled(request: SampleRequest) -> SampleReply:
    """Samples whose grey is the first class that is asked for, over two."""
    asked = [request.labels[index % len(request.labels)] for index in range(request.num_images)]
    greys = np.array([[*one.any_of, *(label for label, _ in one.all_of), 1][0] for one in asked], np.float32) - 1
    x = np.array(np.broadcast_to(greys[:, None, None, None], (request.num_images, 1, 8, 8)))
    return reply(request).model_copy(update={"x": x, "kernel": "langevin" if request.adjusted is False else "mala"})


@pytest.fixture
def sampler(redis: Redis) -> Iterator[StandInSampler]:
    """A sampler of flat images."""
    with StandInSampler(redis, _labelled).serving() as found:
        yield found


def test_without_labels_a_conditional_model_draws_its_classes_in_turn(
    client: TestClient, labelled_id: str, sampler: StandInSampler
) -> None:
    answer = draw(client, labelled_id, "application/json", num_images=4, seed=1)

    [request] = sampler.requests
    assert request.labels == tuple(Composition.of_label(k) for k in range(3))
    assert (answer.json()["labels"], answer.json()["guidance"]) == (["ant", "bee", "3", "ant"], 0)
    assert json.loads(answer.headers["X-Labels"]) == ["ant", "bee", "3"]
    assert (answer.headers["X-Guidance"], answer.headers["X-Kernel"], answer.headers["X-Seed"]) == ("0", "mala", "1")
    assert client.get(f"/models/{labelled_id}").json()["classes"] == CLASSES


def test_labels_are_names_or_numbers_and_names_come_first(
    client: TestClient, labelled_id: str, sampler: StandInSampler
) -> None:
    draw(client, labelled_id, num_images=5, labels=["bee", 0, "3", "1", None], guidance=2.0)

    [request] = sampler.requests
    expected = [Composition.of_label(k, guidance=2.0) for k in (1, 0, 2, 1)]
    assert request.labels == (*expected, ANY_LABEL)


def test_labels_are_composed_by_any_of_and_all_of(
    client: TestClient, labelled_id: str, sampler: StandInSampler
) -> None:
    product = {"any_of": ["ant", "bee"], "all_of": [{"label": "3", "weight": -1.5}]}
    alone = draw(client, labelled_id, "application/json", labels=[{"any_of": ["ant", "bee"]}]).json()
    both = draw(client, labelled_id, "application/json", labels=[product]).json()

    first, second = sampler.requests
    assert first.labels == (Composition(any_of=(0, 1)),)
    assert second.labels == (Composition(any_of=(0, 1), all_of=((2, -1.5),)),)
    assert (alone["labels"], alone["guidance"]) == ([{"any_of": ["ant", "bee"], "all_of": []}], 0)
    assert (both["labels"], both["guidance"], "note" in both) == ([product], 0.0, False)


def test_an_answer_says_why_its_chains_were_not_the_models_own(
    client: TestClient, labelled_id: str, s3: Artifacts, sampler: StandInSampler
) -> None:
    description = s3.get_model(labelled_id)
    chain = {**description["config"]["chain"], "kernel": "langevin"}
    s3.put_model(labelled_id, {**description, "config": {**description["config"], "chain": chain}})
    product: dict[str, Any] = {"labels": [{"all_of": [{"label": "ant"}, {"label": "bee"}]}]}

    adjusted = draw(client, labelled_id, "application/json", **product)
    as_asked = draw(client, labelled_id, "application/json", **product, adjusted=False)

    assert "unadjusted chains do not draw from a product" in adjusted.json()["note"]
    assert (adjusted.headers["X-Kernel"], as_asked.headers["X-Kernel"]) == ("mala", "langevin")
    assert "note" not in as_asked.json()
    assert [request.adjusted for request in sampler.requests] == [None, False]


@pytest.mark.usefixtures("sampler")
def test_a_grid_has_the_samples_label_by_label(client: TestClient, labelled_id: str) -> None:
    pixels = picture(draw(client, labelled_id, num_images=9).content)

    assert pixels[::9, 0].tolist() == [0, 128, 255]
    assert (pixels[:8, :8] == 0).all()
    by_levels = picture(draw(client, labelled_id, num_images=4, levels=[3]).content)
    assert by_levels[::9, 9].tolist() == [0, 0, 128, 255]


def test_grids_are_near_a_square_and_keep_labels_to_their_rows() -> None:
    assert by_label(5, 2) == [0, 2, 4, 1, 3]
    assert by_label(3, 0) == [0, 1, 2]
    sizes = [(100, 10), (64, 2), (64, 10), (26, 2), (12, 1), (12, 0), (30, 10)]
    assert [columns_by_label(count, labels) for count, labels in sizes] == [10, 8, None, None, None, None, 3]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"labels": ["wasp"]}, ["body.labels.0", "'wasp' is no class", "'ant', 'bee', '3'"]),
        ({"labels": [3]}, ["body.labels.0", "3 is no class"]),
        ({"labels": [-1]}, ["-1 is no class"]),
        ({"labels": ["ant", "bee"]}, ["body.labels", "2 labels for 1 samples"]),
        ({"labels": []}, ["body.labels", "at least 1"]),
        ({"labels": ["ant"], "guidance": -1}, ["body.guidance", "greater than or equal to 0"]),
        ({"labels": [{}]}, ["neither any_of nor all_of"]),
        ({"labels": [{"any_of": ["ant", "ant"]}]}, ["names a label twice"]),
        ({"labels": [{"all_of": [{"label": "wasp"}]}]}, ["body.labels.0.all_of.0.label", "'wasp'"]),
        (
            {"labels": [{"all_of": [{"label": "ant", "weight": 101}]}]},
            ["body.labels.0.all_of.0.weight: Input should be less than or equal to 100; /docs"],
        ),
        ({"labels": [True]}, ["body.labels.0: Input should be a valid string; or: Input should be a valid integer"]),
        ({"labels": [{"al_of": ["ant"]}]}, ["body.labels.0.al_of: Extra inputs are not permitted; /docs"]),
        ({"labels": [{"all_of": ["ant", "wasp"]}]}, ["body.labels.0.all_of.1.label: 'wasp' is no class"]),
    ],
)
def test_labels_that_cannot_be_drawn_say_what_to_do(
    client: TestClient, labelled_id: str, body: dict[str, Any], told: list[str]
) -> None:
    answer = client.post("/sample", json={"model": labelled_id, **body})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    for words in told:
        assert words in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/sample", "/jobs/sample"])
@pytest.mark.parametrize("body", [{"labels": ["ant"]}, {"guidance": 0.5}])
def test_a_model_without_classes_refuses_labels(
    client: TestClient, model_id: str, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json={"model": model_id, "num_images": 1, **body})

    assert answer.status_code == 422
    assert "was not trained with `conditional`" in answer.json()["detail"]


def test_a_bulk_job_keeps_what_was_asked(client: TestClient, labelled_id: str, store: RecordStore) -> None:
    body = {"model": labelled_id, "num_images": 50, "seed": 1}
    balanced = client.post("/jobs/sample", json=body).json()
    asked = client.post("/jobs/sample", json={**body, "labels": ["bee"], "guidance": 1.0, "adjusted": True}).json()

    specs = [SampleSpec.of(store.get(job["id"]).spec) for job in (balanced, asked)]
    assert specs[0].labels == tuple(Composition.of_label(k) for k in range(3))
    assert (specs[1].labels, specs[1].adjusted) == ((Composition.of_label(1, guidance=1.0),), True)


def test_a_label_alone_is_a_factor_of_a_product_with_the_weight_1(
    client: TestClient, labelled_id: str, sampler: StandInSampler
) -> None:
    draw(client, labelled_id, labels=[{"all_of": ["ant", {"label": "bee", "weight": -0.5}]}])

    assert sampler.requests[0].labels == (Composition(all_of=((0, 1.0), (1, -0.5))),)


@pytest.mark.parametrize("label", ["3", 3])
def test_where_all_classes_are_named_by_numbers_a_number_is_a_name(label: str | int) -> None:
    [found] = read_labels([label], None, ["0", "3", "7", "10"], 1)

    assert found == Composition.of_label(1)


@pytest.mark.parametrize("label", ["2", 2])
def test_a_number_that_names_no_class_is_not_counted_where_all_names_are_numbers(label: str | int) -> None:
    with pytest.raises(Problem, match="there are '0', '3', '7', '10'"):
        read_labels([label], None, ["0", "3", "7", "10"], 1)
