"""The demonstration's report: its figures judge samples rightly, its pictures can be drawn from what a stream says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from model.data.datasets import load
from service.client import progress
from service.commands import demo_report


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a perfect cheat: 800 training digits handed in as samples."""
    picture = tmp_path_factory.mktemp("demo") / "real.png"
    found = demo_report.evaluate(load("digits").train[:800].numpy(), picture, scale=2)
    with Image.open(picture) as image:
        assert image.size == (142, 142)
    return found


def test_copies_of_training_digits_look_real_and_are_counted(figures: dict[str, Any]) -> None:
    samples = figures["samples"]

    assert samples["frechet_distance"] < 0.35
    assert samples["nearest_neighbour_accuracy"] == pytest.approx(0.5, abs=0.06)
    assert samples["distance_to_nearest_training_digit"]["copies"] == 800
    assert len(samples["class_shares"]) == 10
    assert all(0.07 < share < 0.13 for share in samples["class_shares"].values())


def test_references_stand_in_the_order_everyone_expects(figures: dict[str, Any]) -> None:
    references = figures["references"]
    distances = [references[name]["frechet_distance"] for name in references]

    assert list(references) == ["training_digits", "gaussian_mixture_10", "single_gaussian"]
    assert distances == sorted(distances)
    assert distances == pytest.approx([0.26, 0.7, 1.1], abs=0.06)


def test_the_report_is_json_and_can_be_shown(figures: dict[str, Any]) -> None:
    report = {**json.loads(json.dumps(figures)), "timings_s": {"training": 100.0, "total": 140.0}}
    text = io.StringIO()

    demo_report.show(report, Path("demo"), Console(file=text, width=100))

    assert "this model" in text.getvalue()
    assert "demo/progressive.png" in text.getvalue()


def _step(step: int, phase: str, energies: list[float | None]) -> dict[str, Any]:
    data = {
        "step": step,
        "total_steps": 4,
        "phase": phase,
        "loss": None if step == 2 else 0.5,
        "steps_per_second": 2.0,
        "positive_energy": energies,
        "negative_energy": energies,
        "displacement": energies,
    }
    return {"id": f"{step}-0", "type": "step", "data": data}


EVENTS = [
    {"id": "0-1", "type": "status", "data": {"status": "running"}},
    _step(1, "score_matching", [None, None]),
    _step(2, "score_matching", [None, None]),
    _step(3, "recovery", [1.0, None]),
    _step(4, "recovery", [0.5, 2.0]),
    {"id": "5-0", "type": "status", "data": {"status": "succeeded"}},
]


@pytest.mark.parametrize("events", [EVENTS, []])
def test_curves_are_drawn_also_where_values_are_missing(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    demo_report.draw_training(events, tmp_path / "training.png")

    with Image.open(tmp_path / "training.png") as picture:
        assert np.asarray(picture).std() > 0


def test_the_progress_bar_shows_loss_rate_and_time_left() -> None:
    text = io.StringIO()

    seen = progress.show(EVENTS[:4], Console(file=text, width=120, force_terminal=True))

    assert seen == EVENTS[:4]
    assert "recovery likelihood" in text.getvalue()
    assert "loss 0.5 · 2.0 steps/s · ETA 0:00" in text.getvalue()


def test_a_verdict_that_is_not_green_is_a_line() -> None:
    text = io.StringIO()
    green = {"step": 100, "level": "green", "reason": "all is well"}
    amber = {"step": 200, "level": "amber", "reason": "0.3 (level 1)", "remedy": "a shorter step"}

    events = [{"id": f"{n}-0", "type": "health", "data": data} for n, data in enumerate((green, amber))]
    progress.show(events, Console(file=text, width=120))

    assert "health amber: 0.3 (level 1) — a shorter step" in text.getvalue()
    assert "all is well" not in text.getvalue()


def test_progress_in_a_file_is_a_line_now_and_then() -> None:
    text = io.StringIO()

    progress.show([_step(step, "recovery", []) for step in (1, 1, 3)], Console(file=text, width=120))

    assert text.getvalue().count("recovery likelihood: step 1 of 4") == 1
    assert text.getvalue().count("recovery likelihood: step 3 of 4, loss 0.5") == 1
