"""Answers for DICOM volumes, eyes and patients as structured reports, one a unit, with the scans that decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from octfast.data.volumes.kinds import kind_of
from octfast.deploy.predict.dicom_sr import Reports
from octfast.errors import DataError
from octfast.model.pooling import deciding_scans

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class UnitReports(Reports):
    """Writes a Comprehensive SR (TID 1500) for each unit of a model that answers for whole ones.

    In each are: for the unit its class, the probability of each class, urgent referral, abstention, whether it is
    unlike the training, and how many scans were read, with the SOP instance and frame of the scan that counted most;
    then each scan that decided (`octfast.model.pooling.deciding_scans`), with its share of the answer and its own
    instance and frame. What a scan says alone is no answer, and not in it.

    A report is of one patient and lies in the study of the scan that counted most. Units with scans that are no DICOM,
    or that lack the UIDs to refer to, are left out, and `end` says how many. Parameters are those of `Reports`.
    """

    def add_unit(self, unit: dict[str, Any], scans: Sequence[dict[str, Any]]) -> None:
        """Write the report of a unit.

        Parameters
        ----------
        unit, scans : its row and those of its scans, see `octfast.deploy.predict.units.UnitTables`.
        """
        read = [row for row in scans if not row["error"]]
        if not read or not all(_is_dicom(path) for path in {row["path"] for row in read}):
            self.left_out += 1
            return
        number = int(unit["unit"]) + 1
        self._write(number, unit["path"], lambda: self._of_unit(unit, read, number))

    def _of_unit(self, unit: dict[str, Any], read: list[dict[str, Any]], number: int) -> Dataset:
        shares = np.array([row["attention"] or 0.0 for row in read])
        order = np.argsort(-shares, kind="stable").tolist()
        # In the order of how much their scans counted, as the first is that whose study the report is of.
        sources = {path: self._sources(path) for path in dict.fromkeys(read[i]["path"] for i in order)}
        held = [source for files in sources.values() for source in files]
        if len({(str(s.PatientID), str(s.PatientName)) for s in held}) > 1:
            raise DataError("its files are of several patients", "give each patient's files a unit of their own")
        algorithm = self._algorithm()
        groups = [self._answer(unit, read[order[0]], sources, algorithm)]
        groups += [self._decided(read[i], sources, algorithm) for i in deciding_scans(shares, len(read))]
        return self._document(groups, held, number)

    def _answer(
        self, unit: dict[str, Any], most: dict[str, Any], sources: Mapping[str, list[Dataset]], algorithm: Any
    ) -> Any:
        """What is said of the unit, with the scan that counted most."""
        level = self.predictor.info.level
        measured = [
            self._measured("FRAMES", "B-scans that were read", unit["frames"]),
            self._measured("UNREAD", "B-scans that could not be read", unit["unread"]),
        ]
        measured += [
            self._measured(f"P{i + 1}", f"Probability of {c}, whole {level}", unit[f"p_{c}"])
            for i, c in enumerate(self.rule.classes)
            if unit.get(f"p_{c}") is not None
        ]
        if unit.get("urgent_score") is not None:
            measured.append(self._measured("URGENT-SCORE", f"Urgent score of the {level}", unit["urgent_score"]))
        if unit.get("distance") is not None:
            measured.append(self._measured("DISTANCE", "Distance to the training scans, 1 the limit", unit["distance"]))
        named = self._class_and_marks(unit)
        return self._evaluated(
            *(level, measured, named, algorithm, sources[most["path"]], most["frame"], unit["eye"] or most["eye"])
        )

    def _decided(self, row: dict[str, Any], sources: Mapping[str, list[Dataset]], algorithm: Any) -> Any:
        """How much a scan counted."""
        share = [self._measured("ATTENTION", "Share of the answer that the scan counts", row["attention"])]
        name = "B-scan" if row["frame"] is None else f"B-scan {row['frame']}"
        return self._evaluated(name, share, [], algorithm, sources[row["path"]], row["frame"], row["eye"])


def _is_dicom(path: str) -> bool:
    try:
        return kind_of(path) == "dicom"
    except (OSError, DataError):
        return False
