from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.data import PartialDL, WeightedDL
from fastai.data.transforms import Normalize
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage
from fastcore.foundation import L
from fasttransform import ItemTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octfast.data.loaders import BScan, batch_size, oct_dataloaders, oct_transforms
from octfast.data.readers.folder import read_scans
from octfast.data.splits.hold_out import shared_patients
from octfast.data.workers import decoding_workers
from octfast.errors import DataError, UsageError


def loaders(data, **kwargs):
    return oct_dataloaders(data, **{"size": 64, "valid": 0.25, "num_workers": 0, "device": "cpu", **kwargs})


def test_validation_is_held_out_by_patient_and_test_scans_are_in_no_loader(phantoms):
    dls = loaders(phantoms)
    scans = read_scans(phantoms)
    test = set(scans.loc[scans["split"] == "test", "path"])
    train, valid = set(dls.train.items["path"]), set(dls.valid.items["path"])
    assert test and train | valid == set(scans["path"]) - test and not train & valid
    assert not set(dls.train.items["patient"]) & set(dls.valid.items["patient"])
    assert set(dls.scans["path"]) == set(scans["path"])


def test_by_default_about_a_tenth_is_held_out(phantoms):
    dls = oct_dataloaders(phantoms, size=32, num_workers=0, device="cpu")
    assert 3 <= len(dls.valid_ds) <= 10 and len(dls.valid_ds) + len(dls.train_ds) == 56


def test_a_val_folder_is_kept_only_if_asked(own_phantoms):
    folder = own_phantoms / "val" / "CNV"
    folder.mkdir(parents=True)
    (own_phantoms / "val" / "DME").mkdir()
    for label in ("CNV", "DME"):
        file = min((own_phantoms / "train" / label).iterdir())
        shutil.move(file, own_phantoms / "val" / label / file.name)
    kept = loaders(own_phantoms, valid="folder", allow_leaks=True)
    assert [p.split("/")[-3] for p in kept.valid.items["path"]] == ["val", "val"]
    assert len(loaders(own_phantoms).valid_ds) > 2


def test_batches_and_the_order_of_the_classes(phantoms):
    dls = loaders(phantoms, bs=6)
    x, y = dls.one_batch()
    assert x.shape == (6, 3, 64, 64) and x.dtype == torch.float32 and y.shape == (6,)
    assert list(dls.vocab) == ["CNV", "DME", "DRUSEN", "NORMAL"] and dls.c == 4
    labels = [dls.vocab[int(y)] for _, y in dls.valid_ds]
    assert labels == list(dls.valid.items["label"])


def test_the_same_seed_gives_the_same_batches(phantoms):
    first, second, other = (loaders(phantoms, seed=seed, bs=8) for seed in (1, 1, 2))
    assert list(first.valid.items["path"]) == list(second.valid.items["path"]) != list(other.valid.items["path"])
    batches = []
    for seed in (1, 1):
        dls = loaders(phantoms, seed=seed, bs=8)
        batches.append(list(dls.train))
    for (x, y), (x2, y2) in zip(*batches, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_augmentation_changes_training_and_never_validation(phantoms):
    dls = loaders(phantoms)
    valid = [torch.cat([x for x, _ in dls.valid]) for _ in range(2)]
    assert torch.equal(*valid)
    train = dls.train.new(shuffle=False, bs=len(dls.train_ds))
    first, second = (next(iter(train))[0] for _ in range(2))
    assert (first - second).abs().amax((1, 2, 3)).gt(0.1).float().mean() > 0.9
    still = loaders(phantoms, augment=False).train.new(shuffle=False, bs=4)
    assert torch.equal(next(iter(still))[0], next(iter(still))[0])


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Scans that are white above and black below, and lighter on the left than on the right."""
    root = tmp_path_factory.mktemp("marked")
    picture = np.zeros((64, 64), np.uint8)
    picture[:32, :32], picture[:32, 32:] = 255, 150
    for label in "AB":
        (root / label).mkdir()
        for patient in range(32):
            Image.fromarray(picture).save(root / label / f"{label}-{ord(label)}{patient}-1.png")
    return root


def test_scans_are_mirrored_but_never_stand_on_their_head(marked):
    dls = loaders(marked, bs=48)
    train = dls.train.new(shuffle=False, bs=len(dls.train_ds))
    x = torch.cat([next(iter(train))[0][:, 0] for _ in range(6)]).as_subclass(torch.Tensor)
    above, below = x[:, :24].mean((1, 2)), x[:, -24:].mean((1, 2))
    assert len(x) > 250 and (above > below + 1).all()
    mirrored = x[:, :24, :24].mean((1, 2)) < x[:, :24, -24:].mean((1, 2))
    assert 0.3 < mirrored.float().mean() < 0.7
    assert not any("Warp" in repr(t) for tfm in oct_transforms(64) for t in tfm.tfms)


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(2, 600)))
@settings(max_examples=60)
def test_batch_size(n_train, asked):
    bs = batch_size(n_train, asked)
    assert 1 <= bs <= n_train
    if asked is not None:
        assert bs == min(asked, n_train)
    else:
        assert bs <= 64 and (n_train // bs >= 16 or bs <= 8)
        assert bs == 64 or n_train // (2 * bs) < 16


@pytest.mark.parametrize(
    "n_train, chosen", [(60, 8), (127, 8), (128, 8), (512, 32), (1024, 64), (80_000, 64), (3, 3), (1, 1)]
)
def test_batch_size_by_default(n_train, chosen):
    assert batch_size(n_train) == chosen


def test_a_changed_batch_size_is_said(said):
    batch_size(80_000), batch_size(100, 50)
    assert said() == []
    batch_size(200)
    batch_size(10, 64)
    assert said() == [
        "batch size 8 instead of 64, as there are only 200 training scans",
        "batch size 64 is more than the 10 training scans: 10 is used",
    ]


def test_no_workers_where_shared_memory_is_too_small(tmp_path, monkeypatch, said):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert decoding_workers(224, 64, shm=tmp_path) == 0
    (line,) = said()
    assert line.startswith("shared memory is too small for decoding in 4 processes (64 MB free, 294 MB needed)")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, 1 << 40))
    assert decoding_workers(224, 64, shm=tmp_path) == 4
    assert decoding_workers(224, 64, shm=tmp_path / "no-such-place") == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert decoding_workers(224, 64, shm=tmp_path) == 8
    assert len(said()) == 1


def test_the_dataloaders_have_no_workers_then(phantoms, monkeypatch, said):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 10, 0, 1 << 10))
    dls = loaders(phantoms, num_workers=None)
    assert dls.train.fake_l.num_workers == 0 and any("shared memory" in line for line in said())
    dls.one_batch()


def test_decoding_processes_give_the_same_validation_batches(phantoms):
    here, there = (next(iter(loaders(phantoms, num_workers=n, bs=8).valid))[0] for n in (0, 1))
    assert torch.equal(here, there)


def test_a_table_with_a_split_of_its_own_is_kept(phantoms):
    scans = read_scans(phantoms).query("split == 'train'").assign(note="mine").reset_index(drop=True)
    scans["split"] = np.where(scans.index % 3 == 0, "valid", "train")
    dls = loaders(scans, allow_leaks=True)
    assert set(dls.valid.items["path"]) == set(scans.loc[scans["split"] == "valid", "path"])
    assert (dls.scans["note"] == "mine").all()
    assert len(shared_patients(dls.scans))


def test_a_table_without_validation_is_split(phantoms):
    dls = loaders(read_scans(phantoms))
    assert len(dls.valid_ds) and not set(dls.train.items["patient"]) & set(dls.valid.items["patient"])


def test_a_table_with_a_class_in_validation_alone_is_an_error(phantoms):
    scans = read_scans(phantoms)
    scans.loc[scans["label"] == "DME", "split"] = "valid"
    with pytest.raises(DataError, match="DME"):
        loaders(scans)


@pytest.mark.parametrize("valid, error", [("0.7", UsageError), ("folder", DataError)])
def test_errors_of_the_split_come_through(phantoms, valid, error):
    with pytest.raises(error):
        loaders(phantoms, valid=valid)


def test_unreadable_files_are_left_out(own_phantoms):
    (own_phantoms / "train" / "CNV" / "CNV-1-1.jpeg").write_bytes(b"")
    dls = loaders(own_phantoms)
    assert len(dls.train_ds) + len(dls.valid_ds) == 56
    assert not any(p.endswith("CNV-1-1.jpeg") for p in dls.scans["path"])


def test_pixels_of_other_statistics(phantoms):
    plain, other = (loaders(phantoms, mean=m, std=s) for m, s in (((0, 0, 0), (1, 1, 1)), ((0.5,) * 3, (0.5,) * 3)))
    x, y = (next(iter(dls.valid))[0].as_subclass(torch.Tensor) for dls in (plain, other))
    assert x.min() >= 0 and x.max() <= 1
    torch.testing.assert_close((x - 0.5) / 0.5, y)


def test_a_learner_can_be_asked_about_a_file_a_picture_or_an_array(phantoms):
    file = read_scans(phantoms)["path"][0]
    picture = Image.open(file)
    for source in (file, picture, np.asarray(picture), picture.convert("RGB")):
        made = BScan.create(source)
        assert isinstance(made, BScan) and made.mode == "L"
        np.testing.assert_array_equal(np.asarray(made), np.asarray(picture))


def test_batches_can_be_shown(phantoms):
    import matplotlib.pyplot as plt

    loaders(phantoms, bs=4).show_batch(max_n=4)
    assert sum(bool(ax.images) for ax in plt.gcf().axes) == 4
    plt.close("all")


def test_labels_that_pandas_would_take_for_numbers_or_nothing(tmp_path):
    for label in ("01", "NA", "None"):
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / label / f"{i}.png")
    dls = loaders(tmp_path, size=32)
    assert list(dls.vocab) == ["01", "NA", "None"] and isinstance(dls.scans, pd.DataFrame)


class TestWhatAFastaiUserGives:
    """fastai's own arguments, and every kind of item that `test_dl` and `predict` take."""

    @pytest.fixture
    def make(self, phantoms):
        return lambda data=phantoms, **kwargs: oct_dataloaders(
            data, **{"size": 64, "valid": 0.25, "num_workers": 0, "device": "cpu", "bs": 8, **kwargs}
        )

    def test_every_kind_of_picture_is_an_item(self, make, phantoms):
        dls = make()
        files = sorted((phantoms / "test").rglob("*.jpeg"))[:3]
        expected = dls.test_dl([str(f) for f in files]).one_batch()[0]
        grey = [Image.open(f) for f in files]
        for items in (
            [Image.open(f) for f in files],  # not loaded yet
            files,
            L(files),
            [f.read_bytes() for f in files],
            [PILImage.create(f) for f in files],
            grey,
            [np.asarray(g) for g in grey],
            [torch.from_numpy(np.array(g)) for g in grey],
            read_scans(phantoms).set_index("path").loc[[str(f) for f in files]].reset_index(),
        ):
            assert torch.equal(dls.test_dl(items).one_batch()[0], expected), type(items[0] if len(items) else items)

    def test_labels_are_asked_of_a_table_alone(self, make, phantoms):
        dls = make()
        test = read_scans(phantoms).query("split == 'test'")
        labels = dls.test_dl(test, with_labels=True, bs=16).one_batch()[1]
        assert [dls.vocab[i] for i in labels] == list(test["label"])
        for item in (test["path"].iloc[0], Path(test["path"].iloc[0])):
            with pytest.raises(UsageError, match="has no label\ngive rows of a table"):
                dls.test_dl([item], with_labels=True)
        with pytest.raises(UsageError, match="no scans in what was given"):
            dls.test_dl([])

    def test_transforms_of_the_users_own_are_of_training_scans_alone(self, make):
        seen = []

        class Mark(ItemTransform):
            def encodes(self, x):
                seen.append(1)
                return x

        own = make(item_tfms=[Resize(80), Mark()], batch_tfms=[*aug_transforms(size=64, max_rotate=5.0)])
        seen.clear()
        assert own.train.one_batch()[0].shape == (8, 3, 64, 64) and len(seen) == 8
        assert torch.equal(own.valid.one_batch()[0], make(augment=False).valid.one_batch()[0]) and len(seen) == 8
        norm = make(batch_tfms=[Normalize.from_stats([0.5] * 3, [0.25] * 3)])
        x = make(augment=False, mean=[0.5] * 3, std=[0.25] * 3).valid.one_batch()[0]
        assert torch.equal(norm.valid.one_batch()[0], x)

    def test_transforms_that_give_another_size_are_refused(self, make):
        with pytest.raises(UsageError, match=r"shape \(3, 48, 48\)[\s\S]*aug_transforms\(size=64\)"):
            make(batch_tfms=aug_transforms(size=48))

    def test_the_strength_of_the_augmentation(self, make):
        plain = make(augment="none").train

        def moved(strength):
            dl = make(augment=strength).train
            dl.before_iter()
            changes = []
            for i in range(24):
                x = plain.after_batch(plain.do_batch([plain.do_item(i)]))[0]
                changes.append(float((dl.after_batch(dl.do_batch([dl.do_item(i)]))[0] - x).abs().mean()))
            return sum(changes)

        assert 0.0 < moved("light") < moved("default") < moved("strong")
        with pytest.raises(UsageError, match="did you mean strong"):
            make(augment="strog")

    def test_rare_classes_are_drawn_as_often_as_others(self, make, phantoms):
        scans = read_scans(phantoms)
        scans = scans.drop(index=scans.query("split != 'test' and label == 'CNV'").index[2:])
        scans["split"] = ["valid" if i % 5 == 0 and s != "test" else s for i, s in enumerate(scans["split"])]
        for wgts in ("balanced", "weight", {"CNV": 9, "DME": 1, "DRUSEN": 1, "NORMAL": 1}):
            table = scans.assign(weight=[9.0 if c == "CNV" else 1.0 for c in scans["label"]])
            dls = make(table, wgts=wgts, allow_leaks=True)
            assert isinstance(dls.train, WeightedDL)
            drawn = [dls.train.items["label"].iloc[i] for _ in range(20) for i in dls.train.get_idxs()]
            assert drawn.count("CNV") > 0.12 * len(drawn) > 0.06 * len(drawn) > dls.train.items["label"].eq("CNV").sum()
        for wrong in ("colour", {"CNV": 1}, 3):
            with pytest.raises(UsageError, match="wgts"):
                make(table, wgts=wrong, allow_leaks=True)

    def test_a_part_of_the_scans_an_epoch(self, make):
        dls = make(dl_type=PartialDL, dl_kwargs={"partial_n": 16})
        assert len(dls.train) == 2 and len(dls.valid.get_idxs()) == len(dls.valid_ds)

    def test_columns_of_a_data_frame(self, make, phantoms):
        scans = read_scans(phantoms).query("split != 'test'")
        table = scans.rename(columns={"path": "file", "label": "diagnosis", "patient": "mrn"}).drop(columns="split")
        dls = make(table, path_column="file", label_column="diagnosis", patient_column="mrn")
        assert sorted(dls.scans["path"]) == sorted(scans["path"])
        assert not set(dls.train.items["patient"]) & set(dls.valid.items["patient"])
        with pytest.raises(UsageError, match="no column file2\nname the one of the path: path_column="):
            make(table, path_column="file2", label_column="diagnosis")
        with pytest.raises(UsageError, match="no column path"):
            make(table)
        with pytest.raises(UsageError, match="patient_from is for folders"):
            make(scans, patient_from="folder")
