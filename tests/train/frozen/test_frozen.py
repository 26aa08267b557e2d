"""Training on stored activations of a frozen body: the same result as stock fastai, stored once, and reproducible."""

import copy
import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from torch import nn
from torchvision.models import resnet18

from octfast.data.loaders import OnlyTraining, Squeeze, oct_datablock, oct_dataloaders
from octfast.data.phantom.draw import write_phantoms
from octfast.data.readers.folder import read_scans
from octfast.data.scans import class_names
from octfast.errors import UsageError
from octfast.model.engine import Engine, _has_bf16
from octfast.train.callbacks import FrozenEval
from octfast.train.frozen import frozen, views
from octfast.train.frozen.frozen import Unpack, cut_model, frozen_learner
from octfast.train.frozen.views import digest_of_file, seeded
from octfast.train.learner import oct_learner, oct_splitter, unfreeze_to
from octfast.train.store.loader import StoreLoader

SIZE = 64
TRAIN, VALID, REST = 48, 16, 40
REAL_WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "weights" / "vgg16_bn_features.safetensors"
needs_bf16 = pytest.mark.skipif(not _has_bf16(), reason="this CPU does not multiply bf16 in hardware")
HALF = "bf16" if _has_bf16() else "fp32"
# A block of the store is 16 scans on a CPU.
BLOCKS = TRAIN // 16 + -(-VALID // 16)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: these networks are small, and on a busy machine threads that wait for each other are slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A Scans table of phantoms: TRAIN to train on, VALID to validate on, the others for testing."""
    table = read_scans(
        write_phantoms(tmp_path_factory.mktemp("phantoms") / "all", TRAIN + VALID + REST, test=0, size=SIZE)
    )
    splits = np.repeat(["train", "valid", "test"], [TRAIN, VALID, REST])
    table["split"] = np.random.default_rng(0).permutation(splits)
    return table


@pytest.fixture(scope="module")
def template(scans):
    """The body and head that every test starts from: VGG11-BN of random weights, its batch norms calibrated."""
    return oct_learner(loaders(scans), "vgg11_bn", weights="none").model


def loaders(table, **kwargs):
    return oct_dataloaders(
        table, **{"size": SIZE, "bs": 16, "num_workers": 0, "device": "cpu", "allow_leaks": True, **kwargs}
    )


def learner(dls, template, unfreeze="head", dropout=True):
    model = copy.deepcopy(template)
    if not dropout:
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
    kwargs = {"splitter": oct_splitter, "train_bn": False, "metrics": accuracy, "cbs": FrozenEval()}
    return unfreeze_to(Learner(dls, model, CrossEntropyLossFlat(), **kwargs), unfreeze)


def fit(learn, epochs=2, seed=0, lr=1e-3, cbs=None):
    """Fit quietly from a seed; gives what the Recorder noted: a row an epoch."""
    set_seed(seed)
    for dl in getattr(learn, "stored", learn.dls).loaders:
        dl.rng = random.Random(seed)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return [list(map(float, row)) for row in learn.recorder.values]


def everything(store):
    """All numbers of a store, of shape (scans, views, dim)."""
    return np.stack([store.take(np.arange(len(store)), view) for view in range(store.shape[1])], 1)


class BatchLosses(Callback):
    """The loss of every training batch."""

    def __init__(self):
        self.found = []

    def after_loss(self):
        if self.training:
            self.found.append(float(self.loss.detach()))


@pytest.fixture
def passes(monkeypatch):
    """How many pictures the engine was given, call by call; the engine itself runs as ever."""
    seen = []
    call = Engine.__call__

    def counted(self, x):
        seen.append(len(x))
        return call(self, x)

    monkeypatch.setattr(Engine, "__call__", counted)
    return seen


# ---- the same training as without a store


def test_a_store_of_one_view_trains_as_stock_fastai_does_on_the_same_pictures(scans, template, tmp_path):
    dls = loaders(scans)
    learn = learner(dls, template, dropout=False)
    pictures = {}
    # The one view is the scans as they are: prepared like those of validation.
    for name, dl in (("train", dls.test_dl(dls.train.items, with_labels=True)), ("valid", dls.valid)):
        source = frozen.Views(dl, 1, 5, torch.device("cpu"), 1)
        groups = [source.rows(b) for b in range(-(-len(source) // source.block))]
        blocks = [source.augment(source.decode(rows), rows)[0][: len(rows)] for rows in groups]
        labels = [int(y) for y in dl.dataset.tls[-1]]
        pictures[name] = list(zip(torch.cat(blocks), torch.tensor(labels), strict=True))
    stock = Learner(
        DataLoaders(
            DataLoader(pictures["train"], bs=16, shuffle=True, drop_last=True),
            DataLoader(pictures["valid"], bs=16),
        ),
        copy.deepcopy(learn.model),
        CrossEntropyLossFlat(),
        splitter=oct_splitter,
        train_bn=False,
        metrics=accuracy,
        cbs=FrozenEval(),
    )
    stock.freeze()
    fast = frozen_learner(learn, views=1, seed=5, precision="fp32", cache=tmp_path)

    ours, theirs = BatchLosses(), BatchLosses()
    history, expected = fit(fast, 3, cbs=ours), fit(stock, 3, cbs=theirs)

    assert len(ours.found) == 3 * (TRAIN // 16)
    np.testing.assert_allclose(ours.found, theirs.found, rtol=1e-4)
    np.testing.assert_allclose(history, expected, rtol=1e-4)
    for (name, mine), (_, his) in zip(
        learn.model[1].state_dict().items(), stock.model[1].state_dict().items(), strict=True
    ):
        torch.testing.assert_close(mine, his, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def in_both_precisions(learn, table, cache):
    """Class probabilities of a model trained on a bf16 store: in float32 throughout, and with the body in bf16."""
    fast = frozen_learner(learn, views=4, precision="bf16", cache=cache)
    assert fast.engine.precision == "bf16"
    fit(fast, 8, lr=2e-3)
    xs = torch.cat([b[0].as_subclass(torch.Tensor) for b in learn.dls.test_dl(table, bs=32)])
    assert len(xs) >= 100
    model = learn.model.eval()
    with torch.inference_mode():
        full, half = model(xs).softmax(1), model[1](Engine(model[0], "bf16")(xs)).softmax(1)
    assert not torch.equal(full, half)
    return full, half


@pytest.mark.realdata
@needs_bf16
@pytest.mark.skipif(not REAL_WEIGHTS.exists(), reason=f"no {REAL_WEIGHTS}")
def test_bf16_gives_the_probabilities_and_classes_of_float32(scans, tmp_path):
    """Scans of 64 x 64 are the worst case: a map of 2 x 2 averages little of the rounding away."""
    table = scans.assign(split=scans["split"].replace("test", "train"))
    learn = oct_learner(loaders(table), "vgg16_bn", weights=REAL_WEIGHTS)
    full, half = in_both_precisions(learn, scans, tmp_path)
    assert float((full - half).abs().mean()) < 0.005
    assert float(((full - half).abs().amax(1) < 0.02).float().mean()) >= 0.95
    assert float((full - half).abs().max()) < 0.06
    assert float((full.argmax(1) == half.argmax(1)).float().mean()) >= 0.99


@needs_bf16
def test_bf16_of_random_weights_differs_from_float32_in_close_calls_alone(scans, template, tmp_path):
    """The features of an untrained body differ little from scan to scan, so that rounding weighs more in them."""
    full, half = in_both_precisions(learner(loaders(scans), template), scans, tmp_path)
    assert float((full - half).abs().mean()) < 0.02
    first, second = full.topk(2, dim=1).values.T
    clear = first - second > 0.15
    assert clear.float().mean() > 0.5
    assert torch.equal(full.argmax(1)[clear], half.argmax(1)[clear])


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), (HALF, 5e-2)])
def test_the_learner_s_own_model_is_the_trained_one(scans, template, tmp_path, precision, tolerance):
    learn = learner(loaders(scans), template)
    before = copy.deepcopy(learn.model[1].state_dict())
    fast = frozen_learner(learn, views=2, precision=precision, cache=tmp_path)
    fit(fast)
    assert any(not torch.equal(before[k], v) for k, v in learn.model[1].state_dict().items())
    with fast.no_bar(), learn.no_bar():
        stored, targets = fast.get_preds()
        direct, expected = learn.get_preds(dl=learn.dls.valid)
    assert torch.equal(torch.as_tensor(targets), torch.as_tensor(expected))
    assert float((stored - direct).abs().max()) < tolerance


def test_the_frozen_body_is_left_as_it_was(scans, template, tmp_path):
    learn = learner(loaders(scans), template)
    fit(frozen_learner(learn, views=1, precision=HALF, cache=tmp_path))
    for (name, now), (_, was) in zip(
        learn.model[0].state_dict().items(), template[0].state_dict().items(), strict=True
    ):
        assert torch.equal(now, was), name
    assert not any(p.requires_grad for p in learn.model[0].parameters())


# ---- where the model is cut


def test_head_alone_stores_the_pooled_features(scans, template, tmp_path):
    learn = learner(loaders(scans), template)
    _, suffix = cut_model(learn.model)
    assert suffix == list(learn.model[1])
    fast = frozen_learner(learn, views=2, precision=HALF, cache=tmp_path)
    assert fast.stores[0].shape == (TRAIN, 2, 2 * (256 + 512 + 512))
    assert fast.stores[1].shape == (VALID, 1, 2 * (256 + 512 + 512))
    assert {id(p) for p in fast.part.parameters()} == {id(p) for p in learn.model[1].parameters()}


def test_dropout_just_before_the_cut_is_trained_with_not_stored(template):
    body, head = copy.deepcopy(template)
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(2560, 4))
    body.requires_grad_(False)
    prefix, suffix = cut_model(nn.Sequential(body, head))
    assert suffix == list(head)
    assert not any(isinstance(m, nn.Dropout) for m in prefix)


def test_block5_is_trained_on_the_map_before_it_and_the_vectors_pooled_so_far(scans, template, tmp_path):
    dls = loaders(scans)
    learn = learner(dls, template, unfreeze="block5")
    was = copy.deepcopy(learn.model[0].state_dict())
    fast = frozen_learner(learn, views=1, precision="fp32", cache=tmp_path)
    assert isinstance(fast.part[0], Unpack)
    assert fast.part[0].shapes == [(512, 4, 4), (512,), (1024,)]
    assert fast.stores[0].shape == (TRAIN, 1, 512 * 16 + 2 * (256 + 512))
    assert fast.part[1] is learn.model[0][4]
    assert len(fast.splitter(fast.part)) == 2, "the last block and the head keep rates of their own"
    fit(fast, 1, lr=slice(1e-4, 1e-3))
    now = learn.model[0].state_dict()
    for name, tensor in now.items():
        if not name.startswith("4."):
            assert torch.equal(tensor, was[name]), name
    moved = {n for n in learn.model[0][4].state_dict() if not torch.equal(now[f"4.{n}"], was[f"4.{n}"])}
    norms = {m for m, module in learn.model[0][4].named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert moved == {n for n in learn.model[0][4].state_dict() if n.rpartition(".")[0] not in norms}
    with fast.no_bar(), learn.no_bar():
        stored, _ = fast.get_preds()
        direct, _ = learn.get_preds(dl=learn.dls.valid)
    assert float((stored - direct).abs().max()) < 1e-5


def test_a_learner_of_stock_fastai_works_with_its_pooling_in_the_prefix(scans, tmp_path):
    set_seed(0)
    dls = ImageDataLoaders.from_df(
        fitted(scans).assign(path=lambda t: t["path"].str.lstrip("/")),
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(SIZE, method="squish"),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        bs=16,
        num_workers=0,
        device="cpu",
    )
    learn = vision_learner(dls, resnet18, pretrained=False, train_bn=False, metrics=accuracy, cbs=BnFreeze())
    learn.freeze()
    prefix, suffix = cut_model(learn.model)
    assert {"AdaptiveConcatPool2d", "Flatten"} <= {type(m).__name__ for m in prefix}
    assert isinstance(suffix[0], nn.BatchNorm1d)
    was = copy.deepcopy(learn.model[0].state_dict())
    fast = frozen_learner(learn, views=2, precision="fp32", cache=tmp_path)
    assert fast.stores[0].shape == (TRAIN, 2, 1024)
    data = everything(fast.stores[0])
    assert not np.array_equal(data[:, 0], data[:, 1])
    history = fit(fast)
    assert len(history) == 2 and np.isfinite(history).all()
    assert all(torch.equal(tensor, was[name]) for name, tensor in learn.model[0].state_dict().items())
    with fast.no_bar(), learn.no_bar():
        stored, _ = fast.get_preds()
        direct, _ = learn.get_preds(dl=learn.dls.valid)
    assert float((stored - direct).abs().max()) < 1e-4


@pytest.mark.parametrize("arch", [resnet18, "vgg"])
def test_a_body_whose_batch_norms_are_trained_is_refused(scans, template, tmp_path, arch):
    dls = loaders(scans)
    if arch == "vgg":
        learn = Learner(dls, copy.deepcopy(template), CrossEntropyLossFlat(), splitter=oct_splitter)
    else:
        learn = vision_learner(dls, arch, pretrained=False)
    learn.freeze()
    with pytest.raises(UsageError, match="train_bn=False"):
        frozen_learner(learn, views=1, cache=tmp_path)


def test_a_learner_with_nothing_frozen_is_refused(scans, template, tmp_path):
    learn = learner(loaders(scans), template, unfreeze="all")
    with pytest.raises(UsageError, match=r"frozen[\s\S]*learn\.freeze\(\)"):
        frozen_learner(learn, cache=tmp_path)


def test_a_learner_with_everything_frozen_is_refused(scans, template, tmp_path):
    learn = learner(loaders(scans), template)
    learn.model.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing in this model can be trained"):
        frozen_learner(learn, cache=tmp_path)


@pytest.mark.parametrize("views", [0, -1])
def test_less_than_one_view_is_refused(scans, template, tmp_path, views):
    with pytest.raises(UsageError, match="views"):
        frozen_learner(learner(loaders(scans), template), views=views, cache=tmp_path)


# ---- what determines a store, and what does not


@pytest.fixture(scope="module")
def made(scans, template, tmp_path_factory):
    """A store of two views with its numbers, history and cache, for others to be compared with."""
    cache = tmp_path_factory.mktemp("made")
    fast = frozen_learner(learner(loaders(scans), template), views=2, seed=3, precision=HALF, cache=cache, workers=1)
    assert not any(store.warm for store in fast.stores)
    history = fit(fast)
    return {"cache": cache, "data": [everything(s) for s in fast.stores], "history": history, "stores": fast.stores}


def again(made, table, template, cache=None, **kwargs):
    """The same as `made`, but for what is given."""
    dls = kwargs.pop("dls", None) or loaders(table)
    kwargs = {"views": 2, "seed": 3, "precision": HALF, "cache": cache or made["cache"], **kwargs}
    return frozen_learner(learner(dls, template), **kwargs)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_seed_gives_the_same_bits_whatever_the_number_of_workers(made, scans, template, tmp_path, workers):
    fast = again(made, scans, template, tmp_path, workers=workers)
    assert not fast.stores[0].warm
    for store, expected, old in zip(fast.stores, made["data"], made["stores"], strict=True):
        assert store.spec.hash == old.spec.hash
        assert np.array_equal(everything(store), expected)
    assert fit(fast) == made["history"]


def test_views_differ_and_validation_is_read_once(made):
    train, valid = made["data"]
    assert train.shape[1] == 2 and valid.shape[1] == 1
    assert not np.array_equal(train[:, 0], train[:, 1])


def test_a_second_call_does_not_run_the_body_over_the_scans_again(made, scans, template, passes):
    fast = again(made, scans, template)
    assert [store.warm for store in fast.stores] == [True, True]
    assert passes == []
    assert fit(fast) == made["history"]


def test_other_epochs_rates_heads_and_batch_sizes_use_the_same_store(made, scans, template, passes):
    head = nn.Sequential(nn.BatchNorm1d(2560), nn.Linear(2560, 4))
    other = nn.Sequential(copy.deepcopy(template[0]), head)
    fast = again(made, scans, other, bs=8)
    assert fast.stores[0].warm and fast.stores[1].warm and passes == []
    assert fast.stored.train.bs == 8
    fit(fast, 3, lr=1e-2)


def test_the_same_files_in_another_folder_are_the_same_store(made, scans, template, tmp_path):
    moved = scans.copy()
    for i, path in enumerate(scans["path"]):
        to = tmp_path / "elsewhere" / f"{i:04d}.jpeg"
        to.parent.mkdir(exist_ok=True)
        shutil.copy(path, to)
        moved.loc[i, "path"] = str(to)
    fast = again(made, moved, template)
    assert fast.stores[0].warm and fast.stores[1].warm


def test_another_file_content_is_another_store(made, scans, template, tmp_path):
    at = scans.index[scans["split"] == "train"][-1]
    changed = scans.copy()
    changed.loc[at, "path"] = str(shutil.copy(scans.loc[at - 1, "path"], tmp_path / "other.jpeg"))
    fast = again(made, changed, template)
    assert not fast.stores[0].warm
    assert fast.stores[1].warm, "the validation files are the same"


def test_a_file_put_in_anothers_place_with_its_date_is_seen_to_be_another(scans, tmp_path):
    """Within one process, which reads an unchanged file once."""
    one, other = (Path(scans.loc[i, "path"]).read_bytes() for i in (0, 1))
    size = max(len(one), len(other))
    file, coming = tmp_path / "a.jpeg", tmp_path / "b.jpeg"
    file.write_bytes(one.ljust(size, b"\0"))
    first = digest_of_file(file)
    coming.write_bytes(other.ljust(size, b"\0"))
    shutil.copystat(file, coming)
    coming.replace(file)
    assert digest_of_file(file) == hashlib.sha256(file.read_bytes()).digest() != first


def test_another_seed_is_another_store_of_the_training_scans_alone(made, scans, template):
    fast = again(made, scans, template, seed=4)
    assert not fast.stores[0].warm
    assert fast.stores[1].warm
    assert not np.array_equal(everything(fast.stores[0]), made["data"][0])


def test_another_number_of_views_begins_with_the_same_views(made, scans, template):
    fast = again(made, scans, template, views=3)
    assert not fast.stores[0].warm
    assert np.array_equal(everything(fast.stores[0])[:, :2], made["data"][0][:, :2])


def test_one_view_is_the_scans_as_they_are(made, scans, template):
    fast = again(made, scans, template, views=1)
    plain = everything(fast.stores[0])[:, 0]
    assert not np.array_equal(plain, made["data"][0][:, 0])
    # Another seed of the augmentation changes nothing, so that the store serves it too.
    assert np.array_equal(everything(again(made, scans, template, views=1, seed=99).stores[0])[:, 0], plain)


def test_other_body_weights_are_another_store(made, scans, template):
    other = copy.deepcopy(template)
    with torch.no_grad():
        other[0][1][0].weight[0, 0, 0, 0] += 1e-3
    fast = again(made, scans, other)
    assert not fast.stores[0].warm and not fast.stores[1].warm


def test_another_batch_norm_statistic_is_another_store(made, scans, template):
    other = copy.deepcopy(template)
    next(m for m in other[0].modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] += 1e-3
    assert not again(made, scans, other).stores[0].warm


def fitted(table):
    """The scans that are not for testing, as octfast's DataBlock takes them."""
    return table[table["split"] != "test"].assign(is_valid=lambda t: t["split"] == "valid").reset_index(drop=True)


def augmented(table, **kwargs):
    """DataLoaders as octfast's, but for parameters of the augmentation."""
    given = {"max_rotate": 8.0, "max_warp": 0.0, "max_zoom": 1.05, "max_lighting": 0.15, "p_lighting": 0.75}
    tfms = aug_transforms(**{**given, "p_affine": 0.75, "size": SIZE, "min_scale": 0.85, **kwargs})
    block = oct_datablock(class_names(table), SIZE)
    norm = next(t for t in loaders(table).train.after_batch.fs if isinstance(t, Normalize))
    block = block.new(batch_tfms=[OnlyTraining(tfms), Normalize.from_stats(norm.mean.flatten(), norm.std.flatten())])
    return block.dataloaders(fitted(table), bs=16, num_workers=0, device="cpu")


@pytest.mark.parametrize("changed", [{"max_rotate": 9.0}, {"max_lighting": 0.16}, {"p_affine": 0.751}])
def test_another_parameter_of_the_augmentation_is_another_store(made, scans, template, tmp_path, changed):
    first = again(made, scans, template, tmp_path, dls=augmented(scans), views=2)
    same = again(made, scans, template, tmp_path, dls=augmented(scans), views=2)
    other = again(made, scans, template, tmp_path, dls=augmented(scans, **changed), views=2)
    assert not first.stores[0].warm and same.stores[0].warm
    assert not other.stores[0].warm
    assert other.stores[0].spec.hash != first.stores[0].spec.hash


def test_another_size_of_scan_and_no_augmentation_are_other_stores(made, scans, template):
    assert not again(made, scans, template, dls=loaders(scans, augment=False)).stores[0].warm
    assert not again(made, scans, template, dls=loaders(scans, size=48)).stores[1].warm


def test_item_transforms_that_draw_at_random_are_drawn_from_the_seed(scans, template, tmp_path):
    block = oct_datablock(class_names(scans), SIZE, augment=False).new(
        item_tfms=[Resize(SIZE * 3 // 4), Squeeze(SIZE)], batch_tfms=[]
    )
    table = fitted(scans)
    stores = []
    for name, workers in (("a", 1), ("b", 4)):
        dls = block.dataloaders(table, bs=16, num_workers=0, device="cpu")
        fast = frozen_learner(learner(dls, template), views=2, precision=HALF, cache=tmp_path / name, workers=workers)
        stores.append(everything(fast.stores[0]))
    assert np.array_equal(*stores)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("auto", "float16"), (HALF, None)])
def test_float32_is_stored_when_asked_for_and_half_precision_otherwise(scans, template, tmp_path, precision, dtype):
    fast = frozen_learner(learner(loaders(scans), template), views=1, precision=precision, cache=tmp_path)
    dtype = dtype or ("float32" if precision == "fp32" else "float16")
    assert fast.stores[0].spec.dtype == dtype
    assert fast.stores[0].take(np.arange(2), 0).dtype == np.dtype(dtype)
    assert fast.stored.one_batch()[0].dtype == torch.float32


# ---- interruption


class StoppedError(Exception):
    pass


def test_an_interrupted_fill_goes_on_where_it_stopped_and_ends_the_same(
    made, scans, template, tmp_path, monkeypatch, passes
):
    read = views.Views.decode

    def dies(self, rows):
        # Blocks are of neighbours, unlike the few scans that stand in a key.
        if self.dl.split_idx == 0 and rows[0] >= 16 and list(rows) == list(range(rows[0], rows[0] + 16)):
            raise StoppedError
        return read(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(views.Views, "decode", dies)
        with pytest.raises(StoppedError):
            again(made, scans, template, tmp_path, workers=2)
    before = len(passes)
    fast = again(made, scans, template, tmp_path, workers=2)
    # Probe, then two views of the two training blocks that were left, then the validation blocks.
    assert len(passes) - before == 2 * 2 + (BLOCKS - TRAIN // 16)
    for store, expected in zip(fast.stores, made["data"], strict=True):
        assert np.array_equal(everything(store), expected)
    assert fit(fast) == made["history"]


# ---- batches and views


def test_epoch_e_trains_on_view_e_mod_the_number_of_views(scans, template, tmp_path):
    seen = []

    class Views(Callback):
        def before_batch(self):
            if self.training:
                seen.append((self.epoch, self.dls.train.view))

    fast = frozen_learner(learner(loaders(scans), template), views=2, precision=HALF, cache=tmp_path)
    fit(fast, 5, cbs=Views())
    assert sorted(set(seen)) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_a_store_loader_gives_each_scan_once_with_its_label(made, scans):
    store = made["stores"][0]
    targets = torch.arange(TRAIN)
    dl = StoreLoader(store, targets, bs=16, shuffle=True, drop_last=True, device=torch.device("cpu"))
    batches = list(dl)
    assert [len(y) for _, y in batches] == [16] * (TRAIN // 16)
    ys = torch.cat([torch.as_tensor(y) for _, y in batches])
    assert sorted(ys.tolist()) == list(range(TRAIN))
    xs = torch.cat([x for x, _ in batches])
    np.testing.assert_array_equal(xs.numpy(), made["data"][0][ys.numpy(), 0].astype(np.float32))


def test_labels_follow_the_scans(scans, template, tmp_path):
    dls = loaders(scans)
    fast = frozen_learner(learner(dls, template), views=1, precision=HALF, cache=tmp_path)
    expected = [dls.vocab.o2i[label] for label in scans[scans["split"] == "train"]["label"]]
    assert fast.stored.train.targets.tolist() == expected
    assert list(fast.stored.vocab) == class_names(scans)


def test_drawing_from_a_seed_leaves_the_global_state_alone():
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(1, 2, 3):
        first = random.random(), np.random.rand(), float(torch.rand(()))
    with seeded(1, 2, 3):
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == first
    with seeded(1, 2, 4):
        assert (random.random(), np.random.rand(), float(torch.rand(()))) != first
    assert state[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(state[2], torch.get_rng_state())


def test_making_a_frozen_learner_leaves_the_global_random_state_alone(scans, template, tmp_path):
    """Otherwise a cold and a warm run of one seed, or the first and second run of a process, would differ."""
    learn = learner(loaders(scans), template)
    after = []
    for _ in range(2):
        set_seed(1)
        frozen_learner(learn, views=1, precision="auto", cache=tmp_path)
        after.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))
    set_seed(1)
    assert torch.equal(after[0][0], torch.get_rng_state())
    assert torch.equal(after[0][0], after[1][0]) and after[0][1:] == after[1][1:]


# ---- mixed precision


@pytest.mark.parametrize(
    "device, modules, pays",
    [
        ("cuda", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2)], True),
        ("cuda", [nn.BatchNorm1d(8), nn.Linear(8, 2)], False),
        ("cpu", [nn.Conv2d(3, 4, 3)], False),
    ],
    ids=["a block on a GPU", "a head of vectors on a GPU", "a block on a CPU"],
)
def test_mixed_precision_is_for_convolutions_on_a_gpu(device, modules, pays):
    assert frozen.pays_mixed_precision(modules, torch.device(device)) is pays


def test_the_last_block_is_trained_in_mixed_precision_where_it_pays(scans, template, tmp_path, monkeypatch):
    """On this machine in float32 all the same: it is the Learner's callbacks and its predictions that are looked at."""
    monkeypatch.setattr(frozen, "pays_mixed_precision", lambda modules, device: True)
    learn = learner(loaders(scans), template, unfreeze="block5")
    fast = frozen_learner(learn, views=1, cache=tmp_path)
    assert fast._grab_cbs(MixedPrecision)
    fast.remove_cb(MixedPrecision)
    fit(fast, epochs=1)
    assert fast.get_preds(ds_idx=1)[0].dtype == torch.float32
    fast.close()
    monkeypatch.undo()
    assert not frozen_learner(learn, views=1, cache=tmp_path)._grab_cbs(MixedPrecision)
