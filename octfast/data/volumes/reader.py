"""Reads volumes of B-scans (DICOM, Heidelberg, Topcon, Zeiss) in a process of its own, limited in time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from octfast.data.volumes.about import MAX_FRAME_PIXELS, About, BScan
from octfast.errors import DataError

T = TypeVar("T")

MAX_SECONDS = 60.0
MAX_MEMORY = 4 << 30
_MAX_LINE = 1 << 19


class VolumeReader:
    """Reads volumes one after the other; a context manager.

    The readers of these formats trust what a file says of itself: a damaged one, or one made to do harm, can have them
    take all memory, run for ever or crash. So they run in another process that may take so much memory, write no file
    and is ended when it gives nothing for so long; then the file is refused, and the next one gets a new process.
    Of `read` nothing comes back but pixels, their place, the eye, and the sentence that says what is wrong: names,
    dates and other marks of the patient stay behind. `read_all` gives the patient's number, too.

    Parameters
    ----------
    seconds : that may pass without a B-scan.
    memory : that the process may take, in bytes, where the system can limit it.
    any_modality : read DICOM files that say they are of something else than an OCT (Modality CT, MR, CR), too.
    """

    def __init__(self, seconds: float = MAX_SECONDS, memory: int = MAX_MEMORY, any_modality: bool = False):
        self.seconds = seconds
        self.memory = memory
        self.any_modality = any_modality
        self._process: subprocess.Popen[bytes] | None = None
        self._late = False

    def __enter__(self) -> VolumeReader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # What was asked and not taken any more cannot be sent now.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def read(self, path: str | Path, kind: str, files: Sequence[str | Path] = ()) -> Iterator[BScan]:
        """The B-scans of a file, as they are read; as `read_all`, without what the file says of its volumes."""
        return (scan for scan in self._read(path, kind, files, tell=False) if isinstance(scan, BScan))

    def read_all(self, path: str | Path, kind: str, files: Sequence[str | Path] = ()) -> Iterator[About | BScan]:
        """What a file says of each volume in it, and after that the volume's B-scans, as they are read.

        A damaged file may give some B-scans before the error.

        Parameters
        ----------
        kind : see `octfast.data.volumes.kinds.kind_of`; or "folder", whose pictures are the B-scans of one volume.
        files : of a DICOM series that are one volume, in their order, of which `path` is the first; see
            `octfast.data.volumes.series.find_series`.

        Raises
        ------
        DataError : it cannot be read, a package for it is missing, or it asks for more time, memory, B-scans
            (4,096) or pixels a B-scan (16 million) than a file may.
        """
        return self._read(path, kind, files, tell=True)

    def header(self, path: str | Path) -> dict[str, Any]:
        """What tells the series of a DICOM file and its place there; see `octfast.data.volumes.series.Header`.

        Raises
        ------
        DataError : see `read_all`.
        """
        return self._told(path, "header")

    def evidence(self, path: str | Path) -> dict[str, Any]:
        """Who and which study a DICOM file is of, and what refers to it, as DICOM JSON, which names a person.

        Raises
        ------
        DataError : see `read_all`.
        """
        return self._told(path, "evidence")

    def _told(self, path: str | Path, kind: str) -> dict[str, Any]:
        (told,) = self._answers(path, {"kind": kind}, lambda head, process: head[kind])
        return told

    def _read(self, path: str | Path, kind: str, files: Sequence[str | Path], tell: bool) -> Iterator[About | BScan]:
        def made(head: dict[str, Any], process: subprocess.Popen[bytes]) -> About | BScan:
            return self._about(head["about"], process, path) if "about" in head else self._frame(head, process, path)

        asked: dict[str, Any] = {"kind": "series" if files else kind, "any_modality": self.any_modality, "tell": tell}
        if files:
            asked["files"] = [str(Path(file).absolute()) for file in files]
        return self._answers(path, asked, made)

    def _answers(self, path: str | Path, asked: dict[str, Any], made: Callable[..., T]) -> Iterator[T]:
        done = False
        try:
            process = self._start()
            self._ask({"path": str(Path(path).absolute()), "name": str(path), **asked}, process, path)
            while True:
                head = self._head(process, path)
                if "error" in head:
                    done = True
                    raise DataError(str(head["error"]), str(head.get("hint", "")))
                if "end" in head:
                    done = True
                    return
                yield made(head, process)
        finally:
            if not done:
                self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # Run from the folder that holds octfast: Python looks for modules in the current one first, and a folder of
            # scans may hold a numpy.py.
            package = Path(__file__).parents[3]
            single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "octfast.data.volumes.worker", str(self.memory)],
                cwd=package,
                env={**os.environ, **single, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _ask(self, question: dict[str, Any], process: subprocess.Popen[bytes], path: str | Path) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise self._stopped(process, path) from None

    def _head(self, process: subprocess.Popen[bytes], path: str | Path) -> dict[str, Any]:
        line = self._waited(process, path, lambda out: out.readline(_MAX_LINE))
        try:
            head = json.loads(line)
        except ValueError:
            raise self._stopped(process, path) from None
        return head if isinstance(head, dict) else {"error": f"cannot read {path}"}

    def _about(self, said: dict[str, Any], process: subprocess.Popen[bytes], path: str | Path) -> About:
        shape = said.get("slo")
        slo = self._pixels(int(shape[0]), int(shape[1]), process, path) if shape else None
        known: dict[str, Any] = {key: str(said.get(key) or "") for key in ("patient", "eye", "maker", "device")}
        known |= {key: said.get(key) for key in ("axial_um", "lateral_um", "between_um")}
        behind = {str(key): int(n) for key, n in said.get("left_behind", {}).items()}
        notes = tuple(map(str, said.get("notes", ())))
        return About(volume=int(said["volume"]), **known, slo=slo, left_behind=behind, notes=notes)

    def _frame(self, head: dict[str, Any], process: subprocess.Popen[bytes], path: str | Path) -> BScan:
        pixels = self._pixels(int(head["height"]), int(head["width"]), process, path)
        eye, position = head.get("eye"), head.get("position_mm")
        line = head.get("line")
        return BScan(
            *(pixels, int(head["volume"]), int(head["frame"]), eye if eye in ("R", "L") else "", position),
            line=None if line is None else tuple(map(float, line)),  # type: ignore[arg-type]
        )

    def _pixels(self, height: int, width: int, process: subprocess.Popen[bytes], path: str | Path) -> np.ndarray:
        if not (height > 0 and width > 0 and height * width <= MAX_FRAME_PIXELS):
            raise DataError(f"{path}: a B-scan of {height} x {width} pixels", "the file is damaged")
        data = self._waited(process, path, lambda out: out.read(height * width))
        if len(data) != height * width:
            raise self._stopped(process, path)
        return np.frombuffer(data, np.uint8).reshape(height, width)

    def _waited(self, process: subprocess.Popen[bytes], path: str | Path, read: Any) -> bytes:
        def give_up() -> None:
            self._late = True
            process.kill()

        self._late = False
        timer = threading.Timer(self.seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            found = read(process.stdout)
        finally:
            timer.cancel()
        if not found:
            raise self._stopped(process, path)
        return found

    def _stopped(self, process: subprocess.Popen[bytes], path: str | Path) -> DataError:
        process.kill()
        if self._late:
            return DataError(f"{path} was not read within {self.seconds:g} seconds", "the file is damaged or too large")
        process.wait()
        return DataError(f"cannot read {path}: its reader crashed", "the file is damaged; fetch it again")
