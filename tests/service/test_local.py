"""The embedded stack's own rules: folder, lock, secrets, ports. The running stack is tested in tests/integration."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from service.stack import folder, local
from service.stack.child import ChildDiedError, LocalStackError
from service.stack.local import LocalStack


def test_a_port_that_was_asked_for_and_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((local.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalStackError, match=f"port {port} is in use; give another --port"):
            LocalStack(tmp_path, port=port).start()


def test_ports_are_free_different_and_leave_room_for_grpc() -> None:
    ports = local._choose_ports(None)

    others = [port for name, port in vars(ports).items() if name != "http"]
    assert len(set(others)) == len(others)
    assert all(port + 10_000 < 32_768 for port in others)


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"

    first, second = folder.read_secrets(path), folder.read_secrets(path)

    assert first == second
    assert first != folder.read_secrets(tmp_path / "other.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_damaged_secrets_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text("{")

    with pytest.raises(LocalStackError, match="damaged"):
        folder.read_secrets(path)
    assert path.read_text() == "{"


def test_a_folder_in_use_is_refused_with_the_address_it_is_served_at(tmp_path: Path) -> None:
    endpoint = {"url": "http://127.0.0.1:8000", "pid": os.getpid()}
    with folder.locked(tmp_path / "lock", print):
        (tmp_path / "endpoint.json").write_text(json.dumps(endpoint))
        with pytest.raises(LocalStackError, match=r"another `recovery up` runs on .* at http://127\.0\.0\.1:8000"):
            LocalStack(tmp_path).start()


@pytest.mark.stack
def test_a_server_that_cannot_start_is_named_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho no memory left\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(local, "valkey_binary", lambda: str(broken))

    with pytest.raises(ChildDiedError, match="valkey ended with status 3") as caught:
        LocalStack(tmp_path / "data").start()

    assert caught.value.log_tail == "no memory left"
