"""Synthetic volumes of B-scans: eyes whose disease shows in some frames alone, as PNG, TIFF, DICOM, .vol or XML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from octfast.data.phantom.anatomy import Eye, Lesion, draw_eye, draw_lesions
from octfast.data.phantom.draw import CLASSES, NOTE, check_classes, generator, whole_folder
from octfast.data.phantom.render import draw_frame
from octfast.data.phantom.volume_files import WRITERS, Held
from octfast.data.scans import write_csv
from octfast.errors import UsageError
from octfast.files import usable_cores

TABLE, TRUTH = "volumes.csv", "frames.csv"
# Micrometres of a pixel across and in depth, as in `anatomy`, and from the first frame of a volume to its last.
ACROSS, DEEP, COVERED = 11.5, 3.9, 5760.0
MOST_FRAMES = 200


@dataclass(frozen=True)
class Volume:
    """A phantom volume.

    Attributes
    ----------
    frames : uint8 of shape (frames, 496, 512).
    extent : of each frame the share, 0 to 1, of full size that its largest lesion has there.
    between_um : from frame to frame.
    """

    frames: np.ndarray
    extent: np.ndarray
    between_um: float


@dataclass(frozen=True)
class _Job:
    name: str
    label: str
    patient: int
    eye: str
    visit: int


def make_volume(
    label: str,
    patient: int,
    eye: str = "R",
    visit: int = 0,
    *,
    frames: int = 25,
    diseased: tuple[int, int] = (1, 5),
    seed: int = 0,
) -> Volume:
    """A phantom volume; the same arguments give the same volume, of no clinical meaning.

    The layers change smoothly from frame to frame. The lesions lie in a number of neighbouring frames, drawn from
    `diseased` (both ends included), and leave no mark in the others. Two visits of an eye differ in the noise alone.

    Parameters
    ----------
    label : one of CLASSES; NORMAL has no lesions.
    patient, visit, seed : 0 or more.
    eye : "R" or "L", which are the mirror image of each other in the thickness of their nerve fibres.

    Raises
    ------
    DataError : an unknown label.
    UsageError : fewer than 2 or more than 200 frames, or disease on more frames than there are.
    """
    check_classes([label])
    check_extent(frames, diseased)
    side = "RL".index(eye)
    rng = generator(seed, patient, 6, side)
    few = int(rng.integers(diseased[0], diseased[1] + 1))
    step = COVERED / ACROSS / (frames - 1)
    first = int(np.clip(round(rng.normal((frames - few) / 2, frames / 7)), 0, frames - few))
    places = (np.arange(frames) - (frames - 1) / 2) * step
    lesions = () if label == "NORMAL" else draw_lesions(label, generator(seed, patient, 1, CLASSES.index(label)))
    middle, reach = float(places[first] + places[first + few - 1]) / 2, few * step / 2
    held = tuple(_within(lesion, middle, reach, largest=n == 0, rng=rng) for n, lesion in enumerate(lesions))
    drawn = draw_eye(generator(seed, patient, 2), held)
    whole = replace(_mirrored(drawn) if side else drawn, width=512, turned=False, nasal=(1, -1)[side])
    extent = [max((lesion.size_at(z) for lesion in held), default=0.0) for z in places]
    noise = [generator(seed, patient, 7, side, visit, n) for n in range(frames)]
    made = np.stack([draw_frame(whole, z, draw) for z, draw in zip(places, noise, strict=True)])
    return Volume(made, np.round(extent, 3), COVERED / (frames - 1))


def write_volumes(
    out: str | Path,
    volumes: int,
    *,
    frames: int = 25,
    diseased: tuple[int, int] = (1, 5),
    kind: str = "png",
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    size: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantom volumes with tables of them, and give back their folder, which appears complete or not at all.

    `volumes.csv` has a row a volume: `volume`, `label`, `patient`, `eye`, `path`; it is what training is given.
    `frames.csv` has the truth of each frame, for looking at what was learned: `volume`, `frame`, `position_mm`,
    `diseased` (0 or 1) and `extent`, see `Volume`.

    Parameters
    ----------
    kind : "png" (a folder a volume), "tiff", "dicom", "vol" or "heyex" (a folder with its XML), of the same pixels.
    size : write squares of size x size pixels instead of 512 x 496.
    volumes, classes, seed, workers, progress : as for `octfast.data.phantom.draw.write_phantoms`, in volumes.

    Raises
    ------
    UsageError, DataError : as `make_volume`; an unknown kind, fewer volumes than classes, or `out` is taken.
    """
    out = Path(out)
    check_classes(classes)
    check_extent(frames, diseased)
    if kind not in WRITERS:
        raise UsageError(f"--format {kind}: volumes are written as {', '.join(WRITERS)}", "give one of them")
    if volumes < len(classes) or seed < 0 or (size is not None and size < 8):
        raise UsageError(
            f"cannot write {volumes} volumes of {len(classes)} classes with seed {seed} and size {size}",
            "ask for one volume a class or more, a seed of 0 or more, and a size of 8 or more",
        )
    with whole_folder(out) as draft:
        jobs = list(_plan(volumes, seed, classes))
        (draft / "volumes").mkdir(parents=True)

        def write(job: _Job) -> tuple[dict, pd.DataFrame]:
            made = make_volume(
                *(job.label, job.patient, job.eye, job.visit), frames=frames, diseased=diseased, seed=seed
            )
            held = _held(made, job, size)
            path = WRITERS[kind](draft / "volumes" / job.name, held)
            row = {"volume": job.name, "label": job.label, "patient": job.patient, "eye": job.eye}
            truth = pd.DataFrame({"volume": job.name, "frame": range(frames), "position_mm": held.positions_mm})
            truth = truth.assign(diseased=(made.extent > 0).astype(int), extent=made.extent)
            return row | {"path": path.relative_to(draft).as_posix()}, truth

        rows, truths = [], []
        with ThreadPoolExecutor(workers or min(4, usable_cores())) as pool:
            for done, (row, truth) in enumerate(pool.map(write, jobs), 1):
                rows.append(row)
                truths.append(truth)
                if progress is not None:
                    progress(done, len(jobs))
        write_csv(pd.DataFrame(rows), draft / TABLE)
        write_csv(pd.concat(truths, ignore_index=True), draft / TRUTH)
        (draft / NOTE).write_text(
            "Synthetic volumes drawn by octfast (octfast.data.phantom.volumes) to look somewhat like retinal OCT.\n"
            "They show no patient and are of no clinical meaning: not a medical device, not for any diagnosis.\n\n"
            f"volumes: {volumes}\nframes: {frames}\nseed: {seed}\nclasses: {' '.join(classes)}\n",
            encoding="utf-8",
        )
    return out


def check_extent(frames: int, diseased: tuple[int, int]) -> None:
    """
    Raises
    ------
    UsageError : fewer than 2 or more than 200 frames, or disease on more frames than there are, or on none.
    """
    if not 2 <= frames <= MOST_FRAMES:
        raise UsageError(f"a phantom volume of {frames} frames", f"it may have 2 to {MOST_FRAMES}")
    if not 1 <= diseased[0] <= diseased[1] <= frames:
        raise UsageError(
            f"disease on {diseased[0]} to {diseased[1]} of {frames} frames", "for example --diseased 1-5, or 3"
        )


def _within(lesion: Lesion, middle: float, reach: float, largest: bool, rng: np.random.Generator) -> Lesion:
    """A lesion within so many pixels of the middle, along the frames; the largest ends where the disease does."""
    radius = reach if largest else reach * rng.uniform(0.45, 1.0)
    away = 0.0 if largest else rng.uniform(-1, 1) * (reach - radius)
    return replace(lesion, z=middle + away, rz=radius)


def _mirrored(eye: Eye) -> Eye:
    """The other eye of the same patient: pit and vessels lie on the other side."""
    return replace(eye, fovea_x=-eye.fovea_x, tilt=-eye.tilt, vessels=eye.vessels * np.array([-1.0, 1.0, 1.0]))


def _plan(volumes: int, seed: int, classes: Sequence[str]) -> Iterator[_Job]:
    """Volumes by class, alike in number; a patient has one or both eyes, and now and then an eye a second visit."""
    rng = generator(seed, 8)
    numbers: set[int] = set()
    count = 0
    for at, label in enumerate(classes):
        left = volumes // len(classes) + (at < volumes % len(classes))
        while left:
            patient = int(rng.integers(1_000_000, 10_000_000))
            if patient in numbers:
                continue
            numbers.add(patient)
            eyes = [("R", 0), ("L", 0)] if rng.random() < 0.4 else [(str(rng.choice(["R", "L"])), 0)]
            if rng.random() < 0.15:
                eyes.append((eyes[0][0], 1))
            for eye, visit in eyes[:left]:
                count += 1
                left -= 1
                yield _Job(f"V{count:04d}", label, patient, eye, visit)


def _held(made: Volume, job: _Job, size: int | None) -> Held:
    frames, scale = made.frames, (1.0, 1.0)
    if size is not None:
        scale = frames.shape[1] / size, frames.shape[2] / size
        small = [Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR) for f in frames]
        frames = np.stack([np.asarray(f) for f in small])
    # Seen from the front, the first frame at the bottom as in a Spectralis' picture.
    front = frames.mean(axis=1)[::-1]
    front = 255 * (front - front.min()) / max(1e-6, float(np.ptp(front)))
    side = frames.shape[2]
    slo = np.asarray(Image.fromarray(front.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC))
    return Held(frames, slo, str(job.patient), job.eye, DEEP * scale[0], ACROSS * scale[1], made.between_um)
