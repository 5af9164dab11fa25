"""What a model can do, from the page: samples, a calibration, scores."""

from __future__ import annotations

import itertools
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import data
from service.client import Recovery
from service.work.images import encode_png
from tests.stack import TINY
from tests.web.visitor import HOSTILE, Visitor, finished

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("trained")
def test_the_overviews_show_what_there_is(visitor: Visitor) -> None:
    page = visitor.page
    visitor.go("/jobs")
    page.locator(".job img").wait_for()
    assert page.locator(".job").inner_text().startswith("my digits")
    visitor.go("/models")
    page.locator(".model img").wait_for()
    assert visitor.faults() == []
    page.get_by_role("link", name="my digits").click()
    page.get_by_role("heading", name="Draw samples").wait_for()


def test_samples_are_seen_forming_from_noise(
    visitor: Visitor, trained: str, recovery: Recovery, tmp_path: Path
) -> None:
    page = visitor.page
    model_id = recovery.job(trained)["model_id"]
    visitor.go(f"/models/{model_id}")
    page.get_by_label("Seed", exact=True).fill("7")
    page.evaluate(
        """() => {
        window.seen = [];
        const canvas = document.querySelector('.stage canvas');
        new MutationObserver(() => window.seen.push([canvas.getAttribute('aria-label'), canvas.toDataURL()]))
            .observe(canvas, { attributes: true, attributeFilter: ['aria-label'] });
        }"""
    )
    visitor.button("Draw samples").click()
    page.get_by_text(re.compile("done: seed 7")).wait_for()
    seen = page.evaluate("window.seen")
    labels = [label for label, _ in seen]
    num_levels = recovery.model(model_id)["config"]["schedule"]["num_levels"]

    assert labels[0] == "16 samples, pure noise"
    assert [int(match[1]) for label in labels if (match := re.search(r"noise level (\d+)", label))] == list(
        reversed(range(num_levels))
    )
    assert len({picture for _, picture in seen}) > num_levels
    slider = page.get_by_label("From noise to data")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".stage canvas").get_attribute("aria-label") == "16 samples, pure noise"
    page.keyboard.press("End")

    files = {}
    for name in ("PNG", "Zip of PNGs", "NumPy"):
        with page.expect_download() as download:
            visitor.button(name).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    expected = recovery.sample(model_id, 16, seed=7).x
    np.testing.assert_allclose(np.load(files["NumPy"]), expected, atol=1e-4)
    with zipfile.ZipFile(files["Zip of PNGs"]) as archive:
        assert len([name for name in archive.namelist() if name.endswith(".png")]) == 16
    with Image.open(files["PNG"]) as picture:
        side = 4 * 8 + 3
        scale = picture.width // side
        shown = np.asarray(picture.convert("L"))[::scale, ::scale][:8, :8]
    np.testing.assert_allclose(shown, (expected[0, 0] + 1) * 127.5, atol=1.01)


def test_sliders_and_seeds_are_sent_and_nonsense_is_explained(
    visitor: Visitor, trained: str, recovery: Recovery
) -> None:
    page = visitor.page
    visitor.open(f"/#/models/{recovery.job(trained)['model_id']}")
    page.get_by_label("Seed", exact=True).fill("seven")
    visitor.button("Draw samples").click()
    page.get_by_text("“seven” is not a seed").wait_for()
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Samples", exact=True).select_option("4")
    page.get_by_label("Steps a level").focus()
    page.keyboard.press("Home")
    assert page.get_by_label("Noise scale").is_disabled()  # the preset's chains are Metropolis-adjusted
    with page.expect_request("**/sample") as sent:
        visitor.button("Draw samples").click()
    page.get_by_text(re.compile("done: seed 3")).wait_for()

    body = sent.value.post_data_json
    assert body
    assert (body["num_images"], body["seed"], body["steps"], "noise_scale" in body) == (4, 3, 0, False)


def test_a_model_is_calibrated_and_scores_pictures(
    visitor: Visitor, trained: str, recovery: Recovery, tmp_path: Path
) -> None:
    page = visitor.page
    model_id = recovery.job(trained)["model_id"]
    visitor.open(f"/#/models/{model_id}")
    page.get_by_text("How thoroughly").click()
    page.get_by_label("Num chains").fill("64")
    page.get_by_label("Max bridges").fill("2")
    visitor.button("Calibrate").click()
    page.wait_for_url(re.compile("#/jobs/"))
    finished(visitor, recovery, page.url.rpartition("/")[2])
    page.get_by_role("img", name=re.compile("log Z from both sides")).wait_for()
    page.get_by_role("link", name="Open the model").click()

    held_out = data.load("digits").held_out[:64].numpy()
    likely = np.argsort([item["log_density"] for item in recovery.log_density(model_id, held_out)["items"]])
    digits = held_out[likely[31:33]]  # typical ones: so short a training finds some stranger than all it has seen
    paths = [tmp_path / name for name in ("five.png", "three.png", "inverted.png", f"{HOSTILE.replace('/', '')}.png")]
    for path, x in zip(paths, [digits[0], digits[1], -digits[0], digits[1]], strict=True):
        path.write_bytes(encode_png(x))
    large = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(large)
    page.get_by_label("Drop pictures here").set_input_files([*paths, large])
    page.locator(".scores").wait_for()
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".scores tbody tr").all()]

    calibration = recovery.model(model_id)["checkpoints"][-1]["calibration"]
    given = [item["log_density"] for item in recovery.log_density(model_id, paths)["items"]]
    shown = [float(row[3].replace("−", "-").replace(",", "")) for row in rows]
    assert shown[:4] == pytest.approx(given, abs=0.006)
    scored, errors = zip(
        *([float(one.replace("−", "-").replace(",", "")) for one in row[1].split(" ± ")] for row in rows), strict=True
    )
    noise = (np.random.default_rng(1).random((64, *digits[0].shape), dtype=np.float32) - 0.5) * np.float32(
        calibration["bin_width"]
    )
    jittered = [item["log_density"] for item in recovery.log_density(model_id, digits[0] + noise)["items"]]
    spread = np.std(jittered) * np.sqrt(1 / 24 + 1 / 64)
    assert abs(scored[0] - np.mean(jittered)) < 5 * spread
    assert min(errors) >= calibration["log_z"]["std_error"] - 0.006
    quantiles = {one["level"]: one["log_density"] for one in calibration["train_quantiles"]}
    assert quantiles[0.01] < scored[0]
    for row, score in zip(rows, scored, strict=True):
        share = np.interp(score, list(quantiles.values()), list(quantiles))
        about = "fewer than" if score < quantiles[0.01] else "more than" if score >= quantiles[0.99] else "about"
        told, percent = re.fullmatch(r"(\D+) (\d+) %", row[4]).groups()  # type: ignore[union-attr]
        assert told == about
        assert float(percent) == pytest.approx(100 * share, abs=1)
    assert rows[0][4].startswith("about")
    assert rows[2][4] == "fewer than 1 %"
    assert rows[3][0].startswith(HOSTILE.replace("/", ""))
    assert "resized from 40×40, made grey" in rows[4][0]
    assert page.locator(".strip circle.mark").count() >= 2
    visitor.button("Draw samples").click()
    page.get_by_text(re.compile("done: seed 0")).wait_for()
    assert visitor.faults() == []
    visitor.look("model")
    visitor.look("model-dark", dark=True, full=False)


def test_a_file_that_is_no_picture_is_named(visitor: Visitor, tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    path.write_text("Dear model,")
    scores = visitor.page.locator(".scores tbody tr")
    before = scores.all_inner_texts()
    visitor.page.get_by_label("Drop pictures here").set_input_files(path)
    visitor.page.get_by_text("letter.png is no picture that this browser can read").wait_for()
    assert scores.all_inner_texts() == before
    assert visitor.faults(looks=[(True, False)]) == []


def test_what_samples_cost_is_measured_and_drawn_and_asked_for(
    visitor: Visitor, trained: str, recovery: Recovery
) -> None:
    page = visitor.page
    model_id = recovery.job(trained)["model_id"]
    for _ in recovery.events(recovery.tune(model_id, num_samples=100, max_steps=2)["id"]):
        pass
    visitor.open(f"/#/models/{model_id}")
    page.get_by_role("heading", name="What samples cost").wait_for()
    page.get_by_role(
        "img", name=re.compile(r"draft \d+ evaluations, distance .*; standard \d+ .*; best \d+ ")
    ).wait_for()
    page.get_by_text("As numbers").click()
    frontier = recovery.model(model_id)["checkpoints"][-1]["frontier"]
    rows = page.locator("section", has_text="What samples cost").locator("tbody tr")
    assert [row.locator("th").inner_text() for row in rows.all()] == [
        f"{point['evaluations']:,}" for point in frontier["points"]
    ]
    for quality in ("draft", ""):
        page.get_by_label("Quality").select_option(quality)
        with page.expect_request("**/sample") as sent:
            visitor.button("Draw samples").click()
        page.get_by_text(re.compile("done: seed 0")).wait_for()
        body = sent.value.post_data_json
        assert body
        assert (body.get("quality"), "steps" in body) == (quality or None, not quality)
    assert visitor.faults() == []


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("chosen", [(0, 0, 0), (1, 2, 3), (2, 3, 4), (0, 5, 5)])
def test_the_names_in_the_chart_of_costs_are_whole_and_apart(
    visitor: Visitor, chosen: tuple[int, int, int], wide: bool
) -> None:
    visitor.open()
    points = [
        {"start": "noise", "num_steps": steps, "evaluations": cost, "frechet": frechet, "frechet_error": 0.01}
        | {"one_nn": 0.8, "one_nn_error": 0.02}
        for steps, (cost, frechet) in enumerate([(7, 0.5), (13, 0.12), (14, 0.12), (17, 0.09), (31, 0.08), (60, 0.07)])
    ]
    settings = {name: points[index] for name, index in zip(("draft", "standard", "best"), chosen, strict=True)}
    frontier = {"points": points, "features": "data", "num_samples": 9, "num_held_out": 9, **settings}
    visitor.page.evaluate(
        """async (frontier) => {
        const { frontierPanel } = await import("/web/frontier.js");
        document.querySelector("main .view").replaceChildren(frontierPanel("model@1", frontier));
        }""",
        frontier,
    )
    visitor.dress(wide=wide)
    visitor.page.locator(".frontier .chosen text").first.wait_for()
    chart = visitor.page.locator(".frontier").bounding_box()
    names = [one.bounding_box() for one in visitor.page.locator(".frontier .chosen text").all()]
    visitor.dress()

    assert chart is not None
    assert len(names) == len(set(chosen))
    for name in names:
        assert name is not None
        assert chart["x"] <= name["x"]
        assert name["x"] + name["width"] <= chart["x"] + chart["width"]
    for one, other in itertools.combinations(names, 2):
        assert one is not None
        assert other is not None
        beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
        assert beside or abs(one["y"] - other["y"]) > 12


def test_a_planar_model_shows_its_density_beside_its_data(visitor: Visitor, recovery: Recovery) -> None:
    page = visitor.page
    config = {"network": {"width": 32}, "sampling": {"num_steps": 4}, "num_preview_samples": 16, "calibrate": False}
    job = recovery.train(preset="density-2d", dataset="two_moons", config=config, steps=150, name="two moons", seed=0)
    for _ in recovery.events(job["id"]):
        pass
    for _ in recovery.events(recovery.calibrate(job["model_id"], num_chains=128, max_bridges=2)["id"]):
        pass
    visitor.go(f"/models/{job['model_id']}")
    picture = page.get_by_alt_text(re.compile("Left: the log density of the model"))
    picture.wait_for()
    visitor.button("Draw samples").click()
    page.get_by_label("Points, one a line").fill("0, 0.5\n1, nothing")
    visitor.button("Score").click()
    page.get_by_text("Line 2, “1, nothing”, is not a point").wait_for()
    page.get_by_label("Points, one a line").fill("0, 0.5\n9, 9")
    visitor.button("Score").click()
    page.locator(".scores").wait_for()
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".scores tbody tr").all()]

    expected = [
        one["log_density"] for one in recovery.log_density(job["model_id"], np.array([[0, 0.5], [9.0, 9.0]]))["items"]
    ]
    shown = [float(row[1].split(" ± ")[0].replace("−", "-").replace(",", "")) for row in rows]
    assert shown == pytest.approx(expected, abs=0.006)
    assert rows[1][2] == "fewer than 1 %"
    page.get_by_text(re.compile("done: seed 0")).wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 200
    assert visitor.faults() == []


def test_a_model_is_named_and_tagged_and_goes_after_a_question_as_its_training_does(
    visitor: Visitor, recovery: Recovery
) -> None:
    page = visitor.page
    job = recovery.train(preset="digits", config=TINY, steps=40, name="to be deleted", seed=0, calibrate=False)
    for _ in recovery.events(job["id"]):
        pass
    visitor.open(f"/#/models/{job['model_id']}")
    page.get_by_text("Name and tags").click()
    page.get_by_label("Name", exact=True).fill(HOSTILE)
    page.get_by_label("Tags").fill("paper, seed 0")
    visitor.button("Save").click()
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert page.locator(".label").all_inner_texts() == ["paper", "seed 0"]
    assert visitor.faults() == []

    visitor.button("Delete…").click()
    page.get_by_role("dialog").wait_for()
    assert visitor.faults(looks=[(True, False), (False, True)]) == []
    visitor.button("Keep it").click()
    assert recovery.model(job["model_id"])["tags"] == ["paper", "seed 0"]
    visitor.go("/models")
    page.locator(".model", has_text=HOSTILE).locator(".label").first.wait_for()

    for path in (f"/jobs/{job['id']}", f"/models/{job['model_id']}"):
        visitor.go(path)
        visitor.button("Delete…").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete the").click()
        page.wait_for_url(re.compile(f"#{path.rpartition('/')[0]}$"))
    assert job["model_id"] not in [one["id"] for one in recovery.models()]
    assert job["id"] not in [one["id"] for one in recovery.jobs()]
