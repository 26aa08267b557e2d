import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.errors import OctfastError
from octfast.files import cache_root
from octfast.train.store import cache as cache_module
from octfast.train.store import files
from octfast.train.store.cache import clear_stores, list_stores
from octfast.train.store.files import StoreSpec
from octfast.train.store.store import FeatureStore, open_store

ROOT = Path(__file__).resolve().parents[3]


def numbers(spec):
    return np.random.default_rng(7).normal(size=(spec.scans, spec.views, spec.dim)).astype(spec.dtype)


class Fill:
    """Gives the blocks of an array, notes which were asked for, and dies before block number `dies_at` of those."""

    def __init__(self, spec, values=None, dies_at=None):
        self.spec, self.values, self.dies_at = spec, numbers(spec) if values is None else values, dies_at
        self.asked = []
        self.closed = False

    def __call__(self, wanted):
        self.asked.append([rows[0] // self.spec.block for rows in wanted])
        try:
            for count, rows in enumerate(wanted):
                if count == self.dies_at:
                    raise InterruptedError("pulled the plug")
                yield self.values[rows]
        finally:
            self.closed = True


def opened(spec, cache, fill=None, **options):
    fill = Fill(spec) if fill is None else fill
    return open_store(spec, fill, cache=cache, **options)


def everything(store):
    return np.stack([store.take(np.arange(len(store)), view) for view in range(store.shape[1])], axis=1)


def folder_of(spec, cache):
    return Path(cache) / "features" / spec.hash


@pytest.fixture
def spec():
    return StoreSpec({"arch": "vgg16_bn", "precision": "bf16"}, scans=22, views=3, dim=8, block=4)


specs = st.builds(
    StoreSpec,
    key=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
    scans=st.integers(1, 40),
    views=st.integers(1, 4),
    dim=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "float32"]),
    block=st.integers(1, 50),
)


@settings(max_examples=40, deadline=None)
@given(spec=specs, data=st.data())
def test_an_interrupted_store_asks_only_for_what_is_missing_and_ends_up_the_same(tmp_path_factory, spec, data):
    whole, cache = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    opened(spec, whole).close()
    left = list(range(spec.blocks))
    for cut in data.draw(st.lists(st.integers(0, spec.blocks), max_size=3)):
        fill = Fill(spec, dies_at=cut if cut < len(left) else None)
        if cut < len(left):
            with pytest.raises(InterruptedError, match="pulled the plug"):
                opened(spec, cache, fill)
        else:
            opened(spec, cache, fill).close()
        assert fill.asked == ([left] if left else [])
        assert fill.closed or not left
        left = left[cut:] if cut < len(left) else []
    seen = []
    last = Fill(spec)
    with opened(spec, cache, last, progress=lambda done, total: seen.append((done, total))) as store:
        assert last.asked == ([left] if left else [])
        assert store.warm == (not left)
        np.testing.assert_array_equal(everything(store), numbers(spec), strict=True)
    assert seen == [(min((block + 1) * spec.block, spec.scans), spec.scans) for block in left]
    for name in ("features.bin", "blocks.csv"):
        assert (folder_of(spec, cache) / name).read_bytes() == (folder_of(spec, whole) / name).read_bytes()
    assert (folder_of(spec, cache) / "features.bin").read_bytes() == numbers(spec).tobytes()


@settings(max_examples=25, deadline=None)
@given(spec=specs, data=st.data())
def test_take_copies_out_any_rows_of_a_view(tmp_path_factory, spec, data):
    rows = np.array(data.draw(st.lists(st.integers(0, spec.scans - 1), max_size=30)), dtype=np.int64)
    view = data.draw(st.integers(0, spec.views - 1))
    with opened(spec, tmp_path_factory.mktemp("cache")) as store:
        assert store.shape == (spec.scans, spec.views, spec.dim) and len(store) == spec.scans
        taken = store.take(rows, view)
        np.testing.assert_array_equal(taken, numbers(spec)[rows, view], strict=True)
        taken[:] = -1
        np.testing.assert_array_equal(store.take(rows, view), numbers(spec)[rows, view])


def test_take_without_positioned_reads_as_on_windows(tmp_path, spec, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    with opened(spec, tmp_path) as store:
        np.testing.assert_array_equal(everything(store), numbers(spec))


def test_take_refuses_what_is_not_there(tmp_path, spec):
    store = opened(spec, tmp_path)
    for rows, view in ([[22], 0], [[-1], 0], [[0], 3], [[0], -1]):
        with pytest.raises(IndexError):
            store.take(np.array(rows), view)
    for rows in (np.array([True, False]), np.array([0.0]), np.array([[1]])):
        with pytest.raises(TypeError):
            store.take(rows, 0)
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.take(np.array([0]), 0)


def test_the_hash_is_of_everything_that_counts_and_of_nothing_else(spec):
    same = StoreSpec({"precision": "bf16", "arch": "vgg16_bn"}, scans=22, views=3, dim=8, block=4)
    assert spec.hash == same.hash and len(spec.hash) == 20 and int(spec.hash, 16)
    assert StoreSpec({"sizes": (1, 2)}, 1, 1, 1).hash == StoreSpec({"sizes": [1, 2]}, 1, 1, 1).hash
    others = [
        StoreSpec({**spec.key, "seed": 1}, 22, 3, 8, block=4),
        StoreSpec(spec.key, 23, 3, 8, block=4),
        StoreSpec(spec.key, 22, 4, 8, block=4),
        StoreSpec(spec.key, 22, 3, 9, block=4),
        StoreSpec(spec.key, 22, 3, 8, dtype="float32", block=4),
        StoreSpec(spec.key, 22, 3, 8, block=5),
    ]
    assert len({spec.hash, *(other.hash for other in others)}) == 7
    assert (spec.nbytes, others[4].nbytes) == (22 * 3 * 8 * 2, 22 * 3 * 8 * 4)
    for wrong in ({"scans": 0}, {"views": 0}, {"dim": -1}, {"block": 0}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            StoreSpec({}, **{"scans": 1, "views": 1, "dim": 1, **wrong})


def test_key_json_can_be_read_by_a_person(tmp_path, spec):
    opened(spec, tmp_path).close()
    text = (folder_of(spec, tmp_path) / "key.json").read_text()
    described = json.loads(text)
    assert described.pop("made")
    assert described == spec.described()
    assert described["key"] == spec.key and described["shape"] == [22, 3, 8] and text.count("\n") > 10


def test_the_cache_is_the_argument_else_the_variable_else_the_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTFAST_CACHE", str(tmp_path / "variable"))
    assert cache_root(tmp_path) == tmp_path
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("OCTFAST_CACHE")
    assert cache_root().is_absolute() and "octfast" in cache_root().parts
    assert cache_root("~/x") == Path.home() / "x"


def test_by_default_the_logger_says_it(tmp_path, spec, caplog):
    caplog.set_level(logging.INFO, logger="octfast")
    with pytest.raises(InterruptedError):
        opened(spec, tmp_path, Fill(spec, dies_at=3))
    opened(spec, tmp_path).close()
    opened(spec, tmp_path).close()
    assert caplog.messages[0] == "resuming the store: 12 of 22 scans are there"
    assert caplog.messages[1].startswith("using the 1 KB of stored activations in")
    assert len(caplog.messages) == 2


# --- damage -------------------------------------------------------------------------------------------------------


def flip_a_byte(folder):
    with (folder / "features.bin").open("r+b") as file:
        file.seek(4 * 3 * 8 * 2 * 2 + 5)  # in block 2 of the fixture's spec
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def edit_key(**changes):
    def edit(folder):
        described = json.loads((folder / "key.json").read_text())
        (folder / "key.json").write_text(json.dumps({**described, **changes}))

    return edit


ANEW = list(range(6))
DAMAGE = {
    "flipped": (flip_a_byte, [2], "1 of 6 blocks"),
    "short": (lambda f: os.truncate(f / "features.bin", 700), ANEW, "700 bytes and should have 1,056"),
    "long": (lambda f: os.truncate(f / "features.bin", 2000), ANEW, "2,000 bytes"),
    "no data": (lambda f: (f / "features.bin").unlink(), ANEW, "0 bytes"),
    "no key": (lambda f: (f / "key.json").unlink(), ANEW, "key.json is missing"),
    "garbage key": (lambda f: (f / "key.json").write_bytes(b"\xff{ not json"), ANEW, "key.json is damaged"),
    "list key": (lambda f: (f / "key.json").write_text("[1]"), ANEW, "key.json is damaged"),
    "empty key": (lambda f: (f / "key.json").write_text(""), ANEW, "key.json is damaged"),
    "other key": (edit_key(dtype="float32"), ANEW, "something else"),
    "old version": (edit_key(version=0), ANEW, "version 0 and this octfast writes version 2"),
    "no record": (lambda f: (f / "blocks.csv").unlink(), ANEW, "blocks.csv is missing"),
    "garbage record": (
        lambda f: (f / "blocks.csv").write_bytes(b"block,crc32\n\0\0\0\n"),
        ANEW,
        "blocks.csv is damaged",
    ),
    "empty record": (lambda f: (f / "blocks.csv").write_bytes(b""), ANEW, "blocks.csv is damaged"),
    "block 99": (
        lambda f: (f / "blocks.csv").write_bytes(b"block,crc32\n99,00000000\n"),
        ANEW,
        "blocks.csv is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_mended_and_said(tmp_path, spec, damage):
    do, asked, message = DAMAGE[damage]
    opened(spec, tmp_path).close()
    do(folder_of(spec, tmp_path))
    said, fill = [], Fill(spec)
    with opened(spec, tmp_path, fill, say=said.append) as store:
        assert fill.asked == [asked] and not store.warm
        np.testing.assert_array_equal(everything(store), numbers(spec))
    assert message in said[0]
    again = Fill(spec)
    with opened(spec, tmp_path, again) as store:
        assert store.warm and not again.asked


def test_a_line_that_was_not_finished_costs_one_block(tmp_path, spec):
    opened(spec, tmp_path).close()
    record = folder_of(spec, tmp_path) / "blocks.csv"
    record.write_bytes(record.read_bytes()[:-4])
    said, fill = [], Fill(spec)
    opened(spec, tmp_path, fill, say=said.append).close()
    assert fill.asked == [[5]] and said == ["resuming the store: 20 of 22 scans are there"]
    assert opened(spec, tmp_path).warm


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_a_mended_store_leaves_its_open_readers_what_they_had(tmp_path, spec):
    with opened(spec, tmp_path) as reader:
        edit_key(version=0)(folder_of(spec, tmp_path))
        opened(spec, tmp_path, Fill(spec, values=numbers(spec) + 1)).close()
        np.testing.assert_array_equal(everything(reader), numbers(spec))


def test_a_file_cut_short_under_an_open_store_raises(tmp_path, spec):
    with opened(spec, tmp_path) as store:
        os.truncate(store.path / "features.bin", 100)
        with pytest.raises(OctfastError, match="cut short") as caught:
            store.take(np.array([21]), 2)
        assert caught.value.hint


# --- numbers that cannot be stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_raises_and_the_blocks_before_are_kept(tmp_path, spec, bad):
    values = numbers(spec).astype(np.float32)
    values[9, 1, 3] = bad
    with pytest.raises(OctfastError, match=r"block 2 \(scans 8 to 11\): 1 of 96 activations"):
        opened(spec, tmp_path, Fill(spec, values=values))
    fill = Fill(spec)
    with opened(spec, tmp_path, fill) as store:
        assert fill.asked == [[2, 3, 4, 5]]
        np.testing.assert_array_equal(everything(store), numbers(spec))


def test_what_half_precision_cannot_hold_is_clipped_and_counted(tmp_path, spec):
    values = numbers(spec).astype(np.float32)
    values[0, 0, :2] = 65504, -65504
    values[9, 1, :3] = 70000, -1e30, 65519
    said = []
    with opened(spec, tmp_path, Fill(spec, values=values), say=said.append) as store:
        np.testing.assert_array_equal(store.take(np.array([9]), 1)[0, :3], np.float16([65504, -65504, 65504]))
        assert np.isfinite(everything(store)).all()
    assert said == ["3 activations were beyond ±65504, the range of float16, and were clipped to it"]


def test_fill_is_closed_whatever_happens(tmp_path, spec):
    values = numbers(spec)
    values[9] = np.nan
    fill = Fill(spec, values=values)
    kept = []

    def keep(blocks):
        kept.append(fill(blocks))
        return kept[0]

    with pytest.raises(OctfastError):
        open_store(spec, keep, cache=tmp_path)
    assert fill.closed


def test_a_fill_that_breaks_its_word_is_told(tmp_path, spec):
    with pytest.raises(ValueError, match=r"\(4, 3, 7\) for block 0"):
        opened(spec, tmp_path, Fill(spec, values=numbers(spec)[:, :, :7]))
    with pytest.raises(RuntimeError, match="before block 2"):
        open_store(spec, lambda blocks: iter([numbers(spec)[:4], numbers(spec)[4:8]]), cache=tmp_path)


# --- the disk -------------------------------------------------------------------------------------------------------


def disk_with(free):
    return lambda path: namedtuple("usage", "total used free")(10**12, 0, free)


def test_a_disk_without_room_is_said_before_anything_is_made(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", disk_with(200_000_000 + spec.nbytes - 1))
    fill = Fill(spec)
    with pytest.raises(OctfastError, match=r"1,056 bytes.*200,001,055 are free") as caught:
        opened(spec, tmp_path, fill)
    assert str(tmp_path) in caught.value.message and not fill.asked and not folder_of(spec, tmp_path).exists()
    for way_out in ("--views", "--cache DIR", "octfast cache clear"):
        assert way_out in caught.value.hint
    monkeypatch.setattr(files.shutil, "disk_usage", disk_with(200_000_000 + spec.nbytes))
    opened(spec, tmp_path, fill).close()
    monkeypatch.setattr(files.shutil, "disk_usage", disk_with(0))
    assert opened(spec, tmp_path).warm


def test_what_is_there_needs_no_more_room(tmp_path, spec, monkeypatch):
    with pytest.raises(InterruptedError):
        opened(spec, tmp_path, Fill(spec, dies_at=4))
    needed = 200_000_000 + 6 * 3 * 8 * 2
    if os.name != "nt":
        monkeypatch.setattr(files.shutil, "disk_usage", disk_with(needed - 1))
        with pytest.raises(OctfastError, match="they need 288 bytes"):
            opened(spec, tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", disk_with(needed))
    opened(spec, tmp_path).close()


def test_a_disk_that_fills_up_keeps_the_blocks_before(tmp_path, spec, monkeypatch):
    put = files.BlockWriter.put

    def full(self, block, values):
        if block == 3:
            raise OSError(28, "No space left on device")
        put(self, block, values)

    monkeypatch.setattr(files.BlockWriter, "put", full)
    with pytest.raises(OctfastError, match=r"is full") as caught:
        opened(spec, tmp_path)
    assert "octfast cache clear" in caught.value.hint
    monkeypatch.undo()
    fill = Fill(spec)
    opened(spec, tmp_path, fill).close()
    assert fill.asked == [[3, 4, 5]]


def test_a_large_store_is_announced(tmp_path, spec, monkeypatch):
    said = []
    monkeypatch.setattr(files, "WARN_BYTES", spec.nbytes)
    opened(spec, tmp_path / "a", say=said.append).close()
    assert not said
    monkeypatch.setattr(files, "WARN_BYTES", spec.nbytes - 1)
    opened(spec, tmp_path / "b", say=said.append).close()
    assert "storing 1,056 bytes" in said[0]


@pytest.mark.parametrize("where", ["", "features", "features/locks"])
def test_a_cache_folder_that_cannot_be_used(tmp_path, spec, where):
    cache = tmp_path / "cache"
    in_the_way = cache / where
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("a file where a folder should be")
    with pytest.raises(OctfastError, match="cannot use the cache folder") as caught:
        opened(spec, cache)
    assert "--cache DIR" in caught.value.hint and str(cache) in caught.value.message


def test_an_error_of_fill_is_not_blamed_on_the_cache(tmp_path, spec):
    def fill(blocks):
        raise FileNotFoundError("scan.png")
        yield

    with pytest.raises(FileNotFoundError, match=r"scan\.png"):
        open_store(spec, fill, cache=tmp_path)


# --- several processes ----------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
from pathlib import Path
import numpy as np
from octfast.train.store import files
from octfast.train.store.files import StoreSpec
from octfast.train.store.store import open_store
files.SYNC_SECONDS = 0
cache, seconds, stop_at, stay = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
spec = StoreSpec({"arch": "vgg16_bn", "precision": "bf16"}, scans=22, views=3, dim=8, block=4)
values = np.random.default_rng(7).normal(size=(22, 3, 8)).astype("float16")
def fill(wanted):
    blocks = [int(rows[0]) // 4 for rows in wanted]
    print("filling", *blocks, flush=True)
    for block in blocks:
        if block == stop_at:
            print("stuck", flush=True)
            time.sleep(60)
        time.sleep(seconds)
        yield values[block * 4 : block * 4 + 4]
store = open_store(spec, fill, cache=cache, say=lambda line: print("say", line, flush=True))
same = [store.take(np.arange(22), view).tobytes() == values[:, view].tobytes() for view in range(3)]
print("read", sum(same), flush=True)
time.sleep(stay)
"""


@pytest.fixture
def child(tmp_path):
    started = []

    def start(cache, seconds=0.0, stop_at=-1, stay=0.0):
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(cache), str(seconds), str(stop_at), str(stay)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_line(process, wanted):
    for line in process.stdout:
        if wanted in line:
            return line
    raise AssertionError(f"the child ended without saying {wanted!r}")


def test_a_killed_process_loses_only_the_block_in_work(tmp_path, spec, child):
    process = child(tmp_path, stop_at=3)
    wait_for_line(process, "stuck")
    process.kill()
    assert process.wait() != 0
    said, fill = [], Fill(spec)
    with opened(spec, tmp_path, fill, say=said.append) as store:
        assert fill.asked == [[3, 4, 5]] and said == ["resuming the store: 12 of 22 scans are there"]
        np.testing.assert_array_equal(everything(store), numbers(spec))


def test_of_two_processes_one_computes_and_both_read(tmp_path, child):
    first = child(tmp_path, seconds=0.3)
    wait_for_line(first, "filling")
    second = child(tmp_path)
    said = second.communicate(timeout=30)[0]
    assert first.communicate(timeout=30)[0] == "read 3\n"
    assert "waiting for it" in said and "filling" not in said and said.endswith("read 3\n")


def test_when_the_first_process_dies_the_waiting_one_goes_on(tmp_path, child):
    first = child(tmp_path, stop_at=2)
    wait_for_line(first, "stuck")
    second = child(tmp_path)
    wait_for_line(second, "waiting for it")
    first.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    assert second.communicate(timeout=30)[0] == (
        "say resuming the store: 8 of 22 scans are there\nfilling 2 3 4 5\nread 3\n"
    )


def test_what_another_process_has_open_is_not_cleared_until_it_dies(tmp_path, spec, child):
    process = child(tmp_path, stay=60)
    wait_for_line(process, "read 3")
    assert [store.in_use for store in list_stores(tmp_path)] == [True]
    assert clear_stores(tmp_path) == (0, 0)
    assert opened(spec, tmp_path).warm
    process.kill()
    process.wait()
    assert [store.in_use for store in list_stores(tmp_path)] == [False]
    assert clear_stores(tmp_path)[0] == 1
    assert not folder_of(spec, tmp_path).exists()
    assert not list((tmp_path / "features" / "locks").glob("*.reader"))


def test_a_store_in_the_making_is_not_cleared(tmp_path, child):
    process = child(tmp_path, stop_at=2)
    wait_for_line(process, "stuck")
    assert [(store.complete, store.in_use) for store in list_stores(tmp_path)] == [(False, True)]
    assert clear_stores(tmp_path) == (0, 0)


# --- listing and clearing ---------------------------------------------------------------------------------------------


def test_list_says_what_is_there(tmp_path, spec):
    assert list_stores(tmp_path / "nothing") == []
    other = StoreSpec({}, scans=5, views=1, dim=2, dtype="float32", block=2)
    opened(spec, tmp_path).close()
    with pytest.raises(InterruptedError):
        opened(other, tmp_path, Fill(other, dies_at=1))
    os.utime(folder_of(spec, tmp_path) / "key.json", (1e9, 1e9))
    half, whole = list_stores(tmp_path)
    assert (half.name, half.complete, whole.name, whole.complete) == (other.hash, False, spec.hash, True)
    assert whole.what == "vgg16_bn, 22 scans x 3 views x 8, float16, bf16"
    assert half.what == "5 scans x 1 views x 2, float32"
    assert whole.bytes >= spec.nbytes and not whole.in_use and whole.path == folder_of(spec, tmp_path)
    assert whole.used.timestamp() == 1e9 and abs(whole.made.timestamp() - time.time()) < 60
    opened(spec, tmp_path).close()
    used = {store.name: store.used.timestamp() for store in list_stores(tmp_path)}
    assert abs(used[spec.hash] - time.time()) < 60


@pytest.mark.skipif(os.name == "nt", reason="a file takes its full length there")
def test_an_unfinished_store_is_listed_with_the_room_it_takes(tmp_path):
    spec = StoreSpec({}, scans=8, views=1, dim=250_000, block=1)
    with pytest.raises(InterruptedError):
        opened(spec, tmp_path, Fill(spec, dies_at=2))
    assert list_stores(tmp_path)[0].bytes < 0.6 * spec.nbytes


def test_clear_takes_the_old_and_the_incomplete_where_asked(tmp_path, spec):
    new = StoreSpec({"new": True}, scans=2, views=1, dim=2)
    half = StoreSpec({"half": True}, scans=4, views=1, dim=2, block=2)
    opened(spec, tmp_path).close()
    opened(new, tmp_path).close()
    with pytest.raises(InterruptedError):
        opened(half, tmp_path, Fill(half, dies_at=1))
    long_ago = time.time() - 10 * 86400
    os.utime(folder_of(spec, tmp_path) / "key.json", (long_ago, long_ago))

    def left():
        return {store.name for store in list_stores(tmp_path)}

    assert clear_stores(tmp_path, older_than=timedelta(days=11)) == (0, 0)
    assert clear_stores(tmp_path, older_than=timedelta(days=9), incomplete_only=True) == (0, 0)
    size = next(store.bytes for store in list_stores(tmp_path) if store.name == spec.hash)
    assert clear_stores(tmp_path, older_than=timedelta(days=9)) == (1, size)
    assert left() == {new.hash, half.hash}
    assert clear_stores(tmp_path, incomplete_only=True)[0] == 1
    assert left() == {new.hash}
    assert clear_stores(tmp_path)[0] == 1
    assert left() == set()


def test_clear_leaves_everything_else_alone(tmp_path, spec):
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    opened(spec, cache).close()
    opened(spec, outside).close()
    features = cache / "features"
    mine = [
        features / "notes.txt",
        cache / "weights.pth",
        features / spec.hash / "thesis.docx",
        features / ("a" * 20) / "key.json",
        features / ("b" * 20) / "features.bin",
        features / "my-store" / "key.json",
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"key": "of my house"}))
    (features / "my-store" / "key.json").write_bytes((outside / "features" / spec.hash / "key.json").read_bytes())
    try:
        (features / ("c" * 20)).symlink_to(outside / "features" / spec.hash, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    assert [store.name for store in list_stores(cache)] == [spec.hash]
    assert clear_stores(cache)[0] == 1
    assert all(path.exists() for path in mine)
    assert sorted(path.name for path in (features / spec.hash).iterdir()) == ["thesis.docx"]
    assert opened(spec, outside).warm


def test_a_store_with_a_nonsense_key_is_listed_as_damaged_and_cleared(tmp_path, spec):
    opened(spec, tmp_path).close()
    edit_key(shape="large")(folder_of(spec, tmp_path))
    (store,) = list_stores(tmp_path)
    assert (store.what, store.complete) == ("damaged", False)
    assert clear_stores(tmp_path, incomplete_only=True)[0] == 1


def test_clear_looks_again_before_it_removes(tmp_path, spec, monkeypatch):
    opened(spec, tmp_path).close()
    seen = list_stores(tmp_path)
    monkeypatch.setattr(cache_module, "list_stores", lambda cache: seen)
    with opened(spec, tmp_path) as store:
        assert not seen[0].in_use and clear_stores(tmp_path) == (0, 0)
        np.testing.assert_array_equal(everything(store), numbers(spec))
    assert clear_stores(tmp_path)[0] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_that_ends_does_not_let_go_for_its_parent(tmp_path, spec):
    with opened(spec, tmp_path) as store:
        worker = os.fork()
        if not worker:
            try:
                same = np.array_equal(store.take(np.arange(22), 1), numbers(spec)[:, 1])
                store.close()
                os._exit(0 if same else 1)
            finally:
                os._exit(2)
        assert os.waitpid(worker, 0)[1] == 0
        assert list_stores(tmp_path)[0].in_use
        np.testing.assert_array_equal(everything(store), numbers(spec))


def test_a_store_that_nobody_holds_any_more_lets_go(tmp_path, spec):
    store = opened(spec, tmp_path)
    assert list_stores(tmp_path)[0].in_use
    del store
    assert not list_stores(tmp_path)[0].in_use


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_does_not_grow_with_what_is_written_and_read(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    spec = StoreSpec({}, scans=10_000, views=2, dim=8192, block=100)
    assert spec.nbytes > 300e6
    block = np.ones((100, 2, 8192), np.float16)
    before = resident()
    grown = []

    def fill(blocks):
        for _ in blocks:
            yield block
            grown.append(resident() - before)

    with open_store(spec, fill, cache=tmp_path) as made:
        assert not made.warm
    with open_store(spec, fill, cache=tmp_path) as store:
        assert isinstance(store, FeatureStore) and store.warm
        for view in range(2):
            for start in range(0, len(store), 50):
                assert store.take(np.arange(start, start + 50), view)[-1, -1] == 1
            grown.append(resident() - before)
    assert max(grown) < 40e6, f"{max(grown) / 1e6:.0f} MB"
