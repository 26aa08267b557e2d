from __future__ import annotations

import unicodedata

import pytest

from octfast.data.readers.locate import resolve_paths
from octfast.data.readers.read import read_data
from octfast.errors import DataError
from tests.data.test_scans import touch


@pytest.fixture
def data(tmp_path):
    return touch(tmp_path, "AMD/amd_1_1.jpg", "NO/no_2_1.jpg", "NO/Übung.png", "x/twice.png", "y/twice.png")


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("amd_1_1", "AMD/amd_1_1.jpg"),
        ("AMD_1_1.JPG", "AMD/amd_1_1.jpg"),
        ("amd/amd_1_1.jpg", "AMD/amd_1_1.jpg"),
        ("AMD\\amd_1_1.jpg", "AMD/amd_1_1.jpg"),
        ("no\\NO_2_1", "NO/no_2_1.jpg"),
        (unicodedata.normalize("NFD", "Übung.png"), "NO/Übung.png"),
        ("twice", "twice"),
        ("../amd_1_1", "../amd_1_1"),
        ("elsewhere/amd_1_1.jpg", "elsewhere/amd_1_1.jpg"),
        ("/AMD/amd_1_1.jpg", "/AMD/amd_1_1.jpg"),
    ],
)
def test_a_file_is_found_by_what_can_mean_it_alone(data, said, text, there):
    wanted = str((data / there).resolve()) if not there.startswith("/") else there
    assert resolve_paths([text], data / "scans.csv") == [wanted]
    exact = (data / text.replace("\\", "/")).exists() or not (data / there).exists() or there.startswith("/")
    assert bool([line for line in said() if "taken from below its folder" in line]) != exact


def test_octdl_as_its_authors_ship_it(data, said):
    (data / "OCTDL_labels.csv").write_text(
        "file_name,disease,subcategory,patient_id\namd_1_1,AMD,x,1\nno_2_1,NO,,2\nÜbung,NO,,2\n", encoding="utf-8"
    )
    scans = read_data(data / "OCTDL_labels.csv")
    assert scans["patient"].tolist() == ["1", "2", "2"] and scans["label"].tolist() == ["AMD", "NO", "NO"]
    assert any("3 files have no such path" in line for line in said())


def test_a_class_in_a_folder_that_is_not_there_is_no_class_gone(data):
    (data / "t.csv").write_text("path,label\nAMD/amd_1_1.jpg,AMD\nNO/no_2_1.jpg,NO\ndme/1.jpg,DME\ndme/2.jpg,DME\n")
    with pytest.raises(DataError, match="none of the files of DME exists, and 2 of 4"):
        read_data(data / "t.csv")
