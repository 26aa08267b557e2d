"""TrainConfig: every parameter of a training run, validated when made and saved with the run."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from octfast.data.fit import FITS
from octfast.errors import UsageError

UNFREEZE = ("head", "block5", "all")
BALANCE = ("none", "weights", "sample")
# Of `octfast.data.loaders`, which takes seconds to import.
AUGMENT = ("none", "light", "default", "strong")
LOSSES = ("cross_entropy", "focal")
# Of `octfast.figure`, which imports matplotlib.
FORMATS = ("png", "svg", "pdf")
LEVELS = ("scan", "volume", "eye", "patient")
# Of `octfast.model.pooling`, which imports torch.
POOLINGS = ("attention", "mean", "max", "topk")
TRACKERS = ("tensorboard", "mlflow", "wandb")


def _option(default: Any, help: str, **about: Any) -> Any:
    """A field that is also an option of `octfast train`.

    Parameters
    ----------
    help : a sentence for the command line and for readers of this file.
    about : `least` and `most`, both allowed, or `above`, not allowed, of a number; `hint` for one out of range;
        `choices` of a text; `path=True` for a file or folder.
    """
    return field(default=default, metadata={"help": help, **about})


@dataclass(frozen=True)
class TrainConfig:
    """What `train` does.

    Each field is an option of `octfast train`, which is made from what stands here; `octfast train --help` lists them.
    """

    data: str | None = _option(
        None, "Folder, CSV, TSV or parquet table of scans, or a MedMNIST .npz. None: synthetic phantoms.", path=True
    )
    epochs: int = _option(10, "Passes over the training scans.", least=1)
    lr: float | None = _option(
        *(None, "Highest learning rate of the one-cycle schedule; by default lr_find's."),
        above=0,
        most=10,
        hint="try --lr 0.002, or leave it out",
    )
    bs: int | None = _option(None, "Batch size, of all processes together; by default 64, less on small sets.", least=2)
    # Half of the epochs, since a one-cycle schedule has its best loss at its end, when the rate has come down.
    patience: int | None = _option(
        None, "Epochs without a lower validation loss before stopping; by default half, at least 3.", least=1
    )
    seed: int = _option(0, "Seed of the split, the augmentation, the head and the order of training.", least=0)
    size: int = _option(
        *(224, "Side that scans are brought to, in pixels."),
        least=32,
        most=2048,
        hint="224 is what most bodies were trained at",
    )
    fit: str = _option(
        *("squeeze", "How long scans become squares: squeeze, or crop (the square in the middle; the rest is unseen)."),
        choices=FITS,
    )
    arch: str = _option("vgg16_bn", "A torchvision name that fastai knows, or any timm name.")
    head: str = _option("linear", "linear, root (linear on square roots), octfast (two layers), fastai or article.")
    dropout: float | None = _option(
        None, "Share that the head's dropout drops; by default its own.", least=0, most=0.95
    )
    wd: float | None = _option(None, "Weight decay; by default 0.1 of a linear head, else fastai's.", least=0, most=10)
    balance: str = _option(
        *(
            "none",
            "For unequal classes: none, weights (rare ones count more) or sample (rare ones are drawn more often).",
        ),
        choices=BALANCE,
    )
    loss: str = _option("cross_entropy", "cross_entropy or focal.", choices=LOSSES)
    weights: str = _option("auto", "Pretrained weights: auto, none, or a .safetensors or .pth file.")
    valid: str = _option("0.1", "Share of scans to hold out by patient, or 'folder' to keep the given val folder.")
    minutes: float | None = _option(
        *(None, "Keep the whole training to about so many minutes: with fewer views, then fewer scans."),
        above=0,
        most=100_000,
        hint="for example --minutes 5",
    )
    splits: str | None = _option(None, "CSV of octfast data split: train, valid and test.", path=True)
    fold: int | None = _option(None, "Validate on this fold of --splits; by default its split column.", least=0)
    folds: int | None = _option(
        *(
            None,
            "Folds by patient that judge all training and validation scans, 0 none; by default 5 of a head alone.",
        ),
        least=0,
    )
    random_layers: bool = _option(
        False, "Train --head article though its two frozen 4096-wide layers have no pretrained weights."
    )
    drop_leaks: bool = _option(False, "Leave out scans whose patient or identical file is in test.")
    allow_leaks: bool = _option(False, "Train although some patients are in two splits.")
    level: str | None = _option(
        *(None, "What a label is of, and has one answer: scan, volume, eye or patient; by default chosen, and said."),
        choices=LEVELS,
    )
    pooling: str | None = _option(
        *(None, "How scans become a volume's, eye's or patient's answer: attention (default), mean, max or topk."),
        choices=POOLINGS,
    )
    top_k: int | None = _option(
        None, "Scans that count for a class with --pooling topk; by default 3.", least=1, most=10_000
    )
    corrections: str | None = _option(None, "Labels that octfast review put right: its corrections.csv.", path=True)
    also: str | None = _option(
        *(None, "Further labelled scans for training: labels.csv of octfast review --pool, a table or a folder."),
        path=True,
    )
    path_column: str | None = _option(None, "Column of a table with the files.")
    label_column: str | None = _option(None, "Column with the classes.")
    patient_column: str | None = _option(None, "Column with the patients.")
    split_column: str | None = _option(None, "Column with train, valid or test.")
    patient_from: str | None = _option(
        None, "Where the patient stands: folder, folder:2 (the one above), name, a pattern or a column."
    )
    label_from: str | None = _option(
        None, "Where the class stands: folder, folder:2 (the one above), a pattern or a column."
    )
    out: str | None = _option(None, "Run folder; by default a new one in runs/.", path=True)
    views: int = _option(
        *(1, "Readings of the training scans: 1 as they are, more are augmented, 0 augments anew every epoch."), least=0
    )
    augment: str = _option(
        "default",
        "How training scans are changed at random: none, light, default or strong; at --views 1 they are not.",
        choices=AUGMENT,
    )
    unfreeze: str = _option("head", "What is trained: head, block5 (the last block too) or all.", choices=UNFREEZE)
    engine: str = _option("auto", "What runs the frozen part: auto, torch or openvino (on CPUs, an optional package).")
    precision: str = _option(
        "auto", "Precision of the frozen part: auto, fp32, bf16, fp16 (on a GPU) or int8 (by OpenVINO)."
    )
    device: str = _option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1 or mps.")
    compile: bool = _option(False, "Let torch.compile make kernels: of the frozen part, and of what is trained.")
    deterministic: bool = _option(
        False, "Repeat bit for bit on a GPU too, more slowly; on a CPU a training always repeats."
    )
    cache: str | None = _option(None, "Folder of the stored activations; by default the user's cache.", path=True)
    workers: int | None = _option(None, "Decoding processes or threads; by default chosen.", least=0)
    tracker: str | None = _option(
        *(None, "Curves, options and figures for tensorboard, mlflow or wandb, in the run folder: nothing is sent."),
        choices=TRACKERS,
    )
    format: str = _option("png", "Format of the figures: png, svg or pdf.", choices=FORMATS)
    dpi: int = _option(
        120,
        "Resolution of the figures in dots per inch.",
        least=20,
        most=1200,
        hint="120 is for a screen, 300 for print",
    )

    def __post_init__(self):
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)
        if self.augment in ("light", "strong") and self.views == 1 and self.unfreeze != "all":
            raise UsageError(
                f"--augment {self.augment}: one view is the scans as they are", "add --views 4, or --views 0"
            )
        if self.augment == "none" and self.views > 1 and self.unfreeze != "all":
            raise UsageError(f"--augment none: {self.views} views would be the same", "leave --views out")
        if self.folds == 1:
            raise UsageError("--folds 1: one fold holds everything out", "give 2 or more, or 0 for none")
        if self.folds and (why := self._no_folds):
            raise UsageError(
                f"--folds {self.folds}: {why}, and nothing that is stored can be trained on a fold at a time",
                f"leave it out; or: octfast data split DATA --folds {self.folds} --out splits.csv, then octfast train "
                "--splits splits.csv --fold 0, --fold 1 and so on, then octfast interpret --folds RUN --folds RUN",
            )
        if self.level not in (None, "scan") and self.against_units:
            raise UsageError(f"--level {self.level} does not go with {self.against_units}", "leave one of them out")
        if self.top_k is not None and self.pooling != "topk":
            raise UsageError(f"--top-k {self.top_k}: it goes with --pooling topk", "leave it out, or add that")
        if self.pooling is not None and self.level == "scan":
            raise UsageError(
                f"--pooling {self.pooling}: with --level scan each scan has its own answer", "leave one of them out"
            )
        if self.fold is not None and self.splits is None:
            raise UsageError(f"--fold {self.fold}: of which folds?", "add --splits splits.csv, from octfast data split")

    @property
    def against_units(self) -> str:
        """What a model that answers for several scans together cannot be trained with, and why; empty if nothing."""
        wrong = [
            (self.unfreeze != "head", f"--unfreeze {self.unfreeze}", "units are learned from what is stored of scans"),
            (self.views == 0, "--views 0", "units are learned from what is stored of scans"),
            (self.folds == 0, "--folds 0", "units are judged by the heads of folds"),
            (self.balance == "sample", "--balance sample", "units are not drawn by weight"),
            (self.head in ("fastai", "article"), f"--head {self.head}", "its features are not those of one layer"),
        ]
        return next((f"{option}: {why}" for is_wrong, option, why in wrong if is_wrong), "")

    @property
    def chosen_pooling(self) -> str:
        """`pooling`, or its default; of no account at the level of scans."""
        return self.pooling or "attention"

    @property
    def columns(self) -> dict[str, Any]:
        """The named columns of a table, and where patients and classes stand, as `read_data` takes them."""
        names = [*(f"{c}_column" for c in ("path", "label", "patient", "split")), "patient_from", "label_from"]
        return {name: getattr(self, name) for name in names}

    @property
    def _no_folds(self) -> str:
        """Why this training has no folds of its own; empty where it can have some."""
        if self.unfreeze == "all":
            return "--unfreeze all trains the whole network"
        if not self.views:
            return "--views 0 augments anew every epoch"
        return "--head article is trained by another loss" if self.head == "article" else ""

    @property
    def chosen_folds(self) -> int:
        """`folds`, or its default: 5 where each costs a head, 0 where it costs a training of the last block."""
        if self.folds is not None:
            return self.folds
        return 5 if self.unfreeze == "head" and not self._no_folds else 0

    @property
    def chosen_patience(self) -> int:
        """`patience`, or its default by the number of epochs."""
        return self.patience or max(3, -(-self.epochs // 2))

    @property
    def of_frozen(self) -> dict[str, Any]:
        """What `frozen_learner` and `frozen_part` take of it, whatever is trained on what they store."""
        names = ("seed", "engine", "precision", "cache", "workers")
        return {**{name: getattr(self, name) for name in names}, "compiled": self.compile}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def range_text(about: Any) -> str:
    """The range of a number in words, by the metadata of its field; empty where any number will do."""
    least, most = about.get("least"), about.get("most")
    if "above" in about:
        return f"above {about['above']}" + (f" and up to {most:,}" if most is not None else "")
    if least is not None and most is not None:
        return f"{least:,} to {most:,}"
    return f"{least:,} or more" if least is not None else ""


def _check(name: str, value: Any, about: Any) -> None:
    """Raise UsageError where a value does not suit the metadata of its field."""
    if value is None:
        return
    if choices := about.get("choices"):
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.3) or [", ".join(choices)]
            raise UsageError(f"--{name} {value}: unknown", f"did you mean {near[0]}?")
    elif words := range_text(about):
        # Said of what is inside the range, as a NaN is on neither side of it.
        inside = value > about["above"] if "above" in about else value >= about["least"]
        if not (inside and value <= about.get("most", value)):
            raise UsageError(f"--{name} {value}: must be {words}", about.get("hint", "see octfast train --help"))
