"""`recovery doctor` on real stores, and on what is wrong with them: each finding says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from redis import Redis

from service.door.keys import Scope
from service.stack import doctor
from service.stack.doctor import Finding
from tests.servers import free_ports
from tests.service.serving import Serving, with_key
from tests.service.test_cli import run
from worker.observe.presence import WorkerReport
from worker.observe.version import version


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    """All of them; what is wrong must come with a remedy."""
    found = {finding.what: finding for finding in findings}
    assert all(finding.remedy for finding in found.values() if finding.state == "wrong")
    return found


def stores(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **changes: str) -> dict[str, Finding]:
    """What is found of the stores of an environment."""
    for name, value in (environment | changes).items():
        monkeypatch.setenv(name, value)
    return by_name(doctor.examine_stores(Path("nowhere")))


def test_good_stores_are_well(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], redis: Redis) -> None:
    found = stores(monkeypatch, environment)

    assert [finding.state for finding in found.values()] == ["ok"] * 4
    assert found["Redis"].detail.startswith("Valkey ")
    assert "conditional writes hold" in found["bucket recovery-test"].detail
    assert redis.ping()


def test_a_redis_that_forgets_is_wrong(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], redis: Redis
) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = stores(monkeypatch, environment)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")

    assert (found["Redis's memory"].state, found["Redis's memory"].remedy) == ("wrong", "set it to noeviction")


def test_stores_that_are_away_are_wrong(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    away = free_ports(2)
    changes = {
        "RECOVERY_REDIS_URL": f"redis://127.0.0.1:{away[0]}/0",
        "RECOVERY_S3_ENDPOINT_URL": f"http://127.0.0.1:{away[1]}",
    }
    found = stores(monkeypatch, environment, **changes)

    assert {name: finding.state for name, finding in found.items()} == {
        "Redis": "wrong",
        "bucket recovery-test": "wrong",
    }
    assert "RECOVERY_REDIS_URL" in str(found["Redis"].remedy)


def test_a_bucket_that_does_not_exist_is_wrong(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    found = stores(monkeypatch, environment, RECOVERY_S3_BUCKET="nobodys")

    assert found["bucket nobodys"].state == "wrong"


class Careless(BaseHTTPRequestHandler):
    """A store that takes every write, whatever condition it comes with."""

    def do_PUT(self) -> None:  # named by the base class
        """Keep what comes."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        """What the doctor wrote."""
        self._answer(b"doctor")

    def do_HEAD(self) -> None:
        """It is there."""
        self._answer(b"")

    do_DELETE = do_HEAD  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(204 if self.command == "DELETE" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_store_without_conditional_writes_is_wrong(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", free_ports(1)[0]), Careless)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        found = stores(monkeypatch, environment, RECOVERY_S3_ENDPOINT_URL=url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert "overwrites objects in spite of If-None-Match" in found["bucket recovery-test"].detail


def test_stores_nobody_here_knows_are_said_to_be_left_out(tmp_path: Path) -> None:
    [finding] = doctor.examine_stores(tmp_path)

    assert (finding.state, "not looked at" in finding.detail) == ("note", True)


def test_a_service_tells_what_is_missing_and_who_is_of_another_kind(
    environment: dict[str, str], redis: Redis, tmp_path: Path
) -> None:
    reports = {
        "good": WorkerReport(version=version(), gpus=("NVIDIA H100 80GB HBM3",), clock_ahead_s=0.1),
        "late": WorkerReport(version=version(), clock_ahead_s=-61.0),
        "other": WorkerReport(version="0.0.1", clock_ahead_s=0.0),
    }
    for name, report in reports.items():
        redis.set(f"worker:train:{name}", report.model_dump_json(), ex=60)
    redis.set("worker:train:old", "", ex=60)
    with Serving(environment, tmp_path / "log") as serving:
        found = by_name(doctor.examine_service(serving.url, None))
        told = run("doctor", "--json", "--url", serving.url, "--data", str(tmp_path))

    assert found["worker good"].detail == f"version {version()}, NVIDIA H100 80GB HBM3"
    assert "differs from Redis's by -61.0 s" in found["worker late"].detail
    assert found["version of worker other"].detail == f"0.0.1, here {version()}"
    assert found["worker old"].state == "note"
    assert (found["trainer"].state, found["sampler"].state) == ("ok", "wrong")
    assert "-Q sample" in str(found["sampler"].remedy)
    report = json.loads(told.stdout)
    assert (told.returncode, report["wrong"]) == (1, 3)
    assert {one["what"] for one in report["findings"]} >= {*found, "torch", "disk", "embedded servers"}


def test_a_service_that_wants_a_key_is_told_apart_from_one_that_is_away(
    environment: dict[str, str], tmp_path: Path
) -> None:
    guarded, key = with_key(environment, tmp_path / "keys.json", Scope.read)
    with Serving(guarded, tmp_path / "log") as serving:
        without = by_name(doctor.examine_service(serving.url, None))
        with_key_found = by_name(doctor.examine_service(serving.url, key))
    away = by_name(doctor.examine_service(serving.url, None))

    assert "scope read" in str(without["key"].remedy)
    assert "key" not in with_key_found
    assert list(away) == ["address"]
    assert "start it with `recovery up`" in str(away["address"].remedy)


def test_a_key_in_a_file_that_others_can_read_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "recovery" / "config.toml"
    path.parent.mkdir()
    path.write_text('api_key = "rk_abc"\n')
    path.chmod(0o644)
    found = by_name(doctor.configuration_findings())
    path.chmod(0o600)

    assert found["configuration file"].remedy == f"run: chmod 600 {path}"
    assert list(doctor.configuration_findings()) == []
