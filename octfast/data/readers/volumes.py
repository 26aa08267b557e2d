"""Volumes in a data set: each becomes rows of the Scans table, a row a B-scan, on pictures that are made once."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from octfast.console import track
from octfast.data.readers.names import class_key, role_of
from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.exports import export_in
from octfast.data.volumes.kinds import eye_of, frames_in, is_named_as_volume, is_volume, kind_of, looks_like_frames
from octfast.data.volumes.pseudonym import load_key, pseudonym
from octfast.data.volumes.reader import VolumeReader
from octfast.data.volumes.series import find_series
from octfast.data.volumes.store import ABOUT, Store, Stored, mark_used, volume_cache
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

# What a volume adds to the Scans table.
COLUMNS = ("volume", "eye", "frame", "position_mm", "label_level")
# Where a file says them: in depth, across a B-scan, and from one to the next.
SPACING = ("axial_um", "lateral_um", "between_um")
TAG = "tag"
# The endings of what is a picture whatever is in it; a Path of each of a million files would take minutes.
_PICTURES = tuple(IMAGE_SUFFIXES - {".tif", ".tiff"})


def with_volumes(
    scans: pd.DataFrame,
    base: Path,
    *,
    named_patients: bool,
    patient_from: str | None = None,
    cache: str | Path | None = None,
) -> pd.DataFrame:
    """A Scans table in which files of volumes, and folders of their B-scans, have given way to a row a B-scan.

    Files are made into PNG once and kept in the cache by their content, under pseudonyms; the pictures in a folder of
    8-bit ones are read where they lie. Where there is no volume the table is given back as it is.

    Parameters
    ----------
    scans : of paths to pictures, to files of volumes, and to folders of the B-scans of one volume.
    base : the folder of the data.
    named_patients : whether a column or a rule names the patients; else a file's own patient goes before what names of
        files say.
    patient_from : the rule, of which "tag" takes the file's own patient whatever a table says.
    cache : where the cache is; None takes OCTFAST_CACHE, else the user's cache folder.

    Returns
    -------
    With `volume` (a table's own name for it, or a pseudonym, or of a folder its path), `eye` (R, L or ""), `frame`
    (from 0), `position_mm` (or NaN), and `label_level`, which is "volume" where the label is that of the whole volume;
    and `device`, `axial_um`, `lateral_um` and `between_um` (micrometres) where a file or the table says any.

    Raises
    ------
    UsageError : the patient is to be taken from volumes, and there are none.
    DataError : the key or the cache cannot be used; one volume stands under two labels or in two splits.
    """
    scans, series = _in_series(_gathered(_exports(scans, named_patients), base))
    kinds = {path: _what(path) for path in scans["path"]}
    files = [
        Path(path) for path, kind in kinds.items() if kind == "file" or (kind == "folder" and _is_deep(Path(path)))
    ]
    if not any(kinds.values()):
        if patient_from == TAG:
            raise UsageError("--patient-from tag: there are no volumes", "pictures name no patient within")
        return scans
    stored = _stored(files, cache, series) if files else {}
    names = _names(scans, [path for path, kind in kinds.items() if kind])
    often = Counter(names.values())
    places: Counter[str] = Counter()
    explicit = named_patients and patient_from != TAG
    same = _Patients(scans["patient"] if explicit and files else ())
    rows: list[dict[str, Any]] = []
    said: Counter[str] = Counter()
    seen: dict[str, dict[str, Any]] = {}
    for row in scans.to_dict("records"):
        path = Path(row["path"])
        found = stored.get(path, [])
        if not kinds[row["path"]] or isinstance(found, DataError):
            # What cannot be read keeps its row, and is left out with all files that cannot be.
            rows.append({**row, "label_level": ""})
        elif path in stored:
            own = explicit and not _is_own(row["patient"], path)
            for which, volume in enumerate(found):
                first = seen.setdefault(str(volume.frames[0][0]), row)
                if first is not row:
                    _refuse_contradiction(first, row)
                    said["have the content of another, and count once"] += 1
                    continue
                name = names.get(row["path"], "")
                one = len(found) == len(volume.frames) == 1
                if often[name] > 1 and not one:
                    said["share a name in the table with others, and get names of their own"] += 1
                    name = ""
                elif name and which:
                    name = f"{name}-{which}"
                made = _rows(row, volume, name or volume.name, own, patient_from == TAG, same, said)
                if name and often[name] > 1:
                    # A file a B-scan, of which the table says that they are one volume.
                    made[0] |= {"frame": places[name], "label_level": "volume"}
                    places[name] += 1
                rows += made
        else:
            name = names.get(row["path"]) or _relative(path, base)
            rows += _in_place(row, path, name, said)
    for what, n in said.most_common():
        log.warning("%d volumes %s", n, what)
    if several := same.several():
        log.warning(
            "%d patients are one by their files and several by the table or rule, so one may stand in two splits",
            several,
        )
    out = pd.DataFrame(rows)
    lead = ["path", "label", "patient", "split"]
    for column in ("volume", "eye"):
        out[column] = out[column].where(out[column].notna(), "") if column in out else ""
    more = [c for c in out.columns if c not in lead and c not in COLUMNS]
    out["position_mm"] = pd.to_numeric(out["position_mm"])
    out = out[[*lead, *COLUMNS, *more]].sort_values("path", ignore_index=True)
    whole = out[out["volume"] != ""]
    # A warning, as these are kept in the run.
    labelled = (whole["label"] != "").any()
    log.warning(
        "%d volumes are read as %d B-scans%s",
        *(whole["volume"].nunique(), len(whole)),
        ", each with the label of its volume, which may show in some of them alone" if labelled else "",
    )
    return out


def _refuse_contradiction(
    first: dict[str, Any], again: dict[str, Any], what_has: str = "one volume", other: str = "its copy"
) -> None:
    """
    Raises
    ------
    DataError : two files of one content, or of one series, have two labels, or stand in two splits.
    """
    for what in ("label", "split"):
        if first[what] != again[what]:
            raise DataError(
                f"{what_has} has two {what}s: {first['path']} is {first[what]}, and {again['path']}, {other}, "
                f"{again[what]}",
                "remove one of them",
            )


def why_unreadable(path: str | Path) -> str:
    """Why a volume cannot be read; "" if it can be."""
    try:
        with VolumeReader() as reader:
            kind = "folder" if Path(path).is_dir() else kind_of(path)
            for _ in reader.read(path, kind):
                pass
    except DataError as e:
        return e.message.replace(str(path), "it")
    except OSError as e:
        return e.strerror or str(e)
    return ""


def names_volumes(paths: list[str]) -> bool:
    """Whether paths of a table are those of volumes, or of pictures that were made of volumes."""
    return any(is_named_as_volume(p) or (p.parent / ABOUT).is_file() for p in map(Path, paths[:20]))


def _what(path: str) -> str:
    """ "file" or "folder" of a volume, "" of a picture."""
    if path.lower().endswith(_PICTURES):
        return ""
    return "folder" if Path(path).is_dir() else "file" if is_volume(path) else ""


def _gathered(scans: pd.DataFrame, base: Path) -> pd.DataFrame:
    """The table with a row for each folder of numbered pictures that lies in the folder of a class."""
    parents = scans["path"].map(os.path.dirname)
    rows, gone = [], []
    for parent, own in scans.groupby(parents, sort=False):
        folder = Path(str(parent))
        labels = {class_key(str(label)) for label in own["label"]}
        # Of CNV/images/1.png all scans of a class may lie in one folder.
        place = folder.parent if role_of(folder.name) == "pictures" else folder
        if len(labels) != 1 or class_key(place.name) in labels or base in (folder, place):
            continue
        if (folder / ABOUT).is_file():
            continue
        files = frames_in(folder)
        if {str(f) for f in files} != set(own["path"]) or own["split"].nunique() > 1 or not looks_like_frames(files):
            continue
        patients = set(own["patient"])
        first = own.iloc[0].to_dict()
        rows.append({**first, "path": str(folder), "patient": next(iter(patients)) if len(patients) == 1 else ""})
        gone += own.index.tolist()
    # One lone folder is as likely a class.
    if len(rows) < 2 or "volume" in scans:
        return scans
    log.info(
        "%d folders of 25 to 200 numbered pictures are taken for volumes, a folder a volume; the first: %s",
        *(len(rows), _relative(Path(rows[0]["path"]), base)),
    )
    return pd.concat([scans.drop(index=gone), pd.DataFrame(rows)], ignore_index=True)


def _exports(scans: pd.DataFrame, named_patients: bool) -> pd.DataFrame:
    """The table with the XML of an export by HEYEX in the place of the folder that it lies in.

    Raises
    ------
    DataError : a folder holds several.
    """
    others = [path for path in scans["path"].unique() if not path.lower().endswith(_PICTURES)]
    found = {path: export_in(Path(path)) for path in others if Path(path).is_dir()}
    if not any(found.values()):
        return scans
    scans = scans.copy()
    for i, row in scans[scans["path"].map(lambda path: found.get(path) is not None)].iterrows():
        scans.loc[i, "path"] = str(found[row["path"]])
        if not named_patients and Path(row["path"]).as_posix().endswith(str(row["patient"])):
            # The folder is no patient where nothing says so.
            scans.loc[i, "patient"] = ""
    return scans


def _in_series(scans: pd.DataFrame) -> tuple[pd.DataFrame, dict[Path, tuple[Path, ...]]]:
    """The table with one row for each DICOM series with a file a B-scan, and the files of each by the first.

    Files of which a table names the volume stay as it says.

    Raises
    ------
    DataError : the files of a series have several labels, splits, or patients that were named.
    """
    left = scans
    if "volume" in scans:
        left = scans[scans["volume"].isna() | (scans["volume"].astype(str).str.strip() == "")]
    found, copies = find_series(left["path"])
    if not found and not copies:
        return scans, {}
    own = scans.drop_duplicates("path").set_index("path")
    for files in found.values():
        first = own.loc[str(files[0])]
        for file in files[1:]:
            again = own.loc[str(file)]
            _refuse_contradiction(
                {**first, "path": files[0]}, {**again, "path": file}, "one DICOM series", "another B-scan of it"
            )
            guessed = _is_own(first["patient"], files[0]) and _is_own(again["patient"], file)
            if first["patient"] != again["patient"] and not guessed:
                raise DataError(
                    f"one DICOM series has two patients: {files[0]} is of {first['patient']}, and {file} of "
                    f"{again['patient']}",
                    "--patient-from tag takes the patient from the files",
                )
    merged = {str(file) for file in (*copies, *(file for files in found.values() for file in files[1:]))}
    return scans[~scans["path"].isin(merged)].reset_index(drop=True), found


def _is_deep(folder: Path) -> bool:
    """Whether the pictures in a folder have more than 8 bits, so that all must be spread alike."""
    files = frames_in(folder)
    try:
        with Image.open(files[0]) as image:
            return image.mode.startswith(("I", "F"))
    except Exception:  # there is none, or it is damaged, which reading it as a volume says
        return True


def _stored(
    files: list[Path], cache: str | Path | None, series: Mapping[Path, tuple[Path, ...]]
) -> dict[Path, list[Stored] | DataError]:
    root = volume_cache(cache)
    store = Store(root, load_key())
    found: dict[Path, list[Stored] | DataError] = {}
    with track("reading volumes", len(files), "files") as update:
        for path, volumes in store.volumes(files, series=series):
            found[path] = volumes
            update(len(found), len(files))
    whole = [volumes[0] for volumes in found.values() if not isinstance(volumes, DataError)]
    mark_used([volume.frames[0][0].parent for volume in whole])
    log.info("pictures of %d files of volumes, under pseudonyms: %s", len(whole), root)
    return found


def _names(scans: pd.DataFrame, paths: list[str]) -> Mapping[str, str]:
    """The names that a table gives its volumes."""
    if "volume" not in scans:
        return {}
    own = scans[scans["path"].isin(paths)].set_index("path")["volume"]
    return own[own.notna() & (own.astype(str).str.strip() != "")].astype(str).to_dict()


class _Patients:
    """Which names of a table and which pseudonyms of files are one patient."""

    def __init__(self, named: Iterable[object]):
        self._names: dict[str, str] = {}
        self._by_file: dict[str, set[str]] = {}
        if len(texts := {str(name) for name in named}):
            key = load_key()
            self._names = {pseudonym(key, "patient", name): name for name in texts}

    def of(self, pseudonym_in_file: str) -> str:
        """The table's name for the patient whose number a file holds, if it has one; else the pseudonym."""
        return self._names.get(pseudonym_in_file, pseudonym_in_file)

    def note(self, pseudonym_in_file: str, patient: str) -> None:
        """Keep which patient a file's own was said to be."""
        if pseudonym_in_file:
            self._by_file.setdefault(pseudonym_in_file, set()).add(patient)

    def several(self) -> int:
        """How many patients of files were said to be several."""
        return sum(len(patients) > 1 for patients in self._by_file.values())


def _rows(
    row: dict[str, Any], volume: Stored, name: str, own_patient: bool, tag: bool, same: _Patients, said: Counter[str]
) -> list[dict[str, Any]]:
    patient = str(row["patient"])
    if not own_patient:
        guessed = "" if tag or _is_own(patient, Path(row["path"])) else patient
        patient = same.of(volume.patient) or guessed or name
        if patient == name:
            said["say no patient; each is taken for a patient of its own, --patient-from says otherwise"] += 1
    same.note(volume.patient, patient)
    eye = eye_of(str(row.get("eye") or ""))
    if eye and volume.eye and eye != volume.eye:
        said["have another eye in their file than the table says; the file's is taken"] += 1
    device = row.get("device") or " ".join(filter(None, (volume.maker, volume.device)))
    known = {**row, "patient": patient, "volume": name, "eye": volume.eye or eye}
    if device:
        known["device"] = device
    known |= {name: um for name in SPACING if (um := getattr(volume, name)) is not None}
    level = "volume" if len(volume.frames) > 1 else ""
    return [
        {**known, "path": str(path), "frame": frame, "position_mm": mm, "label_level": level}
        for path, frame, mm in volume.frames
    ]


def _in_place(row: dict[str, Any], folder: Path, name: str, said: Counter[str]) -> list[dict[str, Any]]:
    patient = str(row["patient"])
    if not patient:
        patient = name
        said["say no patient; each is taken for a patient of its own, --patient-from says otherwise"] += 1
    same = {**row, "patient": patient, "volume": name, "eye": eye_of(str(row.get("eye") or ""))}
    return [
        {**same, "path": str(path), "frame": n, "position_mm": None, "label_level": "volume"}
        for n, path in enumerate(frames_in(folder))
    ]


def _is_own(patient: object, path: Path) -> bool:
    """Whether a patient is the file itself, as where nothing names one."""
    text = str(patient)
    return not text or (path.is_file() and text.endswith(path.suffix) and path.as_posix().endswith(text))


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
