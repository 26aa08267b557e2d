from __future__ import annotations

import pytest

from octfast.run.privacy import named, without_places


@pytest.mark.parametrize(
    "words, left",
    [
        ("cannot read /home/al/runs/a/model.safetensors: cut short", "cannot read model.safetensors: cut short"),
        ("left out: /data/x/train/CNV/a.jpeg (bad)", "left out: train/CNV/a.jpeg (bad)"),
        ("'/mnt/d/a.png', \"/mnt/d/b.png\"", "'a.png', \"b.png\""),
        (r"cannot read C:\Users\al\a.csv", "cannot read a.csv"),
        ("folders ~/scans/old/x", "folders x"),
        ("train/valid and 3/4 of scans, and/or others", "train/valid and 3/4 of scans, and/or others"),
        ("see https://example.org/a/b.html", "see https://example.org/a/b.html"),
        ("a folder of Ann Lee: /data/Ann Lee/x.png", "a folder of Ann Lee: x.png"),
        ("CNV - / - NORMAL", "CNV - / - NORMAL"),
    ],
)
def test_sentences_without_the_folders_of_a_machine(words, left):
    assert without_places(words, ["/data/x", "/data/Ann Lee"]) == left


@pytest.mark.parametrize(
    "path, left",
    [
        ("/home/al/OCT2017", "OCT2017"),
        ("/home/al/OCT2017/", "OCT2017"),
        (r"C:\data\set.csv", "set.csv"),
        ("~/scans", "scans"),
        ("../other/scans", "scans"),
        ("data/OCT2017", "data/OCT2017"),
        ("auto", "auto"),
    ],
)
def test_a_path_by_its_name_where_it_tells_of_the_machine(path, left):
    assert named(path) == left
