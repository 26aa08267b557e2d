"""Reads Heidelberg's .e2e, B-scan by B-scan, so that large files take no more memory than small ones."""

from __future__ import annotations

import functools
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from octfast.data.volumes.about import MAX_FRAME_PIXELS, MAX_FRAMES, About, BScan, micrometres, words
from octfast.data.volumes.vol import shown
from octfast.errors import DataError

_ENTRY, _HEAD, _FOLDER = 44, "<12s5I4i2H2I", 52
_PATIENT, _STUDY, _DEVICE, _PLACE, _IMAGE = 9, 13, 9001, 10004, 0x40000000
# Chunks that say the eye, and where.
_EYES = {3: 4, 11: 14}
# Of the texts of a study those that name the device, and no more is taken from there.
_SPECTRALIS = "Spectralis"
# The patient's chunk, as far as it is known.
_PERSON = {
    **{"patient first name": slice(0, 31), "patient surname": slice(31, 97), "patient birth date": slice(97, 101)},
    **{"patient sex": slice(101, 102), "patient number": slice(102, 127)},
}
_DEGREES = "its B-scans' places are in degrees, of which the length depends on the eye"
_MOST_ENTRIES = 1 << 20
_MOST_TEXT = 4096


class _Place(NamedTuple):
    """Where the samples of a B-scan stand, and their shape."""

    at: int
    height: int
    width: int


@dataclass
class _Said:
    """What chunks say: the eye and depth of a pixel a volume, the fundus, and the patients by their own number."""

    eyes: dict[tuple, str] = field(default_factory=dict)
    devices: dict[tuple, str] = field(default_factory=dict)
    deep: dict[tuple, float | None] = field(default_factory=dict)
    fundus: dict[tuple, _Place] = field(default_factory=dict)
    patients: dict[int, bytes] = field(default_factory=dict)
    chunks: Counter[str] = field(default_factory=Counter)

    def _device(self, key: tuple, person: bytes) -> str:
        """The device; blank where a name of the patient is in it."""
        device = self.devices.get(key[:2]) or self.devices.get(key, "").removeprefix("Heidelberg ")
        names = (words(person[at]).casefold() for at in list(_PERSON.values())[:2])
        return "" if any(name and name in device.casefold() for name in names) else device

    def about(self, f: BinaryIO, key: tuple, volume: int) -> About:
        person = self.patients.get(key[0], b"")
        behind = {name: 1 for name, at in _PERSON.items() if person[at].strip(b"\0 ")} | dict(self.chunks)
        slo = None
        if place := self.fundus.get(key):
            f.seek(place.at)
            held = np.frombuffer(f.read(place.height * place.width), np.uint8)
            slo = held.reshape(place.height, place.width) if held.size == place.height * place.width else None
        return About(
            *(volume, words(person[_PERSON["patient number"]]), self.eyes.get(key, ""), "Heidelberg"),
            self._device(key, person),
            axial_um=self.deep.get(key),
            slo=slo,
            left_behind=behind,
            notes=(_DEGREES,),
        )


def read_e2e(path: Path, name: str, tell: bool = False) -> Iterator[About | BScan]:
    """The B-scans of an .e2e file, volume by volume, each volume after what is said of it.

    The layout is that of https://bitbucket.org/uocte/uocte/wiki/Heidelberg%20File%20Format and the order and grey are
    OCT-Converter's, but a volume has an eye only where its own chunks say so. Of spacing the file has that in depth.

    Raises
    ------
    DataError : no volume in it, a directory that leads back into itself, sizes that cannot be, or a file cut short.
    """
    with path.open("rb") as f:
        skip = 64 if f.read(21) == b"E2EMultipleVolumeFile" else 0
        volumes, said = _volumes(f, skip, name)
        if not volumes:
            raise DataError(f"{name} holds no B-scans", "it may hold photographs alone; leave it out")
        for n, (key, places) in enumerate(volumes.items()):
            if tell:
                yield said.about(f, key, n)
            for i, place in enumerate(places):
                f.seek(place.at)
                samples = np.frombuffer(f.read(2 * place.height * place.width), "<u2")
                if len(samples) < place.height * place.width:
                    raise DataError(f"{name} ends within a B-scan", "the file is cut short; export it again")
                yield BScan(_greys()[samples].reshape(place.height, place.width), n, i, said.eyes.get(key, ""))


def _volumes(f: BinaryIO, skip: int, name: str) -> tuple[dict[tuple, list[_Place]], _Said]:
    """Where the B-scans of each volume stand, in order, and what is said of it; a key is patient, study and series."""
    starts: list[int] = []
    last: dict[tuple, int] = {}
    for held in _directories(f, skip, name):
        for row in held.tolist():
            key = tuple(row[4:7])
            last[key] = max(last.get(key, row[7]), row[7])
        unsigned = held.view("<u4")
        starts += unsigned[unsigned[:, 1] > unsigned[:, 0], 1].tolist()
    numbered: dict[tuple, dict[int, _Place]] = {key: {} for key, n in last.items() if n > 0}
    others: dict[tuple, list[_Place]] = {}
    said = _Said()
    for start in starts:
        f.seek(start + skip)
        raw = f.read(60)
        if len(raw) < 60:
            continue
        chunk = struct.unpack(_HEAD, raw)
        key, slice_id, ind, kind = chunk[6:9], chunk[9], chunk[10], chunk[12]
        if kind in _EYES:
            at = _EYES[kind]
            if (eye := f.read(at + 1)[at:].decode("latin-1")) in ("R", "L"):
                said.eyes[key] = eye if said.eyes.get(key, eye) == eye else ""
        elif kind in (_STUDY, _DEVICE):
            _tell_device(said, key, kind, f.read(min(chunk[4], _MOST_TEXT)))
        if kind == _PATIENT:
            said.patients.setdefault(key[0], f.read(127))
        elif kind == _PLACE and len(place_said := f.read(40)) == 40:
            said.deep.setdefault(key, micrometres(struct.unpack_from("<f", place_said, 36)[0]))
        elif kind not in (*_EYES, _DEVICE, _IMAGE):
            said.chunks[f"chunk {kind}"] += 1
        if kind != _IMAGE or ind not in (0, 1) or len(head := f.read(20)) < 20:
            continue
        height, width = struct.unpack("<5I", head)[3:]
        if ind == 0:
            if 0 < height * width <= MAX_FRAME_PIXELS:
                said.fundus.setdefault(key, _Place(f.tell(), height, width))
            continue
        if not height * width:
            continue
        if height * width > MAX_FRAME_PIXELS:
            raise DataError(
                f"{name} has a B-scan of {height:,} x {width:,} pixels", f"a volume may have {MAX_FRAME_PIXELS:,}"
            )
        place = _Place(f.tell(), height, width)
        if key in numbered:
            numbered[key][int(slice_id / 2)] = place
        else:
            others.setdefault(key, []).append(place)
    found = {key: [places[n] for n in sorted(places)] for key, places in numbered.items() if places} | others
    if any(len(places) > MAX_FRAMES for places in found.values()):
        raise DataError(f"{name} has more than {MAX_FRAMES:,} B-scans", "a volume may have no more")
    return found, said


def _tell_device(said: _Said, key: tuple, kind: int, raw: bytes) -> None:
    """Keep the device that a chunk names: of a study whether it is a Spectralis, of a series its first text."""
    if kind == _STUDY:
        if _SPECTRALIS in raw.decode("utf-16-le", errors="ignore"):
            said.devices[key[:2]] = _SPECTRALIS
        return
    if len(raw) > 8:
        (size,) = struct.unpack_from("<I", raw, 4)
        said.devices.setdefault(key, words(raw[8 : 8 + size].decode("utf-16-le", errors="ignore").split("\0")[0]))


def _directories(f: BinaryIO, skip: int, name: str) -> Iterator[np.ndarray]:
    """The entries of each directory, int32 of shape (n, 11): 4 to 6 patient, study, series; 7 is twice the slice."""
    seen: set[int] = set()
    at = 36
    while True:
        f.seek(skip + at)
        head = f.read(_FOLDER)
        if len(head) < _FOLDER:
            raise DataError(f"{name} ends within its directory", "the file is cut short; export it again")
        entries, current, previous = struct.unpack_from("<3I", head, 36)
        if seen:
            held = f.read(_ENTRY * min(entries, _MOST_ENTRIES))
            found = np.frombuffer(held[: len(held) // _ENTRY * _ENTRY], "<i4").reshape(-1, 11)
            if len(found) and found[:, 7].max() > 2 * MAX_FRAMES:
                number = f"{found[:, 7].max() // 2:,}"
                raise DataError(f"{name} numbers a B-scan {number}", f"a volume may have {MAX_FRAMES:,}")
            yield found
        at = previous if seen else current
        if at == 0:
            return
        if at in seen:
            raise DataError(f"{name} has a directory that leads back into itself", "the file is damaged")
        seen.add(at)


@functools.cache
def _greys() -> np.ndarray:
    """The grey of each sample: floats without a sign, 6 bits of exponent, 10 of mantissa in turned order."""
    stored = np.arange(1 << 16)
    mantissa = sum(((stored >> bit) & 1) << (9 - bit) for bit in range(10))
    return shown((1 + mantissa / 1024) * 2.0 ** ((stored >> 10) - 63.0))
