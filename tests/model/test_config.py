"""Configurations: checked, written as JSON, named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from model.config import ChainConfig, TrainConfig, from_dict, to_dict
from model.errors import ConfigError
from model.presets import BUILT_IN_DATASETS, PRESET_SUMMARIES, PRESETS, override, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert PRESET_SUMMARIES[name]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "steps is 0; expected a number from 1"),
        ({"steps": True}, "steps is True; expected an integer"),
        ({"steps": 1.5}, "steps is 1.5; expected an integer"),
        ({"horizontal_flips": "yes"}, "true or false"),
        ({"network": {"multipliers": [1, "2"]}}, "multipliers is '2'"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"batch_size": "large"}, "batch_size is 'large'; expected an integer from 1 to 65536, or 'auto'"),
        ({"batch_size": 0}, "batch_size is 0; expected a number from 1 to 65536"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected a number from 0"),
        ({"chain": {"step_size": 10**400}}, r"chain\.step_size is inf; expected a number from 1e-06 to 10"),
        ({"network": {"multipliers": [1, 17]}}, r"network\.multipliers is 17; expected a number from 1 to 16"),
        ({"chain": {"num_steps": -1}}, r"chain\.num_steps is -1"),
        ({"chain": {"step_size": float("nan")}}, r"chain\.step_size is nan"),
        ({"chain": 3}, "chain is 3; expected an object"),
        ({"chain": {"stepsize": 1}}, r"unknown field chain\.stepsize; expected one of kernel"),
        ({"schedule": {"kind": "cosine"}}, "expected one of published"),
        ({"network": {"multipliers": []}}, "0 entries"),
        ({"optimizer": {"ema_decay": 1.0}}, "ema_decay"),
        ({"image_size": [32]}, "1 numbers; expected two"),
        ({"image_size": [32, 3]}, "image_size is 3; expected a number from 4 to 2048"),
        ({"image_size": 32}, "image_size is 32; expected a list"),
        ({"energy_penalty": -0.1}, "energy_penalty is -0.1"),
        ({"energy_penalty": 0.1, "energy": "gaussian"}, "step_size"),
        ({"chain": {"target_acceptance": 0.7}}, "mala"),
        ({"chain": {"target_acceptance": "high"}}, "is 'high'; expected a number from 0.1 to 0.99, or 'auto'"),
        ({"chain": {"target_acceptance": 1.0}}, "target_acceptance is 1.0; expected a number from 0.1 to 0.99"),
        ({"score_matching": {"steps": 200_000}}, "at most steps"),
        ({"schedule": {"kind": "log_snr", "log_snr_max": -8}}, "log_snr_min"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(TrainConfig, values)


def test_every_wrong_field_is_found_and_named_by_its_path() -> None:
    with pytest.raises(ConfigError) as found:
        from_dict(TrainConfig, {"steps": 0, "chain": {"num_steps": -1, "start": 3}, "dept": 1})

    assert [one.field for one in found.value.problems] == ["dept", "steps", "chain.num_steps", "chain.start"]


@pytest.mark.parametrize("values", [{"num_steps": -1}, {"kernel": "nuts"}, {"step_size": float("nan")}])
def test_a_range_holds_whoever_makes_the_configuration(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"chain\.{next(iter(values))} is .*; expected"):
        ChainConfig(**values)
    with pytest.raises(ConfigError, match="expected"):
        replace(ChainConfig(), **values)


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ({"kernel": "mala"}, 0.7),
        ({"kernel": "hmc"}, 0.7),
        ({"kernel": "mala", "target_acceptance": 0.6}, 0.6),
        ({"kernel": "mala", "target_acceptance": None}, None),
        ({"kernel": "mala", "num_steps": 0}, None),
        ({"kernel": "langevin"}, None),
    ],
)
def test_steps_are_adapted_where_the_kernel_is_adjusted_unless_the_configuration_says_otherwise(
    values: dict[str, Any], target: float | None
) -> None:
    assert from_dict(ChainConfig, values).adapts_to == target


def test_a_fixed_step_stays_fixed_when_stored() -> None:
    """As versions before `auto` stored every configuration that did not state a target."""
    stored = {**to_dict(preset("digits")), "chain": {**to_dict(preset("digits").chain), "target_acceptance": None}}
    assert from_dict(TrainConfig, json.loads(json.dumps(stored))).chain.adapts_to is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_with_an_adjusted_kernel_adapt_its_steps(name: str) -> None:
    chain = preset(name).chain
    assert chain.adapts_to == (None if chain.kernel == "langevin" else 0.7)
    assert replace(chain, kernel="mala", num_steps=5).adapts_to == 0.7


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="digits"):
        preset("digit")


@pytest.mark.parametrize(
    ("name", "side", "multipliers", "num_blocks", "batch_size", "beta1"),
    [
        ("cifar10", 32, (1, 2, 2, 2), 8, 256, 0.9),
        ("celeba64", 64, (1, 2, 2, 2, 4), 6, 128, 0.5),
        ("lsun_church64", 64, (1, 2, 2, 2, 4), 2, 128, 0.9),
        ("lsun_bedroom64", 64, (1, 2, 2, 2, 4), 2, 128, 0.9),
        ("lsun_church128", 128, (1, 2, 2, 2, 4, 4), 2, 64, 0.5),
        ("lsun_bedroom128", 128, (1, 2, 2, 2, 4, 4), 5, 64, 0.5),
    ],
)
def test_the_paper_s_presets_have_the_release_s_numbers(
    name: str, side: int, multipliers: tuple[int, ...], num_blocks: int, batch_size: int, beta1: float
) -> None:
    """From the commands in its README, the defaults of its flags and the network of its `model.py`."""
    config = preset(f"{name}-t6")
    assert preset(name) == config
    network, optimizer = config.network, config.optimizer
    assert (network.width, network.multipliers, network.num_blocks) == (128, multipliers, num_blocks)
    assert (network.activation, network.spectral_norm) == ("leaky_relu", True)
    assert (config.batch_size, optimizer.learning_rate, optimizer.beta1, optimizer.warmup_steps) == (
        batch_size,
        1e-4,
        beta1,
        1000,
    )
    assert (optimizer.ema_decay, optimizer.max_gradient_norm, optimizer.cosine_decay) == (0.999, None, False)
    assert (config.chain.kernel, config.chain.num_steps) == ("langevin", 30)
    assert config.chain.step_size**2 == pytest.approx(2e-4)
    assert (config.sampling.num_steps, config.sampling.noise_scale) == (30, 0.99)
    assert (config.shared_noise, config.energy_penalty, config.horizontal_flips) == (False, 0.0, True)
    assert config.image_size == (None if name == "cifar10" else (side, side))
    assert config.steps == 1_000_000


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "lsun_bedroom128", "digits"])
def test_t1k_is_t6_with_a_thousand_levels_and_no_chain(name: str) -> None:
    t6, contrastive, matching = (preset(f"{name}-{form}") for form in ("t6", "t1k", "t1k-score"))
    for config in (contrastive, matching):
        assert (config.schedule.kind, config.schedule.num_levels) == ("linear_betas", 1000)
        assert (config.chain.num_steps, config.sampling.num_steps) == (0, 0)
        assert (config.network, config.optimizer, config.image_size) == (t6.network, t6.optimizer, t6.image_size)
    assert contrastive.score_matching.steps == 0
    assert (matching.score_matching.steps, matching.score_matching.form) == (matching.steps, "recovery")
    assert matching.score_matching.batch_size == t6.batch_size
    shorter = override(matching, steps=1234)
    assert shorter.score_matching.steps == 1234


def test_fewer_steps_keep_the_share_of_the_score_matching_start() -> None:
    config = preset("digits")
    shorter = override(config, steps=config.steps // 10, seed=3)
    assert shorter.seed == 3
    assert shorter.score_matching.steps == pytest.approx(config.score_matching.steps / 10, abs=1)
    with pytest.raises(ConfigError, match="unknown field"):
        override(config, step=3)


def test_defaults_are_the_paper_s_but_for_what_was_measured_to_be_better() -> None:
    paper, ours = preset("cifar10-t6"), TrainConfig()
    changed = replace(
        ours,
        dataset=paper.dataset,
        steps=paper.steps,
        horizontal_flips=True,
        sample_every=paper.sample_every,
        checkpoint_every=paper.checkpoint_every,
        sampling=paper.sampling,
    )
    assert (changed.shared_noise, changed.optimizer.max_gradient_norm) == (True, 1.0)
    optimizer = replace(changed.optimizer, max_gradient_norm=None)
    assert replace(changed, shared_noise=False, optimizer=optimizer) == paper


def test_the_built_in_names_are_those_that_load() -> None:
    from model.data.built_in import BUILT_IN

    assert BUILT_IN.keys() == BUILT_IN_DATASETS.keys()


def test_configurations_need_no_torch() -> None:
    code = "import sys, model.presets, model.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ChainConfig().num_steps = 3  # type: ignore[misc]
