"""Synthetic retinal OCT B-scans, in the layout of OCT2017: the embedded default data set, and what the tests use.

They are drawn by a program and of no clinical meaning: nothing learned from them holds for a patient.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from octfast.data.phantom.anatomy import draw_eye, draw_lesions
from octfast.data.phantom.render import draw_slice
from octfast.errors import DataError
from octfast.files import cache_root, is_taken, usable_cores
from octfast.notices import SYNTHETIC

if TYPE_CHECKING:
    import pandas as pd

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
# Raised whenever the pictures change, as the cache is named after it.
VERSION = 1
# The quantisation tables of OCT2017 are those of this quality.
QUALITY = 75
NOTE = SYNTHETIC


def make_phantom(label: str, patient: int, image: int = 1, *, seed: int = 0) -> np.ndarray:
    """One synthetic B-scan, as uint8 of shape (496, 512) or (496, 768).

    The same arguments give the same array, in any order (another version of numpy, or a processor with other vector
    instructions, may round a few pixels to the next grey). The images of a patient share layers,
    lesions, device and size; each is another slice with its own speckle. A patient's eye does not depend on the
    label, only its lesions do. Synthetic, of no clinical meaning.

    Parameters
    ----------
    label : one of CLASSES.
    patient : the patient's number, 0 or more.
    image : the number of the image of this patient, 0 or more.
    seed : of the whole set, 0 or more.

    Raises
    ------
    DataError : an unknown label, or a negative number.
    """
    check_classes([label])
    if min(patient, image, seed) < 0:
        raise DataError(f"Patient {patient}, image {image}, seed {seed}: none may be negative.", "Use 0 or more.")
    lesions = draw_lesions(label, generator(seed, patient, 1, CLASSES.index(label)))
    return draw_slice(draw_eye(generator(seed, patient, 2), lesions), generator(seed, patient, 3, image))


def write_phantoms(
    out: str | Path,
    scans: int = 480,
    *,
    seed: int = 0,
    test: float = 0.2,
    classes: Sequence[str] = CLASSES,
    size: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a set of synthetic B-scans in the layout of OCT2017 and give back its folder.

    Files are `out/train/CNV/CNV-1234567-1.jpeg` and so on, grey JPEGs, with `out/SYNTHETIC.txt` saying what they
    are. Classes are balanced to one scan. A patient has 1 to 3 images, one label, and is in train or in test, never
    in both. The same arguments give the same bytes whatever the number of workers. The folder appears complete or not
    at all.

    Parameters
    ----------
    out : a folder that does not exist yet, or is empty.
    scans : how many files in all.
    seed : of the whole set, 0 or more.
    test : the share that goes to `out/test`, from 0 (no such folder) to less than 1.
    classes : which classes.
    size : write squares of size x size pixels instead of 512 or 768 x 496; the picture is squeezed, not cut.
    workers : threads; by default one a core, 8 at most.
    progress : called with (written, scans) after each scan, in the calling thread.

    Raises
    ------
    DataError : `out` exists and is not empty or cannot be written, an unknown class, a number out of range.
    """
    out = Path(out)
    check_classes(classes)
    if scans < len(classes) or seed < 0 or not 0 <= test < 1 or (size is not None and size < 8):
        raise DataError(
            f"Cannot write {scans} scans of {len(classes)} classes with seed={seed}, test={test}, size={size}.",
            "Ask for at least one scan a class, a seed of 0 or more, 0 <= test < 1, and a size of 8 or more.",
        )
    with whole_folder(out) as draft:
        jobs = list(_plan(scans, seed, test, classes))
        for folder in sorted({job.folder for job in jobs}):
            (draft / folder).mkdir(parents=True)
        total = _write_all(draft, jobs, seed, size, workers, progress)
        (draft / NOTE).write_text(_note(scans, seed, test, classes, size, total), encoding="utf-8")
    return out


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """The path of a hidden folder, not yet made, that becomes `out` when the block ends and is removed if it fails.

    Raises
    ------
    DataError : `out` exists and is not empty, or cannot be written.
    """
    _check_free(out)
    draft = out.absolute().with_name(f".{out.absolute().name}-{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        _check_free(out)
        if out.is_dir():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        _check_free(out)
        raise DataError(f"Cannot write {out}: {error}.", "Choose a folder that can be written to.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def default_phantoms(
    scans: int = 480, seed: int = 0, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The folder of the default synthetic set, in the user's cache, made if it is missing or damaged.

    Parameters
    ----------
    scans, seed, progress : as in write_phantoms.
    cache : the root of the cache; by default the environment's OCTFAST_CACHE, else the user's cache folder.

    Raises
    ------
    DataError : the cache cannot be written, or a number is out of range.
    """
    folder = cache_root(cache).absolute() / "phantoms" / f"v{VERSION}-{scans}-seed{seed}"
    if _complete(folder):
        return folder
    fresh = folder.with_name(f".{folder.name}-new-{uuid.uuid4().hex[:8]}")
    try:
        write_phantoms(fresh, scans, seed=seed, progress=progress)
        # Another process may have finished first, so look again before putting ours in its place.
        if not _complete(folder):
            _replace(fresh, folder)
    except DataError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise DataError(error.message, "Set OCTFAST_CACHE to a folder that can be written to.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def is_synthetic(scans: pd.DataFrame) -> bool:
    """Whether the scans lie in a folder of phantoms, by its SYNTHETIC.txt, or were made of phantom volumes."""
    from octfast.data.volumes.store import is_made_of_phantoms

    try:
        # Of a hundred thousand scans there are some ten folders.
        folders = {os.path.dirname(p) for p in scans["path"]}  # noqa: PTH120
        common = Path(os.path.commonpath(folders))
    except ValueError:
        return False
    if is_made_of_phantoms({Path(folder) for folder in folders}):
        return True
    # All of one class of one split lie two folders below the note.
    return any((folder / NOTE).is_file() for folder in (common, *common.parents[:2]))


@dataclass(frozen=True)
class _Job:
    split: str
    label: str
    patient: int
    image: int

    @property
    def folder(self) -> str:
        return f"{self.split}/{self.label}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.label}-{self.patient}-{self.image}.jpeg"


def generator(*entropy: int) -> np.random.Generator:
    """A generator of chance that these numbers, 0 or more, fix."""
    return np.random.default_rng(np.random.SeedSequence(entropy))


def check_classes(classes: Sequence[str]) -> None:
    """
    Raises
    ------
    DataError : a class that is not one of CLASSES, one given twice, or none.
    """
    wrong = [label for label in classes if label not in CLASSES]
    if wrong or not classes or len(set(classes)) < len(classes):
        what = (
            f"Unknown class {wrong[0]!r}." if wrong else f"Classes must be some of {CLASSES}, each once: {classes!r}."
        )
        raise DataError(what, f"The classes are {', '.join(CLASSES)}.")


def _check_free(out: Path) -> None:
    if is_taken(out):
        raise DataError(f"{out} exists and is not empty.", "Choose another folder, or delete this one first.")


def _plan(scans: int, seed: int, test: float, classes: Sequence[str]) -> Iterator[_Job]:
    rng = generator(seed, 4)
    numbers: set[int] = set()
    for at, label in enumerate(classes):
        count = scans // len(classes) + (at < scans % len(classes))
        held = min(max(1, round(test * count)), count - 1) if test else 0
        for split, left in (("train", count - held), ("test", held)):
            while left:
                patient = int(rng.integers(1_000_000, 10_000_000))
                if patient in numbers:
                    continue
                numbers.add(patient)
                images = min(left, int(rng.integers(1, 4)))
                left -= images
                yield from (_Job(split, label, patient, image + 1) for image in range(images))


def _write_all(
    root: Path,
    jobs: list[_Job],
    seed: int,
    size: int | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write every job's file under root and give back how many bytes they take."""

    def write(job: _Job) -> int:
        picture = Image.fromarray(make_phantom(job.label, job.patient, job.image, seed=seed))
        if size is not None:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        path = root / job.path
        picture.save(path, "JPEG", quality=QUALITY)
        return path.stat().st_size

    # Threads, as nearly all the time goes to numpy, scipy and Pillow, which let go of the interpreter's lock; and they
    # start at once, ask for no __main__ guard, and are safe beside a torch that has threads of its own.
    total = 0
    with ThreadPoolExecutor(workers or min(8, usable_cores())) as pool:
        try:
            for done, written in enumerate(pool.map(write, jobs), 1):
                total += written
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return total


def _note(scans: int, seed: int, test: float, classes: Sequence[str], size: int | None, total: int) -> str:
    return (
        "Synthetic pictures drawn by octfast (octfast.data.phantom.draw) to look somewhat like retinal OCT B-scans.\n"
        "They show no patient and are of no clinical meaning: not a medical device, not for any diagnosis.\n\n"
        f"version: {VERSION}\nscans: {scans}\nseed: {seed}\ntest: {test}\n"
        f"classes: {' '.join(classes)}\nsize: {size or 'full'}\nbytes: {total}\n"
    )


def _complete(folder: Path) -> bool:
    try:
        lines = (folder / NOTE).read_text(encoding="utf-8").splitlines()
        said = dict(line.split(": ", 1) for line in lines if ": " in line)
        sizes = [path.stat().st_size for path in folder.glob("*/*/*.jpeg")]
        return (len(sizes), sum(sizes)) == (int(said["scans"]), int(said["bytes"]))
    except (OSError, KeyError, ValueError):
        return False


def _replace(fresh: Path, folder: Path) -> None:
    stale = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex[:8]}")
    for _ in range(3):
        try:
            fresh.rename(folder)
            return
        except OSError:
            if _complete(folder):
                return
            try:
                folder.rename(stale)
            except FileNotFoundError:
                continue
            shutil.rmtree(stale, ignore_errors=True)
    raise DataError(f"Cannot replace the damaged {folder}.")
