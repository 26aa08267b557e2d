"""The DataBlock: a Scans table becomes fastai DataLoaders with augmentation for OCT."""

from __future__ import annotations

import copy
import difflib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.data import WeightedDL
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader, ColSplitter, IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage, default_device, set_seed, to_device
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from fastcore.foundation import L
from fasttransform import Pipeline, Transform, compose_tfms
from PIL import Image

from octfast.data.fit import check_fit
from octfast.data.main_guard import unguarded_script
from octfast.data.prepare import Prepared, prepare
from octfast.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, decode_grey, resize, seen
from octfast.data.scans import class_names
from octfast.data.shapes import say_shapes
from octfast.data.workers import decoding_workers, end_with_the_main_process
from octfast.errors import UsageError
from octfast.notices import Note, noted

log = logging.getLogger("octfast")


# Training scans are brought to this many times the size, and augmentation brings them down to it: bilinear resampling
# at random places smooths speckle as much as the rest of the way down does in validation.
PRESIZE = 1.5


class BScan(PILImage):
    """A B-scan that fastai can show: decoded as 8-bit grey by `octfast.data.preprocess.decode_grey`."""

    _show_args = {"cmap": "gray"}  # noqa: RUF012

    @classmethod
    def create(cls, fn, **kwargs):
        """A scan from a file, bytes, a PIL image, or an array or tensor that fastai's PILImage takes."""
        # fastai's own would change the class of a picture that was given, which then could not load its file.
        if isinstance(fn, str | Path | bytes | Image.Image):
            return cls(decode_grey(fn))
        return cls(decode_grey(PILImage.create(fn, **kwargs)))


class OpenScan(Transform):
    """A scan from a path, the bytes of a file, a PIL image, an array or a tensor, as `BScan.create` takes them."""

    # fastai asks for them, to find where in a pipeline something given to `predict` or `test_dl` goes in.
    input_types = (str, Path, bytes, Image.Image, np.ndarray, torch.Tensor)

    def encodes(self, x):
        return BScan.create(x)


class OctDataLoaders(DataLoaders):
    """The DataLoaders of `oct_dataloaders`.

    Attributes
    ----------
    prepared : the scans that they are of, test scans included, what was left out, and their folder.
    notes : the warnings that were said of them.
    """

    prepared: Prepared | None = None
    notes: tuple[Note, ...] = ()

    @property
    def scans(self) -> pd.DataFrame:
        """The Scans table, test scans included."""
        if self.prepared is None:
            raise AttributeError("scans")
        return self.prepared.scans

    def test_dl(self, test_items, rm_type_tfms=None, with_labels: bool = False, **kwargs):
        """A DataLoader of other scans: paths, bytes, PIL images, arrays or tensors, or rows of a Scans table.

        Raises
        ------
        UsageError : no items; or labels are asked of items that have none.
        """
        if not len(test_items):
            raise UsageError("there are no scans in what was given to test_dl", "give a list of files, or a table")
        first = test_items.iloc[0] if hasattr(test_items, "iloc") else test_items[0]
        if with_labels and isinstance(first, OpenScan.input_types):
            raise UsageError(
                f"a {type(first).__name__} has no label",
                "give rows of a table with the columns path and label, as read_scans makes; or leave with_labels out",
            )
        return super().test_dl(test_items, rm_type_tfms=rm_type_tfms, with_labels=with_labels, **kwargs)


class _Fitted(Transform):
    """A transform that brings scans to a square as `octfast.data.fit` has it, by default by squeezing them."""

    fit = "squeeze"

    def __init__(self, split_idx: int | None = None, fit: str = "squeeze"):
        super().__init__(split_idx=split_idx)
        # Kept only where it is another than the default, so that stores of activations made before there was a choice
        # keep their keys, of which the attributes of transforms are a part.
        if check_fit(fit) != type(self).fit:
            self.fit = fit


class Squeeze(_Fitted):
    """Bring a scan to size x size as `octfast.data.preprocess.resize` does, in three channels."""

    order = 1

    def __init__(self, size: int, split_idx: int | None = None, fit: str = "squeeze"):
        super().__init__(split_idx, fit)
        self.size = size

    def encodes(self, x: BScan):
        return BScan(resize(x, self.size, self.fit).convert("RGB"))


class SqueezeTraining(Squeeze):
    """`Squeeze` for training scans. A class of its own, as a DataBlock keeps one transform of a class."""

    split_idx = 0

    def __init__(self, size: int, fit: str = "squeeze"):
        super().__init__(size, 0, fit)


class SqueezeValidation(Squeeze):
    """`Squeeze` for validation scans, beside a user's own transforms of training scans."""

    def __init__(self, size: int, fit: str = "squeeze"):
        super().__init__(size, 1, fit)


class InColour(_Fitted):
    """Three channels of the part of training scans that is seen, before a user's own transforms."""

    order, split_idx = -1, 0

    def __init__(self, fit: str = "squeeze"):
        super().__init__(0, fit)

    def encodes(self, x: BScan):
        return BScan(seen(x, self.fit).convert("RGB"))


class OnlyTraining(Transform):
    """Apply batch transforms to training batches alone; fastai's own resample validation by the identity."""

    order, split_idx = 30, 0

    def __init__(self, tfms: Sequence[Transform]):
        super().__init__()
        self.tfms = list(Pipeline(tfms).fs)

    def encodes(self, x: TensorImage):
        return compose_tfms(x, self.tfms, split_idx=0)


AUGMENT = ("none", "light", "default", "strong")
_STRENGTH: dict[str, dict[str, float]] = {
    "light": {"max_rotate": 3.0, "max_zoom": 1.05, "max_lighting": 0.05, "p_affine": 0.5, "p_lighting": 0.5},
    "default": {"max_rotate": 8.0, "max_zoom": 1.15, "max_lighting": 0.15, "p_affine": 0.75, "p_lighting": 0.75},
    "strong": {"max_rotate": 15.0, "max_zoom": 1.4, "max_lighting": 0.3, "p_affine": 0.9, "p_lighting": 0.9},
}


def oct_transforms(size: int = 224, strength: str = "default") -> list:
    """Augmentation for B-scans, by batch: horizontal flip, rotation, random crop, light changes.

    By default scans are rotated to 8 degrees, light to 3 and strong to 15; zoomed to 1.15, 1.05 and 1.4; lighting
    changes by 0.15, 0.05 and 0.3. The crop is fastai's Zoom about a random point, drawn for each scan, and goes with
    flip and rotation into one resampling, from a larger picture where there is one (`PRESIZE`); a second would blur the
    speckle that validation scans have. No vertical flip and no warp: the vitreous is always above, and the thickness of
    a layer is a finding. They act on training batches alone; validation is untouched, not even resampled.

    Parameters
    ----------
    strength : "light", "default" or "strong"; "none" gives no transforms.

    Raises
    ------
    UsageError : another word.
    """
    if strength not in AUGMENT:
        near = difflib.get_close_matches(strength, AUGMENT, n=1, cutoff=0.3)
        raise UsageError(f"no augmentation named {strength!r}", f"did you mean {(near or ['default'])[0]}?")
    if strength == "none":
        return []
    return [OnlyTraining(aug_transforms(flip_vert=False, max_warp=0.0, size=size, **_STRENGTH[strength]))]


def oct_datablock(
    classes: Sequence[str],
    size: int = 224,
    *,
    fit: str = "squeeze",
    augment: bool | str = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    item_tfms: Any = None,
    batch_tfms: Any = None,
    dl_type: type[TfmdDL] | None = None,
) -> DataBlock:
    """The DataBlock over rows of a Scans table that `oct_dataloaders` uses, which says what its parameters are."""
    strength = augment if isinstance(augment, str) else "default" if augment else "none"
    own = oct_transforms(size, strength)
    given = list(L(batch_tfms))
    norm = next((t for t in given if isinstance(t, Normalize)), None) or Normalize.from_stats(list(mean), list(std))
    given = [t for t in given if t is not norm]
    batch = ([OnlyTraining(given)] if given else []) if batch_tfms is not None else own
    if item_tfms is not None:
        items = [InColour(fit), *(_of_training(t) for t in L(item_tfms)), SqueezeValidation(size, fit)]
    elif own and batch_tfms is None:
        items = [SqueezeTraining(round(PRESIZE * size), fit), Squeeze(size, 1, fit)]
    else:
        items = [Squeeze(size, fit=fit)]
    return DataBlock(
        blocks=(
            TransformBlock(type_tfms=OpenScan(), batch_tfms=IntToFloatTensor),
            CategoryBlock(vocab=list(classes), sort=False),
        ),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
        item_tfms=items,
        batch_tfms=[*batch, norm],
        dl_type=dl_type,
    )


def oct_dataloaders(
    data: str | Path | pd.DataFrame | Prepared,
    *,
    size: int = 224,
    fit: str = "squeeze",
    bs: int | None = None,
    valid: str | float = 0.1,
    seed: int = 0,
    drop_leaks: bool = False,
    allow_leaks: bool = False,
    augment: bool | str = True,
    item_tfms: Any = None,
    batch_tfms: Any = None,
    dl_type: type[TfmdDL] | None = None,
    dl_kwargs: Mapping[str, Any] | None = None,
    wgts: str | Mapping[str, float] | None = None,
    num_workers: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: str | None = None,
    **kwargs: Any,
) -> OctDataLoaders:
    """DataLoaders of the training and validation scans; test scans are never in them.

    Parameters
    ----------
    data : a folder, table or MedMNIST file that `read_data` understands, or a Scans table, see
        `octfast.data.prepare.prepare`; or what that gave, which is taken as it is. In a Scans table that already has
        validation scans `split` is kept; otherwise validation is held out by patient.
    size : the side of a scan, in pixels.
    fit : how scans of any shape become squares: "squeeze" brings each whole to `size` x `size`; "crop" the square in
        its middle, and what lies beside it is not seen, in training as in prediction.
    bs : scans a batch; None takes 64, and fewer where an epoch would have fewer than 16 batches.
    valid : the share of scans to hold out by patient, or "folder" to keep the given validation folder.
    seed : of the held-out patients, the order of training and the augmentation.
    drop_leaks : leave out training and validation scans whose patient or an identical file is in test.
    allow_leaks : warn of patients in two splits instead of refusing them.
    augment : how training scans are changed at random: "none", "light", "default" or "strong" (`oct_transforms`); True
        is "default", False is "none".
    item_tfms, batch_tfms : fastai's transforms in the place of these, such as `Resize(336)` and
        `aug_transforms(size=224)`. They act on training scans alone: validation is prepared as every scan is that the
        model is ever asked about. A Normalize among `batch_tfms` takes the place of `mean` and `std`.
    dl_type : fastai's class of the DataLoaders, such as WeightedDL or PartialDL; `dl_kwargs` is for that of training.
    wgts : with WeightedDL, which it chooses, how often a training scan is drawn: "balanced" draws all classes alike;
        the name of a column of weights; or a weight a class.
    num_workers : processes that decode; None chooses by cores and shared memory. None are started, which is said, from
        a script without `if __name__ == "__main__":` that they would run again.
    mean, std : of the three channels, for samples in 0..1.
    kwargs : for `prepare`: `path_column`, `label_column`, `patient_column`, `split_column`, `patient_from`,
        `label_from`, `splits`, `fold`, `corrections`, `cache`.

    Returns
    -------
    DataLoaders whose batches are (float32 of shape (bs, 3, size, size), class indices of shape (bs,)); `vocab` holds
    the class names in the order of their index, `scans` the table they were made of. `test_dl` takes files, pictures or
    rows of a table.

    Raises
    ------
    DataError : patients stand in two splits and neither `drop_leaks` nor `allow_leaks` is set; or see `prepare`.
    UsageError : see `prepare`; an unknown augmentation or fit; weights that cannot be; transforms that leave training
        scans of another size than `size`.
    """
    check_fit(fit)
    with noted() as notes:
        if not isinstance(data, Prepared):
            data = prepare(data, valid=valid, seed=seed, drop_leaks=drop_leaks, allow_leaks=allow_leaks, **kwargs)
            if fit != "squeeze":
                say_shapes(data.scans, fit)
        elif kwargs:
            raise UsageError(f"{', '.join(kwargs)}: the scans are prepared already", "give these to prepare")
        used = data.scans[data.scans["split"] != "test"].reset_index(drop=True)
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
    own = {"fit": fit, "augment": augment, "mean": mean, "std": std, "item_tfms": item_tfms, "batch_tfms": batch_tfms}
    if wgts is not None:
        dl_type = dl_type or WeightedDL
        dl_kwargs = {"wgts": _weights(used[~used["is_valid"]], wgts), **(dl_kwargs or {})}
    block = oct_datablock(class_names(data.scans), size, **own, dl_type=dl_type)
    device = device or default_device()
    more: dict[str, Any] = {} if dl_kwargs is None else {"dl_kwargs": [dict(dl_kwargs), {}]}
    pinned = str(device).startswith("cuda")
    more |= {"num_workers": workers, "wif": end_with_the_main_process, "pin_memory": pinned}
    made = block.dataloaders(used, bs=bs, device=device, **more)
    dls = OctDataLoaders(*made.loaders, path=made.path, device=made.device)
    dls.prepared, dls.notes = replace(data, scans=data.scans.reset_index(drop=True)), tuple(notes)
    if item_tfms is not None or batch_tfms is not None:
        _check_size(dls, size)
    return dls


def _of_training(tfm: Any) -> Any:
    """A copy of an item transform that is for training alone."""
    own = copy.copy(tfm() if isinstance(tfm, type) else tfm if isinstance(tfm, Transform) else Transform(tfm))
    own.split_idx = 0
    return own


def _check_size(dls: DataLoaders, size: int) -> None:
    """Raise UsageError where a training scan comes out of another size than those of validation."""
    dl = dls.train
    dl.before_iter()
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    shape = tuple(dl.after_batch(to_device(dl.do_batch([dl.do_item(0)]), dl.device))[0].shape[1:])
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if shape != (3, size, size):
        raise UsageError(
            f"the transforms give training scans of shape {shape}, validation scans have (3, {size}, {size})",
            f"end them with one of this size, such as aug_transforms(size={size}), or give another size=",
        )


def _weights(training: pd.DataFrame, wgts: str | Mapping[str, float]) -> np.ndarray:
    """The weight of each training scan, for WeightedDL."""
    labels = training["label"]
    if isinstance(wgts, str) and wgts == "balanced":
        found = 1 / labels.map(labels.value_counts())
    elif isinstance(wgts, str) and wgts in training:
        found = pd.to_numeric(training[wgts], errors="coerce")
    elif isinstance(wgts, Mapping):
        found = labels.map(dict(wgts))
    else:
        raise UsageError(f"wgts is {wgts!r}", 'give "balanced", the name of a column of weights, or a weight a class')
    weights = found.to_numpy(dtype=float)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        first = training[~(np.isfinite(weights) & (weights >= 0))].head(1)
        of = f": {first['path'].iloc[0]} of {first['label'].iloc[0]} has none" if len(first) else ": all are 0"
        raise UsageError(f"wgts are not a weight of 0 or more for each training scan{of}", "correct them")
    return weights


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
