"""Brings an ONNX model down to the oldest operators that can say it, and names the oldest ONNX Runtime that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octfast.deploy.export.lines import INPUT
from octfast.deploy.export.onnx import EXPORTED, onnx_session
from octfast.errors import UsageError

if TYPE_CHECKING:
    import onnx

OPSETS = (15, 16, 17, 18, 19, 20, 21, 22, 23)
# Of each opset an ONNX Runtime that runs it, and a format (IR version) that this one reads. Up to 18 the first that its
# documentation gives; above, where 1.15 lacks operators of 19 and 1.22 refuses 23, the first of those tried that did.
_RUNTIMES = {
    15: ("1.10", 7),
    16: ("1.11", 8),
    17: ("1.12", 8),
    18: ("1.14", 8),
    19: ("1.17", 9),
    20: ("1.17", 9),
    21: ("1.18", 10),
    22: ("1.21", 10),
    23: ("1.23", 10),
}


def check_opset(opset: int | None) -> None:
    """
    Raises
    ------
    UsageError : an opset that is not offered.
    """
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"--opset {opset}: not one that can be written", f"one of {', '.join(map(str, OPSETS))}")


def lowered(model: onnx.ModelProto, opset: int | None, picture: np.ndarray) -> onnx.ModelProto:
    """The model in the operators of an older opset, and in the oldest format that goes with it.

    Parameters
    ----------
    model : as exported, its traces stripped.
    opset : one of `OPSETS`; None takes the lowest that can say the model.
    picture : to compare the conversion on, uint8 of shape (N, H, W, C).

    Raises
    ------
    UsageError : the network has operators that this opset lacks.
    """
    wanted = [v for v in OPSETS if v < EXPORTED] if opset is None else [opset]
    for version in wanted:
        if version >= EXPORTED:
            break
        if (found := _converted(model, version, picture)) is not None:
            model = found
            break
    else:
        if opset is not None:
            raise UsageError(
                f"--opset {opset}: this network has operators that it lacks", "leave it out, which takes the lowest"
            )
    model.ir_version = _RUNTIMES[_opset(model)][1]
    return model


def least_runtime(model: onnx.ModelProto) -> str:
    """The oldest version of onnxruntime that has the model's operators, as "1.14"."""
    return _RUNTIMES[_opset(model)][0]


def _opset(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _converted(model: onnx.ModelProto, opset: int, picture: np.ndarray) -> onnx.ModelProto | None:
    """The model in an older opset; None where there is no way to, or where it would answer otherwise."""
    import onnx
    from onnx.version_converter import convert_version

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        # At its default this attribute says nothing, but the converter would keep it, and older operators lack it.
        idle = [a for a in node.attribute if a.name == "noop_with_empty_axes" and a.i == 0]
        for attribute in idle:
            node.attribute.remove(attribute)
    try:
        found = convert_version(plain, opset)
        found.ir_version = _RUNTIMES[opset][1]
        onnx.checker.check_model(found, full_check=True)
        before, after = (onnx_session(m.SerializeToString()).run(None, {INPUT: picture}) for m in (model, found))
    except Exception:  # the converter's errors have no class of their own, and all say that this opset is too low
        return None
    same = all(np.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True))
    return found if same else None
