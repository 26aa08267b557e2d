"""Structured reports about DICOM inputs: read back, they say what the table says, of the frames that it says it of."""

from __future__ import annotations

import pytest

from octfast.deploy.predict.predict import predict
from octfast.errors import UsageError
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
