"""Volumes as folders of lossless pictures without names, each made once; in a cache, or wherever one is wanted."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from octfast.data.volumes.about import About
from octfast.data.volumes.kinds import kind_of
from octfast.data.volumes.pseudonym import content_of, pseudonym
from octfast.data.volumes.reader import VolumeReader
from octfast.errors import DataError
from octfast.files import cache_root, sha256_of, usable_cores, write_text
from octfast.notices import SYNTHETIC

# Raised whenever other files would be written, as the folders of the cache are named after it.
VERSION = 1
ABOUT = "volume.json"
DRAFT = ".draft"
_FUNDUS = "-slo.png"
# What is younger may be written by another process.
_BEING_MADE = timedelta(days=1)
_FIELDS = ("eye", "maker", "device", "axial_um", "lateral_um", "between_um")


@dataclass(frozen=True)
class Stored:
    """One volume as pictures on disk.

    Attributes
    ----------
    name : of the volume: a pseudonym of its content, or of its file where names are kept.
    patient : a pseudonym, or the file's own where names are kept; "" where the file does not say.
    eye, maker, device : "" where the file does not say.
    axial_um, lateral_um, between_um : None where the file does not say.
    frames : (path, number, position in millimetres or None) of each B-scan, in order.
    slo : the picture of the fundus, or None.
    left_behind, notes : see `octfast.data.volumes.about.About`.
    """

    name: str
    patient: str
    eye: str
    maker: str
    device: str
    axial_um: float | None
    lateral_um: float | None
    between_um: float | None
    frames: list[tuple[Path, int, float | None]]
    slo: Path | None = None
    left_behind: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Store:
    """Makes volumes into folders of pictures, several at once, and finds those made before.

    Parameters
    ----------
    root : the folder that gets a folder a file.
    key : for pseudonyms, see `octfast.data.volumes.pseudonym.load_key`.
    keep_names : name folders after files, and patients as the files do.
    any_modality : as for `VolumeReader`.
    """

    def __init__(self, root: Path, key: bytes, keep_names: bool = False, any_modality: bool = False):
        self.root, self.key, self.keep_names, self.any_modality = root, key, keep_names, any_modality
        self._own = threading.local()
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    def volumes(
        self,
        paths: Sequence[Path],
        workers: int | None = None,
        series: Mapping[Path, Sequence[Path]] | None = None,
    ) -> Iterator[tuple[Path, list[Stored] | DataError]]:
        """The volumes of each file (or folder of pictures) in the order given, or why it cannot be read.

        series : the files of those that are the first of a DICOM series.

        A folder of pictures appears whole or not at all, so that what was interrupted goes on where it stopped.
        """
        with ExitStack() as stack:
            self._stack, self._series = stack, series or {}
            pool = stack.enter_context(ThreadPoolExecutor(workers or min(4, usable_cores())))
            try:
                yield from zip(paths, pool.map(self._volumes, paths), strict=True)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _volumes(self, path: Path) -> list[Stored] | DataError:
        try:
            kind = "folder" if path.is_dir() else kind_of(path)
            files = self._series.get(path, ())
            content = sha256_of(*files) if files else content_of(path)
        except DataError as e:
            return e
        except OSError as e:
            return DataError(f"cannot read {path}: {e.strerror or e}", "was it moved? give it again")
        name = self._name(path, content)
        folder = self.root / name
        found = read_stored(folder)
        if found is not None:
            return found
        if kind in ("picture", ""):
            return DataError(f"{path} is no volume", "leave it out")
        return self._make(path, kind, files, name)

    def _name(self, path: Path, content: str) -> str:
        if not self.keep_names:
            return pseudonym(self.key, "volume", content)
        # Of two files of one name the second gets its content's digest behind it.
        with self._lock:
            taken = self._names.setdefault(path.stem, content)
        return path.stem if taken == content else f"{path.stem}-{content[:8]}"

    def _reader(self) -> VolumeReader:
        if not hasattr(self._own, "reader"):
            self._own.reader = self._stack.enter_context(VolumeReader(any_modality=self.any_modality))
        return self._own.reader

    def _make(self, path: Path, kind: str, files: Sequence[Path], name: str) -> list[Stored] | DataError:
        folder = self.root / name
        draft = self.root / f".{name[:50]}-{uuid.uuid4().hex[:8]}{DRAFT}"
        try:
            draft.mkdir(parents=True)
            said: list[dict[str, Any]] = []
            for found in self._reader().read_all(path, kind, files):
                if isinstance(found, About):
                    own = name if not found.volume else f"{name}-{found.volume}"
                    said.append(self._said(found, own))
                    if found.slo is not None:
                        said[-1]["slo"] = f"{found.volume}{_FUNDUS}"
                        _save(found.slo, draft / said[-1]["slo"])
                    continue
                file = f"{found.volume}-{found.frame:03d}.png"
                _save(found.pixels, draft / file)
                said[-1]["frames"].append([file, found.frame, found.position_mm])
            said = [volume for volume in said if volume["frames"]]
            if not said:
                return DataError(f"{path} holds no B-scans", "leave it out")
            synthetic = any((above / SYNTHETIC).is_file() for above in path.absolute().parents[:3])
            about = {"octfast": VERSION, "synthetic": synthetic, "volumes": said}
            write_text(draft / ABOUT, json.dumps(about, indent=1))
            if read_stored(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # another process was faster
                    draft.rename(folder)
        except DataError as e:
            return e
        except OSError as e:
            raise DataError(
                f"cannot write the pictures of volumes to {self.root}: {e.strerror or e}",
                "give another folder: --out, or OCTFAST_CACHE for the cache",
            ) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return read_stored(folder) or DataError(f"cannot read {folder} again", "remove it, and try again")

    def _said(self, about: About, name: str) -> dict[str, Any]:
        patient = about.patient
        if patient and not self.keep_names:
            patient = pseudonym(self.key, "patient", patient)
        known = {what: getattr(about, what) for what in _FIELDS}
        behind = {"left_behind": dict(about.left_behind), "notes": list(about.notes)}
        return {"volume": name, "patient": patient, **known, "slo": "", **behind, "frames": []}


def read_stored(folder: Path) -> list[Stored] | None:
    """The volumes that a folder holds; None where it is not whole, or of another version."""
    try:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if said["octfast"] != VERSION:
            return None
        found = []
        for one in said["volumes"]:
            frames = [(folder / file, int(frame), position) for file, frame, position in one["frames"]]
            if not all(path.is_file() for path, *_ in frames):
                return None
            slo = folder / one["slo"] if one["slo"] else None
            known = {what: one[what] for what in (*_FIELDS, "patient", "left_behind")}
            found.append(Stored(name=one["volume"], frames=frames, slo=slo, notes=tuple(one["notes"]), **known))
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_fundus(path: Path) -> bool:
    """Whether a picture is that of a fundus, made of a volume beside its B-scans."""
    return path.name.endswith(_FUNDUS) and (path.parent / ABOUT).is_file()


def is_made_of_phantoms(folders: Iterable[Path]) -> bool:
    """Whether all of these are folders of pictures that were made of phantom volumes."""
    try:
        return all(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["synthetic"] is True for folder in folders)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def volume_cache(cache: str | Path | None = None) -> Path:
    """Where the cache keeps volumes."""
    return cache_root(cache).absolute() / "volumes" / f"v{VERSION}"


def mark_used(folders: Sequence[Path]) -> None:
    """Note that folders of the cache were used now, by which they are cleared."""
    for folder in folders:
        with suppress(OSError):
            os.utime(folder / ABOUT)


@dataclass(frozen=True)
class Kept:
    """A file's volumes in the cache; `bytes` on disk, `used` in UTC."""

    path: Path
    bytes: int
    used: datetime


def list_kept(cache: str | Path | None = None, *, older_than: timedelta | None = None) -> list[Kept]:
    """What the cache holds of volumes, the last used first; unfinished folders too.

    older_than : only what was last used so long ago.
    """
    found = []
    root = volume_cache(cache).parent
    for folder in root.glob("v*/*"):
        if folder.is_dir() and not folder.is_symlink():
            with suppress(OSError):
                size = sum(p.lstat().st_size for p in folder.iterdir())
                about = folder / ABOUT
                used = (about if about.is_file() else folder).stat().st_mtime
                when = datetime.fromtimestamp(used, timezone.utc)
                if folder.name.startswith(".") and datetime.now(timezone.utc) - when < _BEING_MADE:
                    continue
                if older_than is None or datetime.now(timezone.utc) - when >= older_than:
                    found.append(Kept(folder, size, when))
    return sorted(found, key=lambda kept: kept.used, reverse=True)


def clear_kept(cache: str | Path | None = None, *, older_than: timedelta | None = None) -> tuple[int, int]:
    """Remove what the cache holds of volumes, and give (the number of folders, their bytes)."""
    number = freed = 0
    for kept in list_kept(cache, older_than=older_than):
        shutil.rmtree(kept.path, ignore_errors=True)
        if not kept.path.exists():
            number, freed = number + 1, freed + kept.bytes
    return number, freed


def _save(pixels: Any, file: Path) -> None:
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
