from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octfast.data.volumes.kinds import kind_of, kind_of_bytes
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.inputs import Item, as_they_come, find_inputs
from octfast.errors import DataError, UsageError
from tests.data.volumes import volume_files as files
from tests.pictures import write_kinds


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Pictures and volumes in folders, among other files, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/10.png", "a/x.jpeg", "a/deep/y.TIF", "c.png", "a/[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(name, format="PNG")
    for name in ("a/notes.txt", ".hidden.png", "a/.cache/z.png", "__MACOSX/c.png", "b/Thumbs.db"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"something")
    files.write_vol(Path("a/volume.VOL"), files.frames_of())
    files.write_vol(Path("a/IM0001"), files.frames_of())
    return tmp_path


def paths(*inputs: object, **options: object) -> list[str]:
    found = list(find_inputs([str(i) for i in inputs], **options))
    assert not [i for i in found if i.problem]
    return [i.path for i in found]


def test_pictures_of_a_fundus_among_extracted_b_scans_are_passed_over(tmp_path):
    from octfast.data.extract import extract

    out = tmp_path / "out"
    extract([files.write_vol(tmp_path / "a.vol", files.frames_of(2))], out)
    assert len(list(out.rglob("*.png"))) == 3
    assert [Path(i.path).name for i in find_inputs([out])] == ["0-000.png", "0-001.png"]


def test_a_folder_gives_its_pictures_and_volumes_sorted(tree, said):
    expected = ["c.png", "a/IM0001", "a/[1].png", "a/volume.VOL", "a/x.jpeg", "a/deep/y.TIF", "b/10.png", "b/2.png"]
    assert paths(tree) == [str(tree / e) for e in expected]
    assert any("2 files that are neither" in line for line in said())


def test_without_recursion_the_folders_of_a_folder_are_left_alone(tree):
    assert paths("a", recursive=False) == ["a/IM0001", "a/[1].png", "a/volume.VOL", "a/x.jpeg"]


def test_inputs_stand_in_the_order_given_and_may_stand_twice(tree):
    assert paths("c.png", "b", "c.png") == ["c.png", "b/10.png", "b/2.png", "c.png"]


def test_patterns(tree):
    assert paths("b/*.png") == ["b/10.png", "b/2.png"]
    assert paths("**/*.png") == ["a/[1].png", "b/10.png", "b/2.png", "c.png"]
    assert paths("*/deep") == ["a/deep/y.TIF"]
    # A file of that very name comes first.
    assert paths("a/[1].png") == ["a/[1].png"]


def test_what_is_not_there_is_an_item_with_its_problem(tree):
    found = list(find_inputs(["c.png", "nowhere.png", "*.xyz", "c.png"]))
    assert [bool(i.problem) for i in found] == [False, True, True, False]
    assert "no such file: nowhere.png" in found[1].problem and "nothing matches" in found[2].problem


def test_an_address_on_the_web_is_an_item_with_its_problem(tree):
    (found,) = find_inputs(["https://example.org/scan.png"])
    assert "https://example.org/scan.png is an address on the web" in found.problem and "download it" in found.hint


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0l", "~no such user/x.png", "~no such user/*.png"])
def test_names_that_no_file_can_have(tree, name):
    (found,) = find_inputs([name])
    assert found.problem


def test_a_table_gives_the_files_of_its_column_relative_to_itself(tree, monkeypatch):
    Path("a/list.csv").write_text("label,file_path\nCNV,x.jpeg\nDME,../c.png\nCNV,gone.png\nCNV,\n")
    monkeypatch.chdir("/")
    found = list(find_inputs([tree / "a/list.csv"]))
    assert [Path(i.path).name for i in found] == ["x.jpeg", "c.png", "gone.png", "list.csv"]
    assert [bool(i.problem) for i in found] == [False, False, True, True]
    assert Path(found[0].path).is_file() and "line 5 has no path" in found[3].problem


def test_a_table_without_paths_is_refused(tree):
    Path("list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column that looks like a path"):
        list(find_inputs(["list.csv"]))


def test_standard_input_gives_names_as_they_come(tree):
    class Slow(io.BytesIO):
        taken = 0

        def __next__(self):
            self.taken += 1
            return super().__next__()

    source = Slow(b"c.png\r\n\nb\ngone.png\n")
    found = find_inputs(["-"], stdin=source)
    assert next(found) == Item("c.png") and source.taken == 1
    assert [i.path for i in found] == ["b/10.png", "b/2.png", "gone.png"]


def test_standard_input_can_be_read_once(tree):
    with pytest.raises(UsageError):
        list(find_inputs(["-", "-"]))


@pytest.mark.parametrize("name", ["=1+1.png", "+x.png", "-x.png", "@x.png"])
def test_a_name_that_a_spreadsheet_would_run_is_the_same_file_under_another_name(tree, name):
    Path("c.png").rename(name)
    (found,) = paths(f"./{name}")
    assert found[0] not in "=+-@" and Path(found).samefile(name)


def test_names_that_are_no_text(tree):
    name = os.fsdecode(b"caf\xe9.png")
    Path("c.png").rename(name)
    assert paths("*.png") == [name]
    assert [i.path for i in find_inputs(["-"], stdin=io.BytesIO(b"caf\xe9.png\n"))] == [name]


def test_content_tells_more_than_the_ending(tmp_path):
    for name, path in write_kinds(tmp_path / "pictures").items():
        wrong = path.with_suffix(".dcm")
        path.rename(wrong)
        assert kind_of(wrong) == "picture", name
    pytest.importorskip("pydicom")
    assert kind_of(files.write_dicom(tmp_path / "IM1", np.zeros((1, 2, 2), np.uint8))) == "dicom"
    for kind in ("vol", "e2e", "fda"):
        assert kind_of(files.write_kind(kind, tmp_path / f"{kind}.jpeg", files.frames_of())) == kind
    assert kind_of(files.write_fds(tmp_path / "a.fds", files.frames_of())) == "fds"


def test_the_ending_tells_where_nothing_else_does(tmp_path):
    for name, kind in (("a.img", "img"), ("a.dcm", "dicom"), ("a.jpeg", "picture"), ("a.txt", ""), ("a", "")):
        (tmp_path / name).write_bytes(b"")
        assert kind_of(tmp_path / name) == kind


@given(st.binary(max_size=200))
def test_any_bytes_are_of_some_kind_or_none(head):
    assert kind_of_bytes(head) in ("", "picture", "dicom", "vol", "e2e", "topcon")


def test_cells_that_can_be_no_files(tree):
    Path("list.csv").write_text(f"path\nc.png\n~no such user/x.png\n{'x' * 400}\n")
    assert [bool(i.problem) for i in find_inputs(["list.csv"])] == [False, True, True]


def test_links_in_a_folder_are_followed_as_training_does(tree):
    Path("b/linked").symlink_to(tree / "a" / "deep")
    Path("b/up").symlink_to(tree)
    Path("b/x.png").symlink_to(tree / "c.png")
    assert paths("b") == ["b/10.png", "b/2.png", "b/x.png", "b/linked/y.TIF"]


def test_a_folder_that_cannot_be_looked_into_is_an_item_with_its_problem(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path="."):
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(find_inputs(["a"]))
    assert [i.path for i in found if i.problem] == ["a/deep"] and len(found) == 5
    assert "cannot look into a/deep: Permission denied" in found[-1].problem


def test_a_table_with_windows_paths_bare_names_and_a_named_column(tree, said):
    Path("list.csv").write_text("who,where,path\n1,a\\x.jpeg,no\n2,Y,no\n3,B/10.PNG,no\n4,gone,no\n")
    found = list(find_inputs(["list.csv"], path_column="where"))
    assert [str(Path(i.path).resolve().relative_to(tree.resolve())) for i in found] == [
        *("a/x.jpeg", "a/deep/y.TIF", "b/10.png", "gone"),
    ]
    assert [bool(i.problem) for i in found] == [False, False, False, True]
    assert any("2 files have no such path" in line for line in said())
    with pytest.raises(UsageError, match=r"--path-column file: list\.csv has no such column"):
        list(find_inputs(["list.csv"], path_column="file"))


def test_a_series_that_standard_input_names_is_one_item_and_pictures_do_not_wait(tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    frames = files.frames_of(3)
    one = files.write_series(tmp_path / "dicom", frames, series="1.2.3")
    two = files.write_series(tmp_path / "dicom", frames[:2], series="1.2.4")
    whole = files.write_dicom(tmp_path / "whole.dcm", frames)
    (tmp_path / "a.png").write_bytes(b"")
    taken: list[str] = []

    def names():
        """Files of two series, mixed, then one of another folder."""
        mixed = [one[1], two[0], one[0], two[1], one[2]]
        for path in (tmp_path / "a.png", whole, *mixed, tmp_path / "a.png"):
            taken.append(path.name)
            yield f"{path}\n".encode()

    with VolumeReader() as reader:
        found = as_they_come(find_inputs(["-"], stdin=names()), reader)
        assert [next(found).path, next(found).path] == [str(tmp_path / "a.png"), str(whole)] and len(taken) == 2
        rest = list(found)
    assert sorted(len(i.files) for i in rest) == [0, 2, 3] and rest[-1].path.endswith("a.png")
    assert {tuple(sorted(i.files)) for i in rest if i.files} == {tuple(sorted(map(str, s))) for s in (one, two)}


def test_pictures_of_an_export_that_standard_input_names_are_read_with_it(tmp_path):
    path = files.write_heyex(tmp_path / "E", files.frames_of(2))
    listed = "\n".join(str(p) for p in sorted(path.parent.iterdir())).encode()
    with VolumeReader() as reader:
        found = list(as_they_come(find_inputs(["-"], stdin=io.BytesIO(listed)), reader))
    assert [i.path for i in found] == [str(path)]
