"""Predicts a phantom volume as PNG files, .vol, TIFF, DICOM and a DICOM series: B-scans a processor second, memory.

    python benchmarks/volumes.py                    50 B-scans of 512 x 496, VGG16-BN at 224, random weights
    python benchmarks/volumes.py --frames 200

Each way runs in a process of its own; `read` takes the B-scans out of the .vol and asks no model. Processor seconds are
those of all threads and of the reading process; where other work runs they say more than the clock's. The model is
loaded before the time begins, and has answered for one picture. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import common

WAYS = ("png", "vol", "tiff", "dicom", "series", "read")


def main() -> None:
    args = parse()
    if args.work and args.only:
        common.write_json(args.json_out, prepare(args) if args.only == "prepare" else measure(args))
        return
    about = common.machine()
    common.say(common.describe_machine(about))
    rows: list[dict[str, Any]] = []
    with common.work_folder() as work:
        for way in ("prepare", *([args.only] if args.only else WAYS)):
            words: list[object] = ["--only", way, "--work", work]
            for key in ("frames", "size", "arch", "bs", "precision"):
                words += [f"--{key}", getattr(args, key)]
            found = common.run_alone(__file__, words, work, way)
            if way != "prepare":
                rows.append({"way": way, **found})
    common.print_table(rows, f"{args.frames} B-scans of a volume, {args.arch} at {args.size}, {args.precision}")
    asked = {k: v for k, v in vars(args).items() if k in ("frames", "size", "arch", "bs", "precision")}
    common.print_json({"benchmark": "volumes", "machine": about, "arguments": asked, "rows": rows})


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The same volume in every form, and a bundle with random weights."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn

    from octfast.data.phantom.volumes import write_volumes
    from octfast.model.arch import find_arch, make_network
    from octfast.model.bundle.info import BundleInfo
    from octfast.model.bundle.write import save_bundle
    from octfast.model.heads import body_and_head

    work = Path(args.work)
    for kind in ("vol", "tiff", "dicom", "png"):
        write_volumes(work / kind, 1, frames=args.frames, kind=kind, classes=("CNV",), diseased=(1, 1), workers=1)
    write_series(sorted((work / "dicom" / "volumes").iterdir())[0], work / "series")
    torch.manual_seed(0)
    arch = find_arch(args.arch)
    model = nn.Sequential(*body_and_head(make_network(arch, args.size), arch, "linear", 4))
    info = BundleInfo(args.arch, "linear", ("CNV", "DME", "DRUSEN", "NORMAL"), args.size, (0.5,) * 3, (0.2,) * 3)
    save_bundle(work / "model", model, info)
    Image.fromarray(np.zeros((496, 512), np.uint8)).save(work / "warm.png")
    return {}


def write_series(whole: Path, folder: Path) -> None:
    """A file a B-scan of a multi-frame one."""
    from pydicom import dcmread

    folder.mkdir()
    held = dcmread(whole)
    frames, places = held.pixel_array, held.PerFrameFunctionalGroupsSequence
    uid = held.SOPInstanceUID
    del held.PerFrameFunctionalGroupsSequence
    for n, (frame, place) in enumerate(zip(frames, places, strict=True)):
        held.NumberOfFrames, held.InstanceNumber, held.SOPInstanceUID = 1, n + 1, f"{uid[:50]}.{n + 1}"
        held.file_meta.MediaStorageSOPInstanceUID = held.SOPInstanceUID
        held.ImagePositionPatient = place.PlanePositionSequence[0].ImagePositionPatient
        held.PixelData = frame.tobytes()
        held.save_as(folder / f"{n:04d}.dcm", enforce_file_format=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    from octfast.data.volumes.reader import VolumeReader
    from octfast.deploy.predict.predict import run_prediction
    from octfast.deploy.predictor import load

    work, way = Path(args.work), args.only
    given = (
        work / "series"
        if way == "series"
        else sorted((work / ("vol" if way == "read" else way) / "volumes").iterdir())[0]
    )
    if way == "read":
        before = 0.0
        begun, cpu = time.perf_counter(), processor_seconds()
        with VolumeReader() as reader:
            count = sum(1 for _ in reader.read(given, "vol"))
    else:
        predictor = load(work / "model", precision=args.precision)
        run_prediction(predictor, [work / "warm.png"])
        before = common.peak_memory_mb()
        begun, cpu = time.perf_counter(), processor_seconds()
        found = run_prediction(predictor, [given], out=work / f"{way}.csv", bs=args.bs)
        count = found.scans
    seconds, used = time.perf_counter() - begun, processor_seconds() - cpu
    if count != args.frames:
        raise SystemExit(f"{way}: {count} of {args.frames} B-scans")
    return {
        "B-scans/s": count / seconds,
        "B-scans/cpu s": count / used,
        "MB": common.peak_memory_mb(),
        "MB before": before,
    }


def processor_seconds() -> float:
    """Of this process and of those that it has ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--frames", type=int, default=50, help="B-scans of the volume (default 50)")
    add("--size", type=int, default=224, help="side of a scan in pixels (default 224)")
    add("--arch", default="vgg16_bn", help="backbone (default vgg16_bn)")
    add("--bs", type=int, default=16, help="scans a batch (default 16)")
    add("--precision", default="fp32", help="of the model (default fp32)")
    add("--only", choices=[*WAYS, "prepare"], help="one way alone")
    add("--json-out", metavar="FILE", help=argparse.SUPPRESS)
    add("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "prepare" and not args.work:
        parser.error("prepare is no way")
    return args


if __name__ == "__main__":
    main()
