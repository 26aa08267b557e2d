from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octfast.errors import DataError
from octfast.model.prefetch import CUT, decoded_batches, display_name

GREY = np.full((9, 7), 50, np.uint8)


def read_all(pictures, bs=4, **kwargs):
    return list(decoded_batches(pictures, 8, bs, **kwargs))


@given(n=st.integers(0, 9), bs=st.integers(1, 4), workers=st.integers(1, 3), wrong=st.sets(st.integers(0, 8)))
@settings(max_examples=40, deadline=None)
def test_every_picture_comes_once_and_in_order(n, bs, workers, wrong):
    given_ = [DataError(str(i)) if i in wrong else np.full((4, 4), i, np.uint8) for i in range(n)]
    batches = read_all(given_, bs, workers=workers)
    assert [len(b) for b in batches[:-1]] == [bs] * (len(batches) - 1)
    pairs = [pair for batch in batches for pair in batch]
    assert len(pairs) == n
    for i, (picture, grey, _) in enumerate(pairs):
        assert picture is given_[i]
        if i in wrong:
            assert grey is picture
        else:
            assert grey.shape == (8, 8) and grey.dtype == np.uint8 and (grey == i).all()


def test_a_cut_ends_a_batch_and_is_no_picture():
    batches = read_all(iter([CUT, GREY, GREY, GREY, CUT, CUT, GREY, CUT]), 2)
    assert [len(b) for b in batches] == [2, 1, 1] and all(read.picture is GREY for b in batches for read in b)


def test_a_single_picture_of_any_kind_is_one(tmp_path):
    for one in (GREY, str(tmp_path / "none.png"), tmp_path / "none.png", b"no picture"):
        [[(picture, *_)]] = read_all(one)
        assert picture is one
    assert sum(map(len, read_all(np.zeros((5, 4, 6), np.uint8)))) == 5


def test_a_file_that_cannot_be_read_has_its_reason_and_the_others_come(tmp_path):
    [[(_, missing, _), (_, grey, _)]] = read_all([tmp_path / "none.png", GREY])
    assert isinstance(missing, DataError) and "none.png" in missing.message and grey.shape == (8, 8)


def test_a_list_has_full_batches_and_a_slow_source_does_not_keep_its_pictures_back():
    def slow():
        yield GREY
        arrived.wait(20)
        yield GREY

    arrived = threading.Event()
    batches = decoded_batches(slow(), 8, 2)
    assert len(next(batches)) == 1
    arrived.set()
    assert [len(b) for b in batches] == [1]


def test_no_more_than_three_batches_are_taken_ahead():
    taken = itertools.count()
    source = (GREY for _ in iter(lambda: next(taken), -1))
    batches = decoded_batches(source, 8, 2)
    next(batches)
    time.sleep(0.3)
    batches.close()
    assert next(taken) <= 2 * 4 + 1


def test_what_the_source_raises_comes_after_what_it_gave():
    def failing():
        yield GREY
        raise ZeroDivisionError

    batches = decoded_batches(failing(), 8, 4)
    assert len(next(batches)) == 1
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_a_name_in_a_message_is_printable(tmp_path):
    assert display_name("a\nb\x1b.png") == r"a\nb\x1b.png" and display_name(GREY) == "the picture"
