from __future__ import annotations

import io
import random
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from octfast.data.loaders import oct_dataloaders
from octfast.data.phantom.draw import write_phantoms
from octfast.data.prepare import check_file, leave_out_unreadable, prepare
from octfast.data.preprocess import decode_grey
from octfast.data.readers.folder import read_scans
from octfast.data.splits.files import save_splits
from octfast.data.splits.folds import make_splits
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import DataError
from octfast.train.job import train_classifier
from tests.pictures import scan, write_broken, write_kinds


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("empty.jpeg", "empty file"),
        ("truncated.jpeg", "truncated"),
        ("head-only.jpeg", ""),
        ("text.jpeg", "not a picture"),
        ("web.png", "not a picture"),
        ("floats.tif", "32-bit"),
        ("integers.tif", "32-bit"),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(tmp_path, kind, reason):
    file = write_broken(tmp_path)[kind]
    found, unusual = check_file(file)
    assert found and reason in found and str(file) not in found and "\n" not in found
    assert unusual == ()


def test_a_missing_file(tmp_path):
    assert check_file(tmp_path / "gone.jpeg")[0]


def test_what_passes_can_be_decoded_and_what_does_not_cannot(tmp_path):
    for file in {**write_kinds(tmp_path / "a"), **write_broken(tmp_path / "b")}.values():
        reason, _ = check_file(file)
        if reason:
            with pytest.raises(DataError):
                decode_grey(file)
        else:
            decode_grey(file)


@pytest.mark.parametrize("name", ["scan.jpeg", "scan.png"])
def test_no_enormous_picture_passes(tmp_path, monkeypatch, name):
    Image.fromarray(scan()).save(tmp_path / name)
    monkeypatch.setattr("octfast.data.decode.MAX_PIXELS", 100)
    assert "pixels" in check_file(tmp_path / name)[0]


def folder(tmp_path):
    for label in "AB":
        write_kinds(tmp_path / label)
    write_broken(tmp_path / "A")
    return tmp_path


def test_the_unreadable_are_left_out_listed_and_never_deleted(tmp_path, said):
    scans = read_scans(folder(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    good, bad = leave_out_unreadable(scans)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    broken = set(write_broken(tmp_path.parent / "names"))
    assert {p.rsplit("/")[-1] for p in bad["path"]} == broken and (bad["reason"] != "").all()
    both = pd.concat([good, bad.drop(columns="reason")]).sort_values("path", ignore_index=True)
    pd.testing.assert_frame_equal(both, scans)
    lines = [line for line in said() if line.startswith("left out, unreadable")]
    assert len(lines) == 6 and lines[-1].endswith("2 more")


def test_what_is_read_with_a_change_is_said_once_a_kind(tmp_path, said):
    leave_out_unreadable(read_scans(folder(tmp_path)))
    text = "\n".join(said())
    for kind in ("16-bit grey", "CMYK", "RGBA", "palette", "animated", "grey with transparency"):
        assert text.count(f"scans are {kind}") == 1, kind
    assert "colour pictures, read as grey" in text


def test_progress_counts_every_file(phantoms):
    scans, calls = read_scans(phantoms), []
    leave_out_unreadable(scans, lambda done, total: calls.append((done, total)))
    assert calls == [(n, len(scans)) for n in range(1, len(scans) + 1)]


def test_nothing_is_left_out_of_sound_scans(phantoms, said):
    scans = read_scans(phantoms)
    good, bad = leave_out_unreadable(scans)
    pd.testing.assert_frame_equal(good, scans)
    assert bad.empty and not said()


def test_fewer_than_two_classes_left_is_an_error(tmp_path):
    write_kinds(tmp_path / "A")
    write_broken(tmp_path / "B")
    with pytest.raises(DataError, match="7 of 22 files cannot be read, and the rest has 1 class"):
        leave_out_unreadable(read_scans(tmp_path))


@pytest.fixture
def leaky(tmp_path):
    """Phantoms of which one patient stands in train and in test, and that patient."""
    root = write_phantoms(tmp_path / "leaky", 80, size=48, seed=2)
    file = min((root / "train" / "CNV").iterdir())
    patient = file.stem.split("-")[1]
    shutil.copy(file, root / "test" / "CNV" / f"CNV-{patient}-77.jpeg")
    return root, patient


def through_the_command(data, **fields):
    train_classifier(data=str(data), size=32, out=str(data.parent / "run"), **fields)


def through_python(data, **fields):
    return oct_dataloaders(data, size=32, num_workers=0, device="cpu", **fields)


@pytest.mark.parametrize("door", [prepare, through_python, through_the_command])
def test_every_door_refuses_patients_in_two_splits(leaky, door):
    with pytest.raises(DataError, match=r"1 patient stands in more than one split, .* \(test\+train: 1\)"):
        door(leaky[0])
    assert not (leaky[0].parent / "run").exists()


def test_every_door_refuses_a_table_whose_validation_shares_patients(leaky):
    scans = read_scans(leaky[0]).query("split == 'train'").reset_index(drop=True)
    scans["split"] = ["valid" if i % 3 == 0 else "train" for i in range(len(scans))]
    for door in (prepare, through_python):
        with pytest.raises(DataError, match="stand in more than one split"):
            door(scans)


@pytest.mark.parametrize("as_table", [False, True])
def test_leaks_can_be_dropped_or_allowed(leaky, said, as_table):
    root, patient = leaky
    data = read_scans(root) if as_table else root
    kept = prepare(data, drop_leaks=True)
    assert shared_patients(kept.scans).empty and set(kept.left_out["patient"]) == {patient}
    assert set(kept.left_out["reason"]) <= {"the patient is in test", "an identical file is in test"}
    assert not shared_patients(through_python(data, drop_leaks=True).scans).shape[0]
    assert not any("too good" in line for line in said())
    allowed = through_python(data, allow_leaks=True)
    assert set(shared_patients(allowed.scans)["patient"]) == {patient}
    assert any("too good" in line for line in said())


def test_both_doors_hold_out_the_same_patients(phantoms):
    ready = prepare(phantoms, valid=0.25, seed=3)
    assert ready.root == phantoms.resolve() and ready.left_out.empty
    pd.testing.assert_frame_equal(through_python(ready).scans, ready.scans)
    pd.testing.assert_frame_equal(through_python(phantoms, valid=0.25, seed=3).scans, ready.scans)
    pd.testing.assert_frame_equal(prepare(ready.scans, valid=0.5, seed=4).scans, ready.scans)


def test_no_table_is_changed(leaky):
    scans = read_scans(leaky[0])
    before = scans.copy()
    prepare(scans, drop_leaks=True)
    pd.testing.assert_frame_equal(scans, before)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="no scans"):
        prepare(pd.DataFrame(columns=["path", "label", "patient", "split"]))


def test_splits_drawn_beforehand_are_kept(phantoms, tmp_path):
    splits = make_splits(read_scans(phantoms), valid=0.2)
    save_splits(splits, tmp_path / "splits.csv")
    ready = prepare(phantoms, valid=0.5, splits=tmp_path / "splits.csv")
    pd.testing.assert_series_equal(ready.scans["split"], splits["split"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_scans_that_end_well_are_left_out_listed_and_the_rest_is_trained_on(phantoms, tmp_path, split, said):
    root = shutil.copytree(phantoms, tmp_path / "spoilt")
    spoilt = sorted((root / split).rglob("*.jpeg"))[::9]
    for file in spoilt:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    ready = prepare(root, valid=0.25)
    assert {Path(p).name for p in ready.left_out["path"]} == {f.name for f in spoilt}
    assert ready.left_out["reason"].str.startswith("truncated").all()
    assert not set(ready.scans["path"]) & set(map(str, spoilt))
    assert any("left out, unreadable" in line for line in said())


def test_turned_blank_tiny_and_paged_scans_are_said_before_training(tmp_path, said):
    exif = Image.Exif()
    exif[274] = 3
    for label in "AB":
        (tmp_path / label).mkdir()
        for n in range(3):
            Image.fromarray(scan(seed=n)).save(tmp_path / label / f"{n}.png", exif=exif)
            Image.new("L", (50, 50), 9).save(tmp_path / label / f"blank{n}.png")
        Image.fromarray(scan(9, 9)).save(tmp_path / label / "tiny.png")
        # Pages of one size would be a volume.
        pages = [Image.fromarray(scan(seed=1)), Image.new("L", (8, 8))]
        pages[0].save(tmp_path / label / "stack.tif", save_all=True, append_images=pages[1:])
    good, bad = leave_out_unreadable(read_scans(tmp_path))
    lines = said()
    assert bad.empty and len(good) == 16
    for count, words in ((6, "stored rotated"), (6, "blank"), (2, "lower or narrower"), (2, "animated or of several")):
        assert any(line.startswith(f"{count} scans are {words}") for line in lines), words


def test_the_check_is_as_strict_as_the_decoder(tmp_path):
    """Whatever is done to a file, what passes can be decoded, and what does not cannot."""
    draw = random.Random(0)
    whole = {file.name: file.read_bytes() for file in write_kinds(tmp_path / "a").values()}
    for n in range(300):
        name, data = draw.choice(sorted(whole.items()))
        at = draw.randrange(len(data))
        how = draw.choice((data[:at], data[:at] + b"\xff\xd9", data[:at] + bytes(40) + data[at + 40 :]))
        (tmp_path / name).write_bytes(how)
        reason, _ = check_file(tmp_path / name)
        assert "\n" not in reason
        try:
            decode_grey(tmp_path / name)
            assert not reason, (n, name)
        except DataError:
            assert reason, (n, name)


def test_a_file_is_opened_twice_at_most_as_scans_are_prepared(phantoms, monkeypatch):
    """Once to be checked, and once more to be compared where another has its size."""
    opened: Counter[str] = Counter()
    real = io.open

    def counted(file, *args, **kwargs):
        opened[str(file)] += 1
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr("io.open", counted)
    found = prepare(phantoms)
    assert {opened[path] for path in found.scans["path"]} <= {1, 2}
