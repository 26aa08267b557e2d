"""TrainConfig: every parameter of a training run, validated when made and saved with the run."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octfast.errors import UsageError

UNFREEZE = ("head", "block5", "all")


@dataclass(frozen=True)
class TrainConfig:
    """What `train` does. Each field is an option of `octfast train`.

    Attributes
    ----------
    data : folder of scans, CSV, TSV or parquet table, or MedMNIST .npz file; None trains on synthetic phantoms.
    path_column, label_column, patient_column, split_column : columns of a table; None guesses them.
    splits : CSV of `octfast data split`, which then says what is training, validation and test.
    fold : of that CSV, to validate on; None takes its split column.
    drop_leaks : leave out training and validation scans whose patient or an identical file is in test.
    allow_leaks : train on splits that share patients.
    epochs : passes over the training scans.
    lr : highest learning rate of the one-cycle schedule; None finds one with `lr_find`.
    bs : scans a batch; None takes 64, fewer on small sets.
    patience : epochs without a lower validation loss before stopping; None takes half the epochs, at least 3, since a
        one-cycle schedule earns its best loss at its end, when the rate has come down.
    seed : of the split, the augmentation, the head and the order of training.
    size : side that scans are squeezed to, in pixels.
    arch, head : the network, see `octfast.model`.
    weights : "auto", "none" or a file of pretrained weights.
    valid : share of scans held out by patient, or "folder" to keep the given validation folder.
    out : run folder; None makes one under runs/.
    views : augmented readings of the training set that the frozen part is run on; 0 augments anew every epoch.
    unfreeze : what is trained: "head", "block5" (the last block too) or "all".
    engine : that runs the frozen part: "auto", "torch" or "openvino" (an extra, on CPUs).
    precision : of the frozen part: "auto", "fp32", "bf16", "fp16" (on a GPU) or "int8" (by OpenVINO).
    cache : folder of the feature stores; None takes the user's cache folder.
    workers : decoding processes or threads; None chooses.
    """

    data: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    split_column: str | None = None
    splits: str | None = None
    fold: int | None = None
    drop_leaks: bool = False
    allow_leaks: bool = False
    epochs: int = 10
    lr: float | None = None
    bs: int | None = None
    patience: int | None = None
    seed: int = 0
    size: int = 224
    arch: str = "vgg16_bn"
    head: str = "octfast"
    weights: str = "auto"
    valid: str = "0.1"
    out: str | None = None
    views: int = 4
    unfreeze: str = "head"
    engine: str = "auto"
    precision: str = "auto"
    cache: str | None = None
    workers: int | None = None

    def __post_init__(self):
        _at_least("epochs", self.epochs, 1)
        _at_least("views", self.views, 0)
        _at_least("size", self.size, 32)
        if self.size > 2048:
            raise UsageError(f"--size {self.size}: must be 2,048 or less", "224 is what most bodies were trained at")
        _at_least("seed", self.seed, 0)
        for name, least in (("bs", 2), ("patience", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), least)
        if self.lr is not None and not 0 < self.lr <= 10:
            raise UsageError(f"--lr {self.lr}: not a rate above 0 and up to 10", "try --lr 0.002, or leave it out")
        if self.unfreeze not in UNFREEZE:
            near = difflib.get_close_matches(self.unfreeze, UNFREEZE, n=1, cutoff=0.3) or [", ".join(UNFREEZE)]
            raise UsageError(f"--unfreeze {self.unfreeze}: unknown", f"did you mean {near[0]}?")

        if self.fold is not None and self.splits is None:
            raise UsageError(f"--fold {self.fold}: of which folds?", "add --splits splits.csv, from octfast data split")

    @property
    def columns(self) -> dict[str, Any]:
        """The named columns of a table, as `read_data` takes them."""
        return {f"{c}_column": getattr(self, f"{c}_column") for c in ("path", "label", "patient", "split")}

    @property
    def chosen_patience(self) -> int:
        """`patience`, or its default by the number of epochs."""
        return self.patience or max(3, -(-self.epochs // 2))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"--{name} {value}: must be {least} or more", "see octfast train --help")
