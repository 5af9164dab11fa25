"""A training is watched: its curves and pictures as they come."""

from __future__ import annotations

import re

import pytest

from service.client import Recovery
from tests.web.visitor import STEPS, Visitor, finished

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


def test_a_training_from_the_form_draws_its_curves_and_samples_as_it_goes(
    visitor: Visitor, training: str, recovery: Recovery
) -> None:
    page = visitor.page
    curve = page.get_by_role("img", name=re.compile("Loss of score matching"))
    line = curve.locator(".lines path")
    line.wait_for()
    points = set()
    while recovery.job(training)["progress"]["percent"] < 75:
        points.add(len(re.findall("[ML]", line.get_attribute("d") or "")))
        page.wait_for_timeout(500)
    assert recovery.job(training)["status"] == "running"
    assert len(points) >= 3  # it grew before the training's end
    page.get_by_alt_text(re.compile("Samples that the model drew at step")).wait_for()
    visitor.look("job-running")

    finished(visitor, recovery, training)
    page.get_by_role("img", name=re.compile("Energy gap by noise level")).wait_for()
    last = page.get_by_alt_text(f"Samples that the model drew at step {STEPS}")
    last.wait_for()
    assert last.evaluate("image => image.naturalWidth") > 64
    told = page.locator(".log li")
    page.get_by_text("What happened").click()
    assert any(f"checkpoint of step {STEPS} stored" in text for text in told.all_inner_texts())
    assert visitor.faults() == []
    visitor.look("job")
    visitor.look("job-phone", wide=False, dark=True, full=False)


def test_a_curve_is_read_with_the_arrow_keys(visitor: Visitor, training: str, recovery: Recovery) -> None:
    losses = [
        (event["data"]["step"], event["data"]["loss"])
        for event in recovery.events(training)
        if event["type"] == "step" and event["data"]["phase"] == "score_matching"
    ]
    visitor.go(f"/jobs/{training}")
    chart = visitor.page.locator("figure", has_text="Loss of score matching")
    chart.locator(".lines path").wait_for()
    visitor.page.wait_for_function(
        "steps => document.querySelector('.readout').textContent.includes(steps)", arg=f"step {losses[-1][0]}"
    )
    chart.get_by_role("img").focus()
    visitor.page.keyboard.press("Home")
    first = chart.locator(".readout").inner_text()
    visitor.page.keyboard.press("ArrowRight")
    second = chart.locator(".readout").inner_text()

    assert (first, second) == tuple(f"step {step} · {f'{loss:#.3g}'.rstrip('.')}" for step, loss in losses[:2])
