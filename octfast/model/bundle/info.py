"""What a bundle says of its model: octfast.json, its fields and what they may hold (docs/bundle-schema.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from octfast.data.fit import FITS
from octfast.data.units import LEVELS
from octfast.errors import BundleError
from octfast.model.aggregation import RULES, TOP
from octfast.model.bundle.strict import HINT, MEND, is_number, parse_json
from octfast.model.quality import MEASURES

FORMAT = "octfast-bundle"
# Of what is written: a bundle that an older octfast would answer wrongly with has the newer, which that one refuses.
VERSION, NEWEST = 2, 5
MODEL_FILE = "model.safetensors"
INFO_FILE = "octfast.json"
UNLIKE_FILE = "unlike.safetensors"
TENSORS = ("float32", "float16")
_POOLING: dict[str, dict[str, int]] = {"attention": {"hidden": 4096}, "mean": {}, "max": {}, "topk": {"k": 10_000}}
_NEEDED = {"arch", "head", "classes", "size", "mean", "std"}
_SINCE = {2: {"calibration", "tensors", "base"}, 3: {"fit"}, 4: {"level", "pooling"}}


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
    calibration : what was fitted on validation beside the temperature: on how many scans and patients, the metrics
        before and after, the operating point of urgent referral, the threshold of prediction sets.
    tensors : how the numbers of the model are stored, one of `TENSORS`; they are read as float32.
    base : None where the bundle is whole. In a slim one the stock weights that it is to be completed with: `source` is
        the library that publishes them, or "file" for a file of the user's, `sha256` of the tensors that were left out
        (`octfast.model.bundle.stock.digest`).
    fit : how a scan of any shape becomes a square, one of `octfast.data.fit.FITS`.
    level : what has one answer, one of `octfast.data.units.LEVELS`.
    pooling : how the scans of a unit become its answer, see `octfast.model.pooling.pooling_of`: its `kind`, of
        attention the `hidden` numbers that it is computed from, of topk `k`; None at the level of scans.
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
    fit: str = "squeeze"
    level: str = "scan"
    pooling: dict[str, Any] | None = None

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
            (self.fit not in FITS, f"fit is not one of {', '.join(FITS)}"),
            (not _is_base(self.base), "base does not name stock weights by their SHA-256"),
            (self.level not in LEVELS, f"level is not one of {', '.join(LEVELS)}"),
            (self.level in LEVELS and not _is_pooling(self.pooling, self.level), "pooling does not go with level"),
        ]
        for wrong, what in problems:
            if wrong:
                raise _FieldError(what)
        what = _wrong_calibration(self.calibration, self.classes)
        if what:
            raise _FieldError(f"calibration: {what}")

    @property
    def calibrated(self) -> bool:
        """Whether a temperature was fitted to the model on held-out scans."""
        return self.temperature != 1 or "nll_after" in self.calibration

    @property
    def outputs(self) -> int:
        """How many numbers the head gives of a scan: a logit a class, and of units how much the scan counts."""
        return len(self.classes) + (self.level != "scan")


def _version(info: BundleInfo) -> int:
    """The lowest version that says all."""
    if info.pooling is not None:
        return 4 if info.pooling["kind"] == "attention" else NEWEST
    return 3 if info.fit != "squeeze" else VERSION


class _FieldError(BundleError):
    """`what` is wrong with a field, whatever the file is called."""

    def __init__(self, what: str):
        super().__init__(f"{INFO_FILE}: {what}", MEND)
        self.what = what


def info_text(info: BundleInfo) -> str:
    """octfast.json, after a reading: what is written can be read."""
    fields = asdict(info)
    version = _version(info)
    later = {key for since, keys in _SINCE.items() if since > version for key in keys}
    about = {"format": FORMAT, "version": version, **{k: v for k, v in fields.items() if k not in later}}
    try:
        text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False, default=lambda v: v.item()) + "\n"
        data = text.encode("utf-8")
    except ValueError as e:
        raise BundleError(
            f"{INFO_FILE} cannot hold this: {e}", "JSON has finite numbers and whole characters"
        ) from None
    parse_info(data, INFO_FILE)
    return text


def parse_info(data: bytes, name: str) -> BundleInfo:
    raw = parse_json(data, name)
    if raw.pop("format", None) != FORMAT:
        raise BundleError(f"{name} is not a bundle's", HINT)
    version = raw.pop("version", None)
    if type(version) is not int or version < 1:
        raise BundleError(f"{name} has no version", MEND)
    if version > NEWEST:
        raise BundleError(
            f"{name} has version {version}, newer than {NEWEST}, which this octfast reads", "update octfast"
        )
    later = (keys for since, keys in _SINCE.items() if since > version)
    known = set(BundleInfo.__dataclass_fields__).difference(*later)
    needed = _NEEDED.union(*(keys for since, keys in _SINCE.items() if 3 <= since <= version))
    if set(raw) - known or needed - set(raw):
        strange = ", ".join(repr(k[:80])[1:-1] for k in sorted(set(raw) - known | needed - set(raw))[:5])
        raise BundleError(f"{name}: unknown or missing: {strange}", MEND)
    for key in ("classes", "mean", "std"):
        if not isinstance(raw[key], list):
            raise BundleError(f"{name}: {key} is not a list", MEND)
        raw[key] = tuple(raw[key])
    try:
        return BundleInfo(**raw)
    except _FieldError as e:
        raise BundleError(f"{name}: {e.what}", MEND) from None


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


def _is_pooling(pooling: Any, level: str) -> bool:
    if level == "scan":
        return pooling is None
    kind = pooling.get("kind") if isinstance(pooling, dict) else None
    # What a kind has beside itself, from 1 to so much.
    own = _POOLING.get(kind) if isinstance(kind, str) else None
    if own is None or set(pooling) != {"kind", *own}:
        return False
    return all(type(pooling[key]) is int and 1 <= pooling[key] <= most for key, most in own.items())


def _wrong_calibration(calibration: Mapping[str, Any], classes: tuple[str, ...]) -> str:
    """What is wrong with the parts of a calibration that predictions are made with; empty where nothing is."""
    if what := _wrong_thresholds(calibration, classes) or _wrong_units(calibration.get("units"), classes):
        return what
    quality = calibration.get("quality")
    if quality is not None:
        limits = quality.get("limits") if isinstance(quality, dict) else None
        if not isinstance(limits, dict) or set(limits) != set(MEASURES):
            return f"quality has no limits of {', '.join(MEASURES)}"
        if not all(is_number(v) and v > 0 for v in limits.values()):
            return "a limit of quality is not a number above 0"
    return ""


def _wrong_thresholds(calibration: Mapping[str, Any], classes: tuple[str, ...]) -> str:
    for key in ("operating", "conformal"):
        part = calibration.get(key)
        if part is not None and not (isinstance(part, dict) and is_number(part.get("threshold"))):
            return f"{key} has no threshold"
        # What is rounded down may lie a little below 0. Above 1 nobody would ever be referred.
        if part is not None and not -1e-6 <= part["threshold"] <= 1:
            return f"the threshold of {key} is not a probability"
    operating = calibration.get("operating")
    if operating is not None:
        urgent = operating.get("urgent")
        if not (isinstance(urgent, list | tuple) and urgent and all(c in classes for c in urgent)):
            return "operating names no urgent classes of the model"
        if len(set(urgent)) != len(urgent) or len(urgent) == len(classes):
            return "operating names an urgent class twice, or all classes"
    return ""


def _wrong_units(kept: Any, classes: tuple[str, ...]) -> str:
    """What is wrong with what is kept of answers for volumes, eyes and patients; empty where nothing is."""
    if kept is None:
        return ""
    if not isinstance(kept, dict) or not set(kept) <= set(LEVELS[1:]):
        return f"units is not of {', '.join(LEVELS[1:])}"
    for level, part in kept.items():
        if not isinstance(part, dict) or not {"rule", "k", "temperature", "urgent"} <= set(part):
            return f"units: {level} lacks rule, k, temperature or urgent"
        rule, k, urgent = part["rule"], part["k"], part["urgent"]
        if rule not in RULES or ((type(k) is not int or not 1 <= k <= 10_000) if rule == TOP else k is not None):
            return f"units: {level} has no rule, or a k that does not go with it"
        if not (is_number(part["temperature"]) and 1e-4 <= part["temperature"] <= 1e4):
            return f"units: the temperature of {level} is not a positive number from 0.0001 to 10,000"
        named = isinstance(urgent, list | tuple) and all(isinstance(c, str) for c in urgent)
        if not (named and set(urgent) < set(classes)):
            return f"units: {level} names no urgent classes of the model"
        if what := _wrong_thresholds(part, classes):
            return f"units: {level}: {what}"
    return ""
