"""What the HTTP service imports from here must start in a second, without torch."""

import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

LIGHT_ROOMS = ["jobs", "storage", "queue", "datasets"]
"""Rooms of worker/ that the service shares with the workers."""
LIGHT = [
    "settings",
    "ids",
    "connect",
    *(
        f"{room}.{module.name}"
        for room in LIGHT_ROOMS
        for module in pkgutil.iter_modules(import_module(f"worker.{room}").__path__)
    ),
]


def _loaded(module: str) -> set[str]:
    code = f"import sys, worker.{module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", [module for module in LIGHT if module != "queue.broker"])
def test_records_and_their_neighbours_need_neither_torch_nor_celery(module: str) -> None:
    assert not _loaded(module) & {"torch", "celery", "fastapi", "datasets", "pyarrow"}


@pytest.mark.parametrize(
    "module", ["queue.broker", "app", "kinds.train", "kinds.calibrate", "kinds.bulk", "trainer.attempt"]
)
def test_a_worker_process_imports_no_torch_before_it_has_work(module: str) -> None:
    assert "torch" not in _loaded(module)
