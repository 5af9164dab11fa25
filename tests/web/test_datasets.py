"""Data of one's own, from the page."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from service.client import Recovery
from service.work.images import encode_png
from tests.web.visitor import HOSTILE, Visitor

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]


def test_data_of_ones_own_are_uploaded_and_named_in_the_form(
    visitor: Visitor, recovery: Recovery, tmp_path: Path
) -> None:
    page = visitor.page
    rng = np.random.default_rng(0)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index in range(20):
            archive.writestr(f"{index % 2}/{index}.png", encode_png(rng.uniform(-1, 1, (1, 8, 8)).astype(np.float32)))
    good, bad = tmp_path / "noise.zip", tmp_path / "bad.csv"
    good.write_bytes(packed.getvalue())
    bad.write_text("a,b\n1,2\n3,n/a\n")
    visitor.open("/#/datasets")
    file = page.get_by_label("Drop a file here")
    file.set_input_files(_named(tmp_path, "letter.txt"))
    page.get_by_text("letter.txt cannot be a dataset; expected a file that ends in .zip").wait_for()
    with visitor.refused():
        file.set_input_files(bad)
        page.get_by_text("'n/a' is not a number").wait_for()
    with visitor.refused():
        page.get_by_label("Column of labels").fill("kind")
        file.set_input_files(good)
        page.get_by_text("label_column is for .csv and .npz files").wait_for()
    page.get_by_label("Column of labels").fill("")
    page.get_by_label("Name for the upload").fill(HOSTILE)
    file.set_input_files(good)
    page.get_by_text(f"{HOSTILE}: 20 images, 8×8 grey, 2 classes: 0, 1. Labelled by folders: 2 classes.").wait_for()
    card = page.locator(".card", has_text=HOSTILE)
    card.wait_for()
    assert visitor.faults() == []
    visitor.look("datasets")
    card.get_by_role("link").click()
    page.get_by_role("heading", name="Train a model").wait_for()
    [dataset] = [one for one in recovery.datasets() if one["source"] == "uploaded"]
    assert page.get_by_label("Data", exact=True).input_value() == dataset["id"]
    page.locator(".summary", has_text="20 grey pictures of 8×8 pixels, of 2 classes").wait_for()


def _named(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("text")
    return path
