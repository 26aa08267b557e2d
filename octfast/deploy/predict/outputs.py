"""Where a prediction may be written: looked at before any work is done, so that nothing is overwritten or lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octfast.deploy.predict.inputs import at_home
from octfast.deploy.predict.writers import check_parquet, format_of
from octfast.errors import UsageError
from octfast.files import is_taken


def units_file(out: Path, level: str) -> Path:
    """Where the table of units stands: beside that of scans, -volumes, -eyes or -patients in its name."""
    return out.with_name(f"{out.stem}-{level}s{out.suffix}")


def volumes_file(out: Path) -> Path:
    """Where the table of volumes stands: beside the table of scans, -volumes in its name."""
    return units_file(out, "volume")


def check_out(out: Path | None, format: str | None, inputs: Sequence[str | Path], resume: bool, force: bool) -> str:
    """The format of the table, if it can be written there.

    Raises
    ------
    UsageError : it would overwrite something, an input even by force; a folder, an unknown ending, parquet without
        pyarrow; --resume without a file.
    """
    kind = format_of(out, format)
    if out is None:
        if resume:
            raise UsageError("--resume needs the file to continue", "name it: --out FILE")
        if kind == "parquet":
            raise UsageError("parquet needs a file", "name it: --out FILE")
        return kind
    if kind == "parquet":
        check_parquet()
    for file in (out, volumes_file(out)):
        check_file(file, inputs, resume or force)
    return kind


def check_file(file: Path, inputs: Sequence[str | Path], again: bool) -> None:
    """See that a table can be written into a file; `again` : whether one that is there may be replaced.

    Raises
    ------
    UsageError : it is an input, a folder, or there.
    """
    if any(i != "-" and _same(file, i) for i in inputs):
        raise UsageError(f"{file} is an input", "give another --out; inputs are never overwritten")
    if _is_there(file, "--out") and not again:
        raise UsageError(f"{file} exists", "give another --out, or --force to replace it")
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "give --out the name of a file")


def check_pictures(paths: dict[str, Path], inputs: Sequence[str | Path], again: bool) -> None:
    """See that heat maps and montage can be written, and make the folder for the maps.

    Parameters
    ----------
    paths : by their option, --heatmaps and --montage.
    again : whether what is there may be replaced.

    Raises
    ------
    UsageError : they would overwrite something, lie among the inputs, or are of an unsupported file type.
    """
    folders = [at_home(i).resolve() for i in inputs if i != "-" and _is_dir(at_home(i))]
    for option, path in paths.items():
        inside = next((f for f in folders if path.resolve().is_relative_to(f)), None)
        if inside is not None:
            raise UsageError(f"{option} {path} is inside {inside}, the folder to predict", "give another path")
    if "--montage" in paths:
        file = paths["--montage"]
        if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg"):
            raise UsageError(f"--montage {file}: unsupported file type", "end it in .png, .jpg, .pdf or .svg")
        if not _is_dir(file.absolute().parent):
            raise UsageError(f"no such folder: {file.parent}", "make it first")
        if _is_there(file, "--montage") and not again:
            raise UsageError(f"{file} exists", "give another --montage, or --force to replace it")
    if "--heatmaps" in paths:
        folder, hint = paths["--heatmaps"], "give another --heatmaps folder"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if is_taken(folder) and not again:
                raise UsageError(f"{folder} is not empty", f"{hint}; nothing is overwritten")
        except OSError as e:
            raise UsageError(f"cannot write to {folder}: {e.strerror or e}", hint) from None


def _same(file: Path, given: str | Path) -> bool:
    try:
        return file.samefile(at_home(given))
    except (OSError, ValueError):  # one of them is not there, or can be no name
        return False


def _is_there(file: Path, option: str) -> bool:
    try:
        return file.exists()
    except OSError as e:  # a name too long, or a folder that may not be looked into
        raise UsageError(f"cannot write {file}: {e.strerror}", f"give another {option}") from None


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
