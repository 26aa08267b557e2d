from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from octfast.deploy.predict.predict import predict, run_prediction
from octfast.deploy.predictor import Predictor
from octfast.errors import DataError, UsageError
from octfast.model.bundle.write import update_info
from tests.data.volumes import volume_files as files
from tests.deploy.predict.conftest import CLASSES, interrupted
from tests.pictures import scan


def test_only_broken_files_are_all_rows(predictor, scans):
    assert (predict(predictor, [scans / "broken", "gone.png"])["error"] != "").all()


def test_the_temperature_is_applied(bundle, predictor, scans, tmp_path):
    warm = Path(shutil.copytree(bundle, tmp_path / "warm"))
    update_info(warm, temperature=0.6)
    names = [f"p_{c}" for c in CLASSES]
    cold = np.log(predict(predictor, scans / "0.png")[names].to_numpy(float))
    found = np.log(predict(warm, scans / "0.png", precision="fp32", device="cpu")[names].to_numpy(float))
    assert np.allclose(found, cold / 2 - np.log(np.exp(cold / 2).sum()), atol=1e-5)


def test_a_run_folder_will_do(trained, phantoms):
    paths = sorted((phantoms / "test").rglob("*.jpeg"))[:4]
    table = predict(trained.path, paths, precision="fp32", device="cpu")
    known = trained.predictions("test").set_index("path")
    for row in table.itertuples():
        assert math.isclose(row.probability, known.loc[str(Path(row.path).resolve()), "probability"], abs_tol=1e-3)


@pytest.mark.parametrize("after", [1, 3, 7, 8, 12, 15, 19])
def test_resuming_repeats_and_loses_no_row(predictor, scans, after):
    whole = predict(predictor, ["scans"], out="whole.csv")
    interrupted(predictor, ["scans"], after)
    calls = []
    table = predict(counting(predictor, calls), ["scans"], out="out.csv", resume=True)
    pd.testing.assert_frame_equal(table, whole)
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert Path("out-volumes.csv").read_bytes() == Path("whole-volumes.csv").read_bytes()
    assert not Path(".out.csv.part").exists()
    # Rows of inputs that were finished are not computed again.
    done = {p for p in whole["path"][:after] if list(whole["path"]).index(p) + list(whole["path"]).count(p) <= after}
    assert not done & {str(c) for c in calls}


def counting(predictor, calls):
    """The same predictor, which notes the files that it is asked about."""
    own = Predictor.__new__(Predictor)
    own.__dict__.update(predictor.__dict__)
    own.stream = lambda pictures, bs: predictor.stream((calls.append(p) or p for p in pictures), bs)
    return own


def test_an_interrupted_prediction_is_neither_lost_nor_mixed_with_another(bundle, predictor, scans, tmp_path):
    interrupted(predictor, ["scans"], 6)
    before = Path(".out.csv.part").read_bytes()
    with pytest.raises(UsageError, match="interrupted prediction"):
        predict(predictor, ["scans"], out="out.csv")
    with pytest.raises(UsageError, match="other inputs"):
        predict(predictor, ["scans", "scans"], out="out.csv", resume=True)
    with pytest.raises(UsageError, match="other settings"):
        predict(predictor, ["scans"], out="out.csv", resume=True, top_k=2)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    update_info(other, temperature=2.0)
    with pytest.raises(UsageError, match="another model"):
        predict(other, ["scans"], out="out.csv", resume=True, precision="fp32", device="cpu")
    assert Path(".out.csv.part").read_bytes() == before
    Image.fromarray(scan()).save(scans / "0-new.png")
    with pytest.raises(UsageError, match="inputs are not those"):
        predict(predictor, ["scans"], out="out.csv", resume=True)
    assert len(predict(predictor, ["scans"], out="out.csv", force=True)) == 20


def test_an_interruption_says_how_to_go_on(predictor, scans, said):
    interrupted(predictor, ["scans"], 4)
    assert any(".out.csv.part" in line and "--resume" in line for line in said())


def test_resuming_what_is_finished_changes_nothing(predictor, scans, said):
    predict(predictor, ["scans"], out="out.csv")
    before = Path("out.csv").stat().st_mtime_ns
    predict(predictor, ["scans"], out="out.csv", resume=True)
    assert Path("out.csv").stat().st_mtime_ns == before
    assert any("nothing is left to predict" in line for line in said())


def test_nothing_to_predict(predictor, tmp_path):
    with pytest.raises(DataError, match="nothing to predict"):
        predict(predictor, tmp_path)


def test_inputs_that_can_be_no_files_do_not_end_it(predictor, scans):
    given = ["x" * 5000, "~no such user/x.png", "scans/0.png"]
    table = predict(predictor, given, out="out.csv", heatmaps="maps", force=True)
    assert [bool(e) for e in table["error"]] == [True, True, False]


def test_a_dicom_series_is_one_volume(trained, tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    files.write_series(tmp_path / "s", files.frames_of(4, 40, 48), series="1.2.8")
    files.write_series(tmp_path / "s", files.frames_of(2, 40, 48), series="1.2.9")
    found = run_prediction(trained.bundle, [tmp_path / "s"], montage=tmp_path / "m.png")
    assert sorted(v["frames"] for v in found.volumes) == [2, 4] and found.failed == 0
    assert (tmp_path / "m.png").is_file()
