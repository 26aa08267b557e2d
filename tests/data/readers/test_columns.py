from __future__ import annotations

import pandas as pd
import pytest

from octfast.data.prepare import prepare
from octfast.data.readers.read import read_data
from octfast.errors import DataError
from tests.data.readers.test_read import rows, write


def test_a_column_a_class(folder, said):
    table = rows().drop(columns="label").rename(columns={"path": "image"}).assign(CNV=[1, 0, 1, 0], DME=[0, 1, 0, 1])
    assert read_data(write(folder, table))["label"].tolist() == ["CNV", "DME", "CNV", "DME"]
    assert any("columns of 0 and 1: CNV, DME" in line for line in said())
    table["sex"] = [0, 1, 0, 1]
    with pytest.raises(DataError, match="CNV, DME, sex hold 0 and 1, but 2 of 4 rows have several") as e:
        read_data(write(folder, table))
    assert "--label-column CNV,DME" in e.value.hint
    scans = read_data(folder / "scans.csv", label_column="CNV,DME")
    assert scans["label"].tolist() == ["CNV", "DME", "CNV", "DME"] and scans["sex"].tolist() == [0, 1, 0, 1]
    table.loc[0, "DME"] = 1
    with pytest.raises(DataError, match="1 of 4 rows have several"):
        read_data(write(folder, table), label_column="CNV,DME")


@pytest.mark.parametrize("name", ["scans.xlsx", "scans.csv", "scans.xls"])
@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"])
def test_a_workbook_is_refused_whatever_its_name(folder, name, start):
    (folder / name).write_bytes(start + b"....")
    with pytest.raises(DataError, match="workbook of Excel") as e:
        read_data(folder / name)
    assert "CSV UTF-8" in e.value.hint


@pytest.mark.parametrize("sep", [";", ",", "\t", "|"])
def test_the_line_for_the_separator_that_excel_writes(folder, sep):
    text = rows().to_csv(index=False, sep=sep)
    for line in (f"sep={sep}\n", f'"sep={sep}"\r\n'):
        (folder / "scans.csv").write_bytes((line + text).encode("utf-8-sig"))
        assert len(read_data(folder / "scans.csv")) == 4


@pytest.mark.parametrize("name", ["set", "subset", "partition"])
def test_a_set_of_hospitals_is_no_split(folder, said, name):
    scans = read_data(write(folder, rows(**{name: ["Basel", "Bern", "Basel", "Bern"]})))
    assert set(scans["split"]) == {"train"} and scans[name].tolist() == ["Basel", "Bern", "Basel", "Bern"]
    assert any(f"the column {name} holds no splits" in line for line in said())


def test_splits_in_a_table_in_the_spellings_people_use(folder):
    scans = read_data(write(folder, rows(set=["Training set", "train_data", "Test-set", "VAL"])))
    assert scans["split"].tolist() == ["train", "train", "test", "valid"]


@pytest.mark.parametrize("sep", ["|", ";", ", "])
def test_several_labels_in_a_cell_are_refused(folder, sep):
    with pytest.raises(DataError, match="1 rows have several labels in a cell"):
        read_data(write(folder, rows(label=["CNV", "DME", f"CNV{sep}DME", "CNV"])))


def test_a_label_with_a_comma_is_a_label(folder):
    assert set(read_data(write(folder, rows(label=["AMD, wet", "AMD, wet", "DME", "DME"])))["label"]) == {
        "AMD, wet",
        "DME",
    }


def test_patients_in_two_ways_of_writing(folder, said):
    scans = read_data(write(folder, rows(patient=["479", "479.0", "7", "007"])))
    assert scans["patient"].tolist() == ["479", "479", "007", "007"]
    assert any("differ by leading zeros alone are taken for one, 1 times; the first: 007, 7" in line for line in said())
    assert read_data(write(folder, rows(patient=["479", "479.0", "A7", "1.0"])))["patient"].tolist()[:2] == ["479"] * 2


def test_a_patient_in_two_ways_of_writing_is_not_torn_apart_by_splits(folder):
    table = rows(patient=["7", "8", "007", "9"], split=["train", "train", "test", "valid"])
    with pytest.raises(DataError, match="1 patient stands in more than one split"):
        prepare(write(folder, table))


def test_whole_numbers_are_in_their_order(folder):
    from octfast.data import explore
    from octfast.data.audit.checks import check_table
    from octfast.data.scans import class_names

    table = pd.DataFrame({"path": ["images/scan 0.png"], "label": ["x"]})
    scans = pd.concat([table.assign(label=str(i), split="train") for i in range(11)])
    assert class_names(scans) == [str(i) for i in range(11)]
    assert class_names(pd.concat([scans, table.assign(label="a", split="train")]))[:3] == ["0", "1", "10"]
    shown = scans.assign(patient="1")
    numbers = [str(i) for i in range(11)]
    assert list(explore.counts(shown).columns)[:11] == list(explore.patients(shown).columns)[:11] == numbers
    (few,) = (f.detail for f in check_table(shown) if f.check == "few-scans")
    assert few.index(" 2 (") < few.index(" 10 (")


def test_patients_and_classes_from_somewhere_else(folder):
    table = rows(who=list("abab"), grade=list("xxyy"))
    scans = read_data(write(folder, table), patient_from="who", label_from="grade")
    assert scans["patient"].tolist() == list("abab") and scans["label"].tolist() == list("xxyy")
    scans = read_data(folder / "scans.csv", patient_from=r"scan (\d)", label_from=r"scan \d")
    assert scans["patient"].tolist() == list("0123") and scans["label"].tolist() == [f"scan {i}" for i in range(4)]
    assert set(read_data(folder / "scans.csv", label_from="folder", trainable=False)["label"]) == {"images"}
