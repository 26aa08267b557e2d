from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, UnidentifiedImageError

from octfast.data.phantom.faults import FAULTS, LIST, plant_faults, write_faulty_phantoms
from octfast.errors import DataError, UsageError


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """Two of each fault among 120 phantoms of 96 x 96. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("spoilt") / "phantoms"
    return folder, write_faulty_phantoms(folder, 120, dict.fromkeys(FAULTS, 2), seed=1, size=96, test=0.25)


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def named(path: str) -> tuple[str, str, str]:
    """Split, label and patient by the name of a file."""
    split, label, name = path.split("/")
    assert name.startswith(f"{label}-")
    return split, label, name.split("-")[1]


def test_each_fault_is_planted_as_often_as_asked_and_listed(spoilt):
    folder, table = spoilt
    assert Counter(table["fault"]) == dict.fromkeys(FAULTS, 2)
    assert table["path"].is_unique
    pd.testing.assert_frame_equal(pd.read_csv(folder / LIST, keep_default_na=False), table)
    assert all((folder / p).is_file() for p in table["path"])
    assert all((folder / p).is_file() for p in table["of"] if p)
    assert "38 planted on purpose" in (folder / "SYNTHETIC.txt").read_text()


def test_nothing_but_what_is_listed_is_changed(spoilt, tmp_path):
    from octfast.data.phantom.draw import write_phantoms

    folder, table = spoilt
    clean = digests(write_phantoms(tmp_path / "clean", 120, seed=1, size=96, test=0.25))
    now = digests(folder)
    touched = {Path(p).with_suffix("").as_posix() for p in table["path"]}
    for name, digest in clean.items():
        if name != "SYNTHETIC.txt" and Path(name).with_suffix("").as_posix() not in touched:
            assert now.pop(name) == digest
    assert set(now) - {"SYNTHETIC.txt", LIST} == set(table["path"])


def test_copies_are_copies_and_the_only_identical_files(spoilt):
    folder, table = spoilt
    found = digests(folder)
    pairs = table[table["fault"].str.startswith("duplicate")]
    for row in pairs.itertuples():
        assert found[row.path] == found[row.of]
        (split, label, patient), (split0, label0, patient0) = named(row.path), named(row.of)
        assert patient != patient0
        across = row.fault.partition("across-")[2]
        assert (split != split0) == (across == "splits") and (label != label0) == (across == "classes")
    empty = set(table.loc[table["fault"] == "empty", "path"])
    twice = [d for d, n in Counter(v for k, v in found.items() if k not in empty).items() if n > 1]
    assert len(twice) == len(pairs) == 6


def test_patients_are_shared_as_listed_and_no_others(spoilt):
    folder, table = spoilt
    scans = pd.DataFrame(
        [named(p) for p in digests(folder) if p.count("/") == 2], columns=["split", "label", "patient"]
    )
    for column, fault in (("split", "patient-across-splits"), ("label", "patient-two-labels")):
        several = scans.groupby("patient")[column].nunique()
        assert set(several.index[several > 1]) == {named(p)[2] for p in table.loc[table["fault"] == fault, "path"]}


def of(spoilt, fault: str) -> list[Path]:
    folder, table = spoilt
    return [folder / p for p in table.loc[table["fault"] == fault, "path"]]


def test_files_that_cannot_be_read(spoilt):
    for path in of(spoilt, "truncated"):
        with Image.open(path) as image, pytest.raises(OSError, match="truncated"):
            image.load()
    assert [p.stat().st_size for p in of(spoilt, "empty")] == [0, 0]
    for path in of(spoilt, "text"):
        assert path.suffix == ".jpeg" and path.read_text().startswith("This is a text")
        with pytest.raises(UnidentifiedImageError):
            Image.open(path)


@pytest.mark.parametrize(
    ("fault", "form", "mode", "suffix"),
    [
        ("wrong-extension", "PNG", "L", ".jpeg"),
        ("colour", "JPEG", "RGB", ".jpeg"),
        ("16-bit", "PNG", "I;16", ".png"),
        ("cmyk", "JPEG", "CMYK", ".jpeg"),
        ("rgba", "PNG", "RGBA", ".png"),
        ("gif", "GIF", "P", ".gif"),
    ],
)
def test_kinds_of_file(spoilt, fault, form, mode, suffix):
    for path in of(spoilt, fault):
        with Image.open(path) as image:
            assert image.format == form and path.suffix == suffix
            # Pillow 10 opens such a PNG as I, and a grey GIF as L.
            assert image.mode in {mode, *({"I"} if fault == "16-bit" else {"L"} if fault == "gif" else ())}
            image.load()


def test_what_is_seen_in_them(spoilt):
    def grey(path):
        return np.asarray(Image.open(path).convert("L")).astype(float)

    assert all(np.ptp(grey(p)) == 0 and grey(p).mean() > 200 for p in of(spoilt, "blank"))
    assert all(grey(p).max() == 0 for p in of(spoilt, "black"))
    assert all(grey(p)[:16, :70].max() > 120 for p in of(spoilt, "text-burnt-in"))
    assert all(Image.open(p).size == (193, 24) for p in of(spoilt, "odd-size"))
    for path in of(spoilt, "colour"):
        channels = np.asarray(Image.open(path)).astype(float)
        assert np.abs(channels[..., 0] - channels[..., 2]).mean() > 20


def test_near_duplicates_look_the_same_but_are_other_files(tmp_path):
    folder = tmp_path / "near"
    table = write_faulty_phantoms(folder, 40, {"near-duplicate": 3}, size=96)
    assert table["detail"].nunique() == 3

    def small(name):
        return np.asarray(Image.open(folder / name).convert("L").resize((24, 24), Image.Resampling.BOX)).astype(float)

    others = [p for p in digests(folder) if p.endswith("jpeg") and p not in set(table["of"])]
    for row in table.itertuples():
        assert (folder / row.path).read_bytes() != (folder / row.of).read_bytes()
        likeness = np.corrcoef(small(row.path).ravel(), small(row.of).ravel())[0, 1]
        others_likeness = [np.corrcoef(small(o).ravel(), small(row.of).ravel())[0, 1] for o in others if o != row.path]
        assert likeness > 0.99 and likeness > max(others_likeness)


def test_the_same_seed_gives_the_same_files(tmp_path):
    wanted = {"duplicate": 2, "truncated": 1, "patient-across-splits": 1}
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        write_faulty_phantoms(tmp_path / name, 40, wanted, seed=seed, size=32)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_only_phantoms_are_touched(tmp_path, phantoms):
    mine = tmp_path / "train" / "CNV" / "CNV-1-1.jpeg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="not a folder of phantoms"):
        plant_faults(tmp_path, {"empty": 1})
    assert digests(tmp_path) == {"train/CNV/CNV-1-1.jpeg": hashlib.sha256(b"mine").hexdigest()}


def test_faults_are_planted_once(spoilt):
    with pytest.raises(DataError, match="planted faults already"):
        plant_faults(spoilt[0], {"empty": 1})


@pytest.mark.parametrize(
    ("faults", "error", "match"),
    [
        ({"truncted": 1}, UsageError, "unknown fault: truncted"),
        ({"empty": -1}, UsageError, "must be 0 or more"),
        ({"blank": 30, "black": 30}, DataError, "too few phantoms"),
        ({"duplicate-across-splits": 1}, DataError, "needs phantoms in test"),
    ],
)
def test_what_cannot_be_planted_leaves_nothing_behind(tmp_path, faults, error, match):
    with pytest.raises(error, match=match) as e:
        write_faulty_phantoms(tmp_path / "out", 40, faults, size=16, test=0.0)
    assert list(tmp_path.iterdir()) == []
    if error is UsageError and "trunc" in match:
        assert e.value.hint == "did you mean truncated?"


def test_a_folder_with_files_is_not_written_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_faulty_phantoms(tmp_path, 40, {"empty": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
