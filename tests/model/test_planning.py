"""Plans for people's own pictures: what is chosen from the data, the machine and the time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model.config import FULL_COVARIANCE_MAX_DIM
from model.errors import ConfigError
from model.events import Phase
from model.intake.limits import ClassCount, Summary
from model.planning import Machine, Plan, expectations, fit, overlaid, plan, timing_s
from model.presets import BUILT_IN_DATASETS
from model.schedule import make_schedule

CPU, GPU = Machine(device="cpu", num_threads=2), Machine(device="cuda:0", num_threads=8)
CLASSES = (ClassCount(name="cat", count=600), ClassCount(name="dog", count=400))
STEP_S: dict[Phase, float] = {"score_matching": 0.05, "recovery": 0.4}


def planned(shape: tuple[int, ...], machine: Machine = CPU, labels: tuple[ClassCount, ...] = ()) -> Plan:
    return plan(Summary(kind="images", count=1000, event_shape=shape, labels=labels), machine, "pets")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 16), (3, 64, 48), (4, 128, 128)])
def test_the_last_resolution_is_small_and_none_is_smaller_than_seven_pixels(shape: tuple[int, ...]) -> None:
    network = planned(shape).config.network
    last = math.ceil(max(shape) / 2 ** (len(network.multipliers) - 1))
    assert 7 <= last < 14


def test_labels_make_the_model_conditional_and_the_plan_says_so() -> None:
    with_labels, without = planned((3, 32, 32), labels=CLASSES), planned((3, 32, 32))
    assert with_labels.config.conditional
    assert not without.config.conditional
    assert "2 classes" in with_labels.reasons[0]
    assert "1,000 colour pictures of 32×32 pixels" in without.reasons[0]


def test_a_gpu_gets_a_wider_network_and_larger_batches_than_a_processor() -> None:
    on_gpu, on_cpu = planned((3, 32, 32), GPU).config, planned((3, 32, 32)).config
    assert on_gpu.network.width > on_cpu.network.width
    assert on_gpu.pairs_per_step > on_cpu.pairs_per_step
    assert "CPU" in " ".join(planned((3, 32, 32)).reasons)


def test_colour_pictures_are_mirrored_unless_they_have_classes_and_few_grey_ones_moved() -> None:
    assert planned((3, 32, 32)).config.horizontal_flips
    assert not planned((3, 32, 32), labels=CLASSES).config.horizontal_flips
    assert not planned((1, 28, 28)).config.horizontal_flips
    assert planned((1, 28, 28)).config.affine_jitter > 0
    assert planned((3, 32, 32)).config.affine_jitter == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 64)])
def test_sampling_starts_where_the_base_knows_the_covariance_or_brightness_is_lost_in_noise(
    shape: tuple[int, ...],
) -> None:
    config = planned(shape).config.schedule
    schedule = make_schedule(config)
    top = config.num_levels - 1
    known = math.prod(shape) <= FULL_COVARIANCE_MAX_DIM
    assert known or float(schedule.alpha_bar[top]) ** 2 * math.prod(shape) < 0.33
    assert float(schedule.alpha_bar[top]) ** 2 < 0.02
    assert 0.6 < (config.log_snr_max - config.log_snr_min) / top <= 0.75


def test_vectors_are_refused_with_the_preset_that_takes_them() -> None:
    with pytest.raises(ConfigError, match=r"two_moons holds vectors; use 'density-2d'"):
        plan(BUILT_IN_DATASETS["two_moons"], CPU, "two_moons")


@pytest.mark.parametrize("seconds", [300.0, 900.0, 36_000.0])
def test_the_steps_fill_the_time_and_the_phases_their_shares(seconds: float) -> None:
    config = fit(planned((1, 28, 28)).config, STEP_S, seconds)
    matching = config.score_matching.steps
    spent = {"score_matching": matching * 0.05, "recovery": (config.steps - matching) * 0.4}
    assert 0.9 * seconds < sum(spent.values()) < seconds
    assert spent["recovery"] == pytest.approx(0.15 * sum(spent.values()), rel=0.1)
    assert config.sample_every == config.checkpoint_every == config.steps // 10


def test_a_short_training_is_score_matching_alone_and_a_share_can_be_asked_for() -> None:
    config = planned((1, 28, 28)).config
    short = fit(config, STEP_S, 60)
    assert short.steps == short.score_matching.steps == int(0.97 * 60 / 0.05)
    asked = fit(config, STEP_S, 60, recovery_share=0.5)
    assert asked.steps - asked.score_matching.steps == int(0.97 * 30 / 0.4)


def test_weights_are_averaged_over_few_steps_of_a_short_training_and_more_of_a_long_one() -> None:
    short, long = (fit(planned((1, 28, 28)).config, STEP_S, seconds) for seconds in (60, 3600))
    memory = [1 / (1 - one.optimizer.ema_decay) for one in (short, long)]
    assert memory[0] < 60 / 0.05 / 10
    assert memory[1] > 10 * memory[0]


def test_a_time_that_is_over_before_the_first_step_gives_one_step() -> None:
    config = fit(planned((1, 28, 28)).config, STEP_S, 0.01)
    assert (config.steps, config.score_matching.steps) == (1, 1)


def test_steps_are_timed_for_a_small_share_of_the_time_and_never_long() -> None:
    assert [timing_s(minutes) for minutes in (1, 15, 10_080)] == pytest.approx([1.8, 27.0, 60.0])


def test_a_short_training_shows_few_previews_since_each_takes_the_time_of_many_steps() -> None:
    config = fit(planned((3, 16, 16)).config, STEP_S, 10)
    assert config.steps // config.sample_every == 2


def test_the_plan_does_not_count_steps_that_were_asked_for_as_the_most_there_is_time_for() -> None:
    config = overlaid(fit(planned((1, 28, 28)).config, STEP_S, 900), {"steps": 60})
    assert "58 and 2 steps take 0.062 of the 15 min" in expectations(config, STEP_S, 15)[0]


def test_what_a_request_asks_for_stays_and_mistakes_in_it_are_named() -> None:
    config = planned((1, 28, 28)).config
    changed = overlaid(config, {"network": {"width": 24}, "seed": 7})
    assert changed == replace(config, network=replace(config.network, width=24), seed=7)
    half = overlaid(config, {"steps": config.steps // 2})
    assert half.score_matching.steps == config.score_matching.steps // 2
    with pytest.raises(ConfigError, match=r"unknown field network\.breadth"):
        overlaid(config, {"network": {"breadth": 24}})


def test_the_plan_says_what_a_step_costs_and_what_short_trainings_give() -> None:
    config = fit(planned((1, 28, 28)).config, STEP_S, 60)
    costs, quality = expectations(config, STEP_S, 1)
    assert "50 ms of score matching and 400 ms of recovery likelihood" in costs
    assert (
        f"{config.score_matching.steps:,} and {config.steps - config.score_matching.steps:,} steps take 0.97 of"
        in costs
    )
    assert "More minutes help" in quality
    assert "could be read" in expectations(fit(config, STEP_S, 900), STEP_S, 15)[1]
