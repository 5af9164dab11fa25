"""What the HTTP service imports from here must start in a second, without torch."""

import subprocess
import sys

import pytest

LIGHT = [
    "settings",
    "ids",
    "jobs",
    "messages",
    "records",
    "bucket",
    "artifacts",
    "dataset_store",
    "datasets",
    "events",
    "presence",
    "connect",
    "loads",
]


def _loaded(module: str) -> set[str]:
    code = f"import sys, worker.{module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_records_and_their_neighbours_need_neither_torch_nor_celery(module: str) -> None:
    assert not _loaded(module) & {"torch", "celery", "fastapi", "datasets", "pyarrow"}


@pytest.mark.parametrize("module", ["broker", "app", "train", "calibrate"])
def test_a_worker_process_imports_no_torch_before_it_has_work(module: str) -> None:
    assert "torch" not in _loaded(module)
