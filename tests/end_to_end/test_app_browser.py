"""The web page as a person uses it: in headless Chromium, by mouse and by keyboard, with good and bad files."""

import csv
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octfast.data.phantom.draw import CLASSES, make_phantom
from octfast.data.phantom.volumes import write_volumes
from octfast.model.bundle.distance import save_distance
from octfast.model.bundle.read import load_bundle, read_info
from octfast.model.bundle.write import update_info
from octfast.model.unlike import fit_distance
from tests.browser import CHROMIUM, outside_of_landmarks, served, shoot
from tests.data.volumes import volume_files
from tests.deploy.app.uploads import huge_png

sync_api = pytest.importorskip("playwright.sync_api")
httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address(trained, tmp_path_factory):
    """The page of the trained run, served by the command in a process of its own; it must end well on Ctrl-C."""
    home = tmp_path_factory.mktemp("app")
    bundle = Path(shutil.copytree(trained.bundle, tmp_path_factory.mktemp("bundle") / "model"))
    # A class is asked of every picture here, also of those that the small model finds unlike its training scans.
    info = read_info(bundle)
    update_info(bundle, synthetic=True, calibration={k: v for k, v in info.calibration.items() if k != "unlike"})
    temporary = home / "tmp"
    temporary.mkdir()
    words = ["app", str(bundle), "--precision", "fp32", "--max-files", "12"]
    with served(words, home / "log.txt", cwd=home, env={**os.environ, "TMPDIR": str(temporary)}) as found:
        for _ in range(100):
            try:
                httpx.get(f"{found}health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield found
    assert list(temporary.iterdir()) == [] and {f.name for f in home.iterdir()} == {"log.txt", "tmp"}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page; at the end nothing must have gone elsewhere and no script have failed."""
    asked, problems, contexts = [], [], []

    def open_(**options):
        context = browser.new_context(accept_downloads=True, **{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("console", lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []
    assert asked and {u for u in asked if not u.startswith((address, "data:", "blob:"))} == set()


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Path]:
    """Ten phantoms of their own sizes."""
    folder = tmp_path_factory.mktemp("scans")
    files = []
    for n in range(10):
        label = CLASSES[n % 4]
        files.append(folder / f"{label}-{n}.jpeg")
        Image.fromarray(make_phantom(label, n)).save(files[-1])
    return files


def settled(page, cards):
    page.wait_for_function(
        "n => document.querySelectorAll('#results .card').length === n"
        " && document.getElementById('section').getAttribute('aria-busy') === 'false'",
        arg=cards,
    )


def in_sight(page, text):
    box = page.get_by_text(text).first.bounding_box()
    return box is not None and 0 <= box["y"] < page.viewport_size["height"]


def test_scans_are_answered_with_heat_maps(open_page, scans):
    page = open_page()
    assert in_sight(page, "Not a medical device") and in_sight(page, "Synthetic phantoms")
    assert outside_of_landmarks(page) == []
    shoot(page, "desktop-empty")
    page.set_input_files("#files", [str(f) for f in scans[:4]])
    settled(page, 4)
    cards = page.locator("#results .card")
    assert cards.locator("h3").all_inner_texts() == [f.name for f in scans[:4]]
    assert "4 of 4 scans answered" in page.inner_text("#status")
    assert page.get_attribute("#status", "aria-live") == "polite"
    assert cards.locator("tbody tr").count() == 16
    # So small a network may find nothing in one scan or another that speaks for its class.
    card = cards.filter(has=page.get_by_role("button", name="Heat map")).first
    picture = card.locator("img")
    heat = picture.get_attribute("src")
    assert "Heat map over" in picture.get_attribute("alt") and "not evidence" in picture.get_attribute("alt")
    assert picture.evaluate("i => i.complete && i.naturalWidth > 100")
    shoot(page, "desktop-results")
    button = card.get_by_role("button", name="Heat map")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert picture.get_attribute("src") != heat and "B-scan" in picture.get_attribute("alt")
    page.mouse.wheel(0, 3000)
    page.wait_for_timeout(300)
    assert in_sight(page, "Not a medical device")
    shoot(page, "desktop-no-heat-map")


def test_bad_files_have_a_sentence_each(open_page, scans, tmp_path):
    (tmp_path / "broken.png").write_bytes(scans[0].read_bytes()[:3000])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(huge_png(20_000))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(bytes(21 << 20))
    hostile = tmp_path / "=1+1<img src=x onerror=alert(1)>.jpeg"
    shutil.copy(scans[3], hostile)
    page = open_page()
    names = ["broken.png", "notes.txt", "huge.png", "empty.png", "large.png", hostile.name]
    page.set_input_files("#files", [str(tmp_path / n) for n in names])
    settled(page, 6)
    said = dict(zip(names, page.locator("#results .card").all_inner_texts(), strict=True))
    assert "truncated" in said["broken.png"] and "unsupported file type" in said["notes.txt"]
    assert "400,000,000 pixels" in said["huge.png"] and "empty" in said["empty.png"] and "21 MB" in said["large.png"]
    assert all("What to do:" in said[n] for n in names[:5])
    assert hostile.name in said[hostile.name] and page.locator("#results img").count() == 1
    assert "1 of 6 scans answered" in page.inner_text("#status") and "5 could not be read" in page.inner_text("#status")
    shoot(page, "errors")
    with page.expect_download() as caught:
        page.click("#save")
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert [r["file"] for r in rows] == [*names[:5], f"'{hostile.name}"]
    assert all("Not a medical device" in r["notice"] for r in rows)
    assert rows[2]["error"] and not rows[2]["predicted"] and rows[5]["predicted"] in CLASSES
    assert sum(float(rows[5][f"p_{c}"]) for c in CLASSES) == pytest.approx(1, abs=1e-6)
    assert rows[5]["referred"] == str(rows[5]["predicted"] in ("CNV", "DME")).lower() and "urgent" not in rows[5]
    assert float(rows[5]["urgent_score"]) == pytest.approx(float(rows[5]["p_CNV"]) + float(rows[5]["p_DME"]))


def test_ten_at_once_and_urgent_first(open_page, scans):
    page = open_page()
    page.set_input_files("#files", [str(f) for f in scans])
    settled(page, 10)
    assert "10 of 10 scans answered" in page.inner_text("#status")
    assert page.locator("#results h3").all_inner_texts() == [f.name for f in scans]
    page.check("#urgent-first")
    urgent = page.locator("#results .card").evaluate_all("cards => cards.map(c => c.classList.contains('urgent'))")
    assert urgent == sorted(urgent, reverse=True)
    shoot(page, "ten-urgent-first")
    page.click("#clear")
    assert page.locator("#results .card").count() == 0


def test_more_than_are_taken(open_page, scans):
    page = open_page()
    page.set_input_files("#files", [str(f) for f in [*scans, *scans[:4]]])
    settled(page, 13)
    assert "14 files at once, and 12 are taken" in page.locator("#results .card").last.inner_text()


def test_drop(open_page, scans):
    page = open_page()
    held = page.evaluate_handle(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name));
            return data;
        }""",
        [list(scans[0].read_bytes()), "dropped.jpeg"],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})
    settled(page, 1)
    assert page.locator("#results h3").inner_text() == "dropped.jpeg"


def test_by_keyboard_alone(open_page, scans):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    chosen = []
    page.on("filechooser", lambda found: chosen.append(found))
    # Chromium passes over keys that come too soon after a page has been opened.
    for _ in range(25):
        page.keyboard.press("Enter")
        page.wait_for_timeout(400)
        if chosen:
            break
    assert chosen
    chosen[0].set_files(str(scans[1]))
    settled(page, 1)
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[:5] == ["heat", "urgent-first", "save", "clear", "plain"]
    page.focus("button.plain")
    page.keyboard.press("Space")
    assert page.locator("button.plain").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_page, scans, scheme):
    page = open_page(viewport={"width": 375, "height": 740}, color_scheme=scheme)
    page.set_input_files("#files", [str(scans[0])])
    settled(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert in_sight(page, "Not a medical device")
    shoot(page, f"phone-{scheme}")


def test_dark(open_page, scans):
    page = open_page(color_scheme="dark")
    page.set_input_files("#files", [str(f) for f in scans[:2]])
    settled(page, 2)
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert max(red, green, blue) < 64
    shoot(page, "desktop-dark")


@pytest.fixture(scope="module")
def knowing(trained, tmp_path_factory):
    """The trained bundle with a distance beyond which every picture lies."""
    bundle = Path(shutil.copytree(trained.bundle, tmp_path_factory.mktemp("knowing") / "model"))
    info = read_info(bundle)
    update_info(bundle, calibration={k: v for k, v in info.calibration.items() if k != "unlike"})
    width = body_and_head_width(bundle)
    far = fit_distance(np.random.default_rng(0).normal(50, 0.1, size=(40, width)))
    save_distance(bundle, far, {"share": 0.01, "scans": 40, "patients": 40})
    return bundle


def body_and_head_width(bundle) -> int:
    with torch.no_grad():
        features = load_bundle(bundle)[0][0](torch.zeros(1, 3, 64, 64))
    return features.shape[1]


@pytest.mark.parametrize("anyway", [False, True])
def test_a_scan_unlike_training_is_marked(browser, knowing, scans, tmp_path, anyway):
    words = ["app", str(knowing), "--precision", "fp32", *(["--answer-anyway"] if anyway else [])]
    with served(words, tmp_path / "log.txt", cwd=tmp_path) as address:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        assert ("a class is given all the same" if anyway else "gets no class") in page.inner_text("main")
        page.set_input_files("#files", [str(f) for f in scans[:2]])
        settled(page, 2)
        card = page.locator("#results .card.unlike").first
        assert page.locator("#results .card.unlike").count() == 2
        assert "Unlike training" in card.locator(".badge").first.inner_text()
        assert "Let a person decide" in card.locator(".far").inner_text()
        assert "2 unlike the training scans" in page.inner_text("#status")
        assert ("No class" in card.inner_text()) is not anyway
        assert card.locator("tbody tr").count() == (4 if anyway else 0)
        shoot(page, f"unlike-{'anyway' if anyway else 'withheld'}")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 375, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        shoot(page, f"unlike-{'anyway' if anyway else 'withheld'}-phone-dark")
        with page.expect_download() as caught:
            page.click("#save")
        rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
        assert all(r["unlike_training"] == "true" and float(r["distance"]) > 1 for r in rows)
        assert all("unlike anything" in r["remarks"] and bool(r["predicted"]) is anyway for r in rows)
        page.close()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Phantom volumes as .vol, of one eye a class, small enough for the page."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volumes(folder / "v", 4, frames=12, size=96, kind="vol", workers=1)
    return folder / "v" / "volumes"


def test_a_volume_is_gone_through_by_slider_keys_buttons_and_curve(open_page, scans, volumes):
    page = open_page()
    page.set_input_files("#files", [str(sorted(volumes.glob("*.vol"))[0]), str(scans[0])])
    settled(page, 2)
    assert "2 of 2 files answered" in page.inner_text("#status")
    card = page.locator("#results .card.volume")
    words, slider = card.locator(".frame"), card.locator("input[type=range]")
    assert "12 B-scans" in card.locator(".answer").inner_text() and slider.get_attribute("max") == "11"
    assert card.locator(".suspicious button").count() == 5
    card.get_by_role("button", name="First B-scan").click()
    assert words.inner_text().startswith("B-scan 0 (0 to 11)")
    picture = card.locator("figure img").first
    first = picture.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert words.inner_text().startswith("B-scan 1 ") and slider.get_attribute("aria-valuetext") == "B-scan 1"
    assert (
        picture.get_attribute("src") != first and picture.evaluate("i => i.decode().then(() => i.naturalWidth)") == 96
    )
    card.get_by_role("button", name="Next B-scan").focus()
    page.keyboard.press("ArrowRight")
    assert words.inner_text().startswith("B-scan 2 ")
    box = card.locator("svg.curve").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + 20)
    assert words.inner_text().startswith("B-scan 11 ") and "5.76 mm" in words.inner_text()
    assert card.get_by_role("button", name="Next B-scan").is_disabled()
    # The line of a B-scan on the fundus is where one clicks.
    over = card.locator(".over svg").bounding_box()
    page.mouse.click(over["x"] + 20, over["y"] + over["height"] * 0.98)
    assert words.inner_text().startswith("B-scan 0 ") and card.locator(".over line.here").count() == 1
    shoot(page, "volume")
    page.keyboard.press("h")
    page.wait_for_function("() => /eat map: /.test(document.querySelector('.volume figure [role=status]').textContent)")
    page.set_viewport_size({"width": 375, "height": 740})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shoot(page, "volume-phone-dark")
    with page.expect_download() as caught:
        page.click("#save")
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert [r["frame"] for r in rows] == [*map(str, range(12)), ""]


def test_a_volume_that_is_cut_short_shows_what_there_is(open_page, volumes, tmp_path):
    whole = sorted(volumes.glob("*.vol"))[0].read_bytes()
    (tmp_path / "cut.vol").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "bad.vol").write_bytes(b"HSF-OCT" + bytes(3000))
    Image.fromarray(make_phantom("CNV", 1)).save(tmp_path / "one.tif")
    page = open_page()
    page.set_input_files("#files", [str(tmp_path / n) for n in ("cut.vol", "bad.vol", "one.tif")])
    settled(page, 3)
    cut, bad, one = page.locator("#results .card").all_inner_texts()
    assert "Not read to its end" in cut and "What to do" in cut and "could not be read" in cut
    assert "Not read" in bad and "What to do" in bad and "Probabilities" in one


def test_files_of_one_volume_that_are_dropped_together_are_one_answer(open_page, scans, tmp_path):
    """Two DICOM series with a file a B-scan, mixed, a whole DICOM volume, an export of HEYEX, and a picture."""
    pytest.importorskip("pydicom", minversion="3")
    frames = volume_files.frames_of(4, 64, 64)
    one = volume_files.write_series(tmp_path / "series", frames, series="1.2.3")
    two = volume_files.write_series(tmp_path / "series", frames[:2], series="1.2.4", places=[0.5, 0])
    whole = volume_files.write_dicom(tmp_path / "whole.dcm", frames[:3])
    export = volume_files.write_heyex(tmp_path / "E", frames[:3])
    mixed = [one[0], two[0], one[2], one[1], two[1], one[3]]
    page = open_page()
    chosen = [*mixed, whole, *sorted(export.parent.iterdir()), scans[0]]
    page.set_input_files("#files", [str(path) for path in chosen])
    settled(page, 5)
    assert "5 of 5 files answered" in page.inner_text("#status")
    cards = page.locator("#results .card")
    said = {card.locator("h3").first.inner_text(): card.inner_text() for card in cards.all()}
    assert list(said) == [
        *(f"{one[0].name} and 3 more", f"{two[0].name} and 1 more", "whole.dcm", "E.xml", scans[0].name),
    ]
    numbers = [f"{n} B-scan" in words for n, words in zip((4, 2, 3, 3), said.values(), strict=False)]
    assert all(numbers) and "left eye, Heidelberg Spectralis" in said["E.xml"]
    export_card = cards.nth(3)
    export_card.scroll_into_view_if_needed()
    assert export_card.locator(".over line.here").count() == 1
    shoot(page, "together")
    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shoot(page, "together-phone")
    with page.expect_download() as caught:
        page.click("#save")
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))
    assert [r["frame"] for r in rows] == [*"0123", *"01", *"012", *"012", ""]
