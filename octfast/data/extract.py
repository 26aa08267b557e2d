"""`octfast data extract`: the B-scans of volumes as pictures beside a table, without what names a patient."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from octfast.data.readers.columns import candidates
from octfast.data.readers.load import TABLE_SUFFIXES, as_names, load_table
from octfast.data.readers.locate import resolve_paths
from octfast.data.readers.names import read_from
from octfast.data.readers.walk import LeftOut, walk
from octfast.data.scans import IMAGE_SUFFIXES, write_csv
from octfast.data.volumes.exports import export_in, taken_by_exports
from octfast.data.volumes.kinds import eye_of, frames_in, is_volume, looks_like_frames
from octfast.data.volumes.pseudonym import key_file, load_key, pseudonym
from octfast.data.volumes.series import find_series
from octfast.data.volumes.store import DRAFT, Store, Stored
from octfast.errors import DataError, UsageError
from octfast.files import is_taken, refuse_address, write_text

log = logging.getLogger("octfast")

LOCK = ".lock"
TABLE, REPORT = "scans.csv", "extracted.json"
_SETTINGS = ("keep_names", "any_modality", "key")


@dataclass
class Found:
    """A file with volumes, or a folder of pictures that is one, and what is known of it beside its own header.

    `files` are those of a DICOM series with a file a B-scan, of which `path` is the first.
    """

    path: Path
    label: str = ""
    patient: str = ""
    eye: str = ""
    files: tuple[Path, ...] = ()


@dataclass
class Extracted:
    """What `extract` wrote.

    Attributes
    ----------
    out : the folder, with `scans.csv` and `extracted.json`.
    scans : the table of B-scans.
    volumes : how many.
    removed : what was left behind: how many volumes had each field filled, without values.
    unreadable : files and why they could not be read; in no file of the folder, as names of files may name patients.
    key : the file with the key of the pseudonyms; None where names are kept.
    """

    out: Path
    scans: pd.DataFrame
    volumes: int
    removed: dict[str, int]
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    key: Path | None = None


def extract(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    key: str | Path | None = None,
    keep_names: bool = False,
    patient_from: str | None = None,
    label_from: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    any_modality: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extracted:
    """Write the B-scans of volumes as lossless 8-bit PNG, in the grey that training sees, beside a table of them.

    A folder a file, with its B-scans and the picture of the fundus where there is one. `scans.csv` has a row a B-scan:
    `path`, `label` where one was given, `patient`, `volume`, `eye`, `frame` (from 0), `position_mm`, `device`,
    `axial_um`, `lateral_um`, `between_um`; `octfast train` takes it. A volume of which nothing says the patient is a
    patient of its own.

    Patients, volumes and file names are keyed digests (HMAC-SHA256), the same for the same key. Nothing but pixels and
    these columns is taken from a file. Text that is burnt into the pixels stays.

    Called again with the same folder, it goes on where it was interrupted.

    Parameters
    ----------
    inputs : files, folders of them, tables with a column of paths, or lists of paths (.txt).
    out : a folder that is missing, empty, or was written by this with the same settings.
    key : file with the key; None takes OCTFAST_KEY, else the user's own, made at first use.
    keep_names : keep names of files and the patients' numbers. What is written then names patients.
    patient_from, label_from : as for `octfast.data.readers.read.read_data`; the patient by default from a table's
        column, else from the file ("tag").
    columns : names of a table's columns by `path`, `label`, `patient`.

    Raises
    ------
    UsageError : the folder is another's, the key would lie in it, or a column is missing.
    DataError : nothing to read, a table that cannot be read, or the folder cannot be written.
    """
    out = Path(out).expanduser()
    secret = load_key(key) if not keep_names else b""
    _check_out(out, secret, keep_names, any_modality, key_file(key).absolute() if not keep_names else None)
    sources = find_volumes(inputs, patient_from=patient_from, label_from=label_from, columns=columns or {})
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write to {out}: {e.strerror or e}", "give another --out") from None
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process is writing {out}", "wait for it, or give another --out") from None
    try:
        # Left where a process was killed.
        for draft in out.glob(f".*{DRAFT}"):
            shutil.rmtree(draft, ignore_errors=True)
        return _extract(out, sources, secret, key, keep_names, any_modality, workers, progress)
    finally:
        lock.release()
        (out / LOCK).unlink(missing_ok=True)


def _extract(
    out: Path,
    sources: list[Found],
    secret: bytes,
    key: str | Path | None,
    keep_names: bool,
    any_modality: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Extracted:
    report: dict[str, Any] = _settings(secret, keep_names, any_modality)
    write_text(out / REPORT, json.dumps(report, indent=1))
    store = Store(out.absolute(), secret, keep_names, any_modality)
    rows: list[dict[str, Any]] = []
    done = Extracted(out, pd.DataFrame(), 0, {}, key=None if keep_names else key_file(key))
    removed: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    seen: set[str] = set()
    found = store.volumes([source.path for source in sources], workers, {s.path: s.files for s in sources if s.files})
    for n, (source, (path, volumes)) in enumerate(zip(sources, found, strict=True), 1):
        if isinstance(volumes, DataError):
            done.unreadable.append((path, volumes.message))
        else:
            for volume in volumes:
                if volume.name in seen:
                    notes["the same content as another file, which counts once"] += 1
                    continue
                seen.add(volume.name)
                removed.update(volume.left_behind.keys())
                notes.update(volume.notes)
                rows += _rows(volume, source, out, secret, keep_names)
        if progress is not None:
            progress(n, len(sources))
    if not rows:
        raise DataError(
            f"no volume could be read, of {len(sources)}",
            f"the first: {done.unreadable[0][1]}" if done.unreadable else "give files of volumes",
        )
    # Not in the order of the files' names, which is not to be seen either.
    done.scans = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    unnamed = done.scans.loc[done.scans["patient"] == done.scans["volume"], "volume"].nunique()
    if unnamed:
        log.warning(
            "%d volumes say no patient, and each is taken for a patient of its own; --patient-from names them", unnamed
        )
    if not (done.scans["label"] != "").any():
        done.scans = done.scans.drop(columns=["label", "label_level"])
    done.volumes = int(done.scans["volume"].nunique())
    done.removed = dict(sorted(removed.items(), key=lambda pair: (-pair[1], pair[0])))
    write_csv(done.scans, out / TABLE)
    report |= {
        **{"files": len(sources), "unreadable": len(done.unreadable), "volumes": done.volumes},
        **{"bscans": len(done.scans), "removed": done.removed, "notes": dict(notes)},
    }
    write_text(out / REPORT, json.dumps(report, indent=1))
    return done


def find_volumes(
    inputs: Sequence[str | Path],
    *,
    patient_from: str | None = None,
    label_from: str | None = None,
    columns: Mapping[str, str | None],
) -> list[Found]:
    """The volumes behind files, folders, tables and lists, each once, with what tables and rules say of them.

    Raises
    ------
    UsageError : a column that a table lacks.
    DataError : no such file, a table that cannot be read, or no volume at all.
    """
    found: dict[Path, Found] = {}
    for given in inputs:
        refuse_address(given)
        path = Path(given).expanduser().absolute()
        if not path.exists():
            raise DataError(f"no such file or folder: {given}", "was it moved? give it again")
        if path.is_dir():
            own = [Found(p) for p in _in_folder(path)]
            base = path
        elif path.suffix.lower() in TABLE_SUFFIXES:
            own, base = _in_table(path, columns, patient_from, label_from), path.parent
        elif path.suffix.lower() == ".txt":
            own, base = [Found(p) for p in _in_list(path)], path.parent
        else:
            own, base = [Found(path)], path.parent
        _by_rules(own, base, patient_from, label_from)
        for one in own:
            found.setdefault(one.path, one)
    if not found:
        raise DataError(
            f"no volumes in {', '.join(map(str, inputs))}",
            "volumes are .vol, .e2e, .fda, .fds, .img, DICOM, HEYEX's XML, TIFF of several pages, or folders of 25 to "
            "200 pictures that are numbered",
        )
    return _in_series(found)


def _in_series(found: dict[Path, Found]) -> list[Found]:
    """The same with one for each DICOM series with a file a B-scan.

    Raises
    ------
    DataError : the files of a series have two labels, patients or eyes.
    """
    series, copies = find_series(found)
    for copy in copies:
        found.pop(copy)
    for first, files in series.items():
        one = found[first]
        for file in files[1:]:
            again = found.pop(file)
            for what in ("label", "patient", "eye"):
                if getattr(one, what) != getattr(again, what):
                    raise DataError(
                        f"one DICOM series has two {what}s: {first} is {getattr(one, what) or 'nothing'}, and {file} "
                        f"{getattr(again, what) or 'nothing'}",
                        "correct the table, or remove one of them",
                    )
        one.files = files
    return list(found.values())


def _in_folder(folder: Path) -> list[Path]:
    left_out = LeftOut()
    found = []
    if export := export_in(folder):
        return [export]
    frames = frames_in(folder)
    if frames and looks_like_frames(frames, least=2):
        return [folder]
    for inner in walk(folder, left_out).all():
        taken = taken_by_exports(inner.files)
        paths = [Path(file) for file in inner.files if file not in taken]
        pictures = [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES]
        if not taken and looks_like_frames(frames_in(inner.path)):
            found.append(Path(inner.path))
            paths = [p for p in paths if p not in pictures]
        found += [p for p in paths if is_volume(p)]
    left_out.say()
    left_out.refuse_unreadable(folder)
    return sorted(found)


def _in_table(file: Path, columns: Mapping[str, str | None], patient_from: str | None, label_from: str | None):
    table = load_table(file)
    names = [str(c) for c in table.columns]
    wanted = dict(columns)
    for role, rule in (("patient", patient_from), ("label", label_from)):
        if rule in names:
            wanted[role] = rule
    chosen: dict[str, str | None] = {}
    for role in ("path", "label", "patient", "eye"):
        named = wanted.get(role)
        if named is not None and named not in names:
            raise UsageError(
                f"--{role}-column {named}: {file.name} has no such column; its columns are {', '.join(names)}",
                "name one of them",
            )
        usual = ["eye"] if role == "eye" else candidates(role, names)
        chosen[role] = named or next((c for c in usual if c in names), None)
    if chosen["path"] is None:
        raise DataError(f"{file} has no column that looks like a path", "name it: --path-column NAME")
    cells = {role: as_names(table[c]).fillna("") if c else [""] * len(table) for role, c in chosen.items()}
    paths = resolve_paths(cells["path"], file)
    rows = zip(paths, cells["label"], cells["patient"], cells["eye"], strict=True)
    return [Found(_file_of(p), label, patient, eye_of(eye)) for p, label, patient, eye in rows if p]


def _in_list(file: Path) -> list[Path]:
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return [_file_of(p) for p in resolve_paths([line.strip() for line in lines if line.strip()], file)]


def _file_of(path: str) -> Path:
    """A path, or the export by HEYEX in the folder that it is."""
    return (export_in(Path(path)) if Path(path).is_dir() else None) or Path(path)


def _by_rules(own: list[Found], base: Path, patient_from: str | None, label_from: str | None) -> None:
    for what, rule in (("patient", patient_from), ("label", label_from)):
        if rule in (None, "tag") or (own and any(getattr(one, what) for one in own)):
            continue
        if rule == "name":
            raise UsageError("--patient-from name is for pictures", r"give a pattern, as 'P(\d+)_', or folder")
        root = base if all(one.path.is_relative_to(base) for one in own) else Path(own[0].path.anchor)
        # The folder that B-scans lie in is, of a folder of pictures, that folder.
        places = [str(one.path / "0" if one.path.is_dir() else one.path) for one in own]
        for one, value in zip(own, read_from(places, root, str(rule), what), strict=True):
            setattr(one, what, value)


def _rows(volume: Stored, source: Found, out: Path, key: bytes, keep_names: bool) -> list[dict[str, Any]]:
    patient = volume.patient
    if source.patient:
        patient = source.patient if keep_names else pseudonym(key, "patient", source.patient)
    if source.eye and volume.eye and source.eye != volume.eye:
        log.warning("%s: the table says eye %s, the file %s; the file's is taken", source.path, source.eye, volume.eye)
    same = {
        **{"label": source.label, "label_level": "volume" if source.label else ""},
        **{"patient": patient or volume.name, "volume": volume.name, "eye": volume.eye or source.eye},
    }
    after = {
        **{"device": " ".join(filter(None, (volume.maker, volume.device)))},
        **{"axial_um": volume.axial_um, "lateral_um": volume.lateral_um, "between_um": volume.between_um},
    }
    root = out.absolute()
    return [
        {"path": file.relative_to(root).as_posix(), **same, "frame": frame, "position_mm": mm, **after}
        for file, frame, mm in volume.frames
    ]


def _settings(key: bytes, keep_names: bool, any_modality: bool) -> dict[str, Any]:
    said = "" if keep_names else pseudonym(key, "key", "")
    return {"octfast": "volumes", "keep_names": keep_names, "any_modality": any_modality, "key": said}


def _check_out(out: Path, key: bytes, keep_names: bool, any_modality: bool, at: Path | None) -> None:
    if at is not None and os.path.realpath(at).startswith(os.path.realpath(out) + os.sep):
        raise UsageError(f"the key {at} would lie among the pictures", "keep it elsewhere: --key FILE")
    if not is_taken(out):
        return
    try:
        said = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{out} exists and is not empty", "give another --out; nothing is ever overwritten") from None
    now = _settings(key, keep_names, any_modality)
    if not isinstance(said, dict) or any(said.get(what) != now[what] for what in _SETTINGS):
        raise UsageError(f"{out} was written with another key or other settings", "give another --out")
