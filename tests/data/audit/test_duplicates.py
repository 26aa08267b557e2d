from __future__ import annotations

import time
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from octfast.data.audit.duplicates import (
    RADIUS,
    SAME_TEXTURE,
    Copy,
    agreement,
    exact_copies,
    mirror_textures,
    near_copies,
    near_pairs,
)
from octfast.data.audit.image_stats import ImageStats, all_image_stats, texture
from octfast.data.phantom.draw import make_phantom
from tests.data.audit.samples import again, phantom, save


def test_slices_of_one_eye_are_no_copies():
    slices = [Image.fromarray(make_phantom("DRUSEN", 4, i)) for i in range(12)]
    textures = np.stack([texture(s) for s in slices])
    first, second = np.triu_indices(12, 1)
    assert agreement(textures[first], textures[second]).max() < 0.45
    copies = np.stack([texture(again(s, 50)) for s in slices])
    assert agreement(textures, copies).min() > 0.75


@given(
    bits=st.integers(1, 40),
    n=st.integers(0, 30),
    radius=st.integers(0, 12),
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 0.5),
)
def test_the_search_finds_what_comparing_all_finds(bits, n, radius, seed, spread):
    rng = np.random.default_rng(seed)
    # Around a few centres, so that near pairs are common, not one in a million.
    centres = rng.integers(0, 2, (3, bits))
    strings = centres[rng.integers(0, 3, n)] ^ (rng.random((n, bits)) < spread)
    codes = np.packbits(strings.astype(np.uint8), axis=1)
    wanted = [[i, j] for i in range(n) for j in range(i + 1, n) if (strings[i] != strings[j]).sum() <= radius]
    assert near_pairs(codes, radius, codes.shape[1] * 8 - bits).tolist() == wanted


@given(n=st.integers(0, 12), radius=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_the_search_for_mirror_images_finds_what_comparing_all_finds(n, radius, seed):
    rng = np.random.default_rng(seed)
    strings = rng.integers(0, 2, (2, 16))[rng.integers(0, 2, 2 * n)] ^ (rng.random((2 * n, 16)) < 0.15)
    codes = np.packbits(strings.astype(np.uint8), axis=1)

    def near(a: int, b: int) -> bool:
        return bool((strings[a] != strings[b]).sum() <= radius)

    wanted = [[i, j] for i in range(n) for j in range(i + 1, n) if near(2 * i, 2 * j + 1) or near(2 * i + 1, 2 * j)]
    assert near_pairs(codes, radius, mirror=True).tolist() == wanted


def test_the_search_is_not_quadratic():
    codes = np.random.default_rng(0).integers(0, 256, (40_000, 18), dtype=np.uint8)
    codes[30_000:30_010] = codes[:10]
    started = time.perf_counter()
    assert near_pairs(codes, 11).tolist() == [[i, 30_000 + i] for i in range(10)]
    # Comparing all 800 million pairs takes minutes.
    assert time.perf_counter() - started < 20


def test_copies_of_copies_are_linked_to_one_that_they_are_copies_of(tmp_path):
    scan = phantom("CNV", 3).resize((256, 256))
    other = phantom("DME", 8).resize((256, 256))
    chain = [save(again(scan, q), tmp_path / f"{i}.png", "PNG") for i, q in enumerate((95, 70, 45))]
    stats = all_image_stats([str(p) for p in (*chain[:1], save(other, tmp_path / "z.png", "PNG"), *chain[1:])])
    links = near_copies(stats)
    assert {link.copy for link in links} == {2, 3}
    assert all(link.of in (0, 2, 3) and link.of != link.copy for link in links)


def test_hardly_any_texture_is_no_agreement():
    flat = np.zeros((1, 2, 512), dtype=np.uint8)
    flat[0, 0, :10] = 255
    assert agreement(flat, flat).tolist() == [0.0]


def test_mirrored_textures_are_those_of_the_mirror_image():
    scan = phantom("DRUSEN", 2).resize((256, 256))
    assert agreement(mirror_textures(texture(scan)[None]), texture(ImageOps.mirror(scan))[None])[0] > 0.97
    assert agreement(texture(scan)[None], texture(ImageOps.mirror(scan))[None])[0] < 0.4


def test_exact_copies_are_given_with_the_first():
    assert exact_copies([b"a", b"", b"b", b"a", b"", b"a"], "same") == [Copy(0, 3, "same"), Copy(0, 5, "same")]


def test_blank_and_small_scans_are_like_no_other(tmp_path):
    for i in range(3):
        save(Image.new("L", (80, 80), 0), tmp_path / f"blank-{i}.png", "PNG")
        save(
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)), tmp_path / f"{i}.png", "PNG"
        )
    stats = all_image_stats(sorted(map(str, tmp_path.iterdir())))
    assert all(s.hashes is None for s in stats)
    assert near_copies(stats) == []


def made_stats(rng: np.random.Generator, kinds: np.ndarray, flips: float, mirrored: bool = False) -> list[ImageStats]:
    """Scans of some kinds: those of a kind have the same texture, and hashes that differ in a few bits."""
    centres = rng.integers(0, 2, (kinds.max() + 1, 2, 144), dtype=np.uint8)
    textures = rng.integers(0, 256, (kinds.max() + 1, 512), dtype=np.uint8)
    stats = []
    for kind in kinds:
        bits = centres[kind] ^ (rng.random((2, 144)) < flips)
        texture = np.stack([textures[kind], ~textures[kind]])
        if mirrored and rng.random() < 0.5:
            bits, texture = bits[::-1], mirror_textures(texture[None])[0]
        stats.append(ImageStats(hashes=np.packbits(bits, axis=1), texture=texture))
    return stats


@given(n=st.integers(2, 120), kinds=st.integers(1, 4), flips=st.floats(0, 0.06), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_groups_of_copies_are_those_of_comparing_all(n, kinds, flips, seed):
    rng = np.random.default_rng(seed)
    stats = made_stats(rng, rng.integers(0, kinds, n), flips, mirrored=True)
    links = near_copies(stats)
    both = np.stack([np.unpackbits(s.hashes, axis=1) for s in stats])
    textures = np.stack([s.texture for s in stats])
    joined = np.eye(n, dtype=bool)
    for i in range(n):
        plain = ((both[i, 0] != both[:, 0]).sum(1) <= RADIUS) & (agreement(textures[i][None], textures) >= SAME_TEXTURE)
        near = ((both[i, 0] != both[:, 1]).sum(1) <= RADIUS) | ((both[i, 1] != both[:, 0]).sum(1) <= RADIUS)
        mirror = near & (agreement(textures[i][None], mirror_textures(textures)) >= SAME_TEXTURE)
        joined[i] |= plain | mirror
    wanted = connected_components(csr_matrix(joined), directed=False)[1]
    ends = np.array([(link.of, link.copy) for link in links], dtype=int).reshape(-1, 2)
    found = connected_components(csr_matrix((np.ones(len(ends)), ends.T), shape=(n, n)), directed=False)[1]
    assert [set(np.flatnonzero(found == found[i])) for i in range(n)] == [
        set(np.flatnonzero(wanted == wanted[i])) for i in range(n)
    ]
    # Each copy once, and only with what it is a copy of.
    assert len(links) == n - len(set(wanted)) == len({link.copy for link in links})
    assert all(joined[link.of, link.copy] or joined[link.copy, link.of] for link in links)


def test_thousands_of_copies_take_no_time_and_no_memory():
    rng = np.random.default_rng(1)
    stats = made_stats(rng, np.r_[np.zeros(5000, dtype=int), np.arange(1, 1001)], 0.01)
    tracemalloc.start()
    started = time.perf_counter()
    links = near_copies(stats)
    assert len(links) == 4999
    # Comparing each with each took 300 seconds and 5 GB.
    assert time.perf_counter() - started < 30
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()
