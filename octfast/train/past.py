"""What is there of a training that goes on, or is made again: its options, scans, notes, and what has changed since."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from octfast.data.corrections import Applied
from octfast.data.prepare import Prepared
from octfast.data.scans import SPLITS, load_scans
from octfast.errors import DataError, UsageError, WeightsError
from octfast.notices import Note
from octfast.run.folder import Run
from octfast.run.origin import fingerprint
from octfast.train import checkpoint
from octfast.train.config import TrainConfig
from octfast.train.leave_out import without_unreadable

log = logging.getLogger("octfast")


@dataclass(frozen=True)
class Past:
    """An earlier training; without any fields there is none.

    Attributes
    ----------
    about : what its config.json says.
    new : whether it is made again from its beginning, in another folder; else it goes on in its own.
    scans : its Scans table, where that is known.
    prepared : the scans to go on with; None reads them anew.
    notes : its warnings, where it goes on, and what was said of it.
    resumed : the numbers of epochs after which it went on, this time among them.
    """

    about: dict[str, Any] = field(default_factory=dict)
    new: bool = True
    scans: pd.DataFrame | None = None
    prepared: Prepared | None = None
    notes: tuple[Note, ...] = ()
    resumed: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """That it took until now."""
        said = self.about.get("seconds")
        return float(said) if isinstance(said, int | float) and not self.new else 0.0

    def check(self, about: dict[str, Any], prepared: Prepared) -> None:
        """Say what is not as it was; `about` : what config.json is to say now.

        Raises
        ------
        WeightsError : a training would go on with other weights than it began with.
        """
        if not self.about:
            return
        was, now = (_part(a, "weights_report").get("sha256") for a in (self.about, about))
        if not self.new and "weights_report" in self.about and was != now:
            raise WeightsError(
                "the pretrained weights are not those that the training began with",
                f"bring the file back whose SHA-256 is {was}, or train anew with octfast train --config",
            )
        found = [*_changes(self.about, about), *(_changes_of_scans(self, about, prepared) if self.new else ())]
        for line in found:
            log.warning("not as it was: %s", line)
        if self.new and not found:
            log.info("scans, weights, versions and machine are as they were")


def recorded_config(about: dict[str, Any], name: str) -> TrainConfig:
    """The options that a config.json holds, its files and folders absolute; `name` : of the file, for messages.

    Raises
    ------
    UsageError : it is of no run of `octfast train`, or holds what this version does not know.
    """
    data = about.get("data")
    if not isinstance(data, dict) or not isinstance(about.get("epochs"), int):
        raise UsageError(f"{name} is not the config.json of a run", "give RUN/config.json of a run of octfast train")
    if about.get("made_by") is not None:
        raise UsageError(f"{name} is of a Learner that was trained in Python", "no command makes it again")
    given = {f.name: about[f.name] for f in fields(TrainConfig) if f.name in about}
    given["data"] = data.get("source")
    folder = about.get("cwd")
    if isinstance(folder, str):
        files = [f.name for f in fields(TrainConfig) if f.metadata.get("path")]
        files += [] if given.get("weights") in (None, "auto", "none") else ["weights"]
        for each in files:
            if isinstance(given.get(each), str):
                given[each] = str(Path(folder) / Path(given[each]).expanduser())
    try:
        return TrainConfig(**given)
    except TypeError as e:
        raise UsageError(f"{name} holds an option of another type: {e}", "correct it there") from None


def begun_with(config: TrainConfig) -> dict[str, Any]:
    """What config.json says of a training that has read nothing yet."""
    return {**config.to_dict(), "data": {"root": config.data or "", "source": config.data}, "cwd": str(Path.cwd())}


def past_scans(run: Run) -> Prepared | None:
    """The scans that a training had begun with; None where it had not come so far."""
    about = run.config
    if "fingerprint" not in about["data"]:
        return None
    scans = load_scans(run.path / "scans.csv", run.root, as_text=True).sort_values("path", ignore_index=True)
    file = run.path / "left-out.csv"
    left_out = load_scans(file, run.root, as_text=True) if file.exists() else scans.iloc[:0].assign(reason="")
    corrected = about["data"].get("corrected")
    return Prepared(scans, left_out, run.root, Applied(**corrected) if corrected else None)


def still_there(run: Run, prepared: Prepared) -> Prepared:
    """The scans without those that cannot be read any more, which are said; the epochs of before are forgotten then.

    Raises
    ------
    DataError : files have another content than they had, or too many have gone.
    """
    if fingerprint(prepared.scans, prepared.root) == run.config["data"]["fingerprint"]:
        return prepared
    fewer = without_unreadable(prepared, SPLITS)
    if fewer is None:
        raise DataError(
            f"the scans in {prepared.root} are not those that the training began with: files have other sizes",
            f"bring them back, or train anew on them: octfast train --config {run.path / 'config.json'}",
        )
    gone = set(prepared.scans["path"]) - set(fewer.scans["path"])
    if (prepared.scans[prepared.scans["path"].isin(gone)]["split"] != "test").any():
        log.warning("the training starts again from its first epoch, as it is of other scans")
        forget_epochs(run)
    return fewer


def forget_epochs(run: Run) -> None:
    """Remove what a run folder has of epochs, so that a training can begin in it."""
    for file in ("history.csv", f"checkpoints/{checkpoint.FILE}", "checkpoints/best.safetensors"):
        (run.path / file).unlink(missing_ok=True)


def tidy(run: Run) -> None:
    """Remove the parts of files, and fastai's folder of a search for a rate, that a killed training left."""
    for part in run.path.rglob(".*.part"):
        part.unlink(missing_ok=True)
    for folder in (run.path / "checkpoints").glob("tmp*"):
        if folder.is_dir() and not folder.is_symlink() and {f.name for f in folder.iterdir()} <= {"_tmp.pth"}:
            shutil.rmtree(folder)


def _changes(was: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What software, machine and weights differ in, in words."""
    for part in ("versions", "machine"):
        before, after = _part(was, part), _part(now, part)
        for name in before:
            if name in after and before[name] != after[name]:
                yield f"{name} {after[name]} instead of {before[name]}"
    devices = [_part(a, "chosen").get("device") for a in (was, now)]
    if devices[0] and devices[0] != devices[1]:
        yield f"device {devices[1]} instead of {devices[0]}"
    files = [_part(a, "weights_report") for a in (was, now)]
    if files[0] and files[0].get("sha256") != files[1].get("sha256"):
        yield f"weights {files[1].get('file') or 'none'} instead of {files[0].get('file') or 'none'}, another content"


def _changes_of_scans(past: Past, about: dict[str, Any], prepared: Prepared) -> Iterator[str]:
    if _part(past.about, "data").get("fingerprint") == _part(about, "data").get("fingerprint"):
        return
    if past.scans is None:
        yield "the scans, by their fingerprint"
        return
    was, now = (
        scans.assign(path=[_below(p, root) for p in scans["path"]]).set_index("path")
        for scans, root in ((past.scans, Path(_part(past.about, "data")["root"])), (prepared.scans, prepared.root))
    )
    new, gone, both = (
        now.index.difference(was.index),
        was.index.difference(now.index),
        now.index.intersection(was.index),
    )
    said = [f"{len(new)} are new, such as {new[0]}"] if len(new) else []
    said += [f"{len(gone)} are missing, such as {gone[0]}"] if len(gone) else []
    for column in ("label", "patient", "split"):
        other = both[(now.loc[both, column] != was.loc[both, column]).to_numpy()]
        said += [f"{len(other)} have another {column}, such as {other[0]}"] if len(other) else []
    yield f"the scans: {'; '.join(said) or 'files have other sizes'}"


def _below(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def _part(about: dict[str, Any], name: str) -> dict[str, Any]:
    found = about.get(name)
    return found if isinstance(found, dict) else {}
