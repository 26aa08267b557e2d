"""`octfast data phantom`: make synthetic B-scans, with faults planted where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octfast.cli import options


def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write; must be missing or empty.")],
    scans: Annotated[int, typer.Option(help="How many scans, before faults are planted.")] = 480,
    seed: Annotated[int, typer.Option(help="Seed of the whole set.")] = 0,
    size: Annotated[int | None, typer.Option(help="Side in pixels; by default 512 or 768 x 496.")] = None,
    test: Annotated[float, typer.Option(help="Share of the scans for the test folder.")] = 0.2,
    fault: Annotated[
        list[str] | None, typer.Option(help="Plant a fault so many times, as in truncated=3; may be repeated.")
    ] = None,
    volumes: Annotated[int | None, typer.Option(help="Write so many volumes of B-scans instead.")] = None,
    frames: Annotated[int, typer.Option(help="B-scans a volume, with --volumes.")] = 25,
    diseased: Annotated[
        str, typer.Option(help="Neighbouring B-scans of a volume that show the disease: a number or a range.")
    ] = "1-5",
    kind: Annotated[
        str, typer.Option("--format", help="Of volumes: png (a folder a volume), tiff, dicom, vol or heyex (XML).")
    ] = "png",
    as_json: options.Json = False,
) -> None:
    """Make synthetic B-scans in OCT2017's layout; they show no patient and are of no clinical meaning.

    With --volumes, volumes of eyes whose disease shows in some B-scans alone, with volumes.csv (a row a volume) and
    frames.csv (which B-scans show it).

    Faults: truncated, empty, text, wrong-extension, duplicate, duplicate-across-classes, duplicate-across-splits,
    near-duplicate, patient-across-splits, patient-two-labels, blank, black, colour, text-burnt-in, odd-size, 16-bit,
    cmyk, rgba, gif. What was planted is listed in faults.csv.

    Examples:

      octfast data phantom --scans 2000 --out phantoms

      octfast data phantom --out faulty --fault truncated=3 --fault patient-across-splits=2

      octfast data phantom --out clinic --volumes 40 --format vol
    """
    from octfast.console import print_json, print_table, track
    from octfast.data.phantom.draw import write_phantoms
    from octfast.data.phantom.faults import LIST, write_faulty_phantoms
    from octfast.errors import UsageError

    if volumes is not None:
        if fault:
            raise UsageError("--fault is for single scans, not for --volumes", "leave one of them out")
        _volumes(out, volumes, frames, parse_range(diseased), kind, seed, size, as_json)
        return
    faults = parse_faults(fault or [])
    planted = []
    with track("drawing phantoms", scans) as update:
        if faults:
            table = write_faulty_phantoms(out, scans, faults, seed=seed, size=size, test=test, progress=update)
            planted = table.to_dict("records")
        else:
            write_phantoms(out, scans, seed=seed, size=size, test=test, progress=update)
    counts = {d.name: sum(1 for f in d.glob("*/*") if f.is_file()) for d in sorted(out.iterdir()) if d.is_dir()}
    if as_json:
        print_json({"out": str(out), "seed": seed, "files": counts, "faults": planted})
        return
    print_table("Synthetic phantoms, of no clinical meaning", ("split", "files"), counts.items())
    if planted:
        print_table(
            f"Planted on purpose, listed in {LIST}",
            ("fault", "path", "of", "detail"),
            [[row[c] for c in ("fault", "path", "of", "detail")] for row in planted],
        )
    print(f"Phantoms: {out}")
    print(f"Next: octfast data {'audit' if planted else 'explore'} {out}")


def _volumes(
    out: Path,
    volumes: int,
    frames: int,
    diseased: tuple[int, int],
    kind: str,
    seed: int,
    size: int | None,
    as_json: bool,
) -> None:
    import pandas as pd

    from octfast.console import print_json, print_table, track
    from octfast.data.phantom.volumes import TABLE, TRUTH, write_volumes

    with track("drawing phantom volumes", volumes, "volumes") as update:
        write_volumes(out, volumes, frames=frames, diseased=diseased, kind=kind, seed=seed, size=size, progress=update)
    counts = pd.read_csv(out / TABLE).groupby("label").agg(volumes=("volume", "size"), patients=("patient", "nunique"))
    if as_json:
        print_json({"out": str(out), "seed": seed, "frames": frames, "classes": counts.to_dict("index")})
        return
    rows = [[label, int(row.volumes), int(row.patients)] for label, row in counts.iterrows()]
    print_table("Synthetic volumes, of no clinical meaning", ("class", "volumes", "patients"), rows)
    print(f"Volumes: {out / TABLE}; which B-scans show the disease: {out / TRUTH}")
    print(f"Next: octfast data explore {out / TABLE}")


def parse_range(word: str) -> tuple[int, int]:
    """The ends of a range such as 1-5; a number alone is both.

    Raises
    ------
    UsageError : neither.
    """
    from octfast.errors import UsageError

    low, _, high = word.partition("-")
    if not low.strip().isdecimal() or not (high or low).strip().isdecimal():
        raise UsageError(f"--diseased {word}: neither a number nor a range", "for example --diseased 1-5, or 3")
    return int(low), int(high or low)


def parse_faults(words: list[str]) -> dict[str, int]:
    """Faults and their numbers from words such as truncated=3; a name alone counts once.

    Raises
    ------
    UsageError : an unknown fault, or no number.
    """
    from octfast.data.phantom.faults import check_faults
    from octfast.errors import UsageError

    faults: dict[str, int] = {}
    for word in words:
        name, given, number = word.partition("=")
        name = name.strip().lower().replace("_", "-")
        if given and not number.strip().lstrip("-").isdecimal():
            raise UsageError(f"--fault {word}: {number or 'nothing'} is not a number", f"for example --fault {name}=3")
        faults[name] = faults.get(name, 0) + (int(number) if given else 1)
        check_faults(faults)
    return faults
