"""Finds scans that are copies of each other: the same bytes, the same pixels, or the same speckle saved another way."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from octfast.data.audit.image_stats import HASH_SIZE, TEXTURE_SIZE, ImageStats

# Measured on 240 phantoms and 32 scans of OCT2017, with copies of each saved at quality 40 and 90, halved, enlarged,
# squeezed to a square, brighter and of more contrast: copies lie within 6 of the 144 bits of their hash (14 for a scan
# of 128 x 128 saved at quality 40), and their texture agrees to .87 or more (.57 for that one). Neighbouring slices of
# an eye agree to .34 at most (1,391 pairs of 1,840 phantoms; .05 on the real ones), as do other eyes.
RADIUS = 11
SAME_TEXTURE = 0.42
# Where hardly a pixel has texture, two pictures agree by chance.
_LEAST_TEXTURE = 400
_BLOCK = 1 << 14
# Rows with one key of a band, from which on most are taken for copies of each other.
_LARGE = 64
_ONES = np.array([n.bit_count() for n in range(256)], dtype=np.uint8)
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1).ravel()


class Copy(NamedTuple):
    """Two scans that are copies: their positions, and how one is made of the other."""

    of: int
    copy: int
    how: str


def exact_copies(keys: Sequence[Hashable], how: str) -> list[Copy]:
    """The positions whose key occurred before, each with the first that has it; empty keys equal no other."""
    first: dict[Hashable, int] = {}
    found = []
    for i, key in enumerate(keys):
        if key and first.setdefault(key, i) != i:
            found.append(Copy(first[key], i, how))
    return found


class Groups:
    """Scans that are copies of each other, gathered as they are found.

    of : int64 of shape (n,), the same for scans of one group.
    """

    def __init__(self, n: int) -> None:
        self.of = np.arange(n)
        self._members: dict[int, list[int]] = {i: [i] for i in range(n)}

    def join(self, a: int, b: int) -> bool:
        """Make one group of those of two scans; False where they are in one already."""
        small, large = sorted((int(self.of[a]), int(self.of[b])), key=lambda g: len(self._members[g]))
        if small == large:
            return False
        moved = self._members.pop(small)
        self.of[moved] = large
        self._members[large] += moved
        return True


def near_copies(stats: Sequence[ImageStats]) -> list[Copy]:
    """Copies that were saved again, resized, made brighter or darker a little, or mirrored.

    Candidates are the pairs whose perceptual hashes lie within `RADIUS` bits, all of which are found unless both are
    known to be of one group of copies already; those whose texture agrees to `SAME_TEXTURE` are copies. Each copy is
    given once, with one of its group that it was compared with, never across a chain. So a thousand copies of a scan
    take about a thousand comparisons, not half a million.

    Parameters
    ----------
    stats : of the scans; those without a hash, as they are blank or too small, have no copies.
    """
    at = np.array([i for i, s in enumerate(stats) if s.hashes is not None], dtype=np.int64)
    n = len(at)
    if n < 2:
        return []
    hashes = np.stack([stats[i].hashes for i in at])
    textures = np.stack([stats[i].texture for i in at])
    groups = Groups(n)
    found: dict[tuple[int, int], tuple[float, str]] = {}
    unused = 8 * hashes.shape[-1] - HASH_SIZE**2
    for mirror, codes in ((False, hashes[:, 0]), (True, hashes.reshape(2 * n, -1))):
        for a, b in _near(codes, RADIUS, unused, mirror, groups):
            others = mirror_textures(textures[b]) if mirror else textures[b]
            score = agreement(textures[a], others)
            for i in np.flatnonzero(score >= SAME_TEXTURE):
                if groups.join(a[i], b[i]):
                    found[int(a[i]), int(b[i])] = float(score[i]), "mirrored, " if mirror else ""
    return [
        Copy(int(at[a]), int(at[b]), f"{how}texture agrees to {s:.2f}") for a, b, s, how in _spanning_trees(found, n)
    ]


def near_pairs(codes: np.ndarray, radius: int, unused: int = 0, mirror: bool = False) -> np.ndarray:
    """All pairs of bit strings that differ in at most `radius` bits, without comparing each with each.

    The bits are cut into radius + 1 bands. Two strings that differ in `radius` bits or fewer are the same in one band
    at least, as so few differences cannot lie in all (the pigeonhole principle); only these are compared in full.

    Parameters
    ----------
    codes : uint8 of shape (n, bytes).
    radius : the most bits that may differ.
    unused : how many of the last bits are padding, the same in all.
    mirror : rows 2i and 2i + 1 belong to scan i and its mirror image: give pairs of a scan with another's mirror image.

    Returns
    -------
    int64 of shape (pairs, 2), the first smaller than the second, sorted.
    """
    blocks = [np.stack(block, axis=1) for block in _near(codes, radius, unused, mirror)]
    return np.unique(np.concatenate(blocks), axis=0) if blocks else np.empty((0, 2), dtype=np.int64)


def _near(
    codes: np.ndarray, radius: int, unused: int, mirror: bool, groups: Groups | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of `near_pairs`, some at a time, the first smaller; with `groups`, none that are in one by then."""
    n, bits = len(codes), 8 * codes.shape[1] - unused
    if n < 2:
        return
    scans = np.arange(n) // 2 if mirror else np.arange(n)
    # Neighbouring bits of a hash go together, so a band of them alone would put half of all scans into one bucket.
    order = np.random.default_rng(0).permutation(bits)
    earlier: list[np.ndarray] = []
    # With as many differences allowed as there are bits, all are near.
    bands = np.array_split(order, radius + 1) if radius < bits else [order[:0]]
    for band in bands:
        picked = codes[:, band // 8] >> (7 - band % 8).astype(np.uint8) & 1
        keys = np.zeros(n, dtype=np.int64)
        if len(band):
            keys = np.unique(np.packbits(picked, axis=1), axis=0, return_inverse=True)[1].ravel()
        for a, b in _same_keys(keys, scans, groups):
            if mirror:
                asked = (a % 2 != b % 2) & (a // 2 != b // 2)
                a, b = a[asked], b[asked]
            near = _ONES[codes[a] ^ codes[b]].sum(1, dtype=np.int32) <= radius
            # What was the same in a band before was compared there.
            for before in earlier:
                near &= before[a] != before[b]
            if near.any():
                a, b = scans[a[near]], scans[b[near]]
                yield np.minimum(a, b), np.maximum(a, b)
        earlier.append(keys)


def _same_keys(keys: np.ndarray, scans: np.ndarray, groups: Groups | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with the same key, in blocks of bounded size; with `groups`, none of one group."""

    def apart(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if groups is None:
            return a, b
        differ = groups.of[scans[a]] != groups.of[scans[b]]
        return a[differ], b[differ]

    rows = np.argsort(keys, kind="stable").astype(np.int64)
    _, first, sizes = np.unique(keys[rows], return_index=True, return_counts=True)
    if groups is not None:
        for start, size in zip(first[sizes > _LARGE], sizes[sizes > _LARGE], strict=True):
            for pivot, others in _around_pivots(rows[start : start + size], scans, groups):
                for at in range(0, len(others), _BLOCK):
                    block = others[at : at + _BLOCK]
                    yield apart(np.full(len(block), pivot), block)
        rows = rows[np.repeat(sizes <= _LARGE, sizes)]
    keys = keys[rows]
    starts = np.arange(len(keys) - 1)
    step = 1
    # Each with its next neighbour in the sorted order, then with the next but one, until no bucket is that long.
    while len(starts):
        starts = starts[starts + step < len(keys)]
        starts = starts[keys[starts] == keys[starts + step]]
        for at in range(0, len(starts), _BLOCK):
            block = starts[at : at + _BLOCK]
            yield apart(rows[block], rows[block + step])
        step += 1


def _around_pivots(bucket: np.ndarray, scans: np.ndarray, groups: Groups) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of a position with many others, so that in the end all of a bucket were compared, or are in one group.

    A few are compared with all, which gathers most of many copies. Of the largest group nothing more needs to be done:
    whatever is not in it is compared with all.
    """
    for pivot in bucket[:: max(1, len(bucket) // 4)]:
        yield int(pivot), bucket[bucket != pivot]
    kept, size = np.unique(groups.of[scans[bucket]], return_counts=True)
    one = scans[bucket[np.flatnonzero(groups.of[scans[bucket]] == kept[size.argmax()])[0]]]
    for row in bucket[groups.of[scans[bucket]] != groups.of[one]]:
        if groups.of[scans[row]] != groups.of[one]:
            yield int(row), bucket[bucket != row]


def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far textures agree: a correlation, 1 for the same, about 0 for others, and 0 where there is hardly any.

    Parameters
    ----------
    a, b : uint8 of shape (n, 2, 512), see `octfast.data.audit.image_stats.texture`.

    Returns
    -------
    float of shape (n,).
    """
    same = _ONES[a & b].sum((1, 2), dtype=np.int32)
    opposite = _ONES[a & b[:, ::-1]].sum((1, 2), dtype=np.int32)
    each = [_ONES[x].sum((1, 2), dtype=np.int32) for x in (a, b)]
    enough = np.minimum(*each) >= _LEAST_TEXTURE
    return np.where(enough, (same - opposite) / np.sqrt(np.maximum(each[0], 1) * np.maximum(each[1], 1)), 0.0)


def mirror_textures(textures: np.ndarray) -> np.ndarray:
    """Textures of the mirror images."""
    rows = textures.reshape(*textures.shape[:-1], TEXTURE_SIZE, TEXTURE_SIZE // 8)
    return _REVERSED[rows[..., ::-1]].reshape(textures.shape)


def _spanning_trees(found: dict[tuple[int, int], tuple[float, str]], n: int) -> list[tuple[int, int, float, str]]:
    """The pairs from the first of each group outwards, each copy after the one that it is given with."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order

    if not found:
        return []
    ends = np.array(list(found)).T
    graph = csr_matrix((np.ones(ends.shape[1]), ends), shape=(n, n))
    seen: set[int] = set()
    links = []
    for root in np.unique(ends):
        if root in seen:
            continue
        order, before = breadth_first_order(graph, root, directed=False)
        seen.update(order.tolist())
        links += [(int(before[i]), int(i)) for i in order[1:]]
    return [(a, b, *found[min(a, b), max(a, b)]) for a, b in links]
