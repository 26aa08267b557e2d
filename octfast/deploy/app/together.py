"""Files that the web page is given together and that are one volume: a DICOM series, or an export with its pictures."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from octfast.data.volumes.about import About, BScan
from octfast.data.volumes.exports import file_of, taken_by_exports
from octfast.data.volumes.kinds import kind_of, natural
from octfast.data.volumes.reader import VolumeReader
from octfast.data.volumes.series import find_series
from octfast.deploy.app.answers import Refused
from octfast.errors import DataError

# A folder in memory, on Linux.
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Upload:
    """A file of a request; its name is as the client has it."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Part:
    """One volume file, or the first of a DICOM series with all its files in their order."""

    path: Path
    kind: str
    files: tuple[Path, ...] = ()


class Together:
    """Several files, held in a folder of their own until it is closed; a context manager.

    The folder is in memory where the system has room there (/dev/shm of Linux), else among the temporary files. DICOM
    files get numbers for names, in the order of their own; others keep theirs, by which an export names its pictures.

    Attributes
    ----------
    parts : the volumes that the files are, in the order of their first files.

    Raises
    ------
    Refused : a file is no volume and belongs to none, or two have one name.
    OSError : they cannot be held.
    """

    def __init__(self, uploads: Sequence[Upload], reader: VolumeReader):
        self._names: dict[str, str] = {}
        self._reader = reader
        self._folder = Path(tempfile.mkdtemp(prefix="octfast-", dir=_room(sum(len(u.content) for u in uploads))))
        try:
            paths = [self._hold(n, u) for n, u in enumerate(sorted(uploads, key=lambda u: natural(u.name)))]
            self.parts = self._parts(paths)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self) -> Iterator[About | BScan]:
        """What is said of each volume and its B-scans, as `VolumeReader.read_all`, numbered through all files."""
        before = 0
        for part in self.parts:
            most = -1
            for found in self._reader.read_all(part.path, part.kind, part.files):
                most = max(most, found.volume)
                yield replace(found, volume=before + found.volume)
            before += most + 1

    def shown(self, words: str) -> str:
        """A message with the names that the files had, and without the folder."""
        words = words.replace(f"{self._folder}{os.sep}", "")
        for plain, name in self._names.items():
            words = words.replace(plain, name)
        return words

    def _hold(self, number: int, upload: Upload) -> Path:
        dicom = upload.content[128:132] == b"DICM"
        name = f"{number:06d}.dcm" if dicom else file_of(upload.name).lstrip(".")
        path = self._folder / (name or f"{number:06d}")
        self._names[path.name] = file_of(upload.name) or "a file"
        if path.exists():
            raise Refused(422, f"two files are named {path.name}", "give the files of one volume together")
        path.write_bytes(upload.content)
        return path

    def _parts(self, paths: list[Path]) -> list[Part]:
        taken = taken_by_exports(paths)
        left = [path for path in paths if str(path) not in taken]
        series, copies = find_series(left, self._reader)
        others = copies.union(*(files[1:] for files in series.values()))
        found = []
        for path in left:
            if path in others:
                continue
            try:
                kind = kind_of(path)
            except DataError as e:
                raise Refused(422, self.shown(e.message), e.hint) from None
            if kind in ("picture", ""):
                name = self._names[path.name]
                raise Refused(415, f"{name} is no part of a volume that came with it", "send it to /api/predict alone")
            found.append(Part(path, kind, series.get(path, ())))
        return found


def _room(size: int) -> str | None:
    with contextlib.suppress(OSError):
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * size:
            return str(_MEMORY)
    return None
