"""Answers about DICOM inputs as DICOM structured reports, one a volume, with the frames that each answer is of."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.reader import VolumeReader
from octfast.deploy.predict.aggregated import AggregatedTable
from octfast.deploy.predict.rows import Row, VolumeTable
from octfast.deploy.predictor import Predictor
from octfast.errors import DataError, UsageError
from octfast.files import whole_file
from octfast.model.decide import Rule
from octfast.notices import LONG_NOTICE, SYNTHETIC_NOTE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger("octfast")

# Names that no public scheme of codes has.
SCHEME = "99OCTFAST"
_GIVEN, _REFERRED, _ABSTAINED = "Class that the model gives", "Urgent referral", "Model abstains"
_UNLIKE = "Unlike the training scans"
COMMENT = (
    "Made by research software, and no diagnosis: nobody has looked at these answers, and they must not be used for "
    "the care of a patient."
)


def need_highdicom() -> None:
    """
    Raises
    ------
    UsageError : highdicom is not installed.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError("--dicom-sr needs highdicom, which is not installed", "pip install 'octfast[sr]'")


class Reports:
    """Gathers the rows of DICOM inputs, and writes a Comprehensive SR (TID 1500) for each: `NUMBER-NAME-sr.dcm`.

    In each are: for the volume how many B-scans were read, the highest urgent score and whether to refer; for each
    B-scan the class, the probability of each class, urgent referral, abstention and whether it is unlike the training
    scans, with the SOP instance and frame that it is of. The algorithm is named with the digest of its bundle, of which
    the UID of the observing device is made, too. It is marked as unverified and preliminary.

    The patient's and the study's identifying elements are those of the source, without which a report belongs to
    nobody. Inputs that are no DICOM, or lack the UIDs to refer to, are left out, and `end` says how many.

    Parameters
    ----------
    folder : that gets them; what is there already stays as it is.
    digest : SHA-256 of the bundle, in hex.
    reader : of headers; the caller closes it.
    series : the files of those inputs that are the first of a DICOM series.
    whole : makes a table that puts the B-scans of a volume together; None writes of single B-scans alone.
    """

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        rule: Rule,
        digest: str,
        reader: VolumeReader,
        series: Mapping[str, Sequence[str]],
        whole: Callable[[], VolumeTable | AggregatedTable] | None = None,
    ):
        need_highdicom()
        self.folder, self.predictor, self.rule, self.digest = folder, predictor, rule, digest
        self.reader, self.series, self.whole = reader, series, whole
        self.written = self.left_out = self.without = 0
        self._rows: list[Row] = []
        self._series_uids: dict[str, str] = {}

    def add(self, row: Row) -> None:
        """Keep a row; with the last one of an input its report is written."""
        self._rows.append(row)
        if not row.last:
            return
        rows, self._rows = self._rows, []
        path = row.values["path"]
        try:
            dicom = row.of_volume and kind_of(path) == "dicom"
        except (OSError, DataError):
            dicom = False
        read = [r for r in rows if not r.values["error"]]
        if not dicom or not read:
            self.left_out += 1
            return
        self._write(row.item + 1, path, lambda: self._report(rows, read, self._sources(path), row.item + 1))

    def _write(self, number: int, path: str, made: Callable[[], Dataset]) -> None:
        """Write what is made of an input, unless there is a file already, or its header says why it cannot be."""
        stem = re.sub(r"[^\w.-]+", "_", Path(path).stem, flags=re.ASCII)[:80]
        file = self.folder / f"{number:06d}-{stem}-sr.dcm"
        if file.exists():
            log.info("%s is there already, and stays as it is", file)
            return
        try:
            report = made()
        except DataError as e:
            log.warning("no report of %s: %s", path, e.message)
            self.without += 1
            return
        with whole_file(file) as part:
            report.save_as(part, enforce_file_format=True)
        self.written += 1

    def end(self) -> None:
        """Say how many inputs have no report."""
        if self.left_out:
            log.warning("without a structured report, as no DICOM or not readable: %d of the inputs", self.left_out)
        log.warning(
            "%d structured reports in %s hold what names the patients, from their sources; they are no diagnosis",
            *(self.written, self.folder),
        )

    def _sources(self, path: str) -> list[Dataset]:
        """The file of an input, or those of the series of which it is the first, in their order."""
        return [self._source(f) for f in self.series.get(path, (path,))]

    def _source(self, path: str) -> Dataset:
        """What a report takes of its source: who and which study, and what it refers to."""
        from pydicom.dataset import Dataset

        held = Dataset.from_json(json.dumps(self.reader.evidence(path)))
        for uid in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not held.get(uid):
                raise DataError(f"it has no {uid}", "export it again")
        empty = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
        for keyword in (*empty, "StudyDate", "StudyTime", "ReferringPhysicianName"):
            if keyword not in held:
                setattr(held, keyword, "")
        return held

    def _report(self, rows: list[Row], read: list[Row], sources: list[Dataset], number: int) -> Dataset:
        algorithm = self._algorithm()
        groups = [self._group(row, sources, algorithm) for row in read]
        if len(rows) > 1 and self.whole is not None:
            groups.insert(0, self._whole(rows, self.whole(), sources, algorithm))
        return self._document(groups, sources, number)

    def _algorithm(self) -> Any:
        from highdicom import sr

        import octfast

        name = f"octfast {self.predictor.info.arch}"
        return sr.AlgorithmIdentification(
            name=name[:64],
            version=f"octfast {octfast.__version__}, model {self.digest[:16]}",
            parameters=[f"SHA-256 of the model: {self.digest}", *self._rule_words()],
            manufacturer="octfast",
        )

    def _document(self, groups: list[Any], sources: list[Dataset], number: int) -> Dataset:
        """The report of what was said in groups, in the study of the first source."""
        import highdicom as hd
        from highdicom import sr
        from pydicom.sr.codedict import codes

        import octfast

        info = self.predictor.info
        version = octfast.__version__
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=f"2.25.{int(self.digest[:32], 16)}",
            name="octfast",
            manufacturer_name="octfast",
            model_name=info.arch[:64],
            serial_number=self.digest[:64],
        )
        observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=codes.DCM.OphthalmicTomography,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        words = [COMMENT, LONG_NOTICE, *([SYNTHETIC_NOTE] if info.synthetic else [])]
        relation = sr.RelationshipTypeValues.CONTAINS
        content[0].ContentSequence.extend(sr.TextContentItem(codes.DCM.Comment, text, relation) for text in words)
        study = str(sources[0].StudyInstanceUID)
        report = sr.ComprehensiveSR(
            evidence=sources,
            content=content[0],
            series_instance_uid=self._series_uids.setdefault(study, str(hd.UID())),
            series_number=9901,
            sop_instance_uid=str(hd.UID()),
            instance_number=number,
            manufacturer="octfast",
            is_complete=True,
            is_final=False,
            is_verified=False,
            specific_character_set="ISO_IR 192",
        )
        report.SeriesDescription = "octfast: research, no diagnosis"
        report.ManufacturerModelName = "octfast"
        report.SoftwareVersions = f"octfast {version}"
        report.DeviceSerialNumber = self.digest[:64]
        return report

    def _group(self, row: Row, sources: list[Dataset], algorithm: Any) -> Any:
        """What is said of a B-scan."""
        said = row.values
        p = [
            self._measured(f"P{i + 1}", f"Probability of {c}", said[f"p_{c}"])
            for i, c in enumerate(self.rule.classes)
            if said.get(f"p_{c}") is not None
        ]
        if said.get("urgent_score") is not None:
            p.append(self._measured("URGENT-SCORE", "Urgent score, sum of the urgent classes", said["urgent_score"]))
        if said.get("distance") is not None:
            p.append(self._measured("DISTANCE", "Distance to the training scans, 1 the limit", said["distance"]))
        named = self._class_and_marks(said)
        name = f"B-scan {said['frame']}"
        return self._evaluated(name, p, named, algorithm, sources, said["frame"], said["eye"])

    def _class_and_marks(self, said: Mapping[str, Any]) -> list[Any]:
        """The class that is given, if any, and whether to refer, to abstain, and whether it is unlike the training."""
        from highdicom import sr

        given = said["predicted"]
        of = f"CLASS-{self.rule.classes.index(given) + 1}" if given is not None else "NO-CLASS"
        named = [sr.QualitativeEvaluation(_code("CLASS", _GIVEN), _code(of, given or "No class"))]
        yes_no = {"referred": _REFERRED, "abstained": _ABSTAINED, "unlike_training": _UNLIKE}
        named += [self._yes(what, words, said[what]) for what, words in yes_no.items() if said.get(what) is not None]
        return named

    def _whole(
        self, rows: list[Row], table: VolumeTable | AggregatedTable, sources: list[Dataset], algorithm: Any
    ) -> Any:
        """What is said of the volume, with the B-scan that counted most: as in the table of volumes."""
        from highdicom import sr

        for row in rows:
            table.add(row)
        said = table.rows()[0]
        most = said.get("urgent_frame", said.get("most_frame"))
        measured = [
            self._measured("FRAMES", "B-scans that were read", said["frames"]),
            self._measured("UNREAD", "B-scans that could not be read", said["unread"]),
        ]
        unlike = said.get("unlike_scans", said.get("unlike_training"))
        if unlike is not None:
            measured.append(self._measured("UNLIKE", "B-scans unlike the training scans", unlike))
        measured += [
            self._measured(f"P{i + 1}", f"Probability of {c}, whole volume", said[f"p_{c}"])
            for i, c in enumerate(self.rule.classes)
            if said.get(f"p_{c}") is not None
        ]
        if said.get("urgent_score") is not None:
            measured.append(self._measured("URGENT-SCORE", "Urgent score of the volume", said["urgent_score"]))
        named = []
        if said.get("predicted") is not None:
            of = f"CLASS-{self.rule.classes.index(said['predicted']) + 1}"
            named.append(sr.QualitativeEvaluation(_code("CLASS", _GIVEN), _code(of, said["predicted"])))
        for what, words in (("referred", _REFERRED), ("abstained", _ABSTAINED)):
            if said.get(what) is not None:
                named.append(self._yes(what, words, said[what]))
        return self._evaluated("volume", measured, named, algorithm, sources, most, said["eye"])

    def _evaluated(
        self, name: str, measured: Any, named: Any, algorithm: Any, sources: list[Dataset], frame: int | None, eye: str
    ) -> Any:
        from highdicom import sr
        from pydicom.sr.codedict import codes

        source = sources[frame if frame is not None and len(sources) > 1 else 0]
        frames = [frame + 1] if frame is not None and int(source.get("NumberOfFrames") or 1) > 1 else None
        sides = {"R": codes.SCT.Right, "L": codes.SCT.Left}
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(identifier=name),
            finding_sites=[sr.FindingSite(codes.SCT.Retina, laterality=sides.get(eye))],
            algorithm_id=algorithm,
            measurements=measured,
            qualitative_evaluations=named,
            source_images=[sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID, frames)],
        )

    def _measured(self, code: str, words: str, value: float) -> Any:
        from highdicom import sr
        from pydicom.sr.codedict import codes

        return sr.Measurement(name=_code(code, words), value=float(f"{value:.6g}"), unit=codes.UCUM.NoUnits)

    def _yes(self, code: str, words: str, value: bool) -> Any:
        from highdicom import sr
        from pydicom.sr.codedict import codes

        named = _code(code.upper().replace("_", "-")[:16], words)
        return sr.QualitativeEvaluation(named, codes.SCT.Yes if value else codes.SCT.No)

    def _rule_words(self) -> list[str]:
        rule = self.rule
        words = [f"Classes: {', '.join(rule.classes)}"]
        if rule.urgent:
            from_on = "the predicted class being urgent" if rule.threshold is None else f"{rule.threshold:.6g} on"
            words.append(f"Urgent classes: {', '.join(rule.urgent)}; referred from {from_on}")
        calibrated = "" if self.predictor.info.calibrated else "not "
        return [*words, f"Probabilities are {calibrated}calibrated"]


def check_reports(folder: Path, again: bool) -> None:
    """Make the folder for the reports.

    Raises
    ------
    UsageError : it is not empty, whether or not anything may be replaced; or highdicom is not installed.
    """
    from octfast.files import is_taken

    need_highdicom()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_taken(folder) and not again:
            raise UsageError(f"{folder} is not empty", "give another --dicom-sr folder; no report is ever replaced")
    except OSError as e:
        raise UsageError(f"cannot write to {folder}: {e.strerror or e}", "give another --dicom-sr folder") from None


def _code(value: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    # The standard allows so many letters, and no backslash.
    return CodedConcept(value, SCHEME, meaning.replace("\\", "/")[:64])
