from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.data.readers.read import read_data
from octfast.errors import DataError, UsageError
from tests.data.readers.test_read import rows, write


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.csv", {"sep": ";"}),
        ("a.csv", {"encoding": "utf-8-sig"}),
        ("a.csv", {"encoding": "utf-16"}),
        ("a.csv", {"encoding": "cp1252"}),
        ("a.csv", {"sep": "|", "lineterminator": "\r\n"}),
        ("a.TSV", {"sep": "\t"}),
    ],
)
def test_a_table_reads_the_same_whatever_it_was_saved_by(folder, name, options):
    table = rows(patient=["7", "008", "ü 3", "4"], split=["Training", "VAL", "train ", "Testing"], site=["Köln"] * 4)
    scans = read_data(write(folder, table, name, **options))
    assert list(scans.columns) == ["path", "label", "patient", "split", "site"]
    assert scans["path"].tolist() == [str(folder / "images" / f"scan {i}.png") for i in range(4)]
    assert scans["patient"].tolist() == ["7", "008", "ü 3", "4"]
    assert scans["split"].tolist() == ["train", "valid", "train", "test"]
    assert set(scans["site"]) == {"Köln"}


def test_a_parquet_table_with_numbers_for_labels(folder):
    pytest.importorskip("pyarrow")
    table = rows(label=[0, 0, 1, 1], age=[61, 62, 63, 64])
    table.to_parquet(folder / "scans.parquet")
    scans = read_data(folder / "scans.parquet")
    assert scans["label"].tolist() == ["0", "0", "1", "1"] and scans["age"].tolist() == [61, 62, 63, 64]
    (folder / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="not a parquet table"):
        read_data(folder / "broken.parquet")


def test_labels_that_pandas_wrote_beside_a_gap_stay_whole_numbers(folder, said):
    scans = read_data(write(folder, rows(label=[0.0, 1.0, None, 1.0], grade=["None", "", "1", "2"])))
    assert scans["label"].tolist() == ["0", "1", "1"]
    assert any("1 rows without a label are left out" in line for line in said())


def test_none_is_a_class(folder):
    assert set(read_data(write(folder, rows(label=["None", "None", "mild", "mild"])))["label"]) == {"None", "mild"}


@pytest.mark.parametrize(
    "names", [("Image Path", "Diagnosis", "Patient ID", "Set"), ("file-name", "CLASS", "subject", "fold")]
)
def test_usual_columns_are_guessed_and_it_is_said(folder, said, names):
    table = rows(patient=list("1122"), split=["train", "train", "test", "valid"])
    table["label"] = ["A", "B", "A", "B"]
    scans = read_data(write(folder, table.set_axis(names, axis=1)))
    assert scans["patient"].tolist() == list("1122") and set(scans["split"]) == {"train", "valid", "test"}
    guess = next(line for line in said() if "columns guessed" in line)
    assert all(name in guess for name in names)


def test_columns_can_be_named_and_those_in_the_way_are_kept_under_another_name(folder):
    table = rows(grade=["x", "y", "x", "y"])
    scans = read_data(write(folder, table), label_column="grade")
    assert scans["label"].tolist() == ["x", "y", "x", "y"] and scans["label_in_table"].tolist() == ["A", "A", "B", "B"]


def test_fold_numbers_are_kept_and_are_no_splits(folder, said):
    scans = read_data(write(folder, rows(fold=[0, 1, 2, 0])))
    assert scans["fold"].tolist() == [0, 1, 2, 0] and set(scans["split"]) == {"train"}
    assert any("fold holds no splits" in line for line in said())


def test_an_unknown_column_gets_a_suggestion(folder):
    file = write(folder, rows().rename(columns={"label": "diagnose"}))
    with pytest.raises(UsageError) as e:
        read_data(file, label_column="diagnosis")
    assert "did you mean diagnose?" in e.value.hint and "diagnosis" in e.value.message
    with pytest.raises(DataError, match="no column that looks like a label; its columns are path, diagnose") as f:
        read_data(file)
    assert "--label-column" in f.value.hint


def test_a_column_cannot_be_two_things(folder):
    with pytest.raises(UsageError, match="named for two things"):
        read_data(write(folder, rows()), label_column="path", path_column="path")


def test_backslashes_are_slashes_where_no_file_is_named_so(folder):
    table = rows(path=[f"images\\scan {i}.png" for i in range(4)])
    assert len(read_data(write(folder, table))) == 4


def test_absolute_paths_and_paths_above_the_table(folder):
    (folder / "tables").mkdir()
    table = rows(path=[str(folder / "images" / "scan 0.png"), *(f"../images/scan {i}.png" for i in (1, 2, 3))])
    scans = read_data(write(folder / "tables", table))
    assert scans["path"].tolist() == [str(folder / "images" / f"scan {i}.png") for i in range(4)]


def test_missing_files_are_counted_listed_and_left_out(folder, said):
    table = pd.concat([rows(), rows(path=[f"gone/{i}.png" for i in range(4)])] * 2, ignore_index=True)
    table.loc[8:, "path"] = [f"lost/{i}.png" for i in range(8)]
    scans = read_data(write(folder, table))
    assert len(scans) == 4
    lines = said()
    assert any("12 of 16 files do not exist" in line for line in lines)
    assert sum(line.startswith("no such file: /") for line in lines) == 5 and "no such file: 7 more" in lines


def test_where_all_files_are_missing_there_is_an_error(folder):
    with pytest.raises(DataError, match=r"none of the 4 files .* exists"):
        read_data(write(folder, rows(path=[f"gone/{i}.png" for i in range(4)])))
    with pytest.raises(DataError, match=r"the first is C:\\data\\0.png") as e:
        read_data(write(folder, rows(path=[f"C:\\data\\{i}.png" for i in range(4)])))
    assert "another machine" in e.value.hint


def test_patients_come_from_names_else_each_file_is_one(folder, said):
    for i, name in enumerate(("A-12-1", "A-12-2", "B-7-1")):
        (folder / "images" / f"scan {i}.png").rename(folder / "images" / f"{name}.png")
    table = rows(path=[f"images/{n}.png" for n in ("A-12-1", "A-12-2", "B-7-1", "scan 3")])
    assert read_data(write(folder, table))["patient"].tolist() == ["12", "12", "7", "scan 3.png"]
    assert any("no column of patients" in line for line in said())
    assert any("1 of 4 file names are not CLASS-PATIENT-IMAGE" in line for line in said())


def test_rows_without_a_patient_are_patients_of_their_own(folder, said):
    scans = read_data(write(folder, rows(patient=["1", "", "NaN", "1"])))
    assert scans["patient"].tolist() == ["1", "scan 1.png", "scan 2.png", "1"]
    assert any("2 rows have no patient" in line for line in said())


@pytest.mark.parametrize("words", [["train", "train", "dev", "test"], ["train", "", "test", "valid"]])
def test_unknown_splits_are_refused(folder, words):
    with pytest.raises(DataError, match=r"1 of 4 rows have (unknown splits: dev|no split)"):
        read_data(write(folder, rows(split=words)))


def test_a_file_named_twice_counts_once_unless_it_has_two_labels(folder, said):
    table = pd.concat([rows(), rows()], ignore_index=True)
    assert len(read_data(write(folder, table))) == 4
    assert any("names 4 files more than once" in line for line in said())
    table.loc[5, "label"] = "B"
    with pytest.raises(DataError, match=r"scan 1\.png more than one label: A, B"):
        read_data(write(folder, table))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "cannot read|no rows"),
        ("path,label\n", "no rows"),
        ('path,label\n"a,b\n', "cannot read"),
        ("path,label\na,b,c\nd,e,f\n", "more values than there are columns"),
        ("path,path,label\na,b,c\n", "two columns are named path"),
        ("path,label\nimages/scan 0.png,A\nimages/scan 1.png,A\n", "only one class"),
        ("path,label,split\nimages/scan 0.png,A,test\nimages/scan 1.png,B,test\n", "all scans of .* are test scans"),
    ],
)
def test_tables_that_cannot_be_used(folder, text, match):
    (folder / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_data(folder / "bad.csv")


def test_a_test_class_that_train_lacks_is_refused(folder):
    with pytest.raises(DataError, match="classes that train lacks: C"):
        read_data(write(folder, rows(label=["A", "B", "A", "C"], split=["train", "train", "test", "test"])))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(["A", "B b", "ç;", 'q"', "x,y", "\t|"]), st.text("abé ,;\"'", max_size=4)
        ),
        min_size=2,
        max_size=4,
        unique_by=lambda row: row[0],
    )
)
@settings(max_examples=40)
def test_any_labels_and_patients_survive_a_csv(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("any")
    (folder / "images").mkdir()
    for i, _, _ in made:
        (folder / "images" / f"scan {i}.png").write_bytes(b"x")
    table = pd.DataFrame(made, columns=["i", "label", "patient"]).assign(
        path=lambda t: [f"images/scan {i}.png" for i in t["i"]]
    )
    file = write(folder, table)
    if table["label"].str.strip().nunique() < 2:
        with pytest.raises(DataError, match="only one class"):
            read_data(file)
        return
    scans = read_data(file)
    wanted = {f"scan {i}.png": (label.strip(), patient.strip() or f"scan {i}.png") for i, label, patient in made}
    assert {Path(r.path).name: (r.label, r.patient) for r in scans.itertuples()} == wanted
