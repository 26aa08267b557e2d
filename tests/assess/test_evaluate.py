from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from octfast.assess import evaluate, predictions
from octfast.assess.compare import compare_runs
from octfast.assess.evaluate import evaluate_data, evaluate_run, evaluation_folder, find_bundle_and_run
from octfast.assess.metrics.referral import fix_operating_point
from octfast.data.readers.read import read_data
from octfast.errors import BundleError, DataError, UsageError
from octfast.model.bundle.read import read_info
from octfast.model.bundle.write import update_info
from octfast.model.forward import headline
from octfast.run.folder import open_run

FEW = {"resamples": 100}


@pytest.fixture
def calls(monkeypatch):
    """How many scans the model has seen, call by call."""
    seen = []
    for module in (evaluate, predictions):
        predict = module.predict_scans

        def counted(model, info, scans, *args, predict=predict, **kwargs):
            seen.append(len(scans))
            return predict(model, info, scans, *args, **kwargs)

        monkeypatch.setattr(module, "predict_scans", counted)
    return seen


def test_a_run_is_judged_on_its_test_from_what_training_left(own_run, calls, said):
    found = evaluate_run(own_run, **FEW)
    table = own_run.predictions("test")
    kept = json.loads((own_run.path / "metrics-test.json").read_text())
    assert kept == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {k: kept[k] for k in headline(table)} == pytest.approx(headline(table))
    assert kept["schema"] == 1 and kept["split"] == "test" and kept["source"]["run"] == own_run.path.name
    assert not calls and "split: test" in said()


def test_the_operating_point_comes_from_validation_and_never_from_test(own_run):
    found = evaluate_run(own_run, "test", sensitivity=0.8, **FEW)
    valid = own_run.predictions("valid")
    point = fix_operating_point(valid, ["CNV", "DME"], 0.8)
    assert found.settings["operating"]["threshold"] == point.threshold
    assert found.settings["operating"]["scans"] == len(valid)
    # Other test scans, the same point.
    table = own_run.predictions("test")
    own_run.save_predictions(table.iloc[::-2], "test")
    assert evaluate_run(own_run, "test", sensitivity=0.8, **FEW).settings["operating"] == found.settings["operating"]
    on_valid = evaluate_run(own_run, "valid", sensitivity=0.8, **FEW)
    assert on_valid.value("sensitivity", "operating") >= 0.8
    assert any("these very scans" in note for note in on_valid.notes)


def test_the_models_own_operating_point_is_taken(own_run):
    kept = {"split": "valid", "operating": {"urgent": ["CNV", "DME"], "sensitivity": 0.9, "threshold": 0.123}}
    update_info(own_run.bundle, calibration=kept)
    found = evaluate_run(own_run, **FEW)
    assert found.settings["operating"]["threshold"] == 0.123
    assert "kept in the model" in found.settings["operating"]["fixed_on"]
    assert evaluate_run(own_run, sensitivity=0.95, **FEW).settings["operating"]["threshold"] != 0.123
    assert evaluate_run(own_run, urgent=["DRUSEN"], **FEW).settings["operating"]["threshold"] != 0.123


def test_a_split_that_is_not_there(own_run):
    scans = pd.read_csv(own_run.path / "scans.csv", dtype=str).query("split != 'test'")
    scans.to_csv(own_run.path / "scans.csv", index=False)
    own_run.predictions_file("test").unlink()
    assert evaluate_run(own_run, **FEW).source["split"] == "valid"
    with pytest.raises(DataError, match="no test scans") as e:
        evaluate_run(own_run, "test", **FEW)
    assert "train, valid" in e.value.hint
    with pytest.raises(UsageError, match="no split named"):
        evaluate_run(own_run, "tset", **FEW)


def test_training_scans_are_warned_of(own_run, said):
    found = evaluate_run(own_run, "train", **FEW)
    assert any("trained on" in note for note in found.notes) and any("trained on" in line for line in said())


def test_other_scans_are_run_once_and_what_was_found_is_kept(own_run, phantoms, tmp_path, calls, said):
    out = tmp_path / "outside"
    found = evaluate_data(own_run.bundle, phantoms, out, **FEW)
    scans = read_data(phantoms).query("split == 'test'")
    assert calls == [len(scans)] and found.counts["scans"] == len(scans)
    assert sorted(f.name for f in out.iterdir()) == ["data.json", "metrics-test.json", "predictions-test.csv"]
    assert str(phantoms) not in (out / "metrics-test.json").read_text()
    kept = json.loads((out / "metrics-test.json").read_text())
    assert kept["source"]["data"] == phantoms.name and kept["source"]["run"] == own_run.path.name
    # The same scans as the run's own test, and a bundle inside a run finds that run's validation.
    own = evaluate_run(own_run, "test", **FEW)
    assert found.value("accuracy") == own.value("accuracy")
    assert found.settings["operating"] == own.settings["operating"]
    with pytest.raises(UsageError, match="not empty"):
        evaluate_data(own_run.bundle, phantoms, out, **FEW)
    assert len(calls) == 1


def test_a_bundle_alone_has_no_operating_point(own_run, phantoms, tmp_path):
    bundle = shutil.copytree(own_run.bundle, tmp_path / "handed-on")
    found = evaluate_data(bundle, phantoms, tmp_path / "out", **FEW)
    assert found.settings["operating"] is None and any("No operating point" in n for n in found.notes)
    assert set(found.referral["point"]) == {"argmax", "score"}
    assert found.source["run"] == "handed-on"


def test_data_without_splits_is_used_whole(own_run, own_phantoms, tmp_path, said):
    found = evaluate_data(own_run, own_phantoms / "test", tmp_path / "out", **FEW)
    assert found.source["split"] == "all" and (tmp_path / "out" / "metrics-all.json").exists()
    assert any("no splits" in line for line in said())
    with pytest.raises(UsageError, match="--split test") as e:
        evaluate_data(own_run, own_phantoms / "test", tmp_path / "other", "test", **FEW)
    assert "all" in e.value.hint
    found = evaluate_data(own_run, own_phantoms, tmp_path / "every", "all", **FEW)
    assert found.counts["scans"] == len(read_data(own_phantoms))


def test_scans_that_were_trained_on_are_found_again(own_run, phantoms, tmp_path, said):
    found = evaluate_data(own_run, phantoms, tmp_path / "out", "all", **FEW)
    n = (own_run.scans["split"] == "train").sum()
    assert any(note.startswith(f"{n} of 72 scans were trained on") for note in found.notes)
    assert any("were trained on" in line for line in said())


def test_scans_and_people_that_played_a_part_in_training_are_found(own_run, own_phantoms, phantoms, tmp_path, said):
    table = own_run.scans.query("split != 'train'")
    table.to_csv(tmp_path / "again.csv", index=False)
    notes = evaluate_data(own_run, tmp_path / "again.csv", tmp_path / "out", "all", **FEW).notes
    n = (table["split"] == "valid").sum()
    assert any(note.startswith(f"{n} of {len(table)} scans are of the run's validation") for note in notes)
    assert not any("trained on" in note for note in notes)
    # The same files, copied: their paths say nothing, their patients do.
    notes = evaluate_data(own_run, own_phantoms, tmp_path / "copied", "train", **FEW).notes
    assert any("are called as patients that were trained on" in note for note in notes)
    assert any("are called as patients" in line for line in said())
    assert not evaluate_data(own_run, phantoms, tmp_path / "test", "test", **FEW).notes[0].startswith("1")


def test_a_column_that_is_not_there_is_said_before_the_model_runs(own_run, phantoms, tmp_path, calls):
    for asked in ({"by_group": ["devise"]}, {"resamples": 5}, {"top_k": 0}, {"abstain_below": 2}):
        with pytest.raises(UsageError):
            evaluate_data(own_run, phantoms, tmp_path / "out", **asked)
    assert not calls and not (tmp_path / "out").exists()


def test_unknown_classes_are_refused_or_left_out(own_run, own_phantoms, tmp_path, said):
    test = own_phantoms / "test"
    shutil.copytree(test / "CNV", test / "AMD")
    (test / "DME").rename(test / "dme")
    with pytest.raises(DataError, match="no class AMD") as e:
        evaluate_data(own_run, test, tmp_path / "out", **FEW)
    assert "--known-only" in e.value.hint and not (tmp_path / "out").exists()
    found = evaluate_data(own_run, test, tmp_path / "out", known_only=True, **FEW)
    assert any("Left out" in n and "AMD" in n for n in found.notes)
    assert found.counts["scans"] == len(own_run.predictions("test"))
    assert any("whatever their case: dme" in line for line in said())
    for name in ("CNV", "dme", "DRUSEN", "NORMAL"):
        shutil.rmtree(test / name)
    shutil.copytree(test / "AMD", test / "ERM")
    with pytest.raises(DataError, match="no class") as e:
        evaluate_data(own_run, test, tmp_path / "none", known_only=True, **FEW)
    assert "--known-only" not in e.value.hint


def test_a_file_that_cannot_be_read_is_left_out_and_listed(own_run, own_phantoms, tmp_path):
    broken = next((own_phantoms / "test" / "CNV").iterdir())
    broken.write_bytes(b"no picture")
    found = evaluate_data(own_run, own_phantoms, tmp_path / "out", **FEW)
    assert broken.name in (tmp_path / "out" / "left-out.csv").read_text()
    assert found.counts["scans"] == len(own_run.predictions("test")) - 1


def test_columns_of_a_table_are_groups(own_run, phantoms, tmp_path):
    scans = read_data(phantoms).query("split == 'test'")
    table = pd.DataFrame({"file": scans["path"], "class": scans["label"], "who": scans["patient"]})
    table["scanner"] = np.where(np.arange(len(table)) % 2, "Spectralis", "=cmd|' /C calc'!A0")
    table["eye"] = "L"
    table.to_csv(tmp_path / "other.csv", index=False)
    found = evaluate_data(
        own_run,
        tmp_path / "other.csv",
        tmp_path / "out",
        columns={"patient_column": "who"},
        by_group=["scanner"],
        **FEW,
    )
    assert set(found.groups["group"]) == {"Spectralis", "=cmd|' /C calc'!A0"}
    assert found.counts["patients"] == scans["patient"].nunique()
    assert set(found.units["unit"]) == {"patient", "eye"}


def test_finding_the_model(own_run, tmp_path, monkeypatch):
    assert find_bundle_and_run(own_run.path)[0] == own_run.bundle
    assert find_bundle_and_run(own_run.bundle)[1].path == own_run.path
    bundle = shutil.copytree(own_run.bundle, tmp_path / "model")
    assert find_bundle_and_run(bundle) == (bundle, None)
    with pytest.raises(BundleError, match="neither a run folder nor a trained model"):
        find_bundle_and_run(tmp_path)
    assert read_info(find_bundle_and_run(open_run(own_run.path))[0]).classes


def test_the_folder_for_other_scans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = evaluation_folder(None, "some where/odd name\n.csv")
    assert first.parent.name == "evaluations" and first.name.startswith("odd_name_-")
    first.mkdir(parents=True)
    again = evaluation_folder(None, "some where/odd name\n.csv")
    assert again != first and not again.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        evaluation_folder(tmp_path / "file", "x")
    assert evaluation_folder(first, "x") == first


def test_scans_of_one_class_and_test_scans_alone_can_be_judged(own_run, own_phantoms, tmp_path):
    test = own_phantoms / "test"
    for name in ("DME", "DRUSEN", "NORMAL"):
        shutil.rmtree(test / name)
    found = evaluate_data(own_run, test, tmp_path / "one", **FEW)
    assert np.isnan(found.value("specificity", "CNV")) and found.counts["classes"]["CNV"]["scans"] > 1
    shutil.rmtree(own_phantoms / "train")
    assert evaluate_data(own_run, own_phantoms, tmp_path / "two", **FEW).source["split"] == "test"
    table = pd.DataFrame({"path": sorted(map(str, test.rglob("*.jpeg"))), "label": "CNV", "split": "test"})
    table.to_csv(tmp_path / "test.csv", index=False)
    assert evaluate_data(own_run, tmp_path / "test.csv", tmp_path / "three", **FEW).counts["scans"] == len(table)


def test_whole_patients_are_judged_as_the_model_puts_their_scans_together(own_run, phantoms, tmp_path):
    kept = {"rule": "most_urgent", "k": None, "temperature": 2.0, "urgent": ["CNV", "DME"]}
    kept |= {"operating": {"urgent": ["CNV", "DME"], "sensitivity": 0.9, "threshold": 0.3}}
    update_info(own_run.bundle, calibration={"units": {"patient": kept}})
    scans = own_run.predictions("test")
    table, info = predictions.run_predictions(own_run, "test")
    urgency = table[["p_CNV", "p_DME"]].sum(axis=1)
    most = table.loc[urgency.groupby(table["patient"]).idxmax()].set_index("patient")
    logits = np.log(most[[f"p_{c}" for c in info.classes]].to_numpy()) / 2
    p = pd.DataFrame(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), most.index, info.classes)
    loss = -np.log([p.loc[patient, label] for patient, label in most["label"].items()]).mean()
    found = evaluate_run(own_run, "test", unit="patient", **FEW)
    assert found.source["level"] == "patient" and found.counts["scans"] == len(most) < len(scans)
    assert found.value("nll") == pytest.approx(loss, rel=1e-4)
    assert found.settings["operating"]["threshold"] == 0.3 and "most urgent scan" in found.notes[0]
    assert (own_run.path / "metrics-test-patients.json").is_file()
    # Beside the figures of scans it stands as one more rule.
    whole = evaluate_run(own_run, "test", **FEW)
    fitted = whole.units.query("rule == 'fitted' and metric == 'nll'")
    assert fitted["value"].tolist() == [pytest.approx(loss, rel=1e-4)] and whole.counts["scans"] == len(scans)
    # It is held against the mean of the scans, on the same patients; and so it is by compare.
    mean = table.groupby("patient")[[f"p_{c}" for c in info.classes]].mean()
    plain = -np.log([mean.loc[who, f"p_{label}"] for who, label in most["label"].items()]).mean()
    of_level = found.paired.set_index("metric")
    assert of_level.loc["nll", "difference"] == pytest.approx(loss - plain, abs=1e-4)
    pd.testing.assert_frame_equal(found.paired, whole.paired)
    kept = json.loads((own_run.path / "metrics-test-patients.json").read_text())["paired"]
    assert [r["metric"] for r in kept] == list(of_level.index) and kept[0]["reference"] == "mean_probability"
    of_mean = whole.units.query("rule == 'mean_probability' and unit == 'patient'").set_index("metric")["value"]
    assert of_mean["nll"] == pytest.approx(plain, abs=1e-4)
    alone = compare_runs([own_run], "test", unit="patient", resamples=100)
    nll = alone.differences.query("metric == 'nll'").iloc[0]
    assert nll["difference"] == pytest.approx(loss - plain, abs=1e-4) and "the mean of its scans" in nll["reference"]
    # Other scans, the same answers; and the model against itself.
    out = tmp_path / "out"
    again = evaluate_data(own_run, phantoms, out, "test", unit="patient", **FEW)
    assert again.value("nll") == pytest.approx(loss, rel=1e-2)
    assert pd.read_csv(out / "predictions-test-scans.csv").groupby("patient")["attention"].sum().eq(1).all()
    both = compare_runs([own_run, own_run], "test", unit="patient", resamples=100)
    assert both.unit == "patient" and both.scans == len(most) and set(both.mcnemar["unit"]) == {"patient"}
    with pytest.raises(UsageError, match="no column eye"):
        evaluate_run(own_run, "test", unit="eye", **FEW)
