"""The process that reads volumes for `reader`: requests come as lines of JSON, pixels go back raw."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from octfast.data.volumes.about import MAX_FRAME_PIXELS, MAX_FRAMES, About, BScan
from octfast.data.volumes.reader import MAX_MEMORY
from octfast.errors import DataError

# Of what is left behind, that are counted one by one; a line may have 512 KiB.
MOST_FIELDS = 5000
_INSTALL = "pip install 'octfast[oct]'"


def main() -> None:
    """Answer requests until standard input ends."""
    memory = int(sys.argv[1])
    limit(memory)
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    # What the readers print would otherwise stand between the pixels.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        allowed, tell = asked.get("any_modality", False), asked.get("tell", False)
        answer(asked["path"], asked["kind"], asked["name"], out, memory, allowed, tell, asked.get("files", ()))


def limit(memory: int) -> None:
    """Let this process take so many bytes of memory, and write into no file."""
    try:
        import resource
    except ImportError:  # there is none on Windows
        return
    for what, most in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, what), (most, most))


def answer(
    path: str,
    kind: str,
    name: str,
    out: BinaryIO,
    memory: int = MAX_MEMORY,
    any_modality: bool = False,
    tell: bool = False,
    files: Sequence[str] = (),
) -> None:
    """Send the B-scans of a file, then that it ended, or why it cannot be read.

    Parameters
    ----------
    kind : as of `frames_of`; or of a DICOM file "header", for what tells its series, or "evidence", for who and which
        study it is of.
    tell : send what the file says of each volume, too, the patient's number among it; else nothing of that.
    files : of a DICOM series, in their order.
    """
    said: dict[str, Any]
    try:
        if kind in ("header", "evidence"):
            from octfast.data.volumes.dicom import evidence_of, series_of

            held = {"header": series_of, "evidence": evidence_of}[kind](Path(path), name)
            _write(out, json.dumps({kind: held}).encode() + b"\n")
        else:
            for found in frames_of(Path(path), kind, name, any_modality, tell, files):
                if isinstance(found, BScan):
                    send(found, name, out)
                elif tell:
                    send_about(found.noted(), out)
        said = {"end": True}
    except DataError as e:
        said = {"error": e.message, "hint": e.hint}
    except ImportError as e:
        package = (getattr(e, "name", None) or str(e)).split(".")[0]
        said = {"error": f"cannot read {name}: the package {package} is not installed", "hint": _INSTALL}
    except MemoryError:
        most = f"{memory / (1 << 30):.3g} GB of memory"
        hint = "octfast predict --volume-memory allows more; or else the file is damaged"
        said = {"error": f"{name} needs more than the {most} that a volume may take", "hint": hint}
    except RecursionError:
        said = {"error": f"{name} is nested too deeply", "hint": "the file is damaged"}
    except Exception as e:  # the readers raise anything over a damaged file
        said = {"error": f"cannot read {name}: {_reason(e)}", "hint": "the file is damaged, or of another kind"}
    out.write(json.dumps(said).encode() + b"\n")


def frames_of(
    path: Path,
    kind: str,
    name: str,
    any_modality: bool = False,
    tell: bool = False,
    files: Sequence[str] = (),
) -> Iterator[About | BScan]:
    """The B-scans of a file of a kind (see `octfast.data.volumes.kinds.kind_of`), each volume after what is said of it.

    Parameters
    ----------
    tell : read that, too; what is said of a volume is empty otherwise.
    files : of a DICOM series ("series"), in their order.
    """
    if kind == "series":
        from octfast.data.volumes.dicom import read_series

        return read_series([Path(file) for file in files], any_modality, tell)
    if kind == "dicom":
        from octfast.data.volumes.dicom import read_dicom

        return read_dicom(path, name, any_modality, tell)
    if kind == "vol":
        from octfast.data.volumes.vol import read_vol

        return read_vol(path, name, tell)
    if kind == "heyex":
        from octfast.data.volumes.heyex import read_heyex

        return read_heyex(path, name, tell)
    if kind == "e2e":
        from octfast.data.volumes.e2e import read_e2e

        return read_e2e(path, name, tell)
    if kind in ("tiff", "folder"):
        from octfast.data.volumes.stack import read_stack

        return read_stack(path, name)
    from octfast.data.volumes.vendors import read_vendor

    return read_vendor(path, kind, name, tell)


def send(scan: BScan, name: str, out: BinaryIO) -> None:
    """Send one B-scan: a line of JSON, then its pixels."""
    pixels = np.ascontiguousarray(scan.pixels)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise DataError(f"{name}: a B-scan of shape {pixels.shape} and {pixels.dtype}", "the file is damaged")
    height, width = pixels.shape
    if scan.frame >= MAX_FRAMES or not 0 < height * width <= MAX_FRAME_PIXELS:
        raise DataError(
            f"{name}: a B-scan {scan.frame} of {height} x {width} pixels",
            f"a volume may have {MAX_FRAMES:,} B-scans of {MAX_FRAME_PIXELS:,} pixels",
        )
    head: dict[str, Any] = {"volume": scan.volume, "frame": scan.frame, "eye": scan.eye}
    head |= {"height": height, "width": width}
    if scan.position_mm is not None:
        head["position_mm"] = scan.position_mm
    if scan.line is not None:
        head["line"] = scan.line
    _write(out, json.dumps(head).encode() + b"\n")
    _write(out, pixels.data.cast("B"))


def send_about(about: About, out: BinaryIO) -> None:
    """Send what is said of a volume: a line of JSON, then the pixels of the picture of its fundus."""
    slo = None if about.slo is None else np.ascontiguousarray(about.slo)
    shape = None if slo is None else list(slo.shape)
    behind = dict(list(about.left_behind.items())[:MOST_FIELDS])
    said = {**about.__dict__, "slo": shape, "left_behind": behind}
    _write(out, json.dumps({"about": said}).encode() + b"\n")
    if slo is not None:
        _write(out, slo.data.cast("B"))


def _write(out: BinaryIO, data: bytes | memoryview) -> None:
    # A pipe takes part of what is written where there is no buffer.
    left = memoryview(data)
    while left:
        left = left[out.write(left) :]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:160] if len(text) > 3 else f"{type(error).__name__} {text}".strip()


if __name__ == "__main__":
    # Who reads the answers may have gone.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
