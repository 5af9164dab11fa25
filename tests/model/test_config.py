"""Configurations: checked, written as JSON, named."""

from __future__ import annotations

import json
import subprocess
import sys
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
        ({"chain": {"num_steps": -1}}, r"chain\.num_steps is -1"),
        ({"chain": {"step_size": float("nan")}}, r"chain\.step_size is nan"),
        ({"chain": 3}, "chain is 3; expected an object"),
        ({"chain": {"stepsize": 1}}, r"unknown field chain\.stepsize; expected one of kernel"),
        ({"schedule": {"kind": "cosine"}}, "expected one of published"),
        ({"network": {"multipliers": []}}, "0 entries"),
        ({"optimizer": {"ema_decay": 1.0}}, "ema_decay"),
        ({"energy_penalty": -0.1}, "energy_penalty is -0.1"),
        ({"energy_penalty": 0.1, "energy": "gaussian"}, "step_size"),
        ({"chain": {"target_acceptance": 0.7}}, "mala"),
        ({"score_matching": {"steps": 200_000}}, "at most steps"),
        ({"schedule": {"kind": "log_snr", "log_snr_max": -8}}, "log_snr_min"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(TrainConfig, values)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="digits"):
        preset("digit")


def test_fewer_steps_keep_the_share_of_the_score_matching_start() -> None:
    config = preset("digits")
    shorter = override(config, steps=config.steps // 10, seed=3)
    assert shorter.seed == 3
    assert shorter.score_matching.steps == pytest.approx(config.score_matching.steps / 10, abs=1)
    with pytest.raises(ConfigError, match="unknown field"):
        override(config, step=3)


def test_the_built_in_names_are_those_that_load() -> None:
    from model.planar import PLANAR_DENSITIES

    assert set(BUILT_IN_DATASETS) == {"digits", *PLANAR_DENSITIES}


def test_configurations_need_no_torch() -> None:
    code = "import sys, model.presets, model.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ChainConfig().num_steps = 3  # type: ignore[misc]
