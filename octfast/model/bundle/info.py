"""The trained classifier on disk: model.safetensors and octfast.json, no pickle (docs/bundle-schema.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.errors import BundleError, OctfastError
from octfast.model.bundle.strict import HINT, MEND, is_number, open_plain, parse_json

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "octfast-bundle"
VERSION = 2
MODEL_FILE = "model.safetensors"
INFO_FILE = "octfast.json"
TENSORS = ("float32", "float16")
_MAX_JSON = 4 << 20
_NEEDED = {"arch", "head", "classes", "size", "mean", "std"}
_SINCE_2 = {"calibration", "tensors", "base"}


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says of its model.

    Attributes
    ----------
    arch, head : names for `find_arch` and `body_and_head`.
    classes : in the order of their index.
    size : side of a scan, in pixels; `mean` and `std` of the three channels, for samples in 0..1.
    weights : where the body's weights came from (`WeightsReport.to_dict`).
    training : provenance: seed, epochs, counts, versions.
    synthetic : whether it was trained on phantoms, so that its answers mean nothing for people.
    temperature : divides the logits before the softmax.
    calibration : what was fitted on validation beside the temperature: on how many scans and patients, the figures
        before and after, the operating point of urgent referral, the threshold of prediction sets.
    tensors : how the numbers of the model are stored, one of `TENSORS`; they are read as float32.
    base : None where the bundle is whole. In a slim one the stock weights that it is to be completed with: `source` is
        the library that publishes them, or "file" for a file of the user's, `sha256` of the tensors that were left out
        (`octfast.model.bundle.stock.digest`).
    """

    arch: str
    head: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    temperature: float = 1.0
    calibration: dict[str, Any] = field(default_factory=dict)
    tensors: str = "float32"
    base: dict[str, Any] | None = None

    def __post_init__(self):
        named = isinstance(self.arch, str) and isinstance(self.head, str)
        listed = isinstance(self.classes, tuple) and all(isinstance(c, str) for c in self.classes)
        mean_std = all(isinstance(v, tuple) and len(v) == 3 and all(map(is_number, v)) for v in (self.mean, self.std))
        free = (self.weights, self.training, self.calibration)
        problems = [
            (not named, "arch and head are not names"),
            (named and not _is_name(self.arch), "arch is not the plain name of a network"),
            (not (listed and 2 <= len(self.classes) <= 10_000), "classes is not a list of two or more names"),
            (listed and not all(map(_is_class_name, self.classes)), "classes holds what is no name of a class"),
            (listed and len(set(self.classes)) != len(self.classes), "a class stands twice"),
            (type(self.size) is not int or not 16 <= self.size <= 2048, "size is not between 16 and 2048"),
            (not mean_std, "mean and std are not three numbers each"),
            (mean_std and not all(abs(v) <= 1000 for v in self.mean), "mean is not in the range of samples"),
            (mean_std and not all(1e-6 <= v <= 1000 for v in self.std), "std is not in the range of samples"),
            (
                not (is_number(self.temperature) and 1e-4 <= self.temperature <= 1e4),
                "temperature is not a positive number from 0.0001 to 10,000",
            ),
            (not all(isinstance(d, dict) for d in free), "weights, training or calibration is not an object"),
            (not isinstance(self.synthetic, bool), "synthetic is neither true nor false"),
            (self.tensors not in TENSORS, f"tensors is not one of {', '.join(TENSORS)}"),
            (not _is_base(self.base), "base does not name stock weights by their SHA-256"),
        ]
        for wrong, what in problems:
            if wrong:
                raise BundleError(f"{INFO_FILE}: {what}", MEND)
        what = _wrong_calibration(self.calibration, self.classes)
        if what:
            raise BundleError(f"{INFO_FILE}: calibration: {what}", MEND)


def find_bundle(path: str | Path) -> Path:
    """The folder of a bundle: the one given, or the model of the run folder that was given."""
    try:
        folder = Path(path).expanduser()
        inside = folder / "model"
        # By the name, not by what it points to: a link there is refused with its own sentence.
        there = any(f.is_symlink() or f.exists() for f in (folder / INFO_FILE, folder / MODEL_FILE))
        return inside if not there and inside.is_dir() else folder
    except (OSError, ValueError, RuntimeError) as e:
        raise BundleError(f"cannot read {str(path)[:200]!r}: {e}", HINT) from None


def save_bundle(folder: str | Path, model: nn.Module, info: BundleInfo) -> Path:
    """Write a model, a Sequential of body and head, and what is known of it; each file under its name only when whole.

    The bundle is whole, whatever `info.base` says; its numbers are stored as `info.tensors` says.

    Returns
    -------
    The folder.

    Raises
    ------
    BundleError : float16 has no room for one of the model's numbers.
    """
    return write_bundle(folder, model.state_dict(), replace(info, base=None))


def write_bundle(folder: str | Path, state: Mapping[str, Tensor], info: BundleInfo) -> Path:
    """Write tensors and what is known of them as a bundle; `save_bundle` is for models."""
    import torch
    from safetensors.torch import save

    text = _info_text(info)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, info.tensors)
    # Copies, since safetensors refuses tensors that share memory and saves none that are strided otherwise.
    own = {
        k: (v.detach().cpu().to(dtype) if v.is_floating_point() else v.detach().cpu()).contiguous().clone()
        for k, v in state.items()
    }
    if dtype != torch.float32:
        lost = next((k for k, v in own.items() if v.is_floating_point() and not v.isfinite().all()), None)
        if lost:
            raise BundleError(f"{info.tensors} has no room for the numbers of {lost}", "store them as float32")
    part = folder / f".{MODEL_FILE}.part"
    # One entry alone, as safetensors writes several in any order, and the same model should give the same bytes.
    # Through bytes, as its save_file makes files that their owner alone can read.
    part.write_bytes(save(own, metadata={"format": "pt"}))
    part.replace(folder / MODEL_FILE)
    _write_info(folder, text)
    return folder


def update_info(folder: str | Path, **changes: Any) -> BundleInfo:
    """Replace fields of a bundle's octfast.json, such as `temperature`; its tensors stay as they are.

    Raises
    ------
    BundleError : see `read_info`.
    """
    info = replace(read_info(folder), **changes)
    _write_info(Path(folder), _info_text(info))
    return info


def read_info(folder: str | Path) -> BundleInfo:
    """Read and check a bundle's octfast.json, of this version or an older one.

    Raises
    ------
    BundleError : missing, a link, too large, no strict JSON, of a newer version, unknown keys, values that cannot be.
    """
    file = Path(folder) / INFO_FILE
    opened, size = open_plain(file)
    with opened:
        if size > _MAX_JSON:
            raise BundleError(f"{file} is too large to be a bundle's: {size:,} bytes", HINT)
        try:
            data = opened.read(_MAX_JSON + 1)
        except OSError as e:
            raise BundleError(f"cannot read {file}: {e.strerror or e}", HINT) from None
    return _parse_info(data, str(file))


def load_bundle(folder: str | Path, *, weights: str | Path | None = None) -> tuple[nn.Sequential, BundleInfo]:
    """Build the model that a bundle names and load its tensors; nothing in the bundle is executed, nothing fetched.

    The network is first built without memory for its tensors, and the header of model.safetensors compared with it, so
    that a bundle costs no more memory than its files are large.

    Parameters
    ----------
    weights : for a slim bundle, the file of its stock weights; None looks where torch and timm keep theirs.

    Returns
    -------
    (a Sequential of body and head in eval mode, on the CPU, in float32; its BundleInfo).

    Raises
    ------
    BundleError : a file is missing or damaged, the tensors are not those of the architecture, or the stock weights of
        a slim bundle are not on this machine or are others.
    """
    from octfast.model.bundle.build import empty_network, filled
    from octfast.model.bundle.tensor_file import TensorFile

    folder = Path(folder)
    info = read_info(folder)
    with TensorFile(folder / MODEL_FILE) as file:
        try:
            model = empty_network(info)
        except OctfastError as e:
            raise BundleError(f"{folder}: {e.message}", e.hint or MEND) from None
        wanted = model.state_dict()
        _check_tensors(file.path, file.entries, wanted, info)
        state = file.read()
    left_out = {k: v for k, v in wanted.items() if k not in state}
    if info.base is not None:
        from octfast.model.bundle.stock import stock_tensors

        state |= stock_tensors(info, left_out, folder, weights)
    return filled(model, info, state), info


def _check_tensors(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor], info: BundleInfo) -> None:
    """Raises BundleError where the header has others than the network; a slim bundle may lack some of the body."""
    hint = "export or train the model again"
    what = f"{file} does not hold {info.arch} with the head {info.head}"
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted:
            raise BundleError(f"{what}: {name[:80]!r} differs (it has no such tensor)", hint)
        if name not in found:
            if info.base is not None and name.startswith("0."):
                continue
            raise BundleError(f"{what}: {name} differs (it is not in the file)", hint)
        if found[name].shape != tuple(wanted[name].shape):
            shapes = f"{tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
            raise BundleError(f"{what}: {name} differs ({shapes})", hint)
        dtype = info.tensors if wanted[name].is_floating_point() else str(wanted[name].dtype).removeprefix("torch.")
        has = str(found[name].dtype).removeprefix("torch.")
        if has != dtype:
            raise BundleError(f"{what}: {name} differs ({has} instead of {dtype})", hint)


def _info_text(info: BundleInfo) -> str:
    """octfast.json, after a reading: what is written can be read."""
    about = {"format": FORMAT, "version": VERSION, **asdict(info)}
    try:
        text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False, default=lambda v: v.item()) + "\n"
        data = text.encode("utf-8")
    except ValueError as e:
        raise BundleError(
            f"{INFO_FILE} cannot hold this: {e}", "JSON has finite numbers and whole characters"
        ) from None
    _parse_info(data, INFO_FILE)
    return text


def _write_info(folder: Path, text: str) -> None:
    part = folder / f".{INFO_FILE}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / INFO_FILE)


def _parse_info(data: bytes, name: str) -> BundleInfo:
    raw = parse_json(data, name)
    if raw.pop("format", None) != FORMAT:
        raise BundleError(f"{name} is not a bundle's", HINT)
    version = raw.pop("version", None)
    if type(version) is not int or version < 1:
        raise BundleError(f"{name} has no version", MEND)
    if version > VERSION:
        raise BundleError(
            f"{name} has version {version}, newer than {VERSION}, which this octfast reads", "update octfast"
        )
    known = set(BundleInfo.__dataclass_fields__) - (_SINCE_2 if version == 1 else set())
    if set(raw) - known or _NEEDED - set(raw):
        strange = ", ".join(repr(k[:80])[1:-1] for k in sorted(set(raw) - known | _NEEDED - set(raw))[:5])
        raise BundleError(f"{name}: unknown or missing: {strange}", MEND)
    for key in ("classes", "mean", "std"):
        if not isinstance(raw[key], list):
            raise BundleError(f"{name}: {key} is not a list", MEND)
        raw[key] = tuple(raw[key])
    try:
        return BundleInfo(**raw)
    except BundleError as e:
        raise BundleError(e.message.replace(INFO_FILE, name, 1), e.hint) from None


def _is_name(text: str) -> bool:
    """Whether it can be the name of a network: no path, no address."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,149}", text) is not None


def _is_class_name(text: str) -> bool:
    return 0 < len(text) <= 200 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def _is_base(base: Any) -> bool:
    if base is None:
        return True
    return (
        isinstance(base, dict)
        and set(base) == {"source", "sha256"}
        and base["source"] in ("torchvision", "timm", "file")
        and isinstance(base["sha256"], str)
        and re.fullmatch("[0-9a-f]{64}", base["sha256"]) is not None
    )


def _wrong_calibration(calibration: Mapping[str, Any], classes: tuple[str, ...]) -> str:
    """What is wrong with the parts of a calibration that predictions are made with; empty where nothing is."""
    for key in ("operating", "conformal"):
        part = calibration.get(key)
        if part is not None and not (isinstance(part, dict) and is_number(part.get("threshold"))):
            return f"{key} has no threshold"
        # What is rounded down may lie a little below 0. Above 1 nobody would ever be referred.
        if part is not None and not -1e-6 <= part["threshold"] <= 1:
            return f"the threshold of {key} is no probability"
    operating = calibration.get("operating")
    if operating is not None:
        urgent = operating.get("urgent")
        if not (isinstance(urgent, list | tuple) and urgent and all(c in classes for c in urgent)):
            return "operating names no urgent classes of the model"
        if len(set(urgent)) != len(urgent) or len(urgent) == len(classes):
            return "operating names an urgent class twice, or all classes"
    return ""
