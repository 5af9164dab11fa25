"""The run that is observed: trainings, samples, a failed job, a worker killed with -9, and everything that may hang."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from service.client import ClientError, Job, Recovery
from service.door.keys import KeyFile, Scope
from tests.conftest import environment_of
from tests.observability.prometheus import Prometheus
from tests.servers import free_ports, wait_until
from tests.stack import UpCommand
from tests.worker.conftest import TRAINER, WorkerProcess

SMALL = {
    "schedule": {"num_levels": 6},
    "network": {"width": 8},
    "sampling": {"num_steps": 6},
    "score_matching": {"steps": 120, "batch_size": 32},
    "batch_size": 32,
    "log_every": 2,
    "num_preview_samples": 4,
}
"""Laid over the preset `digits`: a score-matching start, then recovery likelihood, in tens of seconds."""
DIVERGING = {
    "energy": "gaussian",
    "schedule": {"num_levels": 3},
    "network": {"width": 8},
    "chain": {"num_steps": 150},
    "score_matching": {
        "steps": 0,
        "form": "recovery",
        "low_noise_tilt": 0.0,
        "noise_contrast": 0.0,
        "recovery_weight": 0.0,
    },
    "calibrate": False,
    "optimizer": {"learning_rate": 1.0, "warmup_steps": 0},
    "log_every": 1,
}
"""Laid over `density-2d`: fails after three rollbacks."""
CLIENTS = 6
FIRST_STEPS = 100_000
"""More than there is time for: it is cancelled in the end."""
_PATIENCE_S = 120.0


@dataclass
class Run:
    """What was done, and when."""

    prometheus: Prometheus
    recovery: Recovery
    began_at: float = field(default_factory=time.time)
    ended_at: float = 0.0
    jobs: dict[str, str] = field(default_factory=dict)
    """ids by what they are here"""
    faults: list[tuple[str, float, float]] = field(default_factory=list)
    """what hung or was dead, from when to when"""
    fired: dict[str, set[str]] = field(default_factory=dict)
    """alerts that were seen to fire during a fault"""
    vanished_after_s: float = 0.0
    """from the kill of the worker until Prometheus no longer showed its job"""

    def wait_for(self, expr: str, what: str, timeout_s: float = _PATIENCE_S) -> None:
        """Until the expression has a result."""
        wait_until(lambda: self.prometheus.ask(expr), what, timeout_s=timeout_s, every_s=0.2)

    def see(self, *alerts: str, during: str, since: float) -> None:
        """Wait until these alerts have fired."""
        seen = self.fired.setdefault(during, set())
        give_up_at = time.monotonic() + _PATIENCE_S
        while not set(alerts) <= seen:
            assert time.monotonic() < give_up_at, f"{set(alerts) - seen} did not fire: {during}; these did: {seen}"
            time.sleep(0.3)
            seen.update(self.prometheus.fired_since(since))

    @contextlib.contextmanager
    def fault(self, what: str, *alerts: str) -> Iterator[None]:
        """The time in which something is wrong, until these alerts have fired."""
        start = time.time()
        try:
            yield
            self.see(*alerts, during=what, since=start)
        finally:
            self.faults.append((what, start, time.time()))

    @contextlib.contextmanager
    def hanging(self, process: psutil.Process, what: str, *alerts: str) -> Iterator[None]:
        """SIGSTOP within the block, until these alerts have fired: the process is there, and does nothing."""
        with contextlib.ExitStack() as stack:
            process.suspend()
            stack.callback(process.resume)
            with self.fault(what, *alerts):
                yield

    def wait_for_end(self, name: str) -> Job:
        """A job once it has ended."""

        def ended() -> Job | None:
            job = self.recovery.job(self.jobs[name])
            return job if job.finished_at else None

        found: Job = wait_until(ended, f"the end of {name}", timeout_s=2 * _PATIENCE_S, every_s=0.5)
        return found


class Clients:
    """Ask for samples, each again as soon as it was answered, or a little after it was refused, until `stop`."""

    def __init__(self, recovery: Recovery, model: str) -> None:
        self._recovery = recovery
        self._model = model
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[index]) for index in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """After the answers that are outstanding."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, index: int) -> None:
        while not self._stopped.is_set():
            try:
                self._recovery.sample_png(self._model, num_images=(1, 4, 16)[index % 3])
            except ClientError:
                time.sleep(0.3)


class Scenario:
    """Everything in order; `observed()` leaves the whole standing while its block runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"

    @contextlib.contextmanager
    def observed(self) -> Iterator[Run]:
        """The run, when it is over; stack and Prometheus are still up."""
        keys = KeyFile(self._data / "keys.json")
        admin, _ = keys.create("tests", [Scope.admin])
        reader, _ = keys.create("prometheus", [Scope.read])
        command, (port,) = UpCommand(self._data), free_ports(1)
        try:
            command.wait_until_ready().close()
            prometheus = Prometheus(self._directory / "prometheus", _targets(command, port), reader)
            with prometheus.running(), Recovery(command.url, api_key=admin) as recovery:
                run = Run(prometheus, recovery)
                second = _Second(command, port, self._directory)
                try:
                    _Acts(run, command, second).play()
                    run.ended_at = time.time()
                    yield run
                finally:
                    second.kill()
        finally:
            command.end()


class _Second:
    """A trainer beside the stack's own, so that it can be killed: `recovery up` ends with any of its processes."""

    def __init__(self, command: UpCommand, port: int, directory: Path) -> None:
        self._environment = environment_of(command.settings()) | {"RECOVERY_WORKER_METRICS_PORT": str(port)}
        self._log = directory / "second.log"
        self._process: WorkerProcess | None = None

    def start(self) -> None:
        """It is ready some seconds later."""
        self._process = WorkerProcess("second", TRAINER, self._environment, self._log)

    def kill(self) -> None:
        """kill -9 of all its processes, as when a machine dies."""
        if self._process is not None and self._process.process.poll() is None:
            for process in self._process.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.process.wait()


def _targets(command: UpCommand, second_trainer: int) -> dict[str, list[str]]:
    ports = json.loads((command.data / "ports.json").read_text())
    return {
        "service": [command.url.removeprefix("http://")],
        "trainer": [f"127.0.0.1:{ports['trainer_metrics']}", f"127.0.0.1:{second_trainer}"],
        "sampler": [f"127.0.0.1:{ports['sampler_metrics']}"],
    }


class _Acts:
    """What happens, one after another."""

    def __init__(self, run: Run, command: UpCommand, second: _Second) -> None:
        self.run = run
        self.command = command
        self.second = second

    def play(self) -> None:
        """All of it; some two minutes."""
        for act in (
            self._train,
            self._sample_while_one_diverges,
            self._kill_a_worker,
            self._hang_training,
            self._hang_sampler,
            self._hang_storage,
            self._hang_redis,
            self._hang_api,
            self._finish,
            self._hang_idle_trainer,
            self._recover,
        ):
            began_at = time.monotonic()
            act()
            print(f"{act.__name__[1:].replace('_', ' ')}: {time.monotonic() - began_at:.1f} s", flush=True)  # noqa: T201

    def _submit(self, name: str, preset: str, config: dict[str, Any], **more: Any) -> str:
        job = self.run.recovery.train(preset=preset, name=name, seed=0, config=config, **more)
        self.run.jobs[name] = job["id"]
        return str(job["id"])

    def _train(self) -> None:
        """The first on the stack's own trainer, then two on the second: one that fails, one that is killed with it."""
        job_id = self._submit("first", "digits", SMALL, steps=FIRST_STEPS, checkpoint_every=60, sample_every=1000)
        wait_until(
            lambda: self.run.recovery.job(job_id)["status"] == "running", "the first training", timeout_s=_PATIENCE_S
        )
        self.second.start()
        self._submit("diverging", "density-2d", DIVERGING, steps=2000)
        self._submit("killed", "digits", SMALL, steps=180, checkpoint_every=60, sample_every=1000)
        self.run.wait_for("recovery_job_last_checkpoint_step > 0", "a checkpoint")

    def _sample_while_one_diverges(self) -> None:
        model = self.run.recovery.job(self.run.jobs["first"])["model_id"]
        with Clients(self.run.recovery, model):
            self.run.see("RecoveryTrainingDiverging", during="a training diverges", since=self.run.began_at)
            assert self.run.wait_for_end("diverging")["status"] == "failed"
            self.run.wait_for("sum(recovery_sampler_images_total) > 60", "some samples")

    def _kill_a_worker(self) -> None:
        """The one whose job's series must then be gone, long before anybody knows that the job is lost."""
        job_id = self.run.jobs["killed"]
        shown = f'recovery_job_step{{job_id="{job_id}"}}'
        self.run.wait_for(f"{shown} > 20", "the training that is to be killed")
        assert "second" in self.run.prometheus.ask(f'recovery_job_info{{job_id="{job_id}"}}')[0][0]["worker"]
        with self.run.fault("a trainer is killed with -9"):
            self.second.kill()
            killed_at = time.monotonic()
            wait_until(lambda: not self.run.prometheus.ask(shown), "the end of the killed job's series", timeout_s=10)
            self.run.vanished_after_s = time.monotonic() - killed_at

    def _hang_training(self) -> None:
        training = self._below("worker.trainer.attempt", self.run.jobs["first"])
        with self.run.hanging(training, "a training hangs", "RecoveryTrainingStalled", "RecoveryCheckpointTooOld"):
            pass

    def _hang_sampler(self) -> None:
        """Those who ask now wait until it goes on; those who ask when it is taken for dead are refused."""
        model, what, start = self.run.recovery.job(self.run.jobs["first"])["model_id"], "the sampler hangs", time.time()
        sampler = self._below("sampler@%h")
        with Clients(self.run.recovery, model), self.run.hanging(sampler, what, "RecoveryQueueStuck/sample"):
            self.run.see("RecoveryNoLiveWorker", during=what, since=start)
            with Clients(self.run.recovery, model):
                self.run.see("RecoveryErrorRate", during=what, since=start)

    def _hang_storage(self) -> None:
        with self.run.hanging(self._below("mini", "-ip=127.0.0.1"), "storage hangs", "RecoveryS3Away"):
            pass

    def _hang_redis(self) -> None:
        with self.run.hanging(self._below("valkey-server"), "Redis hangs", "RecoveryRedisAway"):
            pass

    def _hang_api(self) -> None:
        with self.run.hanging(self._below("service.cli", "serve"), "the API hangs", "RecoveryServiceUnreachable"):
            pass

    def _finish(self) -> None:
        """The first has trained as long as it was needed; the one that was killed then goes on, and ends."""
        self.run.recovery.cancel(self.run.jobs["first"])
        assert self.run.wait_for_end("first")["status"] == "cancelled"
        assert self.run.wait_for_end("killed")["status"] == "succeeded"

    def _hang_idle_trainer(self) -> None:
        """Its pool process: the worker itself says that it is alive."""
        (pool,) = (child for child in self._below("trainer@%h").children() if "trainer" in " ".join(child.cmdline()))
        with self.run.hanging(pool, "the idle trainer hangs", "RecoveryQueueStuck/train"):
            self._submit("late", "digits", SMALL, steps=10)
        assert self.run.wait_for_end("late")["status"] == "succeeded"

    def _recover(self) -> None:
        """Until nothing is wrong any more."""
        wait_until(
            lambda: not self.run.prometheus.firing(), "the end of all alerts", timeout_s=_PATIENCE_S, every_s=0.5
        )

    def _below(self, *words: str) -> psutil.Process:
        """The process of the stack whose command line has these words; not the tether before it."""
        found = [child for child in self.command.children() if _has(child, *words) and not _has(child, "tether.py")]
        return min(found, key=lambda process: process.create_time())


def _has(process: psutil.Process, *words: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        line = " ".join(process.cmdline())
        return all(word in line for word in words)
    return False
