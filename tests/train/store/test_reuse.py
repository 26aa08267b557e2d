"""One scan more or less costs itself alone, and gives the numbers that a store made from nothing has."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import RandomErasing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from octfast.data.loaders import oct_dataloaders
from octfast.data.readers.folder import read_scans
from octfast.model.engine import Engine
from octfast.train.frozen.frozen import frozen_learner
from octfast.train.frozen.views import Views
from octfast.train.store.cache import clear_stores, list_stores
from octfast.train.store.files import StoreSpec
from octfast.train.store.reuse import digest_of
from octfast.train.store.store import open_store

VIEWS, DIM = 2, 3


def digests_of(scans) -> np.ndarray:
    return np.array([list(hashlib.sha256(b"%d" % s).digest()) for s in scans], np.uint8).reshape(-1, 32)


def values_of(scans) -> np.ndarray:
    """What the frozen part gives of each scan, whatever others there are."""
    return np.stack([np.random.default_rng(s).normal(size=(VIEWS, DIM)) for s in scans]).astype(np.float16)


def made(cache, scans, asked=None, block=4, **key):
    """A store of these scans; `asked` gets those that had to be computed."""
    digests = digests_of(scans)
    first = sorted(scans, key=lambda s: digests_of([s]).tobytes())[:4]
    pictures = {str(s): "looks so" for s in first}
    spec = StoreSpec({"scans": digest_of(digests), "pictures": pictures, **key}, len(scans), VIEWS, DIM, block=block)

    def fill(wanted):
        for rows in wanted:
            if asked is not None:
                asked.extend(scans[row] for row in rows)
            yield values_of([scans[row] for row in rows])

    with open_store(spec, fill, digests=digests, cache=cache) as store:
        np.testing.assert_array_equal(store.take_all(np.arange(len(scans))), values_of(scans))
    return cache / "features" / spec.hash


def test_a_scan_removed_or_added_anywhere_costs_itself(tmp_path, said):
    made(tmp_path, list(range(22)))
    for scans, new in (
        ([*range(5), *range(6, 22)], []),
        ([*range(9), 77, *range(9, 22)], [77]),
        ([50, *range(12, 2, -1)], [50]),
    ):
        asked: list[int] = []
        made(tmp_path, scans, asked)
        assert asked == new
        assert any(f"{len(scans) - len(new)} of {len(scans)} scans are taken from" in line for line in said())


@settings(max_examples=12)
@given(
    sets=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=13), min_size=2, max_size=4),
    block=st.integers(1, 5),
)
def test_sets_in_any_order_share_what_they_have_in_common(tmp_path_factory, sets, block):
    cache, alone = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("alone")
    for scans in sets:
        folder, fresh = made(cache, scans, block=block), made(alone, scans, block=block)
        for name in ("features.bin", "blocks.csv", "scans.bin"):
            assert (folder / name).read_bytes() == (fresh / name).read_bytes()
        shutil.rmtree(fresh)


@pytest.mark.parametrize("other", [{"seed": 1}, {"pictures": {str(s): "looks otherwise" for s in range(22)}}])
def test_what_was_made_otherwise_is_not_taken(tmp_path, other):
    made(tmp_path, list(range(22)), **other)
    asked: list[int] = []
    made(tmp_path, list(range(21)), asked)
    assert asked == list(range(21))


def test_what_is_damaged_there_is_computed_again(tmp_path):
    folder = made(tmp_path, list(range(22)))
    data = bytearray((folder / "features.bin").read_bytes())
    data[5 * VIEWS * DIM * 2] ^= 1  # in the block of scans 4 to 7
    (folder / "features.bin").write_bytes(data)
    asked: list[int] = []
    made(tmp_path, list(range(21)), asked)
    assert asked == [4, 5, 6, 7]


@pytest.mark.parametrize("name", ["features.bin", "blocks.csv", "scans.bin", "key.json"])
@pytest.mark.parametrize("damage", ["removed", "cut", "rubbish"])
def test_no_damage_elsewhere_is_an_error(tmp_path, name, damage):
    file = made(tmp_path, list(range(22))) / name
    data = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"\xff" * len(data))
    made(tmp_path, list(range(21)))


def test_a_cleared_store_leaves_no_file(tmp_path):
    folder = made(tmp_path, [1, 2, 3])
    assert json.loads((folder / "key.json").read_text())["shape"] == [3, VIEWS, DIM]
    assert len(list_stores(tmp_path)) == 1 and clear_stores(tmp_path)[0] == 1 and not folder.exists()


# ---- views of pictures


@pytest.fixture(scope="module")
def scans(phantoms):
    table = read_scans(phantoms).query("split == 'train'").iloc[::2].reset_index(drop=True)
    return table.assign(split=["valid" if i % 4 == 0 else "train" for i in range(len(table))])


def loaders(table, **kwargs):
    given = {"size": 32, "bs": 4, "num_workers": 0, "device": "cpu", "allow_leaks": True, **kwargs}
    return oct_dataloaders(table.reset_index(drop=True), **given)


def views_of(dls) -> dict[str, list[bytes]]:
    source = Views(dls.train, 2, 7, torch.device("cpu"), 1)
    groups = [source.rows(b) for b in range(-(-len(source) // source.block))]
    found = {}
    for rows in groups:
        views = source.augment(source.decode(rows), rows)
        for i, row in enumerate(rows):
            found[dls.train.items.iloc[row]["path"]] = [view[i].numpy().tobytes() for view in views]
    return found


@pytest.mark.parametrize("extra", [[], [RandomErasing(p=0.7)]], ids=["octfast's", "one that draws by itself"])
def test_a_view_of_a_scan_depends_on_no_other_scan(scans, extra):
    def made(table):
        dls = loaders(table)
        dls.train.after_batch.fs.extend(extra)
        return views_of(dls)

    every, fewer = made(scans), made(scans.drop(index=[1, 6]))
    assert set(fewer) < set(every) and all(every[path] == fewer[path] for path in fewer)
    # Views differ, and so do scans in what is drawn for them.
    assert all(first != second for first, second in every.values())


def test_scans_of_a_batch_get_draws_of_their_own(scans):
    dls = loaders(scans)
    source = Views(dls.train, 1, 7, torch.device("cpu"), 1)
    same = source.decode([0]).clone()
    rows = source.rows(0)
    seen = source.augment(same, rows)[0][: len(rows)]
    assert not source.one_by_one and len({x.numpy().tobytes() for x in seen}) > len(rows) // 2


def test_training_without_one_scan_runs_the_frozen_part_over_none(scans, tmp_path, monkeypatch):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head, seen = nn.Linear(4, 4), []
    call = Engine.__call__
    monkeypatch.setattr(Engine, "__call__", lambda self, x: (seen.append(len(x)), call(self, x))[1])

    def stored(table, cache):
        learn = Learner(
            loaders(table),
            nn.Sequential(body, head),
            CrossEntropyLossFlat(),
            splitter=lambda model: [list(model[0].parameters()), list(model[1].parameters())],
            train_bn=False,
        )
        learn.freeze()
        fast = frozen_learner(learn, views=2, precision="fp32", cache=cache)
        numbers = [store.take_all(np.arange(len(store))) for store in fast.stores]
        fast.close()
        return numbers

    stored(scans, tmp_path / "a")
    assert seen
    seen.clear()
    taken = stored(scans.drop(index=2), tmp_path / "a")
    assert not seen
    for one, other in zip(taken, stored(scans.drop(index=2), tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(one, other)
