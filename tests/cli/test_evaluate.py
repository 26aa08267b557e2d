from __future__ import annotations

import json
import shutil

import pytest

from octfast.data.readers.read import read_data
from tests.cli.test_cli import error

FEW = ("--resamples", 100)


def test_evaluating_a_run(octfast, own_run):
    ended = octfast("evaluate", own_run.path, *FEW)
    assert ended.code == 0
    for words in ("balanced accuracy", "Wilson", "Urgent referral", "on validation", "CNV (4 scans)", "Not a medical"):
        assert words in ended.out, words
    assert ended.out.splitlines()[-1] == str(own_run.path / "metrics-test.json")
    assert len(json.loads((own_run.path / "metrics-test.json").read_text())["overall"]) == 10


def test_evaluating_as_json(octfast, own_run, tmp_path):
    (tmp_path / "costs.csv").write_text(
        "x,CNV,DME,DRUSEN,NORMAL\nCNV,0,1,1,9\nDME,1,0,1,9\nDRUSEN,1,1,0,1\nNORMAL,1,1,1,0\n"
    )
    ended = octfast(
        *("evaluate", own_run.path, "--split", "valid", "--json", *FEW, "--seed", 3, "--top-k", 3),
        *("--prevalence", "CNV=.02,DME=.03", "--costs", tmp_path / "costs.csv", "--sensitivity", 0.9),
        *("--by", "label", "--by", "split", "--urgent", "CNV"),
    )
    told = json.loads(ended.out)
    assert ended.code == 0 and told["split"] == "valid" and told["seed"] == 3 and told["urgent"] == ["CNV"]
    assert told["costs"]["CNV"]["NORMAL"] == 9 and told["prevalence"] == {"CNV": 0.02, "DME": 0.03}
    assert told["operating"]["wanted"] == 0.9 and "top3_accuracy" in {r["metric"] for r in told["overall"]}
    assert {r["by"] for r in told["groups"]} == {"label", "split"}
    assert told["file"] == str(own_run.path / "metrics-valid.json")


def test_abstaining(octfast, own_run):
    ended = octfast("evaluate", own_run.path, *FEW, "--abstain-below", 0.9)
    assert "Without answers below a probability of 0.9" in ended.out and "accuracy of the answered" in ended.out
    kept = json.loads((own_run.path / "metrics-test.json").read_text())["abstain"]
    assert f"{kept['answered']} of {kept['scans']} scans answered" in ended.out


def test_evaluating_the_newest_run(octfast, own_run, monkeypatch):
    shutil.copytree(own_run.path, "runs/latest")
    ended = octfast("evaluate", *FEW, "--urgent", "none")
    assert ended.code == 0 and "No referral was judged" in ended.out and "Urgent referral" not in ended.out


def test_evaluating_on_other_scans(octfast, own_run, phantoms, tmp_path):
    ended = octfast("evaluate", own_run.bundle, phantoms, *FEW)
    assert ended.code == 0, ended.err
    file = ended.out.splitlines()[-1]
    assert file.startswith("evaluations/phantoms-") and file.endswith("metrics-test.json")
    n = (read_data(phantoms)["split"] == "test").sum()
    assert f"of {n} scans right" in ended.out
    again = octfast("evaluate", own_run.path, phantoms, "--out", tmp_path / "out", "--json", *FEW)
    assert json.loads(again.out)["file"] == str(tmp_path / "out" / "metrics-test.json")
    line = error(octfast("evaluate", own_run.path, phantoms, "--out", tmp_path / "out", *FEW), 2)
    assert "not empty" in line


def test_where_patient_and_class_of_other_scans_stand(octfast, own_run, phantoms, tmp_path):
    """As training has it: by folders, patterns or columns."""
    for file in sorted((phantoms / "test").rglob("*.jpeg")):
        label, patient, image = file.stem.split("-")
        at = tmp_path / "clinic" / f"{label}_{'ab'[int(image) % 2]}"
        at.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, at / f"case {patient} {image}.jpeg")
    ways = ["--label-from", "^(.+)_", "--patient-from", r"case (\d+)"]
    ended = octfast("evaluate", own_run.path, tmp_path / "clinic", "--split", "all", "--json", *ways, *FEW)
    assert ended.code == 0, ended.err
    scans = read_data(phantoms)
    test = scans[scans["split"] == "test"]
    counts = json.loads(ended.out)["counts"]
    assert (counts["scans"], counts["patients"]) == (len(test), test["patient"].nunique())
    assert "--patient-from is for DATA" in error(octfast("evaluate", own_run.path, "--patient-from", "name"), 2)


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--split", "tset"], 2, "tset"),
        (["--by", "devise"], 2, "--by devise"),
        (["--urgent", "AMD"], 2, "AMD"),
        (["--prevalence", "CNV"], 2, "--prevalence CNV"),
        (["--costs", "nothing.csv"], 1, "nothing.csv"),
        (["--resamples", 5], 2, "--resamples 5"),
        (["--sensitivity", 1.5], 2, "--sensitivity 1.5"),
        (["--out", "x"], 2, "--out"),
        (["--known-only"], 2, "--known-only"),
        (["--top-k", 0], 2, "top_k 0"),
        (["--abstain-below", 2], 2, "--abstain-below 2"),
        (["nowhere"], 1, "nowhere"),
    ],
    ids=lambda v: str(v),
)
def test_questions_that_cannot_be(octfast, own_run, words, code, said):
    before = (own_run.path / "metrics-test.json").read_bytes()
    assert said in error(octfast("evaluate", own_run.path, *words), code)
    assert (own_run.path / "metrics-test.json").read_bytes() == before


def test_what_is_no_run(octfast, own_run, phantoms, tmp_path):
    assert "neither a run folder nor a trained model" in error(octfast("evaluate", phantoms), 1)
    assert "no finished run in" in error(octfast("evaluate"), 1)
    bundle = shutil.copytree(own_run.bundle, tmp_path / "bundle")
    assert "model without scans" in error(octfast("evaluate", bundle), 2)
    assert "--moved" in error(octfast("evaluate", bundle, phantoms, "--moved", tmp_path), 2)


def test_comparing(octfast, own_run, trained, tmp_path):
    out = tmp_path / "comparison.json"
    ended = octfast("compare", trained.path, own_run.path, *FEW, "--out", out)
    assert ended.code == 0, ended.err
    for words in ("Side by side", "McNemar", f"own-run minus {trained.path.name}", "urgent sensitivity"):
        assert words in ended.out, words
    told = json.loads(octfast("compare", trained.path, own_run.path, *FEW, "--json").out)
    assert told == json.loads(out.read_text()) and told["split"] == "test"
    assert "exists" in error(octfast("compare", trained.path, own_run.path, "--out", out), 2)
    assert "two or more" in error(octfast("compare", trained.path), 2)
    assert "config.json is missing" in error(octfast("compare", trained.path, tmp_path), 1)
