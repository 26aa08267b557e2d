"""Reads an untrusted safetensors file: its header is checked before anything is allocated.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of the header, little
endian; the header, JSON; then the tensors, at the offsets that the header says, with no gap. The safetensors library
maps the file into memory, so a file that is cut meanwhile ends the process by a signal; it opens links and waits for
pipes; and it takes headers of 100 MB and names that stand twice. `tests/model/bundle/test_tensor_file.py` shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from octfast.errors import BundleError
from octfast.model.bundle.strict import open_plain, parse_json

MAX_HEADER = 8 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
DAMAGED = "the file is damaged or was cut short; copy it again, or export the model again"


@dataclass(frozen=True)
class Entry:
    """A tensor as the header has it: its type, its shape, and its bytes from `start` to `end` after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """An open safetensors file whose header has been checked; `entries` are its tensors by name.

    Raises
    ------
    BundleError : it is missing, is no plain file, is no safetensors file, or its header does not fit it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file, size = open_plain(path)
        try:
            self.entries = self._header(size)
        except OSError as e:
            self._file.close()
            raise BundleError(f"cannot read {path}: {e.strerror or e}", DAMAGED) from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self) -> dict[str, Tensor]:
        """Every tensor by name.

        Raises
        ------
        BundleError : the file has become shorter, or holds numbers that are not finite.
        """
        tensors = {}
        for name, entry in self.entries.items():
            # Into memory that torch allocates, aligned as its kernels want it.
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            target = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else bytearray()
            try:
                self._file.seek(self._start + entry.start)
                done = self._file.readinto(target)  # type: ignore[attr-defined]
            except OSError as e:
                raise BundleError(f"cannot read {self.path}: {e.strerror or e}", DAMAGED) from None
            if done != len(target):
                raise BundleError(f"{self.path} was cut short while it was read", DAMAGED)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise BundleError(f"{self.path} holds numbers that are not finite, in {name[:80]!r}", DAMAGED)
            tensors[name] = tensor
        return tensors

    def _header(self, size: int) -> dict[str, Entry]:
        start = self._file.read(8)
        length = int.from_bytes(start, "little")
        # A header of 640 bytes has the length 80 02 00 ...; no pickle that does anything has zeros there.
        if length > MAX_HEADER and (start[:4] == b"PK\x03\x04" or start[:2] in _PICKLES):
            raise BundleError(
                f"{self.path} cannot be read: it is a pickle under another name, which may run code",
                "ask whoever made it for a bundle of octfast; nothing in it was opened",
            )
        if len(start) < 8 or length > size - 8:
            raise BundleError(f"cannot read {self.path}: it is shorter than its header says", DAMAGED)
        if length > MAX_HEADER:
            raise BundleError(f"cannot read {self.path}: a header of {length:,} bytes is no model's", DAMAGED)
        raw = parse_json(self._file.read(length), f"cannot read {self.path}: its header")
        about = raw.pop("__metadata__", {})
        if not (isinstance(about, dict) and all(isinstance(v, str) for v in about.values())):
            raise BundleError(f"cannot read {self.path}: its metadata are not texts", DAMAGED)
        entries = {name: self._entry(name, value) for name, value in raw.items()}
        at = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != at:
                raise BundleError(
                    f"cannot read {self.path}: {name[:80]!r} does not lie where the one before ends", DAMAGED
                )
            at = entry.end
        self._start = 8 + length
        if self._start + at != size:
            raise BundleError(
                f"cannot read {self.path}: it has {size:,} bytes, and its header speaks of {self._start + at:,}",
                DAMAGED,
            )
        return entries

    def _entry(self, name: str, value: Any) -> Entry:
        wrong = f"cannot read {self.path}: its header has no sound entry for {name[:80]!r}"
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise BundleError(wrong, DAMAGED)
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not (isinstance(dtype, str) and dtype in DTYPES):
            raise BundleError(f"{wrong}: no type {str(dtype)[:20]!r}", DAMAGED)
        if not (_counts(shape) and len(shape) <= 8 and _counts(offsets) and len(offsets) == 2):
            raise BundleError(wrong, DAMAGED)
        # Python's integers do not overflow, however large the sides.
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise BundleError(f"{wrong}: its shape does not fit its bytes", DAMAGED)
        return Entry(DTYPES[dtype], tuple(shape), *offsets)


def _counts(value: Any) -> bool:
    """Whether a value is a list of whole numbers from 0."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
