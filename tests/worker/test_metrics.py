"""A worker's own port, and its GPUs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.servers import free_ports, wait_until
from worker.observe.gpu_metrics import register_gpus
from worker.observe.metrics import MetricsServer
from worker.settings import Settings

_SHOW_GPUS = """
from prometheus_client import CollectorRegistry, generate_latest
from worker.observe.gpu_metrics import register_gpus
registry = CollectorRegistry()
register_gpus(registry)
print(generate_latest(registry).decode())
"""


def scrape(port: int) -> str | None:
    """What is served, if anything is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def test_a_worker_serves_its_series_once_its_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.observe.metrics._RETRY_S", 0.1)
    (port,) = free_ports(1)
    server = MetricsServer(Settings(worker_metrics_port=port), CollectorRegistry())
    with socket.create_server(("127.0.0.1", port)):
        server.start("trainer")
    text = wait_until(lambda: scrape(port), "the first scrape")
    assert 'recovery_build_info{component="trainer"' in text
    assert "process_resident_memory_bytes" in text
    server.stop()
    assert scrape(port) is None


def test_a_process_forked_from_a_worker_does_not_keep_its_port() -> None:
    """Else the port of a killed worker would stay open, and its scrapes hang."""
    (port,) = free_ports(1)
    code = (
        "import os, sys, time; from prometheus_client import CollectorRegistry;"
        "from worker.observe.metrics import MetricsServer; from worker.settings import Settings;"
        f"server = MetricsServer(Settings(worker_metrics_port={port}), CollectorRegistry());"
        "server.start('trainer'); server._thread.join();"
        "child = os.fork();"
        "print(child, flush=True) if child else server.forget();"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        while not (line := process.stdout.readline()).strip().isdecimal():
            assert line, "it ended"  # logs come first
    child = int(line)
    try:
        wait_until(lambda: scrape(port), "the first scrape")
        process.kill()
        process.wait()
        assert Path(f"/proc/{child}").exists()
        wait_until(lambda: _is_free(port), "the port")
    finally:
        os.kill(child, 9)


def _is_free(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_without_a_driver_there_are_no_series_of_gpus() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a driver")
    registry = CollectorRegistry()
    register_gpus(registry)
    assert list(registry.collect()) == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of the driver")
def test_every_gpu_shows_its_memory_and_what_it_tells_of_its_use(tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    text = subprocess.run(
        [sys.executable, "-c", _SHOW_GPUS], env=environment, capture_output=True, text=True, check=True
    ).stdout
    first = '{gpu="0",name="Stand-in",uuid="GPU-0"}'
    assert f"recovery_gpu_memory_used_bytes{first} 600.0" in text
    assert f"recovery_gpu_memory_total_bytes{first} 1000.0" in text
    assert f"recovery_gpu_utilization_ratio{first} 0.4" in text
    assert 'recovery_gpu_memory_used_bytes{gpu="1",name="Stand-in",uuid="GPU-1"} 25.0' in text
    assert 'recovery_gpu_utilization_ratio{gpu="1"' not in text
