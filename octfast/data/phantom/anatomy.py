"""The made-up eyes behind the synthetic B-scans: layers, lesions and how a slice through them looks.

Everything here is invented and of no clinical meaning. Lengths are pixels: about 11.5 um across (x, and z from
slice to slice) and 3.9 um in depth (y, growing downwards), as in a Spectralis scan. Grey levels are those of the
display, which shows the fourth root of the intensity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEIGHT = 496
WAVELENGTHS = np.array([13.0, 18.0, 25.0, 35.0, 49.0, 70.0])

# Grey of each layer at its top and bottom edge, from the vitreous' edge down to the RPE.
GREYS = {
    "rnfl": (185.0, 140.0),
    "gcl": (98.0, 94.0),
    "ipl": (92.0, 95.0),
    "inl": (67.0, 64.0),
    "opl": (92.0, 85.0),
    "onl": (60.0, 46.0),
    "elm": (76.0, 74.0),
    "myoid": (64.0, 72.0),
    "ez": (168.0, 160.0),
    "os": (104.0, 100.0),
    "fluid": (26.0, 30.0),
    "matter": (128.0, 112.0),
    "tips": (176.0, 170.0),
    "gap": (152.0, 150.0),
    "rpe": (208.0, 176.0),
    "fill": (92.0, 82.0),
}


@dataclass(frozen=True)
class Lesion:
    """One lesion, an ellipsoid about (x, z) from the fovea; `level` is its depth in the retina or its grey."""

    kind: str
    x: float
    z: float
    rx: float
    ry: float
    rz: float
    level: float = 0.0
    rough: float = 0.0
    phase: float = 0.0

    def size_at(self, z: float) -> float:
        """Its share (0 to 1) of full size in the slice at z."""
        return float(np.sqrt(max(0.0, 1.0 - ((z - self.z) / self.rz) ** 2)))

    def dome(self, x: np.ndarray, z: float) -> np.ndarray:
        """Its height at each x in the slice at z, as (W,) pixels."""
        size = self.size_at(z)
        if size == 0.0:
            return np.zeros_like(x)
        inside = np.maximum(0.0, 1.0 - ((x - self.x) / (self.rx * (0.5 + 0.5 * size))) ** 2)
        bumps = np.sin(x[:, None] * (2 * np.pi / WAVELENGTHS) + 0.09 * z + self.phase * np.arange(1, 7)).mean(1)
        crest = 2.5 * self.rough * min(self.ry, 16.0) * bumps * np.sqrt(inside)
        return np.maximum(0.0, size * (self.ry * inside**1.15 + crest))


@dataclass(frozen=True)
class Eye:
    """What the scans of a patient share: layers, pit, lesions, where the scanner looked, and the device."""

    thickness: dict[str, float]
    greys: dict[str, float]
    pit_width: float
    pit_depth: float
    rim: float
    nasal: int
    row: float
    tilt: float
    curve: float
    fovea_x: float
    slice_z: float
    irregular: float
    phases: np.ndarray
    vessels: np.ndarray
    choroid: float
    lumps: float
    width: int
    turned: bool
    gain: float
    gamma: float
    speckle: float
    noise: float
    vitreous: float
    haze: float
    hyaloid: tuple[float, float, float] | None
    signal: float
    lesions: tuple[Lesion, ...]


def draw_eye(rng: np.random.Generator, lesions: tuple[Lesion, ...]) -> Eye:
    """A patient's eye and device, drawn from rng, carrying these lesions."""

    def about(mean: float, spread: float) -> float:
        return float(mean * np.exp(spread * np.clip(rng.standard_normal(), -2.2, 2.2)))

    scale = about(1.0, 0.05)
    means = {"gcl": 14, "ipl": 11, "inl": 10.5, "opl": 6.5, "onl": 18, "myoid": 4.5, "ez": 4.6, "os": 3.2, "rpe": 6.5}
    thickness = {name: about(mean, 0.07) * scale for name, mean in means.items()}
    thickness |= {"rnfl": about(7.0, 0.3), "elm": 1.6, "tips": 2.6, "gap": 1.2}
    wide = rng.random() < 0.05
    unseen = rng.random() < 0.03
    count = int(rng.integers(1, 4))
    return Eye(
        thickness=thickness,
        greys={name: about(1.0, 0.035) for name in GREYS},
        pit_width=about(62.0, 0.18),
        pit_depth=float(np.clip(about(0.97, 0.05), 0.8, 1.0)),
        rim=about(0.24, 0.3),
        nasal=int(rng.choice((-1, 1))),
        row=float(rng.uniform(225, 270)),
        tilt=float(rng.normal(0, 0.028)),
        curve=about(2.6e-4, 0.3) * (0.9 if wide else 0.7),
        fovea_x=float(rng.normal(0, 28) + (rng.choice((-1, 1)) * rng.uniform(190, 260) if unseen else 0)),
        slice_z=float(rng.normal(0, 9) + (rng.choice((-1, 1)) * rng.uniform(60, 110) if unseen else 0)),
        irregular=about(0.4, 0.4),
        phases=rng.uniform(0, 2 * np.pi, 6),
        vessels=np.stack(
            [
                rng.uniform(-400, 400, count * 2),
                rng.uniform(1.5, 4.5, count * 2),
                rng.uniform(0.05, 0.24, count * 2),
            ],
            axis=1,
        ),
        choroid=about(50.0, 0.16),
        lumps=about(0.27, 0.2),
        width=768 if wide else 512,
        turned=bool(not wide and rng.random() < 0.2),
        gain=about(1.02, 0.04),
        gamma=about(0.99, 0.025),
        speckle=about(0.39, 0.12),
        noise=about(45.0 if wide else 39.0, 0.05),
        vitreous=float(rng.uniform(23, 29) if wide else rng.uniform(29, 34)),
        haze=float(max(0.0, rng.normal(-4, 5))),
        hyaloid=tuple(rng.uniform((14, -60, 20), (60, 60, 90))) if rng.random() < 0.12 else None,
        signal=about(1.0, 0.04),
        lesions=lesions,
    )


def draw_lesions(label: str, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """The lesions of a patient with this label, about (0, 0) where the scanner looks; some patients have it mildly."""
    mild = rng.random() < 0.04
    u = rng.uniform
    if label == "DRUSEN":
        return _drusen(rng, int(rng.integers(4, 7)) if mild else int(rng.integers(7, 16)), mild)
    if label == "DME":
        return _oedema(rng, mild)
    if label == "CNV":
        return _membrane(rng, mild)
    if rng.random() < 0.1:
        return tuple(Lesion("drusen", u(-180, 180), 0, u(5, 9), u(2.0, 3.4), 25) for _ in range(2))
    return ()


def _drusen(rng: np.random.Generator, count: int, mild: bool) -> tuple[Lesion, ...]:
    u = rng.uniform
    found = []
    for i in range(count):
        height = u(6.5, 10.5) if mild else float(np.clip(np.exp(rng.normal(2.75, 0.42)), 7, 36))
        radius = height * u(0.6, 1.1) + 5.5
        found.append(
            Lesion("drusen", rng.normal(0, 100), 0 if i == 0 else u(-18, 18), radius, height, u(24, 50), u(0.82, 1.12))
        )
    return tuple(found)


def _oedema(rng: np.random.Generator, mild: bool) -> tuple[Lesion, ...]:
    u = rng.uniform
    middle = rng.normal(0, 30)
    found = [Lesion("swelling", middle, 0, u(110, 190), u(10, 16) if mild else u(22, 48), u(80, 130))]
    x = middle - (u(5, 20) if mild else u(40, 110))
    for i in range(int(rng.integers(3, 6) if mild else rng.integers(9, 18))):
        big = not mild and i % 4 == 1
        radius = u(11, 20) if big else u(4.0, 9.0) * (0.85 if mild else 1)
        tall = radius * (u(1.1, 1.9) if big else u(0.8, 2.6))
        x += radius + (u(6, 24) if rng.random() < 0.2 else u(-1.0, 2.5))
        found.append(
            Lesion("cyst", x, u(-8, 8), radius, tall, u(24, 42), u(0.35, 0.65) if big else u(0.15, 0.85), 0.32, u(0, 6))
        )
        x += radius
    for _ in range(int(rng.integers(0, 9))):
        found.append(Lesion("focus", middle + rng.normal(0, 60), u(-8, 8), u(1.2, 2.6), u(1.5, 3.5), 18, u(0.2, 0.95)))
    if rng.random() < (0.0 if mild else 0.2):
        found.append(Lesion("fluid", middle, 0, u(50, 100), u(10, 26), u(40, 60)))
    return tuple(found)


def _membrane(rng: np.random.Generator, mild: bool) -> tuple[Lesion, ...]:
    u = rng.uniform
    middle = rng.normal(0, 45)
    size = 0.65 if mild else 1.0
    found = []
    style = rng.choice(("detachment", "matter", "both"), p=(0.4, 0.3, 0.3))
    if style != "matter":
        grey = u(0.7, 1.05)
        radius = u(75, 140) * size
        found.append(Lesion("detachment", middle, 0, radius, u(30, 58) * size, u(40, 70), grey, u(0.15, 0.5), u(0, 6)))
        if rng.random() < 0.5:
            x = middle + rng.choice((-1, 1)) * radius * u(0.7, 1.2)
            found.append(Lesion("detachment", x, 0, u(20, 50), u(8, 25) * size, u(40, 60), grey, 0.3, u(0, 6)))
    if style != "detachment":
        for _ in range(int(rng.integers(2, 4))):
            x = middle + rng.normal(0, 30 * size)
            radius = u(40, 85) * size
            found.append(
                Lesion("matter", x, u(-8, 8), radius, u(18, 40) * size, u(35, 60), u(0.95, 1.3), u(0.15, 0.5), u(0, 6))
            )
    if rng.random() < 0.6:
        x = middle + rng.choice((-1, 1)) * u(20, 90)
        found.append(Lesion("fluid", x, 0, u(40, 95), u(7, 22) * size, u(35, 60)))
    if rng.random() < 0.25:
        found += _drusen(rng, int(rng.integers(1, 5)), True)
    for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.35 else 0):
        x = middle + rng.normal(0, 35)
        found.append(Lesion("cyst", x, u(-8, 8), u(5, 12), u(6, 15), 30, u(0.3, 0.7), 0.2, u(0, 6)))
    for _ in range(int(rng.integers(0, 6))):
        found.append(Lesion("focus", middle + rng.normal(0, 50), u(-8, 8), u(1.2, 2.4), u(1.5, 3.2), 18, u(0.4, 0.98)))
    return tuple(found)
