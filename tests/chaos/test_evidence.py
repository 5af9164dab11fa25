"""Tests of what counts as trained twice in the evidence of a chaos run, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.evidence import (
    AttemptLog,
    Commit,
    compared_weights,
    duplicated_steps,
    gaps,
    read_log,
    stale_commits,
)

JOB = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"


def attempt(token: int, start_step: int, last_step: int, *, at: float) -> AttemptLog:
    """Make the log of an attempt that trains one step a second from the time `at` on."""
    steps = [(step, at + step - start_step) for step in range(start_step + 1, last_step + 1)]
    return AttemptLog(JOB, token, at, start_step, steps)


def test_steps_lost_with_a_killed_attempt_are_trained_again_and_do_not_count() -> None:
    attempts = [attempt(1, 0, 17, at=0), attempt(2, 10, 30, at=20)]
    commits = [Commit(10, 1, 10.5), Commit(20, 2, 30.5), Commit(30, 2, 40.5)]

    assert duplicated_steps(attempts, commits) == stale_commits(attempts, commits) == gaps(attempts, commits, 30) == 0


def test_steps_that_a_lost_holder_goes_on_with_count() -> None:
    attempts = [attempt(1, 0, 17, at=0), attempt(2, 10, 30, at=15)]

    assert duplicated_steps(attempts, [Commit(10, 1, 10.5)]) == 2


def test_steps_before_a_checkpoint_that_was_there_count() -> None:
    attempts = [attempt(1, 0, 12, at=0), attempt(2, 0, 30, at=20)]

    assert duplicated_steps(attempts, [Commit(10, 1, 10.5)]) == 10


def test_a_checkpoint_of_a_lost_lease_or_of_nobody_is_stale() -> None:
    attempts = [attempt(1, 0, 12, at=0), attempt(2, 10, 30, at=20)]

    assert stale_commits(attempts, [Commit(10, 1, 10.5), Commit(20, 1, 21.0), Commit(30, 7, 50.0)]) == 2


@pytest.mark.parametrize(("start_step", "missing"), [(10, 0), (12, 1), (15, 4)])
def test_steps_that_nobody_trained_and_beginnings_out_of_nowhere_are_gaps(start_step: int, missing: int) -> None:
    attempts = [attempt(1, 0, 12, at=0), attempt(2, start_step, 30, at=20)]

    assert gaps(attempts, [Commit(10, 1, 10.5)], 30) == missing


def test_weights_of_a_training_that_did_not_end_are_not_compared_rather_than_other_ones() -> None:
    one, other = {"weights": "1"}, {"weights": "2"}

    assert compared_weights([one, None, one, other], [one, one, None, one]) == [True, False]


def test_a_log_that_a_kill_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    lines = [
        "Traceback or other text",
        '{"event": "training_started", "step": 10, "timestamp": "2026-11-24T00:00:00Z"}',
        '{"event": "training_step", "step": 11, "timestamp": "2026-11-24T00:00:01.5Z"}',
        '{"event": "training_step", "st',
    ]
    path = tmp_path / f"{JOB}-17.log"
    path.write_text("\n".join(lines))
    found = read_log(path)

    assert (found.job_id, found.token, found.start_step) == (JOB, 17, 10)
    assert found.started_at is not None
    assert [(step, at - found.started_at) for step, at in found.steps] == [(11, 1.5)]
