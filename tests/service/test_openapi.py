"""What the OpenAPI document promises, with examples that hold, and a client that is generated from it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from worker.jobs.event import EVENTS

METHODS = {"get", "post", "patch", "delete"}
FILES = ("image/png", "application/zip", "application/x-npy")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app().openapi()


def test_operation_ids_are_stable(document: dict[str, Any]) -> None:
    ids = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}

    assert ids == {
        "train",
        "list_jobs",
        "get_job",
        "follow_job",
        "cancel_job",
        "resume_job",
        "delete_job",
        "change_model",
        "delete_model",
        "list_models",
        "get_model",
        "get_model_samples",
        "get_model_density",
        "sample",
        "calibrate",
        "tune",
        "log_density",
        "classify",
        "upload_dataset",
        "list_datasets",
        "get_dataset",
        "delete_dataset",
        "get_health",
        "get_readiness",
        "get_metrics",
        "list_workers",
        "list_presets",
        "check_training",
        "sample_in_bulk",
        "list_shards",
        "get_shard",
    }


def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert {"413", "422", "500", "503"} <= set(errors)
            assert ({"401", "403", "429"} <= set(errors)) is ("security" in operation)
            for answer in errors.values():
                assert list(answer["content"]) == ["application/problem+json"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return here + [found for item in value.values() for found in references(item)]
        return [found for item in value for found in references(item)] if isinstance(value, list) else []

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_every_type_of_event_is_described_with_its_data(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = schemas["EventBody"]
    told = schemas | {"types": body["properties"]["type"]["description"]}
    described = {one.get("$ref", "").rpartition("/")[2] for one in body["properties"]["data"]["anyOf"]}

    for name, data in EVENTS.items():
        assert f"`{name}`" in told["types"]
        assert data.__name__ in described
    assert "`shard` (sample)" in told["types"]
    assert "EventBody" in json.dumps(document["paths"]["/jobs/{job_id}/events"])


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, operation) of every call."""
    for path in document["paths"].values():
        for method, operation in path.items():
            assert method in METHODS
            yield operation["operationId"], operation


def examples(document: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(where, example, schema) of everything that is sent or answered as JSON, and of every parameter."""
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            yield f"{name}, {parameter['name']}", _example(parameter), parameter["schema"]
        json_body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if json_body is not None:
            for one in json_body["examples"].values():
                yield f"{name}, body", one["value"], json_body["schema"]
        for status, answer in operation["responses"].items():
            if "application/json" in answer.get("content", {}):
                content = answer["content"]["application/json"]
                yield f"{name}, {status}", content["example"], content["schema"]


def _example(parameter: dict[str, Any]) -> Any:
    found = parameter.get("examples", [parameter.get("example")])
    return next(iter(found.values()))["value"] if isinstance(found, dict) else found[0]


def test_every_call_has_examples_that_its_schema_allows(document: dict[str, Any]) -> None:
    where = [name for name, _, _ in examples(document)]
    for name, example, schema in examples(document):
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        assert not (wrong := list(validator.iter_errors(example))), (name, wrong)

    shown = {name.partition(",")[0] for name in where}
    bodiless = {"get_metrics"}  # an example of its own, in plain text
    assert shown == {name for name, _ in operations(document)} - bodiless


def test_what_the_examples_ask_for_is_understood(client: TestClient, document: dict[str, Any]) -> None:
    for name, path in (("train", "/jobs/train"), ("sample", "/sample"), ("calibrate", "/jobs/calibrate")):
        for where, example, _ in examples(document):
            if where == f"{name}, body":
                status = client.post(path, json=example).status_code
                assert status == (202 if name == "train" else 404), (name, example)  # such a model there is not


def test_a_configuration_is_described_field_by_field(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    whole, partial = schemas["ChainConfig"], schemas["PartialChainConfig"]
    answered = [schemas[name]["properties"]["config"] for name in ("PresetBody", "TrainCheckBody")]

    assert set(whole["required"]) == set(whole["properties"]) == set(partial["properties"])
    assert "required" not in partial
    assert partial["additionalProperties"] is False
    steps = partial["properties"]["num_steps"]
    assert (steps["minimum"], steps["maximum"], steps["type"]) == (0, 10_000, "integer")
    assert steps["description"].startswith("K, the number of steps of a chain")
    assert steps["description"].endswith("Without a preset 30.")
    assert whole["properties"]["num_steps"]["default"] == 30
    # A generated client would send a default, and it would count more than the preset's value.
    assert all("default" not in one for one in partial["properties"].values())
    assert partial["properties"]["kernel"]["enum"] == ["langevin", "mala", "hmc"]
    assert {one["$ref"] for one in answered} == {"#/components/schemas/TrainConfig"}


@pytest.mark.parametrize("name", ["TrainConfig", "NetworkConfig", "CalibrationConfig"])
def test_every_field_of_a_configuration_says_what_it_means(document: dict[str, Any], name: str) -> None:
    schemas = document["components"]["schemas"]
    for field, schema in schemas[name]["properties"].items():
        reference = schema.get("$ref", "").rpartition("/")[2]
        assert (schema | schemas.get(reference, {})).get("description"), field


def test_a_client_can_be_generated_and_talks_to_the_service(
    client: TestClient, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    settings = {"content_type_overrides": dict.fromkeys(FILES, "application/octet-stream"), "post_hooks": []}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--fail-on-warning"]
    command += ["--path", "openapi.json", "--config", "settings.json", "--output-path", "generated"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr

    monkeypatch.syspath_prepend(str(tmp_path / "generated"))
    package = importlib.import_module("recovery_likelihood_client")
    train, jobs, models = (
        importlib.import_module(f"recovery_likelihood_client.{name}")
        for name in ("api.jobs.train", "api.jobs.list_jobs", "models")
    )

    def pass_on(request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        path = request.url.raw_path.decode()
        answer = client.request(request.method, path, content=request.content, headers=headers)
        return httpx.Response(answer.status_code, content=answer.content)

    generated = package.Client("http://test", httpx_args={"transport": httpx.MockTransport(pass_on)})
    chain = models.PartialTrainConfig(chain=models.PartialChainConfig(num_steps=9))
    made = train.sync(client=generated, body=models.TrainRequest(preset="digits", name="generated", config=chain))

    assert made.status == "queued"
    assert isinstance(made.config, models.TrainConfig)
    assert (made.config.chain.num_steps, made.config.chain.kernel) == (9, "mala")  # nothing else was sent
    assert [job.id for job in jobs.sync(client=generated).jobs] == [made.id]
