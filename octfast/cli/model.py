"""`octfast model`: what a network is made of, what a trained one holds, and a small variant of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options

app = typer.Typer(help="Look at networks and trained models.", no_args_is_help=True)


@app.callback()
def _model() -> None:
    """Look at networks and trained models."""


@app.command()
def summary(
    arch: options.Arch = "vgg16_bn",
    head: options.Head = "linear",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 4,
    size: Annotated[int, typer.Option(min=32, help="Side of the scans, in pixels.")] = 224,
    as_json: options.Json = False,
) -> None:
    """Print the layers of a network with a frozen body, and its parameters.

    Example:

      octfast model summary --arch vgg16 --head article
    """
    from octfast.console import print_json, print_table
    from octfast.model.summary import summarise

    found = summarise(arch, head, classes, size)
    sums = {"total": found.total, "trainable": found.trainable, "convolutions": found.convolutions}
    if as_json:
        print_json({"arch": arch, "head": head, **sums, "layers": found.layers.to_dict("records")})
        return
    print_table(
        f"{arch} with the head {head}, {size} x {size}, {classes} classes",
        list(found.layers.columns),
        found.layers.itertuples(index=False),
    )
    print(
        f"{found.total:,} parameters in all, {found.trainable:,} of them trainable, "
        f"{found.convolutions:,} in the convolutions"
    )


@app.command()
def show(
    bundle: options.Bundle,
    as_json: options.Json = False,
) -> None:
    """Print what a trained model is: classes, preprocessing, calibration, provenance, tensors.

    Reads octfast.json and the header of model.safetensors, and checks them; the model is not loaded.

    Examples:

      octfast model show runs/latest

      octfast model show my-model --json
    """
    from octfast.console import print_json, print_table
    from octfast.model.bundle.show import describe_bundle
    from octfast.notices import SYNTHETIC_NOTE

    found = describe_bundle(bundle)
    if as_json:
        print_json(found.to_dict())
        return
    print_table(str(found.folder), ["what", "value"], found.rows())
    if found.info.synthetic:
        print(SYNTHETIC_NOTE)
    print("Not a medical device.")


@app.command()
def slim(
    bundle: options.Bundle,
    out: Annotated[Path, typer.Option(help="Folder of the slim one; it must not exist, or be empty.")],
    weights: options.StockWeights = None,
) -> None:
    """Write a small variant of a trained model, without what is as in the stock weights.

    It is a few MB instead of 60, and can be loaded where the same stock weights are on the machine: they are named by
    their SHA-256, and never fetched.

    Example:

      octfast model slim runs/latest --out my-model
    """
    from octfast.model.bundle.read import find_bundle
    from octfast.model.bundle.show import describe_bundle, stock_of
    from octfast.model.bundle.write import slim_bundle

    whole = find_bundle(bundle)
    before, after = describe_bundle(whole), describe_bundle(slim_bundle(whole, out, weights))
    print(f"{after.folder}: {after.bytes / 1e6:,.1f} MB instead of {before.bytes / 1e6:,.1f} MB")
    print(f"Where it is loaded, it needs {stock_of(after.info)}.")
