"""What `octfast model show` prints of a bundle, from octfast.json and the header of model.safetensors alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octfast.data.fit import fit_in_words
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE, BundleInfo
from octfast.model.bundle.read import find_bundle, read_info
from octfast.model.bundle.tensor_file import TensorFile
from octfast.model.pooling import pooling_in_words

# Characters of a value that are printed; --json has all of them.
_SHORT = 200


@dataclass(frozen=True)
class Described:
    """A bundle without its numbers.

    Attributes
    ----------
    tensors, parameters : how many of either model.safetensors holds.
    bytes : of both files.
    """

    folder: Path
    info: BundleInfo
    tensors: int
    parameters: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        counts = {"tensors": self.tensors, "parameters": self.parameters, "bytes": self.bytes}
        return {"folder": str(self.folder), **asdict(self.info), "file": counts}

    def rows(self) -> Iterator[tuple[str, str]]:
        """What it is called and what it is, line by line, each on one line of printable characters."""
        info = self.info
        yield "architecture", f"{info.arch} with the head {info.head}"
        yield "classes", ", ".join(f"{i} {c}" for i, c in enumerate(info.classes))
        yield (
            "scans",
            f"grey, {fit_in_words(info.fit, info.size)}, mean {_numbers(info.mean)}, std {_numbers(info.std)}",
        )
        if info.pooling is not None:
            yield "answers for", f"a whole {info.level}: {pooling_in_words(info.pooling)}"
        yield "temperature", f"{info.temperature:g}" + ("" if info.calibrated else " (not calibrated)")
        yield from ((f"calibration: {_plain(k)}", _plain(v)) for k, v in info.calibration.items())
        yield "trained on", "synthetic phantoms" if info.synthetic else "the user's scans"
        yield from ((f"training: {_plain(k)}", _plain(v)) for k, v in info.training.items())
        yield from (
            (f"body weights: {_plain(k)}", _plain(v)) for k, v in info.weights.items() if v not in ("", [], None)
        )
        yield (
            "file",
            f"{self.bytes / 1e6:,.1f} MB, {self.tensors} tensors, {self.parameters:,} numbers as {info.tensors}",
        )
        if info.base is None:
            yield "variant", "whole"
        else:
            stock = stock_of(info)
            yield "variant", f"slim: needs {stock} (SHA-256 of what it takes from them: {info.base['sha256']})"


def describe_bundle(bundle: str | Path) -> Described:
    """Read and check what a bundle, or the model of a run folder, says of itself.

    Raises
    ------
    BundleError : see `octfast.model.bundle.read.load_bundle`; the tensors are not compared with the architecture.
    """
    folder = find_bundle(bundle)
    info = read_info(folder)
    with TensorFile(folder / MODEL_FILE) as file:
        numbers = sum((e.end - e.start) // e.dtype.itemsize for e in file.entries.values())
        tensors = len(file.entries)
    size = sum((folder / name).stat().st_size for name in (MODEL_FILE, INFO_FILE))
    return Described(folder, info, tensors, numbers, size)


def stock_of(info: BundleInfo) -> str:
    """In words, what a slim bundle needs beside itself; empty for a whole one."""
    if info.base is None:
        return ""
    if info.base["source"] == "file":
        name = info.weights.get("file")
        return f"the file of {info.arch} weights that it was made with" + (f" ({_plain(name)})" if name else "")
    return f"{info.base['source']}'s stock weights of {info.arch}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:g}" for v in values)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."
