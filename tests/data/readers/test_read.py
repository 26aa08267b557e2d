from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.data.readers.folder import read_scans
from octfast.data.readers.read import data_folder, read_data
from octfast.errors import DataError, UsageError


def rows(**columns) -> pd.DataFrame:
    start = {"path": [f"images/scan {i}.png" for i in range(4)], "label": ["A", "A", "B", "B"]}
    return pd.DataFrame({**start, **columns})


def write(folder: Path, table: pd.DataFrame, name: str = "scans.csv", **options) -> Path:
    table.to_csv(folder / name, index=False, **options)
    return folder / name


def test_class_folders_are_read_as_before(phantoms):
    pd.testing.assert_frame_equal(read_data(phantoms), read_scans(phantoms))


def test_columns_named_for_a_folder_are_refused(phantoms):
    with pytest.raises(UsageError, match="is no table"):
        read_data(phantoms, label_column="label")


def test_a_folder_with_one_table_is_that_table(folder, said):
    write(folder, rows())
    write(folder, pd.DataFrame({"fault": ["x"], "path": ["y"]}), "faults.csv")
    assert len(read_data(folder)) == 4
    assert any("scans.csv" in line for line in said())


def test_a_folder_with_several_tables_names_them(folder):
    write(folder, rows(), "a.csv")
    write(folder, rows(), "b.tsv", sep="\t")
    with pytest.raises(DataError, match=r"more than one way: a\.csv, b\.tsv") as e:
        read_data(folder)
    assert "name the one meant" in e.value.hint


def test_class_folders_go_before_a_table_of_the_same_classes_and_clash_with_another(own_phantoms, said):
    scans = read_scans(own_phantoms)
    write(own_phantoms, scans, "index.csv")
    pd.testing.assert_frame_equal(read_data(own_phantoms), scans)
    assert any("the folders are read" in line for line in said())
    write(own_phantoms, scans.assign(label=scans["patient"]), "index.csv")
    with pytest.raises(DataError, match=r"more than one way: index\.csv, and folders of scans \(CNV, DME"):
        read_data(own_phantoms)


def test_things_that_are_no_data_set(folder):
    (folder / "set.zip").write_bytes(b"PK")
    for name, match in (
        ("images/scan 0.png", "one picture"),
        ("set.zip", "an archive"),
        ("none.csv", "no such file"),
    ):
        with pytest.raises(DataError, match=match):
            read_data(folder / name)
    with pytest.raises(DataError) as e:
        read_data(folder / "imags")
    assert "did you mean" in e.value.hint and "images" in e.value.hint


def npz(file: Path, n=(9, 4, 4), shape=(28, 28), classes=4, **changed) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {}
    for split, count in zip(("train", "val", "test"), n, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] % classes).astype(np.uint8)
    arrays |= changed
    np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_the_folder_of_the_data_holds_all_scans(folder, phantoms, tmp_path):
    assert data_folder(phantoms, read_data(phantoms)) == phantoms.resolve()
    file = write(folder, rows())
    assert data_folder(file, read_data(file)) == folder / "images"
    assert data_folder(folder, read_data(folder)) == folder
    npz(tmp_path / "octmnist.npz")
    scans = read_data(tmp_path / "octmnist.npz", cache=tmp_path / "cache")
    assert data_folder(tmp_path / "octmnist.npz", scans).parent == tmp_path / "cache" / "medmnist"
