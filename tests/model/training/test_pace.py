"""The measured cost of training steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model import data
from model.planning import fit
from model.presets import preset
from model.training.pace import measure_pace


@pytest.mark.slow
def test_a_phase_with_a_chain_and_larger_batches_costs_more() -> None:
    config = preset("digits")
    digits = data.load("digits")
    large = replace(config, batch_size=256, score_matching=replace(config.score_matching, batch_size=256))
    small = replace(config, batch_size=4, score_matching=replace(config.score_matching, batch_size=4))
    costs, less = (measure_pace(one, digits, seconds=2.0) for one in (large, small))
    assert 0 < less["score_matching"] < costs["score_matching"] < costs["recovery"]
    fitted = fit(config, costs, 60.0, recovery_share=0.5)
    assert fitted.steps > fitted.score_matching.steps > 0
