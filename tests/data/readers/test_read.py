from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from octfast.data.readers.folder import read_scans
from octfast.data.readers.read import data_folder, read_data
from octfast.data.splits.groups import identical_files
from octfast.data.splits.hold_out import assign_validation
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
    with pytest.raises(UsageError, match="is not a table"):
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


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["", "OCTDL_labels.csv"])
def test_octdl_as_it_is_shipped(name):
    from tests.conftest import SHARED

    octdl = SHARED / "data" / "octdl" / name
    if not octdl.exists():
        pytest.skip(f"no {octdl}")
    scans = read_data(octdl)
    assert len(scans) == 2064 and scans["patient"].nunique() == 820 and scans["label"].nunique() == 7
    same = pd.Series(identical_files(scans["path"].tolist()))
    groups = scans.groupby(same.to_numpy())
    pairs = groups.size()[lambda n: n > 1].index
    assert len(pairs) == 55 and (groups["patient"].nunique()[pairs] > 1).sum() == 47
    for seed in range(3):
        split = assign_validation(scans, 0.1, seed)["split"]
        assert (split.groupby(same.to_numpy()).nunique() == 1).all()


def test_a_table_that_names_the_patients_is_read_where_folders_do_not(folder, said):
    for name in ("A/x.png", "A/y.png", "B/z.png", "B/lost.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for file in (folder / "images").iterdir():
        file.unlink()
    (folder / "images").rmdir()
    table = pd.DataFrame({"image": ["x", "y", "z"], "dx": ["A", "A", "B"], "patient": ["1", "1", "2"]})
    write(folder, table)
    scans = read_data(folder)
    assert scans["patient"].tolist() == ["1", "1", "2"]
    lines = said()
    assert any("do not say the patients, but scans.csv does: the table is read" in line for line in lines)
    assert any("left out: 1 pictures below" in line and "B/lost.png" in line for line in lines)


@pytest.mark.parametrize("address", ["https://example.org/scans.zip", "S3://bucket/scans", Path("http://localhost/x")])
def test_an_address_on_the_web_is_refused_as_one(address):
    with pytest.raises(DataError, match=r"://\w[\w./]+ is an address on the web"):
        read_data(address)
