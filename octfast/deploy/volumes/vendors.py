"""Reads Heidelberg's .e2e, Topcon's .fda and .fds and Zeiss's .img through OCT-Converter."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octfast.deploy.volumes.reader import MAX_FRAME_PIXELS, MAX_FRAMES, BScan
from octfast.errors import DataError

_SHAPE = re.compile(r"(\d{2,4})x(\d{2,4})")
_ZEISS_DEPTH = 1024
# For each kind of chunk with B-scans, where in its header the width and height stand, and the number of B-scans.
_TOPCON = {b"@IMG_JPEG": (9, 17), b"@IMG_MOT_COMP_03": (1, 13), b"@IMG_SCAN_03": (1, 13)}


def read_vendor(path: Path, kind: str, name: str) -> Iterator[BScan]:
    """The B-scans of a file of kind "e2e", "fda", "fds" or "img", volume by volume.

    Raises
    ------
    DataError : no volume in it, or sizes that cannot be.
    ImportError : OCT-Converter is not installed.
    """
    _let_it_run()
    read = {"e2e": _e2e, "fda": _fda, "fds": _fds, "img": _img}[kind]
    volumes = read(path, name)
    if not any(len(frames) for frames, _ in volumes):
        raise DataError(f"{name} holds no B-scans", "it may hold photographs alone; leave it out")
    for n, (frames, eye) in enumerate(volumes):
        white = _white(frames)
        for i in range(len(frames)):
            yield BScan(_grey(np.asarray(frames[i]), white), n, i, eye if eye in ("R", "L") else "")


def _e2e(path: Path, name: str) -> list[tuple[Any, str]]:
    from oct_converter.readers import E2E

    _check_directories(path, name)
    file = E2E(path)
    file.read_all_metadata = dict
    return [(volume.volume, str(volume.laterality)) for volume in file.read_oct_volume()]


def _fda(path: Path, name: str) -> list[tuple[Any, str]]:
    from oct_converter.readers import FDA

    file = FDA(path)
    _check_topcon(file.chunk_dict, path, name)
    frames, _ = file.read_oct_data_chunk()
    return [(frames if frames is not None else [], _topcon_eye(file))]


def _fds(path: Path, name: str) -> list[tuple[Any, str]]:
    from oct_converter.readers import FDS

    file = FDS(path)
    _check_topcon(file.chunk_dict, path, name)
    if b"@IMG_SCAN_03" not in file.chunk_dict:
        return []
    # What it reads beside the pixels, of the patient too, is not wanted, and often missing; a date it must have.
    file.read_all_metadata = lambda: {"capture_info": {"cap_date": (1900, 1, 1)}}
    file.read_scan_params = lambda header: None
    return [(file.read_oct_volume().volume, _topcon_eye(file))]


def _img(path: Path, name: str) -> list[tuple[Any, str]]:
    from oct_converter.readers import IMG

    size = path.stat().st_size
    named = _SHAPE.search(path.name)
    # A file of this kind has no header: its name says how wide a cube is, or else its size does.
    widths = [int(named[1])] if named else [w for w in (512, 200) if size % (_ZEISS_DEPTH * w) == 0]
    if not size or not widths or not widths[0] or size % (_ZEISS_DEPTH * widths[0]):
        raise DataError(
            f"{name}: {size:,} bytes are no cube of B-scans {_ZEISS_DEPTH:,} high and 512 or 200 wide",
            "give Zeiss's cube, or a name with its size, as in 200x200",
        )
    if size // (_ZEISS_DEPTH * widths[0]) > MAX_FRAMES:
        raise DataError(f"{name} has more than {MAX_FRAMES:,} B-scans", "a volume may have no more")
    volume = IMG(path).read_oct_volume(rows=_ZEISS_DEPTH, cols=widths[0])
    return [(volume.volume, str(volume.laterality))]


def _check_topcon(chunks: dict, path: Path, name: str) -> None:
    """Refuse sizes that the file cannot hold before anything of that size is made."""
    for chunk, (sides, count) in _TOPCON.items():
        if chunk not in chunks:
            continue
        at = chunks[chunk][0]
        if isinstance(at, list):
            raise DataError(f"{name} has more than one {chunk.decode()}", "one volume a file is read")
        with path.open("rb") as f:
            f.seek(int(at))
            head = f.read(25)
        if len(head) < 25:
            raise DataError(f"{name} ends within its header", "the file is cut short; export it again")
        width, height = struct.unpack_from("<2I", head, sides)
        (frames,) = struct.unpack_from("<I", head, count)
        if not (0 < width * height <= MAX_FRAME_PIXELS and 0 < frames <= MAX_FRAMES):
            raise DataError(
                f"{name} has {frames:,} B-scans of {width:,} x {height:,} pixels",
                f"a volume may have {MAX_FRAMES:,} of {MAX_FRAME_PIXELS:,}",
            )
        if chunk != b"@IMG_JPEG" and int(at) + 2 * width * height * frames > path.stat().st_size:
            raise DataError(f"{name} is shorter than its header says", "the file is cut short; export it again")


def _topcon_eye(file: Any) -> str:
    for chunk in (b"@CAPTURE_INFO_02", b"@CAPTURE_INFO"):
        if chunk in file.chunk_dict:
            try:
                location = file.chunk_dict[chunk][0]
                with Path(file.filepath).open("rb") as f:
                    f.seek(location)
                    return {0: "R", 1: "L"}.get(f.read(1)[0], "")
            except (OSError, TypeError, IndexError):
                return ""
    return ""


def _check_directories(path: Path, name: str) -> None:
    """Refuse an .e2e file whose directories lead back into themselves, or number B-scans absurdly.

    OCT-Converter would follow them for ever, and make a list as long as the highest number.
    """
    with path.open("rb") as f:
        skip = 64 if f.read(21) == b"E2EMultipleVolumeFile" else 0
        seen: set[int] = set()
        at = 36
        while True:
            f.seek(skip + at)
            head = f.read(52)
            if len(head) < 52:
                raise DataError(f"{name} ends within its directory", "the file is cut short; export it again")
            entries, current, previous = struct.unpack_from("<3I", head, 36)
            if seen:
                held = f.read(44 * min(entries, 1 << 20))
                slices = np.frombuffer(held[: len(held) // 44 * 44], "<i4").reshape(-1, 11)[:, 7]
                if len(slices) and slices.max() > 2 * MAX_FRAMES:
                    number = f"{slices.max() // 2:,}"
                    raise DataError(f"{name} numbers a B-scan {number}", f"a volume may have {MAX_FRAMES:,}")
            at = previous if seen else current
            if at == 0:
                return
            if at in seen:
                raise DataError(f"{name} has a directory that leads back into itself", "the file is damaged")
            seen.add(at)


def _white(frames: Any) -> float:
    """What becomes white: 255 for bytes, 1 for shares, else the brightest sample of the volume."""
    first = np.asarray(frames[0]) if len(frames) else np.zeros(1, np.uint8)
    if first.dtype == np.uint8:
        return 255.0
    if first.dtype.kind == "f":
        return 1.0
    return max(1.0, *(float(np.asarray(frame).max(initial=0)) for frame in frames))


def _grey(frame: np.ndarray, white: float) -> np.ndarray:
    if frame.ndim == 3 and frame.shape[2] in (3, 4) and frame.dtype == np.uint8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(frame[..., :3])).convert("L"))
    if frame.dtype == np.uint8:
        return frame
    return np.round(np.nan_to_num(frame.astype(np.float64) / white).clip(0, 1) * 255).astype(np.uint8)


def _let_it_run() -> None:
    """Give OCT-Converter 0.7 what it lost: numpy 2.3 took away the reading of bytes by `np.fromstring`."""
    try:
        np.fromstring(b"\0", dtype=np.uint8)  # type: ignore[call-overload]
    except ValueError:

        def fromstring(data: bytes, dtype: Any = float) -> np.ndarray:
            return np.frombuffer(data, dtype=dtype).copy()

        np.fromstring = fromstring  # type: ignore[assignment]
