"""Structured reports about DICOM inputs: read back, they say what the table says, of the frames that it says it of."""

from __future__ import annotations

import numpy as np
import pytest

from octfast.deploy.predict.predict import predict, run_prediction
from octfast.deploy.predictor import load
from octfast.errors import UsageError
from octfast.model.pooling import deciding_scans, pooling_of
from tests.bags import bag_bundle
from tests.data.volumes import volume_files as files
from tests.deploy.predict.conftest import CLASSES
from tests.pictures import scan

pytest.importorskip("pydicom", minversion="3")
pytest.importorskip("highdicom")

STUDY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PatientName": "Sécret^Ñame"}


def test_a_report_says_what_the_table_says(bundle, tmp_path, caplog):
    from highdicom.sr import ComprehensiveSR, srread
    from PIL import Image
    from pydicom import dcmread

    frames = files.frames_of(3, 40, 48)
    (tmp_path / "in").mkdir()
    volume = files.write_dicom(tmp_path / "in" / "a.dcm", frames, **STUDY)
    series = files.write_series(tmp_path / "in" / "s", frames[:2], series="1.2.9")
    lacking = files.write_dicom(tmp_path / "in" / "b.dcm", frames)
    Image.fromarray(scan()).save(tmp_path / "in" / "c.png")
    rows = predict(bundle, tmp_path / "in", dicom_sr=tmp_path / "sr", precision="fp32")
    written = sorted((tmp_path / "sr").iterdir())
    assert [f.name.split("-", 1)[1] for f in written] == ["a-sr.dcm", f"{series[0].stem}-sr.dcm"]
    assert (
        "no DICOM or not readable: 1 of" in caplog.text
        and "no StudyInstanceUID" in caplog.text
        and "names the patients" in caplog.text
    )
    report, of_series = (srread(f) for f in written)
    assert isinstance(report, ComprehensiveSR)
    assert (report.PatientID, str(report.PatientName)) == ("SECRET-ID", "Sécret^Ñame")
    assert (report.StudyInstanceUID, report.VerificationFlag, report.PreliminaryFlag) == (
        "1.2.3",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    groups = report.content.get_image_measurement_groups()
    own = rows[rows["path"] == str(volume)].reset_index(drop=True)
    whole, *each = groups
    source = dcmread(volume, stop_before_pixels=True).SOPInstanceUID
    for n, (group, row) in enumerate(zip(each, own.to_dict("records"), strict=True)):
        (image,) = group.source_images
        assert (image.referenced_sop_instance_uid, image.referenced_frame_numbers) == (source, [n + 1])
        p = {m.name.meaning: m.value for m in group.get_measurements()}
        assert [p[f"Probability of {c}"] for c in CLASSES] == pytest.approx([row[f"p_{c}"] for c in CLASSES], abs=1e-5)
        said = {q.name.meaning: q.value.meaning for q in group.get_qualitative_evaluations()}
        assert said["Class that the model gives"] == row["predicted"]
        assert said["Urgent referral"] == ("Yes" if row["referred"] else "No")
    urgent = {m.name.meaning: m.value for m in whole.get_measurements()}["Urgent score of the volume"]
    assert urgent == pytest.approx(own["urgent_score"].max(), abs=1e-5)
    first, second = (
        str(g.source_images[0].referenced_sop_instance_uid)
        for g in of_series.content.get_image_measurement_groups()[1:]
    )
    assert [first, second] == [str(dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in series]
    text = report.to_json()
    assert (
        "no diagnosis" in text
        and "Not a medical device" in text
        and "SHA-256 of the model" in text
        and "octfast" in text
    )
    assert lacking.is_file()


def test_reports_are_never_replaced_and_name_one_device(bundle, tmp_path):
    from pydicom import dcmread

    volume = files.write_dicom(tmp_path / "a.dcm", files.frames_of(1, 40, 48), **STUDY)
    devices = set()
    for out in ("one", "two"):
        predict(bundle, volume, dicom_sr=tmp_path / out, precision="fp32")
        (file,) = (tmp_path / out).iterdir()
        devices |= {i.UID for i in dcmread(file).ContentSequence if i.ValueType == "UIDREF"}
    assert len(devices) == 1
    with pytest.raises(UsageError, match="not empty"):
        predict(bundle, volume, dicom_sr=tmp_path / "one", force=True)


def measured(group) -> dict[str, float]:
    return {m.name.meaning: m.value for m in group.get_measurements()}


def test_a_model_of_volumes_reports_its_answer_and_the_scans_that_decided(tmp_path, caplog):
    from highdicom.sr import srread
    from pydicom import dcmread

    bundle = load(bag_bundle(tmp_path / "model", pooling=pooling_of("topk", 2)), precision="fp32", device="cpu")
    frames = np.random.default_rng(4).integers(0, 256, (7, 48, 48), dtype=np.uint8)
    frames[0], frames[3] = 0, 255 * (np.indices((48, 48)).sum(0) % 9 > 4)
    (tmp_path / "in").mkdir()
    whole = files.write_dicom(tmp_path / "in" / "a.dcm", frames, **STUDY)
    series = files.write_series(tmp_path / "in" / "s", frames[:5], series="1.2.9")
    files.write_vol(tmp_path / "in" / "c.vol", frames)
    files.write_dicom(tmp_path / "in" / "d.dcm", frames)
    scans, units = [], []

    def take(row, _):
        scans.append(row.values)
        units.extend([row.unit] if row.unit else [])

    found = run_prediction(bundle, [tmp_path / "in"], take, dicom_sr=tmp_path / "sr")
    assert tmp_path / "sr" in found.files and len(units) == 4
    assert "no DICOM or not readable: 1 of" in caplog.text and "no StudyInstanceUID" in caplog.text
    written = {f.name.split("-", 1)[1]: srread(f) for f in sorted((tmp_path / "sr").iterdir())}
    assert list(written) == ["a-sr.dcm", f"{series[0].stem}-sr.dcm"]
    # As DICOM has them: a file and the frame in it, or a file a B-scan.
    of_series = [str(dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in series]
    source = str(dcmread(whole, stop_before_pixels=True).SOPInstanceUID)
    places = [[(source, [n + 1]) for n in range(7)], [(uid, None) for uid in of_series]]
    for report, path, place in zip(written.values(), (whole, series[0]), places, strict=True):
        own = [row for row in scans if row["path"] == str(path)]
        (unit,) = (u for u in units if u["path"] == str(path))
        answer, *decided = report.content.get_image_measurement_groups()
        p = measured(answer)
        said = [p[f"Probability of {c}, whole volume"] for c in bundle.classes]
        assert said == pytest.approx([unit[f"p_{c}"] for c in bundle.classes], abs=1e-5)
        assert p["B-scans that were read"] == len(own) and answer.tracking_identifier == "volume"
        named = {q.name.meaning: q.value.meaning for q in answer.get_qualitative_evaluations()}
        assert named["Class that the model gives"] == unit["predicted"]

        def refers(group):
            (image,) = group.source_images
            return str(image.referenced_sop_instance_uid), image.referenced_frame_numbers

        assert refers(answer) == place[unit["most_frame"]]
        shares = np.array([row["attention"] for row in own])
        expected = deciding_scans(shares, len(shares))
        assert expected and [refers(g) for g in decided] == [place[i] for i in expected]
        given = [measured(g)["Share of the answer that the scan counts"] for g in decided]
        assert given == pytest.approx(shares[expected].tolist(), abs=1e-5)
        assert "no diagnosis" in report.to_json() and str(report.PatientName)
    with pytest.raises(UsageError, match="not empty"):
        run_prediction(bundle, [whole], dicom_sr=tmp_path / "sr", force=True)


def test_an_eye_of_several_studies_is_one_report_and_two_patients_are_none(tmp_path, caplog):
    from pydicom import dcmread

    bundle = load(bag_bundle(tmp_path / "model", level="eye"), precision="fp32", device="cpu")
    frames = np.random.default_rng(4).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    for n, (study, name) in enumerate((("1.2", "A"), ("1.3", "A"), ("1.4", "A"), ("1.5", "B"))):
        more = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "PatientName": name}
        files.write_dicom(tmp_path / f"{n}.dcm", frames[n % 2 :], **more)
    table = tmp_path / "t.csv"
    table.write_text("path,patient,eye\n0.dcm,p,L\n1.dcm,p,L\n2.dcm,q,L\n3.dcm,q,L\n")
    scans: list[dict] = []
    run_prediction(bundle, [table], lambda row, _: scans.append(row.values), dicom_sr=tmp_path / "sr")
    (file,) = (tmp_path / "sr").iterdir()
    assert "several patients" in caplog.text
    report = dcmread(file)
    most = max(scans[:5], key=lambda row: row["attention"])
    assert report.StudyInstanceUID == dcmread(most["path"], stop_before_pixels=True).StudyInstanceUID
    referred = {
        str(item.StudyInstanceUID)
        for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for item in report.get(name) or ()
    }
    assert referred == {"1.2", "1.3"} and report.PatientName == "A"
