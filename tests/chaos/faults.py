"""The faults of a chaos run, in an order and at times drawn from a seed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import psutil

from tests.chaos.evidence import Collector
from tests.chaos.stack import TRAINERS, Stack
from tests.servers import wait_until

S3_OUTAGE_S = 20.0
REDIS_DOWN_S = 1.0
VICTIM_KILLS = 3
_PLAN = {
    "kill training": 5,
    "kill worker": 3,
    "kill reaper's host": 2,
    "stop worker": 1,
    "restart Redis": 2,
    "wipe Redis": 1,
    "stop S3": 1,
}
"""The number of each fault, beside the kills of the victim. All happen in every run; the seed says when and to whom."""
_PAUSE_S = (1.5, 4.0)
_PATIENCE_S = 120.0
_VICTIM_STEPS = 150
"""The steps that an attempt at the victim must have trained before it is killed."""


@dataclass(frozen=True)
class Blow:
    """A fault that was done: when, what, and to whom."""

    at: float
    what: str
    whom: str


@dataclass
class Faults:
    """A thread that does the faults one after another."""

    stack: Stack
    collector: Collector
    random: Random
    victim: str
    """The job whose training is killed `VICTIM_KILLS` times, whatever else happens to it."""
    patience: float
    """The factor on how long to wait for what a fault needs."""
    report_fn: Callable[[Blow], None]
    blows: list[Blow] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    """The kinds of problem that the API answered with while a store was away."""

    def __post_init__(self) -> None:
        self._outages: list[threading.Event] = []
        self._patience_s = self.patience * _PATIENCE_S

    def run(self) -> None:
        """Do everything in the plan, and return when all is up again."""
        for what in self._order():
            time.sleep(self.random.uniform(*_PAUSE_S))
            self._do(what)
        for is_over in self._outages:
            assert is_over.wait(self._patience_s), "SeaweedFS did not come back"

    def _order(self) -> list[str]:
        """Return the faults shuffled, with the victim's kills among the first, before the victim is done."""
        plan = [what for what, count in _PLAN.items() for _ in range(count)]
        self.random.shuffle(plan)
        for index in range(VICTIM_KILLS):
            plan.insert(2 * index, "kill the victim")
        return plan

    def _do(self, what: str) -> None:
        whom = {
            "kill the victim": self._kill_victim,
            "kill training": self._kill_training,
            "kill worker": lambda: self._kill_worker(self.random.choice(TRAINERS)),
            "kill reaper's host": self._kill_reaper_host,
            "stop worker": self._stop_worker,
            "restart Redis": self._restart_redis,
            "wipe Redis": self._wipe_redis,
            "stop S3": self._stop_s3,
        }[what]()
        blow = Blow(time.time(), what, whom)
        self.blows.append(blow)
        self.report_fn(blow)

    def _kill_victim(self) -> str:
        def kill_in_the_midst() -> bool:
            attempts = self.collector.attempts(self.victim)
            return len(attempts[-1].steps) >= _VICTIM_STEPS and self._kill(self.victim) if attempts else False

        wait_until(kill_in_the_midst, "the victim's training", timeout_s=self._patience_s)
        return self.victim

    def _kill_training(self) -> str:
        def kill_any() -> str | None:
            running = sorted(self.stack.trainings())
            job_id = self.random.choice(running) if running else None
            return job_id if job_id and self._kill(job_id) else None

        return str(wait_until(kill_any, "a training", timeout_s=self._patience_s))

    def _kill(self, job_id: str) -> bool:
        try:
            self.stack.trainings()[job_id].kill()
        except (KeyError, psutil.NoSuchProcess):  # the process ended at this moment
            return False
        return True

    def _kill_worker(self, name: str) -> str:
        whole = self.random.random() < 0.5
        self.stack.kill_worker(name, whole=whole)
        self.stack.restart_worker(name)
        return f"{name}, {'and all its processes' if whole else 'main process'}"

    def _kill_reaper_host(self) -> str:
        return self._kill_worker(wait_until(self.stack.reaper_host, "a reaper", timeout_s=self._patience_s))

    def _stop_worker(self) -> str:
        name = self.random.choice(TRAINERS)
        worker = self.stack.workers[name]
        self.stack.killed += worker.family()
        worker.stop(self._patience_s)
        self.stack.restart_worker(name)
        return f"{name}, SIGTERM"

    def _restart_redis(self) -> str:
        self.stack.valkey.stop()
        self._ask_away("GET", "/jobs")
        time.sleep(REDIS_DOWN_S)
        self.stack.valkey.start()
        return f"killed, {REDIS_DOWN_S:g} s down"

    def _wipe_redis(self) -> str:
        self.stack.store.redis.flushall()
        return "FLUSHALL"

    def _stop_s3(self) -> str:
        """Stop S3 for a while. Other faults go on meanwhile."""
        self.stack.weed.stop()
        is_over = threading.Event()
        self._outages.append(is_over)

        def come_back() -> None:
            self._ask_away("POST", "/jobs/train", json={"preset": "digits"})
            time.sleep(S3_OUTAGE_S)
            self.stack.weed.start()
            is_over.set()
            threading.Event().wait()  # the server is tethered to the thread that started it

        threading.Thread(target=come_back, daemon=True).start()
        return f"killed, {S3_OUTAGE_S:g} s down"

    def _ask_away(self, method: str, path: str, **more: object) -> None:
        answer = self.stack.ask(method, path, **more)
        told = answer.json()["type"].rpartition(":")[2] if answer is not None and answer.status_code == 503 else None
        self.refusals[told or f"{path} answered {answer}"] += 1
