"""What the page of a report shows, a dataclass a section, which the template reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octfast.assess.metrics.definitions import TwoByTwo
from octfast.assess.report.claim import ClaimAnswer
from octfast.assess.report.pictures import Picture, Shot

SECTIONS = {
    "summary": "Summary",
    "data": "Data",
    "training": "Training",
    "results": "Results",
    "referral": "Urgent referral",
    "calibration": "Calibration",
    "errors": "Errors",
    "groups": "Patients and groups",
    "repeat": "How to repeat it",
    "limits": "Limits",
    "claim": "CLAIM checklist",
}

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Head:
    """What the run and the split are, which every section may name; `counts` are those of the Evaluation."""

    title: str
    run_name: str
    split: str
    split_name: str
    synthetic: bool
    classes: list[str]
    counts: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The metrics to see first, and what to know before any of them."""

    tiles: Rows
    cautions: list[str]


@dataclass(frozen=True)
class Data:
    """What it was trained and judged on; `missing` and `left_out_missing` say why a part is not there."""

    split_counts: dict[str, Any] | None
    patients: str
    shared: str
    splits: str
    release: str
    notes: Sequence[str]
    left_out: dict[str, Any] | None
    missing: str
    left_out_missing: str


@dataclass(frozen=True)
class Training:
    """How it was trained; `missing` says why there is no history."""

    rows: list[tuple[str, str]]
    history: Plot | None
    missing: str


@dataclass(frozen=True)
class Plot:
    """A figure with its caption."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class Results:
    """The metrics; `problems` are sentences in place of figures that could not be drawn."""

    overall: Rows
    overall_methods: list[str]
    resampled: str
    per_class: dict[str, Any]
    at_prevalence: dict[str, Any] | None
    prevalence: str
    confusion: Rows | None
    confused: Rows
    curves: list[Plot]
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Referral:
    """Urgent referral; `counts` has the name of each point with its scans, the predicted class's first."""

    classes: list[str]
    points: list[str]
    rows: Rows
    counts: list[tuple[str, TwoByTwo]]
    threshold: float | None
    fixed: str
    methods: list[str]

    @property
    def by_class(self) -> TwoByTwo:
        """The scans that are referred where the predicted class is urgent."""
        return self.counts[0][1]


@dataclass(frozen=True)
class Published:
    """The metrics beside published ones, or in `missing` why not; `costs` says what the weighted error is."""

    rows: Rows
    missing: str
    costs: str


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities can be believed, what abstaining gains, and the prediction sets, if there are any."""

    words: str
    columns: list[str]
    rows: Rows
    figures: list[Plot]
    problems: list[str]
    abstain: Rows
    sets: dict[str, Any] | None


@dataclass(frozen=True)
class Gallery:
    """Scans to look at."""

    words: str
    shots: list[Shot]


@dataclass(frozen=True)
class Frame:
    """A scan of a unit: what it is called in the strip ("B-scan", "7"), how much it counts, and what it says alone, of
    its label first."""

    name: str
    place: tuple[str, str]
    counts: str
    alone: list[tuple[str, str]]
    scan: Picture | None
    heat: Picture | None
    problem: str


@dataclass(frozen=True)
class MissedUnit:
    """A volume, an eye or a patient that was missed, with some of its scans and, of several, a strip of all."""

    name: str
    actual: str
    predicted: str
    p_predicted: str
    frames: list[Frame]
    strip: Plot | None


@dataclass(frozen=True)
class MissedUnits:
    """The units of a level that were missed."""

    heading: str
    words: str
    heat_words: str
    units: list[MissedUnit]


@dataclass(frozen=True)
class Errors:
    """Where it goes wrong; `missed` is None where no class is urgent or it is units that are judged, `near` unless it
    was asked."""

    missed: Gallery | None
    units: list[MissedUnits]
    top: Gallery
    doubts: dict[str, Any]
    heat_bar: Picture | None
    heat_words: str
    near: Plot | None
    no_near: str


@dataclass(frozen=True)
class Groups:
    """Results by patient and by the columns that were asked for; `missing` says why there are no columns."""

    patients: dict[str, Any]
    tables: Rows
    missing: str


@dataclass(frozen=True)
class Repeat:
    """The commands that train and report the same again, and on what the run was made."""

    commands: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class Claim:
    """The items of the checklist by section, and how many are answered."""

    sections: list[tuple[str, list[ClaimAnswer]]]
    counted: str


@dataclass(frozen=True)
class Page:
    """The whole page."""

    head: Head
    summary: Summary
    data: Data
    training: Training
    results: Results
    referral: Referral | None
    published: Published
    calibration: Calibration
    errors: Errors
    groups: Groups
    repeat: Repeat
    limits: list[str]
    claim: Claim
