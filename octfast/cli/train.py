"""`octfast train`: from a folder of scans to a trained model in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, CSV, TSV or parquet table of scans, or a MedMNIST .npz. None: synthetic phantoms."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training scans.")] = 10,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; by default lr_find's.")] = None,
    bs: Annotated[int | None, typer.Option(help="Scans a batch; by default 64, fewer on small sets.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without a lower validation loss before stopping; by default half.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the augmentation, the head and the order.")] = 0,
    size: Annotated[int, typer.Option(help="Side that scans are squeezed to, in pixels.")] = 224,
    arch: Annotated[str, typer.Option(help="A torchvision name that fastai knows, or any timm name.")] = "vgg16_bn",
    head: Annotated[str, typer.Option(help="octfast, fastai or article.")] = "octfast",
    weights: Annotated[
        str, typer.Option(help="Pretrained weights: auto, none, or a .safetensors or .pth file.")
    ] = "auto",
    valid: Annotated[
        str, typer.Option(help="Share of scans to hold out by patient, or 'folder' to keep the given val folder.")
    ] = "0.1",
    splits: Annotated[Path | None, typer.Option(help="CSV of octfast data split: train, valid and test.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Validate on this fold of --splits.")] = None,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave out scans whose patient or identical file is in test.")
    ] = False,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Train although patients stand in two splits.")
    ] = False,
    path_column: Annotated[str | None, typer.Option(help="Column of a table with the files.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the classes.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="Column with the patients.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column with train, valid or test.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default a new one in runs/.")] = None,
    views: Annotated[
        int, typer.Option(help="Augmented readings that the frozen part runs on; 0 augments anew every epoch.")
    ] = 4,
    unfreeze: Annotated[str, typer.Option(help="What is trained: head, block5 (the last block too) or all.")] = "head",
    engine: Annotated[str, typer.Option(help="That runs the frozen part: auto, torch or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the frozen part: auto, fp32, bf16, fp16 or int8.")] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the stored activations; by default the user's cache.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Decoding processes or threads; by default chosen.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train a classifier of B-scans on a frozen pretrained body.

    Without DATA it trains on synthetic phantoms, to try the tool out. Test scans are never trained on; validation is
    held out by patient. The model, its history and its predictions are kept in a run folder.

    Examples:

      octfast train --epochs 10

      octfast train OCT2017 --epochs 20 --unfreeze block5 --out runs/first
    """
    from octfast.train.config import TrainConfig

    config = TrainConfig(
        data=None if data is None else str(data),
        path_column=path_column,
        label_column=label_column,
        patient_column=patient_column,
        split_column=split_column,
        splits=None if splits is None else str(splits),
        fold=fold,
        drop_leaks=drop_leaks,
        allow_leaks=allow_leaks,
        epochs=epochs,
        lr=lr,
        bs=bs,
        patience=patience,
        seed=seed,
        size=size,
        arch=arch,
        head=head,
        weights=weights,
        valid=valid,
        out=None if out is None else str(out),
        views=views,
        unfreeze=unfreeze,
        engine=engine,
        precision=precision,
        cache=None if cache is None else str(cache),
        workers=workers,
    )
    from octfast.console import print_json, print_table
    from octfast.model.forward import headline
    from octfast.notices import SYNTHETIC_NOTE
    from octfast.train.job import train_classifier

    run = train_classifier(config)
    about = run.config
    results = {split: headline(table) for split in ("valid", "test") if (table := run.predictions(split)) is not None}
    if as_json:
        print_json({"run": str(run.path), "results": results, "chosen": about["chosen"], "notes": about["notes"]})
        return
    title = f"{about['arch']}, weights of epoch {about['chosen']['best_epoch']} of {len(run.history)}"
    columns = ("split", "scans", "patients", "right", "accuracy", "loss")
    print_table(title, columns, [[split, *(r[c] for c in columns[1:])] for split, r in results.items()])
    if about["data"]["synthetic"]:
        print(SYNTHETIC_NOTE)
    print(f"Run folder: {run.path}")
    print("Next: octfast interpret --top-losses 9, or octfast report --open for a page with all of it")
