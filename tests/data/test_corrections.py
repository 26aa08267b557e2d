"""What people decided about labels: kept line by line, read back, and applied before training."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octfast.data import corrections as c
from octfast.data.prepare import prepare
from octfast.errors import DataError, UsageError
from octfast.train.job import train_classifier
from tests.conftest import quick

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def scans_of(root, labels):
    rows = [(str(root / f"{i}.png"), label, f"p{i}", "train") for i, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(c.DECISIONS), TEXT, TEXT), max_size=15))
def test_of_each_scan_the_last_decision_that_was_not_undone_stands(steps, tmp_path_factory):
    file = tmp_path_factory.mktemp("c") / "corrections.csv"
    stands = {}
    for path, decision, new, reason in steps:
        c.record(file, path, decision, "CNV", new, reason, "AB")
        stack = stands.setdefault(path, [])
        if decision != c.UNDO:
            stack.append((decision, new, reason))
        elif stack:
            stack.pop()
    if steps:
        read = c.read_decisions(file)
        found = {r.path: (r.decision, r.new, r.reason) for r in read.itertuples()}
        assert found == {path: stack[-1] for path, stack in stands.items() if stack}


def test_a_line_that_a_kill_cut_short_does_not_swallow_the_next(tmp_path):
    file = tmp_path / "corrections.csv"
    c.record(file, "a.png", c.RELABEL, "CNV", "DME")
    whole = file.read_bytes()
    file.write_bytes(whole + b"b.png,rel")
    c.record(file, "c.png", c.AGREE, "CNV")
    with pytest.raises(DataError, match="line 3"):
        c.read_decisions(file)
    file.write_bytes(file.read_bytes().replace(b"b.png,rel\r\n", b""))
    assert list(c.read_decisions(file)["path"]) == ["a.png", "c.png"]


def test_labels_change_in_the_table_alone(tmp_path):
    scans = scans_of(tmp_path, ["CNV", "CNV", "DME", "DME", "CNV"])
    file = tmp_path / "corrections.csv"
    c.record(file, "0.png", c.RELABEL, "CNV", "DME")
    c.record(file, "1.png", c.LEAVE_OUT, "CNV")
    c.record(file, "2.png", c.AGREE, "DME")
    c.record(file, "3.png", c.RELABEL, "NORMAL", "CNV")  # another label than it has now
    c.record(file, "gone.png", c.LEAVE_OUT, "CNV")
    c.record(file, "4.png", c.RELABEL, "CNV", "DME", reviewer="AB")
    c.record(file, "4.png", c.AGREE, "CNV", reviewer="CD")
    out, left, done = c.apply_corrections(scans, file, tmp_path)
    assert list(out["label"]) == ["DME", "DME", "DME", "CNV"]
    assert list(left["path"]) == [str(tmp_path / "1.png")] and left["reason"].iloc[0] == "left out by corrections.csv"
    assert (done.relabelled, done.left_out, done.agreed) == (1, 1, 1)
    assert done.open == {"the label has changed since": 1, "reviewers differ": 1, "not in this data set": 1}


def test_corrections_are_applied_once(tmp_path):
    scans = scans_of(tmp_path, ["CNV", "DME"])
    c.record(tmp_path / "c.csv", "0.png", c.RELABEL, "CNV", "DME")
    once, _, _ = c.apply_corrections(scans, tmp_path / "c.csv", tmp_path)
    twice, _, done = c.apply_corrections(once, tmp_path / "c.csv", tmp_path)
    assert twice.equals(once) and done.relabelled == 0 and not done.open


@pytest.mark.parametrize(
    ("path", "new", "message"), [("elsewhere.png", "DME", "none of the 1 scans"), ("0.png", "DMEE", "no scan has")]
)
def test_a_file_for_other_data_or_with_an_unknown_label_is_refused(tmp_path, path, new, message):
    c.record(tmp_path / "c.csv", path, c.RELABEL, "CNV", new)
    with pytest.raises(DataError, match=message):
        c.apply_corrections(scans_of(tmp_path, ["CNV", "DME"]), tmp_path / "c.csv", tmp_path)


@pytest.mark.parametrize("content", ["", "path,label\na.png,CNV\n", "path,decision,old,new\na.png,burn,CNV,\n"])
def test_what_is_no_file_of_corrections_is_refused(tmp_path, content):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(DataError, match=r"c\.csv"):
        c.read_decisions(tmp_path / "c.csv")
    with pytest.raises(UsageError, match="no decision"):
        c.record(tmp_path / "c.csv", "a.png", "burn", "CNV")


def test_training_takes_the_corrected_labels_and_says_so(own_phantoms, tmp_path):
    first = sorted((own_phantoms / "train" / "CNV").iterdir())[:2]
    file = tmp_path / "corrections.csv"
    c.record(file, c.relative(first[0], own_phantoms), c.RELABEL, "CNV", "DME")
    c.record(file, c.relative(first[1], own_phantoms), c.LEAVE_OUT, "CNV")
    before = {p: p.read_bytes() for p in own_phantoms.rglob("*.*") if p.is_file()}
    prepared = prepare(own_phantoms, corrections=file)
    labels = prepared.scans.set_index("path")["label"]
    assert labels[str(first[0])] == "DME" and str(first[1]) not in labels
    run = train_classifier(**quick(own_phantoms, corrections=str(file), out=str(tmp_path / "run")))
    assert run.scans.set_index("path")["label"][str(first[0])] == "DME"
    assert "left out by corrections.csv" in (run.path / "left-out.csv").read_text()
    assert json.loads((run.path / "config.json").read_text())["data"]["corrected"]["relabelled"] == 1
    assert {p: p.read_bytes() for p in own_phantoms.rglob("*.*") if p.is_file()} == before
