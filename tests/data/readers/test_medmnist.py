from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.data.readers import medmnist
from octfast.data.readers.read import read_data
from octfast.errors import DataError
from tests.data.readers.test_read import npz


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (28, 28, 3)])
def test_medmnist_gives_the_pictures_and_labels_of_its_arrays(tmp_path, said, shape):
    arrays = npz(tmp_path / "octmnist_64.npz", shape=shape)
    scans = read_data(tmp_path / "octmnist_64.npz", cache=tmp_path / "cache")
    assert scans["split"].value_counts().to_dict() == {"train": 9, "valid": 4, "test": 4}
    assert scans["patient"].is_unique
    assert any("MedMNIST names no patients" in line for line in said())
    assert scans["path"].is_monotonic_increasing
    for row in scans.itertuples():
        split = {"valid": "val"}.get(row.split, row.split)
        i = int(Path(row.path).stem.rpartition("-")[2])
        assert np.array_equal(np.asarray(Image.open(row.path)), arrays[f"{split}_images"][i])
        assert row.label == medmnist.OCTMNIST_CLASSES[int(arrays[f"{split}_labels"][i, 0])]


def test_the_order_of_the_classes_is_medmnists():
    info = pytest.importorskip("medmnist").INFO["octmnist"]["label"]
    words = [info[str(i)] for i in range(4)]
    assert words == ["choroidal neovascularization", "diabetic macular edema", "drusen", "normal"]
    assert medmnist.OCTMNIST_CLASSES == ("CNV", "DME", "DRUSEN", "NORMAL")


def test_another_set_has_numbers_for_classes_and_a_folder_with_it_will_do(tmp_path, said):
    npz(tmp_path / "organamnist.npz", n=(22, 11, 11), classes=11)
    scans = read_data(tmp_path, cache=tmp_path / "cache")
    assert sorted(scans["label"].unique()) == [f"{i:02d}" for i in range(11)]
    assert any("named by their numbers, 0 to 10" in line for line in said())


def test_medmnist_is_unpacked_once(tmp_path, monkeypatch):
    npz(tmp_path / "octmnist.npz")
    first = read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")
    shutil.copy(tmp_path / "octmnist.npz", tmp_path / "copy-octmnist.npz")
    monkeypatch.setattr(medmnist, "_pictures", None)
    pd.testing.assert_frame_equal(read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache"), first)
    monkeypatch.undo()
    npz(tmp_path / "octmnist.npz", n=(10, 4, 4))
    assert len(read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")) == 18


def test_an_interrupted_unpacking_leaves_nothing_under_the_final_name_and_goes_on(tmp_path, monkeypatch):
    npz(tmp_path / "octmnist.npz")
    real, seen = medmnist._pictures, []

    def stop(file, split, count):
        if split == "val":
            raise KeyboardInterrupt
        yield from real(file, split, count)

    monkeypatch.setattr(medmnist, "_pictures", stop)
    with pytest.raises(KeyboardInterrupt):
        read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")
    names = [p.name for p in (tmp_path / "cache" / "medmnist").iterdir()]
    assert names and all(name.startswith(".") for name in names)
    monkeypatch.undo()
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *a, **k: (seen.append(1), save(self, *a, **k)))
    assert len(read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")) == 17
    assert len(seen) == 8


def test_a_picture_lost_from_the_cache_is_unpacked_again(tmp_path):
    npz(tmp_path / "octmnist.npz")
    lost = Path(read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")["path"].iloc[3])
    lost.unlink()
    read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")
    assert lost.is_file()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"val_labels": None}, "not a MedMNIST file: it holds"),
        ({"train_labels": np.zeros((9, 14), np.uint8)}, r"labels of shape \(9, 14\)"),
        ({"train_images": np.zeros((9, 28, 28, 28), np.uint8)}, r"train_images of shape \(9, 28, 28, 28\)"),
        ({"train_images": np.zeros((9, 28, 28), np.float32)}, "float32"),
        ({"train_images": np.zeros((8, 28, 28), np.uint8)}, "with 9 labels"),
        ({"train_labels": np.array([[{}]] * 9, dtype=object)}, "cannot read the labels"),
        ({"train_images": np.array([[{}]] * 9, dtype=object)}, "type object"),
    ],
)
def test_other_npz_files_are_refused_and_nothing_is_unpickled(tmp_path, changed, match):
    npz(tmp_path / "octmnist.npz", **changed)
    with pytest.raises(DataError, match=match):
        read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")


@pytest.mark.parametrize("at", [0.3, 0.5, 0.99])
def test_a_damaged_npz_is_one_line(tmp_path, at):
    file = tmp_path / "octmnist.npz"
    npz(file)
    data = bytearray(file.read_bytes())
    for i in range(40):
        data[int(at * len(data)) - 20 + i] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(DataError) as e:
        read_data(file, cache=tmp_path / "cache")
    assert "\n" not in e.value.message
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot read"):
        read_data(file, cache=tmp_path / "cache")
