"""Fetches OCTMNIST and OCT2017 through the packages made for it, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import shutil
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from octfast.errors import DataError, UsageError
from octfast.files import is_offline, is_taken

log = logging.getLogger("octfast")

SIZES = (28, 64, 128, 224)
_KAGGLE = "paultimothymooney/kermany2018"
# Seconds to wait for a first answer, and for the next bytes.
_REACH = 12.0
_STALL = 60.0


@dataclass(frozen=True)
class Source:
    """A public data set: where it is from, under which licence, and whom to cite."""

    title: str
    licence: str
    citation: str
    page: str
    package: str
    probe: str


SOURCES = {
    "octmnist": Source(
        "OCTMNIST of MedMNIST v2: 109,309 scans, cut square and shrunk; no patients are named",
        "CC BY 4.0",
        "Yang et al., MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification, "
        "Scientific Data 10, 41 (2023); from Kermany et al., Cell 172 (2018)",
        "https://zenodo.org/records/10519652",
        "medmnist",
        "https://zenodo.org",
    ),
    "oct2017": Source(
        "OCT2017, the Kaggle copy: 84,484 scans, about 11 GB to fetch and as much again unpacked",
        "CC BY 4.0",
        "Kermany et al., Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning, "
        "Cell 172, 1122-1131 (2018); data: Kermany, Zhang, Goldbaum, Mendeley Data, doi 10.17632/rscbjbr9sj",
        f"https://www.kaggle.com/datasets/{_KAGGLE}",
        "kagglehub",
        "https://api.kaggle.com",
    ),
}


def download(name: str, out: str | Path, size: int = 28) -> Path:
    """Fetch a public data set. Nothing is asked; what there is already is not fetched again.

    Parameters
    ----------
    name : "octmnist" or "oct2017".
    out : a folder: OCTMNIST's .npz file is put into it; OCT2017 becomes it, so it must be missing or empty. Where the
        download of OCT2017 is interrupted, the next call goes on from there.
    size : of OCTMNIST's pictures: 28, 64, 128 or 224.

    Returns
    -------
    The file or folder to give to `octfast train`.

    Raises
    ------
    UsageError : an unknown name or size.
    DataError : no network, the package is not installed, the folder is not empty or cannot be written.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown data set: {name}", f"known are {' and '.join(SOURCES)}")
    if size not in SIZES:
        raise UsageError(f"--size {size}: no such size", f"sizes of OCTMNIST are {', '.join(map(str, SIZES))}")
    out = Path(out).expanduser().absolute()
    try:
        return _octmnist(out, size) if name == "octmnist" else _oct2017(out)
    except OSError as e:
        raise DataError(f"cannot write to {out}: {e}", "give --out a folder that can be written to") from e


def _octmnist(out: Path, size: int) -> Path:
    source = SOURCES["octmnist"]
    file = f"octmnist{'' if size == 28 else f'_{size}'}.npz"
    target = out / file
    by_hand = f"fetch {source.page}/files/{file} by hand and put it into {out}"
    if target.is_file():
        log.info("%s is there already", target)
        return target
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file", "give --out a folder")
    _reach(source, by_hand)
    with _quiet():
        medmnist = _package(source)
        # medmnist writes under the final name from the first byte on.
        part = out / ".octfast-download"
        part.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s", file)
        try:
            medmnist.OCTMNIST(split="test", download=True, size=size, root=str(part))
        except RuntimeError as e:
            # It turns whatever stopped the download into this, a Ctrl-C too.
            if isinstance(e.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from e
            raise DataError(f"fetching {file} failed: {_cause(e)}", by_hand) from e
        else:
            (part / file).rename(target)
        finally:
            # medmnist fetches from the beginning again, whatever is there.
            shutil.rmtree(part, ignore_errors=True)
    return target


def _oct2017(out: Path) -> Path:
    source = SOURCES["oct2017"]
    by_hand = f"fetch {source.page} by hand and unpack it into {out}"
    if is_taken(out):
        raise DataError(f"{out} exists and is not empty", "give another --out; nothing is overwritten")
    _reach(source, by_hand)
    # Beside the target, so that what is whole needs only a new name.
    part = out.with_name(f".{out.name}-download")
    part.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(part).free
    if free < 25e9:
        log.warning(
            "only %.0f GB are free in %s: OCT2017 needs about 25 GB while it is fetched", free / 1e9, out.parent
        )
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(part)
    try:
        with _quiet():
            kagglehub = _package(source)
            log.info("fetching OCT2017 from Kaggle")
            try:
                whole = Path(kagglehub.dataset_download(_KAGGLE))
            except Exception as e:
                # requests, kagglehub and kagglesdk each have errors of their own.
                raise DataError(f"fetching OCT2017 failed: {_cause(e)}", f"try again to go on; or {by_hand}") from e
    finally:
        if before is None:
            del os.environ["KAGGLEHUB_CACHE"]
        else:
            os.environ["KAGGLEHUB_CACHE"] = before
    found = sorted(
        (d for d in [whole, *whole.glob("*"), *whole.glob("*/*")] if _is_oct2017(d)), key=lambda d: len(d.parts)
    )
    if not found:
        raise DataError(f"what Kaggle sent has no folders train and test: {whole}", by_hand)
    if len(found) > 1:
        log.info("the archive holds the scans %d times; one copy is kept", len(found))
    if out.is_dir():
        out.rmdir()
    found[0].rename(out)
    shutil.rmtree(part, ignore_errors=True)
    return out


def _is_oct2017(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _package(source: Source) -> ModuleType:
    try:
        return importlib.import_module(source.package)
    except ImportError as e:
        raise DataError(f"cannot import {source.package}: {e}", "pip install 'octfast[download]'") from e


def _reach(source: Source, by_hand: str) -> None:
    """Raise a DataError within seconds where there is no network, for the packages may wait for minutes."""
    if is_offline():
        raise DataError("nothing is fetched, as OCTFAST_OFFLINE is set", f"unset it, or {by_hand}")
    _package_there(source)
    answer: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(source.probe, method="HEAD", headers={"User-Agent": "octfast"})
            urllib.request.urlopen(request, timeout=_REACH).close()
            answer.put("")
        except urllib.error.HTTPError:
            answer.put("")
        except urllib.error.URLError as e:
            # The packages bring certificates of their own, so only they can tell.
            answer.put("" if isinstance(e.reason, ssl.SSLCertVerificationError) else str(e.reason))
        except (OSError, ValueError) as e:
            answer.put(str(e))

    # Name servers that do not answer hold a lookup up for longer than any timeout given.
    threading.Thread(target=ask, daemon=True).start()
    try:
        reason = answer.get(timeout=_REACH + 3)
    except queue.Empty:
        reason = "no answer"
    if reason:
        raise DataError(f"cannot reach {source.probe}: {reason}", f"check the network, or {by_hand}")


def _package_there(source: Source) -> None:
    from importlib.util import find_spec

    if find_spec(source.package) is None:
        raise DataError(f"the package {source.package} is not installed", "pip install 'octfast[download]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the packages print to standard error, and let no connection stall for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _cause(error: BaseException) -> str:
    """The first line of what lies behind an error."""
    while (behind := error.__cause__ or error.__context__) is not None:
        error = behind
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
