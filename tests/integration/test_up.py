"""`recovery up` over its life: stopped in order, killed, started again on the same folder."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from service.client import RefusedError
from service.stack import tether
from tests.stack import TINY, UpCommand, follow_to_a_step, survivors

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]


def test_a_second_up_finds_everything_and_nothing_outlives_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds a limit in the environment too, and does not take another stack's address from there."""
    first = UpCommand(tmp_path / "data")
    with first.wait_until_ready() as client:
        finished = client.train(preset="digits", config=TINY, steps=10, seed=1)
        for _ in client.events(finished["id"]):
            pass
        drawn = client.sample(finished["model_id"], 2, seed=3)
        going_on = client.train(preset="digits", config=TINY, steps=1_000_000, checkpoint_every=1_000_000)
        at = follow_to_a_step(client, going_on["id"])
    below = first.children()

    assert first.end(signal.SIGTERM) == 0, first.output
    assert survivors(below) == []

    monkeypatch.setenv("RECOVERY_MAX_CHAIN_STEPS", "100")
    monkeypatch.setenv("RECOVERY_REDIS_URL", "redis://nobody.invalid:6379/0")
    second = UpCommand(tmp_path / "data")
    with second.wait_until_ready() as client:
        jobs = {job["id"]: job for job in client.jobs()}
        assert jobs[finished["id"]]["status"] == "succeeded"
        # Given back when the first stack stopped, from the checkpoint it took then.
        assert jobs[going_on["id"]]["last_checkpoint"] > 0
        assert jobs[going_on["id"]]["attempt"] == 1
        assert finished["model_id"] in [model["id"] for model in client.models()]
        again = client.sample(finished["model_id"], 2, seed=3)
        assert abs(again.x - drawn.x).max() < 1e-4
        with pytest.raises(RefusedError, match="100"):
            client.sample(finished["model_id"], 64, seed=3)
        follow_to_a_step(client, going_on["id"], after=at)
        below = second.children()
        assert any("worker.trainer.attempt" in " ".join(process.cmdline()) for process in below)

    second.process.send_signal(signal.SIGKILL)
    second.process.wait()
    assert survivors(below) == []
    second._reader.join()


def test_a_child_that_dies_ends_the_stack_with_its_name_and_log(tmp_path: Path) -> None:
    command = UpCommand(tmp_path / "data")
    command.wait_until_ready().close()
    below = command.children()
    next(process for process in below if _is_sampler(process.cmdline())).kill()

    assert command.process.wait(90) == 1
    assert survivors(below) == []
    command._reader.join()
    assert "recovery: sampler was killed by signal 9" in command.output


def _is_sampler(command_line: list[str]) -> bool:
    """The worker itself, not its tether."""
    return "sampler@%h" in command_line and tether.__file__ not in command_line
