"""Reads MedMNIST's .npz files: pictures unpacked once as PNG files into the cache, and the Scans table of these."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image

from octfast.console import track
from octfast.errors import DataError
from octfast.files import cache_root

log = logging.getLogger("octfast")

# In MedMNIST's order, see medmnist.INFO["octmnist"]["label"].
OCTMNIST_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
# Raised whenever other files would be written, as the cache is named after it.
VERSION = 1
_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_DONE = "unpacked.json"
_CHUNK = 256
_HINT = "fetch it again: octfast data download octmnist"


def read_medmnist(file: str | Path, cache: str | Path | None = None) -> pd.DataFrame:
    """The Scans table of a MedMNIST file such as octmnist_224.npz, its pictures unpacked into the cache if need be.

    Classes are CNV, DME, DRUSEN and NORMAL for a file with octmnist in its name, numbers for other sets. MedMNIST
    names no patients, so each scan is taken for a patient of its own, which the log says.

    Parameters
    ----------
    file : with train_images, train_labels, and the same of val and test; images uint8 of shape (n, H, W) or
        (n, H, W, 3), labels of shape (n, 1) or (n,).
    cache : the root of the cache; None takes the environment's OCTFAST_CACHE, else the user's cache folder.

    Returns
    -------
    A row a scan, sorted by path: `path` (a PNG file), `label`, `patient`, `split`.

    Raises
    ------
    DataError : no MedMNIST file of single pictures with one label each, damaged, or the cache cannot be written.
    """
    file = Path(file).expanduser()
    labels = _labels(file)
    folder = unpack(file, cache)
    rows = [
        (str(folder / _member_path(split, label, i)), label, _member_path(split, label, i), _SPLITS[split])
        for split, names in labels.items()
        for i, label in enumerate(names)
    ]
    scans = pd.DataFrame(rows, columns=["path", "label", "patient", "split"])
    log.warning(
        "MedMNIST names no patients: each of the %d scans is taken for a patient of its own, so scans of one patient "
        "may stand in two splits",
        len(scans),
    )
    return scans.sort_values("path", ignore_index=True)


def unpack(file: str | Path, cache: str | Path | None = None) -> Path:
    """The folder with the pictures of a MedMNIST file, unpacked if it is not there, or incomplete.

    The folder is named after the content of the file, appears complete or not at all, and goes on where an
    interrupted unpacking stopped. A second process waits.

    Raises
    ------
    DataError : as read_medmnist.
    """
    file = Path(file).expanduser()
    folder = cache_root(cache).absolute() / "medmnist" / f"v{VERSION}-{file.stem}-{_content_key(file)}"
    if _complete(folder):
        return folder
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that unpacks %s", file.name)
            lock.acquire()
        try:
            if not _complete(folder):
                _unpack(file, folder)
        finally:
            lock.release()
    except OSError as e:
        raise DataError(
            f"cannot unpack {file.name} into {folder.parent}: {e}", "set OCTFAST_CACHE to a folder with more room"
        ) from e
    return folder


def _unpack(file: Path, folder: Path) -> None:
    labels = _labels(file)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(map(len, labels.values()))
    log.info("unpacking %d pictures of %s into %s", total, file.name, folder)
    for split, names in labels.items():
        for label in set(names):
            (part / split / label).mkdir(parents=True, exist_ok=True)

    def write(job: tuple[Path, np.ndarray]) -> int:
        path, samples = job
        if not path.exists():
            new = path.with_suffix(".new")
            Image.fromarray(samples).save(new, "PNG", compress_level=1)
            new.replace(path)
        return path.stat().st_size

    done = size = 0
    with (
        track(f"unpacking {file.name}", total, "pictures") as update,
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    ):
        for split, names in labels.items():
            start = 0
            for chunk in _pictures(file, split, len(names)):
                paths = [part / _member_path(split, names[start + i], start + i) for i in range(len(chunk))]
                size += sum(pool.map(write, zip(paths, chunk, strict=True)))
                start += len(chunk)
                done += len(chunk)
                update(done, total)
    (part / _DONE).write_text(json.dumps({"files": total, "bytes": size}), encoding="utf-8")
    part.rename(folder)


def _labels(file: Path) -> dict[str, list[str]]:
    """The class of each picture, by MedMNIST's name of the split."""
    arrays = _members(file)
    numbers_of: dict[str, np.ndarray] = {}
    for split in _SPLITS:
        if f"{split}_labels" not in arrays:
            continue
        try:
            with np.load(file, allow_pickle=False) as npz:
                numbers = npz[f"{split}_labels"]
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as e:
            raise DataError(f"cannot read the labels of {file}: {e}", _HINT) from e
        if numbers.ndim == 2 and numbers.shape[1] == 1:
            numbers = numbers[:, 0]
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or (numbers < 0).any():
            raise DataError(
                f"{file.name} has labels of shape {numbers.shape} and type {numbers.dtype}",
                "octfast reads sets with one class a picture",
            )
        numbers_of[split] = numbers
    highest = max(int(n.max(initial=0)) for n in numbers_of.values())
    names = [str(i).zfill(len(str(highest))) for i in range(highest + 1)]
    if re.search("octmnist", file.stem, re.IGNORECASE) and highest < len(OCTMNIST_CLASSES):
        names = list(OCTMNIST_CLASSES)
    else:
        log.info("%s: its classes are named by their numbers, 0 to %d", file.name, highest)
    return {split: [names[int(n)] for n in numbers] for split, numbers in numbers_of.items()}


def _pictures(file: Path, split: str, count: int) -> Iterator[np.ndarray]:
    """The pictures of a split, some at a time: uint8 of shape (n, H, W) or (n, H, W, 3); 224 by 224 fills 5 GB."""
    name = f"{split}_images"
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            shape, fortran, dtype = _npy_header(stream)
            flat = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
            if not flat or dtype != np.uint8 or fortran or shape[0] != count:
                raise DataError(
                    f"{file.name} has {name} of shape {shape} and type {dtype}, with {count} labels",
                    "octfast reads 8-bit pictures of shape (n, H, W) or (n, H, W, 3), with a label each",
                )
            each = int(np.prod(shape[1:]))
            for start in range(0, count, _CHUNK):
                n = min(_CHUNK, count - start)
                data = stream.read(n * each)
                if len(data) != n * each:
                    raise DataError(f"{file} ends in the middle of {name}", _HINT)
                yield np.frombuffer(data, np.uint8).reshape(n, *shape[1:])
            # The checksum is compared at the end of the member.
            stream.read(1)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as e:
        raise DataError(f"cannot read {name} of {file}: {e}", _HINT) from e


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _members(file: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays in the file by name; a DataError where those of MedMNIST are not among them."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
    except FileNotFoundError:
        raise DataError(f"no such file: {file}", "fetch it: octfast data download octmnist") from None
    except (OSError, zipfile.BadZipFile) as e:
        raise DataError(f"cannot read {file}: {e}", _HINT) from e
    halves = [s for s in _SPLITS if (f"{s}_images" in members) != (f"{s}_labels" in members)]
    if "train_images" not in members or halves:
        raise DataError(
            f"{file} is not a MedMNIST file: it holds {', '.join(sorted(members)[:8]) or 'nothing'}",
            "one holds train_images, train_labels, and the same for val and test",
        )
    return members


def _content_key(file: Path) -> str:
    """A name for what is in the file: by the sizes and checksums that its arrays bear, so that 5 GB need no reading."""
    members = sorted((name, m.file_size, m.CRC) for name, m in _members(file).items())
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]


def _member_path(split: str, label: str, i: int) -> str:
    return f"{split}/{label}/{split}-{i:06d}.png"


def _complete(folder: Path) -> bool:
    try:
        said = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        sizes = [e.stat().st_size for d in folder.glob("*/*") for e in os.scandir(d)]
        return {"files": len(sizes), "bytes": sum(sizes)} == said
    except (OSError, ValueError):
        return False
