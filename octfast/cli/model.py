"""`octfast model`: what a network is made of."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Look at networks.", no_args_is_help=True)


@app.callback()
def _model() -> None:
    """Look at networks."""


@app.command()
def summary(
    arch: Annotated[str, typer.Option(help="A torchvision name that fastai knows, or any timm name.")] = "vgg16_bn",
    head: Annotated[str, typer.Option(help="octfast, fastai or article.")] = "octfast",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 4,
    size: Annotated[int, typer.Option(min=32, help="Side of the scans, in pixels.")] = 224,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print the layers of a network with a frozen body, and its parameters.

    Example:

      octfast model summary --arch vgg16 --head article
    """
    from octfast.cli.output import print_json, print_table
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
