"""What a conditional model can do, from the page: samples of a class, and the classes of pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from model import data
from service.client import Recovery
from service.work.images import encode_png
from tests.stack import TINY
from tests.web.visitor import Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def digits_id(recovery: Recovery) -> str:
    """A conditional model of the digits, hardly trained."""
    job = recovery.train(preset="digits", config={**TINY, "conditional": True}, steps=60, seed=0, name="ten digits")
    for _ in recovery.events(job["id"]):
        pass
    return str(job["model_id"])


def test_a_model_without_classes_offers_none(visitor: Visitor, trained: str, recovery: Recovery) -> None:
    visitor.open(f"/#/models/{recovery.job(trained)['model_id']}")
    visitor.button("Draw samples").wait_for()
    assert visitor.page.get_by_label("Class", exact=True).count() == 0
    assert visitor.page.get_by_role("heading", name="Tell the class").count() == 0


def test_a_class_and_its_guidance_are_chosen(visitor: Visitor, digits_id: str) -> None:
    page = visitor.page
    visitor.open(f"/#/models/{digits_id}")
    page.get_by_text("10 classes").wait_for()
    page.locator("#count").select_option("4")
    with page.expect_request("**/sample") as sent:
        visitor.button("Draw samples").click()
    page.get_by_text(re.compile("done: seed 0")).wait_for()
    body = sent.value.post_data_json
    assert body
    assert ("labels" in body, body["guidance"]) == (False, 0)

    page.get_by_label("Class", exact=True).select_option("7")
    page.get_by_label(re.compile("^Guidance")).focus()
    page.keyboard.press("End")
    with page.expect_request("**/sample") as sent:
        visitor.button("Draw samples").click()
    page.get_by_text(re.compile("done: seed 0")).wait_for()
    body = sent.value.post_data_json
    assert body
    assert (body["labels"], body["guidance"]) == ([7], 4)


def test_dropped_pictures_get_bars_of_probabilities(
    visitor: Visitor, recovery: Recovery, digits_id: str, tmp_path: Path
) -> None:
    page = visitor.page
    visitor.open(f"/#/models/{digits_id}")
    x = data.load("digits").held_out[:1].numpy()
    strange = np.random.default_rng(0).choice([-1.0, 1.0], (1, 8, 8)).astype(np.float32)
    paths = [tmp_path / "digit.png", tmp_path / "strange.png"]
    for path, image in zip(paths, [x[0], strange], strict=True):
        path.write_bytes(encode_png(image))
    page.get_by_label("Drop pictures here").first.set_input_files(paths)
    page.locator(".told").nth(1).wait_for()
    expected = recovery.classify(digits_id, paths)
    shown = page.locator(".told").first
    percents = [float(one.rstrip(" %")) / 100 for one in shown.locator(".number").all_inner_texts()]

    assert shown.locator("h3").inner_text().startswith(f"digit.png: {expected.labels[0]}")
    np.testing.assert_allclose(percents, sorted(expected.probabilities[0], reverse=True), atol=0.001)
    assert "None of these" in page.locator(".told").nth(1).inner_text()
    assert visitor.faults() == []
