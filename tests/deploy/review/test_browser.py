"""A review as a person does it: in headless Chromium, by keyboard and by mouse, at a desk and on a phone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octfast.data.corrections import read_decisions

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

CHROMIUM = os.environ.get("OCTFAST_CHROMIUM") or next(
    (c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SHOTS = os.environ.get("OCTFAST_SCREENSHOTS")


@pytest.fixture
def served(own_run, tmp_path):
    """The page of a review, served by the command in a process of its own; it must end well on Ctrl-C."""
    log = tmp_path / "log.txt"
    words = [sys.executable, "-m", "octfast", "review", str(own_run.path), "--reviewer", "AB"]
    with log.open("w") as f:
        running = subprocess.Popen(words, stdout=f, stderr=f, cwd=tmp_path)
    try:
        for _ in range(600):
            said = [line for line in log.read_text().splitlines() if line.startswith("page: ")]
            if said or running.poll() is not None:
                break
            time.sleep(0.1)
        assert said, log.read_text()
        yield said[0].split()[1]
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0, log.read_text()
        assert "decisions are in" in log.read_text() and "Traceback" not in log.read_text()
    finally:
        running.kill()


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def test_relabel_undo_and_train_again_by_keyboard_then_on_a_phone_by_touch(served, own_run):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        errors, elsewhere = [], []
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(served) else elsewhere.append(r.url))
        page.goto(served)
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
        assert "--corrections" in page.inner_text("#command")
        shoot(page, "review-desk")
        kept = read_decisions(own_run.path / "corrections.csv")
        assert list(kept["decision"]) == ["relabel", "agree"] and kept["new"][0] == names[other]
        assert Path(kept["path"][0]).name == name and set(kept["reviewer"]) == {"AB"}

        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
        phone.on("pageerror", lambda e: errors.append(str(e)))
        phone.goto(served)
        expect(phone.locator("#progress")).to_contain_text("2 of")
        phone.tap("#out")
        expect(phone.locator("#progress")).to_contain_text("1 left out")
        shoot(phone, "review-phone")
        assert phone.evaluate("() => document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not errors and not elsewhere
