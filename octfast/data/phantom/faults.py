"""Plants the faults that an audit looks for in a folder of phantoms, and lists what was planted where."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from octfast.data.phantom.draw import CLASSES, NOTE, make_phantom, whole_folder, write_phantoms
from octfast.data.phantom.spoil import (
    Scan,
    Spoil,
    almost,
    coloured,
    flat,
    half_clear,
    jpeg,
    odd_size,
    saved,
    sixteen_bits,
    text,
    truncated,
    written_on,
)
from octfast.data.scans import write_csv
from octfast.errors import DataError, UsageError

log = logging.getLogger("octfast")

LIST = "faults.csv"


@dataclass
class _Folder:
    """The folder being spoilt: its scans not yet touched, the patients in use, and how its phantoms were drawn."""

    root: Path
    rng: np.random.Generator
    untouched: list[Scan]
    patients: set[str]
    seed: int
    size: int | None
    rows: list[dict[str, str]] = field(default_factory=list)

    def take(self, fault: str, fits: Callable[[Scan], bool] = lambda scan: True) -> Scan:
        """A scan that no fault has touched, of a patient that none has touched; only then of any patient."""
        scan = next((s for s in self.untouched if fits(s)), None)
        if scan is None:
            raise DataError(
                f"too few phantoms to plant all these faults: none is left for {fault}",
                "draw more with --scans, with a test split, or plant fewer",
            )
        self.untouched = [s for s in self.untouched if s is not scan]
        self.untouched.sort(key=lambda s: s.patient == scan.patient)
        return scan

    def new_patient(self) -> str:
        """A number that no patient has."""
        while (number := str(self.rng.integers(1_000_000, 10_000_000))) in self.patients:
            pass
        self.patients.add(number)
        return number

    def note(self, fault: str, path: Path, of: Path | None = None, detail: str = "") -> None:
        """List a planted fault: the file that shows it, and the one it was made of or repeats."""
        of_text = of.relative_to(self.root).as_posix() if of else ""
        self.rows.append(
            {"fault": fault, "path": path.relative_to(self.root).as_posix(), "of": of_text, "detail": detail}
        )

    def phantom(self, label: str, patient: str, image: int) -> bytes:
        """Another phantom of a patient, drawn as those of the folder are."""
        picture = Image.fromarray(make_phantom(label, int(patient), image, seed=self.seed))
        return jpeg(picture if self.size is None else picture.resize((self.size, self.size), Image.Resampling.BILINEAR))


# Plants one fault of the given name; gives the split and label of a file to be added.
_Plant = Callable[[_Folder, str], None]
_Target = Callable[[_Folder, Scan], tuple[str, str]]


def plant_faults(folder: str | Path, faults: Mapping[str, int], seed: int = 0) -> pd.DataFrame:
    """Plant so many of each fault in a folder of phantoms, each on a scan of its own, and write the list faults.csv.

    The same folder, faults and seed give the same files. Only a folder of phantoms is touched, by its SYNTHETIC.txt.

    Parameters
    ----------
    folder : as `write_phantoms` made it.
    faults : how many of each; the names are those of FAULTS.
    seed : of the choice of scans, 0 or more.

    Returns
    -------
    A row a fault: `fault`, `path` of the file that shows it and `of`, the file it repeats or belongs with (both from
    the folder, with slashes), `detail`.

    Raises
    ------
    UsageError : an unknown fault, or a negative number.
    DataError : no folder of phantoms, one with faults already, or too few scans.
    """
    root = Path(folder)
    check_faults(faults)
    said = _read_note(root)
    if (root / LIST).exists():
        raise DataError(f"{root} has planted faults already", "draw new phantoms: octfast data phantom --out DIR")
    rng = np.random.default_rng([seed, 5])
    scans = [
        Scan(path, path.parts[-3], path.parts[-2], path.stem.rsplit("-", 2)[1])
        for path in sorted(root.glob("*/*/*.jpeg"))
    ]
    work = _Folder(
        root,
        rng,
        [scans[i] for i in rng.permutation(len(scans))],
        {s.patient for s in scans},
        int(said["seed"]),
        None if said["size"] == "full" else int(said["size"]),
    )
    # Those that need a certain split or class go first, before others use such scans up.
    for fault in sorted(faults, key=lambda f: (f not in _NEEDS, list(FAULTS).index(f))):
        for _ in range(faults[fault]):
            FAULTS[fault](work, fault)
    table = pd.DataFrame(work.rows, columns=["fault", "path", "of", "detail"]).sort_values(
        ["fault", "path"], ignore_index=True
    )
    write_csv(table, root / LIST)
    with (root / NOTE).open("a", encoding="utf-8") as f:
        f.write(f"faults: {len(table)} planted on purpose, listed in {LIST}; the numbers above are of before\n")
    return table


def write_faulty_phantoms(
    out: str | Path, scans: int, faults: Mapping[str, int], *, seed: int = 0, **options
) -> pd.DataFrame:
    """Write phantoms as `write_phantoms` does, with faults planted; the folder appears complete or not at all.

    Returns
    -------
    As `plant_faults`.

    Raises
    ------
    UsageError, DataError : as `write_phantoms` and `plant_faults`.
    """
    check_faults(faults)
    with whole_folder(Path(out).expanduser().absolute()) as draft:
        write_phantoms(draft, scans, seed=seed, **options)
        return plant_faults(draft, faults, seed)


def check_faults(faults: Mapping[str, int]) -> None:
    """Raise a UsageError for a fault of no known name, or a number below 0."""
    for name, number in faults.items():
        if name not in FAULTS:
            near = difflib.get_close_matches(name, FAULTS, n=1, cutoff=0.4)
            raise UsageError(
                f"unknown fault: {name}", f"did you mean {near[0]}?" if near else f"known are {', '.join(FAULTS)}"
            )
        if number < 0:
            raise UsageError(f"fault {name}={number}: must be 0 or more", f"for example {name}=1")


def _read_note(root: Path) -> dict[str, str]:
    try:
        lines = (root / NOTE).read_text(encoding="utf-8").splitlines()
        said = dict(line.split(": ", 1) for line in lines if ": " in line)
        return {name: said[name] for name in ("seed", "size")}
    except (OSError, KeyError) as e:
        raise DataError(
            f"{root} is not a folder of phantoms, and faults are planted in no other", "octfast data phantom --out DIR"
        ) from e


def _spoil(make: Spoil, suffix: str = ".jpeg") -> _Plant:
    """A fault that replaces the bytes of a scan: `make` gives them, and a detail."""

    def plant(folder: _Folder, fault: str) -> None:
        scan = folder.take(fault)
        data, detail = make(scan)
        scan.path.unlink()
        path = scan.path.with_suffix(suffix)
        path.write_bytes(data)
        folder.note(fault, path, detail=detail)

    return plant


def _copy(other: _Target, fits: Callable[[Scan], bool] = lambda scan: True) -> _Plant:
    """A fault that copies a scan's bytes to a new patient; `other` gives the split and the label of the copy."""

    def plant(folder: _Folder, fault: str) -> None:
        scan = folder.take(fault, fits)
        _put(folder, fault, scan, *other(folder, scan), scan.path.read_bytes(), folder.new_patient())

    return plant


def _near_duplicate(folder: _Folder, fault: str) -> None:
    scan = folder.take(fault)
    data, detail = almost(scan, sum(row["fault"] == fault for row in folder.rows))
    _put(folder, fault, scan, scan.split, scan.label, data, folder.new_patient(), detail)


def _same_patient(other: _Target, fits: Callable[[Scan], bool] = lambda scan: True) -> _Plant:
    """A fault that draws another scan of the same patient, in the split and of the label that `other` gives."""

    def plant(folder: _Folder, fault: str) -> None:
        scan = folder.take(fault, fits)
        folder.untouched = [s for s in folder.untouched if s.patient != scan.patient]
        split, label = other(folder, scan)
        data = folder.phantom(label, scan.patient, 90)
        _put(folder, fault, scan, split, label, data, scan.patient, f"patient {scan.patient}", image=90)

    return plant


def _put(
    folder: _Folder,
    fault: str,
    scan: Scan,
    split: str,
    label: str,
    data: bytes,
    patient: str,
    detail: str = "",
    image: int = 1,
) -> None:
    target = folder.root / split / label
    if not (folder.root / split).is_dir():
        raise DataError(
            f"the fault {fault} needs phantoms in {split}, of which there are none", "draw some with --test 0.2"
        )
    target.mkdir(exist_ok=True)
    path = target / f"{label}-{patient}-{image}.jpeg"
    path.write_bytes(data)
    folder.note(fault, path, scan.path, detail)


def _other_class(folder: _Folder, scan: Scan) -> tuple[str, str]:
    there = sorted(d.name for d in (folder.root / scan.split).iterdir() if d.name != scan.label and d.name in CLASSES)
    if not there:
        raise DataError(f"there is one class alone in {scan.split}", "draw more phantoms: --scans 80")
    return scan.split, there[int(folder.rng.integers(len(there)))]


def _of_train(scan: Scan) -> bool:
    return scan.split == "train"


FAULTS: dict[str, _Plant] = {
    "truncated": _spoil(truncated),
    "empty": _spoil(lambda scan: (b"", "0 bytes")),
    "text": _spoil(text),
    "wrong-extension": _spoil(saved("PNG", lambda p: p, "a PNG named .jpeg")),
    "duplicate": _copy(lambda folder, scan: (scan.split, scan.label)),
    "duplicate-across-classes": _copy(_other_class),
    "duplicate-across-splits": _copy(lambda folder, scan: ("test", scan.label), _of_train),
    "near-duplicate": _near_duplicate,
    "patient-across-splits": _same_patient(lambda folder, scan: ("test", scan.label), _of_train),
    "patient-two-labels": _same_patient(_other_class),
    "blank": _spoil(flat(235)),
    "black": _spoil(flat(0)),
    "colour": _spoil(coloured),
    "text-burnt-in": _spoil(written_on),
    "odd-size": _spoil(odd_size),
    "16-bit": _spoil(saved("PNG", sixteen_bits, "16 bits a sample"), ".png"),
    "cmyk": _spoil(saved("JPEG", lambda p: p.convert("RGB").convert("CMYK"), "CMYK")),
    "rgba": _spoil(saved("PNG", half_clear, "with transparency"), ".png"),
    "gif": _spoil(saved("GIF", lambda p: p.convert("P"), "a GIF"), ".gif"),
}
_NEEDS = frozenset({"duplicate-across-splits", "patient-across-splits", "patient-two-labels"})
