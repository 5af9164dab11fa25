"""The application as a whole: what it imports, and what its OpenAPI document promises."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from service.app import create_app

HEAVY = ("torch", "sklearn", "matplotlib", "scipy")


def test_importing_the_application_loads_nothing_heavy_and_needs_no_environment() -> None:
    code = f"import service.app, sys; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert run.returncode == 0, run.stderr


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
        "list_models",
        "get_model",
        "get_model_samples",
        "get_model_density",
        "sample",
        "calibrate",
        "log_density",
        "upload_dataset",
        "list_datasets",
        "get_dataset",
        "delete_dataset",
        "get_health",
        "get_readiness",
        "get_metrics",
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
