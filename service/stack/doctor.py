"""The checks of `recovery doctor`: whether everything that trainings and samples need is there, and what to do if not.

They look at this machine, at the service as it answers over HTTP, and at the stores themselves if their addresses are
known here. They change nothing, except that one object is written to the bucket and deleted again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import util
from pathlib import Path
from typing import Any, Literal

import httpx2
from pydantic import BaseModel

from service.client import ClientError, Recovery, RefusedError
from service.client.address import config_file, find_place
from service.settings import SettingsError, read_settings
from service.stack.child import LocalStackError
from service.stack.folder import read_environment
from worker.observe.version import version
from worker.settings import Settings

State = Literal["ok", "note", "wrong"]

OLDEST_REDIS = (6, 2)
MOST_SKEW_S = 5.0
"""The largest difference between clocks, in seconds: leases live for 30 s by default, and S3 itself refuses requests
that are 15 minutes off."""
LEAST_FREE_BYTES = 2 * 2**30
_STORE_VARIABLES = ("RECOVERY_REDIS_URL", "RECOVERY_S3_ENDPOINT_URL", "RECOVERY_S3_BUCKET")
_TORCH_TIMEOUT_S = 60
_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "built_for": torch.version.cuda, "gpus": names}))
"""


class Finding(BaseModel):
    """The result of one check, and what to do about it."""

    area: Literal["machine", "service", "stores"]
    what: str
    state: State
    """`note` is worth knowing, but stops nothing from working."""
    detail: str
    remedy: str | None = None

    @classmethod
    def ok(cls, area: Any, what: str, detail: str) -> Finding:
        """Make a finding that all is well."""
        return cls(area=area, what=what, state="ok", detail=detail)

    @classmethod
    def note(cls, area: Any, what: str, detail: str, remedy: str | None = None) -> Finding:
        """Make a finding that is worth knowing, but stops nothing from working."""
        return cls(area=area, what=what, state="note", detail=detail, remedy=remedy)

    @classmethod
    def wrong(cls, area: Any, what: str, detail: str, remedy: str) -> Finding:
        """Make a finding of something that has to be put right."""
        return cls(area=area, what=what, state="wrong", detail=detail, remedy=remedy)


def examine(url: str | None, api_key: str | None, data: Path) -> Iterator[Finding]:
    """Yield every finding, in the order in which problems are to be put right."""
    yield from examine_machine(data)
    yield from examine_service(url, api_key)
    yield from examine_stores(data)


def examine_machine(data: Path) -> Iterator[Finding]:
    """Yield findings about Python, torch, GPUs, the embedded servers, the disk and the user's configuration file."""
    yield Finding.ok("machine", "program", f"recovery-likelihood {version()}, Python {platform.python_version()}")
    yield from _torch_findings()
    yield _embedded_servers()
    yield _disk(data)
    yield from configuration_findings()


def configuration_findings() -> Iterator[Finding]:
    """Yield a finding if other users can read the key in the user's configuration file."""
    path = config_file()
    if path.exists() and path.stat().st_mode & 0o077 and "api_key" in path.read_text(errors="replace"):
        yield Finding.wrong(
            "machine", "configuration file", f"{path} holds a key that others can read", f"run: chmod 600 {path}"
        )


def _torch_findings() -> Iterator[Finding]:
    """Import torch in a process of its own, because it may fail in ways that would end this one too."""
    remedy = "pip install 'recovery-likelihood[worker]'"
    if util.find_spec("torch") is None:
        yield Finding.note("machine", "torch", "not installed; only trainers and samplers need it", remedy)
        return
    try:
        told = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, check=True, timeout=_TORCH_TIMEOUT_S
        )
        found = json.loads(told.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        yield Finding.wrong(
            "machine", "torch", f"cannot be imported ({type(error).__name__})", f"reinstall it: {remedy}"
        )
        return
    yield Finding.ok("machine", "torch", found["version"])
    yield _gpu(found)


def _gpu(found: dict[str, Any]) -> Finding:
    has_driver = shutil.which("nvidia-smi") is not None
    if found["gpus"]:
        return Finding.ok("machine", "GPU", ", ".join(found["gpus"]))
    if has_driver and found["built_for"] is None:
        return Finding.wrong(
            "machine",
            "GPU",
            "there is an NVIDIA driver, but this torch is built for the CPU",
            "install a CUDA build of torch of the same version; pytorch.org/get-started names the command",
        )
    if has_driver:
        return Finding.wrong(
            "machine",
            "GPU",
            f"torch (CUDA {found['built_for']}) finds no device",
            "run nvidia-smi, and update the driver if it is older than that CUDA",
        )
    return Finding.note(
        "machine", "GPU", "none; small models train on the CPU", "presets of the paper's size need an NVIDIA GPU"
    )


def _embedded_servers() -> Finding:
    from service.stack.local import seaweedfs_binary, valkey_binary

    try:
        valkey_binary()
        seaweedfs_binary()
    except LocalStackError as error:
        told = "not installed; `recovery up` needs them, a cluster does not"
        return Finding.note("machine", "embedded servers", told, str(error))
    return Finding.ok("machine", "embedded servers", "installed")


def _disk(data: Path) -> Finding:
    folder = next(path for path in (data.resolve(), *data.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    told = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < LEAST_FREE_BYTES:
        return Finding.wrong("machine", "disk", told, "make room, or give `recovery up` another --data folder")
    return Finding.ok("machine", "disk", told)


def examine_service(url: str | None, api_key: str | None) -> Iterator[Finding]:
    """Yield what the service says of itself over HTTP, and whether clocks and versions agree."""
    try:
        place = find_place(url, api_key)
        answer = httpx2.get(f"{place.url}/healthz", timeout=10, trust_env=False)
    except ClientError as error:
        yield Finding.wrong("service", "address", str(error), "correct that file, or give --url")
        return
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        why = f"nothing answers at {place.url}, which is {place.source} ({type(error).__name__})"
        yield Finding.wrong("service", "address", why, "start it with `recovery up`, or give --url")
        return
    if answer.status_code != 200:
        yield Finding.wrong(
            "service", "address", f"{place.url}/healthz answers {answer.status_code}", "is that a recovery service?"
        )
        return
    yield Finding.ok("service", "address", f"{place.url} ({place.source}) answers")
    yield _clock("service", "its clock", _date_of(answer))
    with Recovery(url, api_key=api_key) as client:
        yield from _service_findings(client)


def _service_findings(client: Recovery) -> Iterator[Finding]:
    try:
        yield _same_version("the service", client.server_version(), "upgrade this client or the service")
        yield from _readiness(client)
        workers = client.workers()
    except RefusedError as error:
        remedy = "give a key with the scope read: --api-key, RECOVERY_API_KEY or the configuration file"
        yield Finding.wrong("service", "key", str(error), remedy if error.status in (401, 403) else "see above")
        return
    except ClientError as error:
        yield Finding.wrong("service", "connection", str(error), "look at the service's log")
        return
    for worker in workers:
        yield _worker(worker)


def _readiness(client: Recovery) -> Iterator[Finding]:
    remedies = {
        "redis": "start Redis, or correct RECOVERY_REDIS_URL of the service",
        "s3": "start the storage, or correct the RECOVERY_S3_ variables of the service",
        "trainer": "start one: celery -A worker.app worker -Q train -c 1",
        "sampler": "start one: celery -A worker.app worker -Q sample --pool threads -c 256",
    }
    for check in client.checks():
        if check["ok"]:
            yield Finding.ok("service", check["name"], check["detail"])
        else:
            remedy = remedies.get(check["name"], "look at the service's log")
            yield Finding.wrong("service", check["name"], check["detail"], remedy)


def _worker(worker: dict[str, Any]) -> Finding:
    what = f"worker {worker['name']}"
    ahead_s, gpus = worker["clock_ahead_s"], worker["gpus"]
    if worker["version"] is None:
        return Finding.note("service", what, "says nothing of itself: it is of an older version", "upgrade it")
    if worker["version"] != version():
        return _same_version(what, worker["version"], "run the same version everywhere")
    if ahead_s is not None and abs(ahead_s) > MOST_SKEW_S:
        told = f"its clock differs from Redis's by {ahead_s:+.1f} s"
        return Finding.wrong("service", what, told, "let NTP set the clocks of all machines")
    return Finding.ok("service", what, f"version {worker['version']}, {', '.join(gpus) or 'no GPU'}")


def _same_version(what: str, found: str | None, remedy: str) -> Finding:
    if found == version():
        return Finding.ok("service", f"version of {what}", str(found))
    return Finding.wrong("service", f"version of {what}", f"{found}, here {version()}", remedy)


def _clock(area: Literal["service", "stores"], what: str, found: datetime | None) -> Finding:
    """Compare a clock with this machine's. HTTP dates have whole seconds, for which the limit leaves room."""
    if found is None:
        return Finding.note(area, what, "it does not say the time")
    ahead_s = (found - datetime.now(UTC)).total_seconds()
    if abs(ahead_s) > MOST_SKEW_S:
        told = f"differs from this machine's by {ahead_s:+.0f} s"
        return Finding.wrong(area, what, told, "let NTP set the clocks of all machines")
    return Finding.ok(area, what, "agrees with this machine's")


def _date_of(answer: httpx2.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, ValueError):
        return None


def examine_stores(data: Path) -> Iterator[Finding]:
    """Yield findings about Redis and the bucket themselves.

    The environment names them, or else the stack that runs on the folder `data`.
    """
    try:
        settings = _settings(data)
    except LocalStackError:
        told = "not looked at: this machine does not know their addresses; what the service says of them is above"
        yield Finding.note("stores", "Redis and S3", told, f"set {_STORE_VARIABLES[0]} and the RECOVERY_S3_ variables")
        return
    except SettingsError as error:
        yield Finding.wrong("stores", "settings", str(error), "correct it")
        return
    yield from _redis_findings(settings)
    yield from _storage_findings(settings)


def _settings(data: Path) -> Settings:
    """Return settings that name the stores.

    Raises LocalStackError when no store is known, and SettingsError for settings that are wrong.
    """
    of_environment = any(name in os.environ for name in _STORE_VARIABLES)
    return read_settings(os.environ if of_environment else read_environment(data))


def _redis_findings(settings: Settings) -> Iterator[Finding]:
    from redis.exceptions import RedisError

    from worker.connect import redis_client

    client = redis_client(settings)
    try:
        info: dict[str, Any] = client.info()
        seconds, microseconds = client.time()
    except RedisError as error:
        yield Finding.wrong(
            "stores", "Redis", f"does not answer ({type(error).__name__})", "start it, or correct RECOVERY_REDIS_URL"
        )
        return
    finally:
        client.close()
    yield _redis_version(info)
    yield _clock("stores", "Redis's clock", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC))
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        yield Finding.ok("stores", "Redis's memory", "nothing is evicted")
    else:
        yield Finding.wrong(
            "stores", "Redis's memory", f"maxmemory-policy is {policy}: jobs can be lost", "set it to noeviction"
        )
    if not info.get("aof_enabled"):
        yield Finding.note(
            "stores", "Redis's disk", "no append-only file: a restart loses the queue", "set appendonly yes"
        )


def _redis_version(info: dict[str, Any]) -> Finding:
    compatible = str(info.get("redis_version", "0"))
    told = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {compatible}"
    if tuple(map(int, compatible.split(".")[:2])) < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        return Finding.wrong("stores", "Redis", f"{told} is too old", f"upgrade to {oldest} or later, or to Valkey")
    return Finding.ok("stores", "Redis", told)


def _storage_findings(settings: Settings) -> Iterator[Finding]:
    from worker.ids import new_id
    from worker.storage.artifacts import ArtifactError, Artifacts

    artifacts = Artifacts.connect(settings)
    key = f"doctor/{new_id()}"
    what = f"bucket {artifacts.bucket}"
    try:
        began_at = time.perf_counter()
        artifacts.ping()
        is_first = artifacts.put_bytes_if_absent(key, b"doctor")
        is_second = artifacts.put_bytes_if_absent(key, b"doctor")
        content = artifacts.get_bytes(key)
        artifacts.delete(key)
        took_ms = 1000 * (time.perf_counter() - began_at)
    except ArtifactError as error:
        yield Finding.wrong(
            "stores",
            what,
            str(error.args[0]),
            "start the storage, make the bucket, or correct the RECOVERY_S3_ variables",
        )
        return
    if not is_first or is_second or content != b"doctor":
        yield Finding.wrong(
            "stores",
            what,
            "it overwrites objects in spite of If-None-Match: two trainers could commit one checkpoint",
            "use a store with conditional writes: AWS S3, SeaweedFS 4 or another that has them",
        )
        return
    yield Finding.ok("stores", what, f"written, read and deleted in {took_ms:.0f} ms; conditional writes hold")
