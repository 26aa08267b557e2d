"""Reads a bundle: its folder, what it says of its model, and the model itself; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octfast.errors import BundleError, DataError, OctfastError
from octfast.files import refuse_address
from octfast.model.bundle.info import INFO_FILE, MODEL_FILE, BundleInfo, parse_info
from octfast.model.bundle.state import refuse_unfinished
from octfast.model.bundle.strict import HINT, MEND, open_plain

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_JSON = 4 << 20


def find_bundle(path: str | Path) -> Path:
    """The folder of a bundle: the one given, or the model of the run folder that was given.

    Raises
    ------
    BundleError : it is an address on the web or cannot be read, or the training of the run has not come to its end.
    """
    try:
        refuse_address(path, "download it and give the folder of the trained model, or of the run")
    except DataError as e:
        raise BundleError(e.message, e.hint) from None
    try:
        folder = Path(path).expanduser()
        if folder.suffix.lower() in (".pkl", ".pickle", ".pth", ".pt") and folder.is_file():
            raise BundleError(
                f"{folder} is a pickle, as learn.export() and learn.save() write: opening it could run code",
                'where it was trained, octfast.save_run(learn, "runs/mine") makes a run that loads safely; of a .pkl '
                "that you trust, fastai's load_learner gives the Learner, which then needs dls of oct_dataloaders",
            )
        inside = folder / "model"
        # By the name, not by what it points to: a link there is refused with its own sentence.
        there = any(f.is_symlink() or f.exists() for f in (folder / INFO_FILE, folder / MODEL_FILE))
        run = folder.resolve().parent if there and folder.resolve().name == "model" else folder
    except (OSError, ValueError, RuntimeError) as e:
        raise BundleError(f"cannot read {str(path)[:200]!r}: {e}", HINT) from None
    refuse_unfinished(run)
    return inside if not there and inside.is_dir() else folder


def read_info(folder: str | Path) -> BundleInfo:
    """Read and check a bundle's octfast.json, of this version or an older one.

    Raises
    ------
    BundleError : missing, a link, too large, no strict JSON, of a newer version, unknown keys, values that cannot be.
    """
    file = Path(folder) / INFO_FILE
    opened, size = open_plain(file)
    with opened:
        if size > _MAX_JSON:
            raise BundleError(f"{file} is too large to be a bundle's: {size:,} bytes", HINT)
        try:
            data = opened.read(_MAX_JSON + 1)
        except OSError as e:
            raise BundleError(f"cannot read {file}: {e.strerror or e}", HINT) from None
    return parse_info(data, str(file))


def load_bundle(
    folder: str | Path, *, weights: str | Path | None = None, units: bool = False
) -> tuple[nn.Sequential, BundleInfo]:
    """Build the model that a bundle names and load its tensors; nothing in the bundle is executed, nothing fetched.

    The network is first built without memory for its tensors, and the header of model.safetensors compared with it, so
    that a bundle costs no more memory than its files are large.

    Parameters
    ----------
    weights : for a slim bundle, the file of its stock weights; None looks where torch and timm keep theirs.
    units : whether a model that answers for whole volumes, eyes or patients will do; its head gives a number a scan
        more than there are classes, see `octfast.model.pooling`.

    Returns
    -------
    (a Sequential of body and head in eval mode, on the CPU, in float32; its BundleInfo).

    Raises
    ------
    BundleError : a file is missing or damaged, the tensors are not those of the architecture, the stock weights of
        a slim bundle are not on this machine or are others, or the model does not answer for single scans.
    """
    from octfast.model.bundle.build import empty_network, filled
    from octfast.model.bundle.tensor_file import TensorFile

    folder = Path(folder)
    info = read_info(folder)
    if not units:
        refuse_units(info, folder)
    with TensorFile(folder / MODEL_FILE) as file:
        try:
            model = empty_network(info)
        except OctfastError as e:
            raise BundleError(f"{folder}: {e.message}", e.hint or MEND) from None
        wanted = model.state_dict()
        _check_tensors(file.path, file.entries, wanted, info)
        state = file.read()
    left_out = {k: v for k, v in wanted.items() if k not in state}
    if info.base is not None:
        from octfast.model.bundle.stock import stock_tensors

        state |= stock_tensors(info, left_out, folder, weights)
    return filled(model, info, state), info


def refuse_units(info: BundleInfo, name: str | Path) -> None:
    """Refuse, where single scans are asked about, a model that answers for units; `name` : of the model or its run.

    Raises
    ------
    BundleError : the model answers for whole volumes, eyes or patients and not for single scans.
    """
    if info.level != "scan":
        raise BundleError(
            f"the model of {name} answers for a whole {info.level}, and this asks about single scans",
            "octfast predict, evaluate, report and app ask about whole ones; or train with --level scan",
        )


def _check_tensors(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor], info: BundleInfo) -> None:
    """Raises BundleError where the header has others than the network; a slim bundle may lack some of the body."""
    hint = "export or train the model again"
    what = f"{file} does not hold {info.arch} with the head {info.head}"
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted:
            raise BundleError(f"{what}: {name[:80]!r} differs (it has no such tensor)", hint)
        if name not in found:
            if info.base is not None and name.startswith("0."):
                continue
            raise BundleError(f"{what}: {name} differs (it is not in the file)", hint)
        if found[name].shape != tuple(wanted[name].shape):
            shapes = f"{tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
            raise BundleError(f"{what}: {name} differs ({shapes})", hint)
        dtype = info.tensors if wanted[name].is_floating_point() else str(wanted[name].dtype).removeprefix("torch.")
        has = str(found[name].dtype).removeprefix("torch.")
        if has != dtype:
            raise BundleError(f"{what}: {name} differs ({has} instead of {dtype})", hint)
