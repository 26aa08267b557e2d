"""Writes a classifier as one ONNX file with its preprocessing inside, and runs such a file with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octfast.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx
    from torch import nn

log = logging.getLogger("octfast")

INPUT, OUTPUT = "picture", "probabilities"
OPSETS = (18, 19, 20, 21, 22, 23)
# The range that a shape may take in the file; the least a side may be is 1.
MAX_SIDE = 65_535


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


def make_onnx(whole: nn.Module, metadata: dict[str, str], opset: int = 18) -> onnx.ModelProto:
    """The ONNX model of a `WholeClassifier`.

    Its input `picture` is uint8 of shape (batch, height, width, channels), channels 1 (grey) or 3 (red, green, blue);
    its output `probabilities` is float32 of shape (batch, classes).

    Parameters
    ----------
    metadata : goes into the file's metadata_props.
    opset : one of `OPSETS`.

    Raises
    ------
    UsageError : an opset that is not offered, or a network that the exporter cannot follow.
    """
    import torch

    if opset not in OPSETS:
        raise UsageError(f"--opset {opset}: not one that can be written", f"one of {', '.join(map(str, OPSETS))}")
    import onnx

    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (example_pictures(),),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
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
    session = onnx_session(file)

    def run(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: pictures})[0])

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


def usage(file: Path, classes: Sequence[str]) -> str:
    """Python lines that run the file without octfast."""
    name = json.dumps(file.name, ensure_ascii=False)
    return f"""import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({name})
scan = np.asarray(Image.open("scan.jpeg").convert("L"))[None, :, :, None]  # uint8 (batch, height, width, channels)
p = session.run(None, {{"{INPUT}": scan}})[0][0].tolist()
classes = {json.dumps(list(classes), ensure_ascii=False)}  # also in session.get_modelmeta().custom_metadata_map
print(dict(zip(classes, p)))"""


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
