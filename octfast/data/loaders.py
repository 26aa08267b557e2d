"""The DataBlock: a Scans table becomes fastai DataLoaders with augmentation for OCT."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter, Normalize
from fastai.torch_core import TensorImage, default_device, set_seed
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fasttransform import Transform, compose_tfms

from octfast.data.main_guard import unguarded_script
from octfast.data.prepare import Prepared, prepare
from octfast.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, decode_grey, resize
from octfast.data.scans import class_names
from octfast.files import usable_cores

log = logging.getLogger("octfast")


# Training scans are squeezed to this many times the size, and augmentation brings them down to it: bilinear resampling
# at random places smooths speckle as much as the rest of the way down does in validation.
PRESIZE = 1.5


class BScan(PILImage):
    """A B-scan that fastai can show: decoded as 8-bit grey by `octfast.data.preprocess.decode_grey`."""

    _show_args = {"cmap": "gray"}  # noqa: RUF012

    @classmethod
    def create(cls, fn, **kwargs):
        """A scan from a file, bytes, a PIL image, or an array or tensor that fastai's PILImage takes."""
        if isinstance(fn, str | Path | bytes):
            return cls(decode_grey(fn))
        return cls(decode_grey(PILImage.create(fn, **kwargs)))


class Squeeze(Transform):
    """Resize a scan to size x size without cropping, as `octfast.data.preprocess.resize` does, in three channels."""

    order = 1

    def __init__(self, size: int, split_idx: int | None = None):
        super().__init__(split_idx=split_idx)
        self.size = size

    def encodes(self, x: BScan):
        return BScan(resize(x, self.size).convert("RGB"))


class SqueezeTraining(Squeeze):
    """`Squeeze` for training scans. A class of its own, as a DataBlock keeps one transform of a class."""

    split_idx = 0

    def __init__(self, size: int):
        super().__init__(size, 0)


class OnlyTraining(Transform):
    """Apply batch transforms to training batches alone; fastai's own resample validation by the identity."""

    order, split_idx = 30, 0

    def __init__(self, tfms: Sequence[Transform]):
        super().__init__()
        self.tfms = list(tfms)

    def encodes(self, x: TensorImage):
        return compose_tfms(x, self.tfms, split_idx=0)


def oct_transforms(size: int = 224) -> list:
    """Augmentation for B-scans, by batch: horizontal flip, rotation to 8 degrees, random crop, light changes.

    The crop is fastai's Zoom about a random point, drawn for each scan, and goes with flip and rotation into one
    resampling, from a larger picture where there is one (`PRESIZE`); a second would blur the speckle that validation
    scans have. No vertical flip and no warp: the vitreous is always above, and the thickness of a layer is a finding.
    They act on training batches alone; validation is untouched, not even resampled.
    """
    tfms = aug_transforms(
        do_flip=True,
        flip_vert=False,
        max_rotate=8.0,
        max_zoom=1.15,
        max_warp=0.0,
        max_lighting=0.15,
        p_affine=0.75,
        p_lighting=0.75,
        size=size,
    )
    return [OnlyTraining(tfms)]


def oct_datablock(
    classes: Sequence[str],
    size: int = 224,
    *,
    augment: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> DataBlock:
    """The DataBlock over rows of a Scans table that `oct_dataloaders` uses."""
    return DataBlock(
        blocks=(ImageBlock(cls=BScan), CategoryBlock(vocab=list(classes), sort=False)),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
        item_tfms=[SqueezeTraining(round(PRESIZE * size)), Squeeze(size, 1)] if augment else Squeeze(size),
        batch_tfms=[*(oct_transforms(size) if augment else []), Normalize.from_stats(list(mean), list(std))],
    )


def oct_dataloaders(
    data: str | Path | pd.DataFrame | Prepared,
    *,
    size: int = 224,
    bs: int | None = None,
    valid: str | float = 0.1,
    seed: int = 0,
    drop_leaks: bool = False,
    allow_leaks: bool = False,
    augment: bool = True,
    num_workers: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: str | None = None,
) -> DataLoaders:
    """DataLoaders of the training and validation scans; test scans are never in them.

    Parameters
    ----------
    data : a folder, table or MedMNIST file that `read_data` understands, or a Scans table, see
        `octfast.data.prepare.prepare`; or what that gave, which is taken as it is. In a Scans table that already has
        validation scans `split` is kept; otherwise validation is held out by patient.
    size : the side of a scan, in pixels.
    bs : scans a batch; None takes 64, and fewer where an epoch would have fewer than 16 batches.
    valid : the share of scans to hold out by patient, or "folder" to keep the given validation folder.
    seed : of the held-out patients, the order of training and the augmentation.
    drop_leaks : leave out training and validation scans whose patient or an identical file is in test.
    allow_leaks : warn of patients in two splits instead of refusing them.
    augment : whether to change training scans at random (`oct_transforms`).
    num_workers : processes that decode; None chooses by cores and shared memory. None are started, which is said, from
        a script without `if __name__ == "__main__":` that they would run again.
    mean, std : of the three channels, for samples in 0..1.

    Returns
    -------
    DataLoaders whose batches are (float32 of shape (bs, 3, size, size), class indices of shape (bs,)); `vocab` holds
    the class names in the order of their index, and `scans` the table they were made of.

    Raises
    ------
    DataError : patients stand in two splits and neither `drop_leaks` nor `allow_leaks` is set; or see `prepare`.
    UsageError : see `prepare`.
    """
    if not isinstance(data, Prepared):
        data = prepare(data, valid=valid, seed=seed, drop_leaks=drop_leaks, allow_leaks=allow_leaks)
    scans = data.scans.reset_index(drop=True)
    used = scans[scans["split"] != "test"].reset_index(drop=True)
    used = used.assign(is_valid=used["split"] == "valid")
    bs = batch_size(int((~used["is_valid"]).sum()), bs)
    workers = decoding_workers(size, bs) if num_workers is None else num_workers
    if workers and (script := unguarded_script()):
        workers = 0
        log.warning(
            "%s would run again in every process that decodes: the main process decodes instead; put its main part "
            'below `if __name__ == "__main__":` for several',
            script,
        )
    set_seed(seed)
    block = oct_datablock(class_names(scans), size, augment=augment, mean=mean, std=std)
    device = device or default_device()
    dls = block.dataloaders(used, bs=bs, num_workers=workers, device=device, pin_memory=str(device).startswith("cuda"))
    dls.scans = scans
    return dls


def batch_size(n_train: int, bs: int | None = None) -> int:
    """The batch size for so many training scans; a change to what was asked for is said in the log.

    Where none is asked for: 64, halved down to 8 until an epoch has at least 16 batches, since a head that sees one
    batch an epoch learns nothing, and batch norm needs several scans. fastai drops a last short batch, so a batch is
    never larger than the training set.
    """
    if bs is not None:
        if bs > n_train:
            log.warning("batch size %d is more than the %d training scans: %d is used", bs, n_train, n_train)
        return min(bs, n_train)
    chosen = 64
    while chosen > 8 and n_train < 16 * chosen:
        chosen //= 2
    chosen = max(1, min(chosen, n_train))
    if chosen != 64:
        log.info("batch size %d instead of 64, as there are only %d training scans", chosen, n_train)
    return chosen


def decoding_workers(size: int, bs: int, shm: str | Path = "/dev/shm") -> int:
    """How many decoding processes to use: one a core, to 8; none, said in the log, where shared memory is too small."""
    workers = min(8, usable_cores())
    shm = Path(shm)
    if workers and shm.is_dir():
        # Each worker keeps two batches of three float channels under way.
        needed = workers * 2 * bs * 3 * size * size * 4
        free = shutil.disk_usage(shm).free
        if free < needed:
            log.warning(
                "shared memory is too small for decoding in %d processes (%d MB free, %d MB needed): decoding in the "
                "main process instead",
                workers,
                free >> 20,
                needed >> 20,
            )
            return 0
    return workers
