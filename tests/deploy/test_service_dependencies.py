"""The `service` image installs the project without extras: what its process imports must come with that."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest

PROJECT = "recovery-likelihood"
STARTING = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(sys.argv[1:])
sys.meta_path.insert(0, Absent())
import service.app, service.cli, service.serve
import kombu.transport.redis, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on
"""
"""The last line is what Celery and uvicorn import by name: when the first job comes, and when the server starts."""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed_with(distribution: str, found: set[str]) -> set[str]:
    """The distribution and everything it requires without extras, here."""
    if distribution in found:
        return found
    found.add(distribution)
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return found
    for text in requirements:
        name, _, marker = text.partition(";")
        if "extra" not in marker:
            _installed_with(_normal(re.split(r"[\s<>=!~\[(]", name.strip(), maxsplit=1)[0]), found)
    return found


def _start(allowed: set[str]) -> subprocess.CompletedProcess[str]:
    """A process in which only the modules of these distributions, and the standard library's, are to be had."""
    owners = {module: {_normal(name) for name in names} for module, names in metadata.packages_distributions().items()}
    absent = [module for module, names in owners.items() if not names & allowed]
    return subprocess.run([sys.executable, "-c", STARTING, *absent], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_service_starts_with_what_its_own_dependencies_bring() -> None:
    allowed = _installed_with(PROJECT, set())
    assert {"celery", "kombu", "fastapi"} <= allowed
    assert "torch" not in allowed
    found = _start(allowed)
    assert found.returncode == 0, found.stderr[-1000:]
    assert "No module named 'packaging" in _start(allowed - {"packaging"}).stderr
