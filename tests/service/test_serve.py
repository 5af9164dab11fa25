"""`recovery serve` as a process: which addresses it takes, what its parser answers, and what it writes into its log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from service.client import Recovery, RefusedError
from service.door.keys import Scope
from tests.conftest import environment_of, settings_for
from tests.servers import SECRET_KEY, SeaweedFS, Valkey, free_ports
from tests.service.serving import ROOT, Serving, outward_address, with_key
from worker.settings import Settings

OUTWARD = outward_address()
needs_a_network = pytest.mark.skipif(not OUTWARD, reason="this machine has no address but loopback")


def _refused(environment: dict[str, str], *arguments: str) -> str:
    """The one line of a command that does not start."""
    command = [sys.executable, "-m", "service.cli", *arguments]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    return run.stderr


def test_an_address_others_can_reach_is_refused_without_keys(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECOVERY_KEYS_FILE", raising=False)
    host, path = "0.0.0.0", tmp_path / "keys.json"
    inherited = os.environ | environment
    without_file = _refused(inherited, "serve", "--host", host)
    with_empty_file = _refused(inherited | {"RECOVERY_KEYS_FILE": str(path)}, "serve", "--host", host)
    up = _refused(inherited, "up", "--data", str(tmp_path), "--host", host)

    assert f"refusing to listen on {host} without keys" in without_file
    assert "recovery keys create" in without_file
    assert f"recovery keys create --file {path}" in with_empty_file
    assert f"recovery keys create --file {path}" in up
    assert sorted(tmp_path.iterdir()) == []  # nothing was started or written


@needs_a_network
def test_with_keys_every_address_is_served_to_who_has_one(environment: dict[str, str], tmp_path: Path) -> None:
    guarded, text = with_key(environment, tmp_path / "keys.json", Scope.read)
    with Serving(guarded, tmp_path / "log", host="0.0.0.0") as serving:
        outside = f"http://{OUTWARD}:{serving.port}"
        assert httpx2.get(f"{outside}/jobs", trust_env=False).status_code == 401
        with Recovery(outside, api_key=text) as client:
            assert client.jobs() == []
            with pytest.raises(RefusedError, match="lacks the scope `train`"):
                client.train(preset="digits")


@needs_a_network
def test_an_application_started_otherwise_on_every_address_still_serves_this_machine_only(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # uvicorn tells an application nothing of the address it will listen on, so this cannot be refused at the start.
    command = (sys.executable, "-m", "uvicorn", "service.app:app")
    with Serving(environment, tmp_path / "log", command=command, host="0.0.0.0") as serving:
        inside = httpx2.get(f"{serving.url}/jobs", trust_env=False)
        outside = [
            httpx2.get(f"http://{OUTWARD}:{serving.port}/jobs", trust_env=False, headers=headers)
            for headers in ({}, {"Host": "localhost"}, {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"})
        ]

    assert inside.status_code == 200
    assert [answer.status_code for answer in outside] == [403, 403, 403]
    assert {answer.json()["type"] for answer in outside} == {"urn:recovery:problem:keys-needed"}


@pytest.fixture(scope="module")
def serving(valkey: Valkey, seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """On loopback, without keys."""
    directory = tmp_path_factory.mktemp("serve")
    slowly = {"RECOVERY_RATE_LIMIT_PER_S": "0.5"}  # what is counted can then be looked at
    with Serving(environment_of(settings_for(valkey, seaweedfs, directory)) | slowly, directory / "log") as found:
        yield found


@pytest.mark.parametrize(
    ("request_bytes", "status", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000, 431, "header-fields-too-large"),
        (b"GET /" + b"x" * 100_000, 431, "header-fields-too-large"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS to a plain port", 400, "bad-request"),
        (
            b"POST /sample HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            "not-implemented",
        ),
        (
            b"POST /sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            400,
            "bad-request",
        ),
        (
            b"POST /sample HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n",
            400,
            "bad-request",
        ),
    ],
    ids=["header", "target", "name", "no host", "tls", "encoding", "two lengths", "chunk"],
)
def test_what_the_parser_refuses_is_a_problem_too(
    serving: Serving, request_bytes: bytes, status: int, kind: str
) -> None:
    head, _, body = serving.raw(request_bytes).partition(b"\r\n\r\n")
    lines = head.decode().lower().splitlines()

    assert lines[0].split()[1] == str(status)
    assert "content-type: application/problem+json" in lines
    assert "x-content-type-options: nosniff" in lines
    found = json.loads(body)
    assert (found["status"], found["type"]) == (status, f"urn:recovery:problem:{kind}")
    assert len(found["detail"]) > 20
    assert httpx2.get(f"{serving.url}/healthz", trust_env=False).status_code == 200


def test_a_proxy_that_nobody_trusts_does_not_change_the_address_of_a_caller(serving: Serving, valkey_url: str) -> None:
    httpx2.get(f"{serving.url}/jobs", headers={"X-Forwarded-For": "203.0.113.9"}, trust_env=False)

    with Redis.from_url(valkey_url) as redis:
        assert redis.keys("rate:*") == [b"rate:address:127.0.0.1"]


def test_no_secret_reaches_the_log_whatever_goes_wrong(settings: Settings, tmp_path: Path) -> None:
    password = "hunter2-redis"
    away = f"redis://:{password}@127.0.0.1:{free_ports(1)[0]}/0"
    environment = environment_of(settings.model_copy(update={"redis_url": away}))
    guarded, text = with_key(environment, tmp_path / "keys.json")
    secret = text.split("_", 2)[2]
    headers = {"Authorization": f"Bearer {text}"}
    answers = []
    with Serving(guarded, tmp_path / "log") as serving:
        ask = httpx2.Client(base_url=serving.url, headers=headers, trust_env=False, timeout=30)
        answers += [ask.get("/jobs"), ask.get("/models"), ask.get("/readyz"), ask.get("/metrics")]
        answers += [ask.get("/nowhere", params={"key": text, "url": away}), ask.get(f"/{text}")]
        answers += [ask.post("/jobs/train", json={"preset": text, "name": SECRET_KEY})]
        answers += [ask.post("/sample", json={"model": f"{text}@x", "seed": SECRET_KEY, SECRET_KEY: password})]
        answers += [ask.get("/jobs", headers={"X-Request-ID": text}, params={"cursor": f"{password}{SECRET_KEY}"})]
        answers += [
            httpx2.get(f"{serving.url}/jobs?u={away}", headers={"Authorization": f"Basic {secret}"}, trust_env=False)
        ]
        serving.raw(f"GET / HTTP/1.1\r\nAuthorization : Bearer {text}\r\n\r\n".encode())
        ask.close()
    log = (tmp_path / "log").read_text()

    key_id = text.split("_")[1]
    assert key_id in log  # the log does say whose request it was
    for hidden in (secret, password, SECRET_KEY):
        assert hidden not in log
        for answer in answers:
            assert hidden not in answer.text
            assert hidden not in str(answer.headers)


def test_a_fault_of_the_code_is_logged_without_the_secrets_in_it(settings: Settings, tmp_path: Path) -> None:
    broken = tmp_path / "broken_app.py"
    broken.write_text(
        "from service.app import create_app\n"
        "app = create_app()\n"
        "@app.get('/broken')\n"
        "def broken():\n"
        "    settings = app.state.stores.settings\n"
        "    secret = settings.s3_secret_key.get_secret_value()\n"
        "    raise RuntimeError(f'{settings.redis_url} {secret} {secret!r}')\n"
    )
    url = settings.redis_url.replace("redis://", "redis://:hunter2%2Fslash@")
    environment = environment_of(settings.model_copy(update={"redis_url": url})) | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = (sys.executable, "-m", "uvicorn", "broken_app:app")
    with Serving(environment, tmp_path / "log", command=command) as serving:
        answer = httpx2.get(f"{serving.url}/broken", trust_env=False)
    log = (tmp_path / "log").read_text()

    assert answer.status_code == 500
    assert "RuntimeError: redis://[hidden]@127.0.0.1" in log
    for hidden in ("hunter2", SECRET_KEY):
        assert hidden not in log
        assert hidden not in answer.text
