"""What names of folders and files say: splits, one class in several spellings, patients, eyes, devices and copies."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from octfast.data.scans import SPLIT_WORDS
from octfast.data.volumes.kinds import EXPORT_SUFFIX, VOLUME_SUFFIXES
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

_FILLER = "(?:sets?|data|datasets?|images?|scans?|splits?|folder|part|oct)*"
_SPLIT = re.compile(
    rf"\d*{_FILLER}({'|'.join(sorted((*SPLIT_WORDS, 'validate', 'trn', 'tst'), key=len)[::-1])}){_FILLER}"
)
_WORDS = {**SPLIT_WORDS, "validate": "valid", "trn": "train", "tst": "test"}

KNOWN_CLASSES = frozenset(
    {
        *("amd", "armd", "dry_amd", "wet_amd", "cnv", "csc", "csr", "cscr", "dme", "dr", "drusen", "erm", "ga", "mh"),
        *("geographic_atrophy", "glaucoma", "macular_hole", "no", "normal", "healthy", "pcv", "retinoschisis"),
        *("rao", "rvo", "brvo", "crvo", "vid", "vmt", "stargardt"),
    }
)
_ROLES = {
    "masks": "mask masks annotation annotations segmentation segmentations gt ground_truth groundtruth overlay "
    "overlays heatmap heatmaps thumbnail thumbnails thumbs layers",
    "pictures": "image images img imgs picture pictures scan scans bscan bscans b_scans jpeg jpegs jpg jpgs png pngs "
    "tif tiff tifs tiffs 8bittiffs 16bittiffs bmp raw original originals",
    "eye": "od os ou left right left_eye right_eye",
    "device": "cirrus spectralis topcon heidelberg zeiss nidek optovue canon triton maestro bioptigen optopol revo",
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words.split()}
_PATIENT = re.compile(
    r"(?:p|pt|pat|patient|subj|subject|sub|case|person|id|pid|participant|proband)[\s_-]*0*\d+\w{0,2}|\d{3,}",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(.*[^\W\d_])[\s_-]*(\d+)")
_CLASS_PATIENT_IMAGE = re.compile(
    r"(?P<label>.+)-(?P<patient>[^-]+)-(?P<image>\d+)|(?P<label_>.+)_(?P<patient_>[^_]*\d[^_]*)_(?P<image_>\d+)",
    re.DOTALL,
)
_COPY_END = re.compile(
    r"\s*\((?:\d+|copy|another copy|\d+(?:st|nd|rd|th) copy)\)$|\s+-\s+(?:copy|kopie|copie|copia)$|[ _]copy(?: \d+)?$",
    re.IGNORECASE,
)
_COPY_START = re.compile(r"^(?:copy (?:\(\d+\) )?of|kopie von|copie de) ", re.IGNORECASE)


def split_of(name: str) -> str:
    """The split that a folder's name stands for, as in "Training set", "01_train" or "test-data"; else ""."""
    match = _SPLIT.fullmatch(re.sub(r"[^\w]|_", "", _folded(name)))
    return _WORDS[match[1]] if match else ""


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """Which of the names of neighbouring folders stand for splits, also with words around that all of them share."""
    found = {name: split for name in names if (split := split_of(name))}
    if found:
        return found
    rest: dict[str, dict[str, str]] = {}
    for name in names:
        words = _words(name)
        if sum(w in _WORDS for w in words) == 1:
            around = " ".join("?" if w in _WORDS else w for w in words)
            rest.setdefault(around, {})[name] = next(_WORDS[w] for w in words if w in _WORDS)
    return next((shared for shared in rest.values() if len(set(shared.values())) > 1), {})


def names_a_split(name: str) -> bool:
    """Whether a word for a split stands in a name, so that it is hardly one of a class."""
    return any(word in SPLIT_WORDS for word in re.split(r"[\W\d_]+", _folded(name)))


def role_of(name: str) -> str:
    """What a folder's name stands for that is no class: "masks", "pictures", "eye" or "device"; else ""."""
    return _ROLE_OF.get(re.sub(r"[\s_-]+", "_", _folded(name)), "")


def is_patient_name(name: str) -> bool:
    """Whether a folder's name looks like that of a patient: p1, Patient 12, sub-03, or a number of three digits."""
    return _PATIENT.fullmatch(clean(name)) is not None


def numbered_stems(names: Sequence[str]) -> dict[str, str]:
    """The classes of folders named AMD1, AMD2, NORMAL1 ..., by name; empty where they are not all named so.

    There must be several classes and several numbers in one: a lone row of stage1, stage2, stage3 is classes.
    """
    found = {name: match[1] for name in names if (match := _NUMBERED.fullmatch(clean(name)))}
    stems = Counter(class_key(stem) for stem in found.values())
    return found if len(found) == len(names) and len(stems) > 1 and max(stems.values()) > 1 else {}


def clean(name: str) -> str:
    """A name without what is not seen: composed characters (NFC), no zero-width ones, single spaces, none around."""
    seen = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join(seen.split()) or name


@lru_cache(4096)
def class_key(name: str) -> str:
    """The same for all spellings of one class: `clean`, in small letters."""
    return clean(name).casefold()


def merge_spellings(labels: pd.Series, of: str) -> pd.Series:
    """The classes with each in one spelling, the most frequent; what is merged is said in the log.

    Parameters
    ----------
    labels : text.
    of : the folder or table, for the log.
    """
    chosen: dict[str, str] = {}
    # The most frequent first; of equals the first in the alphabet.
    counts = sorted(labels.value_counts().items(), key=lambda pair: (-pair[1], str(pair[0])))
    spellings: dict[str, list[str]] = {}
    for name, _ in counts:
        spellings.setdefault(class_key(str(name)), []).append(str(name))
    for key, several in spellings.items():
        chosen[key] = clean(several[0])
        if len(several) > 1:
            log.warning(
                "%s: one class in several spellings is read as %s: %s", of, chosen[key], ", ".join(map(ascii, several))
            )
        elif several[0] != chosen[key]:
            log.warning("%s: the class %a is read as %s", of, several[0], chosen[key])
    return labels.map({name: chosen[class_key(str(name))] for name, _ in counts})


def original_stem(stem: str) -> str:
    """A file's stem without the marks of a copy: "scan (2)", "scan - Copy", "Copy of scan"."""
    while stem != (shorter := _COPY_START.sub("", _COPY_END.sub("", stem))) and shorter:
        stem = shorter
    return stem


def patient_in_name(stem: str, labels: set[str]) -> str:
    """The patient in a name CLASS-PATIENT-IMAGE or CLASS_PATIENT_IMAGE, or of a copy so named; else "".

    Parameters
    ----------
    labels : keys of the classes, see `class_key`; CLASS is one of these.
    """
    for name in dict.fromkeys((stem, original_stem(stem))):
        match = _CLASS_PATIENT_IMAGE.fullmatch(name)
        if match and class_key(match["label"] or match["label_"]) in labels:
            return match["patient"] or match["patient_"]
    return ""


def patients_from_names(scans: pd.DataFrame, root: Path, folders: Sequence[str] | None = None) -> list[str]:
    """The patient of each scan: from a name CLASS-PATIENT-IMAGE whose CLASS is one of the labels, else the file itself.

    A copy has the patient of its original. Says in the log how many were guessed to be a patient of their own.

    Parameters
    ----------
    scans : with `path` and `label`.
    root : what a file's own path is taken from.
    folders : the folder of each scan that names its patient, or "" where none does, for names that say nothing.
    """
    labels = {class_key(str(label)) for label in scans["label"].unique()}
    originals: dict[Path, Path] = {}
    patients = []
    guessed = by_folder = 0
    for i, text in enumerate(scans["path"]):
        # As Path has it, which takes longer for each of a million.
        patient = patient_in_name(os.path.splitext(os.path.basename(text))[0], labels)  # noqa: PTH119, PTH122
        if not patient and folders is not None and folders[i]:
            patient, by_folder = folders[i], by_folder + 1
        if not patient:
            path = Path(text)
            # Of volumes, which may name their patients within, that is said once they are read.
            guessed += path.suffix.lower() not in (*VOLUME_SUFFIXES, EXPORT_SUFFIX)
            # A set may number all of its scans in this way, so the original must be there.
            originals = originals or {p.with_suffix(""): p for p in map(Path, reversed(scans["path"].tolist()))}
            path = originals.get(path.with_name(original_stem(path.stem)), path)
            patient = path.relative_to(root).as_posix()
        patients.append(patient)
    if by_folder:
        log.warning(
            "patients: of %d of %d scans the folder in its class is taken for the patient, the same in every class; "
            "--patient-from says otherwise",
            *(by_folder, len(patients)),
        )
    if guessed:
        log.warning(
            "patients: %d of %d file names are not CLASS-PATIENT-IMAGE; each of these files is taken for a patient of "
            "its own, so scans of one patient may stand in two splits; --patient-from folder or a pattern names them",
            *(guessed, len(patients)),
        )
    return patients


def read_from(paths: Sequence[str], root: Path, rule: str, what: str) -> list[str]:
    """The label or patient in each path, by a rule: `folder`, `folder:2` or a regular expression.

    Parameters
    ----------
    paths : absolute, below `root`.
    rule : `folder` is the folder that the file lies in, `folder:2` the one above; a pattern is searched for in the path
        from `root`, and its group named as `what`, else its first, else all that it matches is taken.
    what : "label" or "patient".

    Raises
    ------
    UsageError : a rule that cannot be.
    DataError : a path of which it says nothing.
    """
    level = re.fullmatch(r"folder(?::([1-9]\d*))?", rule)
    try:
        pattern = None if level else re.compile(rule)
    except re.error as e:
        raise UsageError(f"--{what}-from {rule}: {e}", r"for example --patient-from folder, or 'P(\d+)_'") from None
    found = []
    for path in paths:
        inner = Path(path).relative_to(root)
        if pattern is None:
            up = int(level[1] or 1) if level else 1
            value = inner.parts[-1 - up] if len(inner.parts) > up else ""
        else:
            match = pattern.search(inner.as_posix())
            group = what if what in pattern.groupindex else min(1, pattern.groups)
            value = (match[group] or "") if match else ""
        if not clean(value).strip():
            raise DataError(f"--{what}-from {rule} gives no {what} for {path}", "paths are taken from " + str(root))
        found.append(clean(value))
    return found


def merge_zeros(patients: pd.Series, of: str) -> pd.Series:
    """The patients, those that differ by leading zeros alone, as 7 and 007, under the name that most scans have.

    What is merged is said in the log.

    Parameters
    ----------
    patients : text.
    of : the folder or table, for the log.
    """
    spellings: dict[str, list[str]] = {}
    for name, _ in sorted(patients.value_counts().items(), key=lambda pair: (-pair[1], str(pair[0]))):
        spellings.setdefault(patient_key(str(name)), []).append(str(name))
    several = [names for names in spellings.values() if len(names) > 1]
    if not several:
        return patients
    log.warning(
        "%s: patients that differ by leading zeros alone are taken for one, %d times; the first: %s are %s",
        *(of, len(several), ", ".join(several[0]), several[0][0]),
    )
    return patients.map({name: names[0] for names in spellings.values() for name in names})


def patient_key(patient: str) -> str:
    """The same for patients that differ by leading zeros alone."""
    return (patient.lstrip("0") or "0") if patient.isdecimal() else patient


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", clean(name)).casefold()


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", _folded(name))
