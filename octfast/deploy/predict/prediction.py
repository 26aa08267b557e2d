"""What a prediction came to: its counts, its volumes or units, and what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octfast.deploy.predict.rows import Row


@dataclass
class Prediction:
    """What a prediction came to.

    Attributes
    ----------
    columns : of the table.
    classes : of the model.
    scans : rows with an answer.
    failed : rows with an error.
    remarked : rows with remarks.
    abstained, referred : rows so marked; None where the model cannot abstain, or has no urgent classes.
    unlike : rows that are unlike the training scans; None where the model does not know.
    volumes : a row a volume, the urgent first; see `VolumeTable`, or `AggregatedTable` where the model keeps how
        volumes are answered for.
    units : rows of eyes and patients by level, for which the model keeps that; with `unit_columns`.
    files : what was written.
    synthetic : whether the model was trained on phantoms.
    level : what has one answer, see `BundleInfo`; above scans `volumes` are its units.
    whole : whether `out` was whole already, so that resuming had nothing to do.
    """

    columns: list[str]
    classes: tuple[str, ...]
    synthetic: bool = False
    level: str = "scan"
    whole: bool = False
    scans: int = 0
    failed: int = 0
    remarked: int = 0
    abstained: int | None = None
    referred: int | None = None
    unlike: int | None = None
    volumes: list[dict[str, Any]] = field(default_factory=list)
    volume_columns: list[str] = field(default_factory=list)
    units: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unit_columns: dict[str, list[str]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def add_unit(self, unit: dict[str, Any]) -> None:
        """Count the answer for a unit."""
        self.volumes.append(unit)
        for name, counted in (("abstained", "abstained"), ("referred", "referred"), ("unlike_training", "unlike")):
            if name in unit:
                setattr(self, counted, (getattr(self, counted) or 0) + bool(unit[name]))

    def add(self, row: Row) -> None:
        """Count a row."""
        if self.level != "scan":
            self.failed += bool(row.values["error"])
            self.scans += not row.values["error"]
            self.remarked += bool(row.values["remarks"])
            return
        failed = bool(row.values["error"])
        self.failed += failed
        self.scans += not failed
        self.remarked += bool(row.values.get("remarks"))
        if "abstained" in row.values:
            self.abstained = (self.abstained or 0) + bool(row.values["abstained"])
        if "referred" in row.values:
            self.referred = (self.referred or 0) + bool(row.values["referred"])
        if "unlike_training" in row.values:
            self.unlike = (self.unlike or 0) + bool(row.values["unlike_training"])
