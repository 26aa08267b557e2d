from __future__ import annotations

from octfast.data.splits.groups import group_names, identical_files, linked_groups
from octfast.data.splits.hold_out import assign_validation
from tests.data.splits.test_folds import put


def test_identical_files_and_the_chains_they_make(tmp_path):
    scans = put(
        tmp_path, [("A", 1, "x", ""), ("A", 2, "x", ""), ("A", 2, "y", ""), ("A", 3, "y", ""), ("A", 4, "z", "")]
    )
    same = identical_files([*scans["path"], str(tmp_path / "none.png")])
    assert same[0] == same[1] and same[2] == same[3] and len(set(same)) == 4
    assert linked_groups(scans, same[:5]).tolist() == [0, 0, 0, 0, 1]
    (tmp_path / "000.png").write_text("")
    (tmp_path / "001.png").write_text("")
    assert len(set(identical_files(scans["path"].tolist()))) == 4


def test_zeros_before_a_number_make_no_other_patient_in_a_split(tmp_path):
    scans = put(tmp_path, [("A", "7", "x", ""), ("A", "007", "y", ""), ("B", "70", "z", ""), ("B", "0", "w", "")])
    assert linked_groups(scans, identical_files(scans["path"].tolist())).tolist() == [0, 0, 1, 2]
    assert group_names(scans) == ["007", "007", "70", "0"]


def test_the_default_split_keeps_identical_files_together(tmp_path):
    # Each patient of A has a copy of a scan of the next one's.
    rows = [("AB"[i % 2], 2 * i + j, f"{i}", "train") for i in range(30) for j in range(2)]
    scans = put(tmp_path, rows)
    for seed in range(5):
        out = assign_validation(scans, 0.2, seed)
        assert 0.1 < (out["split"] == "valid").mean() < 0.3
        assert (out.groupby(identical_files(out["path"].tolist()))["split"].nunique() == 1).all()


def test_a_file_that_all_patients_share_does_not_prevent_a_split(tmp_path, said):
    rows = [("AB"[i % 2], i, "blank" if j else f"{i}", "train") for i in range(20) for j in range(2)]
    out = assign_validation(put(tmp_path, rows), 0.2)
    assert (out.groupby("patient")["split"].nunique() == 1).all() and (out["split"] == "valid").sum() == 8
    assert any("identical files link so many patients" in line for line in said())
