"""Draw one slice of a made-up eye as the scanner's display would show it: layers, lesions, shadows, speckle.

The pictures are synthetic and of no clinical meaning. Arrays are (W, H): a row of memory is a column of the
picture, as layers are found and filled along the depth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from octfast.data.phantom.anatomy import GREYS, HEIGHT, WAVELENGTHS, Eye

DEEP = 128


def draw_slice(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """One B-scan of this eye, as uint8 (496, W); rng gives the slice, the aim and the noise."""
    x = np.arange(eye.width, dtype=np.float64) - eye.width / 2
    aim = rng.normal(0, (9.0, 7.0, 11.0))
    tops, membrane = _surfaces(eye, x - aim[0], aim[1], eye.row + aim[2], rng)
    grey = _fill(eye, tops, membrane, x - aim[0], rng)
    _choroid(eye, grey, membrane, rng)
    _pockets(eye, grey, tops, x - aim[0], aim[1])
    _vitreous(eye, grey, tops, x, rng)
    return _display(eye, grey, rng)


def draw_frame(eye: Eye, z: float, rng: np.random.Generator) -> np.ndarray:
    """The B-scan of this eye at z, as one of a volume: as uint8 (496, W); rng gives the noise alone.

    The layers, the vessels and the lesions change with z and with nothing else, and the volume is bent along z as it is
    across. A lesion leaves no mark in a frame that it does not reach.
    """
    x = np.arange(eye.width, dtype=np.float64) - eye.width / 2
    lean = 0.04 * eye.nasal
    eye = replace(
        eye,
        lesions=tuple(lesion for lesion in eye.lesions if lesion.size_at(z) > 0),
        vessels=eye.vessels + np.array([lean * z, 0.0, 0.0]),
    )
    tops, membrane = _surfaces(eye, x, z, eye.row + 0.5 * eye.tilt * z - eye.curve * z**2, rng, still=True)
    grey = _fill(eye, tops, membrane, x, rng, still=True)
    _choroid(eye, grey, membrane, rng)
    _pockets(eye, grey, tops, x, z)
    _vitreous(eye, grey, tops, x, rng)
    return _display(eye, grey, rng)


def _wave(x: np.ndarray, z: float, phases: np.ndarray) -> np.ndarray:
    return np.sin(x[:, None] * (2 * np.pi / WAVELENGTHS) + 0.11 * z + phases).mean(1)


def _sum(eye: Eye, kinds: tuple[str, ...], x: np.ndarray, z: float) -> np.ndarray:
    total = np.zeros_like(x)
    for lesion in eye.lesions:
        if lesion.kind in kinds:
            total = np.maximum(total, lesion.dome(x, z)) if lesion.kind != "swelling" else total + lesion.dome(x, z)
    return total


def _surfaces(
    eye: Eye, x: np.ndarray, z: float, row: float, rng: np.random.Generator, still: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The top of each layer, and Bruch's membrane, as (W,) rows; `still` holds the head that a chin rest does not."""
    t = eye.thickness
    tilt = eye.tilt + (0.0 if still else rng.normal(0, 0.012))
    membrane = row + tilt * x - eye.curve * x**2 + 2.0 * np.sin(x / 70 + eye.phases[0])
    radius2 = ((x - eye.fovea_x) ** 2 + (z + eye.slice_z) ** 2) / eye.pit_width**2
    swelling = _sum(eye, ("swelling",), x, z)
    pit = eye.pit_depth * np.exp(-radius2) * np.exp(-swelling / 22)
    inner = (1 - pit) * (1 + eye.rim * radius2 * np.exp(-radius2 * 0.55) * 1.6)
    rise = _sum(eye, ("drusen", "detachment"), x, z)
    rise = gaussian_filter1d(rise, 1.2) + eye.irregular * (1 + _wave(x, z, eye.phases)) * 1.2
    matter = gaussian_filter1d(_sum(eye, ("matter",), x, z), 1.0)
    fluid = gaussian_filter1d(_sum(eye, ("fluid",), x, z), 3.0)
    lift = rise + matter + fluid
    soft = gaussian_filter1d(lift, 9.0)
    lifted = 0.25 * np.minimum(soft, 16) + 0.9 * np.maximum(soft - 16, 0)

    top = {}
    top["fill"] = membrane - rise
    top["rpe"] = top["fill"] - t["rpe"]
    top["gap"] = top["rpe"] - t["gap"]
    top["tips"] = top["gap"] - t["tips"]
    top["matter"] = top["tips"] - matter
    top["fluid"] = top["matter"] - fluid
    squeeze = 1 / (1 + (rise + matter) / 14)
    central = 1 + 0.9 * np.exp(-radius2 * 6)
    top["os"] = top["fluid"] - t["os"] * squeeze * central
    top["ez"] = top["os"] - t["ez"] * (0.45 + 0.55 * squeeze)
    top["myoid"] = top["ez"] - t["myoid"] * squeeze * central
    top["elm"] = top["myoid"] - t["elm"]
    outer = sum(t[name] for name in ("rpe", "gap", "tips", "os", "ez", "myoid", "elm"))
    onl = t["onl"] * (1 + 0.55 * np.exp(-radius2 * 1.3)) + 0.6 * swelling
    top["onl"] = np.minimum(membrane - lifted - outer - onl, top["elm"] - 5)
    top["opl"] = top["onl"] - t["opl"] * (0.12 + 0.88 * np.minimum(inner, 1)) * (1 + 0.12 * _wave(x, z, eye.phases + 1))
    top["inl"] = top["opl"] - t["inl"] * inner - 0.3 * swelling
    top["ipl"] = top["inl"] - t["ipl"] * inner
    top["gcl"] = top["ipl"] - t["gcl"] * inner - 0.1 * swelling
    fibres = np.clip((x - eye.fovea_x) * eye.nasal / 240 + 0.15, 0.0, 1.7)
    top["rnfl"] = top["gcl"] - 3.0 - t["rnfl"] * fibres * np.minimum(inner, 1)
    return top, membrane


def _fill(
    eye: Eye,
    tops: dict[str, np.ndarray],
    membrane: np.ndarray,
    x: np.ndarray,
    rng: np.random.Generator,
    still: bool = False,
) -> np.ndarray:
    """Grey of every layer before noise, as float32 (W, H): straight lines between knots on each column."""
    width = x.size
    order = list(GREYS)
    shade = _shadows(eye, x, rng, still)
    lift = np.maximum(membrane - tops["fill"] - 2.5, 0)
    matter = tops["tips"] - tops["matter"]
    fibres = np.clip((tops["gcl"] - tops["rnfl"]) / 8, 0.25, 1.0)
    faded = 1 / (1 + ((lift + matter) / 13) ** 2)
    level = {name: np.ones(width) for name in order}
    level["rnfl"] = 0.72 + 0.42 * fibres
    level["ez"] = 0.62 + 0.38 * faded
    level["tips"] = 0.8 + 0.2 * faded
    level["matter"] = _levels(eye, "matter", x)
    level["fill"] = _levels(eye, "detachment", x) * _levels(eye, "drusen", x)
    rows, values = [], []
    floor = np.full(width, eye.vitreous)
    for name, below in zip(order, [*order[1:], "membrane"], strict=True):
        upper = tops[name]
        lower = membrane if below == "membrane" else tops[below]
        lower = np.maximum(lower, upper)
        soft = np.minimum(1.3, (lower - upper) / 3)
        mottle = 1 + 0.05 * _slow(rng, width, 9)
        dim = shade if name not in ("rnfl", "gcl") else np.sqrt(shade)
        for row, grey in ((upper + soft, GREYS[name][0]), (lower - soft, GREYS[name][1])):
            rows.append(row)
            values.append(np.maximum(grey * level[name] * eye.greys[name] * mottle * dim, 14.0))
    under = shade * np.clip(1 - gaussian_filter1d(lift, 9.0) / 150, 0.6, 1) * (1 + 0.025 * _slow(rng, width, 2.5))
    thick = eye.choroid
    for depth, grey in ((0.4, 126), (3.0, 92), (12, 76), (0.45 * thick + 9, 53), (thick + 12, 35), (2.2 * thick, 21)):
        rows.append(membrane + depth)
        values.append(np.maximum(grey * under * eye.signal, 15.0))
    rows.append(membrane + 3.4 * thick + 60)
    values.append(np.full(width, 0.42 * eye.vitreous))
    return _columns(np.maximum.accumulate(np.stack(rows), axis=0), np.stack(values), floor)


def _levels(eye: Eye, kind: str, x: np.ndarray) -> np.ndarray:
    """Grey factor of a kind of lesion at each x: that of the lesion covering it, 1 elsewhere, as (W,)."""
    level = np.ones_like(x)
    for lesion in eye.lesions:
        if lesion.kind == kind and lesion.level:
            level[np.abs(x - lesion.x) < lesion.rx] = lesion.level
    return gaussian_filter1d(level, 2.0)


def _slow(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    field = gaussian_filter1d(rng.standard_normal(size), sigma)
    return field / field.std()


def _shadows(eye: Eye, x: np.ndarray, rng: np.random.Generator, still: bool = False) -> np.ndarray:
    """How much light gets past the vessels at each x (0 to 1), as (W,)."""
    shade = 1 + 0.008 * rng.standard_normal(x.size)
    for where, radius, strength in eye.vessels:
        moved = 0.0 if still else rng.normal(0, 5)
        shade -= strength * np.exp(-(((x - where - moved) / radius) ** 2))
    for lesion in eye.lesions:
        if lesion.kind in ("focus", "matter", "detachment"):
            strength = 0.12 if lesion.kind == "focus" else 0.07 + 0.06 * lesion.rough
            streaks = strength if lesion.kind == "focus" else strength * np.abs(_slow(rng, x.size, 2.5))
            shade -= streaks * np.exp(-(((x - lesion.x) / (lesion.rx * 0.8 + 0.8)) ** 2))
    return np.clip(shade, 0.35, 1.1)


def _columns(rows: np.ndarray, values: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Piecewise linear columns through knots (K, W) at these rows, `floor` above the first, as float32 (W, H)."""
    count, width = rows.shape
    first = np.clip(np.ceil(rows), 0, HEIGHT).astype(np.intp).T
    steps = np.zeros((width, HEIGHT + 1), np.uint8)
    np.add.at(steps, (np.arange(width)[:, None], first), 1)
    knot = np.cumsum(steps[:, :HEIGHT], axis=1, dtype=np.uint8).astype(np.intp)
    gap = np.maximum(np.diff(rows, axis=0), 1e-6)
    slope = np.diff(values, axis=0) / gap
    slope = np.concatenate([np.zeros((1, width)), slope, np.zeros((1, width))]).T.astype(np.float32)
    start = np.concatenate([floor[None], values]).T
    start = (start - slope * np.concatenate([np.zeros((1, width)), rows]).T).astype(np.float32)
    at = knot + (np.arange(width) * (count + 1))[:, None]
    depth = np.arange(HEIGHT, dtype=np.float32)
    return start.ravel().take(at) + slope.ravel().take(at) * depth


def _choroid(eye: Eye, grey: np.ndarray, membrane: np.ndarray, rng: np.random.Generator) -> None:
    """Vessels and stroma of the choroid, larger with depth, in place."""
    width = grey.shape[0]
    small = gaussian_filter(rng.standard_normal((width // 2, DEEP // 2)).astype(np.float32), (1.6, 1.2))
    large = gaussian_filter(rng.standard_normal((width // 2, DEEP // 2)).astype(np.float32), (4.2, 2.8))
    depth = np.arange(DEEP // 2) * 2 / eye.choroid
    mix = np.clip(depth * 2.5, 0, 1)
    large = np.tanh(1.3 * large / large.std())
    field = (1 - 0.65 * mix) * small / small.std() * 0.55 + mix * large
    field *= eye.lumps * np.clip(1.35 - depth, 0, 1) * np.clip(depth * 8, 0, 1)
    field = np.repeat(np.repeat(field, 2, 0), 2, 1).astype(np.float32)
    field[1:-1] = (field[:-2] + 2 * field[1:-1] + field[2:]) / 4
    field[:, 1:-1] = (field[:, :-2] + 2 * field[:, 1:-1] + field[:, 2:]) / 4
    field[:, -1] = 0
    where = np.arange(HEIGHT)[None] - membrane.astype(np.intp)[:, None]
    where = np.where(where < 0, DEEP - 1, np.minimum(where, DEEP - 1))
    grey *= 1 + np.take_along_axis(field, where, axis=1)


def _pockets(eye: Eye, grey: np.ndarray, tops: dict[str, np.ndarray], x: np.ndarray, z: float) -> None:
    """Cysts and bright foci inside the retina, in place."""
    for lesion in eye.lesions:
        size = lesion.size_at(z)
        if lesion.kind not in ("cyst", "focus") or size < 0.25:
            continue
        column = int(np.clip(np.searchsorted(x, lesion.x), 0, x.size - 1))
        above, below = float(tops["ipl"][column]), float(tops["elm"][column]) - 2
        tall = min(lesion.ry * size, 0.44 * (below - float(tops["rnfl"][column]) - 6))
        wide = max(lesion.rx * size, 1.0)
        middle = above + lesion.level * (below - above)
        middle = float(np.clip(middle, tops["rnfl"][column] + tall + 4, max(below - tall, above)))
        reach = int(wide * 1.5) + 3
        left, right = max(0, column - reach), min(x.size, column + reach + 1)
        up, down = max(0, int(middle - tall * 1.5) - 3), min(HEIGHT, int(middle + tall * 1.5) + 4)
        if right <= left or down <= up:
            continue
        across = ((x[left:right] - lesion.x) / wide)[:, None]
        along = ((np.arange(up, down) - middle) / tall)[None]
        angle = np.arctan2(along, across)
        edge = 1 + lesion.rough * 0.45 * (np.sin(2 * angle + lesion.phase) + 0.6 * np.sin(3 * angle - lesion.phase))
        inside = np.clip((edge - np.sqrt(across**2 + along**2)) * min(wide, tall) / 1.8 + 0.5, 0, 1).astype(np.float32)
        part = grey[left:right, up:down]
        part += inside * ((26.0 if lesion.kind == "cyst" else 148.0) - part) * (0.97 if lesion.kind == "cyst" else 0.8)


def _vitreous(eye: Eye, grey: np.ndarray, tops: dict[str, np.ndarray], x: np.ndarray, rng: np.random.Generator) -> None:
    """Haze, and in some eyes the detached hyaloid as a faint line, in place."""
    depth = np.arange(HEIGHT, dtype=np.float32)
    open_ = depth < tops["rnfl"][:, None] - 2
    if eye.haze > 0.5:
        grey += open_ * (eye.haze * np.exp(-(((depth - rng.uniform(20, 90)) / 40) ** 2))).astype(np.float32)
    if eye.hyaloid is not None:
        height, centre, spread = eye.hyaloid
        line = (
            gaussian_filter1d(tops["rnfl"], 30.0)
            - 1.6 * height * (1 - np.exp(-(((x - centre) / (spread * 2.5)) ** 2)))
            - 6
            + rng.normal(0, 2)
        )
        seen = np.clip(np.abs(x - centre) / spread - 0.8, 0, 1) * np.clip(1.2 + 0.5 * _slow(rng, x.size, 40), 0, 1)
        band = np.exp(-(((depth - line[:, None]) / 1.6) ** 2)) * seen[:, None] * 46
        grey += (open_ * band).astype(np.float32)


def _display(eye: Eye, grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speckle, noise floor and the fourth root of the display, then the border of a turned scan; uint8 (H, W)."""
    width = grey.shape[0]
    fade = 1 - 0.16 * ((np.arange(width) - width / 2) / (width / 2)) ** 4
    grey = grey * (fade * eye.gain * np.exp(rng.normal(0, 0.025))).astype(np.float32)[:, None]
    blotches = gaussian_filter(rng.standard_normal((width // 2, HEIGHT // 2), dtype=np.float32), (2.0, 1.0))
    grey *= 1 + np.repeat(np.repeat(blotches * (0.045 / blotches.std()), 2, 0), 2, 1)
    grey[:, 1:-1] = 0.2 * (grey[:, :-2] + grey[:, 2:]) + 0.6 * grey[:, 1:-1]
    signal = np.square(np.square(grey / 255))
    dots = rng.standard_normal((width, HEIGHT + 2), dtype=np.float32)
    dots = 0.45 * (dots[:, :-2] + dots[:, 2:]) + 0.78 * dots[:, 1:-1]
    dots += 0.22 * (np.square(dots) - 1)
    noise = np.linspace(eye.noise, eye.noise * 0.5, HEIGHT, dtype=np.float32) / 255
    noise = np.square(np.square(noise)) * 0.9
    light = signal + dots * np.sqrt(np.square(eye.speckle * signal) + np.square(noise))
    shown = np.sqrt(np.sqrt(np.maximum(light, 0))) ** eye.gamma
    if eye.width == 512:
        # The narrow scans of OCT2017 were resampled between pixels, which is what smooths their noise.
        share = np.float32(rng.uniform(0.3, 0.5))
        shown[:-1] += share * (shown[1:] - shown[:-1])
        share = np.float32(rng.uniform(0.05, 0.5))
        shown[:, :-1] += share * (shown[:, 1:] - shown[:, :-1])
    picture = np.clip(shown * 255, 0, 255).astype(np.uint8).T
    return _border(picture, rng) if eye.turned else np.ascontiguousarray(picture)


def _border(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White wedges above or below and a white sliver at the side, as (H, W)."""
    picture = picture.copy()
    height, width = picture.shape
    edge = rng.normal(0, 8) + np.linspace(-0.5, 0.5, width) * rng.normal(0, 12)
    rows = np.arange(height)[:, None]
    picture[rows < np.round(edge)] = 255
    picture[rows >= np.round(height + edge)] = 255
    slivers = int(rng.integers(0, 4))
    if slivers:
        picture[:, width - slivers :] = 255
    return picture
