"""The report in a browser: nothing is asked of the network, no picture is missing, nothing sticks out of a phone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from octfast.assess.report.report import write_report
from octfast.run.folder import open_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory) -> Path:
    run = open_run(shutil.copytree(trained.path, tmp_path_factory.mktemp("browser") / "run"))
    return write_report(run, "test", resamples=200)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = str(own) if own.exists() else next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None:
            pytest.skip("no Chromium: playwright install chromium, or the system's own")
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """Open the report and note what it asks for and says; gives (page, requests, complaints)."""
    pages = []

    def open_page(width: int = 1280, **kwargs):
        page = browser.new_page(viewport={"width": width, "height": 900}, **kwargs)
        pages.append(page)
        asked, said = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(report.as_uri(), wait_until="networkidle")
        return page, asked, said

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_requested_and_nothing_is_missing(opened, report, scheme):
    page, asked, said = opened(color_scheme=scheme)
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert not said
    pictures = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(pictures) >= 10
    assert all(complete and width > 0 and alt for complete, width, alt in pictures)


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_sticks_out(opened, width):
    page, _, _ = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_stands_out_from_its_ground_in_both_schemes(opened):
    """WCAG's contrast of 4.5 to 1 for ordinary text, on the page and on its panels."""
    script = """() => {
      const linear = x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
      const light = c => { const v = c.map(linear); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
      const rgb = s => s.match(/[\\d.]+/g).map(Number);
      const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] === 1) return c.slice(0, 3) } return [255, 255, 255] };
      const poor = [];
      for (const e of document.querySelectorAll('p, li, td, th, dt, dd, figcaption, caption, a, h1, h2, h3')) {
        if (e.closest('table.confusion')) continue;
        const a = light(rgb(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e));
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 40), contrast]);
      }
      return poor }"""
    for scheme in ("light", "dark"):
        page, _, _ = opened(color_scheme=scheme)
        assert page.evaluate(script) == []


def test_the_keyboard_gets_to_the_results_first(opened):
    page, _, _ = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#summary"


def test_it_prints_on_paper(opened, tmp_path):
    page, _, _ = opened()
    content = page.pdf(path=str(tmp_path / "report.pdf"), prefer_css_page_size=True)
    assert content.startswith(b"%PDF") and 5 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 60
