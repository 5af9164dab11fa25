"""A first visit: nothing is there yet, and the page says what to do."""

from __future__ import annotations

import sys

import pytest

from tests.web.visitor import Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


FIRST_PAINT_MS = 1000


def test_the_first_visit_says_what_to_do_at_once(visitor: Visitor, capsys: pytest.CaptureFixture[str]) -> None:
    visitor.open()
    visitor.page.get_by_text("Nothing has been trained here yet").wait_for()
    paint = visitor.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    view = visitor.page.evaluate("performance.getEntriesByName('view')[0].startTime")
    files = visitor.page.evaluate(
        "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        ".map(one => [one.name, one.transferSize])"
    )
    with capsys.disabled():
        sys.stdout.write(
            f"\nfirst contentful paint {paint:.0f} ms, the list of jobs {view:.0f} ms; "
            f"page weight {sum(size for _, size in files) / 1000:.0f} kB in {len(files)} requests, headers included\n"
        )

    assert 0 < paint < FIRST_PAINT_MS
    assert view < 3 * FIRST_PAINT_MS
    assert visitor.faults() == []
    visitor.page.get_by_role("main").get_by_role("link", name="Train a model").click()
    visitor.page.get_by_role("heading", name="Train a model").wait_for()


def test_the_keyboard_reaches_everything_in_order(visitor: Visitor) -> None:
    visitor.open()
    focused = "document.activeElement.textContent.trim() || document.activeElement.id"
    order = []
    for _ in range(5):
        visitor.page.keyboard.press("Tab")
        order.append(visitor.page.evaluate(focused))

    assert order == ["Skip to the content", "recovery-likelihood", "Jobs", "Models", "Datasets"]
    visitor.page.keyboard.press("Tab")
    visitor.page.keyboard.press("Enter")
    visitor.page.get_by_role("heading", name="Train a model").wait_for()
    assert visitor.page.evaluate(focused) == "Train a model"  # the view's heading, where reading goes on
    visitor.open()
    visitor.page.keyboard.press("Tab")
    visitor.page.keyboard.press("Enter")
    assert visitor.page.evaluate("document.activeElement.id") == "main"


def test_the_form_is_checked_as_it_is_filled_in(visitor: Visitor) -> None:
    visitor.open("/#/train")
    page = visitor.page
    page.get_by_text("digits", exact=True).click()
    page.locator(".summary", has_text="4,900 steps: 4,500 of score matching").wait_for()
    steps = page.get_by_label("Steps", exact=True)
    with visitor.refused():
        steps.fill("many")
        page.get_by_text("“many” is not a whole number").wait_for()
        steps.fill("0")
        page.locator(".field-error", has_text="greater than or equal to 1").wait_for()
        assert steps.get_attribute("aria-invalid") == "true"
        steps.fill("490")
        page.locator(".summary", has_text="490 steps: 450 of score matching").wait_for()
        assert steps.get_attribute("aria-invalid") is None
        page.get_by_label("Data", exact=True).select_option("two_moons")
        page.locator(".field-error", has_text="holds vectors and network.kind 'resnet' takes images").wait_for()
        assert visitor.faults() == []
        page.get_by_text("density-2d", exact=True).click()
        page.locator(".summary", has_text="on two_moons").wait_for()
    assert page.locator(".field-error:visible").count() == 0


def test_my_pictures_come_first_and_their_plan_is_told(visitor: Visitor) -> None:
    visitor.open("/#/train")
    page = visitor.page
    page.get_by_text("the trainer adds the number of steps").wait_for()
    assert page.get_by_label("my pictures").is_checked()
    assert not page.get_by_label("Steps", exact=True).is_visible()
    page.get_by_label("Data", exact=True).select_option("mnist5k")
    page.locator(".summary", has_text="5,000 grey pictures of 28×28 pixels, of 10 classes").wait_for()
    page.get_by_label("Minutes", exact=True).fill("30")
    assert page.get_by_text("cifar10-t6", exact=True).is_hidden()
    page.get_by_text("The paper's experiments").click()
    page.get_by_text("cifar10-t6", exact=True).click()
    page.locator(".summary", has_text="1,000,000 steps of recovery likelihood").wait_for()
    assert page.get_by_label("Minutes", exact=True).is_hidden()
    assert visitor.faults() == []


def test_the_form_has_every_field_of_the_configuration_with_the_preset_s_value(visitor: Visitor) -> None:
    visitor.open("/#/train")
    page = visitor.page
    page.get_by_text("digits", exact=True).click()
    page.get_by_text("More settings").click()
    page.get_by_text("Advanced: every field of the configuration").click()
    for group in ("chain", "optimizer", "training"):
        page.locator(".group > summary", has_text=group).click()
    steps, energy = page.get_by_label("chain.num_steps", exact=True), page.get_by_label("energy", exact=True)

    assert steps.get_attribute("placeholder") == "6"
    assert energy.locator("option").all_inner_texts() == [
        "as the preset: gaussian",
        "step_size",
        "gaussian",
        "log_snr",
    ]
    assert "0 to 10,000" in page.locator(".field", has=steps).inner_text()
    assert visitor.faults() == []
    with visitor.refused():
        steps.fill("20000")
        page.locator(".group", has=steps).evaluate("group => { group.open = false; }")  # what is wrong must open it
        page.locator(".field-error", has_text="chain.num_steps is 20000; expected a number from 0 to 10000").wait_for()
        assert steps.is_visible()
        steps.fill("9")
        page.get_by_label("optimizer.max_gradient_norm", exact=True).fill("none")
        page.locator(".group > summary", has_text="network").click()
        page.get_by_label("network.multipliers", exact=True).fill("1, two")
        page.get_by_text("“1, two” is not whole numbers").wait_for(state="attached")
        page.get_by_label("network.multipliers", exact=True).fill("1, 1")
        page.locator(".summary", has_text="9 chain steps at each").wait_for()
    assert page.locator(".field-error:visible").count() == 0


def test_what_does_not_exist_is_said_in_a_sentence(visitor: Visitor) -> None:
    with visitor.refused():
        visitor.go("/models/01M8500000000000000000000A")
        visitor.page.get_by_text("there is no model 01M8500000000000000000000A").wait_for()
    assert visitor.page.get_by_role("heading", name="Not found").count() == 1
    visitor.go("/nowhere")
    visitor.page.get_by_text("There is no page /nowhere").wait_for()


def test_the_calls_are_documented_without_a_cdn(visitor: Visitor) -> None:
    visitor.open("/docs")
    visitor.page.locator(".call").first.wait_for()
    document = visitor.page.evaluate("fetch('/openapi.json').then(one => one.json())")
    operations = sum(len(found) for found in document["paths"].values())

    assert visitor.page.locator(".call").count() == operations
    assert "curl" in visitor.page.locator("#train pre").inner_text()
    assert visitor.faults(looks=[(True, False), (False, True)]) == []  # a long page: the two others would take as long
    visitor.look("docs", full=False)
