"""A worker's sign of life, and the command that a container engine runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.servers import free_ports, wait_until
from tests.worker.conftest import ROOT, TRAINER, StartWorker
from worker.connect import redis_client
from worker.heartbeat import FILE_VARIABLE, beat, complaint, main
from worker.observe.presence import Presence
from worker.settings import Settings


def _check(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.heartbeat", *arguments]
    environment = os.environ | {FILE_VARIABLE: str(file)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_a_file_is_fresh_until_it_is_too_old(tmp_path: Path) -> None:
    file = tmp_path / "run" / "heartbeat"
    missing = complaint(file, 60)
    assert missing is not None
    assert "has not become ready" in missing
    beat(file)
    assert complaint(file, 60) is None
    os.utime(file, (time.time() - 61, time.time() - 61))
    old = complaint(file, 60)
    assert old is not None
    assert "touched 61 s ago, more than 60 s" in old
    beat(file)
    assert complaint(file, 60) is None


def test_the_command_says_which_variable_it_misses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        main([])
    assert f"set {FILE_VARIABLE}" in capsys.readouterr().err


def test_the_variable_is_the_workers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "beat"))
    assert Settings().heartbeat_file == tmp_path / "beat"


def test_a_worker_beats_without_redis_and_a_frozen_one_does_not(
    environment: dict[str, str], start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "heartbeat"
    assert _check(file).returncode == 1
    environment[FILE_VARIABLE] = str(file)
    worker = start_worker("single", TRAINER)
    assert _check(file).returncode == 0
    for process in worker.family():
        process.suspend()
    try:
        wait_until(lambda: complaint(file, 2.0), "an old heartbeat")
        frozen = _check(file, "--max-age", "2")
    finally:
        for process in worker.family():
            process.resume()
    assert (frozen.returncode, frozen.stderr.count("the worker hangs")) == (1, 1)
    wait_until(lambda: complaint(file, 2.0) is None, "a new heartbeat")


def test_the_beat_goes_on_while_redis_is_away(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    redis: Redis = redis_client(Settings(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0"))
    presence = Presence(redis, ["train"], "lonely", every_s=0.1, heartbeat_file=file)
    presence.start()
    try:
        first = file.stat().st_mtime_ns
        wait_until(lambda: file.stat().st_mtime_ns > first, "the next beat")
        assert complaint(file, 30) is None
        with pytest.raises(RedisConnectionError):
            redis.ping()
    finally:
        presence.stop()
        redis.close()


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").touch()
    redis = redis_client(settings)
    presence = Presence(redis, ["train"], "full", every_s=5, heartbeat_file=tmp_path / "file" / "heartbeat")
    presence.start()
    try:
        assert redis.exists("worker:train:full")
    finally:
        presence.stop()
        redis.close()
