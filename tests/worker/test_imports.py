"""What the HTTP service imports from here must start in a second, without torch."""

import subprocess
import sys

import pytest

LIGHT = [
    "settings",
    "ids",
    "connect",
    "jobs.kinds",
    "jobs.record",
    "jobs.records",
    "jobs.events",
    "queue.messages",
    "queue.loads",
    "storage.bucket",
    "storage.artifacts",
    "storage.datasets",
    "storage.shards",
    "datasets.names",
    "observe.presence",
]


def _loaded(module: str) -> set[str]:
    code = f"import sys, worker.{module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_records_and_their_neighbours_need_neither_torch_nor_celery(module: str) -> None:
    assert not _loaded(module) & {"torch", "celery", "fastapi", "datasets", "pyarrow"}


@pytest.mark.parametrize(
    "module", ["queue.broker", "app", "trainer.attempt", "kinds.train", "kinds.calibrate", "kinds.bulk"]
)
def test_a_worker_process_imports_no_torch_before_it_has_work(module: str) -> None:
    assert "torch" not in _loaded(module)
