"""`octfast export`: a trained model as one file with its preprocessing inside, for programs without octfast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def export(
    bundle: options.Bundle,
    format: Annotated[str, typer.Option("--format", "-f", help="onnx, or torch for a torch.export program.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; by default beside the folder of the model.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="The body in float16: half the size, made for a GPU.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="The body in 8 bits: a quarter of the size, quicker on a CPU. ONNX alone.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 15 to 23; by default the lowest that can express the network.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Folder or table of scans to compare on; by default the run's validation scans, else phantoms."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder or table of scans to calibrate --int8 on; by default the run's training scans."),
    ] = None,
    scans: Annotated[int, typer.Option(min=1, help="How many scans to compare on, and to calibrate on.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    weights: options.StockWeights = None,
    as_json: options.Json = False,
) -> None:
    """Write a trained model as one file with its preprocessing inside.

    The file takes uint8 pictures of any size, of shape (batch, height, width, channels) with 1 (grey) or 3 channels
    (red, green, blue), and gives the probabilities of the classes, the temperature applied. Its metadata hold the
    names of the classes and where the model comes from. It is compared with torch on scans, and kept only if they
    agree: each probability within .001, with --half within .02; with --int8 the same class for 9 scans in 10. Where
    the model knows how far a scan is from its training scans, that is a second output, compared likewise: above 1 is
    unlike them.

    Of a model that answers for a whole volume, eye or patient the batch is all its scans, of one size: the file gives
    the probabilities of the whole and how much each scan counts. Of a model of single scans that keeps how those of an
    eye are put together, the metadata (units) and the printed lines say how.

    Examples:

      octfast export runs/latest

      octfast export runs/latest --int8 --out oct-int8.onnx

      octfast export model/ --format torch --check my-scans/
    """
    from octfast.console import print_json
    from octfast.deploy.export.export import export_bundle
    from octfast.notices import NOTICE, SYNTHETIC_NOTE

    done = export_bundle(
        bundle,
        format,
        out,
        half=half,
        int8=int8,
        opset=opset,
        check=check,
        calibration=calibration,
        scans=scans,
        overwrite=overwrite,
        weights=weights,
    )
    if as_json:
        print_json(done.to_dict())
        return
    found = done.agreement
    units = "" if found.units is None else f", {found.units} {done.level}s"
    print(f"{done.file}: {done.format}, {done.precision}, {done.bytes / 1e6:.1f} MB")
    print(
        f"against torch in float32 on {found.source}{units}: probabilities differ by {found.largest:.1e} at most, "
        f"{found.mean:.1e} on average; same class for {found.same:.1%}"
    )
    if found.attention is not None:
        print(f"how much a scan counts differs by {found.attention:.1e} at most")
    if found.accuracy is not None:
        of = "scan" if found.units is None else done.level
        print(f"right on these {of}s: {found.accuracy:.1%} (torch {found.accuracy_torch:.1%})")
    if found.distance is not None:
        print(
            f"distance to the training scans: differs by {found.distance:.1%} at most; the same side of the limit for "
            f"{found.unlike_same:.1%}"
        )
    if done.onnxruntime:
        print(f"runs with onnxruntime {done.onnxruntime} and newer")
    if done.calibration:
        print(f"int8 calibrated on {done.calibration}")
    if done.synthetic:
        print(SYNTHETIC_NOTE)
    print(NOTICE)
    print(f"\nTo run it in its folder, without octfast:\n\n{done.usage()}")
