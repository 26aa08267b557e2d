"""The page of a model that answers for a whole volume, as a person uses it: pictures together, alone, and the table."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from octfast.deploy.predictor import load
from tests.bags import bag_bundle
from tests.browser import CHROMIUM, served, shoot
from tests.pictures import scan

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_pictures_given_together_have_one_answer(tmp_path):
    bundle, files = bag_bundle(tmp_path / "model"), []
    for n in range(4):
        files.append(str(tmp_path / f"{n}.png"))
        Image.fromarray(scan(60 + n, 80, seed=n)).save(files[-1])
    answer = load(bundle, "fp32").answer_unit(files)
    with (
        served(["app", str(bundle), "--precision", "fp32"], tmp_path / "log.txt", cwd=tmp_path) as address,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(30_000)
        problems: list[str] = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(address)
        page.set_input_files("#files", files)
        page.locator("#status", has_text="1 of 1").wait_for()
        card = page.locator("#results .card")
        most = int(answer.attention.argmax())
        assert card.locator("h3").inner_text() == "4 pictures, one volume" and card.count() == 1
        shown = card.locator(".frame").inner_text()
        assert (
            f"Picture {most + 1} of 4, {most}.png" in shown and f"counts {100 * answer.attention[most]:.1f}%" in shown
        )
        assert card.locator(".suspicious button").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        shoot(page, "unit-phone")
        page.click("#clear")
        page.uncheck("#together")
        page.set_input_files("#files", files[:2])
        page.locator("#status", has_text="2 of 2").wait_for()
        assert card.count() == 2 and "A volume of this one scan" in card.first.inner_text()
        page.check("#together")
        page.set_input_files("#files", files)
        page.locator("#status", has_text="3 of 3").wait_for()
        with page.expect_download() as download:
            page.click("#save")
        table = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
        browser.close()
    # Two units of a scan each, then that of four scans, and below it these, which have no answer of their own.
    assert [row["scans"] for row in table] == ["1", "1", "4", "", "", "", ""]
    assert [float(row["attention"]) for row in table[3:]] == pytest.approx(answer.attention.tolist(), abs=1e-4)
    assert all(row["predicted"] for row in table[:3]) and not any(row["predicted"] for row in table[3:])
    assert problems == []
