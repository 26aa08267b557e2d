"""The Python lines by which an exported file is run without octfast, and answers as octfast does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octfast.data.units import one
from octfast.model.aggregation import HEALTHY, LEAST, MEAN, MEAN_LOG, NOISY_OR, TOP, aggregation_of, fitted_levels
from octfast.model.decide import Rule, rule_of

if TYPE_CHECKING:
    from octfast.model.bundle.info import BundleInfo

# What a file calls what it takes and, in this order, what it gives; it may lack the latter ones.
INPUT = "picture"
OUTPUTS = OUTPUT, ATTENTION, DISTANCE = ("probabilities", "attention", "distance")
_GREY = 'ImageOps.exif_transpose(Image.open({})).convert("L")'
_RESIZE = {
    "squeeze": "s.resize({0}, Image.Resampling.BILINEAR) for s in scans",
    "crop": "ImageOps.crop(s, ({1})).resize({0}, Image.Resampling.BILINEAR) for s in scans for m in [min(s.size)]",
}


def usage(
    file: str,
    format: str,
    rule: Rule,
    *,
    far: bool = False,
    level: str = "scan",
    size: int = 224,
    fit: str = "squeeze",
    units: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The lines for a file, which lies in the folder that they are run in.

    Parameters
    ----------
    file : its name.
    format : "onnx" or "torch".
    rule : by which an answer is made of its probabilities.
    far : whether it gives distances to the training scans.
    level, size, fit : of its model, see `BundleInfo`.
    units : of a model of scans, see `units_of_file`.
    """
    lines = [
        *_loading(_text(file), format),
        *(_scan(format, far) if level == "scan" else _bag(format, far, level, size, fit)),
    ]
    lines += [f"classes = {_text(rule.classes)}", "print(dict(zip(classes, p)))"]
    if level != "scan":
        lines += ['print("attention", dict(zip(files, attention.tolist())))']
    lines += _decision(rule)
    if far:
        alone = "distance > 1" if level == "scan" else "bool(attention[distance > 1].sum() > 0.5)"
        lines += [f'print("unlike_training", {alone})  # octfast gives no class then']
    for name, kept in (units or {}).items():
        lines += ["", *_together(name, kept, rule.classes, far)]
    return "\n".join(lines)


def units_of_file(info: BundleInfo) -> dict[str, dict[str, Any]]:
    """How the scans of a volume, an eye or a patient are put together, of a model of scans that keeps it, by level.

    Returns
    -------
    Of each level `rule`, `k`, `temperature`, `urgent` (by which "most_urgent" goes), `words`, and of the answer for the
    whole `referred_from` and `set_threshold`, as `octfast.model.decide.Rule` has them.
    """
    if info.level != "scan":
        return {}
    found = {}
    for level in fitted_levels(info.calibration):
        how = aggregation_of(info.calibration, level, info.classes)
        rule = rule_of(info.classes, how.calibration)
        found[level] = {
            "rule": how.rule,
            "k": how.k,
            "temperature": how.temperature,
            "urgent": list(how.urgent),
            "words": f"The answer for {one(level)} is {how.words}",
            "referred_classes": list(rule.urgent),
            "referred_from": rule.threshold,
            "set_threshold": rule.set_threshold,
        }
    return found


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _loading(file: str, format: str) -> list[str]:
    if format == "onnx":
        about = "# The names of the classes, and more, stand in session.get_modelmeta().custom_metadata_map."
        load = [about, f"session = onnxruntime.InferenceSession({file})"]
    else:
        load = [f"network = torch.export.load({file}).module()  # load no file that you do not trust"]
    runtime = "onnxruntime" if format == "onnx" else "torch"
    return [f"import numpy as np, {runtime}", "from PIL import Image, ImageOps", "", *load]


def _scan(format: str, far: bool) -> list[str]:
    grey = f"grey = {_GREY.format(_text('scan.jpeg'))}  # of 8 bits a sample"
    if format == "onnx":
        scan = "scan = np.asarray(grey)[None, :, :, None]  # uint8 (batch, height, width, channels)"
        run = f'session.run(None, {{"{INPUT}": scan}})'
        return [grey, scan, f"p, distance = (y[0].tolist() for y in {run})" if far else f"p = {run}[0][0].tolist()"]
    scan = "scan = torch.from_numpy(np.array(grey))[None, :, :, None]  # uint8 (N, H, W, channels)"
    run = "network(scan)"
    return [grey, scan, f"p, distance = (y[0].tolist() for y in {run})" if far else f"p = {run}[0].tolist()"]


def _bag(format: str, far: bool, level: str, size: int, fit: str) -> list[str]:
    edges = "(s.width - m) // 2, (s.height - m) // 2, (s.width - m + 1) // 2, (s.height - m + 1) // 2"
    resized = _RESIZE[fit].format((size, size), edges)
    names = "p, attention, distance" if far else "p, attention"
    run = (
        f'session.run(None, {{"{INPUT}": bag}})'
        if format == "onnx"
        else "(y.numpy() for y in network(torch.from_numpy(bag)))"
    )
    return [
        f'files = ["scan-1.jpeg", "scan-2.jpeg"]  # all scans of {one(level)}; their order plays no part',
        f"scans = [{_GREY.format('f')} for f in files]  # of 8 bits a sample",
        "if len({s.size for s in scans}) > 1:  # one array has scans of one size: as the file brings them to its own",
        f"    scans = [{resized}]",
        "bag = np.stack([np.array(s) for s in scans])[..., None]  # uint8 (scans, height, width, channels)",
        f"{names} = {run}",
        "p = p[0].tolist()",
    ]


def _decision(rule: Rule) -> list[str]:
    lines = []
    if rule.urgent:
        lines += [f"urgent = {_text(rule.urgent)}", "urgent_score = sum(p[classes.index(c)] for c in urgent)"]
        at_argmax, at_point = "classes[p.index(max(p))] in urgent", f"urgent_score >= {rule.threshold}"
        lines += [f"referred = {at_argmax if rule.threshold is None else at_point}"]
        lines += ['print("urgent_score", urgent_score, "referred", referred)']
    if rule.set_threshold is not None:
        lines += [f'print("abstained", sum(q >= {rule.set_threshold} for q in p) > 1)']
    return lines


def _together(level: str, kept: Mapping[str, Any], classes: Sequence[str], far: bool) -> list[str]:
    """A function from the probabilities of a unit's scans to those of the unit."""
    rule, k = kept["rule"], kept["k"]
    urgent = [i for i, c in enumerate(classes) if c in kept["urgent"]]
    body = {
        MEAN: ["z = np.log(p.mean(0))"],
        MEAN_LOG: ["z = np.log(p).mean(0)"],
        TOP: [f"z = np.sort(np.log(p), 0)[-{k}:].mean(0)"],
        NOISY_OR: [
            f"z = np.log(np.maximum(1 - np.prod(1 - p, 0), {LEAST}))",
            *(f"z[{i}] = np.log(p[:, {i}]).sum()" for i, c in enumerate(classes) if str(c).casefold() in HEALTHY),
        ],
    }.get(rule, [f"z = np.log(p[p[:, {urgent}].sum(1).argmax()])" if urgent else "z = np.log(p[p.max(1).argmax()])"])
    counted = ", but those with a distance above 1, which do not count" if far else ""
    lines = [
        f"def {level}_of(p):  # {kept['words']}: p of all its scans{counted}, (scans, classes)",
        f"    p = np.clip(np.asarray(p, dtype=float), {LEAST}, 1 - {LEAST})",
        *(f"    {line}" for line in body),
        f"    z = np.exp((z - z.max()) / {kept['temperature']})",
        "    return z / z.sum()",
    ]
    if kept["referred_from"] is not None:
        lines += [f"# Referred where its {' + '.join(kept['referred_classes'])} is {kept['referred_from']} or more."]
    if kept["set_threshold"] is not None:
        lines += [f"# Abstained where more than one class has {kept['set_threshold']} or more."]
    return lines
