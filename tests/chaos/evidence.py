"""The evidence of a chaos run: the logs in which the attempts themselves wrote which steps they trained, and when.

Every attempt logs to {spool_dir}/jobs/{job}/{lease token}/output.log, on its own disk, whatever happens to Redis and
S3. The folder goes when the job ends; a hard link keeps the file.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

_COLLECT_EVERY_S = 0.1
Weights = Mapping[str, str]
"""The sha256 of each file of a final checkpoint."""


@dataclass
class AttemptLog:
    """The log of one attempt at a job, by one lease holder."""

    job_id: str
    token: int
    started_at: float | None = None
    """The time at which it began to train; None when it never did."""
    start_step: int = 0
    steps: list[tuple[int, float]] = field(default_factory=list)
    """(step, time at which it was done) of each step."""


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint, as its manifest describes it."""

    step: int
    token: int
    at: float


class Collector:
    """A thread that keeps the log of every attempt."""

    def __init__(self, spool_dir: Path, directory: Path) -> None:
        self._spool_dir = spool_dir
        self._directory = directory
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        directory.mkdir()

    def start(self) -> None:
        """Start collecting logs."""
        self._thread.start()

    def stop(self) -> None:
        """Stop collecting, and wait for the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_COLLECT_EVERY_S):
            for log in self._spool_dir.glob("jobs/*/*/output.log"):
                kept = self._directory / f"{log.parent.parent.name}-{log.parent.name}.log"
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    kept.hardlink_to(log)

    def attempts(self, job_id: str) -> list[AttemptLog]:
        """Return all attempts at a job so far, the first one first."""
        logs = [read_log(path) for path in self._directory.glob(f"{job_id}-*.log")]
        return sorted(logs, key=lambda attempt: attempt.token)


def read_log(path: Path) -> AttemptLog:
    """Read the log of one attempt, without a last line that a kill cut off."""
    job_id, _, token = path.stem.partition("-")
    attempt = AttemptLog(job_id, int(token))
    for line in path.read_text(errors="replace").splitlines():
        entry: Any = None
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
        if not isinstance(entry, dict):
            continue
        if entry.get("event") == "training_started":
            attempt.started_at, attempt.start_step = _time(entry["timestamp"]), int(entry["step"])
        elif entry.get("event") == "training_step":
            attempt.steps.append((int(entry["step"]), _time(entry["timestamp"])))
    return attempt


def commit_of(manifest: Mapping[str, Any]) -> Commit:
    """Read from a manifest who committed a checkpoint, and when."""
    return Commit(int(manifest["step"]), int(manifest["lease"]), _time(manifest["created_at"]))


def duplicated_steps(attempts: Sequence[AttemptLog], commits: Sequence[Commit]) -> int:
    """Count the steps of one job that two holders trained although one would have done.

    A step counts when an earlier attempt finished it after a later one had begun to train, or when an attempt trained
    it although a checkpoint at or after it was committed when that attempt began. Steps after the last committed
    checkpoint of an attempt that was killed are lost with it; the next one trains them again and they do not count.
    """
    trained = [attempt for attempt in attempts if attempt.started_at is not None]
    count = 0
    for index, attempt in enumerate(trained):
        later = [other.started_at for other in trained[index + 1 :] if other.started_at is not None]
        count += sum(at > min(later) for _, at in attempt.steps) if later else 0
        began = attempt.started_at or 0.0
        covered = max((commit.step for commit in commits if commit.at < began), default=0)
        count += sum(step <= covered for step, _ in attempt.steps)
    return count


def stale_commits(attempts: Sequence[AttemptLog], commits: Sequence[Commit]) -> int:
    """Count the checkpoints that a holder committed after a later one had begun to train, or that no known one did."""
    began = {attempt.token: attempt.started_at for attempt in attempts}
    return sum(
        commit.token not in began
        or any(at is not None and token > commit.token and commit.at > at for token, at in began.items())
        for commit in commits
    )


def gaps(attempts: Sequence[AttemptLog], commits: Sequence[Commit], total_steps: int) -> int:
    """Count the steps up to the last that no attempt trained, and attempts that began where nothing was committed."""
    done = {step for attempt in attempts for step, _ in attempt.steps}
    committed = {0, *(commit.step for commit in commits)}
    rootless = sum(a.started_at is not None and a.start_step not in committed for a in attempts)
    return len(set(range(1, total_steps + 1)) - done) + rootless


def compared_weights(found: Sequence[Weights | None], expected: Sequence[Weights | None]) -> list[bool]:
    """Return of each pair whether it is identical, without those of which either was never trained to its end."""
    pairs = zip(found, expected, strict=True)
    return [one == other for one, other in pairs if one is not None and other is not None]


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
