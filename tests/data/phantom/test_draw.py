"""The synthetic B-scans: the same everywhere, whole or not there, and with something in them to learn."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from octfast.data.phantom.draw import CLASSES, NOTE, default_phantoms, make_phantom, write_phantoms
from octfast.errors import DataError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def bright_line(scan: np.ndarray) -> np.ndarray:
    """The row of the brightest band (the RPE) on each of the middle 400 columns, less its mean."""
    middle = scan[45:-45, scan.shape[1] // 2 - 200 : scan.shape[1] // 2 + 200].astype(float)
    rows = gaussian_filter(middle, (3, 5)).argmax(axis=0)
    return gaussian_filter1d(rows - rows.mean(), 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", 62, seed=3, test=0.25, size=64, workers=2)


def test_a_scan_is_grey_and_of_an_oct2017_size():
    shapes = {make_phantom("NORMAL", patient).shape for patient in range(40)}
    assert shapes == {(496, 512), (496, 768)}
    for label in CLASSES:
        scan = make_phantom(label, 7, 2)
        assert scan.dtype == np.uint8 and scan.ndim == 2
        assert scan.flags.c_contiguous


def test_the_same_arguments_give_the_same_scan_and_others_do_not():
    scan = make_phantom("CNV", 1234567, 2, seed=5)
    assert np.array_equal(scan, make_phantom("CNV", 1234567, 2, seed=5))
    others = [make_phantom(*args, seed=seed) for *args, seed in (("CNV", 1234567, 3, 5), ("CNV", 1234567, 2, 6))]
    others += [make_phantom("DME", 1234567, 2, seed=5)]
    assert not any(scan.shape == other.shape and np.array_equal(scan, other) for other in others)


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    one = write_phantoms(tmp_path / "one", 13, seed=9, workers=1)
    two = write_phantoms(tmp_path / "two", 13, seed=9, workers=2)
    assert digests(one) == digests(two)
    assert digests(one) != digests(write_phantoms(tmp_path / "three", 13, seed=10))


def test_a_file_holds_what_make_phantom_gives(tmp_path: Path):
    path = next(write_phantoms(tmp_path / "set", 4, seed=2, test=0).glob("train/DRUSEN/*.jpeg"))
    label, patient, image = path.stem.split("-")
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.mode == "L"
        assert picture.quantization[0][:4] == [8, 6, 5, 8]
        written = np.asarray(picture, dtype=float)
    made = make_phantom(label, int(patient), int(image), seed=2)
    assert written.shape == made.shape
    assert np.abs(written - made).mean() < 8


def test_counts_are_exact_and_classes_balanced(folder: Path):
    files = list(folder.glob("*/*/*.jpeg"))
    assert len(files) == 62
    labels = Counter(path.parent.name for path in files)
    assert set(labels) == set(CLASSES) and max(labels.values()) - min(labels.values()) <= 1
    held = Counter(path.parent.name for path in folder.glob("test/*/*.jpeg"))
    assert set(held.values()) == {4}
    assert all(Image.open(path).size == (64, 64) for path in files)


def test_patients_have_one_label_one_split_and_one_to_three_images(folder: Path):
    places, images = defaultdict(set), defaultdict(list)
    for path in folder.glob("*/*/*.jpeg"):
        label, patient, image = path.stem.split("-")
        assert label == path.parent.name and len(patient) == 7
        places[patient].add((path.parts[-3], label))
        images[patient].append(int(image))
    assert all(len(found) == 1 for found in places.values())
    assert all(sorted(found) == list(range(1, len(found) + 1)) and len(found) <= 3 for found in images.values())


def test_the_note_says_that_they_are_synthetic(folder: Path):
    text = (folder / NOTE).read_text()
    assert text.startswith("Synthetic") and "no clinical meaning" in text
    assert "scans: 62\n" in text and "seed: 3\n" in text and "version: " in text


def test_without_a_test_share_there_is_no_test_folder(tmp_path: Path):
    out = write_phantoms(tmp_path / "deep" / "er", 3, test=0, classes=("DME", "NORMAL"), size=32)
    assert sorted(path.name for path in out.iterdir()) == [NOTE, "train"]
    assert sorted(path.name for path in (out / "train").iterdir()) == ["DME", "NORMAL"]


def test_progress_counts_every_scan(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    write_phantoms(tmp_path / "set", 5, size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]


def test_images_of_a_patient_share_their_anatomy():
    lines = {(p, i): bright_line(make_phantom("NORMAL", p, i)) for p in range(100, 116) for i in (1, 2)}
    same = np.mean([np.abs(lines[p, 1] - lines[p, 2]).mean() for p in range(100, 116)])
    other = np.mean(
        [np.abs(lines[p, 1] - lines[q, 2]).mean() for p in range(100, 116) for q in range(100, 116) if p != q]
    )
    assert same < 0.6 * other


@pytest.mark.parametrize("patient", range(200, 210))
def test_every_diseased_scan_differs_from_the_same_eye_without(patient: int):
    healthy = make_phantom("NORMAL", patient).astype(float)
    for label in ("CNV", "DME", "DRUSEN"):
        change = np.abs(gaussian_filter(make_phantom(label, patient) - healthy, 2))
        assert change.max() > 20


def test_refusals(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(DataError) as refusal:
        write_phantoms(tmp_path / "full", 4)
    assert "not empty" in refusal.value.message and refusal.value.hint
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(DataError) as refusal:
        make_phantom("AMD", 1)
    assert "AMD" in refusal.value.message and "DRUSEN" in refusal.value.hint
    for wrong in ({"test": 1.0}, {"seed": -1}, {"scans": 3}, {"size": 2}, {"classes": ()}, {"classes": ("CNV", "CNV")}):
        with pytest.raises(DataError):
            write_phantoms(tmp_path / "new", **{"scans": 8, **wrong})
    with pytest.raises(DataError):
        make_phantom("CNV", -1)
    with pytest.raises(DataError):
        write_phantoms(tmp_path / "full" / "mine.txt" / "under", 4, size=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert (write_phantoms(tmp_path / "empty", 4, size=32) / NOTE).exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_is_left(tmp_path: Path, error: type[BaseException]):
    def stop(done: int, total: int) -> None:
        assert not (tmp_path / "set").exists()
        if done == 3:
            raise error

    with pytest.raises(error):
        write_phantoms(tmp_path / "set", 12, size=32, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_default_set_is_made_once_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path))
    made: list[int] = []
    first = default_phantoms(4, progress=lambda done, total: made.append(done))
    whole = digests(first)
    assert tmp_path in first.parents and len(made) == 4
    assert default_phantoms(4, progress=lambda done, total: made.append(done)) == first and len(made) == 4
    next(first.glob("*/*/*.jpeg")).write_bytes(b"cut short")
    assert digests(default_phantoms(4)) == whole
    (first / NOTE).unlink()
    assert digests(default_phantoms(4)) == whole
    shutil.rmtree(first / "train")
    assert digests(default_phantoms(4)) == whole
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert default_phantoms(4, cache=tmp_path / "other") != first


def test_two_can_make_the_default_set_at_once(tmp_path: Path):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: default_phantoms(8, cache=tmp_path), range(3)))
    assert len(set(folders)) == 1 and len(list(folders[0].glob("*/*/*.jpeg"))) == 8
    assert [path.name for path in folders[0].parent.iterdir()] == [folders[0].name]


def test_importing_it_brings_nothing_heavy():
    code = (
        "import sys, octfast.data.phantom.draw; print([m for m in ('torch', 'fastai', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def features(scan: np.ndarray) -> np.ndarray:
    """How far and how sharply the RPE leaves a smooth arc, how thick the retina is, how much of it is dark."""
    middle = scan[45:-45, scan.shape[1] // 2 - 200 : scan.shape[1] // 2 + 200].astype(float)
    blurred = gaussian_filter(middle, (1.5, 2.0))
    line = bright_line(scan)
    at = np.arange(line.size)
    bend = line - np.polyval(np.polyfit(at, line, 2), at)
    rows = gaussian_filter(middle, (3, 5)).argmax(axis=0)
    tissue = gaussian_filter(middle, (4, 6)) > 44
    top = tissue.argmax(axis=0)
    dark = [(blurred[a + 12 : b - 8, i] < 36).sum() for i, (a, b) in enumerate(zip(top, rows, strict=True))]
    thick = rows - top
    return np.log([bend.std() + 0.3, np.abs(np.diff(bend, 3)).mean() + 0.003, np.mean(dark) + 0.2, thick.max()])


def test_simple_features_tell_the_classes_apart_but_not_perfectly():
    table = {label: np.array([features(make_phantom(label, p)) for p in range(300, 330)]) for label in CLASSES}
    train = np.concatenate([rows[:15] for rows in table.values()])
    centre, spread = train.mean(axis=0), train.std(axis=0)
    means = {label: ((rows[:15] - centre) / spread).mean(axis=0) for label, rows in table.items()}
    right = 0
    for label, rows in table.items():
        for row in (rows[15:] - centre) / spread:
            right += label == min(CLASSES, key=lambda name: np.square(row - means[name]).sum())
    assert 0.55 < right / 60 < 0.99
