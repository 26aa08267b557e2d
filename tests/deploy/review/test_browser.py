"""A review as a person does it: in headless Chromium, by keyboard and by mouse, at a desk and on a phone."""

from pathlib import Path

import pytest

from octfast.data.corrections import read_decisions
from tests.browser import CHROMIUM, outside_of_landmarks, served, shoot

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def address(own_run, tmp_path):
    with served(["review", str(own_run.path), "--reviewer", "AB"], tmp_path / "log.txt", cwd=tmp_path) as found:
        yield found


def test_relabel_undo_and_train_again_by_keyboard_then_on_a_phone_by_touch(address, own_run):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        errors, elsewhere = [], []
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(address) else elsewhere.append(r.url))
        page.goto(address)
        expect = sync_api.expect
        expect(page.locator("#scan")).to_be_visible()
        label, name = page.inner_text("#label"), page.inner_text("#name")
        names = [b.get_attribute("data-name") for b in page.query_selector_all("#classes button")]
        other = next(i for i, c in enumerate(names) if c != label)
        page.keyboard.press(str(other + 1))
        expect(page.locator("#progress")).to_contain_text("1 relabelled")
        page.keyboard.press("x")
        expect(page.locator("#progress")).to_contain_text("1 left out")
        page.keyboard.press("u")
        expect(page.locator("#progress")).to_contain_text("0 left out")
        page.keyboard.press("Space")
        expect(page.locator("#progress")).to_contain_text("1 right")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#decision")).to_contain_text("is right")
        expect(page.locator("#near img")).to_have_count(4)
        page.keyboard.press("h")
        expect(page.locator("#picture")).to_have_attribute("alt", "Heat map of " + page.inner_text("#name"))
        page.keyboard.press("t")
        expect(page.locator("#figures table")).to_be_visible(timeout=60_000)
        assert "Relabelled: 1" in page.inner_text("#trained") and "log-loss" in page.inner_text("#figures")
        figures = [row.inner_text().split("\t") for row in page.query_selector_all("#figures tbody tr")]
        for _, before, after, difference in figures:
            change = float(difference.split()[0])
            assert change == pytest.approx(float(after) - float(before), abs=0.0011)
        assert outside_of_landmarks(page) == []
        assert "--corrections" in page.inner_text("#command")
        shoot(page, "review-desk")
        page.emulate_media(color_scheme="dark")
        shoot(page, "review-desk-dark")
        kept = read_decisions(own_run.path / "corrections.csv")
        assert list(kept["decision"]) == ["relabel", "agree"] and kept["new"][0] == names[other]
        assert Path(kept["path"][0]).name == name and set(kept["reviewer"]) == {"AB"}

        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
        phone.on("pageerror", lambda e: errors.append(str(e)))
        phone.goto(address)
        expect(phone.locator("#progress")).to_contain_text("2 of")
        phone.tap("#out")
        expect(phone.locator("#progress")).to_contain_text("1 left out")
        shoot(phone, "review-phone-dark")
        phone.emulate_media(color_scheme="light")
        shoot(phone, "review-phone")
        assert phone.evaluate("() => document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not errors and not elsewhere
