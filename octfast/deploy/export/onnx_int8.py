"""Turns an ONNX model of a classifier into int8 where it is worth it: the layers of its body, none of the rest."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octfast.deploy.export.onnx import INPUT

if TYPE_CHECKING:
    import onnx

# The layers, which 8 bits make quicker, and what stands between two of them and is best left in 8 bits on the way.
LAYERS = ("Conv", "MatMul", "Gemm")
BETWEEN = ("Relu", "Clip", "MaxPool", "AveragePool", "Add", "Concat")


def make_int8(model: onnx.ModelProto, pictures: Iterable[np.ndarray]) -> onnx.ModelProto:
    """The model with the layers of its body in 8 bits, QDQ as ONNX Runtime has it, its ranges those of the pictures.

    Weights have a scale a channel and 7 bits, since products of 8 by 8 bits overflow on processors without VNNI and
    nobody knows where the file will run. Preprocessing, the pooled statistics behind the last layers and the head stay
    in float32.

    Parameters
    ----------
    model : from `make_onnx`, its traces not yet stripped.
    pictures : to calibrate on, each uint8 of shape (1, H, W, C).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._pictures = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self._pictures, None)
            return None if picture is None else {INPUT: picture}

    chosen = _worth_it(model)
    props = {p.key: p.value for p in model.metadata_props}
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory(prefix="octfast-") as folder, _quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, before)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        done = onnx.load_model(after)
    del done.metadata_props[:]
    onnx.helper.set_model_props(done, props)
    return done


def _worth_it(model: onnx.ModelProto) -> list[str]:
    """The names of the body's operations that are to be run in 8 bits."""
    nodes = [n for n in model.graph.node if n.op_type in LAYERS + BETWEEN and _in_body(n)]
    after = _behind_the_layers(model)
    return [n.name for n in nodes if n.name not in after]


def _in_body(node: onnx.NodeProto) -> bool:
    """Whether the exporter noted that an operation stems from the body of a `WholeClassifier`."""
    return any(p.key == "pkg.torch.onnx.name_scopes" and "'body" in p.value for p in node.metadata_props)


def _behind_the_layers(model: onnx.ModelProto) -> set[str]:
    """The names of the body's operations between its last layers and its end.

    These pool: the deviations from a mean that they work on would be lost in 8 bits.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    start = [i for n in model.graph.node if not _in_body(n) for i in n.input]
    left = [made_by[i] for i in start if i in made_by and _in_body(made_by[i])]
    found: set[str] = set()
    while left:
        node = left.pop()
        if node.op_type not in (*LAYERS, "Relu", "Clip", "MaxPool", "AveragePool") and node.name not in found:
            found.add(node.name)
            left += [made_by[i] for i in node.input if i in made_by and _in_body(made_by[i])]
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
