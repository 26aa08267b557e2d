"""Reads Heidelberg's .e2e, Topcon's .fda and .fds and Zeiss's .img through OCT-Converter."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octfast.data.volumes.about import MAX_FRAME_PIXELS, MAX_FRAMES, About, BScan, micrometres, words
from octfast.data.volumes.kinds import eye_of
from octfast.errors import DataError

_SHAPE = re.compile(r"(\d{2,4})x(\d{2,4})")
_WHOLE_SHAPE = re.compile(r"(?<!\d)(\d{1,4})x(\d{1,5})x(\d{1,5})(?!\d)")
_ZEISS_DEPTH = 1024
_ZEISS_WIDTHS = (200, 512, 1024)
# The two cubes that Cirrus records, by their size: 128 B-scans 512 wide, and 200 of 200. Line rasters are 1,024 wide.
_CUBES = {128 * 1024 * 512: 512, 200 * 1024 * 200: 200}
# For each kind of chunk with B-scans, where in its header the width and height stand, and the number of B-scans.
_TOPCON = {b"@IMG_JPEG": (9, 17), b"@IMG_MOT_COMP_03": (1, 13), b"@IMG_SCAN_03": (1, 13)}
# Where the scanned width and height in mm and the depth of a pixel in um stand, one after the other.
_SCANNED = {b"@PARAM_SCAN_04": 12, b"@PARAM_SCAN_02": 21}
# How Topcon calls the way of scanning: B-scans side by side, in a star, as a cross.
_SIDE_BY_SIDE, _NO_ROWS = 2, (3, 4)
# The name that Zeiss's program gives an export, which begins with the patient's number.
_EXPORTED = re.compile(r"^(?P<patient>[^_]+)_.+_\d{1,2}-\d{1,2}-\d{4}_\d{1,2}-\d{1,2}-\d{1,2}_O[DS]_sn\d+_", re.ASCII)
_OD_OS = re.compile(r"(?<![A-Za-z])O[DS](?![A-Za-z])")
# Zeiss defines these cubes to be 6 x 6 mm large and 2 mm deep. Angiographies have their sides in their names.
_NAMED_CUBE = re.compile(r"(?:Macular|Optic Disc) ?Cube ?(512x128|200x200)(?!\d)", re.IGNORECASE)
_NAMED_SIDES = re.compile(r"(?<![\d.])(\d{1,2}(?:\.\d)?) ?mm ?x ?(\d{1,2}(?:\.\d)?) ?mm(?![A-Za-z])", re.IGNORECASE)
_CUBE_MM, _CUBE_DEEP_MM = 6.0, 2.0


def read_vendor(path: Path, kind: str, name: str, tell: bool = False) -> Iterator[About | BScan]:
    """The B-scans of a file of kind "fda", "fds" or "img", volume by volume, each after what is said of it.

    Topcon's files say the patient, the device and the spacing; Zeiss's have no header, and the name of an export says
    some of it.

    Raises
    ------
    DataError : no volume in it, or sizes that cannot be.
    ImportError : OCT-Converter is not installed.
    """
    _let_it_run()
    read = {"fda": _fda, "fds": _fds, "img": _img}[kind]
    volumes = read(path, name)
    if not any(len(frames) for frames, _ in volumes):
        raise DataError(f"{name} holds no B-scans", "it may hold photographs alone; leave it out")
    for n, (frames, eye) in enumerate(volumes):
        white = _white(frames)
        if tell:
            try:
                said = _about(path, kind, n, frames, eye)
            except Exception:  # over a header that is cut short or absurd; the pixels may be whole
                said = About(n, eye=eye if eye in ("R", "L") else "", notes=("its header is damaged",))
            yield said
        apart = _apart(path, kind, said) if tell else None
        for i in range(len(frames)):
            place = None if apart is None else round(i * apart / 1000, 4)
            yield BScan(_grey(np.asarray(frames[i]), white), n, i, eye if eye in ("R", "L") else "", place)


def _about(path: Path, kind: str, volume: int, frames: Any, eye: str) -> About:
    eye = eye if eye in ("R", "L") else ""
    if kind == "img":
        return _about_img(path.name, volume, frames, eye)
    from oct_converter.readers import FDA

    # Both of Topcon's are read by their chunks alone here.
    chunks: dict[bytes, Any] = FDA(path).chunk_dict
    person = _held(path, chunks, (b"@PATIENT_INFO_02", b"@PATIENT_INFO"), 105)
    device = words(_held(path, chunks, (b"@HW_INFO_03", b"@HW_INFO_02", b"@HW_INFO_01"), 16))
    wide, high, deep = _scanned(path, chunks)
    notes: tuple[str, ...] = ()
    if _way(path, chunks) in _NO_ROWS:
        high, notes = 0.0, ("its B-scans lie in a star or a cross",)
    names = {"patient number": slice(0, 32), "patient names": slice(32, 104), "patient sex": slice(104, 105)}
    behind = {name: 1 for name, at in names.items() if person[at].strip(b"\0 ")}
    behind |= {str(words(c)): 1 for c in chunks if b"INFO" in c}
    width = np.asarray(frames[0]).shape[1] if len(frames) else 0
    return About(
        *(volume, words(person[:32]), eye, "Topcon", device),
        axial_um=micrometres(deep / 1000),
        lateral_um=micrometres(wide / width) if width else None,
        between_um=micrometres(high / len(frames)) if len(frames) > 1 else None,
        left_behind=behind,
        notes=notes,
    )


def _about_img(name: str, volume: int, frames: Any, eye: str) -> About:
    """What the name of Zeiss's .img says; it has no header."""
    exported = _EXPORTED.match(name)
    height, width = np.asarray(frames[0]).shape[:2]
    wide = high = deep = 0.0
    notes = ["Zeiss's .img has no header"]
    if (cube := _NAMED_CUBE.search(name)) and cube[1] == f"{width}x{len(frames)}" and height == _ZEISS_DEPTH:
        wide, high, deep = _CUBE_MM, _CUBE_MM, _CUBE_DEEP_MM
        notes.append("its spacing is that by which Zeiss defines the cube of its name")
    elif sides := _NAMED_SIDES.search(name):
        wide, high = float(sides[1]), float(sides[2])
        notes.append("its spacing is by the sides in its name")
    return About(
        *(volume, words(exported["patient"]) if exported else "", eye, "Zeiss"),
        axial_um=micrometres(deep / height),
        lateral_um=micrometres(wide / width),
        between_um=micrometres(high / len(frames)) if len(frames) > 1 else None,
        left_behind={"patient number in its name": 1, "date in its name": 1} if exported else {},
        notes=tuple(notes),
    )


def _apart(path: Path, kind: str, said: About) -> float | None:
    """Micrometres between B-scans that are known to lie side by side."""
    if kind == "img":
        return said.between_um
    from oct_converter.readers import FDA

    return said.between_um if _way(path, FDA(path).chunk_dict) == _SIDE_BY_SIDE else None


def _way(path: Path, chunks: dict[bytes, Any]) -> int | None:
    """How a Topcon was scanning, as its B-scans say."""
    held = _held(path, chunks, tuple(_TOPCON), 1)
    return held[0] if held else None


def _scanned(path: Path, chunks: dict[bytes, Any]) -> tuple[float, float, float]:
    """The scanned width and height in mm and the depth of a pixel in um; 0 where a Topcon does not say."""
    for chunk, at in _SCANNED.items():
        held = _held(path, chunks, (chunk,), at + 24)
        if len(held) == at + 24:
            return struct.unpack_from("<3d", held, at)
    return 0.0, 0.0, 0.0


def _held(path: Path, chunks: dict[bytes, Any], names: tuple[bytes, ...], size: int) -> bytes:
    """The first bytes of the first chunk that there is; fewer, or none, where it is shorter or there is none."""
    for name in names:
        if name in chunks and not isinstance(chunks[name][0], list):
            with path.open("rb") as f:
                f.seek(int(chunks[name][0]))
                return f.read(min(size, int(chunks[name][1])))
    return b""


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

    frames, height, width = _img_shape(path.stat().st_size, path.name, name)
    if frames > MAX_FRAMES or height * width > MAX_FRAME_PIXELS:
        raise DataError(
            f"{name} has {frames:,} B-scans of {height:,} x {width:,} pixels",
            f"a volume may have {MAX_FRAMES:,} of {MAX_FRAME_PIXELS:,}",
        )
    volume = IMG(path).read_oct_volume(rows=height, cols=width)
    # OCT-Converter takes the first OD or OS, be it in a patient's name.
    eyes = {eye_of(word) for word in _OD_OS.findall(path.name)}
    return [(volume.volume, eyes.pop() if len(eyes) == 1 else "")]


def _img_shape(size: int, file: str, name: str) -> tuple[int, int, int]:
    """Frames, height and width of a file without a header: its name says them, or its size where one cube alone fits.

    Raises
    ------
    DataError : no cube has that size, or several do.
    """
    hint = "give Zeiss's cube, or write the size into its name, FRAMESxHEIGHTxWIDTH, as in NAME_5x1024x1024.img"
    if whole := _WHOLE_SHAPE.search(file):
        frames, height, width = (int(n) for n in whole.groups())
        if not size or frames * height * width != size:
            raise DataError(f"{name}: {size:,} bytes are no cube of B-scans {whole[0]}", hint)
        return frames, height, width
    if named := _SHAPE.search(file):
        widths = [int(named[1])]
    elif size in _CUBES:
        widths = [_CUBES[size]]
    else:
        widths = [*_ZEISS_WIDTHS]
    fit = [(size // (_ZEISS_DEPTH * w), _ZEISS_DEPTH, w) for w in widths if w and size % (_ZEISS_DEPTH * w) == 0]
    if not size or not fit:
        wide = " or ".join(map(str, widths))
        raise DataError(f"{name}: {size:,} bytes are no cube of B-scans {_ZEISS_DEPTH:,} high and {wide} wide", hint)
    if len(fit) > 1:
        several = " or ".join("x".join(map(str, shape)) for shape in fit)
        raise DataError(f"{name} has no header, and its {size:,} bytes may be {several} (frames, height, width)", hint)
    return fit[0]


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
