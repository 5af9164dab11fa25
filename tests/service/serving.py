"""`recovery serve` as a process of its own, on the session's real Valkey and SeaweedFS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from service.door.keys import KeyFile, Scope
from tests.servers import PATIENCE_S, free_ports, tethered, wait_until

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Serving:
    """One run of the command. `options` replaces the default address."""

    environment: dict[str, str]
    log: Path
    command: tuple[str, ...] = (sys.executable, "-m", "service.cli", "serve")
    host: str = "127.0.0.1"
    port: int = field(default_factory=lambda: free_ports(1)[0])

    def __post_init__(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                tethered([*self.command, "--host", self.host, "--port", str(self.port)]),
                env=os.environ | self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Serving:
        wait_until(lambda: self.process.poll() is not None or self._listens(), f"readiness; see {self.log}")
        assert self.process.poll() is None, self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    @property
    def url(self) -> str:
        """Where it listens, from this machine."""
        return f"http://127.0.0.1:{self.port}"

    def raw(self, request: bytes) -> bytes:
        """Everything that comes back for these bytes, until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    def _listens(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/healthz", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False


def with_key(environment: dict[str, str], path: Path, *scopes: Scope) -> tuple[dict[str, str], str]:
    """(the environment with a file of keys, the text of a new key in it)."""
    text, _ = KeyFile(path).create("tests", scopes or list(Scope))
    return {**environment, "RECOVERY_KEYS_FILE": str(path)}, text


def outward_address() -> str:
    """An address of this machine that is not loopback; empty when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which way it would go
        except OSError:
            return ""
        return str(probe.getsockname()[0])
