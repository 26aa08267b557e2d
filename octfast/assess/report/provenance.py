"""What a run was trained on, how, and how to repeat it, read from its folder and put into words for a reader."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.data.audit.releases import find_release
from octfast.data.fit import fit_in_words
from octfast.data.scans import describe_scans, load_scans
from octfast.data.splits.hold_out import shared_patients
from octfast.errors import OctfastError
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.read import read_info
from octfast.notices import SYNTHETIC_NOTE
from octfast.run.folder import REMINDER, Run
from octfast.run.privacy import named, within, without_places
from octfast.train.config import TrainConfig

SPLIT_NAMES = {"train": "training", "valid": "validation", "test": "test"}
# Options that change nothing of the result, and the folder, which is never written into twice.
_NOT_REPEATED = {"out", "cache", "workers", "tracker", "format", "dpi"}
_FILES = {"weights", "splits"}
# As octfast.data.loaders.oct_transforms makes them, by the name of their strength.
_AUGMENTATION = {
    "light": "light: mirroring, rotation to 3°, zoom to 1.05, brightness and contrast by 0.05",
    "default": "default: mirroring, rotation to 8°, zoom to 1.15, brightness and contrast by 0.15",
    "strong": "strong: mirroring, rotation to 15°, zoom to 1.4, brightness and contrast by 0.3",
}


@dataclass(frozen=True)
class Provenance:
    """What is known of a run before any prediction is read; what is missing is None, with a sentence in `missing`.

    Attributes
    ----------
    name, data : of the run folder and of the folder or table of scans.
    config : config.json.
    info : of the trained model.
    counts : scans a split and class and patients a split, with the sum of all; see `describe_scans`.
    shared : patients that stand in two splits, see `octfast.data.splits.hold_out.shared_patients`.
    own_patients : scans that are taken for a patient of their own, as none is known.
    named : whether all other patients stand in the names of their files.
    left_out : files that were left out, with their reason.
    notes : the warnings of training.
    history : a row an epoch.
    release : which release of OCT2017 the counts fit and what is known of it, or "".
    columns : further columns of the Scans table, by which results can be shown.
    missing : sentences, by what is missing.
    """

    name: str
    data: str
    config: dict[str, Any]
    info: BundleInfo
    counts: pd.DataFrame | None = None
    shared: pd.DataFrame | None = None
    own_patients: int | None = None
    named: bool = False
    left_out: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    history: pd.DataFrame | None = None
    release: str = ""
    columns: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Any]:
        """A part of config.json, empty where it has none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def pretrained(self) -> bool:
        return self.info.weights.get("source", "none") != "none"

    @property
    def epochs(self) -> str:
        """How many epochs were run and which was kept, in words."""
        ran = "unknown" if self.history is None else str(len(self.history))
        best = self.part("chosen").get("best_epoch")
        return f"{ran} of {self.config.get('epochs', 'unknown')}" + (f"; epoch {best} was kept" if best else "")


def run_provenance(run: Run) -> Provenance:
    """Read what is known of a run.

    Raises
    ------
    BundleError : it is no run folder, or has no trained model.
    """
    config, info = run.config, read_info(run.bundle)
    missing: dict[str, str] = {}
    found: dict[str, Any] = {}
    try:
        scans = run.scans
        counts = describe_scans(scans)
        counts.loc["all"] = counts.sum()
        counts.loc["all", "patients"] = scans["patient"].nunique()
        found["counts"] = counts.astype(int)
        found["shared"] = shared_patients(scans)
        own = _own_patients(scans)
        found["own_patients"] = int(own.sum())
        names = (Path(p).stem for p in scans["path"][~own])
        found["named"] = all(f"-{who}-" in name for name, who in zip(names, scans["patient"][~own], strict=True))
        found["release"] = _release(scans)
        found["columns"] = tuple(c for c in scans.columns if c not in ("path", "label", "patient", "split"))
    except OctfastError as e:
        missing["counts"] = f"The scans of this run are not known: {within(run, e)}."
    try:
        found["history"] = run.history
        if found["history"].empty:
            raise OctfastError(f"{run.path / 'history.csv'} has no epoch")
    except OctfastError as e:
        found.pop("history", None)
        missing["history"] = f"There is no history to show: {within(run, e)}."
    left_out = run.path / "left-out.csv"
    if left_out.exists():
        try:
            found["left_out"] = load_scans(left_out, run.root)
        except OctfastError as e:
            missing["left_out"] = f"Files were left out, but which is not known: {within(run, e)}."
    own = [run.path, run.root, config["data"]["root"]]
    # What a training says of its model at its end is said elsewhere on the page; older runs have it without a kind.
    said = [n.text for n in run.notes if n.kind != REMINDER]
    found["notes"] = tuple(without_places(text, own) for text in said)
    data = config["data"]
    name = "synthetic phantoms" if info.synthetic else Path(config["data"]["root"]).name or str(data["root"])
    return Provenance(run.path.name, name, config, info, missing=missing, **found)


def _release(scans: pd.DataFrame) -> str:
    """The release by the counts as they are, or as they were before validation was drawn out of training."""
    drawn = scans.assign(split=scans["split"].replace("valid", "train"))
    release = find_release(scans) or find_release(drawn)
    return str(release) if release else ""


def _own_patients(scans: pd.DataFrame) -> pd.Series:
    """Which scans are a patient of their own: their patient is the end of their path, as reading folders makes it."""
    paths = [Path(p).as_posix() for p in scans["path"]]
    own = [path.endswith(f"/{who}") and "." in who for path, who in zip(paths, scans["patient"], strict=True)]
    return pd.Series(own, index=scans.index, dtype=bool)


def patients_in_words(known: Provenance) -> str:
    """Where the patients come from."""
    if known.own_patients is None or known.counts is None:
        return "Where the patients come from is not known."
    total = int(known.counts.loc["all", "scans"])
    column = known.config.get("patient_column")
    told = "a column of the table of scans" if not column else f"the column {column} of the table of scans"
    if known.named and not column:
        told = "file names of the form CLASS-PATIENT-IMAGE"
    if known.own_patients == total:
        return (
            "No patient is known: each scan is taken for a patient of its own, so scans of one patient may stand in "
            "two splits, which would make the model look better than it is, and the intervals may be too narrow."
        )
    if known.own_patients:
        return (
            f"Patients come from {told}; {known.own_patients:,} of {total:,} scans name none and are each taken for a "
            "patient of their own."
        )
    return f"Patients come from {told}."


def splits_in_words(known: Provenance) -> str:
    """How validation and test were set apart."""
    config, seed = known.config, known.config.get("seed")
    if config.get("splits"):
        fold = "" if config.get("fold") is None else f", fold {config['fold']} for validation"
        words = f"The splits are those of {named(config['splits'])}{fold}."
    elif config.get("valid") == "folder":
        words = "Validation is the set's own."
    elif config.get("valid") is None:
        words = "How validation was set apart is not recorded."
    else:
        words = f"Validation was drawn by patient and by class: {config.get('valid')} of the scans, seed {seed}."
    if known.counts is not None and "test" in known.counts.index:
        words += " Test scans are those that the data set says are for testing; they were never trained on."
    elif known.counts is not None:
        words += " There is no test split."
    if config.get("drop_leaks"):
        words += " Scans whose patient, or an identical file, is in test were left out."
    return words


def shared_in_words(known: Provenance) -> str:
    """Whether patients stand in two splits."""
    if known.shared is None:
        return ""
    if known.shared.empty:
        return "No patient stands in more than one split."
    n = len(known.shared)
    who = f"{n:,} patients stand" if n > 1 else "1 patient stands"
    return f"{who} in more than one split, so the figures are better than those of new patients would be."


def training_rows(known: Provenance) -> list[tuple[str, str]]:
    """What was trained and how, a name and a value each."""
    config, info, chosen = known.config, known.info, known.part("chosen")
    weights = info.weights
    came = "none: the body's weights are random"
    if known.pretrained:
        digest = f", SHA-256 {weights['sha256']}" if weights.get("sha256") else ""
        came = f"{weights.get('file') or weights.get('source')}{digest}"
    trained = {"head": "the head; the body is frozen", "block5": "the head and the last block", "all": "all of it"}
    rows = [
        ("architecture", f"{info.arch}, head {info.head}"),
        ("pretrained weights", came),
        ("licence of the weights", str(weights.get("licence", ""))),
        ("trained", trained.get(str(config.get("unfreeze")), str(config.get("unfreeze")))),
        (
            "input",
            f"grey, {fit_in_words(info.fit, info.size)}, mean {_three(info.mean)}, std {_three(info.std)}",
        ),
        ("output", f"a probability for each of {len(info.classes)} classes: {', '.join(info.classes)}"),
        ("augmentation", "not recorded" if in_python(known) else _augmentation(config)),
        ("loss", "not recorded" if in_python(known) else "cross entropy; one-cycle schedule"),
        ("epochs", known.epochs),
        (
            "choice of the epoch",
            "not recorded"
            if in_python(known)
            else "none: the last, as every scan is learned from"
            if chosen.get("folds") and config.get("unfreeze") == "block5"
            else f"the lowest loss {'out of fold' if chosen.get('folds') else 'on validation'}",
        ),
        ("highest learning rate", _number(chosen.get("lr", config.get("lr")))),
        ("batch size", str(chosen.get("bs", config.get("bs")))),
        ("seed", str(config.get("seed"))),
        ("temperature", f"{info.temperature:.4g}" if info.temperature != 1 else "1: not calibrated"),
    ]
    return [(name, value) for name, value in rows if value not in ("", "None")]


def _augmentation(config: dict[str, Any]) -> str:
    """How the training scans were changed at random, and how often."""
    # Runs of before the option was there have none of it.
    views, strength = config.get("views"), config.get("augment") or "default"
    # With --minutes there may have been time for fewer.
    views = (config.get("chosen") or {}).get("views", views)
    anew = not views or config.get("unfreeze") == "all"
    if strength == "none":
        return "none"
    if views == 1 and not anew:
        return "none: the scans as they are, read once"
    readings = "drawn anew each epoch" if anew else f"{views} readings of each scan, drawn once"
    return f"{_AUGMENTATION.get(strength, strength)}; {readings}"


def repeat_rows(known: Provenance) -> list[tuple[str, str]]:
    """On what the run was made, a name and a value each."""
    config, machine, git = known.config, known.part("machine"), known.part("git")
    seconds = config.get("seconds")
    state = "not in a git repository"
    if git.get("commit"):
        state = f"{git['commit']}{', with changes that were not committed' if git.get('changed') else ''}"
    rows = [
        ("data fingerprint", str(known.part("data").get("fingerprint"))),
        ("git commit where it was started", state),
        ("machine", f"{machine.get('platform')}, {_threads(machine.get('threads'))}"),
        ("device, precision", f"{known.part('chosen').get('device')}, {known.part('chosen').get('precision')}"),
        ("training took", f"{seconds} s" if seconds is not None else "not known"),
        *((str(name), str(version)) for name, version in known.part("versions").items()),
    ]
    return [(name, value) for name, value in rows if value != "None"]


def in_python(known: Provenance) -> bool:
    """Whether the run is of a Learner that was trained in Python, of which less is known."""
    return known.config.get("made_by") == "save_run"


def train_command(known: Provenance) -> str:
    """The command that trains the same again into a new run folder: what differs from the defaults, and the seed.

    Folders and files elsewhere stand with their names alone: config.json says where they lay.
    """
    if in_python(known):
        return "# Trained in Python and saved with octfast.save_run: no command makes it again."
    config, usual, given = known.config, TrainConfig(), known.part("data")
    # config.json says under "data" what was read, in place of the option.
    root = None if known.info.synthetic else given.get("root")
    source = given.get("source", root)
    words = ["octfast", "train", *([named(source)] if source else [])]
    for name in TrainConfig.__dataclass_fields__:
        value = config.get(name)
        if name in _NOT_REPEATED | {"data"} or value is None or (value == getattr(usual, name) and name != "seed"):
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, named(value) if name in _FILES else str(value)]
    return shlex.join([*words, "--out", again(known)])


def again(known: Provenance) -> str:
    """The run folder of the same training once more, as the run's own is never written into again."""
    return f"runs/{known.name}-again"


def cautions(known: Provenance, split: str, scans: int) -> list[str]:
    """What a reader must know before any figure of a split of so many scans, the gravest first."""
    found = []
    if known.info.synthetic:
        found.append(SYNTHETIC_NOTE)
    if split == "train":
        found.append("These are the scans that the model was trained on: the figures say nothing of new scans.")
    if split == "valid":
        found.append(
            "These are validation scans, on which the epoch to keep was chosen, so the figures are too good. Only a "
            "test split says how it does on new scans."
        )
    if known.shared is not None and len(known.shared):
        found.append(shared_in_words(known))
    if known.own_patients and known.counts is not None:
        found.append(patients_in_words(known))
    if scans < 200:
        found.append(f"There are only {scans:,} scans: read the intervals, not the figures alone.")
    if not known.pretrained:
        found.append("The body of this model has random weights: with pretrained ones it would do better.")
    if not known.info.synthetic:
        found.append("All scans come from one data set; on another device or in another clinic figures may be worse.")
    return found


def _threads(n: object) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _three(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
