"""What `octfast export` does: one file with the preprocessing inside, kept if it agrees with torch on scans."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octfast.data.units import one
from octfast.deploy.export.agreement import Agreement, compare, compare_bags, refuse
from octfast.deploy.export.lines import units_of_file, usage
from octfast.deploy.export.scans import Sample, calibration_sample, check_sample
from octfast.errors import UsageError
from octfast.files import sha256_of, whole_file
from octfast.model.bundle.distance import load_distance
from octfast.model.bundle.info import MODEL_FILE, BundleInfo
from octfast.model.bundle.read import find_bundle, load_bundle
from octfast.model.decide import Rule, rule_of
from octfast.notices import NOTICE, notice

if TYPE_CHECKING:
    from torch import nn

    from octfast.model.unlike import Unlike

log = logging.getLogger("octfast")

FORMATS = ("onnx", "torch")


@dataclass(frozen=True)
class Exported:
    """An exported file: where, of which `format` and `precision`, how large, how it agrees, what was calibrated on.

    `rule` says how an answer is made of its probabilities, as octfast makes it; `onnxruntime` is the oldest version
    that runs an ONNX file. `level`, `size` and `fit` are those of the model, see `BundleInfo`; `units` says how scans
    are put together, see `octfast.deploy.export.lines.units_of_file`.
    """

    file: Path
    format: str
    precision: str
    bytes: int
    rule: Rule
    synthetic: bool
    agreement: Agreement
    calibration: str | None = None
    onnxruntime: str | None = None
    level: str = "scan"
    size: int = 224
    fit: str = "squeeze"
    units: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.rule.classes

    def usage(self) -> str:
        """Python lines that run the file without octfast and answer as octfast does."""
        far = self.agreement.distance is not None
        about: dict[str, Any] = {"level": self.level, "size": self.size, "fit": self.fit, "units": self.units}
        return usage(self.file.name, self.format, self.rule, far=far, **about)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "classes": self.classes, "file": str(self.file), "notice": NOTICE}


def export_bundle(
    bundle: str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    half: bool = False,
    int8: bool = False,
    opset: int | None = None,
    check: str | Path | None = None,
    calibration: str | Path | None = None,
    scans: int = 64,
    overwrite: bool = False,
    weights: str | Path | None = None,
) -> Exported:
    """Write a trained model as one file that takes uint8 pictures of any size and gives probabilities.

    Of a model that answers for whole volumes, eyes or patients the pictures are all scans of one of these; the file
    gives its probabilities, and how much each scan counts.

    The file is run on scans and compared with torch in float32; it is kept only if they agree: each probability within
    .001, with `half` within .02, and with `int8` the same class for nine scans in ten; a distance to the training
    scans within 1%, with `half` 5%, while with `int8` it is only said how far it lies.

    Parameters
    ----------
    bundle : the folder of a bundle, or a run folder.
    format : "onnx", or "torch" for a torch.export program (.pt2).
    out : the file; None puts it beside the bundle.
    half : keep and run the body in float16.
    int8 : run the body's layers in 8 bits (ONNX alone), their ranges those of `calibration`.
    opset : of ONNX's operators, 15 to 23; None takes the lowest that can say the network.
    check : a folder or table of scans to compare on; None takes the validation scans of the run that the bundle lies
        in, and phantoms where there are none.
    calibration : a folder or table of scans; None takes the run's training scans, and phantoms where there are none.
    scans : how many to compare on, and how many to calibrate on, at most.
    overwrite : replace a file of that name.
    weights : for a slim bundle, the file of its stock weights.

    Raises
    ------
    UsageError : parameters that do not go together, a missing package, a file that exists, a network that cannot be
        exported.
    DataError : the file does not agree with torch; nothing is left.
    BundleError : see `octfast.model.bundle.read.load_bundle`.
    """
    precision = _check_parameters(format, half, int8, calibration, scans)
    folder = find_bundle(bundle)
    file = _file(folder, format, precision, out, overwrite)
    model, info = load_bundle(folder, weights=weights, units=True)
    unlike = load_distance(folder, info)
    compared = check_sample(folder, info, check, scans)
    calibrated = calibration_sample(folder, info, calibration, scans) if int8 else None
    metadata = describe(info, folder, precision, calibrated, unlike is not None)
    try:
        with whole_file(file) as part:
            run = _WRITERS[format](model, info, part, metadata, half, opset, calibrated, unlike)
            agreement = (compare if info.level == "scan" else compare_bags)(run, model, info, compared, unlike)
            refuse(agreement, precision)
    except OSError as e:
        raise UsageError(f"cannot write {file}: {e.strerror or e}", "give another --out") from None
    return Exported(
        file.resolve(),
        format,
        precision,
        file.stat().st_size,
        rule_of(info.classes, info.calibration),
        info.synthetic,
        agreement,
        calibrated.source if calibrated else None,
        metadata.get("onnxruntime"),
        *(info.level, info.size, info.fit, units_of_file(info)),
    )


def describe(
    info: BundleInfo, folder: Path, precision: str, calibrated: Sample | None = None, distance: bool = False
) -> dict[str, str]:
    """What an exported file says of itself: a text a key, JSON where it is no plain word."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, default=str)

    rule = rule_of(info.classes, info.calibration)
    about = {
        "classes": text(list(info.classes)),
        "input": "uint8 (batch, height, width, channels): 1 channel grey, 3 red, green, blue; any height and width",
        "output": "float32 (batch, classes): probabilities, the temperature applied",
        "arch": info.arch,
        "head": info.head,
        "size": str(info.size),
        "fit": info.fit,
        "mean": text(list(info.mean)),
        "std": text(list(info.std)),
        "temperature": str(info.temperature),
        "calibration": text(info.calibration),
        "rule": text({"urgent": rule.urgent, "threshold": rule.threshold, "set_threshold": rule.set_threshold}),
        "weights": text(info.weights),
        "training": text(info.training),
        "synthetic": text(info.synthetic),
        "precision": precision,
        "bundle_sha256": sha256_of(folder / MODEL_FILE),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "exported_with": text(_versions()),
        "notice": notice(info.synthetic),
    }
    if info.level != "scan":
        about |= {"level": info.level, "pooling": text(info.pooling)}
        scans = "channels): 1 channel grey, 3 red, green, blue; any height and width, the same for all"
        about["input"] = f"uint8 (scans, height, width, {scans}; all scans of {one(info.level)}, in any order"
        about["output"] = f"float32 (1, classes): probabilities of the {info.level}, the temperature applied"
        about["attention"] = "float32 (scans,): the second output; how much each scan counts, summing to 1"
    if units := units_of_file(info):
        about["units"] = text(units)
    if distance:
        place = "second" if info.level == "scan" else "third"
        about["distance"] = f"float32 (batch,): the {place} output; above 1 the scan is unlike the training scans"
    if calibrated:
        about["int8_calibration"] = calibrated.source
    return about


def _write_onnx(
    model: nn.Sequential,
    info: BundleInfo,
    part: Path,
    metadata: dict[str, str],
    half: bool,
    opset: int | None,
    calibrated: Sample | None,
    unlike: Unlike | None,
) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    import onnx

    from octfast.deploy.export.classifier import whole
    from octfast.deploy.export.oldest import check_opset, least_runtime, lowered
    from octfast.deploy.export.onnx import example_pictures, make_onnx, onnx_outputs, strip_traces

    check_opset(opset)
    log.info("writing the network as ONNX")
    graph = make_onnx(whole(model, info, half=half, unlike=unlike), metadata, opset)
    if calibrated:
        from octfast.deploy.export.onnx import make_int8

        log.info("calibrating int8 on %s", calibrated.source)
        graph = make_int8(graph, (picture[None] for picture in calibrated.pictures))
    strip_traces(graph)
    graph = lowered(graph, opset, example_pictures()[: 1 if info.level == "scan" else 2].numpy())
    metadata["onnxruntime"] = least_runtime(graph)
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    onnx.save_model(graph, part)
    return onnx_outputs(part)


def _write_torch(
    model: nn.Sequential,
    info: BundleInfo,
    part: Path,
    metadata: dict[str, str],
    half: bool,
    opset: int | None,
    calibrated: Sample | None,
    unlike: Unlike | None,
) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    from octfast.deploy.export.torch_export import program_outputs, write_program

    log.info("writing the network with torch.export")
    write_program(model, info, part, metadata, half=half, unlike=unlike)
    return program_outputs(part)


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}


def _check_parameters(format: str, half: bool, int8: bool, calibration: object, scans: int) -> str:
    if format not in FORMATS:
        raise UsageError(f"no format named {format!r}", f"one of {', '.join(FORMATS)}")
    if half and int8:
        raise UsageError("--half and --int8 do not go together", "choose one")
    if int8 and format != "onnx":
        raise UsageError("--int8 goes with ONNX alone", "use --format onnx")
    if calibration is not None and not int8:
        raise UsageError("--calibration goes with --int8 alone", "add --int8, or leave it out")
    if scans < 1:
        raise UsageError(f"--scans {scans}: at least one is needed to compare on")
    if format == "onnx":
        from octfast.deploy.export.onnx import need_onnx

        need_onnx()
    return "fp16" if half else "int8" if int8 else "fp32"


def _file(folder: Path, format: str, precision: str, out: str | Path | None, overwrite: bool) -> Path:
    suffix = ".onnx" if format == "onnx" else ".pt2"
    if out is None:
        path = folder.resolve()
        end = {"fp32": "", "fp16": "-half", "int8": "-int8"}[precision]
        file = path.with_name(f"{path.name}{end}{suffix}")
    else:
        file = Path(out).expanduser()
        if file.suffix.lower() != suffix:
            raise UsageError(f"{file} does not end in {suffix}", f"give --out NAME{suffix}")
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "give --out FILE")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists", "add --overwrite to replace it, or give another --out")
    if not file.parent.is_dir():
        raise UsageError(f"no such folder: {file.parent}", "make it first, or give another --out")
    return file


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("octfast", "torch", "onnx", "onnxruntime", "onnxscript"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
