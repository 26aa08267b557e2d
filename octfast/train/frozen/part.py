"""FrozenLearner: trains a part of a Learner on stored activations, and lets the whole answer for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.mixup import CutMix, MixHandler
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, join_path_file
from fastcore.basics import noop
from fastcore.foundation import L
from safetensors.torch import load_file, save
from torch import Tensor, nn

from octfast.data.units import Units
from octfast.errors import UsageError
from octfast.files import whole_file
from octfast.model.engine import Engine
from octfast.train.frozen.folds import FoldHeads, FoldLoader
from octfast.train.store.loader import StoreLoader
from octfast.train.store.rows import Rows
from octfast.train.store.store import FeatureStore

AGAIN = "call frozen_learner(learn) again"


class StoredLoaders(DataLoaders):
    """The DataLoaders of stored activations; those of other pictures are the whole Learner's."""

    whole: Learner

    def test_dl(self, test_items, **kwargs):
        """A DataLoader of pictures, which the whole model is to be asked about."""
        return self.whole.dls.test_dl(test_items, **kwargs)


def knows_valid(whole: Learner) -> bool:
    """Whether a Learner's model has learned from its validation scans, as it does beside the heads of folds."""
    return bool(getattr(whole, "knows_valid", False))


class FrozenLearner(Learner):
    """A Learner of what is not frozen of another, trained on stored activations of what is.

    While it fits, its `dls` and `model` are the stored activations and the part that is trained. At any other time they
    are the whole Learner's, which answers for pictures: `predict`, `test_dl`, `show_batch`, `show_results`, `tta`,
    `export`, interpretation. `get_preds()` and `validate()` of the training and validation scans take what is stored.
    `save` writes and `load` reads the whole model, and with folds their heads in a file beside it. What would change
    the frozen part, or needs pictures to train on, is refused.

    Attributes
    ----------
    whole : the Learner that was given to `frozen_learner`.
    part : the modules that are trained, the whole model's own.
    stored : DataLoaders of the stored activations.
    stores : the open stores of the training and the validation scans.
    engine : that ran the frozen part.
    folds : of the training scans, then the validation scans, where heads of a cross-validation are trained too.
    judged : what `out_of_fold` gives where a training a fold gave it, see `octfast.train.block.crossval`.
    units : of the same scans, where the head answers for all scans of a unit together.
    pace : a context in which the part computes fast.
    """

    stores: tuple[FeatureStore, FeatureStore]
    engine: Engine
    loss_func: Any
    folds: np.ndarray | None = None
    judged: np.ndarray | None = None
    units: Units | None = None
    pace: Callable[[], AbstractContextManager] = nullcontext
    _on: tuple[DataLoaders, nn.Module] | None = None
    _closed = False

    def __init__(
        self,
        whole: Learner,
        stored: StoredLoaders,
        part: nn.Sequential,
        *,
        prefix: Sequence[nn.Module],
        digest: Callable[[], str],
        learning: tuple[StoredLoaders, nn.Module] | None = None,
        **kwargs: Any,
    ):
        self.whole, self.stored, self.part = whole, stored, part
        self._learning = learning or (stored, part)
        self._prefix = nn.ModuleList(prefix)
        self._digest, self._body, self._seen = digest, digest(), self._versions()
        super().__init__(whole.dls, whole.model, **kwargs)

    @property
    def dls(self) -> DataLoaders:
        """The whole Learner's; while it fits those of stored activations."""
        return self.whole.dls if self._on is None else self._on[0]

    @dls.setter
    def dls(self, value: DataLoaders) -> None:
        if value is not self.dls:
            raise UsageError(
                "the stored activations are of the scans of other DataLoaders", f"set learn.dls, then {AGAIN}"
            )

    @property
    def model(self) -> nn.Module:
        """The whole model; while it fits the part that is trained."""
        return self.whole.model if self._on is None else self._on[1]

    @model.setter
    def model(self, value: nn.Module) -> None:
        if value is self.model:
            return
        if self._on is None:
            raise UsageError("the stored activations are those of another model", f"set learn.model, then {AGAIN}")
        # fastai's callbacks for several devices wrap what is trained, and unwrap it when the fit ends.
        self._on = self._on[0], value

    @property
    def oct(self) -> Any:
        """What the model is made of, see `OctParts`."""
        return self.whole.oct

    def check(self) -> None:
        """
        Raises
        ------
        UsageError : the stored activations are closed, or no longer those of the frozen part.
        """
        if self._closed:
            raise UsageError("the stored activations of this Learner are closed", AGAIN)
        if self._seen != (now := self._versions()):
            if self._digest() != self._body:
                raise UsageError("the frozen part has changed since its activations were stored", AGAIN)
            self._seen = now

    @contextmanager
    def _features(self, pair: tuple[DataLoaders, nn.Module]) -> Iterator[None]:
        self.check()
        before, self._on = self._on, pair
        try:
            with self.pace():
                yield
        finally:
            self._on = before

    def _versions(self) -> list[int]:
        """Changes when a tensor of the frozen part is written to."""
        return [t._version for t in (*self._prefix.parameters(), *self._prefix.buffers())]

    def create_opt(self):
        with self._features(self._learning):
            super().create_opt()

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Fit the part on the stored activations.

        Raises
        ------
        UsageError : a callback that needs pictures, or that mixes scans of several folds.
        """
        for cb in [*self.cbs, *L(cbs)]:
            self._refuse_pictures(cb)
        loss = self.loss_func
        try:
            with self._features(self._learning):
                # However it ends: with folds the whole model's head learns from the validation scans, too.
                self.whole.knows_valid = self._fold_heads() is not None or knows_valid(self.whole)
                super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        except BaseException:
            # MixUp replaces it while it trains, and an error would leave it so.
            self.loss_func = loss
            raise

    def lr_find(self, *args, **kwargs):
        """fastai's, on the stored activations."""
        with self._features(self._learning):
            return super().lr_find(*args, **kwargs)

    def fine_tune(self, *args, **kwargs):
        """Refused: it trains the frozen part."""
        raise UsageError("fine_tune trains the frozen part, of which only the activations are here", _TRAIN_WHOLE)

    def freeze_to(self, n: int) -> None:
        """Freeze parameter groups of the whole model up to `n`.

        Raises
        ------
        UsageError : what ran once would have to be trained.
        """
        groups = [{id(p) for p in group} for group in self.whole.splitter(self.whole.model)]
        here = {id(p) for p in self.part.parameters()}
        if any(group - here for group in groups[n:]):
            raise UsageError("the frozen part cannot be unfrozen here: only its activations are stored", _TRAIN_WHOLE)
        frozen = sum(not group & here for group in groups)
        super().freeze_to(max(0, (n if n >= 0 else len(groups) + n) - frozen))

    def validate(self, ds_idx=1, dl=None, cbs=None):
        """Loss and metrics, of the stored activations or of a DataLoader of pictures."""
        if self._of_pictures(dl):
            with self._quietly():
                return self.whole.validate(ds_idx, dl, cbs)
        with self._features(self._learning if dl is None else self._pair(dl)):
            return super().validate(ds_idx, dl, cbs)

    def get_preds(self, ds_idx=1, dl=None, with_input=False, inner=False, **kwargs):
        """fastai's: of the stored activations, or where `dl` or `with_input` asks for pictures by the whole model."""
        if self._of_pictures(dl) or (dl is None and with_input):
            with self._quietly():
                return self.whole.get_preds(ds_idx, dl, with_input=with_input, **kwargs)
        with self._features(self._pair(dl)):
            return super().get_preds(ds_idx, dl, with_input=with_input, inner=inner, **kwargs)

    def predict(self, item, rm_type_tfms=None, with_input=False):
        """The whole model's answer for a picture."""
        with self._quietly():
            return self.whole.predict(item, rm_type_tfms, with_input)

    def tta(self, *args, **kwargs):
        """The whole model's, over augmented pictures."""
        with self._quietly():
            return self.whole.tta(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Export the whole Learner."""
        self.whole.export(*args, **kwargs)

    def summary(self):
        """Of the whole model."""
        return self.whole.summary()

    def save(self, file, **kwargs):
        """Save the whole model, for `learn.load` too; the heads of folds go into NAME-folds.safetensors beside it."""
        with self._for_files():
            saved = super().save(file, **kwargs)
        if (heads := self._fold_heads()) is not None and isinstance(saved, Path):
            tensors = {name: t.detach().cpu().contiguous().clone() for name, t in heads.state_dict().items()}
            with whole_file(_heads_file(saved)) as part:
                # Through bytes, as its save_file makes files that only their owner can read.
                part.write_bytes(save(tensors))
        return saved

    def load(self, file, device=None, **kwargs):
        """Load what `save` wrote.

        Raises
        ------
        UsageError : this Learner trains folds, and their heads are not beside the file.
        """
        if self.opt is None:
            self.create_opt()
        heads, kept = self._fold_heads(), None
        if heads is not None and not hasattr(file, "read"):
            beside = _heads_file(join_path_file(file, self.path / self.model_dir, ext=".pth"))
            if not beside.is_file():
                raise UsageError(
                    f"{beside.name} is not there: {file} was saved without the heads of the folds",
                    "load it into the Learner that was given to frozen_learner: learn.load(...)",
                )
            kept = load_file(beside)
        with self._for_files():
            super().load(file, device=device, **kwargs)
        if heads is not None and kept is not None:
            heads.load_state_dict(kept)
        return self

    def out_of_fold(self) -> np.ndarray:
        """Logits of the training, then the validation scans by the head of their fold, of shape (n, classes).

        Where the head answers for units, of each scan its logits and its score, of shape (n, classes + 1).
        """
        if self.folds is None:
            raise UsageError("no folds were trained", "frozen_learner(learn, folds=...)")
        if self.judged is not None:
            return self.judged
        if self.units is not None:
            with self._features(self._learning):
                heads: Any = self._learning[1]
                return heads.of_scans(Rows(self.stores), self.folds)
        with self.no_bar(), self.no_logging(), self._features(self._learning):
            outputs, _ = super().get_preds(act=noop)
        return outputs[torch.arange(len(outputs)), torch.tensor(self.folds)].float().cpu().numpy()

    def close(self) -> None:
        """Close the stores; nothing more can be trained then, but the whole model still answers for pictures."""
        self._closed = True
        for store in self.stores:
            store.close()

    def _of_pictures(self, dl: Any) -> bool:
        """Whether a DataLoader, or a list of batches, is of pictures; a list given by a callback is of activations."""
        return dl is not None and not isinstance(dl, StoreLoader) and (self._on is None or isinstance(dl, DataLoader))

    def _pair(self, dl: Any) -> tuple[DataLoaders, nn.Module]:
        of_folds = isinstance(dl, FoldLoader) or (dl is not None and not isinstance(dl, StoreLoader))
        return self._learning if of_folds else (self.stored, self.part)

    @contextmanager
    def _for_files(self) -> Iterator[None]:
        """What is saved: the whole model, but while a rate is sought what is trained."""
        before = self._on
        self._on = self._learning if hasattr(self, "lr_finder") else None
        try:
            yield
        finally:
            self._on = before

    def _fold_heads(self) -> nn.ModuleList | None:
        """The heads of the folds, where there are any and no rate is sought."""
        trained = self._learning[1]
        if not isinstance(trained, FoldHeads) or hasattr(self, "lr_finder"):
            return None
        return trained.heads[:-1]  # the last is the whole model's own

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """The whole Learner without a progress bar where this one has none."""
        with ExitStack() as stack:
            if not hasattr(self, "progress"):
                stack.enter_context(self.whole.no_bar())
            yield

    def _refuse_pictures(self, cb: Any) -> None:
        kind = cb if isinstance(cb, type) else type(cb)
        if issubclass(kind, CutMix):
            raise UsageError(
                "CutMix cuts pictures, and this Learner trains on stored activations",
                "train the whole: learn.fit(..., cbs=CutMix()); or mix activations, with MixUp()",
            )
        if self.folds is not None and issubclass(kind, MixHandler):
            raise UsageError("MixUp mixes scans of different folds", "leave folds out: frozen_learner(learn)")
        if self.folds is not None and (getattr(cb, "trace_model", False) or getattr(cb, "log_preds", False)):
            raise UsageError(
                "TensorBoard cannot draw the heads of several folds",
                "give it trace_model=False, log_preds=False; or leave folds out: frozen_learner(learn)",
            )
        if getattr(cb, "projector", False):
            raise UsageError(
                "the projector shows pictures, and this Learner trains on stored activations",
                "leave projector=True out",
            )


def _heads_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}-folds.safetensors")


def stored_batch(learn: Learner, training: bool, rows: Sequence[int]) -> tuple[Any, tuple[Tensor, ...]]:
    """A DataLoader of pictures, and its batch, of some scans whose activations are stored; to show them.

    Parameters
    ----------
    training : whether they are training scans, else validation scans.
    rows : their places in the data set.
    """
    items = learn.dls[0 if training else 1].items
    chosen = items.iloc[list(rows)] if hasattr(items, "iloc") else [items[i] for i in rows]
    dl = learn.dls.test_dl(chosen, with_labels=True, bs=len(rows), num_workers=0)
    return dl, dl.one_batch()


_TRAIN_WHOLE = (
    "train the Learner that was given to frozen_learner: learn.unfreeze() or learn.fine_tune(...); "
    'or learn = oct_learner(dls, unfreeze="block5"), then frozen_learner(learn), for the last block too'
)
