"""The verdict on a training: which acceptance rates are told of, when, and with which remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from model.config import ChainConfig, ScheduleConfig, ScoreMatchingConfig, TrainConfig
from model.events import HealthEvent, Phase, StepEvent
from model.health import Health

FIXED = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=5),
    chain=ChainConfig(kernel="mala", target_acceptance=None),
    steps=400,
)
ADAPTED = replace(FIXED, chain=ChainConfig(kernel="mala"))
GOOD = [0.7, 0.6, 0.5, 0.8, 0.9]
LOW = [0.7, 0.02, 0.08, 0.6, 0.3]
HIGH = [0.7, 0.7, 0.7, 0.7, 0.99]


def report(step: int, rates: Sequence[float | None], phase: Phase = "recovery") -> StepEvent:
    nothing: list[float | None] = [None] * len(rates)
    return StepEvent(
        step=step,
        total_steps=400,
        phase=phase,
        loss=0.0,
        learning_rate=1e-4,
        gradient_norm=1.0,
        steps_per_second=10.0,
        positive_energy=nothing,
        negative_energy=nothing,
        displacement=nothing,
        acceptance_rate=list(rates),
    )


def told(
    config: TrainConfig, rates: Sequence[Sequence[float | None]], *, every: int = 20, start: int = 0
) -> tuple[list[HealthEvent], HealthEvent | None]:
    """What is told during a training whose reports have those rates in turn, and the verdict at its end."""
    health = Health(config, start)
    found = [health.add(report(start + every * (n + 1), one)) for n, one in enumerate(rates)]
    return [one for one in found if one is not None], health.verdict()


def test_a_healthy_training_is_told_of_at_its_end_alone() -> None:
    during, verdict = told(FIXED, [GOOD] * 20)
    assert during == []
    assert verdict == HealthEvent(
        step=400, level="green", reason="at every level chains accepted 0.50 to 0.90 of their moves over 100 steps"
    )


@pytest.mark.parametrize("config", [FIXED, ADAPTED], ids=["fixed", "adapted"])
def test_rates_too_low_are_told_once_and_at_the_end_with_levels_and_remedy(config: TrainConfig) -> None:
    during, verdict = told(config, [LOW] * 20)
    assert [event.step for event in during] == [100 if config is FIXED else 200]
    assert verdict is not None
    assert (verdict.step, verdict.level) == (400, "red")
    assert "accepted 0.02 to 0.30 (levels 1–2, 4) of their moves over 100 steps; expected 0.4 to 0.95" in verdict.reason
    assert verdict.remedy is not None
    assert ("target_acceptance" in verdict.remedy, "smaller chain.step_size" in verdict.remedy) == (
        config is FIXED,
        config is ADAPTED,
    )


@pytest.mark.parametrize(
    ("config", "remedy"), [(FIXED, "target_acceptance to 'auto'"), (ADAPTED, "larger chain.step_size")]
)
def test_rates_too_high_are_amber(config: TrainConfig, remedy: str) -> None:
    (first,), verdict = told(config, [HIGH] * 20)
    assert first.level == "amber"
    assert "accepted 0.99 (level 4) of their moves" in first.reason
    assert first.remedy is not None
    assert remedy in first.remedy
    assert verdict == replace(first, step=400)


def test_what_becomes_worse_is_told_again_and_what_becomes_better_at_the_end() -> None:
    during, verdict = told(FIXED, [*[HIGH] * 5, *[LOW] * 5, *[HIGH] * 5, *[GOOD] * 5])
    assert [(event.step, event.level) for event in during] == [(100, "amber"), (200, "red")]
    assert verdict is not None
    assert verdict.level == "green"


def test_steps_that_are_adapted_have_a_hundred_steps_to_settle() -> None:
    during, verdict = told(ADAPTED, [*[HIGH] * 5, *[GOOD] * 15])
    assert during == []
    assert verdict is not None
    assert verdict.level == "green"
    _, short = told(ADAPTED, [HIGH] * 5)
    assert short is not None
    assert short.level == "amber"


def test_a_moment_is_no_finding() -> None:
    during, verdict = told(FIXED, [*[GOOD] * 9, LOW, *[GOOD] * 9, LOW])
    assert during == []
    assert verdict is not None
    assert verdict.level == "green"


def test_the_later_the_longer_a_finding_takes() -> None:
    during, _ = told(FIXED, [*[GOOD] * 40, *[LOW] * 40], every=100)
    assert 4500 <= during[0].step <= 6000


def test_fewer_than_a_hundred_steps_are_not_judged() -> None:
    assert told(FIXED, [LOW] * 9, every=11) == ([], None)


def test_the_end_is_judged_with_the_stretch_before_it_while_it_is_short() -> None:
    _, verdict = told(FIXED, [*[GOOD] * 5, LOW])
    assert verdict is not None
    assert verdict.level == "green"
    assert "over 120 steps" in verdict.reason


def test_a_resumed_training_is_judged_by_its_own_steps() -> None:
    assert told(FIXED, [LOW] * 4, start=320) == ([], None)
    _, verdict = told(FIXED, [LOW] * 5, start=300)
    assert verdict is not None
    assert "over 100 steps" in verdict.reason


def test_steps_of_score_matching_do_not_count() -> None:
    config = replace(FIXED, score_matching=ScoreMatchingConfig(steps=310))
    health = Health(config, 0)
    nothing: list[None] = [None] * 5
    reports = [report(step, LOW if step > 310 else nothing, "recovery" if step > 310 else "score_matching")
               for step in range(20, 401, 20)]  # fmt: skip
    assert [health.add(one) for one in reports] == [None] * 20
    assert health.verdict() is None
    assert health.add(report(410, LOW)) is not None


@pytest.mark.parametrize("chain", [ChainConfig(), ChainConfig(kernel="mala", num_steps=0)], ids=["langevin", "K = 0"])
def test_chains_without_a_metropolis_test_say_nothing(chain: ChainConfig) -> None:
    assert told(replace(FIXED, chain=chain), [[1.0] * 5] * 20) == ([], None)


def test_levels_that_no_pair_fell_on_say_nothing() -> None:
    _, verdict = told(FIXED, [[None, 0.5, None, 0.6, None], [None, 0.7, None, None, None]] * 10, every=25)
    assert verdict is not None
    assert verdict.reason == "at every level chains accepted 0.60 of their moves over 100 steps"


@pytest.mark.parametrize(("target", "rate"), [(0.3, 0.25), (0.97, 0.99)])
def test_a_target_that_a_person_chose_is_no_finding_where_it_is_reached(target: float, rate: float) -> None:
    config = replace(FIXED, chain=ChainConfig(kernel="hmc", target_acceptance=target))
    _, verdict = told(config, [[rate] * 5] * 20)
    assert verdict is not None
    assert verdict.level == "green"
