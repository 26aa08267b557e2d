"""Writes a classifier as one ONNX file with its preprocessing inside, and runs such a file with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octfast.deploy.export.lines import INPUT, OUTPUTS
from octfast.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx

    from octfast.deploy.export.classifier import WholeClassifier

log = logging.getLogger("octfast")

# The lowest that torch's exporter writes.
EXPORTED = 18
# The range that a shape may take in the file; the least a side may be is 1.
MAX_SIDE = 65_535
# The layers, which 8 bits make quicker, and what stands between two of them and is best left in 8 bits on the way.
LAYERS = ("Conv", "MatMul", "Gemm")
BETWEEN = ("Relu", "Clip", "MaxPool", "AveragePool", "Add", "Concat")


def need_onnx() -> None:
    """
    Raises
    ------
    UsageError : onnx, onnxscript or onnxruntime is not installed.
    """
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(
            f"--format onnx needs {', '.join(missing)}, which is not installed", "pip install 'octfast[onnx]'"
        )


def example_pictures():
    """Two small colour pictures, uint8 of shape (2, 48, 56, 3): what the exporters trace with."""
    import torch

    return torch.randint(0, 256, (2, 48, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def dynamic_shapes() -> tuple[dict[int, Any]]:
    """How many pictures, of which size, in how many channels: all of it is open."""
    from torch.export import Dim

    sides = {i: Dim(n, min=1, max=MAX_SIDE) for i, n in ((1, "height"), (2, "width"))}
    return ({0: Dim("batch", min=1, max=MAX_SIDE), **sides, 3: Dim("channels", min=1, max=4)},)


def make_onnx(whole: WholeClassifier, metadata: dict[str, str], opset: int | None = None) -> onnx.ModelProto:
    """The ONNX model of a `WholeClassifier`.

    Its input `picture` is uint8 of shape (batch, height, width, channels), channels 1 (grey) or 3 (red, green, blue);
    its output `probabilities` is float32 of shape (batch, classes), of a `WholeBag` (1, classes) with `attention` of
    shape (batch,) after it. Where the model knows how far a scan is from its training scans, the last one, `distance`,
    is float32 of shape (batch,): above 1 is unlike them.

    Parameters
    ----------
    metadata : goes into the file's metadata_props.
    opset : the lowest that the exporter writes where this is None or lower, see `octfast.deploy.export.oldest`.

    Raises
    ------
    UsageError : a network that the exporter cannot follow.
    """
    import onnx
    import torch

    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (example_pictures(),),
                dynamo=True,
                opset_version=max(EXPORTED, opset or 0),
                input_names=[INPUT],
                output_names=list(whole.outputs),
                dynamic_shapes=dynamic_shapes(),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
    except Exception as e:  # exporters meet any Python there is in a network
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UsageError(
            f"this network cannot be written as ONNX: {reason}", "--format torch may follow it, or train another --arch"
        ) from e
    onnx.helper.set_model_props(model, metadata)
    model.producer_name = "octfast"
    onnx.checker.check_model(model)
    return model


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
    with tempfile.TemporaryDirectory(prefix="octfast-") as folder, _quiet_quantiser():
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


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def strip_traces(model: onnx.ModelProto) -> None:
    """Take out what the exporter noted about the machine it ran on: source files, line by line, of every operation."""
    for thing in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        thing.ClearField("doc_string")
        thing.ClearField("metadata_props")


def onnx_runner(file: str | Path | bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 pictures of shape (N, H, W, C) to float32 probabilities (N, classes), by ONNX Runtime.

    Raises
    ------
    DataError : no ONNX file, or one that ONNX Runtime cannot run.
    """
    outputs = onnx_outputs(file)
    return lambda pictures: outputs(pictures)[0]


def onnx_outputs(file: str | Path | bytes) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """As `onnx_runner`, and then the attention (N,) and the distances (N,) where the file gives them.

    Raises
    ------
    DataError : no ONNX file, or one that ONNX Runtime cannot run.
    """
    session = onnx_session(file)
    there = {o.name for o in session.get_outputs()}
    names = [name for name in OUTPUTS if name in there]

    def run(pictures: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(found) for found in session.run(names, {INPUT: pictures}))

    return run


def onnx_session(file: str | Path | bytes) -> Any:
    """An `onnxruntime.InferenceSession` on the processor, which reports to nobody.

    Raises
    ------
    DataError : no ONNX file, or one that ONNX Runtime cannot run.
    """
    import onnxruntime
    import torch

    # Windows alone has any; the call does nothing elsewhere.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # onnxruntime's exceptions have no common class of their own
        reason = " ".join(str(e).split())
        name = "the model" if isinstance(file, bytes) else file
        raise DataError(f"ONNX Runtime cannot run {name}: {reason}", "export it again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks off the terminal; what fails is raised."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
